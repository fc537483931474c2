//! For authors of backends: accept authenticated WebSocket sessions from a gateway.
//!
//! A backend listens; every worker of a gateway dials it and carries all its clients over that
//! one link. The author sees [`Session`]s: who the client is, its whole messages in order, and
//! a way to answer. Fragments, credits, pings and dead links are handled here, on ordinary
//! tokio, in one task per link.
//!
//! ```no_run
//! use portcullis::backend::{Backend, Message};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut backend = Backend::bind("127.0.0.1:7000").await?;
//! while let Some(mut session) = backend.accept().await {
//!     tokio::spawn(async move {
//!         let who = session.identity().subject.clone().unwrap_or_default();
//!         while let Some(message) = session.next().await {
//!             let answer = match message {
//!                 Message::Text(text) => Message::text(format!("{who} said {text}")),
//!                 binary => binary,
//!             };
//!             if session.send(answer).await.is_err() {
//!                 break;
//!             }
//!         }
//!     });
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Slow clients and slow backends
//! A session whose task does not call [`Session::next`] stops its own client and no other: the
//! client may have one window of bytes under way, then the gateway stops reading it.
//! [`Session::send`] waits while the client does not read; for fan-out use
//! [`SessionSender::try_send`], which says [`SendError::Full`] instead.
//!
//! # The life of an identity
//! A client may present a fresh token while its session is open: [`Session::identity`] then says
//! what that one says, and [`Session::renewals`] counts them. [`Session::expire`] sets when a session's
//! identity is over; [`Revoker::revoke`] voids tokens for all gateways that are connected.
//!
//! # Memory
//! One link holds at most `queue_max` + one link window of messages that wait for the author,
//! `assembly_max` of unfinished messages (when they fill it, the subject that holds most loses
//! its largest), `send_queue_max` of bytes on their way to the
//! gateway, and per session one message that waits for credit.

pub mod authenticate;
pub mod echo;
mod handler;
mod handshake;
mod link;
mod link_task;
mod message;
mod session;
mod settings;
mod shared;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod unfinished;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

pub use crate::base::secret::Secret;
pub use crate::base::time::UnixTime;
pub use crate::protocol::link::{Limits, SessionId};
pub use crate::protocol::revocation::{Revocation, Target, TargetError};
pub use handler::{Handler, SessionHandle};
pub use message::{Ended, EndedBy, Identity, Message, MessageRef, Renewal, SendError, TellError};
pub use session::{Session, SessionSender};
pub use stream::BindError;

use crate::protocol::link::KEY_MIN;
use authenticate::{Deciding, Decision, Question};
use link_task::Sink;
use settings::Settings;
use shared::{Handshake, Shared};
use stream::{Listener, Stream};

/// Chooses how a backend listens. Every limit has a default that fits most.
pub struct Builder {
    settings: Settings,
}

