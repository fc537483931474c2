//! Fake clients: what sits at the other end of an accepted connection, byte by byte.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::faults::Fault;
use super::frames::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use super::messages::{self, Author, Series};
use super::net::{ConnId, Event, MILLIS, Net, Party, SECONDS, Side};
use super::scenario::REAUTHENTICATE;
use super::tls::TlsClient;
use super::tokens::{Carriage, TokenKind, Tokens};
use tungstenite::handshake::derive_accept_key;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Exchanges its messages and closes in order.
    Honest,
    /// Likewise, with its messages in pieces and pings between them.
    Fragmenter,
    /// Likewise, and pings often.
    Pinger,
    /// Likewise, but reads a little at a time.
    SlowReader,
    /// Presents this token and expects to be refused.
    Refused(TokenKind),
    /// Refused, but neither answers the close nor goes.
    Lingerer(TokenKind),
    /// Says nothing from the start.
    SilentAtStart,
    /// Sends half a request head.
    HalfHead,
    /// Upgrades and never sends the first message with its token.
    SilentAfterUpgrade,
    /// Is let in and says nothing more, not even pongs.
    SilentWhenOpen,
    /// Is let in, asks for echoes and reads none of them.
    NeverReads,
    /// Goes without a word after a while, with RST if set.
    Dropper(bool),
    /// Sends FIN once its messages are sent, without a close frame.
    HalfCloser,
    /// Sends bytes that are no request.
    Garbage,
    /// Is let in and breaks RFC 6455.
    FrameBreaker,
}

impl Behaviour {
    /// Whether such a client must succeed once nothing goes wrong any more.
    pub fn is_honest(self) -> bool {
        use Behaviour::*;
        matches!(self, Honest | Fragmenter | Pinger | SlowReader)
    }

    /// Whether its token is one that the gateway must accept.
    pub fn is_valid(self) -> bool {
        use Behaviour::*;
        match self {
            Honest | Fragmenter | Pinger | SlowReader => true,
            SilentWhenOpen | NeverReads | Dropper(_) | HalfCloser | FrameBreaker => true,
            Refused(_) | Lingerer(_) | SilentAtStart | HalfHead | SilentAfterUpgrade | Garbage => {
                false
            }
        }
    }

    fn token(self) -> TokenKind {
        match self {
            Behaviour::Refused(kind) | Behaviour::Lingerer(kind) => kind,
            _ => TokenKind::Good,
        }
    }
}

/// What a client is to do, drawn by the world.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How it behaves.
    pub behaviour: Behaviour,
    /// How it carries its token.
    pub carriage: Carriage,
    /// Messages in one connection.
    pub messages: u32,
    /// Largest message, in bytes.
    pub size_max: usize,
    /// Most messages without an echo.
    pub window: u32,
    /// Mean pause between messages, in nanoseconds.
    pub pause: u64,
    /// Connections that it makes, one after the other.
    pub lives: u16,
    /// When the first one begins.
    pub begins: u64,
    /// Its tokens run out soon.
    pub brief: bool,
    /// It is an adversary's, from this address, and is back as soon as it is thrown out.
    pub floods_from: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not connected; the next connection begins at this time.
    Away(u64),
    /// The request is on its way.
    Asking,
    /// The 101 came.
    Upgraded,
    /// Every life is over.
    Done,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    index: usize,
    plan: Plan,
    author: Author,
    phase: Phase,
    conn: Option<ConnId>,
    is_final: bool,
    begun_at: u64,
    key: String,
    tls: Option<Box<TlsClient>>,
    /// To be sent, in plaintext.
    out: Vec<u8>,
    /// To be sent, as it is; `written` bytes of it are.
    wire: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    sent: u32,
    echoed: u32,
    pushed: u32,
    send_at: u64,
    read_at: u64,
    message: Option<(u8, Vec<u8>)>,
    pings: VecDeque<Vec<u8>>,
    pings_sent: u32,
    pongs: u32,
    drop_at: Option<u64>,
    token_sent: bool,
    close_sent: bool,
    explained: bool,
    close_received: Option<u16>,
    /// Its connections are over TLS.
    pub uses_tls: bool,
    /// A backend decides about it, so fresh tokens mean nothing to the gateway.
    pub judged_elsewhere: bool,
    /// The gateway has small caps.
    pub may_be_turned_away: bool,
    /// Its connections begin with a PROXY header.
    pub proxied: bool,
    /// A planted bug: one echo is read as if it were its neighbour.
    pub misreads: bool,
}

