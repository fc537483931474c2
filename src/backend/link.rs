//! The task that owns one link: handshake, then reads and writes in large batches.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRngCore;
use tokio::io::Interest;
use tokio::sync::Notify;

use super::authenticate::{Authenticator, Question, decide};
use super::handler::{Handler, SessionHandle};
use super::message::{Identity, MessageRef};
use super::session::Session;
use super::state::{Arrival, LinkState, message_ref};
use super::stream::Stream;
use super::{Handshake, Settings, Shared};
use crate::protocol::link::handshake::expect;
use crate::protocol::link::{
    Auth, Challenge, Frame, GoAway, HANDSHAKE_FRAME_MAX, Hello, Kind, LinkError, LinkReader, Open,
    Ping, Proof, Ready, RefusalCode, Refused, VERSION,
};

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

/// One link, as its task, its sessions and their senders see it.
pub(super) struct Link {
    state: Mutex<LinkState>,
    /// Tells the task that `out` or `lost` has something.
    wake: Notify,
}

impl Link {
    pub(super) fn lock(&self) -> MutexGuard<'_, LinkState> {
        // The state's own panics are bugs; a poisoned lock must not spread them further.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` under the lock, then wakes the link's task if it has new work.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut LinkState) -> T) -> T {
        let mut state = self.lock();
        let answer = change(&mut state);
        let is_new = !state.is_awake && state.has_work();
        state.is_awake |= is_new;
        drop(state);
        if is_new {
            self.wake.notify_one();
        }
        answer
    }
}

/// Where a link's sessions go.
pub(super) enum Sink {
    /// To `Backend::accept`.
    Queue(tokio::sync::mpsc::UnboundedSender<Session>),
    /// To a handler of the link's own.
    Handler(Box<dyn Handler>),
}

/// Names a link across reconnects: instance, worker, link.
pub(super) type LinkName = ([u8; 16], u16, u16);
/// Links that are up, each with its gateway's epoch.
pub(super) type Registry = HashMap<LinkName, (u64, Arc<Link>)>;

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

/// Bytes read and not yet cut into frames.
struct Input {
    buffer: Vec<u8>,
    reader: LinkReader,
}

impl Input {
    fn new() -> Self {
        Input { buffer: vec![0; 4096], reader: LinkReader::new(HANDSHAKE_FRAME_MAX) }
    }
}

#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the handshake took too long")]
    TimedOut,
    #[error("a newer connection took its place: more than handshakes_max are in their handshake")]
    Evicted,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] LinkError),
    #[error("this side refused: {}", .0.hint())]
    Refused(RefusalCode),
    #[error("the gateway refused (code {code}): {reason}")]
    ByGateway { code: u16, reason: String },
}

async fn handshake(
    stream: &Stream,
    shared: &Shared,
    input: &mut Input,
) -> Result<(LinkName, Arc<Link>), HandshakeError> {
    let result = agree(stream, shared, input).await;
    match &result {
        Err(HandshakeError::Refused(code)) => refuse(stream, *code),
        Err(HandshakeError::Protocol(LinkError::NoCommonVersion { .. })) => {
            refuse(stream, RefusalCode::Version);
        }
        Err(HandshakeError::Protocol(_)) => refuse(stream, RefusalCode::Malformed),
        _ => {}
    }
    result
}

