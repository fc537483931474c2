//! One HTTP endpoint: its connections, its bounds, its circuit.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::header::{HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::numbers::AuthNumbers;
use crate::base::circuit::{Circuit, CircuitState, Permit};
use crate::base::random::Random;
use crate::base::time::Instant;
use crate::connection::auth_request::HttpAuthRequest;
use crate::protocol::http_decision::{HttpDecision, Undecided, judge};
use crate::settings::HttpAuth;

/// For how long an idle connection is kept.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Warnings of an endpoint's answers come at most this often.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Most fields of a response's head.
const FIELDS_MAX: usize = 64;

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// One endpoint, as one load of the settings describes it.
pub(super) struct Endpoint {
    settings: Arc<HttpAuth>,
    client: Result<HttpClient, String>,
    circuit: RefCell<Circuit>,
    /// What `numbers` was last told of the circuit.
    shown: Cell<CircuitState>,
    slots: Semaphore,
    waiting: Cell<u32>,
    random: RefCell<Random>,
    /// Answers that decided nothing, since the last warning of them, and when that was.
    unclear: Cell<u64>,
    warned: Cell<Option<Instant>>,
    numbers: Arc<AuthNumbers>,
    started: std::time::Instant,
}

impl Endpoint {
    pub(super) fn new(settings: Arc<HttpAuth>, numbers: Arc<AuthNumbers>, seed: u64) -> Self {
        numbers.circuits[CircuitState::Closed as usize].fetch_add(1, Relaxed);
        Endpoint {
            client: client(&settings),
            circuit: RefCell::new(Circuit::new(settings.circuit)),
            shown: Cell::new(CircuitState::Closed),
            slots: Semaphore::new(settings.in_flight_max as usize),
            waiting: Cell::new(0),
            random: RefCell::new(Random::from_number(seed)),
            unclear: Cell::new(0),
            warned: Cell::new(None),
            numbers,
            started: std::time::Instant::now(),
            settings,
        }
    }

    pub(super) fn settings(&self) -> &Arc<HttpAuth> {
        &self.settings
    }

    /// Why it cannot be asked at all, if so.
    pub(super) fn usable(&self) -> Result<(), &str> {
        self.client.as_ref().map(|_| ()).map_err(String::as_str)
    }

    /// Whether no settings and no question name it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.settings) == 1
    }

    /// Asks, within the question's time. Dropped, it gives the request up: its connection
    /// closes.
    pub(super) async fn decide(&self, http_request: &HttpAuthRequest) -> HttpDecision {
        let deadline = tokio::time::Instant::now() + http_request.timeout;
        let decided = async {
            let _slot = self.slot(deadline).await?;
            self.ask(http_request, deadline).await
        };
        decided.await.unwrap_or_else(HttpDecision::Undecided)
    }

    /// Room among the requests in flight, or in the queue before them.
    async fn slot(&self, deadline: tokio::time::Instant) -> Result<SemaphorePermit<'_>, Undecided> {
        if let Ok(slot) = self.slots.try_acquire() {
            return Ok(slot);
        }
        if self.waiting.get() >= self.settings.queue_max {
            return Err(Undecided::Overloaded);
        }
        let _waiting = Waiting::new(&self.waiting);
        match tokio::time::timeout_at(deadline, self.slots.acquire()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => Err(Undecided::Overloaded),
        }
    }

    async fn ask(
        &self,
        http_request: &HttpAuthRequest,
        deadline: tokio::time::Instant,
    ) -> Result<HttpDecision, Undecided> {
        let client = self.client.as_ref().map_err(|_| Undecided::Unreachable)?;
        let request = self.request(http_request)?;
        let mut attempt = Attempt::begin(self).ok_or(Undecided::CircuitOpen)?;
        let exchange = async {
            let response = client.request(request).await.map_err(|error| unanswered(&error))?;
            self.decision(response).await
        };
        let decision = match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(decision)) => decision,
            Ok(Err(why)) => HttpDecision::Undecided(why),
            Err(_) => HttpDecision::Undecided(Undecided::TimedOut),
        };
        attempt.end(&decision);
        if let HttpDecision::Undecided(why) = &decision {
            self.warn(*why);
        }
        Ok(decision)
    }

    fn request(&self, http_request: &HttpAuthRequest) -> Result<Request<Empty<Bytes>>, Undecided> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.settings.endpoint.clone();
        let headers = request.headers_mut();
        for (name, value) in http_request.fields.iter().chain(&forward_auth(&http_request.fields)) {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_bytes(value);
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err(Undecided::Malformed("question"));
            };
            value.set_sensitive(true);
            headers.append(name, value);
        }
        // The client's own, where `headers` names it; one in all.
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static("portcullis"));
        Ok(request)
    }

    /// Judges a whole response: one that breaks off within its body decides nothing.
    async fn decision(
        &self,
        response: Response<hyper::body::Incoming>,
    ) -> Result<HttpDecision, Undecided> {
        let (head, body) = response.into_parts();
        let mut body = Limited::new(body, self.settings.response_max as usize);
        while let Some(frame) = body.frame().await {
            if let Err(error) = frame {
                let too_large = error.is::<LengthLimitError>();
                return Err(if too_large { Undecided::TooLarge } else { Undecided::Unreachable });
            }
        }
        let fields: Vec<(&str, &[u8])> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        Ok(judge(head.status.as_u16(), &fields, &self.settings.identity))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.started.elapsed().as_nanos() as u64)
    }

    /// Warns of answers that point to a wrong configuration, now and then.
    fn warn(&self, why: Undecided) {
        let Some(likely_cause) = why.likely_cause() else { return };
        self.unclear.set(self.unclear.get() + 1);
        let now = self.now();
        if self.warned.get().is_some_and(|at| now.since(at) < WARNING_INTERVAL) {
            return;
        }
        self.warned.set(Some(now));
        let (auth, answers) = (self.settings.name.as_str(), self.unclear.take());
        tracing::warn!(
            auth,
            %why,
            likely_cause,
            answers,
            "the endpoint's answers decide nothing: its clients are refused"
        );
    }

    /// Tells logs and numbers of a change of the circuit.
    fn show_circuit(&self, why: Option<Undecided>) {
        let (before, now) = (self.shown.get(), self.circuit.borrow().state());
        if before == now {
            return;
        }
        self.shown.set(now);
        self.numbers.circuits[before as usize].fetch_sub(1, Relaxed);
        self.numbers.circuits[now as usize].fetch_add(1, Relaxed);
        let auth = self.settings.name.as_str();
        match (now, why) {
            (CircuitState::Open, Some(why)) => {
                tracing::warn!(auth, %why, "the endpoint is left alone for a while");
            }
            (CircuitState::Closed, _) => tracing::info!(auth, "the endpoint answers again"),
            _ => {}
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.numbers.circuits[self.shown.get() as usize].fetch_sub(1, Relaxed);
    }
}