impl Client {
    /// A client that does nothing before `plan.begins`.
    pub fn new(index: usize, plan: Plan) -> Self {
        Client {
            index,
            plan,
            author: Author { client: index as u16, life: 0 },
            phase: Phase::Away(plan.begins),
            conn: None,
            is_final: false,
            begun_at: 0,
            key: String::new(),
            tls: None,
            out: Vec::new(),
            wire: Vec::new(),
            written: 0,
            input: Vec::new(),
            sent: 0,
            echoed: 0,
            pushed: 0,
            send_at: 0,
            read_at: 0,
            message: None,
            pings: VecDeque::new(),
            pings_sent: 0,
            pongs: 0,
            drop_at: None,
            token_sent: false,
            close_sent: false,
            explained: false,
            close_received: None,
            uses_tls: false,
            judged_elsewhere: false,
            may_be_turned_away: false,
            proxied: false,
            misreads: false,
        }
    }

    /// How the client behaves.
    pub fn behaviour(&self) -> Behaviour {
        self.plan.behaviour
    }

    /// How the client carries its token.
    pub fn carriage(&self) -> Carriage {
        self.plan.carriage
    }

    /// Whether the client is done with everything.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// One line for a failure's message.
    pub fn state(&self) -> String {
        format!(
            "client {} {:?} {:?}: {:?}, conn {:?}, sent {}, echoed {}, close sent {}, received {:?}",
            self.index,
            self.plan.behaviour,
            self.plan.carriage,
            self.phase,
            self.conn,
            self.sent,
            self.echoed,
            self.close_sent,
            self.close_received,
        )
    }

    /// Nothing goes wrong any more: from now on no new life begins.
    pub fn end_lives(&mut self) {
        self.plan.lives = 0;
        if let Phase::Away(_) = self.phase {
            self.phase = Phase::Done;
        }
    }

    /// One more connection, which must succeed if the client is honest.
    pub fn begin_final(&mut self, net: &mut Net) {
        assert!(self.phase == Phase::Done, "the final connection comes after all others");
        if self.plan.behaviour.is_honest() {
            self.is_final = true;
            self.plan.lives = 1;
            self.phase = Phase::Away(net.now);
            self.wake(net, 0);
        }
    }

    /// Does whatever can be done now.
    pub fn step(&mut self, net: &mut Net, tokens: &Tokens) {
        if let Phase::Away(at) = self.phase {
            if net.now < at {
                return self.wake(net, at - net.now);
            }
            self.begin(net, tokens);
        }
        let Some(conn) = self.conn else { return };
        self.read(net, conn);
        if self.conn.is_none() {
            return;
        }
        if self.drop_at.is_some_and(|at| net.now >= at) {
            let reset = self.plan.behaviour == Behaviour::Dropper(true);
            let never_reads = self.plan.behaviour == Behaviour::NeverReads;
            if never_reads && net.conn(conn).socket.is_some() {
                net.check.fail(format!("silent, and still connected: {}", self.state()));
            }
            return self.end(net, conn, reset, "dropped");
        }
        if self.phase == Phase::Upgraded {
            self.converse(net, tokens);
        }
        self.flush(net, conn);
    }

    fn wake(&mut self, net: &mut Net, delay: u64) {
        net.schedule(net.now + delay, Event::Wake(Party::Client(self.index)));
    }

