//! Fake backends: the other end of a link, or WebSocket servers. They keep strict account of what the gateway sends,
//! and on some seeds send what no backend may.

use std::collections::{BTreeMap, BTreeSet};

use super::backend_link::{BackendPlan, Link, Stage};
use super::backend_server::Served;
use super::check::ConnId;
use super::faults::Fault;
use super::net::{Event, MILLIS, Net, Party, SECONDS, Side};
use crate::base::secret::Secret;
use crate::protocol::link::{
    Challenge, Frame, GoAway, Hello, Kind, LinkReader, Proof, Ready, SendCredit, features,
};

/// One backend process.
#[derive(Debug)]
pub struct Backend {
    index: usize,
    /// How it behaves.
    pub plan: BackendPlan,
    links: BTreeMap<ConnId, Link>,
    /// Connections of a WebSocket server: it has these instead of links.
    served: BTreeMap<ConnId, Served>,
    down_until: u64,
    stalled_until: u64,
    ends_links_at: Option<u64>,
    /// When it is to be woken: once for each time, or wakes would breed wakes.
    wakes: BTreeSet<u64>,
    echoes: u32,
}

impl Backend {
    /// A backend that is up.
    pub fn new(index: usize, plan: BackendPlan) -> Self {
        Backend {
            index,
            plan,
            links: BTreeMap::new(),
            served: BTreeMap::new(),
            down_until: 0,
            stalled_until: 0,
            ends_links_at: None,
            wakes: BTreeSet::new(),
            echoes: 0,
        }
    }

    /// Whether a connect finds it.
    pub fn is_listening(&self, now: u64) -> bool {
        now >= self.down_until && self.ends_links_at.is_none()
    }

    /// Number of open sessions on all links, and of connections for one client each.
    pub fn sessions(&self) -> usize {
        self.links.values().map(Link::sessions).sum::<usize>() + self.served.len()
    }

    /// Nothing goes wrong any more.
    pub fn recover(&mut self, net: &mut Net) {
        self.down_until = self.down_until.min(net.now);
        self.stalled_until = 0;
        self.served.retain(|conn, served| {
            if served.is_mute() {
                net.close(*conn, Side::Remote, false);
            }
            !served.is_mute()
        });
        self.wake(net, net.now);
    }

    /// A link's connection has news, or a timer fired.
    pub fn step(&mut self, net: &mut Net, conn: Option<ConnId>) {
        self.wakes = self.wakes.split_off(&(net.now + 1));
        if let Some(conn) = conn
            && self.plan.serves
        {
            self.admit(net, conn);
        } else if let Some(conn) = conn {
            self.links.entry(conn).or_insert_with(|| Link::new(&self.plan.limits));
        }
        if net.now < self.stalled_until {
            return;
        }
        if self.ends_links_at.is_some_and(|at| net.now >= at) {
            self.ends_links_at = None;
            self.end_all(net);
        }
        let conns: Vec<ConnId> = match conn {
            Some(conn) => vec![conn],
            None => self.links.keys().chain(self.served.keys()).copied().collect(),
        };
        for conn in conns {
            match self.plan.serves {
                true => self.step_served(net, conn),
                false => self.step_link(net, conn),
            }
        }
    }

    /// A connection of a WebSocket server has news, perhaps its first.
    fn admit(&mut self, net: &mut Net, conn: ConnId) {
        if net.is_closed(conn, Side::Remote) {
            return;
        }
        self.served.entry(conn).or_insert_with(|| Served::new(net, conn));
        if net.now < self.stalled_until {
            net.trouble(conn);
        }
    }

    fn step_served(&mut self, net: &mut Net, conn: ConnId) {
        let Some(mut served) = self.served.remove(&conn) else { return };
        match served.step(net, &self.plan) {
            Ok(Some(at)) => self.wake(net, at),
            Ok(None) => {}
            Err(why) => net.check.fail(format!("the gateway's end of a server's: {why}")),
        }
        match served.is_over(net) {
            Some(reset) => {
                net.note("server over", self.index as u64, conn as u64);
                net.close(conn, Side::Remote, reset);
            }
            None => {
                self.served.insert(conn, served);
            }
        }
    }

    /// Draws misfortunes; called now and then.
    pub fn mischief(&mut self, net: &mut Net) {
        if self.links.is_empty() && self.served.is_empty() || self.ends_links_at.is_some() {
            return;
        }
        if net.fault(Fault::BackendRestart) {
            let grace = if net.random.chance(1, 2) { net.random.below(500 * MILLIS) } else { 0 };
            if grace > 0 {
                for link in self.links.values_mut().filter(|link| link.stage == Stage::Ready) {
                    GoAway { reason: "restarting" }.encode(&mut link.out);
                }
            }
            self.ends_links_at = Some(net.now + grace);
            self.wake(net, net.now + grace);
        }
        if net.fault(Fault::BackendStalled) {
            self.stalled_until = net.now + net.random.below(2 * SECONDS);
            self.wake(net, self.stalled_until);
            self.served.keys().for_each(|conn| net.trouble(*conn));
        }
        if self.plan.serves {
            return self.mischief_served(net);
        }
        let Some((conn, link)) = self.links.iter_mut().next() else { return };
        if link.stage == Stage::Ready && !link.is_torn {
            let conn = *conn;
            link.mischief(net, self.plan.speaks_of_the_dead);
            self.step(net, None);
            net.news.push_back((conn, Side::Remote));
        }
    }

