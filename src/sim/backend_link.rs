//! One link of a fake backend: its sessions, with a strict account of credit and order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use super::check::ConnId;
use super::faults::Fault;
use super::messages::{self, Author, Series};
use super::net::{MILLIS, Net, SECONDS, Side};
use super::tokens::{self, Claims};
use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::link::{
    Accept, Auth, Close, Closer, Credit, Frame, FrameHeader, Kind, Limits, LinkReader, Open,
    PieceOrder, Ping, Pong, Reauth, ReceiveWindow, Reject, SendCredit, SessionId, data_cost,
    data_flags, encode_data,
};
use crate::protocol::revocation::{Revocation, Target};
use crate::ring::EndpointAddress;

/// How a backend behaves, drawn by the world.
#[derive(Clone, Debug)]
pub struct BackendPlan {
    /// Where it listens.
    pub address: EndpointAddress,
    /// Its key.
    pub secret: Option<Vec<u8>>,
    /// What it takes.
    pub limits: Limits,
    /// Longest delay of an echo, in nanoseconds.
    pub echo_delay: u64,
    /// Chances of 100 that an echo is followed by a push.
    pub push_rate: u64,
    /// Whether it may speak of ended sessions: with tiny generations their ids are soon those of
    /// sessions that the gateway has just opened, and then nothing is wrong with them.
    pub speaks_of_the_dead: bool,
    /// A planted bug: every Nth echo is sent twice; 0 is never.
    pub duplicates: u32,
    /// It is an ordinary WebSocket server, which knows nothing of links.
    pub serves: bool,
}

#[derive(Debug)]
struct Outgoing {
    due: u64,
    text: bool,
    bytes: Vec<u8>,
    done: usize,
}

#[derive(Debug)]
struct Session {
    author: Option<Author>,
    credit: SendCredit,
    window: ReceiveWindow,
    order: PieceOrder,
    text: bool,
    message: Vec<u8>,
    expected: u32,
    pushed: u32,
    outgoing: VecDeque<Outgoing>,
    close_sent: bool,
}

/// A client on which the backend is to decide.
#[derive(Debug)]
struct Asked {
    due: u64,
    /// What its token says.
    claims: Claims,
    is_valid: bool,
    declined: bool,
    credit: u32,
    remote: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Hello,
    Proof,
    Ready,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) reader: LinkReader,
    pub(super) stage: Stage,
    pub(super) hello: Vec<u8>,
    pub(super) challenge: Vec<u8>,
    pub(super) theirs: Limits,
    sessions: BTreeMap<SessionId, Session>,
    asked: BTreeMap<SessionId, Asked>,
    /// Rejected or declined: the gateway's CLOSE is awaited.
    pub(super) rejected: BTreeSet<SessionId>,
    pub(super) ended: VecDeque<SessionId>,
    pub(super) credit: SendCredit,
    pub(super) window: ReceiveWindow,
    /// CREDIT frames put off: when, for whom (link for all), how much.
    pub(super) grants: Vec<(u64, SessionId, u32)>,
    pub(super) out: Vec<u8>,
    pub(super) written: usize,
    pub(super) end_after_flush: bool,
    /// The stream is spoilt on purpose: nothing that follows makes sense.
    pub(super) is_torn: bool,
}

impl Link {
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn new(limits: &Limits) -> Self {
        Link {
            reader: LinkReader::new(crate::protocol::link::HANDSHAKE_FRAME_MAX),
            stage: Stage::Hello,
            hello: Vec::new(),
            challenge: Vec::new(),
            theirs: *limits,
            sessions: BTreeMap::new(),
            asked: BTreeMap::new(),
            rejected: BTreeSet::new(),
            ended: VecDeque::new(),
            credit: SendCredit::new(0),
            window: ReceiveWindow::new(limits.link_window),
            grants: Vec::new(),
            out: Vec::new(),
            written: 0,
            end_after_flush: false,
            is_torn: false,
        }
    }