    fn begin(&mut self, net: &mut Net, tokens: &Tokens) {
        let conn = net.dial(self.index, 0);
        net.conn_mut(conn).floods_from = self.plan.floods_from;
        self.conn = Some(conn);
        self.phase = Phase::Asking;
        self.begun_at = net.now;
        net.check.begin_life(self.author, conn, self.plan.behaviour.is_valid());
        (self.sent, self.echoed, self.pushed) = (0, 0, 0);
        (self.token_sent, self.close_sent, self.close_received) = (false, false, None);
        self.out.clear();
        self.wire.clear();
        self.tls = self.uses_tls.then(Box::default);
        net.conn_mut(conn).is_tls = self.uses_tls;
        if self.uses_tls {
            net.faults.note(Fault::Tls);
        }
        self.written = 0;
        self.input.clear();
        self.message = None;
        self.explained = false;
        self.pings.clear();
        (self.pings_sent, self.pongs) = (0, 0);
        (self.send_at, self.read_at) = (net.now, net.now);
        self.drop_at = match self.plan.behaviour {
            Behaviour::Dropper(_) => Some(net.now + net.random.below(2 * SECONDS)),
            // Long after its silence, or its full pipe, must have ended it.
            Behaviour::NeverReads => Some(net.now + 30 * SECONDS),
            _ => None,
        };
        if let Some(at) = self.drop_at {
            self.wake(net, at - net.now);
        }
        let mut nonce = [0; 16];
        net.random.fill(&mut nonce);
        use base64::Engine as _;
        self.key = base64::engine::general_purpose::STANDARD.encode(nonce);
        let token = self.mint(net, tokens);
        let head = self.plan.carriage.head(&self.key, &token);
        if self.proxied {
            self.put_proxy_header(net, conn);
            self.wire.append(&mut self.out);
        }
        match self.plan.behaviour {
            Behaviour::SilentAtStart => {}
            Behaviour::HalfHead => {
                let cut = 1 + net.random.below(head.len() as u64 - 1) as usize;
                self.out.extend_from_slice(&head.as_bytes()[..cut]);
            }
            Behaviour::Garbage => {
                let mut bytes = vec![0; 1 + net.random.below(3000) as usize];
                net.random.fill(&mut bytes);
                self.out.extend_from_slice(&bytes);
            }
            _ => self.out.extend_from_slice(head.as_bytes()),
        }
    }