async fn agree(
    stream: &Stream,
    shared: &Shared,
    input: &mut Input,
) -> Result<(LinkName, Arc<Link>), HandshakeError> {
    let settings = &shared.settings;
    let hello_bytes = read_handshake(stream, input, Kind::Hello).await?;
    let hello = Hello::decode(&hello_bytes)?;
    let key = settings.secret.as_ref();
    match (key, hello.authenticated) {
        (Some(_), false) => return refused(RefusalCode::AuthenticationRequired),
        (None, true) => return refused(RefusalCode::AuthenticationNotConfigured),
        _ => {}
    }
    let mut challenge = Challenge {
        version: VERSION,
        features: hello.features & settings.features(),
        instance: shared.instance,
        nonce: random(),
        limits: settings.limits,
        proof: Proof::Absent,
    };
    let mut challenge_bytes = Vec::with_capacity(128);
    challenge.encode_payload(&mut challenge_bytes);
    if let Some(key) = key {
        // The flags, which the proof covers, already say that there is one.
        challenge.proof = Proof::Hmac([0; 32]);
        challenge_bytes.clear();
        challenge.encode_payload(&mut challenge_bytes);
        challenge.proof = Proof::of_backend(key, &hello_bytes, &challenge_bytes);
        challenge_bytes.clear();
        challenge.encode_payload(&mut challenge_bytes);
    }
    let mut out = Vec::with_capacity(128);
    challenge.encode(&mut out);
    write_all(stream, &out).await?;

    let proof = Proof::decode(&read_handshake(stream, input, Kind::Proof).await?)?;
    if !proof.verify_gateway(key, &hello_bytes, &challenge_bytes) {
        return refused(RefusalCode::WrongKey);
    }
    let link = register(shared, &hello)?;
    out.clear();
    Ready.encode(&mut out);
    write_all(stream, &out).await?;
    input.reader.set_frame_max(settings.limits.frame_max);
    Ok(((hello.instance, hello.worker, hello.link), link))
}

fn refused<T>(code: RefusalCode) -> Result<T, HandshakeError> {
    Err(HandshakeError::Refused(code))
}

/// Enters the link among those that are up. It replaces an older one of the same name: the
/// gateway has given that one up, even if this side has not noticed yet.
fn register(shared: &Shared, hello: &Hello) -> Result<Arc<Link>, HandshakeError> {
    let link = Arc::new(Link {
        state: Mutex::new(LinkState::new(
            &shared.settings,
            hello.limits,
            hello.features & shared.settings.features(),
        )),
        wake: Notify::new(),
    });
    let name = (hello.instance, hello.worker, hello.link);
    let mut registry = shared.registry();
    // Under the registry's lock: a shutdown sees either this link or this refusal.
    if shared.is_stopping() {
        return refused(RefusalCode::ShuttingDown);
    }
    let is_stale = |(known, (epoch, _)): (&LinkName, &(u64, Arc<Link>))| {
        known.0 == hello.instance && *epoch > hello.epoch
    };
    if registry.iter().any(is_stale) {
        return refused(RefusalCode::StaleEpoch);
    }
    if registry.len() >= shared.settings.links_max && !registry.contains_key(&name) {
        return refused(RefusalCode::TooManyLinks);
    }
    if let Some((_, older)) = registry.insert(name, (hello.epoch, link.clone())) {
        older.with(|state| state.lost = Some("replaced by a newer link".to_owned()));
    }
    Ok(link)
}

/// Reads until the frame of the handshake is whole; nothing may come behind it.
async fn read_handshake(
    stream: &Stream,
    input: &mut Input,
    kind: Kind,
) -> Result<Vec<u8>, HandshakeError> {
    loop {
        stream.ready(Interest::READABLE).await?;
        let read = match stream.try_read(&mut input.buffer) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = &input.buffer[..read];
        let Some(frame) = input.reader.next(&mut bytes)? else { continue };
        if frame.header.kind == Kind::Refused {
            let Refused { code, reason } = Refused::decode(frame.payload)?;
            let reason = reason.escape_debug().to_string();
            return Err(HandshakeError::ByGateway { code: code.code(), reason });
        }
        let payload = expect(&frame, kind)?.to_vec();
        if !bytes.is_empty() {
            return Err(LinkError::Unexpected { kind }.into());
        }
        return Ok(payload);
    }
}

async fn write_all(stream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.ready(Interest::WRITABLE).await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says no if there is room for it; a peer that does not read does not get told.
pub(super) fn refuse(stream: &Stream, code: RefusalCode) {
    let mut out = Vec::with_capacity(256);
    Refused::new(code).encode(&mut out);
    let _ = stream.try_write(&out);
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the system gives random bytes");
    bytes
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
                () = self.link.wake.notified() => {}
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
                    // A session that nobody takes closes as it is dropped.
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
    accepted: &tokio::sync::mpsc::UnboundedSender<Session>,
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
                    // Nobody accepts any more. The lock is held here, so the session's own
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

/// Tells the link's gateway that no new sessions should come.
pub(super) fn go_away(link: &Link, reason: &str) {
    link.with(|state| {
        if !state.is_draining {
            state.is_draining = true;
            GoAway { reason }.encode(&mut state.out);
        }
    });
}
