//! One connection of a fake WebSocket server, as RFC 6455 §4.2 has it: the request is read by code
//! of its own, and strictly; the answer, and what follows it, is on some seeds what no server may
//! send.

use std::collections::VecDeque;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use tungstenite::handshake::derive_accept_key;

use super::backend_link::BackendPlan;
use super::check::ConnId;
use super::faults::Fault;
use super::frames::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use super::messages::{self, Author, Series};
use super::net::{MILLIS, Net, SECONDS, Side};
use super::tokens;

/// With more unsent the server reads no more, as servers do that write before they read on.
const UNSENT_MAX: usize = 32 * 1024;
/// Longer than any head that the gateway takes from a server.
const ENDLESS_HEAD: usize = 40_000;
/// Close codes that the gateway says to a server of its own accord, and those of clients.
const CLOSE_CODES: &[u16] = &[1000, 1001, 1002, 1008];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The request is awaited.
    Head,
    /// It is whole. The answer is given at this time.
    Asked(u64),
    /// The 101 is written.
    Open,
    /// Nothing more is said, whatever comes: the gateway must end it.
    Mute,
}

/// How the connection ends once everything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    No,
    Finish,
    Reset,
}

#[derive(Debug)]
struct Outgoing {
    due: u64,
    opcode: u8,
    bytes: Vec<u8>,
}

/// What the request says.
#[derive(Debug, Default)]
struct Asked {
    key: String,
    wants_chat: bool,
    /// Who the client is comes with the first message.
    by_message: bool,
    /// Where the client is, as the gateway says.
    remote: Option<IpAddr>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Served {
    conn: ConnId,
    stage: Stage,
    end: End,
    input: Vec<u8>,
    asked: Asked,
    author: Option<Author>,
    message: Option<(u8, Vec<u8>)>,
    expected: u32,
    pushed: u32,
    echoes: u32,
    outgoing: VecDeque<Outgoing>,
    /// Payloads of pings that are not answered.
    pings: VecDeque<Vec<u8>>,
    /// The code of the close frame that was sent.
    close_sent: Option<Option<u16>>,
    close_received: bool,
    out: Vec<u8>,
    written: usize,
}

impl Served {
    /// A connection that has just come in.
    pub(super) fn new(net: &mut Net, conn: ConnId) -> Self {
        let mut served = Served {
            conn,
            stage: Stage::Head,
            end: End::No,
            input: Vec::new(),
            asked: Asked::default(),
            author: None,
            message: None,
            expected: 0,
            pushed: 0,
            echoes: 0,
            outgoing: VecDeque::new(),
            pings: VecDeque::new(),
            close_sent: None,
            close_received: false,
            out: Vec::new(),
            written: 0,
        };
        if net.random.chance(1, 2) && net.fault(Fault::ServerClosedEarly) {
            served.give_up(net);
        }
        served
    }

    /// Whether the gateway must end it.
    pub(super) fn is_mute(&self) -> bool {
        self.stage == Stage::Mute
    }

    /// Does what can be done now; answers when more can be.
    ///
    /// # Errors
    /// What the gateway did wrong.
    pub(super) fn step(
        &mut self,
        net: &mut Net,
        plan: &BackendPlan,
    ) -> Result<Option<u64>, String> {
        loop {
            self.flush(net);
            if self.out.len() - self.written > UNSENT_MAX {
                return Ok(None);
            }
            let count = net.read_vec(self.conn, Side::Remote, &mut self.input, 4096);
            self.take_input(net, plan)?;
            if count == 0 {
                break;
            }
        }
        let wake = match self.stage {
            Stage::Asked(due) if due <= net.now => {
                self.answer(net, plan);
                None
            }
            Stage::Asked(due) => Some(due),
            _ => None,
        };
        let later = self.send_due(net, plan);
        self.flush(net);
        Ok(wake.or(later))
    }

    /// Whether the connection is over, and if so, whether with a reset.
    pub(super) fn is_over(&self, net: &Net) -> Option<bool> {
        let told = self.written == self.out.len();
        match self.end {
            _ if net.is_reset(self.conn, Side::Remote) => Some(true),
            _ if net.ended(self.conn, Side::Remote) => Some(false),
            End::Finish if told => Some(false),
            End::Reset if told => Some(true),
            _ => None,
        }
    }

