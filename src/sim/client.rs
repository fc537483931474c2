//! Fake clients: what sits at the other end of an accepted connection, byte by byte.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::behaviour::{Behaviour, Plan};
use super::check::ConnId;
use super::faults::Fault;
use super::messages::Author;
use super::net::{Event, MILLIS, Net, Party, SECONDS, Side};
use super::tls::TlsClient;
use super::tokens::{Carriage, TokenKind, Tokens};

mod reading;
mod writing;

/// The close code for a backend that is not there, in the plain dialect.
const UNAVAILABLE: u16 = 1012;

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
    /// Behind the gateway is a server that may rest from its failures, until a client tries it.
    pub server_may_rest: bool,
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
            server_may_rest: false,
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
        if self.is_final && self.turned_away(reset) {
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
        // Where each client takes two descriptors there may be none for the second, or none for
        // the next client; those that are refused for that give way first, even with a reset.
        let refused = self.close_received == Some(UNAVAILABLE) && self.echoed == 0;
        let asked = self.phase == Phase::Asking || self.plan.carriage == Carriage::FirstMessage;
        let unanswered = asked && self.close_received.is_none() && self.echoed == 0;
        if self.server_may_rest && (refused || unanswered) {
            return true;
        }
        // One on whom a backend has still to decide is a stranger, and gives its place up.
        let undecided = self.judged_elsewhere && self.close_received.is_none() && self.echoed == 0;
        if self.may_be_turned_away && undecided {
            return true;
        }
        let asking = self.phase == Phase::Asking;
        asking && self.may_be_turned_away && !reset && self.input.is_empty()
    }

    /// The connection is over: was it as it had to be?
    fn judge(&mut self, net: &mut Net) {
        let complete = self.echoed == self.plan.messages && self.close_received == Some(1000);
        match self.plan.behaviour {
            behaviour if behaviour.is_honest() => {
                if complete {
                    net.check.completed += 1;
                    // Most may be left out, but not all.
                    // A server's pong to the last one may still be on its way when all is said.
                    let unanswered = if self.server_may_rest { 2 } else { 0 };
                    if self.pings_sent > unanswered && self.pongs == 0 {
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