impl Builder {
    /// The key that both sides must prove; at least 32 bytes, see [`Secret::from_file`]. Without
    /// one, only gateways without one are served.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.settings.secret = Some(secret);
        self
    }

    /// What this side takes from a gateway: frames, messages, windows, sessions per link.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// Links at one time; one for each worker of each gateway (default 256).
    pub fn links_max(mut self, links: usize) -> Self {
        self.settings.links_max = links;
        self
    }

    /// Connections that may be in their handshake (default 256). Beyond it the oldest gives way
    /// to the newest, so that connections which say nothing keep no gateway out.
    pub fn handshakes_max(mut self, handshakes: usize) -> Self {
        self.settings.handshakes_max = handshakes.max(1);
        self
    }

    /// Bytes of one link's messages that may wait for the author before the whole link is
    /// held back (default 64 MiB). Each session alone is held back by its window.
    pub fn queue_max(mut self, bytes: usize) -> Self {
        self.settings.queue_max = bytes;
        self
    }

    /// Bytes of one link's unfinished messages (default 256 MiB). Beyond it the subject that
    /// holds most loses the session with its largest unfinished message (1013), not the
    /// session whose message arrives.
    pub fn assembly_max(mut self, bytes: usize) -> Self {
        self.settings.assembly_max = bytes;
        self
    }

    /// From a message's first piece to its last (default 5 min); a session that takes longer is
    /// closed with 1013.
    pub fn unfinished_max(mut self, time: Duration) -> Self {
        self.settings.unfinished_max = time;
        self
    }

    /// Bytes that may wait for one link's socket before senders wait (default 16 MiB).
    pub fn send_queue_max(mut self, bytes: usize) -> Self {
        self.settings.send_queue_max = bytes;
        self
    }

    /// Bytes of a [`Handler`]'s answers that may wait for one client (default 8 MiB).
    pub fn pending_max(mut self, bytes: usize) -> Self {
        self.settings.pending_max = bytes;
        self
    }

    /// From accept to the end of the handshake (default 5 s).
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handshake_timeout = timeout;
        self
    }

    /// Silence after which a link is dead (default 30 s); it is pinged at a third of this.
    pub fn silence_max(mut self, silence: Duration) -> Self {
        self.settings.silence_max = silence;
        self
    }

    /// Decides who clients are, on routes whose authentication is `kind = "backend"`. Each
    /// question gets a task of its own, so the answer may take its time; the gateway waits for
    /// `timeout` of its settings. The task is dropped when the client leaves meanwhile. One that
    /// panics refuses its client, which may come again.
    ///
    /// ```no_run
    /// use portcullis::backend::authenticate::{Cause, Decision};
    /// use portcullis::backend::Backend;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let backend = Backend::builder()
    ///     .authenticate(|question| async move {
    ///         match question.token() {
    ///             b"sesame" => Decision::accept("ali").into(),
    ///             _ => Decision::reject(Cause::BadSignature).into(),
    ///         }
    ///     })
    ///     .bind("127.0.0.1:7000")
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn authenticate<F, D>(mut self, decide: F) -> Self
    where
        F: Fn(Question) -> D + Send + Sync + 'static,
        D: Future<Output = Decision> + Send + 'static,
    {
        self.settings.authenticator =
            Some(Arc::new(move |question| Box::pin(decide(question)) as Deciding));
        self
    }

    /// Listens on `HOST:PORT` or `unix:/path`.
    ///
    /// # Errors
    /// [`BindError`], which says what to do.
    pub async fn bind(self, address: &str) -> Result<Backend, BindError> {
        let Builder { settings } = self;
        match &settings.secret {
            Some(secret) if secret.len() < KEY_MIN => {
                return Err(BindError::WeakSecret { bytes: secret.len() });
            }
            _ => {}
        }
        if let Some(name) = settings.limits.out_of_range() {
            return Err(BindError::Limit { name });
        }
        let listener = Listener::bind(address).await?;
        let shared = Arc::new(Shared::new(settings, handshake::random()));
        let address = listener.address();
        Ok(Backend { shared, address, listener: Some(listener), accepted: None })
    }
}

/// A listening backend.
pub struct Backend {
    shared: Arc<Shared>,
    address: String,
    /// Until the first `accept` hands it to a task.
    listener: Option<Listener>,
    accepted: Option<mpsc::UnboundedReceiver<Session>>,
}

/// Revokes tokens at every gateway that is connected.
#[derive(Clone)]
pub struct Revoker {
    shared: Arc<Shared>,
}

/// Stops a backend from elsewhere.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
}

impl Backend {
    /// Listens on `HOST:PORT` or `unix:/path`, with default limits and without a secret.
    ///
    /// # Errors
    /// [`BindError`], which says what to do.
    pub async fn bind(address: &str) -> Result<Backend, BindError> {
        Backend::builder().bind(address).await
    }

    /// For a secret, and for limits other than the defaults.
    pub fn builder() -> Builder {
        Builder { settings: Settings::default() }
    }

    /// Where it listens, as gateways' settings want it; with the port that the system chose
    /// when 0 was asked for.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next session, from any gateway; `None` after [`Stopper::shutdown`]. Links are
    /// served from the first call on. May be cancelled: no session is lost.
    pub async fn accept(&mut self) -> Option<Session> {
        self.start();
        self.accepted.as_mut()?.recv().await
    }