    fn take_input(&mut self, net: &mut Net, plan: &BackendPlan) -> Result<(), String> {
        match self.stage {
            Stage::Head => self.take_head(net)?,
            Stage::Mute => self.input.clear(),
            Stage::Asked(_) | Stage::Open => {}
        }
        if matches!(self.stage, Stage::Asked(_)) && !self.input.is_empty() {
            return Err("bytes of a client before the server's 101".into());
        }
        while self.stage == Stage::Open {
            let Some(frame) = frames::decode_masked(&mut self.input)? else { break };
            if self.close_received {
                return Err("a frame after the close frame".into());
            }
            self.take_frame(net, plan, frame)?;
            if let Some(author) = self.author {
                net.check.heard(author, self.conn);
            }
        }
        Ok(())
    }

    fn take_head(&mut self, net: &mut Net) -> Result<(), String> {
        let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Ok(());
        };
        let head: Vec<u8> = self.input.drain(..end + 4).collect();
        let head = std::str::from_utf8(&head[..end]).map_err(|_| "a head that is not UTF-8")?;
        let (line, fields) = parse_head(head)?;
        let (token, asked) = read_request(line, &fields)?;
        let mut forwarded = fields.iter().filter(|(name, _)| name == "x-forwarded-for");
        let remote = forwarded.next_back().and_then(|(_, value)| {
            value.rsplit(',').next().and_then(|last| last.trim().parse::<IpAddr>().ok())
        });
        self.asked = Asked { remote, ..asked };
        match token {
            Some(token) => self.know(net, token.as_bytes())?,
            None if self.asked.by_message => {}
            None => return Err(format!("a head without a token: {head:?}")),
        }
        let late = net.fault(Fault::VerdictLate);
        let delay = net.random.below(if late { 3 * SECONDS } else { 5 * MILLIS });
        if late {
            net.trouble(self.conn);
        }
        self.stage = Stage::Asked(net.now + delay);
        Ok(())
    }

    /// The client says who it is, and the gateway has to have verified it.
    fn know(&mut self, net: &mut Net, token: &[u8]) -> Result<(), String> {
        let Some(claims) = tokens::unverified_claims(token) else {
            return Err(format!("no token: {:?}", token.escape_ascii().to_string()));
        };
        self.author = net.check.asked(&claims.subject, self.asked.remote);
        net.conn_mut(self.conn).client =
            self.author.and_then(|author| Some(net.check.life(author)?.conn));
        Ok(())
    }

