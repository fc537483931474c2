//! A backend made with the library, in a thread of its own, that tells what it saw.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use portcullis::backend::authenticate::{AuthRequest, Cause, Decision};
use portcullis::backend::{
    Backend as Library, Ended, Identity, Limits, Message, Revocation, Revoker, Secret, Session,
    Stopper, Target,
};
use portcullis::base::time::UnixTime;
use tokio::sync::oneshot;

use super::PATIENCE;

/// What a backend saw.
#[derive(Debug)]
pub enum Event {
    Open(Box<Identity>),
    Message(Message),
    Ended(Ended),
    /// Path, carriers with names and tokens of a request.
    Asked(String, Vec<String>),
}

/// A backend that echoes, but obeys these texts:
/// `close CODE REASON`, `flood COUNT BYTES` (binary messages), `sleep MILLISECONDS`,
/// `expire UNIX-TIME`, `revoke SUBJECT UNIX-TIME`, and `who are you`, answered with the token's id.
/// Dropped, it dies: its sockets close with all that was on its way.
pub struct Backend {
    address: String,
    events: Receiver<Event>,
    stopper: Stopper,
    stop: Option<oneshot::Sender<Option<Duration>>>,
    thread: Option<JoinHandle<()>>,
}

/// How a backend is to listen.
#[derive(Clone, Default)]
pub struct Choices {
    pub secret: Option<&'static str>,
    pub limits: Option<Limits>,
    /// Decides on clients by what their first credential says: `accept SUBJECT [EXPIRES]`,
    /// `reject CAUSE [RETRY_MS] [MESSAGE]`, `slow MILLISECONDS …`, `never`, `panic`.
    pub decides: bool,
}

impl Backend {
    pub fn start() -> Backend {
        Backend::start_at("127.0.0.1:0", Choices::default())
    }

    pub fn start_at(address: &str, choices: Choices) -> Backend {
        let (events_in, events) = channel();
        let (bound_in, bound) = channel();
        let (stop, stopped) = oneshot::channel();
        let address = address.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let mut builder = Library::builder();
                if let Some(secret) = choices.secret {
                    builder = builder.secret(Secret::new(secret.as_bytes().to_vec()));
                }
                if let Some(limits) = choices.limits {
                    builder = builder.limits(limits);
                }
                if choices.decides {
                    let events = events_in.clone();
                    builder = builder.authenticate(move |request| decide(request, events.clone()));
                }
                let backend = builder.bind(&address).await.expect("the backend listens");
                let told = (backend.address().to_owned(), backend.stopper());
                bound_in.send(told).expect("somebody waits");
                tokio::select! {
                    () = accept(backend, events_in) => {}
                    _ = stopped => {}
                }
            });
        });
        let (address, stopper) = bound.recv_timeout(PATIENCE).expect("the backend is up");
        Backend { address, events, stopper, stop: Some(stop), thread: Some(thread) }
    }

    /// As settings name it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next thing it saw.
    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    /// Everything it saw since the last look.
    pub fn seen(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }

    /// The next session's identity, past everything else.
    pub fn opened(&self) -> Identity {
        loop {
            if let Event::Open(identity) = self.event() {
                return *identity;
            }
        }
    }

    /// Path and credentials of the next request, past everything else.
    pub fn asked(&self) -> (String, Vec<String>) {
        loop {
            if let Event::Asked(path, credentials) = self.event() {
                return (path, credentials);
            }
        }
    }

    /// How the next session ended, past everything else.
    pub fn ended(&self) -> Ended {
        loop {
            if let Event::Ended(ended) = self.event() {
                return ended;
            }
        }
    }

    /// How many sessions were opened since the last look.
    pub fn opens(&self) -> usize {
        self.seen().iter().filter(|event| matches!(event, Event::Open(..))).count()
    }

    /// Shuts down as a well-behaved backend does: GOAWAY, then at most `grace` for sessions.
    pub fn leave(&self, grace: Duration) {
        let stopper = self.stopper.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(stopper.shutdown(grace));
        });
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(mut backend: Library, events: Sender<Event>) {
    while let Some(session) = backend.accept().await {
        let _ = events.send(Event::Open(Box::new(session.identity().clone())));
        tokio::spawn(serve(session, backend.revoker(), events.clone()));
    }
    // Links may live on after the last session was accepted.
    std::future::pending::<()>().await;
}

async fn decide(request: AuthRequest, events: Sender<Event>) -> Decision {
    let shown = request.credentials().iter().map(|credential| {
        let token = String::from_utf8_lossy(credential.token());
        format!("{:?}:{}:{token}", credential.carrier, credential.name)
    });
    let path = request.request().path.clone();
    let _ = events.send(Event::Asked(path, shown.collect()));
    let text = String::from_utf8_lossy(request.token()).replace('_', " ");
    let mut words: Vec<&str> = text.split(' ').collect();
    if words[0] == "slow" {
        let wait = words[1].parse().unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        words.drain(..2);
    }
    match words[..] {
        ["accept", subject] => Decision::accept(subject).claims("{}").into(),
        ["accept", subject, expires] => {
            let at = UnixTime::from_seconds(expires.parse().unwrap_or(0));
            Decision::accept(subject).token_id("t1").expires(at).into()
        }
        ["expired"] => Decision::reject(Cause::TokenExpired).into(),
        ["forbidden"] => Decision::reject(Cause::TokenForbidden).message("not you").into(),
        ["busy", wait] => {
            let wait = Duration::from_millis(wait.parse().unwrap_or(0));
            Decision::reject(Cause::RateLimited).retry_after(wait).into()
        }
        ["panic"] => panic!("a decision that panics"),
        _ => std::future::pending().await,
    }
}

async fn serve(mut session: Session, revoker: Revoker, events: Sender<Event>) {
    while let Some(message) = session.next().await {
        let _ = events.send(Event::Message(message.clone()));
        let words: Vec<&str> = message.as_text().unwrap_or("").splitn(3, ' ').collect();
        match words[..] {
            ["close", code, reason] => session.close(code.parse().unwrap_or(0), reason),
            ["flood", count, bytes] => {
                let payload = vec![b'f'; bytes.parse().unwrap_or(0)];
                for _ in 0..count.parse().unwrap_or(0) {
                    if session.send(Message::binary(payload.clone())).await.is_err() {
                        break;
                    }
                }
            }
            ["sleep", time] => {
                tokio::time::sleep(Duration::from_millis(time.parse().unwrap_or(0))).await;
            }
            ["expire", time] => session.expire(unix(time)).expect("the gateway can be told"),
            ["revoke", subject, time] => {
                let target = Target::new(Some(subject), None, None).expect("a name");
                let revocation = Revocation { target, lapses: unix(time) };
                assert_eq!(revoker.revoke(&revocation), Ok(1));
            }
            ["who", "are", "you"] => {
                let id = session.identity().token_id.clone().unwrap_or_default();
                let _ = session.send(format!("{id} {}", session.renewals())).await;
            }
            _ => {
                let _ = session.send(message).await;
            }
        }
    }
    if let Some(ended) = session.ended() {
        let _ = events.send(Event::Ended(ended));
    }
}

fn unix(seconds: &str) -> UnixTime {
    UnixTime::from_seconds(seconds.parse().expect("a number"))
}
