//! The task that owns one link: handshake, then reads and writes in large batches.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::sync::mpsc;

use super::authenticate::{Authenticator, Decision, Question};
use super::handler::{Handler, SessionHandle};
use super::handshake::{HandshakeError, Input, handshake, refuse};
use super::link::Link;
use super::message::{Identity, MessageRef};
use super::session::Session;
use super::settings::Settings;
use super::shared::{Handshake, Shared};
use super::state::{Arrival, Handle, LinkState, message_ref};
use super::stream::Stream;
use crate::protocol::cause::Cause;
use crate::protocol::link::{Auth, Frame, Kind, LinkError, Open, Ping, RefusalCode};

/// What one read may bring, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// Capacity that an empty write buffer keeps, in bytes.
const WRITE_KEEP: usize = 512 * 1024;
/// How often a link is looked at for silence.
const TICK: Duration = Duration::from_secs(5);
/// How long a session may wait for credit before the log says so.
const STALL_AFTER: Duration = Duration::from_secs(10);
/// How often the log says so, for each link.
const STALL_WARNINGS: Duration = Duration::from_secs(60);

/// Where a link's sessions go.
pub(super) enum Sink {
    /// To `Backend::accept`.
    Queue(mpsc::UnboundedSender<Session>),
    /// To a handler of the link's own.
    Handler(Box<dyn Handler>),
}

/// Serves one connection from its first byte to its last.
pub(super) async fn run(stream: Stream, shared: Arc<Shared>, sink: Sink, mut place: Handshake) {
    let peer = stream.peer();
    let mut input = Input::new();
    let timeout = shared.settings.handshake_timeout;
    let outcome = tokio::select! {
        outcome = handshake(&stream, &shared, &mut input) => outcome,
        () = tokio::time::sleep(timeout) => {
            refuse(&stream, RefusalCode::TimedOut);
            Err(HandshakeError::TimedOut)
        }
        () = place.evicted() => {
            refuse(&stream, RefusalCode::TimedOut);
            Err(HandshakeError::Evicted)
        }
    };
    drop(place);
    let (name, link) = match outcome {
        Ok(agreed) => agreed,
        Err(error) => {
            tracing::warn!(peer, %error, "link refused");
            return;
        }
    };
    tracing::info!(peer, "link up");
    let reason =
        Task { stream, link: link.clone(), sink, shared: shared.clone(), input }.run().await;
    tracing::info!(peer, reason, "link down");
    let mut registry = shared.registry();
    if registry.get(&name).is_some_and(|(_, known)| Arc::ptr_eq(known, &link)) {
        registry.remove(&name);
    }
    drop(registry);
    shared.changed.notify_waiters();
}

struct Task {
    stream: Stream,
    link: Arc<Link>,
    sink: Sink,
    shared: Arc<Shared>,
    input: Input,
}

/// Bytes taken from the state, on their way to the socket. `written <= bytes.len()`.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
}

impl Task {
    /// Runs the link to its end; answers why it ended.
    async fn run(mut self) -> String {
        self.input.buffer = vec![0; READ_BYTES];
        let result = self.exchange().await;
        let reason = match result {
            Ok(reason) => reason,
            Err(error) => error.to_string(),
        };
        let told = self.link.lock().lose(&reason);
        if let Sink::Handler(handler) = &mut self.sink {
            for (_, id, ended) in told {
                handler.closed(id, &ended);
            }
        }
        reason
    }

    async fn exchange(&mut self) -> Result<String, TaskError> {
        let mut output = Output::default();
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let started = heard;
        let mut warned: Option<Instant> = None;
        loop {
            self.hand_over_accepted();
            let is_lost = self.write(&mut output)?;
            if let Some(reason) = is_lost {
                return Ok(reason);
            }
            let interest = if output.bytes.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            tokio::select! {
                ready = self.stream.ready(interest) => {
                    if ready?.is_readable() && self.read()? {
                        heard = Instant::now();
                        // Sessions' tasks run now, so that their answers share one write.
                        tokio::task::yield_now().await;
                    }
                }
                () = self.link.woken() => {}
                _ = ticker.tick() => {
                    self.tick(heard)?;
                    self.warn_of_stalls(started, &mut warned);
                }
            }
        }
    }

