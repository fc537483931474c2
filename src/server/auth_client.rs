//! The HTTP service: asks the endpoints of `kind = "http"` on behalf of all workers.
//!
//! It lives on a thread of its own with an ordinary tokio runtime, so that name resolution, TLS
//! and slow endpoints never hold a worker up. Workers hand questions over without blocking; a
//! decision goes back through a channel of the worker's own, and wakes its ring.

mod endpoint;
mod numbers;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::base::random::Random;
use crate::connection::auth_request::HttpAuthRequest;
use crate::linux::process;
use crate::protocol::http_decision::HttpDecision;
use crate::settings::{AuthKind, HttpAuth, Settings};
use crate::worker::auth_requests::{AuthClient, AuthRequestId};
use endpoint::Endpoint;
pub use numbers::AuthNumbers;

/// Questions on their way to the service, which takes each immediately: where they wait for an
/// endpoint, `queue_max` bounds them.
const INTAKE_MAX: usize = 4096;
/// Threads that resolve names; the resolver of the system blocks.
const RESOLVERS_MAX: usize = 4;

/// A question and the way back.
struct Posted {
    ticket: AuthRequestId,
    http_request: HttpAuthRequest,
    reply: Arc<Reply>,
    /// Ends when the worker withdraws the question, or dies.
    withdrawn: oneshot::Receiver<()>,
}

/// The way back to one worker.
struct Reply {
    decisions: blocking::Sender<(AuthRequestId, HttpDecision)>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Reply {
    fn send(&self, ticket: AuthRequestId, decision: HttpDecision) {
        // A worker that is gone needs no decision.
        if self.decisions.send((ticket, decision)).is_ok() {
            (self.wake)();
        }
    }
}

/// The service, as the control thread and the workers' launcher hold it.
#[derive(Clone, Default)]
pub struct AuthService {
    intake: Arc<OnceLock<mpsc::Sender<Posted>>>,
    starting: Arc<Mutex<()>>,
    numbers: Arc<AuthNumbers>,
}

impl AuthService {
    /// Starts the thread if these settings ask an endpoint and it does not run yet. To be
    /// called from a thread that is not pinned to a core, because the new one inherits that.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn ensure(&self, settings: &Settings) -> std::io::Result<()> {
        let asks = settings.auths.iter().any(|auth| matches!(auth.kind, AuthKind::Http(_)));
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if !asks || self.intake.get().is_some() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(RESOLVERS_MAX)
            .build()?;
        let seed = process::random_seed()?;
        let (intake, questions) = mpsc::channel(INTAKE_MAX);
        let numbers = Arc::clone(&self.numbers);
        std::thread::Builder::new().name("verdicts".into()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, serve(questions, numbers, Random::from_seed(seed)));
        })?;
        let _first = self.intake.set(intake);
        Ok(())
    }

    /// What it does at the moment.
    pub fn numbers(&self) -> &AuthNumbers {
        &self.numbers
    }

    /// A worker's way to it; `wake` ends that worker's wait.
    pub fn port(&self, wake: impl Fn() + Send + Sync + 'static) -> Box<dyn AuthClient> {
        let (decisions, answers) = blocking::channel();
        Box::new(Port {
            intake: Arc::clone(&self.intake),
            reply: Arc::new(Reply { decisions, wake: Box::new(wake) }),
            answers,
            out: HashMap::new(),
        })
    }
}

/// One worker's end.
struct Port {
    intake: Arc<OnceLock<mpsc::Sender<Posted>>>,
    reply: Arc<Reply>,
    answers: blocking::Receiver<(AuthRequestId, HttpDecision)>,
    /// Dropping the sender withdraws the question. Bounded by `limits.verdicts_max`.
    out: HashMap<AuthRequestId, oneshot::Sender<()>>,
}

impl AuthClient for Port {
    fn ask(&mut self, ticket: AuthRequestId, http_request: HttpAuthRequest) -> bool {
        let Some(intake) = self.intake.get() else { return false };
        let (out, withdrawn) = oneshot::channel();
        let reply = Arc::clone(&self.reply);
        if intake.try_send(Posted { ticket, http_request, reply, withdrawn }).is_err() {
            return false;
        }
        self.out.insert(ticket, out);
        true
    }

    fn withdraw(&mut self, ticket: AuthRequestId) {
        self.out.remove(&ticket);
    }

    fn decision(&mut self) -> Option<(AuthRequestId, HttpDecision)> {
        self.answers.try_recv().ok()
    }
}

async fn serve(
    mut questions: mpsc::Receiver<Posted>,
    numbers: Arc<AuthNumbers>,
    mut random: Random,
) {
    let mut endpoints: Vec<Rc<Endpoint>> = Vec::new();
    while let Some(posted) = questions.recv().await {
        let settings = Arc::clone(&posted.http_request.endpoint);
        let known = endpoints.iter().find(|known| Arc::ptr_eq(known.settings(), &settings));
        let endpoint = match known {
            Some(known) => Rc::clone(known),
            None => {
                // A reload made new settings; endpoints that no settings name any more go.
                endpoints.retain(|endpoint| !endpoint.is_abandoned());
                let endpoint = new_endpoint(settings, &numbers, random.number());
                endpoints.push(Rc::clone(&endpoint));
                endpoint
            }
        };
        tokio::task::spawn_local(answer(posted, endpoint));
    }
}

fn new_endpoint(settings: Arc<HttpAuth>, numbers: &Arc<AuthNumbers>, seed: u64) -> Rc<Endpoint> {
    let name = settings.name.clone();
    let endpoint = Endpoint::new(settings, Arc::clone(numbers), seed);
    if let Err(error) = endpoint.usable() {
        tracing::error!(auth = name, error, "the endpoint cannot be asked");
    }
    Rc::new(endpoint)
}

/// Decides on one question, unless it is withdrawn before.
async fn answer(posted: Posted, endpoint: Rc<Endpoint>) {
    let Posted { ticket, http_request, reply, withdrawn } = posted;
    let decision = tokio::select! {
        biased;
        _ = withdrawn => return,
        decision = endpoint.decide(&http_request) => decision,
    };
    reply.send(ticket, decision);
}
