//! The admin listener on tokio-uring: one request per connection, everything bounded.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_uring::net::{TcpListener, TcpStream};

use super::admin_http::{Access, Action, Answer, Decision, HeadScanner, Scan, Status, decide};
use super::admin_revocations;
use super::control::{Order, unix_ms};
use super::exposition::Exposition;
use super::revocations::{Keeper, Kept};
use super::status::Status as GatewayStatus;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::revocation::Inserted;

/// Connections served at once; one more is closed at once.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a request head may take, and as long again the answer.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a client's leftovers are read after the answer, so that its kernel does not throw
/// the answer away at our reset.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of leftovers that are read.
const LEFTOVER_MAX: usize = 64 * 1024;
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

GET  /metrics    Prometheus exposition
GET  /healthz    200 while the process does its work
GET  /readyz     200 while new connections should come here
GET  /live.json  live numbers
POST /-/reload   read the configuration file again

GET    /revocations      who must not be let in; ?after=ID goes on
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
    fn security_fields(&self) -> String {
        let connect = self.connect_sources.join(" ");
        format!(
            "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
             img-src 'self' data:; connect-src 'self' {connect}; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'\r\n\
             Referrer-Policy: no-referrer\r\nX-Frame-Options: DENY\r\n\
             Cross-Origin-Opener-Policy: same-origin\r\n"
        )
    }
}

/// What the admin connections share with the control loop; all on one thread.
pub struct Admin {
    access: Access,
    page: Page,
    page_fields: String,
    status: Rc<RefCell<GatewayStatus>>,
    exposition: Rc<RefCell<Exposition>>,
    revocations: Rc<RefCell<Keeper>>,
    orders: mpsc::Sender<Order>,
    open: Cell<usize>,
}

impl Admin {
    /// The admin side of a gateway.
    pub fn new(
        token: Option<Secret>,
        page: Page,
        status: Rc<RefCell<GatewayStatus>>,
        exposition: Rc<RefCell<Exposition>>,
        revocations: Rc<RefCell<Keeper>>,
        orders: mpsc::Sender<Order>,
    ) -> Rc<Admin> {
        let asset_paths = page.assets.iter().map(|asset| asset.path.clone()).collect();
        let access = Access { token, asset_paths };
        let page_fields = page.security_fields();
        let open = Cell::new(0);
        Rc::new(Admin { access, page, page_fields, status, exposition, revocations, orders, open })
    }