    /// Writes what there is, as far as the socket takes it. Answers the reason when the link
    /// is to end and everything is out.
    fn write(&mut self, output: &mut Output) -> Result<Option<String>, TaskError> {
        loop {
            let mut state = self.link.lock();
            state.unsent = output.bytes.len() - output.written;
            state.pump_blocked();
            if output.bytes.is_empty() {
                std::mem::swap(&mut output.bytes, &mut state.out);
                state.unsent = output.bytes.len();
            }
            state.is_awake = false;
            if state.is_overfull() {
                return Err(TaskError::NotReading);
            }
            if output.bytes.is_empty() {
                return Ok(state.lost.clone());
            }
            drop(state);
            match self.stream.try_write(&output.bytes[output.written..]) {
                Ok(written) => output.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let state = self.link.lock();
                    // A replaced link's socket may never drain again.
                    return Ok(state.lost.clone());
                }
                Err(error) => return Err(error.into()),
            }
            if output.written == output.bytes.len() {
                output.bytes.clear();
                output.bytes.shrink_to(WRITE_KEEP);
                output.written = 0;
            }
        }
    }

    /// Reads once and works through every whole frame. False when nothing was there.
    fn read(&mut self) -> Result<bool, TaskError> {
        // What is read may belong to sessions that other threads have just accepted.
        self.hand_over_accepted();
        let read = match self.stream.try_read(&mut self.input.buffer) {
            Ok(0) => return Err(TaskError::Ended),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Input { buffer, reader } = &mut self.input;
        let mut bytes = &buffer[..read];
        match &mut self.sink {
            Sink::Queue(accepted) => {
                let mut state = self.link.lock();
                // This task is running and will look at `out` by itself.
                state.is_awake = true;
                while let Some(frame) = reader.next(&mut bytes)? {
                    if let Some(authenticator) = asks(&self.shared.settings, &frame) {
                        ask(&mut state, &self.link, authenticator, &frame)?;
                        continue;
                    }
                    queue_frame(&mut state, &self.link, accepted, &frame)?;
                }
            }
            Sink::Handler(handler) => {
                self.link.lock().is_awake = true;
                while let Some(frame) = reader.next(&mut bytes)? {
                    if let Some(authenticator) = asks(&self.shared.settings, &frame) {
                        ask(&mut self.link.lock(), &self.link, authenticator, &frame)?;
                        continue;
                    }
                    handle_frame(&self.link, &self.shared.settings, handler.as_mut(), &frame)?;
                }
            }
        }
        Ok(true)
    }

    /// Gives the author the sessions that were accepted since the last time.
    fn hand_over_accepted(&mut self) {
        while let Some((handle, id, identity)) = { self.link.lock().next_accepted() } {
            match &mut self.sink {
                Sink::Queue(accepted) => {
                    // Without a receiver the session is dropped, which closes it.
                    let _ = accepted.send(Session::new(self.link.clone(), handle, identity));
                }
                Sink::Handler(handler) => {
                    let settings = &self.shared.settings;
                    let mut session = SessionHandle::new(&self.link, settings, handle, id);
                    handler.open(&mut session, &identity);
                }
            }
        }
    }

    /// Names the sessions that have stood still for [`STALL_AFTER`], at most once in
    /// [`STALL_WARNINGS`].
    fn warn_of_stalls(&mut self, started: Instant, warned: &mut Option<Instant>) {
        let stalls = self.link.with(|state| state.tick(started.elapsed(), STALL_AFTER));
        if warned.is_some_and(|at| at.elapsed() < STALL_WARNINGS) {
            return;
        }
        let peer = self.stream.peer();
        if stalls.evicted > 0 {
            let sessions = stalls.evicted;
            let why = "closed: unfinished messages fill assembly_max, and theirs were the largest";
            tracing::warn!(peer, sessions, "{why}");
            *warned = Some(Instant::now());
        }
        for (stall, why) in [
            (stalls.by_author, "sessions wait for this program: it takes none of their messages"),
            (stalls.by_gateway, "sessions wait for credit: their clients do not read"),
        ] {
            if let Some((session, still)) = stall.longest {
                let (sessions, longest_s) = (stall.sessions, still.as_secs());
                let longest = format_args!("{}/{}", session.slot, session.generation);
                tracing::warn!(peer, sessions, %longest, longest_s, "{why}");
                *warned = Some(Instant::now());
            }
        }
    }

    fn tick(&mut self, heard: Instant) -> Result<(), TaskError> {
        let silence = heard.elapsed();
        if silence >= self.shared.settings.silence_max {
            return Err(TaskError::Silent);
        }
        if silence >= self.shared.settings.silence_max / 3 {
            self.link.with(|state| Ping { opaque: 0 }.encode(&mut state.out));
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error("the gateway closed the connection")]
    Ended,
    #[error("the gateway fell silent")]
    Silent,
    #[error("the gateway does not read")]
    NotReading,
    #[error("the gateway broke the protocol: {0}")]
    Protocol(#[from] LinkError),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

/// Who answers, when the frame is an AUTH and this backend said that it takes them.
fn asks<'s>(settings: &'s Settings, frame: &Frame<'_>) -> Option<&'s Authenticator> {
    settings.authenticator.as_ref().filter(|_| frame.header.kind == Kind::Auth)
}

/// Lets the author decide on a client, in a task of its own.
fn ask(
    state: &mut LinkState,
    link: &Arc<Link>,
    authenticator: &Authenticator,
    frame: &Frame<'_>,
) -> Result<(), LinkError> {
    let auth = Auth::decode(frame.payload)?;
    let Some(handle) = state.ask(frame.header.session, auth.open.credit)? else { return Ok(()) };
    let question = Question::from_auth(&auth);
    let task = tokio::spawn(decide(authenticator.clone(), question, link.clone(), handle));
    state.deciding(handle, task.abort_handle());
    Ok(())
}

fn queue_frame(
    state: &mut LinkState,
    link: &Arc<Link>,
    accepted: &mpsc::UnboundedSender<Session>,
    frame: &Frame<'_>,
) -> Result<(), LinkError> {
    match frame.header.kind {
        Kind::Data => match state.data(frame)? {
            Arrival::Nothing => {}
            Arrival::Whole(delivery, message) => state.enqueue(delivery, message.to_message()),
            Arrival::Assembled(delivery, is_text, bytes) => {
                let message = message_ref(is_text, &bytes).map(MessageRef::to_message);
                state.enqueue(delivery, message.expect("checked when it was assembled"));
            }
        },
        Kind::Open => {
            let open = Open::decode(frame.payload)?;
            if let Some(handle) = state.open(frame.header.session, open.subject, open.credit)? {
                let session = Session::new(link.clone(), handle, Identity::from_open(&open));
                if let Err(unwanted) = accepted.send(session) {
                    // The author accepts no more sessions. The lock is held here, so the session's own
                    // Drop, which takes it, must not run.
                    unwanted.0.forget();
                    state.disown(handle, 1012);
                }
            }
        }
        Kind::Reauth => drop(state.reauth(frame)?),
        _ => {
            state.control(frame)?;
        }
    }
    Ok(())
}

fn handle_frame(
    link: &Arc<Link>,
    settings: &Settings,
    handler: &mut dyn Handler,
    frame: &Frame<'_>,
) -> Result<(), LinkError> {
    let id = frame.header.session;
    match frame.header.kind {
        Kind::Data => {
            let arrival = link.lock().data(frame)?;
            let delivery = match arrival {
                Arrival::Nothing => return Ok(()),
                Arrival::Whole(delivery, message) => {
                    let mut session = SessionHandle::new(link, settings, delivery.handle, id);
                    handler.message(&mut session, message);
                    delivery
                }
                Arrival::Assembled(delivery, is_text, bytes) => {
                    let message = message_ref(is_text, &bytes).expect("checked when assembled");
                    let mut session = SessionHandle::new(link, settings, delivery.handle, id);
                    handler.message(&mut session, message);
                    delivery
                }
            };
            link.lock().handled(delivery);
        }
        Kind::Open => {
            let open = Open::decode(frame.payload)?;
            let opened = link.lock().open(id, open.subject, open.credit)?;
            if let Some(handle) = opened {
                let mut session = SessionHandle::new(link, settings, handle, id);
                handler.open(&mut session, &Identity::from_open(&open));
            }
        }
        Kind::Reauth => {
            let renewed = link.lock().reauth(frame)?;
            if let Some((handle, renewal)) = renewed {
                let mut session = SessionHandle::new(link, settings, handle, id);
                handler.reauthenticated(&mut session, &renewal);
            }
        }
        _ => {
            let closed = link.lock().control(frame)?;
            if let Some((handle, id, ended)) = closed {
                handler.closed(id, &ended);
                link.lock().disown(handle, 1000);
            }
        }
    }
    Ok(())
}

/// Runs the author's code for one question.
async fn decide(authenticator: Authenticator, question: Question, link: Arc<Link>, handle: Handle) {
    let request = question.request().clone();
    let mut verdict = Verdict { link, handle, decision: None };
    let decision = authenticator(question).await;
    verdict.decision = Some((decision, request));
}

/// Says the verdict when it is dropped: an author's panic must not leave the client waiting.
struct Verdict {
    link: Arc<Link>,
    handle: Handle,
    decision: Option<(Decision, Identity)>,
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let (decision, request) = self.decision.take().unzip();
        let decision =
            decision.unwrap_or_else(|| Decision::reject(Cause::BackendUnavailable).into());
        self.link.with(|state| state.decided(self.handle, decision, request));
    }
}