    pub(super) fn take(
        &mut self,
        net: &mut Net,
        plan: &BackendPlan,
        frame: &Frame,
    ) -> Result<(), String> {
        let FrameHeader { kind, session: id, .. } = frame.header;
        match kind {
            Kind::Ping => {
                let ping = Ping::decode(frame.payload).map_err(|why| why.to_string())?;
                Pong { opaque: ping.opaque }.encode(&mut self.out);
                Ok(())
            }
            Kind::Pong | Kind::GoAway => Ok(()),
            Kind::Credit => self.take_credit(id, frame.payload),
            Kind::Open => self.take_open(net, plan, id, frame.payload),
            Kind::Auth => self.take_auth(net, id, frame.payload),
            Kind::Data => self.take_data(net, plan, frame),
            Kind::Close => self.take_close(id, frame.payload),
            Kind::Reauth => self.take_reauth(id, frame.payload),
            kind => Err(format!("{kind:?} was not agreed on")),
        }
    }

    fn take_credit(&mut self, id: SessionId, payload: &[u8]) -> Result<(), String> {
        let credit = Credit::decode(payload).map_err(|why| why.to_string())?;
        let account = if id == SessionId::LINK {
            &mut self.credit
        } else {
            match self.sessions.get_mut(&id) {
                Some(session) => &mut session.credit,
                None => return Err("credit for a session that is not open".into()),
            }
        };
        account.grant(credit.bytes).map_err(|why| why.to_string())
    }

    fn take_open(
        &mut self,
        net: &mut Net,
        plan: &BackendPlan,
        id: SessionId,
        payload: &[u8],
    ) -> Result<(), String> {
        let open = Open::decode(payload).map_err(|why| why.to_string())?;
        self.check_new(id, &open)?;
        let author = net.check.open(open.subject, open.remote);
        self.begin(plan, id, author, open.credit);
        Ok(())
    }

    /// No token may be in sight, and the slot must be free.
    fn check_new(&self, id: SessionId, open: &Open<'_>) -> Result<(), String> {
        if open.path.contains("eyJ") {
            return Err(format!("the path still carries the token: {:?}", open.path));
        }
        let mut used = self.sessions.keys().chain(self.asked.keys()).chain(&self.rejected);
        if used.any(|other| other.slot == id.slot) {
            return Err("a slot that is still in use".into());
        }
        Ok(())
    }

    fn begin(
        &mut self,
        plan: &BackendPlan,
        id: SessionId,
        author: Option<Author>,
        credit: Option<u32>,
    ) {
        // What was put off for an earlier session of this id is not this one's.
        self.grants.retain(|(_, other, _)| *other != id);
        let credit = credit.unwrap_or(self.theirs.session_window);
        let session = Session {
            author,
            credit: SendCredit::new(credit),
            window: ReceiveWindow::new(plan.limits.session_window),
            order: PieceOrder::default(),
            text: false,
            message: Vec::new(),
            expected: 0,
            pushed: 0,
            outgoing: VecDeque::new(),
            close_sent: false,
        };
        self.sessions.insert(id, session);
    }

    /// The gateway asks who a client is: the answer will be right, but perhaps late, or none.
    fn take_auth(&mut self, net: &mut Net, id: SessionId, payload: &[u8]) -> Result<(), String> {
        let auth = Auth::decode(payload).map_err(|why| why.to_string())?;
        self.check_new(id, &auth.open)?;
        let token = auth.credentials().next().map_or(&b""[..], |credential| credential.token);
        let claims = tokens::unverified_claims(token).unwrap_or_default();
        let life = Author::from_subject(&claims.subject).and_then(|author| net.check.life(author));
        let is_valid = life.is_some_and(|life| life.is_valid);
        let delay = match () {
            () if net.fault(Fault::VerdictNever) => 1000 * SECONDS,
            () if net.fault(Fault::VerdictLate) => net.random.below(4 * SECONDS),
            () => net.random.below(5 * MILLIS),
        };
        let asked = Asked {
            due: net.now + delay,
            claims,
            is_valid,
            declined: net.fault(Fault::VerdictDeclined),
            credit: auth.open.credit.unwrap_or(self.theirs.session_window),
            remote: auth.open.remote,
        };
        self.asked.insert(id, asked);
        if net.fault(Fault::VerdictOvertaken) {
            encode_data(id, data_flags::WHOLE | data_flags::TEXT, b"too early", &mut self.out);
            self.is_torn = true;
        }
        Ok(())
    }