    /// Hands the listener to a task, the first time.
    fn start(&mut self) {
        if let Some(listener) = self.listener.take() {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.accepted = Some(receiver);
            let shared = self.shared.clone();
            tokio::spawn(listen(listener, shared, move || Sink::Queue(sender.clone())));
        }
    }

    /// Serves with callbacks instead, one handler for each link, until
    /// [`Stopper::shutdown`]. See [`Handler`].
    pub async fn serve<H: Handler>(mut self, mut handler: impl FnMut() -> H + Send) {
        if let Some(listener) = self.listener.take() {
            let shared = self.shared.clone();
            listen(listener, shared, move || Sink::Handler(Box::new(handler()))).await;
        }
    }

    /// A handle that revokes tokens.
    pub fn revoker(&self) -> Revoker {
        Revoker { shared: self.shared.clone() }
    }

    /// A handle that shuts the backend down.
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: self.shared.clone() }
    }

    /// [`Stopper::shutdown`], for the owner of the backend.
    pub async fn shutdown(&self, grace: Duration) {
        self.stopper().shutdown(grace).await;
    }
}

impl Revoker {
    /// Sends the revocation to every connected gateway. Each closes the clients that use such a
    /// token within a second, and refuses such tokens until the revocation lapses. Gateways that
    /// are not connected now do not get it. Returns the number of gateways that it was sent to.
    ///
    /// # Errors
    /// [`TellError`] when it could not be sent to every connected gateway. Sending it again does
    /// no harm.
    pub fn revoke(&self, revocation: &Revocation) -> Result<usize, TellError> {
        let registry = self.shared.registry();
        let mut told = std::collections::HashSet::new();
        let mut failed = None;
        // One of its links is enough for a gateway, if that takes it.
        for ((instance, ..), (_, link)) in registry.iter() {
            if told.contains(instance) {
                continue;
            }
            match link.with(|state| state.revoke(revocation)) {
                Ok(()) => drop(told.insert(*instance)),
                Err(error) => failed = Some((*instance, error)),
            }
        }
        match failed {
            Some((instance, error)) if !told.contains(&instance) => Err(error),
            _ if told.is_empty() => Err(TellError::Closed),
            _ => Ok(told.len()),
        }
    }
}

impl Drop for Backend {
    /// Stops listening. Links that are up stay until their sessions' tasks and gateways end.
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.changed.notify_waiters();
    }
}

impl Stopper {
    /// Shuts down gracefully. It accepts no new links and sends GOAWAY on the open ones, so that
    /// gateways open no new sessions. For `grace` sessions may end; then they are closed with 1012
    /// (service restart), and every link with them.
    pub async fn shutdown(&self, grace: Duration) {
        let shared = &self.shared;
        shared.is_stopping.store(true, Ordering::Release);
        shared.changed.notify_waiters();
        let links = || shared.registry().values().map(|(_, l)| l.clone()).collect::<Vec<_>>();
        for link in links() {
            link::go_away(&link, "the backend is shutting down");
        }
        let all_ended = async || {
            while links().iter().any(|link| link.lock().live() > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(grace, all_ended()).await.is_err() {
            for link in links() {
                link.with(|state| state.close_all(1012, "the backend restarts"));
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), all_ended()).await;
        }
        for link in links() {
            link.with(|state| state.lost = Some("the backend is shutting down".to_owned()));
        }
    }
}

async fn listen(listener: Listener, shared: Arc<Shared>, mut sink: impl FnMut() -> Sink) {
    loop {
        let changed = shared.changed.notified();
        if shared.is_stopping() {
            return;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = changed => continue,
        };
        match accepted {
            Ok(stream) => spawn_link(stream, &shared, &mut sink),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a link");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn spawn_link(stream: Stream, shared: &Arc<Shared>, sink: &mut impl FnMut() -> Sink) {
    let handshake = Handshake::begin(shared);
    let (shared, sink) = (shared.clone(), sink());
    tokio::spawn(link_task::run(stream, shared, sink, handshake));
}