/// One place in the queue.
struct Waiting<'e>(&'e Cell<u32>);

impl<'e> Waiting<'e> {
    fn new(waiting: &'e Cell<u32>) -> Self {
        waiting.set(waiting.get() + 1);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One request, as the circuit and the numbers see it. Dropped without an end, it was given up,
/// and the circuit learns nothing.
struct Attempt<'e> {
    endpoint: &'e Endpoint,
    permit: Option<Permit>,
}

impl<'e> Attempt<'e> {
    fn begin(endpoint: &'e Endpoint) -> Option<Self> {
        let permit = endpoint.circuit.borrow_mut().admit(endpoint.now())?;
        endpoint.show_circuit(None);
        endpoint.numbers.in_flight.fetch_add(1, Relaxed);
        Some(Attempt { endpoint, permit: Some(permit) })
    }

    fn end(&mut self, decision: &HttpDecision) {
        let Some(permit) = self.permit.take() else { return };
        let mut circuit = self.endpoint.circuit.borrow_mut();
        let why = match decision {
            HttpDecision::Accepted(_) | HttpDecision::Refused(_) => {
                circuit.succeeded(permit);
                None
            }
            HttpDecision::Undecided(why) if !why.is_failure() => {
                circuit.succeeded(permit);
                None
            }
            HttpDecision::Undecided(why) => {
                let jitter = self.endpoint.random.borrow_mut().number() as u32;
                circuit.failed(permit, self.endpoint.now(), jitter);
                Some(*why)
            }
        };
        drop(circuit);
        self.endpoint.show_circuit(why);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.endpoint.numbers.in_flight.fetch_sub(1, Relaxed);
        if let Some(permit) = self.permit.take() {
            self.endpoint.circuit.borrow_mut().abandoned(permit, self.endpoint.now());
            self.endpoint.show_circuit(None);
        }
    }
}

/// Why no response came: one that is too long is the client's doing as well as the service's.
fn unanswered(error: &hyper_util::client::legacy::Error) -> Undecided {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            return Undecided::TooLarge;
        }
        source = error.source();
    }
    Undecided::Unreachable
}

/// The request under the names by which forward-auth services know it (Traefik's and Caddy's,
/// nginx' by custom), made from those in `fields`.
fn forward_auth(fields: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let find = |name: &str| {
        let field = fields.iter().rev().find(|(other, _)| other == name);
        field.map_or(&[][..], |(_, value)| value.as_slice())
    };
    let (uri, host) = (find("x-original-uri"), find("x-forwarded-host"));
    let mut more = vec![
        ("x-forwarded-method".to_owned(), find("x-original-method").to_vec()),
        ("x-forwarded-uri".to_owned(), uri.to_vec()),
    ];
    if !host.is_empty() {
        let url = [find("x-forwarded-proto"), b"://", host, uri].concat();
        more.push(("x-original-url".to_owned(), url));
    }
    more
}

/// A client that follows no redirect, asks no proxy and keeps as many idle connections as may
/// be in flight.
fn client(settings: &HttpAuth) -> Result<HttpClient, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = match &settings.roots {
        Some(roots) => config.with_root_certificates(Arc::clone(roots)),
        None if settings.endpoint.scheme_str() == Some("https") => config
            .with_native_roots()
            .map_err(|error| format!("the system's certificates cannot be read: {error}"))?,
        None => config.with_root_certificates(RootCertStore::empty()),
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(settings.timeout));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config.with_no_client_auth())
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let response_max = settings.response_max as usize;
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(settings.in_flight_max as usize)
        .http1_max_buf_size(response_max)
        .http1_max_headers(FIELDS_MAX)
        .build(connector))
}