    /// Answers the request, perhaps as no server should.
    fn answer(&mut self, net: &mut Net, plan: &BackendPlan) {
        if net.fault(Fault::ServerClosedEarly) {
            return self.give_up(net);
        }
        if net.fault(Fault::ServerRefused) {
            let status = ["401 No", "403 No", "404 None", "500 Oops", "503 Busy"];
            let status = status[net.random.below(5) as usize];
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nno\n");
            self.out.extend_from_slice(head.as_bytes());
            self.stage = Stage::Mute;
            if net.random.chance(1, 2) {
                self.end = End::Finish;
            }
            return;
        }
        let accept = derive_accept_key(self.asked.key.as_bytes());
        let mut head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n"
        );
        if self.asked.wants_chat && net.random.chance(1, 2) {
            head.push_str("Sec-WebSocket-Protocol: chat\r\n");
        }
        head.push_str("\r\n");
        if net.fault(Fault::ServerMute) {
            net.trouble(self.conn);
            let cut = net.random.below(head.len() as u64) as usize;
            self.out.extend_from_slice(&head.as_bytes()[..cut]);
            self.stage = Stage::Mute;
            return;
        }
        if net.fault(Fault::ServerBroken) {
            net.trouble(self.conn);
            self.break_answer(net, &head, &accept);
            self.stage = Stage::Mute;
            return;
        }
        self.out.extend_from_slice(head.as_bytes());
        self.stage = Stage::Open;
        if let Some(author) = self.author {
            net.check.served(author);
            if net.random.chance(1, 4) {
                // Frames may come right behind the 101, even in the same segment.
                self.push(net, author);
                self.send_due(net, plan);
            }
        }
        net.conn_mut(self.conn).answered = Some(net.now);
    }

    fn break_answer(&mut self, net: &mut Net, head: &str, accept: &str) {
        let broken = match net.random.below(4) {
            0 => head.replace(accept, "dGhlIHNhbXBsZSBub25jZQ=="),
            1 => head.replace("Upgrade: websocket\r\n", ""),
            2 => {
                let filler = "y".repeat(ENDLESS_HEAD);
                format!("HTTP/1.1 101 Switching Protocols\r\nX-Filler: {filler}")
            }
            _ => {
                let mut junk = [0; 64];
                net.random.fill(&mut junk);
                self.out.extend_from_slice(&junk);
                return;
            }
        };
        self.out.extend_from_slice(broken.as_bytes());
    }

    /// Closes without an answer, or in the middle of the conversation.
    fn give_up(&mut self, net: &mut Net) {
        if self.stage != Stage::Open {
            net.trouble(self.conn);
        }
        self.stage = Stage::Mute;
        self.outgoing.clear();
        self.end = if net.random.chance(1, 2) { End::Finish } else { End::Reset };
    }

    fn take_frame(
        &mut self,
        net: &mut Net,
        plan: &BackendPlan,
        frame: frames::Frame,
    ) -> Result<(), String> {
        match frame.opcode {
            PING => {
                if self.close_sent.is_none() {
                    frames::encode_plain(PONG, true, &frame.payload, &mut self.out);
                }
                Ok(())
            }
            PONG => {
                // Older ones may be left out, but none made up; not even the answers to the
                // gateway's own pings may come here.
                while let Some(ping) = self.pings.pop_front() {
                    if ping == frame.payload {
                        return Ok(());
                    }
                }
                Err(format!("a pong to no ping of the server's: {:?}", frame.payload))
            }
            CLOSE => self.take_close(&frame.payload),
            opcode => self.take_data(net, plan, opcode, frame),
        }
    }

    fn take_close(&mut self, payload: &[u8]) -> Result<(), String> {
        let code = match payload {
            [] => None,
            [high, low, reason @ ..] => {
                std::str::from_utf8(reason).map_err(|_| "a close reason that is not UTF-8")?;
                Some(u16::from_be_bytes([*high, *low]))
            }
            _ => return Err("a close payload of one byte".into()),
        };
        let known = code.is_none_or(|code| CLOSE_CODES.contains(&code));
        if !known && self.close_sent != Some(code) {
            return Err(format!("closed with {code:?} that neither client nor gateway says"));
        }
        self.close_received = true;
        if self.close_sent.is_none() {
            self.close_sent = Some(code);
            self.outgoing.clear();
            frames::encode_plain(CLOSE, true, payload, &mut self.out);
        }
        self.end = End::Finish;
        Ok(())
    }

    fn take_data(
        &mut self,
        net: &mut Net,
        plan: &BackendPlan,
        opcode: u8,
        frame: frames::Frame,
    ) -> Result<(), String> {
        let (opcode, message) = match (self.message.take(), opcode) {
            (None, TEXT | BINARY) => (opcode, frame.payload),
            (Some((opcode, mut message)), CONTINUATION) => {
                message.extend_from_slice(&frame.payload);
                (opcode, message)
            }
            _ => return Err(format!("opcode {opcode} out of sequence")),
        };
        if !frame.fin {
            self.message = Some((opcode, message));
            return Ok(());
        }
        let Some(own) = self.author else {
            // The first message, which is passed on whole.
            self.know(net, &message)?;
            self.author.into_iter().for_each(|author| net.check.served(author));
            return Ok(());
        };
        let (series, author, number) =
            messages::parse(&message).ok_or("a message with a wrong byte")?;
        if series != Series::Echo || author != own {
            return Err(format!("a message of {author:?} in the session of {own:?}"));
        }
        if number != self.expected {
            return Err(format!("message {number} where {} was due", self.expected));
        }
        self.expected += 1;
        net.check.messages_up += 1;
        if self.close_sent.is_some() {
            return Ok(());
        }
        let delay = net.random.below(plan.echo_delay + 1);
        let due = self.due_after(net.now + delay);
        self.echoes += 1;
        if plan.duplicates > 0 && self.echoes.is_multiple_of(plan.duplicates) {
            self.outgoing.push_back(Outgoing { due, opcode, bytes: message.clone() });
        }
        self.outgoing.push_back(Outgoing { due, opcode, bytes: message });
        if net.random.chance(plan.push_rate, 100) {
            self.push(net, author);
        }
        Ok(())
    }

    fn due_after(&self, at: u64) -> u64 {
        self.outgoing.back().map_or(0, |last| last.due).max(at)
    }

    fn push(&mut self, net: &mut Net, author: Author) {
        let size = net.random.below(300) as usize;
        let bytes = messages::build(Series::Push, author, self.pushed, size);
        self.pushed += 1;
        let due = self.due_after(net.now);
        self.outgoing.push_back(Outgoing { due, opcode: TEXT, bytes });
    }

    /// Writes the messages that are due, in one frame or several; answers when more will be.
    fn send_due(&mut self, net: &mut Net, plan: &BackendPlan) -> Option<u64> {
        while let Some(next) = self.outgoing.front() {
            if next.due > net.now {
                return Some(next.due);
            }
            let Outgoing { mut opcode, bytes, .. } = self.outgoing.pop_front()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() && net.random.chance(1, 6) {
                let (piece, later) = rest.split_at(net.random.below(rest.len() as u64) as usize);
                frames::encode_plain(opcode, false, piece, &mut self.out);
                (opcode, rest) = (CONTINUATION, later);
                if net.random.chance(1, 4) {
                    self.ping(net);
                }
            }
            frames::encode_plain(opcode, true, rest, &mut self.out);
            if net.random.chance(plan.push_rate, 200) {
                self.ping(net);
            }
        }
        None
    }

    fn ping(&mut self, net: &mut Net) {
        let payload = net.random.number().to_be_bytes();
        let payload = &payload[..net.random.below(9) as usize];
        frames::encode_plain(PING, true, payload, &mut self.out);
        self.pings.push_back(payload.to_vec());
    }

    fn flush(&mut self, net: &mut Net) {
        while self.written < self.out.len() {
            match net.write(self.conn, Side::Remote, &self.out[self.written..]) {
                Ok(0) => break,
                Ok(count) => self.written += count,
                // What is left goes nowhere; the end of the connection is found by reading.
                Err(_) => self.written = self.out.len(),
            }
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
    }

    /// Draws misfortunes for an open connection; called now and then.
    pub(super) fn mischief(&mut self, net: &mut Net) {
        if self.stage != Stage::Open || self.close_sent.is_some() {
            return;
        }
        if net.fault(Fault::BackendClosed) {
            let code = net.random.chance(3, 4).then_some(4000);
            let payload = code.map(|code: u16| [&code.to_be_bytes()[..], b"enough"].concat());
            frames::encode_plain(CLOSE, true, &payload.unwrap_or_default(), &mut self.out);
            self.close_sent = Some(code);
            self.outgoing.clear();
        } else if net.fault(Fault::ServerGone) {
            // Its 101 may still be on its way.
            net.trouble(self.conn);
            self.give_up(net);
        } else if net.fault(Fault::ServerBreaks) {
            let broken: &[u8] = match net.random.below(6) {
                0 => b"\x81\x85\0\0\0\0Hello",
                1 => b"\x83\x00",
                2 => b"\xc1\x00",
                3 => b"\x89\x7e\x00\x80",
                4 => b"\x09\x00",
                _ => b"\x88\x01\x03",
            };
            self.out.extend_from_slice(broken);
            self.stage = Stage::Mute;
        } else if net.fault(Fault::ServerMute) {
            // It neither answers nor ends: the client's silence, or its end, must end this.
            self.stage = Stage::Mute;
        }
    }
}

