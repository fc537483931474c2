//! One client connection: TLS, upgrade, frames, and what its behaviour makes it say. Bytes in,
//! bytes out; the worker owns the socket.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{Read, Write};

use rustls::{ClientConnection, HandshakeKind};

use crate::plan::{Behaviour, JunkKind, Phase, Plan};
use crate::stats::{Stats, record};
use crate::wire::{self, FrameReader};

/// Longest answer to an upgrade that is read.
const HEAD_MAX: usize = 16 * 1024;
/// Longest message kept as a sample for the report.
const SAMPLE_MAX: usize = 200;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No connection.
    #[default]
    Free,
    /// TCP is being set up.
    Connecting,
    /// TLS is being set up.
    Tls,
    /// The request is sent, the answer is awaited.
    Upgrading,
    /// Upgraded; a first message from the server is awaited.
    FirstMessageInfo,
    /// Open.
    Open,
    /// A close frame came or failed us; the end of TCP is awaited.
    Draining,
    /// The ring closes the socket.
    Closing,
}

/// What the connections of one worker share.
pub struct Context {
    pub plan: Plan,
    pub stats: Stats,
    /// Nanoseconds since the harness began.
    pub now: u64,
    pub phase: Phase,
    /// Memory of finished sends, for the next ones.
    pub pool: Vec<Vec<u8>>,
    plain: Vec<u8>,
    scratch: Vec<u8>,
    mask: u32,
}

impl Context {
    /// A context at time 0.
    pub fn new(plan: Plan) -> Context {
        Context {
            plan,
            stats: Stats::default(),
            now: 0,
            phase: Phase::Opening,
            pool: Vec::new(),
            plain: vec![0; 16 * 1024],
            scratch: Vec::new(),
            mask: 0x9e37_79b9,
        }
    }

    /// A new mask key: unpredictable enough for a bench, not for a browser.
    fn next_mask(&mut self) -> u32 {
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        self.mask
    }
}

/// One connection's state. `tx - rx` messages are on their way; `times` holds one intended time
/// for each of them, then those of messages that wait for room in the pipeline.
#[derive(Default)]
pub struct Connection {
    pub stage: Stage,
    /// Counts the connections of this worker; seeds the messages, tells reused slots apart.
    pub number: u64,
    /// When it should have begun.
    pub intended: u64,
    /// When it began.
    pub begun: u64,
    /// What must be sent.
    pub out: Vec<u8>,
    /// Its place among the open ones.
    pub place: usize,
    pub junk: Option<JunkKind>,
    /// Messages owed by the server, and those that wait to be sent.
    pub times: VecDeque<u64>,
    tls: Option<Box<ClientConnection>>,
    head: Vec<u8>,
    reader: FrameReader,
    control: Vec<u8>,
    /// The count that a fan-in server answers with, as far as it came.
    count: Vec<u8>,
    tx: u64,
    rx: u64,
    rx_offset: usize,
    sent_close: bool,
}

impl Connection {
    /// Makes the slot a new connection, keeping only memory.
    pub fn restart(&mut self, number: u64, intended: u64, now: u64, junk: Option<JunkKind>) {
        let mut times = std::mem::take(&mut self.times);
        times.clear();
        *self = Connection {
            stage: Stage::Connecting,
            number,
            intended,
            begun: now,
            junk,
            times,
            ..Connection::default()
        };
    }