    fn mischief_served(&mut self, net: &mut Net) {
        let chosen: Vec<ConnId> = self.served.keys().copied().collect();
        if let Some(conn) = chosen.get(net.random.below(chosen.len() as u64) as usize)
            && let Some(served) = self.served.get_mut(conn)
        {
            served.mischief(net);
            net.news.push_back((*conn, Side::Remote));
        }
    }

    fn wake(&mut self, net: &mut Net, at: u64) {
        if self.wakes.insert(at) {
            net.schedule(at, Event::Wake(Party::Backend(self.index)));
        }
    }

    fn end_all(&mut self, net: &mut Net) {
        let reset = net.random.chance(1, 2);
        for conn in std::mem::take(&mut self.links).into_keys() {
            net.close(conn, Side::Remote, reset);
        }
        for conn in std::mem::take(&mut self.served).into_keys() {
            net.trouble(conn);
            net.close(conn, Side::Remote, reset);
        }
        self.down_until = net.now + net.random.below(2 * SECONDS);
    }

    fn step_link(&mut self, net: &mut Net, conn: ConnId) {
        if net.is_closed(conn, Side::Remote) {
            self.links.remove(&conn);
            return;
        }
        let Some(mut link) = self.links.remove(&conn) else { return };
        let mut bytes = Vec::new();
        net.read_vec(conn, Side::Remote, &mut bytes, usize::MAX);
        if let Err(why) = self.take_bytes(net, &mut link, &bytes) {
            net.check.fail(format!("the gateway broke the link protocol: {why}"));
        }
        let decided = link.decide_due(net, &self.plan);
        let wake = link.send_due(net, self.plan.duplicates, &mut self.echoes);
        for at in decided.into_iter().chain(wake) {
            self.wake(net, at);
        }
        let alive = link.flush(net, conn);
        if net.is_reset(conn, Side::Remote) || net.ended(conn, Side::Remote) || !alive {
            net.note("link over", self.index as u64, conn as u64);
            net.close(conn, Side::Remote, link.is_torn);
        } else {
            self.links.insert(conn, link);
        }
    }

    fn take_bytes(&self, net: &mut Net, link: &mut Link, bytes: &[u8]) -> Result<(), String> {
        if link.is_torn {
            return Ok(());
        }
        let mut reader = std::mem::replace(&mut link.reader, LinkReader::new(0));
        let mut input = bytes;
        let result = loop {
            match reader.next(&mut input) {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    let stage = link.stage;
                    let taken = self.take_frame(net, link, &frame);
                    if let Err(why) = taken {
                        break Err(format!("{:?}: {why}", frame.header));
                    }
                    if stage != link.stage && link.stage == Stage::Ready {
                        reader.set_frame_max(self.plan.limits.frame_max);
                    }
                }
                Err(why) => break Err(why.to_string()),
            }
        };
        link.reader = reader;
        result
    }

    fn take_frame(&self, net: &mut Net, link: &mut Link, frame: &Frame) -> Result<(), String> {
        let key = self.plan.secret.clone().map(Secret::new);
        match (link.stage, frame.header.kind) {
            (Stage::Hello, Kind::Hello) => {
                let hello = Hello::decode(frame.payload).map_err(|why| why.to_string())?;
                link.theirs = hello.limits;
                link.hello = frame.payload.to_vec();
                let (mut instance, mut nonce) = ([0; 16], [0; 32]);
                net.random.fill(&mut instance);
                net.random.fill(&mut nonce);
                let (limits, proof) = (self.plan.limits, Proof::Absent);
                let known = features::VERDICTS | features::REAUTHENTICATION;
                let features = hello.features & known;
                let mut challenge =
                    Challenge { version: 1, features, instance, nonce, limits, proof };
                if let Some(key) = &key {
                    // The flag that says "with a proof" is part of what the proof covers.
                    challenge.proof = Proof::Hmac([0; 32]);
                    challenge.encode_payload(&mut link.challenge);
                    challenge.proof = Proof::of_backend(key, &link.hello, &link.challenge);
                    link.challenge.clear();
                }
                challenge.encode_payload(&mut link.challenge);
                challenge.encode(&mut link.out);
                link.stage = Stage::Proof;
            }
            (Stage::Proof, Kind::Proof) => {
                let proof = Proof::decode(frame.payload).map_err(|why| why.to_string())?;
                if !proof.verify_gateway(key.as_ref(), &link.hello, &link.challenge) {
                    return Err("wrong proof".into());
                }
                link.stage = Stage::Ready;
                link.credit = SendCredit::new(link.theirs.link_window);
                Ready.encode(&mut link.out);
            }
            (Stage::Ready, _) => link.take(net, &self.plan, frame)?,
            (_, Kind::Refused) => {}
            (stage, kind) => return Err(format!("{kind:?} in {stage:?}")),
        }
        Ok(())
    }
}
