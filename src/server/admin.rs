//! The admin listeners, TCP and unix: one request per connection, everything bounded. HTTP is
//! hyper's, which runs on the tokio runtime that tokio-uring wraps.

pub mod access;
mod answer;
pub mod listen;
pub mod revocations;
pub mod room;

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, WWW_AUTHENTICATE,
    X_FRAME_OPTIONS,
};
use hyper::{Request, StatusCode};
use tokio::sync::{mpsc, oneshot};

use super::control::{ControlRequest, unix_ms};
use super::exposition::Exposition;
use super::reload::ReloadError;
use super::revocations::{Kept, RevocationStore};
use super::status::Status;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::revocation::Inserted;
use access::{Access, Action, Refusal, Sender};
pub use answer::Answer;
use answer::{json, respond, text};
use room::Place;

/// How long a request head may take, as long again its body, and as long a change.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// A reload reads a few files; it is never longer than this.
const RELOAD_MAX: Duration = Duration::from_secs(30);

/// Something served beside the fixed endpoints, such as the live page.
#[derive(Clone, Debug)]
pub struct Asset {
    /// Its path, beginning with `/`.
    pub path: String,
    /// Its media type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: AssetBody,
}

/// Where an asset's bytes come from.
#[derive(Clone)]
pub enum AssetBody {
    /// Always the same.
    Fixed(Vec<u8>),
    /// Made for each request, on the control thread: it must not block.
    Made(Arc<dyn Fn() -> Vec<u8> + Send + Sync>),
}

impl AssetBody {
    fn bytes(&self) -> Vec<u8> {
        match self {
            AssetBody::Fixed(bytes) => bytes.clone(),
            AssetBody::Made(make) => make(),
        }
    }
}

impl fmt::Debug for AssetBody {
    /// Without the bytes: they may be secret.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            AssetBody::Fixed(_) => "Fixed",
            AssetBody::Made(_) => "Made",
        })
    }
}

/// What is served at `/` and its parts.
#[derive(Clone, Debug)]
pub struct Page {
    /// The page, with the path `/`, and everything it loads.
    pub assets: Vec<Asset>,
    /// Where the page may connect to beside the admin listener itself, as the `connect-src` of a
    /// Content-Security-Policy takes it: `ws://127.0.0.1:8080`.
    pub connect_sources: Vec<String>,
}

const INDEX: &str = "Portcullis admin listener

GET /metrics      Prometheus exposition
GET /healthz      200 while the process does its work
GET /readyz       200 while new connections should come here
GET /live.json    live numbers
GET /revocations  revoked tokens; ?after=ID goes on

Changes need gateway.admin_token_file or the socket gateway.admin_socket:
POST   /-/reload         read the configuration file again
POST   /-/drain          close every client over deadlines.drain, then end
POST   /revocations      {\"subject\": \"alice\", \"lapses_in\": 3600}; also token_id, issued_before
DELETE /revocations/ID   take one back
";

impl Page {
    /// A plain list of the endpoints.
    pub fn index() -> Page {
        let content_type = "text/plain; charset=utf-8";
        let asset = Asset { path: "/".into(), content_type, body: AssetBody::Fixed(INDEX.into()) };
        Page { assets: vec![asset], connect_sources: Vec::new() }
    }

    /// No inline script, nothing from elsewhere, no frames.
    fn security_fields(&self) -> [(HeaderName, String); 4] {
        let connect = self.connect_sources.join(" ");
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
             connect-src 'self' {connect}; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        );
        [
            (CONTENT_SECURITY_POLICY, policy),
            (REFERRER_POLICY, "no-referrer".into()),
            (X_FRAME_OPTIONS, "DENY".into()),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin".into()),
        ]
    }
}

/// What the admin connections share with the control loop; all on one thread.
pub struct Admin {
    access: Access,
    page: Page,
    page_fields: Vec<(HeaderName, HeaderValue)>,
    status: Rc<RefCell<Status>>,
    exposition: Rc<RefCell<Exposition>>,
    revocations: Rc<RefCell<RevocationStore>>,
    requests: mpsc::Sender<ControlRequest>,
}

impl Admin {
    /// The admin side of a gateway.
    pub fn new(
        token: Option<Secret>,
        page: Page,
        status: Rc<RefCell<Status>>,
        exposition: Rc<RefCell<Exposition>>,
        revocations: Rc<RefCell<RevocationStore>>,
        requests: mpsc::Sender<ControlRequest>,
    ) -> Rc<Admin> {
        let asset_paths = page.assets.iter().map(|asset| asset.path.clone()).collect();
        let access = Access { token, asset_paths };
        let fields = page.security_fields().into_iter();
        let value = |text: String| HeaderValue::try_from(text).expect("visible ASCII");
        let page_fields = fields.map(|(name, text)| (name, value(text))).collect();
        Rc::new(Admin { access, page, page_fields, status, exposition, revocations, requests })
    }

    /// Answers a whole request head and the body behind it.
    async fn answer(
        &self,
        request: Request<Incoming>,
        sender: Sender,
        place: &Place,
    ) -> Result<Answer, Infallible> {
        let (head, body) = request.into_parts();
        let answer = match access::decide(&head, sender, &self.access) {
            Err(refusal) => refused(&refusal),
            Ok(Action::Revoke) => match tokio::time::timeout(DEADLINE, body.collect()).await {
                Ok(Ok(body)) => {
                    place.set_acting(true);
                    self.revoke(&body.to_bytes()).await
                }
                Ok(Err(_)) | Err(_) => text(StatusCode::REQUEST_TIMEOUT, "the body is not whole"),
            },
            Ok(action) => {
                place.set_acting(true);
                self.act(action).await
            }
        };
        place.set_acting(false);
        Ok(answer)
    }