    /// Writes the decisions that are due; answers when more will be.
    pub(super) fn decide_due(&mut self, net: &mut Net, plan: &BackendPlan) -> Option<u64> {
        let due: Vec<SessionId> =
            self.asked.iter().filter(|(_, a)| a.due <= net.now).map(|(id, _)| *id).collect();
        for id in due {
            if self.is_torn {
                return None;
            }
            let Some(asked) = self.asked.remove(&id) else { continue };
            if asked.declined {
                let close = Close { by: Closer::Backend, label: "", code: 0, reason: "" };
                close.encode(id, &mut self.out);
                self.rejected.insert(id);
            } else if asked.is_valid {
                self.accept(id, &asked.claims);
                let author = net.check.open(Some(&asked.claims.subject), asked.remote);
                self.begin(plan, id, author, Some(asked.credit));
                if net.fault(Fault::VerdictTwice) {
                    self.accept(id, &mallory());
                    self.is_torn = true;
                }
            } else {
                let reject = Reject::new(Cause::BadSignature);
                if !reject.encode(id, &mut self.out) {
                    net.check.fail("a rejection that cannot be encoded".into());
                }
                self.rejected.insert(id);
            }
        }
        self.asked.values().map(|asked| asked.due).filter(|due| *due > net.now).min()
    }

    fn accept(&mut self, id: SessionId, claims: &Claims) {
        let Claims { subject, token_id, issued_at, expires } = claims;
        let accept = Accept {
            subject,
            token_id: token_id.as_deref(),
            issued_at: *issued_at,
            expires: *expires,
            claims: &[],
        };
        let sent = accept.encode(id, &mut self.out);
        debug_assert!(sent, "a subject of ours");
    }

    fn take_data(
        &mut self,
        net: &mut Net,
        plan: &BackendPlan,
        frame: &Frame,
    ) -> Result<(), String> {
        let FrameHeader { session: id, flags, length, .. } = frame.header;
        let cost = data_cost(length as usize);
        let text = |why: crate::protocol::link::LinkError| why.to_string();
        self.window.receive(cost).map_err(|why| format!("link: {why}"))?;
        let mut grants = vec![(SessionId::LINK, self.window.consume(cost))];
        let session = self.sessions.get_mut(&id).ok_or("DATA for a session that is not open")?;
        session.window.receive(cost).map_err(|why| format!("session: {why}"))?;
        session.order.accept(flags).map_err(text)?;
        grants.push((id, session.window.consume(cost)));
        session.text = flags & data_flags::TEXT != 0;
        session.message.extend_from_slice(frame.payload);
        if session.message.len() > plan.limits.message_max as usize {
            return Err("message over the agreed limit".into());
        }
        if flags & data_flags::FIN != 0 {
            session.take_message(net, plan)?;
        }
        let closed = session.close_sent;
        for (id, grant) in grants {
            let Some(bytes) = grant.filter(|_| id == SessionId::LINK || !closed) else { continue };
            let late = net.fault(Fault::CreditLate);
            let delay = if late { net.random.below(300 * MILLIS) } else { 0 };
            self.grants.push((net.now + delay, id, bytes));
        }
        Ok(())
    }

    fn take_reauth(&self, id: SessionId, payload: &[u8]) -> Result<(), String> {
        let reauth = Reauth::decode(payload).map_err(|why| why.to_string())?;
        let session = self.sessions.get(&id).ok_or("REAUTH for a session that is not open")?;
        let subject = reauth.subject.and_then(Author::from_subject);
        if subject.is_none() || subject != session.author {
            return Err(format!("{:?} became {:?}", session.author, reauth.subject));
        }
        Ok(())
    }

    fn take_close(&mut self, id: SessionId, payload: &[u8]) -> Result<(), String> {
        Close::decode(payload).map_err(|why| why.to_string())?;
        if self.rejected.remove(&id) {
            self.ended.push_back(id);
            return Ok(());
        }
        if self.asked.remove(&id).is_some() {
            let close = Close { by: Closer::Backend, label: "", code: 0, reason: "" };
            close.encode(id, &mut self.out);
            self.ended.push_back(id);
            return Ok(());
        }
        let session = self.sessions.remove(&id).ok_or("CLOSE for a session that is not open")?;
        self.ended.push_back(id);
        self.ended.truncate(64);
        if !session.close_sent {
            let close = Close { by: Closer::Backend, label: "", code: 0, reason: "" };
            close.encode(id, &mut self.out);
        }
        Ok(())
    }