    /// TCP stands: begins TLS or the upgrade.
    pub fn connected(&mut self, context: &mut Context) -> Result<(), Cow<'static, str>> {
        let raw = matches!(self.junk, Some(JunkKind::Silent | JunkKind::Garbage));
        if let (Some((config, name)), false) = (&context.plan.target.tls, raw) {
            let tls = ClientConnection::new(config.clone(), name.clone())
                .map_err(|error| format!("TLS: {error}"))?;
            self.tls = Some(Box::new(tls));
            self.stage = Stage::Tls;
            return self.pump_tls(context);
        }
        self.introduce(context)
    }

    /// Takes bytes from the socket.
    ///
    /// # Errors
    /// The kind of failure; the connection is of no more use.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        context: &mut Context,
    ) -> Result<(), Cow<'static, str>> {
        if self.tls.is_none() {
            return self.receive_plain(bytes, context);
        }
        while !bytes.is_empty() {
            let tls = self.tls.as_mut().expect("checked above");
            tls.read_tls(&mut bytes).map_err(|error| format!("TLS: {error}"))?;
            let state = tls.process_new_packets().map_err(|error| format!("TLS: {error}"));
            if let Err(error) = state {
                let _ = self.pump_tls(context);
                return Err(error.into());
            }
            if self.stage == Stage::Tls && !tls.is_handshaking() {
                context.stats.handshakes += 1;
                if tls.handshake_kind() == Some(HandshakeKind::Resumed) {
                    context.stats.resumed += 1;
                }
                self.introduce(context)?;
            }
            let mut plain = std::mem::take(&mut context.plain);
            let outcome = self.read_plain(&mut plain, context);
            context.plain = plain;
            outcome?;
        }
        self.pump_tls(context)
    }

    fn read_plain(
        &mut self,
        plain: &mut [u8],
        context: &mut Context,
    ) -> Result<(), Cow<'static, str>> {
        loop {
            let tls = self.tls.as_mut().expect("a TLS connection");
            match tls.reader().read(plain) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(length) => self.receive_plain(&plain[..length], context)?,
            }
        }
    }

    /// Queues the next message, sent as soon as the pipeline has room.
    pub fn queue_message(&mut self, intended: u64, context: &mut Context) {
        self.times.push_back(intended);
        self.fill_pipeline(context);
    }

    /// Sends the next batch of a fan-in.
    pub fn send_batch(&mut self, context: &mut Context) {
        let Behaviour::FanIn { size, batch } = context.plan.behaviour else { return };
        self.times.push_back(context.now);
        for _ in 0..batch {
            let seed = wire::pattern_seed(self.number, self.tx);
            let mask = context.next_mask();
            self.tx += 1;
            self.emit(context, |out| wire::encode_pattern(out, wire::BINARY, seed, size, mask));
        }
    }

    /// Takes the answer to a batch: the number of all messages up to now, 8 bytes.
    fn receive_count(&mut self, bytes: &[u8], whole: bool, batch: u32, context: &mut Context) {
        if self.stage != Stage::Open {
            return;
        }
        let expected = self.tx.to_be_bytes();
        self.count.extend_from_slice(&bytes[..bytes.len().min(16)]);
        if !whole && self.count.len() <= expected.len() {
            return;
        }
        if self.count != expected {
            self.note_sample(bytes, context);
            return self.refuse("a count that is not that of the messages sent", context);
        }
        self.count.clear();
        self.rx = self.tx;
        context.stats.totals.messages += u64::from(batch);
        let sent = self.times.pop_front().unwrap_or(context.now);
        if context.phase == Phase::Measure {
            record(&mut context.stats.round_trips, context.now.saturating_sub(sent));
        }
        if context.phase < Phase::Drain {
            self.send_batch(context);
        }
    }

    /// Whether the server has ended a connection that is closing by TLS alone (RFC 8446 §6.1):
    /// some wait with TCP for the client to end it.
    pub fn ended_by_tls(&mut self) -> bool {
        let closing = self.stage == Stage::Draining;
        closing
            && self.tls.as_mut().is_some_and(|tls| {
                tls.process_new_packets().is_ok_and(|state| state.peer_has_closed())
            })
    }

    /// Messages that the server owes.
    pub fn outstanding(&self) -> u64 {
        self.tx - self.rx
    }

    fn fill_pipeline(&mut self, context: &mut Context) {
        let Behaviour::Echo { size, opcode, pipeline, rate } = context.plan.behaviour else {
            return;
        };
        while self.outstanding() < pipeline.min(self.times.len() as u64) {
            if rate.is_some() && context.phase == Phase::Measure {
                let intended = self.times[self.outstanding() as usize];
                record(&mut context.stats.lateness, context.now.saturating_sub(intended));
            }
            let seed = wire::pattern_seed(self.number, self.tx);
            let mask = context.next_mask();
            self.tx += 1;
            self.emit(context, |out| wire::encode_pattern(out, opcode, seed, size, mask));
        }
    }

    /// Begins a clean close with code 1000.
    pub fn send_close(&mut self, context: &mut Context) {
        self.sent_close = true;
        let mask = context.next_mask();
        self.emit(context, |out| {
            wire::encode_masked(out, wire::CLOSE, &1000u16.to_be_bytes(), mask);
        });
    }

    /// Writes through TLS where there is TLS.
    fn emit(&mut self, context: &mut Context, write: impl FnOnce(&mut Vec<u8>)) {
        if self.out.capacity() == 0 {
            self.out = context.pool.pop().unwrap_or_default();
        }
        let Some(tls) = &mut self.tls else {
            return write(&mut self.out);
        };
        context.scratch.clear();
        write(&mut context.scratch);
        tls.set_buffer_limit(None);
        // Writing to memory without a limit cannot fail.
        let _ = tls.writer().write_all(&context.scratch);
        while tls.wants_write() && tls.write_tls(&mut self.out).is_ok() {}
    }

    fn pump_tls(&mut self, context: &mut Context) -> Result<(), Cow<'static, str>> {
        self.emit(context, |_| {});
        Ok(())
    }

    /// The transport stands: sends what this connection says first.
    fn introduce(&mut self, context: &mut Context) -> Result<(), Cow<'static, str>> {
        self.stage = Stage::Upgrading;
        let requests = context.plan.target.requests.clone();
        let request = &requests[self.number as usize % requests.len()];
        match self.junk {
            None | Some(JunkKind::UpgradeSilent) => {
                self.emit(context, |out| out.extend_from_slice(request));
            }
            Some(JunkKind::HalfHead) => {
                let half = &request[..request.len() / 2];
                self.emit(context, |out| out.extend_from_slice(half));
            }
            Some(JunkKind::Garbage) => {
                let words: Vec<u32> = (0..128).map(|_| context.next_mask()).collect();
                let length = 1 + context.next_mask() as usize % 512;
                self.emit(context, |out| {
                    out.extend(words.iter().flat_map(|word| word.to_le_bytes()).take(length));
                });
            }
            Some(kind @ (JunkKind::BadToken | JunkKind::DeadToken)) => {
                // No two bad ones are alike, whichever thread sends them.
                let own = (context.plan.worker as u64 + 1, self.number);
                let token = wire::unsigned_token(match kind {
                    JunkKind::BadToken => own,
                    _ => (0, 0),
                });
                let head = &request[..request.len() - b"\r\n".len()];
                self.emit(context, |out| {
                    out.extend_from_slice(head);
                    out.extend_from_slice(b"Authorization: Bearer ");
                    out.extend_from_slice(token.as_bytes());
                    out.extend_from_slice(b"\r\n\r\n");
                });
            }
            Some(JunkKind::Silent | JunkKind::TlsThenSilent | JunkKind::Reset) => {}
        }
        Ok(())
    }

    fn receive_plain(
        &mut self,
        bytes: &[u8],
        context: &mut Context,
    ) -> Result<(), Cow<'static, str>> {
        let mut bytes = bytes;
        if self.stage == Stage::Upgrading {
            if !matches!(self.junk, None | Some(JunkKind::UpgradeSilent)) {
                return Ok(());
            }
            match self.receive_head(bytes, context)? {
                Some(rest) => bytes = &bytes[rest..],
                None => return Ok(()),
            }
        }
        while let Some(piece) = self.reader.next(&mut bytes) {
            if piece.mask != 0 {
                return Err("masked frame from the server".into());
            }
            if piece.opcode >= wire::CLOSE {
                if piece.length > 125 {
                    return Err("control frame over 125 bytes".into());
                }
                self.control.extend_from_slice(piece.bytes);
                if piece.ends {
                    let opcode = piece.opcode;
                    self.receive_control(opcode, context);
                }
            } else {
                let whole = piece.fin && piece.ends;
                self.receive_data(piece.bytes, whole, context)?;
            }
        }
        Ok(())
    }

    /// Returns how many of `bytes` belonged to the head, once it is whole.
    fn receive_head(
        &mut self,
        bytes: &[u8],
        context: &mut Context,
    ) -> Result<Option<usize>, Cow<'static, str>> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = wire::head_end(&self.head) else {
            return match self.head.len() > HEAD_MAX {
                true => Err("answer's head over 16 KiB".into()),
                false => Ok(None),
            };
        };
        wire::check_response(&self.head[..end], &context.plan.target.accept)?;
        self.head = Vec::new();
        if self.junk.is_none() {
            let messages = context.plan.target.first_messages.clone();
            if !messages.is_empty() {
                let message = &messages[self.number as usize % messages.len()];
                let mask = context.next_mask();
                self.emit(context, |out| {
                    wire::encode_masked(out, wire::TEXT, message.as_bytes(), mask);
                });
            }
        }
        let first_message = context.plan.target.await_message && self.junk.is_none();
        self.stage = if first_message { Stage::FirstMessageInfo } else { Stage::Open };
        Ok(Some(end - before))
    }

    fn receive_control(&mut self, opcode: u8, context: &mut Context) {
        let payload = std::mem::take(&mut self.control);
        match opcode {
            wire::PING if self.junk.is_none() && self.stage != Stage::Draining => {
                context.stats.pings += 1;
                let mask = context.next_mask();
                self.emit(context, |out| wire::encode_masked(out, wire::PONG, &payload, mask));
            }
            wire::CLOSE => {
                let (code, reason) = wire::close_code(&payload);
                context.stats.close(code, &reason);
                if self.junk.is_some() || self.stage == Stage::Draining {
                    return;
                }
                if !self.sent_close {
                    let mask = context.next_mask();
                    self.emit(context, |out| {
                        wire::encode_masked(out, wire::CLOSE, &payload, mask);
                    });
                    context.stats.fail(&format!("closed by the server with {code}"));
                } else if code != 1000 {
                    context.stats.fail(&format!("answered our close with {code}"));
                } else {
                    context.stats.totals.finished += 1;
                    if context.phase == Phase::Measure {
                        let span = context.now.saturating_sub(self.intended);
                        record(&mut context.stats.cycle, span);
                    }
                }
                self.stage = Stage::Draining;
            }
            _ => {}
        }
    }

    fn receive_data(
        &mut self,
        bytes: &[u8],
        whole: bool,
        context: &mut Context,
    ) -> Result<(), Cow<'static, str>> {
        if let Behaviour::FanIn { batch, .. } = context.plan.behaviour
            && self.stage != Stage::FirstMessageInfo
        {
            self.receive_count(bytes, whole, batch, context);
            return Ok(());
        }
        let Behaviour::Echo { size, rate, .. } = context.plan.behaviour else {
            self.note_sample(bytes, context);
            if whole && self.stage == Stage::FirstMessageInfo {
                self.stage = Stage::Open;
            }
            return Ok(());
        };
        if self.stage == Stage::FirstMessageInfo {
            if whole {
                self.stage = Stage::Open;
            }
            return Ok(());
        }
        if self.stage != Stage::Open {
            return Ok(());
        }
        let seed = wire::pattern_seed(self.number, self.rx);
        let expected = self.outstanding() > 0
            && self.rx_offset + bytes.len() <= size
            && wire::pattern_matches(bytes, seed, self.rx_offset);
        self.rx_offset += bytes.len();
        if !expected || (whole && self.rx_offset != size) {
            // It may be a refusal that explains itself: its close code is still worth reading.
            self.note_sample(bytes, context);
            self.refuse("a message that is not the echo of what was sent", context);
            return Ok(());
        }
        if whole {
            self.rx_offset = 0;
            self.rx += 1;
            let intended = self.times.pop_front().expect("one time per message");
            context.stats.totals.messages += 1;
            if context.phase == Phase::Measure {
                record(&mut context.stats.round_trips, context.now.saturating_sub(intended));
            }
            if context.phase < Phase::Drain {
                match rate {
                    None => self.queue_message(context.now, context),
                    Some(_) => self.fill_pipeline(context),
                }
            }
        }
        Ok(())
    }

    /// Counts an answer that is wrong, and closes.
    fn refuse(&mut self, kind: &str, context: &mut Context) {
        context.stats.fail(kind);
        self.send_close(context);
        self.stage = Stage::Draining;
    }

    fn note_sample(&mut self, bytes: &[u8], context: &mut Context) {
        if context.stats.sample.is_none() && !bytes.is_empty() {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SAMPLE_MAX)]);
            context.stats.sample = Some(text.escape_debug().to_string());
        }
    }
}