    async fn act(&self, action: Action) -> Answer {
        let probe = |result: Result<(), String>| match result {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
        };
        match action {
            Action::Metrics => {
                let page = self.exposition.borrow().render().into_bytes();
                respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
            }
            Action::Health => probe(self.status.borrow().health()),
            Action::Ready => probe(self.status.borrow().readiness()),
            Action::Live => json(StatusCode::OK, &self.status.borrow().live(Instant::now())),
            Action::Asset(index) => {
                let asset = &self.page.assets[index];
                let mut answer = respond(StatusCode::OK, asset.content_type, asset.body.bytes());
                answer.headers_mut().extend(self.page_fields.iter().cloned());
                answer
            }
            Action::Reload => self.reload().await,
            Action::Drain => self.drain(),
            Action::Takeover => self.make_room().await,
            Action::Revocations { after } => {
                let store = self.revocations.borrow();
                revocations::page(store.after(after), store.held())
            }
            Action::Revoke => unreachable!("a revocation is acted on with its body"),
            Action::Unrevoke(id) => self.unrevoke(id).await,
        }
    }

    async fn revoke(&self, body: &[u8]) -> Answer {
        let now = UnixTime::from_millis(unix_ms());
        let revocation = match revocations::parse(body, now) {
            Ok(revocation) => revocation,
            Err(why) => return revocations::refused(&why, StatusCode::UNPROCESSABLE_ENTITY),
        };
        let inserted = self.revocations.borrow_mut().insert(revocation, now);
        if !matches!(inserted, Ok(Inserted::New(_) | Inserted::Covered(_))) {
            return revocations::inserted(inserted, false);
        }
        match self.kept().await {
            Ok(()) => revocations::inserted(inserted, self.revocations.borrow().has_file()),
            Err(why) => revocations::refused(&why, StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    async fn unrevoke(&self, id: u64) -> Answer {
        if !self.revocations.borrow_mut().remove(id) {
            return text(StatusCode::NOT_FOUND, "no such revocation");
        }
        match self.kept().await {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({"result": "ended"})),
            Err(why) => revocations::refused(&why, StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// Waits until the last change is in force, and saved.
    async fn kept(&self) -> Kept {
        let kept = self.revocations.borrow_mut().kept();
        match tokio::time::timeout(DEADLINE, kept).await {
            Ok(Ok(kept)) => kept,
            _ => Err("it was not in force and saved in time; ask again what is".into()),
        }
    }

    async fn reload(&self) -> Answer {
        let (reply, result) = oneshot::channel();
        // The asker may have gone: then the reply is dropped.
        let reply = Box::new(move |outcome| drop(reply.send(outcome)));
        if let Err(answer) = self.request(ControlRequest::Reload { reply }) {
            return answer;
        }
        let refused = |status, problems| {
            json(status, &serde_json::json!({"result": "refused", "problems": problems}))
        };
        match tokio::time::timeout(RELOAD_MAX, result).await {
            Ok(Ok(Ok(warnings))) => {
                let answer = serde_json::json!({"result": "ok", "warnings": warnings});
                json(StatusCode::OK, &answer)
            }
            Ok(Ok(Err(ReloadError::Invalid(problems)))) => {
                refused(StatusCode::UNPROCESSABLE_ENTITY, problems)
            }
            Ok(Ok(Err(ReloadError::Conflict(problems)))) => refused(StatusCode::CONFLICT, problems),
            Ok(Err(_)) | Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping"),
        }
    }

    fn drain(&self) -> Answer {
        match self.request(ControlRequest::Drain { window: None }) {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({"result": "draining"})),
            Err(answer) => answer,
        }
    }

    async fn make_room(&self) -> Answer {
        let (reply, result) = oneshot::channel();
        let reply = Box::new(move |outcome| drop(reply.send(outcome)));
        if let Err(answer) = self.request(ControlRequest::Takeover { reply }) {
            return answer;
        }
        match result.await {
            Ok(Ok(socket)) => {
                json(StatusCode::OK, &serde_json::json!({"result": "draining", "socket": socket}))
            }
            Ok(Err(why)) => text(StatusCode::CONFLICT, &why),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping"),
        }
    }

    #[allow(clippy::result_large_err, reason = "the error is the answer, made once and sent")]
    fn request(&self, request: ControlRequest) -> Result<(), Answer> {
        let busy = "the gateway is busy or stopping";
        let sent = self.requests.try_send(request);
        sent.map_err(|_| text(StatusCode::SERVICE_UNAVAILABLE, busy))
    }
}

fn refused(refusal: &Refusal) -> Answer {
    let mut answer = text(refusal.status, refusal.why);
    let field = match refusal.status {
        StatusCode::UNAUTHORIZED => (WWW_AUTHENTICATE, "Bearer realm=\"portcullis admin\""),
        StatusCode::METHOD_NOT_ALLOWED => (ALLOW, refusal.allow),
        _ => return answer,
    };
    answer.headers_mut().insert(field.0, HeaderValue::from_static(field.1));
    answer
}