    /// Writes what is due into `out`, as credit allows; answers when more will be due.
    pub(super) fn send_due(
        &mut self,
        net: &mut Net,
        duplicates: u32,
        echoes: &mut u32,
    ) -> Option<u64> {
        let mut wake: Option<u64> = None;
        let mut later = |at: u64| wake = Some(wake.map_or(at, |other| other.min(at)));
        let grants = std::mem::take(&mut self.grants);
        for (due, id, bytes) in grants {
            if due > net.now {
                later(due);
                self.grants.push((due, id, bytes));
            } else if id == SessionId::LINK
                || self.sessions.get(&id).is_some_and(|session| !session.close_sent)
            {
                Credit { bytes }.encode(id, &mut self.out);
            }
        }
        if self.is_torn {
            return None;
        }
        let frame_max = self.theirs.frame_max as usize;
        for (id, session) in self.sessions.iter_mut().filter(|(_, s)| !s.close_sent) {
            while let Some(next) = session.outgoing.front_mut() {
                if next.due > net.now {
                    later(next.due);
                    break;
                }
                let room = [session.credit.payload_max(), self.credit.payload_max()];
                let [Some(own), Some(all)] = room else { break };
                let rest = &next.bytes[next.done..];
                let mut size = own.min(all).min(frame_max).min(rest.len());
                if size == 0 && !rest.is_empty() {
                    break;
                }
                if size > 1 && net.random.chance(1, 8) {
                    size = 1 + net.random.below(size as u64) as usize;
                }
                let cost = data_cost(size);
                session.credit.spend(cost);
                self.credit.spend(cost);
                let mut flags = if next.text { data_flags::TEXT } else { 0 };
                flags |= if next.done == 0 { data_flags::FIRST } else { 0 };
                next.done += size;
                flags |= if next.done == next.bytes.len() { data_flags::FIN } else { 0 };
                encode_data(*id, flags, &rest[..size], &mut self.out);
                if next.done == next.bytes.len() {
                    *echoes += 1;
                    let mut whole = session.outgoing.pop_front();
                    if let Some(again) = whole.as_mut()
                        && duplicates > 0
                        && echoes.is_multiple_of(duplicates)
                    {
                        again.done = 0;
                        session.outgoing.extend(whole);
                    }
                }
            }
        }
        wake
    }

    /// Writes; false once the link is to end.
    pub(super) fn flush(&mut self, net: &mut Net, conn: ConnId) -> bool {
        while self.written < self.out.len() {
            match net.write(conn, Side::Remote, &self.out[self.written..]) {
                Ok(0) => break,
                Ok(count) => self.written += count,
                Err(_) => break,
            }
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            return !self.end_after_flush;
        }
        true
    }

    /// DATA for an unknown session. It counts against the link's window all the same: credit that
    /// is not charged here would be missing when the faults are over.
    fn put_stray(&mut self, id: SessionId, flags: u8) {
        let payload = b"boo";
        if self.credit.payload_max().is_some_and(|most| most >= payload.len()) {
            self.credit.spend(data_cost(payload.len()));
            encode_data(id, flags, payload, &mut self.out);
        }
    }