/// A request's line and its fields, names in lower case.
type Head<'h> = (&'h str, Vec<(String, &'h str)>);

/// Takes a head apart: RFC 9112 §3 and §5, and nothing that it lets servers forgive.
fn parse_head(head: &str) -> Result<Head<'_>, String> {
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let mut fields = Vec::new();
    for field in lines {
        let parts = field.split_once(':').filter(|(name, value)| {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            let visible = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
            !name.is_empty() && name.bytes().all(token) && value.bytes().all(visible)
        });
        let Some((name, value)) = parts else { return Err(format!("a field {field:?}")) };
        fields.push((name.to_ascii_lowercase(), value.trim()));
    }
    Ok((line, fields))
}

/// The token of a request, and what it asks for (RFC 6455 §4.2.1).
fn read_request(line: &str, fields: &[(String, &str)]) -> Result<(Option<String>, Asked), String> {
    let target = line.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    let target = target.filter(|target| !target.contains(' '));
    let path = target.and_then(|target| target.split('?').next());
    let (Some(target), Some("/ws" | "/first")) = (target, path) else {
        return Err(format!("a request line {line:?}"));
    };
    let all = |name: &str| fields.iter().filter(|(n, _)| n == name).map(|(_, v)| *v).collect();
    let one = |name: &str| {
        let values: Vec<&str> = all(name);
        match values[..] {
            [value] => Ok(value),
            _ => Err(format!("{name} is {values:?}")),
        }
    };
    one("host")?;
    for (name, value) in
        [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "13")]
    {
        if !one(name)?.eq_ignore_ascii_case(value) {
            return Err(format!("{name} is {:?}", one(name)));
        }
    }
    for name in ["content-length", "transfer-encoding", "sec-websocket-extensions", "trailer"] {
        if !all(name).is_empty() {
            return Err(format!("a request with {name}"));
        }
    }
    let key = one("sec-websocket-key")?.to_owned();
    if STANDARD.decode(&key).map(|nonce| nonce.len()) != Ok(16) {
        return Err(format!("a key {key:?}"));
    }
    let mut token = target.split(['?', '&']).find_map(|part| part.strip_prefix("token="));
    for (name, value) in fields {
        let found = match name.as_str() {
            "authorization" => value.strip_prefix("Bearer "),
            "x-token" => Some(*value),
            "cookie" => value.split("; ").find_map(|cookie| cookie.strip_prefix("session=")),
            _ => None,
        };
        token = token.or(found);
    }
    let offers: Vec<&str> = all("sec-websocket-protocol");
    let offers: Vec<&str> = offers.iter().flat_map(|value| value.split(", ")).collect();
    let wrapped = offers.iter().find_map(|it| it.strip_prefix("base64url.bearer.authorization."));
    let wrapped = wrapped.and_then(|wrapped| URL_SAFE_NO_PAD.decode(wrapped).ok());
    let wrapped = wrapped.and_then(|token| String::from_utf8(token).ok());
    let by_message = path == Some("/first");
    let asked = Asked { key, wants_chat: offers.contains(&"chat"), by_message, remote: None };
    Ok((token.map(str::to_owned).or(wrapped), asked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tokens::Carriage;

    const FIELDS: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Version: 13\r\n\
                          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn token_of(head: &str) -> Result<Option<String>, String> {
        let (line, fields) = parse_head(head.strip_suffix("\r\n\r\n").unwrap())?;
        Ok(read_request(line, &fields)?.0)
    }

    #[test]
    fn the_token_is_found_wherever_clients_carry_it() {
        for carriage in Carriage::ALL.iter().filter(|it| **it != Carriage::FirstMessage) {
            let head = carriage.head("dGhlIHNhbXBsZSBub25jZQ==", "a.b.c");
            // What the gateway says in place of the client's own.
            let head = head.replace("Connection: keep-alive, Upgrade", "Connection: Upgrade");
            assert_eq!(token_of(&head), Ok(Some("a.b.c".into())), "{carriage:?}");
        }
    }

    #[test]
    fn what_no_gateway_may_send_is_told() {
        for (head, told) in [
            (format!("POST /ws HTTP/1.1\r\n{FIELDS}\r\n"), "a request line"),
            (format!("GET /ws  HTTP/1.1\r\n{FIELDS}\r\n"), "a request line"),
            (format!("GET /ws HTTP/1.1\r\n{FIELDS}Host: b\r\n\r\n"), "host is"),
            (format!("GET /ws HTTP/1.1\r\n{FIELDS}a b: c\r\n\r\n"), "a field"),
            (format!("GET /ws HTTP/1.1\r\n{FIELDS}X: \u{1}\r\n\r\n"), "a field"),
            (format!("GET /ws HTTP/1.1\r\n{FIELDS} folded\r\n\r\n"), "a field"),
            (format!("GET /ws HTTP/1.1\r\n{FIELDS}Content-Length: 0\r\n\r\n"), "content-length"),
            (format!("GET /ws HTTP/1.1\r\n{FIELDS}\r\n").replace("jZQ==", "jZQ"), "a key"),
        ] {
            let why = token_of(&head).expect_err(&head);
            assert!(why.contains(told), "{head:?}: {why}");
        }
    }
}