    /// Serves `listener` until the runtime ends. The listener must be a blocking one: on a
    /// non-blocking one io_uring's accept fails instead of waiting.
    pub async fn serve(self: Rc<Self>, listener: StdListener) {
        let listener = TcpListener::from_std(listener);
        loop {
            match listener.accept().await {
                Ok(_) if self.open.get() >= CONNECTIONS_MAX => {}
                Ok((stream, _)) => {
                    self.open.set(self.open.get() + 1);
                    let admin = Rc::clone(&self);
                    tokio_uring::spawn(async move {
                        admin.connection(&stream).await;
                        admin.open.set(admin.open.get() - 1);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: &TcpStream) {
        let Some((answer, head_only)) = self.answer(stream).await else { return };
        let write = stream.write_all(answer.into_bytes(head_only));
        let deadline = (Instant::now() + DEADLINE).into();
        if !matches!(timeout_at(deadline, write).await, Ok((Ok(()), _))) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let deadline = Instant::now() + LINGER;
        let mut left = LEFTOVER_MAX;
        while let Some(bytes) = read(stream, Vec::with_capacity(4096), deadline).await {
            left = left.saturating_sub(bytes.len());
            if bytes.is_empty() || left == 0 {
                break;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }

    /// Reads one request and answers it; `None` when there is nobody to answer.
    async fn answer(&self, stream: &TcpStream) -> Option<(Answer, bool)> {
        let deadline = Instant::now() + DEADLINE;
        let mut scanner = HeadScanner::default();
        let mut head = Vec::new();
        let mut chunk = Vec::with_capacity(2048);
        let end = loop {
            chunk = match read(stream, chunk, deadline).await {
                Some(chunk) if chunk.is_empty() => return None,
                Some(chunk) => chunk,
                // Silence gets silence.
                None if head.is_empty() => return None,
                None => return Some((Answer::text(Status::RequestTimeout, "too slow"), false)),
            };
            head.extend_from_slice(&chunk);
            match scanner.scan(&head) {
                Scan::Partial => {}
                Scan::Whole(end) => break end,
                Scan::Refused(status) => {
                    return Some((Answer::text(status, status.line().1), false));
                }
            }
        };
        let Decision { action, head_only } = decide(&head[..end], &self.access);
        if let Action::Revoke { body } = action {
            let mut given = head.split_off(end);
            while given.len() < body {
                chunk = match read(stream, chunk, deadline).await {
                    Some(chunk) if !chunk.is_empty() => chunk,
                    _ => return Some((Answer::text(Status::RequestTimeout, "too slow"), false)),
                };
                given.extend_from_slice(&chunk);
            }
            given.truncate(body);
            return Some((self.revoke(&given).await, head_only));
        }
        Some((self.act(action).await, head_only))
    }

    async fn act(&self, action: Action) -> Answer {
        let decision = |result: Result<(), String>| match result {
            Ok(()) => Answer::text(Status::Ok, "ok"),
            Err(why) => Answer::text(Status::Unavailable, why),
        };
        match action {
            Action::Metrics => Answer {
                status: Status::Ok,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: self.exposition.borrow().render().into_bytes(),
                fields: String::new(),
            },
            Action::Health => decision(self.status.borrow().health()),
            Action::Ready => decision(self.status.borrow().readiness()),
            Action::Live => json_answer(Status::Ok, &self.status.borrow().live(Instant::now())),
            Action::Asset(index) => {
                let asset = &self.page.assets[index];
                Answer {
                    status: Status::Ok,
                    content_type: asset.content_type,
                    body: asset.body.bytes(),
                    fields: self.page_fields.clone(),
                }
            }
            Action::Reload => self.reload().await,
            Action::Revocations { after } => {
                let revocations = self.revocations.borrow();
                admin_revocations::page(revocations.after(after), revocations.held())
            }
            Action::Revoke { .. } => unreachable!("a revocation is acted on with its body"),
            Action::Unrevoke(id) => self.unrevoke(id).await,
            Action::Refuse(refusal) => Answer::refusal(&refusal),
        }
    }

    async fn revoke(&self, body: &[u8]) -> Answer {
        let now = UnixTime::from_millis(unix_ms());
        let revocation = match admin_revocations::parse(body, now) {
            Ok(revocation) => revocation,
            Err(why) => return admin_revocations::refused(&why, Status::Unprocessable),
        };
        let inserted = self.revocations.borrow_mut().insert(revocation, now);
        if !matches!(inserted, Ok(Inserted::New(_) | Inserted::Covered(_))) {
            return admin_revocations::inserted(inserted, false);
        }
        match self.kept().await {
            Ok(()) => admin_revocations::inserted(inserted, self.revocations.borrow().has_file()),
            Err(why) => admin_revocations::refused(&why, Status::Unavailable),
        }
    }

    async fn unrevoke(&self, id: u64) -> Answer {
        if !self.revocations.borrow_mut().remove(id) {
            return Answer::text(Status::NotFound, "no such revocation");
        }
        match self.kept().await {
            Ok(()) => json_answer(Status::Ok, &serde_json::json!({"result": "ended"})),
            Err(why) => admin_revocations::refused(&why, Status::Unavailable),
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
        // A gateway that stops no longer answers: the reply is dropped.
        let order = Order::Reload { reply: Box::new(move |outcome| drop(reply.send(outcome))) };
        let outcome = match self.orders.try_send(order) {
            Ok(()) => tokio::time::timeout(RELOAD_MAX, result).await,
            Err(_) => return Answer::text(Status::Unavailable, "the gateway is busy or stopping"),
        };
        match outcome {
            Ok(Ok(Ok(warnings))) => {
                json_answer(Status::Ok, &serde_json::json!({"result": "ok", "warnings": warnings}))
            }
            Ok(Ok(Err(problems))) => json_answer(
                Status::Unprocessable,
                &serde_json::json!({"result": "refused", "problems": problems}),
            ),
            Ok(Err(_)) | Err(_) => Answer::text(Status::Unavailable, "the gateway is stopping"),
        }
    }
}

fn json_answer(status: Status, value: &serde_json::Value) -> Answer {
    let body = format!("{value}\n").into_bytes();
    Answer { status, content_type: "application/json", body, fields: String::new() }
}

/// Reads once; empty at the end of the stream, `None` at the deadline or on an error. After
/// `None` the stream's reading side is shut down, because tokio-uring cannot cancel the read:
/// only so does it complete and let go of the descriptor.
async fn read(stream: &TcpStream, mut buffer: Vec<u8>, deadline: Instant) -> Option<Vec<u8>> {
    buffer.clear();
    match timeout_at(deadline.into(), stream.read(buffer)).await {
        Ok((Ok(count), mut buffer)) => {
            buffer.truncate(count);
            Some(buffer)
        }
        Ok((Err(_), _)) => None,
        Err(_) => {
            let _ = stream.shutdown(std::net::Shutdown::Read);
            None
        }
    }
}