    pub(super) fn mischief(&mut self, net: &mut Net, speaks_of_the_dead: bool) {
        let open: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| !s.close_sent).map(|(id, _)| *id).collect();
        let chosen = (!open.is_empty()).then(|| open[net.random.below(open.len() as u64) as usize]);
        if let Some(id) = chosen
            && net.fault(Fault::BackendClosed)
        {
            let close =
                Close { by: Closer::Backend, label: "", code: 4000, reason: "enough of you" };
            close.encode(id, &mut self.out);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.close_sent = true;
                session.outgoing.clear();
            }
        }
        if let Some(author) = chosen.and_then(|id| self.sessions.get(&id)?.author)
            && net.fault(Fault::BackendRevoked)
        {
            revocation(net, author).encode(&mut self.out);
        }
        let flags = data_flags::WHOLE | data_flags::TEXT;
        if net.fault(Fault::HostileUnknown) {
            let slot = 1_000_000 + net.random.below(1000) as u32;
            self.put_stray(SessionId::new(slot, 1), flags);
        }
        if net.fault(Fault::VerdictStray) {
            let slot = 1_000_000 + net.random.below(1000) as u32;
            self.accept(SessionId::new(slot, 1), &mallory());
        }
        let known = |id: &SessionId| self.sessions.contains_key(id) || self.asked.contains_key(id);
        if let Some(id) = self.ended.front().copied().filter(|id| !known(id))
            && speaks_of_the_dead
            && net.fault(Fault::HostileStale)
        {
            self.put_stray(id, flags);
        }
        if let Some(id) = chosen
            && net.fault(Fault::HostileOverCredit)
        {
            let piece = vec![b'x'; 16 * 1024 - 12];
            let Some(session) = self.sessions.get(&id) else { return };
            let before = session.outgoing.front().is_some_and(|next| next.done > 0);
            // The pieces belong to a message that never ends, so none may reach the client whole.
            let text = session.outgoing.front().is_some_and(|next| next.text);
            let flags = if text { data_flags::TEXT } else { 0 };
            let mut first = if before { 0 } else { data_flags::FIRST };
            for _ in 0..=session.credit.available() / (16 * 1024) {
                encode_data(id, flags | first, &piece, &mut self.out);
                first = 0;
            }
            self.is_torn = true;
        }
        if net.fault(Fault::HostileGarbage) {
            let mut bytes = [0; 64];
            net.random.fill(&mut bytes);
            bytes[3] = 0xee;
            self.out.extend_from_slice(&bytes);
            self.is_torn = true;
        }
        if net.fault(Fault::BackendTorn) {
            let header =
                FrameHeader { length: 8, kind: Kind::Ping, flags: 0, session: SessionId::LINK };
            let cut = 1 + net.random.below(11) as usize;
            self.out.extend_from_slice(&header.format()[..cut]);
            (self.is_torn, self.end_after_flush) = (true, true);
        }
    }
}

impl Session {
    fn take_message(&mut self, net: &mut Net, plan: &BackendPlan) -> Result<(), String> {
        let message = std::mem::take(&mut self.message);
        let (series, author, number) =
            messages::parse(&message).ok_or("a message with a wrong byte")?;
        if series != Series::Echo || Some(author) != self.author {
            return Err(format!("a message of {author:?} in the session of {:?}", self.author));
        }
        if number != self.expected {
            return Err(format!("message {number} where {} was due", self.expected));
        }
        self.expected += 1;
        net.check.messages_up += 1;
        if self.close_sent {
            return Ok(());
        }
        let delay = net.random.below(plan.echo_delay + 1);
        let before = self.outgoing.back().map_or(0, |last| last.due);
        let due = before.max(net.now + delay);
        self.outgoing.push_back(Outgoing { due, text: self.text, bytes: message, done: 0 });
        if net.random.chance(plan.push_rate, 100) {
            let size = net.random.below(300) as usize;
            let bytes = messages::build(Series::Push, author, self.pushed, size);
            self.pushed += 1;
            self.outgoing.push_back(Outgoing { due, text: true, bytes, done: 0 });
        }
        Ok(())
    }
}

/// A revocation, for a while, that meets this client, and perhaps others.
pub fn revocation(net: &mut Net, author: Author) -> Revocation {
    let subject = author.subject();
    let now = net.wall_millis();
    let before = Some(UnixTime::from_millis(now - net.random.below(2 * 5_000_000)));
    let target = match net.random.below(6) {
        0..=2 => Target::new(Some(&subject), None, None),
        3 => Target::new(Some(&subject), None, before),
        4 => Target::new(None, Some(&format!("t-{subject}")), None),
        _ => Target::new(None, None, before),
    };
    let lapses = UnixTime::from_millis(now + net.random.below(3000));
    Revocation { target: target.expect("names are there"), lapses }
}

/// A user who never connected.
fn mallory() -> Claims {
    Claims { subject: "mallory".into(), ..Claims::default() }
}