    /// What a load balancer puts in front (proxy-protocol.txt §2.1, §2.2).
    fn put_proxy_header(&mut self, net: &mut Net, conn: ConnId) {
        if matches!(self.plan.behaviour, Behaviour::SilentAtStart | Behaviour::Garbage) {
            return;
        }
        let [high, low] = self.author.client.to_be_bytes();
        let source = self.plan.floods_from.unwrap_or(Ipv4Addr::new(192, 0, high, low));
        let port = 1000 + self.author.life;
        if net.random.chance(1, 2) {
            let line = format!("PROXY TCP4 {source} 10.1.1.1 {port} 443\r\n");
            self.out.extend_from_slice(line.as_bytes());
        } else {
            self.out.extend_from_slice(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
            self.out.extend_from_slice(&source.octets());
            self.out.extend_from_slice(&[10, 1, 1, 1]);
            self.out.extend_from_slice(&port.to_be_bytes());
            self.out.extend_from_slice(&443u16.to_be_bytes());
        }
        net.conn_mut(conn).proxy_bytes = self.out.len();
        net.check.proxied(self.author, (source, port).into());
        net.faults.note(Fault::ProxyHeader);
    }

    fn mint(&mut self, net: &mut Net, tokens: &Tokens) -> String {
        let kind = match self.plan.behaviour.token() {
            TokenKind::Good if self.plan.brief && !self.is_final => TokenKind::Brief,
            kind => kind,
        };
        let (token, expires) = tokens.mint(kind, self.author, net.wall_millis());
        if let Some(conn) = self.conn {
            net.conn_mut(conn).token_expires = expires;
        }
        token
    }

    fn end(&mut self, net: &mut Net, conn: ConnId, reset: bool, why: &'static str) {
        net.note(why, self.index as u64, conn as u64);
        if !net.is_closed(conn, Side::Remote) {
            net.close(conn, Side::Remote, reset);
        }
        self.conn = None;
        if self.is_final && self.phase == Phase::Asking && self.turned_away(reset) {
            self.phase = Phase::Away(net.now + 100 * MILLIS);
            self.author.life += 1;
            return self.wake(net, 100 * MILLIS);
        }
        self.judge(net);
        self.author.life += 1;
        self.plan.lives = self.plan.lives.saturating_sub(1);
        if self.plan.lives == 0 {
            self.phase = Phase::Done;
        } else {
            let longest = if self.plan.floods_from.is_some() { 50 * MILLIS } else { SECONDS };
            let pause = 10 * MILLIS + net.random.below(longest);
            self.phase = Phase::Away(net.now + pause);
            self.wake(net, pause);
        }
    }

    /// Whether the gateway may have had no room: then the client comes again.
    fn turned_away(&self, reset: bool) -> bool {
        self.may_be_turned_away && !reset && self.input.is_empty()
    }

    /// The connection is over: was it as it had to be?
    fn judge(&mut self, net: &mut Net) {
        let complete = self.echoed == self.plan.messages && self.close_received == Some(1000);
        match self.plan.behaviour {
            behaviour if behaviour.is_honest() => {
                if complete {
                    net.check.completed += 1;
                    // Most may be left out, but not all.
                    if self.pings_sent > 0 && self.pongs == 0 {
                        net.check.fail(format!("no ping was answered: {}", self.state()));
                    }
                } else if self.is_final {
                    net.check.fail(format!("nothing is wrong, yet cut short: {}", self.state()));
                } else {
                    net.check.cut_short += 1;
                    net.check.cut_short_honest += 1;
                }
            }
            Behaviour::Refused(kind) | Behaviour::Lingerer(kind) => match self.close_received {
                Some(code) if kind.codes().contains(&code) => net.check.refused += 1,
                Some(code) if !matches!(code, 1000..=1015 | 4408 | 4429) => {
                    net.check.fail(format!("refused with {code}: {}", self.state()));
                }
                _ => net.check.cut_short += 1,
            },
            _ => {}
        }
    }

    fn read(&mut self, net: &mut Net, conn: ConnId) {
        if self.plan.behaviour == Behaviour::NeverReads && self.phase == Phase::Upgraded {
            if net.is_reset(conn, Side::Remote) {
                self.end(net, conn, false, "cut off");
            }
            return;
        }
        loop {
            let is_slow = self.plan.behaviour == Behaviour::SlowReader;
            if is_slow && net.now < self.read_at {
                break;
            }
            let most = if is_slow { 512 } else { usize::MAX };
            let mut wire = Vec::new();
            let count = net.read_vec(conn, Side::Remote, &mut wire, most);
            let decrypted = match &mut self.tls {
                Some(tls) => tls.receive(&wire, &mut self.input),
                None => {
                    self.input.append(&mut wire);
                    Ok(())
                }
            };
            if let Err(why) = decrypted {
                net.check.fail(format!("{why}: {}", self.state()));
            }
            if is_slow && count > 0 {
                self.read_at = net.now + net.random.below(20 * MILLIS);
                self.wake(net, self.read_at - net.now);
            }
            if let Err(why) = self.take_input(net) {
                net.check.fail(format!("{why}: {}", self.state()));
            }
            if count == 0 {
                break;
            }
        }
        if net.is_reset(conn, Side::Remote) {
            return self.end(net, conn, false, "saw reset");
        }
        if !net.ended(conn, Side::Remote) {
            return;
        }
        let stays = self.plan.floods_from.is_none()
            && matches!(
                self.plan.behaviour,
                Behaviour::SilentWhenOpen | Behaviour::SilentAtStart | Behaviour::Lingerer(_)
            );
        if !stays {
            self.end(net, conn, false, "saw end");
        } else if self.drop_at.is_none() {
            self.drop_at = Some(net.now + 5 * SECONDS);
            self.wake(net, 5 * SECONDS);
        }
    }

    fn take_input(&mut self, net: &mut Net) -> Result<(), String> {
        if self.phase == Phase::Asking && !self.take_response(net)? {
            return Ok(());
        }
        while let Some(frame) = frames::decode(&mut self.input)? {
            if self.close_received.is_some() {
                return Err("a frame after the close frame".into());
            }
            self.take_frame(net, frame)?;
        }
        Ok(())
    }

    /// Reads the answer to the request; true once it is a 101 and frames follow.
    fn take_response(&mut self, net: &mut Net) -> Result<bool, String> {
        let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Ok(false);
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 101 ") {
            let allowed = self.plan.behaviour != Behaviour::SilentAtStart
                && (!self.plan.behaviour.is_honest() || !self.is_final);
            return if allowed && status.starts_with("HTTP/1.1 ") {
                Ok(false)
            } else {
                Err(format!("answered {status:?}"))
            };
        }
        let accept = derive_accept_key(self.key.as_bytes());
        let field = |name: &str| {
            head.split("\r\n").filter_map(|line| line.split_once(':')).find_map(|(field, value)| {
                field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        if field("sec-websocket-accept").as_deref() != Some(accept.as_str()) {
            return Err(format!("wrong Sec-WebSocket-Accept in {head:?}"));
        }
        let protocol = field("sec-websocket-protocol");
        if protocol.as_deref().is_some_and(|value| value.contains("bearer")) {
            return Err(format!("the token came back: {head:?}"));
        }
        self.input.drain(..end + 4);
        self.phase = Phase::Upgraded;
        self.send_at = net.now;
        Ok(true)
    }

    fn take_frame(&mut self, net: &mut Net, frame: frames::Frame) -> Result<(), String> {
        let silent = self.plan.behaviour == Behaviour::SilentWhenOpen;
        match frame.opcode {
            PING if !silent && !self.close_sent => {
                self.put_frame(net, PONG, true, &frame.payload);
                Ok(())
            }
            PING => Ok(()),
            PONG => {
                self.pongs += 1;
                // Answers may be left out for older pings, but never made up (RFC 6455 §5.5.3).
                while let Some(ping) = self.pings.pop_front() {
                    if ping == frame.payload {
                        return Ok(());
                    }
                }
                Err(format!("a pong to no ping: {:?}", frame.payload))
            }
            CLOSE => self.take_close(net, &frame.payload),
            opcode => self.take_data(net, opcode, frame.fin, frame.payload),
        }
    }

    fn take_close(&mut self, net: &mut Net, payload: &[u8]) -> Result<(), String> {
        let code = match payload {
            [] => 1005,
            [high, low, reason @ ..] => {
                if std::str::from_utf8(reason).is_err() {
                    return Err("close reason is not UTF-8".into());
                }
                u16::from_be_bytes([*high, *low])
            }
            _ => return Err("close payload of one byte".into()),
        };
        if self.message.is_some() && self.is_final && !self.close_sent {
            return Err("closed within a message".into());
        }
        net.note("close frame", self.index as u64, u64::from(code));
        self.close_received = Some(code);
        let stays = matches!(self.plan.behaviour, Behaviour::Lingerer(_));
        if !self.close_sent && !stays {
            self.close_sent = true;
            self.put_frame(net, CLOSE, true, payload);
        }
        Ok(())
    }

    fn take_data(
        &mut self,
        net: &mut Net,
        opcode: u8,
        fin: bool,
        payload: Vec<u8>,
    ) -> Result<(), String> {
        if self.explained {
            return Err("a message after the explanation of a close".into());
        }
        let (kind, message) = match (self.message.take(), opcode) {
            (None, TEXT | BINARY) => (opcode, payload),
            (Some((kind, mut message)), CONTINUATION) => {
                message.extend_from_slice(&payload);
                (kind, message)
            }
            _ => return Err(format!("opcode {opcode} out of sequence")),
        };
        if !fin {
            self.message = Some((kind, message));
            return Ok(());
        }
        if !self.plan.behaviour.is_valid() {
            return self.take_explanation(kind, &message);
        }
        match messages::parse(&message) {
            // Why the gateway is about to close: it may lose its backend, or be drained.
            None if message.starts_with(b"{\"type\":\"close\"") => {
                self.explained = true;
                self.take_explanation(kind, &message)
            }
            None if message.starts_with(b"{\"type\":\"authenticated\"") => Ok(()),
            None => Err(format!("a message with a wrong byte, {} long", message.len())),
            Some((_, author, _)) if author != self.author => {
                Err(format!("a message of {author:?} came to {:?}", self.author))
            }
            Some((Series::Push, _, number)) => {
                let expected = self.pushed;
                self.pushed += 1;
                net.check.messages_down += 1;
                in_order("push", number, expected)
            }
            Some((Series::Echo, _, number)) => {
                let expected = self.echoed;
                self.echoed += 1;
                net.check.messages_down += 1;
                let misread = u32::from(self.misreads && number == 2);
                let text = kind == TEXT;
                if text != is_text(number) {
                    return Err(format!("echo {number} came back as the other type"));
                }
                in_order("echo", number ^ misread, expected)
            }
        }
    }

    fn take_explanation(&mut self, kind: u8, message: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(message).map_err(|_| "explanation is not UTF-8")?;
        if kind == TEXT && text.starts_with('{') && text.contains("\"reconnect\"") {
            Ok(())
        } else {
            Err(format!("a message to an unauthenticated client: {text:?}"))
        }
    }

    fn converse(&mut self, net: &mut Net, tokens: &Tokens) {
        if self.plan.behaviour == Behaviour::SilentAfterUpgrade || self.close_sent {
            return;
        }
        if self.plan.carriage == Carriage::FirstMessage && !self.token_sent {
            self.token_sent = true;
            let token = self.mint(net, tokens);
            self.put_frame(net, TEXT, true, token.as_bytes());
        }
        let pending = self.out.len() + self.wire.len() - self.written;
        match self.plan.behaviour {
            Behaviour::SilentWhenOpen => {}
            Behaviour::FrameBreaker => {
                self.break_a_rule(net);
                self.close_sent = true;
            }
            Behaviour::Refused(_) | Behaviour::Lingerer(_) => {
                // Impatient: a message that must never reach a backend.
                if self.sent == 0 {
                    self.put_message(net);
                }
            }
            Behaviour::NeverReads => {
                if pending < 4096 && self.sent < 500 {
                    self.put_message(net);
                    self.wake(net, 3 * MILLIS);
                }
            }
            _ => {
                self.exchange(net);
                self.reauthenticate(net, tokens);
            }
        }
    }

    fn exchange(&mut self, net: &mut Net) {
        while self.sent < self.plan.messages
            && self.sent.saturating_sub(self.echoed) < self.plan.window
            && net.now >= self.send_at
        {
            self.put_message(net);
            self.send_at = net.now + net.random.below(2 * self.plan.pause + 1);
            if self.send_at > net.now {
                self.wake(net, self.send_at - net.now);
            }
            let pinger = self.plan.behaviour == Behaviour::Pinger;
            if net.random.chance(if pinger { 1 } else { 0 }, 2) {
                self.put_ping(net);
            }
        }
        let all = self.echoed == self.plan.messages;
        if self.plan.behaviour == Behaviour::HalfCloser {
            let all_sent =
                self.sent == self.plan.messages && self.out.is_empty() && self.wire.is_empty();
            if let Some(conn) = self.conn.filter(|_| all_sent) {
                net.shutdown(conn, Side::Remote);
            }
        } else if all {
            self.close_sent = true;
            self.put_frame(net, CLOSE, true, &1000u16.to_be_bytes());
        }
    }

    /// Presents a fresh token, between messages: its own, or one that is not.
    fn reauthenticate(&mut self, net: &mut Net, tokens: &Tokens) {
        let may = !self.close_sent && !self.plan.brief && self.phase == Phase::Upgraded;
        if !may
            || self.judged_elsewhere
            || (self.plan.carriage == Carriage::FirstMessage && !self.token_sent)
        {
            return;
        }
        let mut author = self.author;
        if net.fault(Fault::ReauthenticatedOther) {
            author.client ^= 1;
        } else if !net.fault(Fault::Reauthenticated) {
            return;
        }
        let (token, _) = tokens.mint(TokenKind::Good, author, net.wall_millis());
        let message = format!(r#"{REAUTHENTICATE}"token":"{token}"}}"#);
        // In pieces that may end within the prefix.
        let cut = net.random.below(2 * REAUTHENTICATE.len() as u64) as usize;
        let (first, rest) = message.as_bytes().split_at(cut);
        self.put_frame(net, TEXT, false, first);
        self.put_frame(net, CONTINUATION, true, rest);
    }

    fn put_message(&mut self, net: &mut Net) {
        let size = match net.random.below(10) {
            0..=6 => net.random.below(200),
            7..=8 => net.random.below(5000),
            _ => net.random.below(self.plan.size_max as u64),
        };
        let size = (size as usize).min(self.plan.size_max);
        let number = self.sent;
        let message = messages::build(Series::Echo, self.author, number, size);
        let opcode = if is_text(number) { TEXT } else { BINARY };
        self.sent += 1;
        if self.plan.behaviour != Behaviour::Fragmenter {
            return self.put_frame(net, opcode, true, &message);
        }
        let mut rest = &message[..];
        let mut opcode = opcode;
        for piece in 0.. {
            let least = if piece < 8 { 0 } else { rest.len() as u64 };
            let cut = (least + net.random.below(rest.len() as u64 + 1)).min(rest.len() as u64);
            let (now, later) = rest.split_at(cut as usize);
            let fin = later.is_empty() && net.random.chance(3, 4) || piece > 9;
            let now = if fin { rest } else { now };
            self.put_frame(net, opcode, fin, now);
            if fin {
                break;
            }
            if net.random.chance(1, 4) {
                self.put_ping(net);
            }
            rest = later;
            opcode = CONTINUATION;
        }
    }

    fn put_ping(&mut self, net: &mut Net) {
        if self.pings.len() > 100 {
            return;
        }
        let payload = net.random.number().to_be_bytes();
        let length = net.random.below(9) as usize;
        self.put_frame(net, PING, true, &payload[..length]);
        self.pings.push_back(payload[..length].to_vec());
        self.pings_sent += 1;
    }

    fn put_frame(&mut self, net: &mut Net, opcode: u8, fin: bool, payload: &[u8]) {
        let key = (net.random.number() as u32).to_be_bytes();
        frames::encode(opcode, fin, payload, key, &mut self.out);
    }

    fn break_a_rule(&mut self, net: &mut Net) {
        let broken: &[u8] = match net.random.below(6) {
            0 => b"\x81\x05Hello",
            1 => b"\xc1\x80\0\0\0\0",
            2 => b"\x83\x80\0\0\0\0",
            3 => b"\x80\x80\0\0\0\0",
            4 => b"\x09\x80\0\0\0\0",
            _ => b"\x81\xff\xff\0\0\0\0\0\0\0\0\0\0\0",
        };
        self.out.extend_from_slice(broken);
    }

    fn flush(&mut self, net: &mut Net, conn: ConnId) {
        match &mut self.tls {
            // Who says nothing does not greet either.
            Some(_) if self.plan.behaviour == Behaviour::SilentAtStart => self.out.clear(),
            Some(tls) => {
                tls.send(&self.out, &mut self.wire);
                self.out.clear();
            }
            None => self.wire.append(&mut self.out),
        }
        while self.written < self.wire.len() {
            let asking = self.phase == Phase::Asking;
            let rest = &self.wire[self.written..];
            // A request head may come in any number of pieces.
            let most = if asking && net.random.chance(1, 2) {
                1 + net.random.below(rest.len() as u64) as usize
            } else {
                rest.len()
            };
            match net.write(conn, Side::Remote, &rest[..most]) {
                Ok(0) => break,
                Ok(count) => self.written += count,
                Err(_) => break,
            }
        }
        if self.written == self.wire.len() {
            self.wire.clear();
            self.written = 0;
        }
    }
}

/// Even messages are text, odd ones binary, but those with long characters are text.
fn is_text(number: u32) -> bool {
    number.is_multiple_of(2) || number % 4 == 3
}

fn in_order(what: &str, number: u32, expected: u32) -> Result<(), String> {
    match number.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(format!("{what} {number} twice, expected {expected}")),
        std::cmp::Ordering::Greater => Err(format!("{what} {expected} lost, {number} came")),
    }
}
