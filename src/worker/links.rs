//! The worker's links: connecting, sessions, what comes from backends and goes to them.

use crate::base::laps::Laps;
use crate::base::random::Random;
use crate::base::slab::Key;
use crate::base::time::Instant;
use crate::base::wheel::Wheel;
use crate::connection::session::Fragment;
use crate::connection::upstream::link::{Due, Event, Failure, Identity, Link, OpenError};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::link::{Close, HANDSHAKE_FRAME_MAX, LinkReader, Reject, SessionId};
use crate::ring::{
    BufferGroup, EndpointAddress, Failure as RingFailure, Op, OpKey, OpKind, Outcome, Owner,
    ReceivedBuffer, Ring,
};
use crate::settings::{Balance, Deadlines, Settings};

use super::mailbox::Report;
use super::sockets::{Flush, Pipe, PipeEvent};
use super::{Core, WHEEL_TICK, Worker, WorkerOptions};

/// Links that one turn looks at when all are concerned, or acts on when their deadlines come.
const LINKS_PER_TURN: u32 = 64;

/// What a sweep over the links does to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkDuty {
    /// Its deadline may be another one.
    Deadlines,
    /// A drain has begun: its backend is told.
    GoAway,
    /// It is ended.
    End,
}

const LINK_DUTIES: usize = LinkDuty::End as usize + 1;

/// One endpoint of one backend, and the link to it.
pub(super) struct LinkEntry {
    pub(super) link: Link,
    reader: LinkReader,
    backend: u16,
    endpoint: u16,
    /// Which connection attempt this is; completions of earlier ones are stale.
    generation: u32,
    pipe: Option<Pipe>,
    connecting: bool,
    /// The cancellation of a connect is in flight. The connect may be quicker, so that there is
    /// a socket when it completes.
    cancelling: bool,
    /// The sweep has not come by all clients of a connection that was lost.
    lost: bool,
    /// It is in the table's `dirty`.
    dirty: bool,
    /// How it is counted in the table.
    counted: Counted,
}

/// A link's part of the table's sums.
#[derive(Clone, Copy, Default)]
struct Counted {
    ready: bool,
    busy: bool,
    unsent: usize,
}

impl LinkEntry {
    /// Whether an earlier connection still has operations in flight.
    fn is_busy(&self) -> bool {
        self.connecting || self.cancelling || self.pipe.is_some()
    }

    /// Whether there is something to wait for before it may be connected again.
    fn must_wait(&self) -> bool {
        self.is_busy() || self.lost
    }

    fn owner(&self, index: usize) -> Owner {
        Owner::Upstream(Key { slot: index as u32, generation: self.generation })
    }
}

/// The links of one backend: a stretch of the table, one for each endpoint.
struct Group {
    first: usize,
    count: usize,
    /// Where round robin goes on.
    next: usize,
}

/// All links of a worker, in the order of the settings.
///
/// Invariant: whatever happens to a link marks it as dirty, and a dirty link's output, deadline
/// and part of the sums are looked at at the end of the turn. So no turn looks at all of them.
pub(super) struct LinkTable {
    entries: Vec<LinkEntry>,
    groups: Vec<Group>,
    dirty: Vec<u16>,
    wheel: Wheel,
    laps: Laps<LINK_DUTIES>,
    /// No link is connected any more.
    draining: bool,
    /// All links were ended.
    ended: bool,
    ready: usize,
    busy: usize,
    unsent: usize,
}

impl LinkTable {
    pub(super) fn new(
        settings: &Settings,
        options: &WorkerOptions,
        now: Instant,
        random: &mut Random,
    ) -> Self {
        let mut entries = Vec::new();
        let mut groups = Vec::new();
        for (backend, backend_settings) in settings.backends.iter().enumerate() {
            let count = backend_settings.endpoints.len();
            // Workers begin round robin at different endpoints.
            let next = random.below(count.max(1) as u64) as usize;
            groups.push(Group { first: entries.len(), count, next });
            for endpoint in 0..count {
                let identity = Identity {
                    instance: options.instance,
                    epoch: options.epoch,
                    worker: options.index,
                    link: entries.len() as u16,
                };
                let bits = options.generation_bits.min(24);
                entries.push(LinkEntry {
                    link: Link::new(identity, bits, &settings.limits, now),
                    reader: LinkReader::new(HANDSHAKE_FRAME_MAX),
                    backend: backend as u16,
                    endpoint: endpoint as u16,
                    generation: 0,
                    pipe: None,
                    connecting: false,
                    cancelling: false,
                    lost: false,
                    dirty: false,
                    counted: Counted::default(),
                });
            }
        }
        let mut table = LinkTable {
            entries,
            groups,
            dirty: Vec::new(),
            wheel: Wheel::new(WHEEL_TICK, now),
            laps: Laps::default(),
            draining: false,
            ended: false,
            ready: 0,
            busy: 0,
            unsent: 0,
        };
        table.deadlines_changed();
        table
    }

    pub(super) fn deadlines_changed(&mut self) {
        self.laps.begin(LinkDuty::Deadlines as usize);
    }

    /// Whether a sweep over the links is under way.
    pub(super) fn is_swept(&self) -> bool {
        self.laps.is_any_under_way()
    }

    /// Whether the sessions of a link are those of a connection that was lost.
    pub(super) fn is_lost(&self, link: u16) -> bool {
        self.entries[usize::from(link)].lost
    }

    /// No client names the sessions of a lost connection any more.
    pub(super) fn forget_sessions(&mut self, link: u16) {
        let entry = self.at(usize::from(link));
        entry.lost = false;
        entry.link.forget_sessions();
    }

    /// A link to which something is about to happen.
    fn at(&mut self, index: usize) -> &mut LinkEntry {
        let entry = &mut self.entries[index];
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(index as u16);
        }
        entry
    }

    /// Brings timer and sums in line with what has become of a link.
    fn reconcile(&mut self, index: usize, deadlines: &Deadlines) {
        let entry = &mut self.entries[index];
        let now = Counted {
            ready: entry.link.is_ready(),
            busy: entry.is_busy(),
            unsent: entry.link.unsent(),
        };
        let before = std::mem::replace(&mut entry.counted, now);
        self.ready = self.ready + usize::from(now.ready) - usize::from(before.ready);
        self.busy = self.busy + usize::from(now.busy) - usize::from(before.busy);
        self.unsent = self.unsent + now.unsent - before.unsent;
        if entry.link.is_down() && (entry.must_wait() || self.draining) {
            self.wheel.cancel(index as u32);
        } else {
            self.wheel.schedule(index as u32, entry.link.next_deadline(deadlines));
        }
    }

    /// The ring's endpoint table: number and address of every link.
    pub(super) fn addresses(&self, settings: &Settings) -> Vec<(u16, EndpointAddress)> {
        let address = |entry: &LinkEntry| {
            settings.backends[usize::from(entry.backend)].endpoints[usize::from(entry.endpoint)]
                .clone()
        };
        self.entries.iter().enumerate().map(|(i, entry)| (i as u16, address(entry))).collect()
    }

    pub(super) fn entry(&mut self, link: u16) -> &mut LinkEntry {
        self.at(usize::from(link))
    }

    pub(super) fn data(&mut self, link: u16, id: SessionId, fragment: &Fragment<'_>) {
        self.entry(link).link.data(id, fragment);
    }

    pub(super) fn delivered(&mut self, link: u16, id: SessionId, cost: u32) {
        self.entry(link).link.delivered(id, cost);
    }

    pub(super) fn close(&mut self, link: u16, id: SessionId, close: &Close<'_>) {
        self.entry(link).link.close(id, close);
    }

    /// When [`Core::handle_link_deadlines`] has work.
    pub(super) fn next_deadline(&self) -> Instant {
        self.wheel.next_expiry().unwrap_or(Instant::NEVER)
    }

    /// Whether no link has a connection, or operations in flight.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.busy == 0 && self.dirty.is_empty() && !self.is_swept()
    }

    /// Index of the backend that a link goes to.
    pub(super) fn backend(&self, index: usize) -> usize {
        usize::from(self.entries[index].backend)
    }

    /// Whether the backend at the other end has proved that it has our key.
    pub(super) fn proved_key(&self, index: usize) -> bool {
        self.entries[index].link.proved_key()
    }

    /// Bytes that wait to be sent to backends.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    pub(super) fn ready_and_down(&self) -> (u64, u64) {
        (self.ready as u64, (self.entries.len() - self.ready) as u64)
    }

    /// Chooses a link for a new session of `backend`.
    fn choose(&mut self, backend: u16, balance: Balance) -> Option<u16> {
        self.choose_among(backend, balance, Link::takes_sessions)
    }

    /// Chooses a link for a question to `backend`.
    pub(super) fn choose_to_ask(&mut self, backend: u16, balance: Balance) -> Option<u16> {
        self.choose_among(backend, balance, Link::takes_questions)
    }

    fn choose_among(
        &mut self,
        backend: u16,
        balance: Balance,
        takes: impl Fn(&Link) -> bool,
    ) -> Option<u16> {
        let group = &mut self.groups[usize::from(backend)];
        let links = &self.entries[group.first..group.first + group.count];
        let order = (0..group.count).map(|step| (group.next + step) % group.count);
        let able = order.filter(|index| takes(&links[*index].link));
        let chosen = match balance {
            Balance::RoundRobin => able.into_iter().next(),
            Balance::LeastSessions => able.min_by_key(|index| links[*index].link.open_sessions()),
        }?;
        group.next = (chosen + 1) % group.count;
        Some((group.first + chosen) as u16)
    }
}

impl Core {
    /// Gives an authenticated client a session, or tells it that no backend can take it.
    pub(super) fn open_session(&mut self, owner: Key, backend: u16) {
        let balance = self.env.settings.backends[usize::from(backend)].balance;
        let chosen = if self.drain.is_some() { None } else { self.links.choose(backend, balance) };
        self.output.request.set_connection(self.connection_number(owner));
        let opened = chosen.ok_or(Cause::BackendUnavailable).and_then(|link| {
            let id = self.links.entry(link).link.open(owner, &self.output.request);
            Ok((link, id.map_err(refusal)?))
        });
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        connection.session = opened.ok();
        if let Ok((link, _)) = opened {
            connection.client.session_opened(self.links.entry(link).link.message_max());
            self.env.counters.increment(Metric::SessionsOpened);
            self.keep_requested_subject(owner);
            self.output.answers.append(&mut self.output.connect_ack);
            self.send_answers(owner);
        } else {
            self.output.connect_ack.clear();
            self.output.rest.clear();
            let cause = match opened {
                Err(cause) if self.drain.is_none() => cause,
                _ => Cause::GoingAway,
            };
            connection.client.refuse(cause, &self.env.context(), &mut self.output);
            self.send_answers(owner);
        }
    }

    /// Whether any link's deadline was due.
    pub(super) fn handle_link_deadlines(&mut self) -> bool {
        if self.links.next_deadline() > self.env.now.instant {
            return false;
        }
        let mut fired = std::mem::take(&mut self.fired);
        self.links.wheel.expire(self.env.now.instant, LINKS_PER_TURN as usize, &mut fired);
        for index in fired.drain(..).map(|slot| slot as usize) {
            let entry = self.links.at(index);
            if entry.link.is_down() && (entry.must_wait() || self.drain.is_some()) {
                continue;
            }
            match entry.link.handle_deadline(self.env.now.instant, &self.env.settings.deadlines) {
                Due::Nothing => {}
                Due::Fail(failure) => self.fail_link(index, &failure),
                Due::Connect => {
                    entry.generation = (entry.generation + 1) & 0x00ff_ffff;
                    entry.connecting = true;
                    let key = OpKey::new(OpKind::Connect, entry.owner(index));
                    self.ops.push((key, Op::Connect { endpoint: index as u16 }));
                }
            }
        }
        self.fired = fired;
        true
    }

    /// Gives a link up: the sweep has its clients told to come again, and it is tried again after
    /// that.
    pub(super) fn fail_link(&mut self, index: usize, failure: &Failure) {
        let now = self.env.now.instant;
        let entry = self.links.at(index);
        if entry.link.is_down() {
            return;
        }
        let failure = &entry.link.cause_of(failure);
        let is_failure = *failure != Failure::Drained;
        self.env.counters.add(Metric::LinkFailures, u64::from(is_failure));
        if matches!(failure, Failure::Protocol(_)) {
            self.env.counters.increment(Metric::LinkViolations);
        }
        entry.link.lost(now, &self.env.settings.deadlines, self.random.number() as u32);
        entry.reader = LinkReader::new(HANDSHAKE_FRAME_MAX);
        let owner = entry.owner(index);
        match &mut entry.pipe {
            Some(pipe) => {
                pipe.end(false);
                pipe.reconcile(owner, &mut self.ops);
            }
            None if entry.connecting => {
                entry.cancelling = true;
                let target = OpKey::new(OpKind::Connect, owner);
                self.ops.push((OpKey::new(OpKind::Cancel, owner), Op::Cancel { target }));
            }
            None => {}
        }
        let (backend, endpoint) = (entry.backend, entry.endpoint);
        if is_failure {
            let reason = failure.to_string();
            self.mailbox.report(Report::LinkDown { backend, endpoint, reason });
        }
        let entry = self.links.at(index);
        if entry.link.open_sessions() == 0 {
            entry.link.forget_sessions();
        } else {
            entry.lost = true;
            self.sweep.begin_lost(index as u16);
        }
    }

    fn link_connected(&mut self, index: usize, socket: crate::ring::Socket) {
        let mut nonce = [0; 32];
        self.random.fill(&mut nonce);
        let entry = self.links.at(index);
        let mut pipe = Pipe::new(socket, BufferGroup::Link);
        if entry.link.is_down() {
            // It was given up while it was being connected.
            pipe.end(true);
        } else {
            let secret = &self.env.settings.backends[usize::from(entry.backend)].secret;
            entry.link.connected(nonce, secret.is_some(), &self.env.settings.limits);
        }
        pipe.reconcile(entry.owner(index), &mut self.ops);
        entry.pipe = Some(pipe);
    }

    /// Takes bytes from a backend.
    fn link_input(&mut self, index: usize, mut input: &[u8]) {
        // Events borrow from the reader, so it leaves the table while they are acted on.
        let fresh = LinkReader::new(HANDSHAKE_FRAME_MAX);
        let mut reader = std::mem::replace(&mut self.links.at(index).reader, fresh);
        let result = loop {
            let entry = self.links.at(index);
            if entry.link.is_down() {
                break Ok(());
            }
            let secret = self.env.settings.backends[usize::from(entry.backend)].secret.as_ref();
            let now = self.env.now.instant;
            match entry.link.receive(&mut reader, &mut input, now, secret, &self.env.counters) {
                Ok(None) => break Ok(()),
                Ok(Some(Event::Ready)) => {
                    let frame_max = entry.link.frame_max();
                    reader.set_frame_max(frame_max);
                    self.link_ready(index);
                }
                Ok(Some(event)) => self.link_event(index, event),
                Err(failure) => break Err(failure),
            }
        };
        let entry = self.links.at(index);
        match result {
            Ok(()) if entry.link.has_gone_away() => self.fail_link(index, &Failure::GoneAway),
            Ok(()) if entry.link.is_down() => {}
            Ok(()) => entry.reader = reader,
            Err(failure) => self.fail_link(index, &failure),
        }
        self.settle_touched();
    }

    fn link_ready(&mut self, index: usize) {
        self.env.counters.increment(Metric::LinkConnects);
        let LinkEntry { backend, endpoint, .. } = self.links.entries[index];
        self.mailbox.report(Report::LinkReady { backend, endpoint });
    }

    fn link_event(&mut self, index: usize, event: Event<'_>) {
        match event {
            Event::Data { client, fragment, cost } => self.deliver(client, &fragment, cost),
            Event::InvalidText { client } => {
                let Some(connection) = self.connections.entry_mut(client) else { return };
                let ctx = self.env.context();
                connection.client.close(Cause::InvalidUtf8, &ctx, &mut self.output);
                self.send_answers(client);
                self.touch(client);
            }
            Event::Closed { client, code, reason } => {
                let Some(connection) = self.connections.entry_mut(client) else { return };
                connection.session = None;
                let code = if code == 0 { 1000 } else { code };
                let ctx = self.env.context();
                connection.client.close_by_backend(code, reason, &ctx, &mut self.output);
                self.send_answers(client);
                self.touch(client);
            }
            Event::Expire { client, expires } => {
                let Some(connection) = self.connections.entry_mut(client) else { return };
                self.env.counters.increment(Metric::ExpirySet);
                connection.client.set_expiry(expires, &self.env.context());
                self.touch(client);
            }
            Event::Revoke(revocation) => self.revoke(index, revocation),
            Event::Accepted { client, identity } => {
                let backend = self.links.entries[index].backend;
                self.accepted_by_backend(client, backend, &identity.0);
            }
            Event::Rejected { client, reject } => self.rejected_by_backend(client, &reject),
            Event::Declined { client } => {
                self.rejected_by_backend(client, &Reject::new(Cause::BackendUnavailable));
            }
            Event::SessionCredit { client } => self.resume(client),
            Event::LinkCredit => {
                self.links.at(index).link.take_waiting(&mut self.woken);
                self.resume_woken();
            }
            Event::Ready | Event::Routine => {}
        }
    }

    /// Goes on with the clients that waited for room or credit on a link.
    fn resume_woken(&mut self) {
        let mut woken = std::mem::take(&mut self.woken);
        for client in woken.drain(..) {
            self.resume(client);
        }
        self.woken = woken;
    }

    /// Queues a piece of a backend's message for its client.
    fn deliver(&mut self, client: Key, fragment: &Fragment<'_>, cost: u32) {
        let Some(connection) = self.connections.entry_mut(client) else { return };
        let Fragment { kind, first, last, bytes } = *fragment;
        let Some(header) = connection.client.data_header(kind, first, last, bytes.len()) else {
            return;
        };
        connection.owed += cost;
        self.env.counters.add(Metric::BytesToClients, bytes.len() as u64);
        self.env.counters.add(Metric::MessagesToClients, u64::from(last));
        self.send_plaintext(client, &[header.as_slice(), bytes]);
        self.touch(client);
    }

    /// Settles every connection that a link's input concerned, each once.
    fn settle_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for client in touched.drain(..) {
            self.settle(client);
        }
        self.touched = touched;
    }

    fn link_event_of_socket(&mut self, index: usize, event: PipeEvent) {
        match event {
            PipeEvent::Received(_) => unreachable!("the worker has the ring, and so the bytes"),
            PipeEvent::Sent => {
                let now = self.env.now.instant;
                self.links.at(index).link.send_progressed(now);
            }
            PipeEvent::Finished | PipeEvent::Broken => {
                self.fail_link(index, &Failure::Disconnected);
            }
            // Link buffers are given back within the tick, so trying again now is no loop.
            PipeEvent::Starved => {
                self.env.counters.increment(Metric::ReceiveStarved);
                if let Some(pipe) = &mut self.links.at(index).pipe {
                    pipe.feed();
                }
            }
            PipeEvent::Routine => {}
        }
        self.settle_link(index);
    }

    fn settle_link(&mut self, index: usize) {
        let entry = self.links.at(index);
        let owner = entry.owner(index);
        if let Some(pipe) = &mut entry.pipe {
            pipe.reconcile(owner, &mut self.ops);
            if pipe.is_over() {
                entry.pipe = None;
            }
        }
    }

    /// Tells every backend that this gateway drains.
    pub(super) fn announce_drain(&mut self) {
        self.links.draining = true;
        self.links.laps.begin(LinkDuty::GoAway as usize);
    }

    /// Ends every link for good.
    pub(super) fn end_links(&mut self) {
        if std::mem::replace(&mut self.links.ended, true) {
            return;
        }
        self.links.laps.begin(LinkDuty::End as usize);
    }

    /// Does a turn's part of a sweep over the links.
    pub(super) fn sweep_links(&mut self) {
        let most = LINKS_PER_TURN.min(self.options.sweep_slots);
        let links = self.links.entries.len() as u32;
        let Some((part, duties)) = self.links.laps.advance(links, most) else { return };
        for index in part.map(|link| link as usize) {
            // Looked at again, its deadline and the sums are brought in line.
            let entry = self.links.at(index);
            if duties.has(LinkDuty::GoAway as usize) {
                entry.link.go_away("the gateway drains");
            }
            if duties.has(LinkDuty::End as usize) {
                self.fail_link(index, &Failure::Drained);
            }
        }
    }
}

impl<R: Ring> Worker<R> {
    pub(super) fn complete_link(&mut self, kind: OpKind, owner: Key, outcome: Outcome, more: bool) {
        let index = owner.slot as usize;
        let current = self.core.links.entries.get(index).map(|entry| entry.generation);
        if current != Some(owner.generation) {
            return self.complete_stale(outcome);
        }
        match outcome {
            Outcome::Connected(socket) => {
                self.core.links.at(index).connecting = false;
                self.core.link_connected(index, socket);
            }
            Outcome::Failed(failure) if kind == OpKind::Connect => {
                self.core.links.at(index).connecting = false;
                self.core.fail_link(index, &Failure::Connect(describe(failure)));
            }
            // A socket that comes all the same is closed, which cancels nothing.
            Outcome::CancelDone if self.core.links.entries[index].cancelling => {
                self.core.links.at(index).cancelling = false;
            }
            outcome => self.complete_link_socket(index, outcome, more),
        }
    }

    fn complete_link_socket(&mut self, index: usize, outcome: Outcome, more: bool) {
        let core = &mut self.core;
        let entry = core.links.at(index);
        let owner = entry.owner(index);
        let Some(pipe) = &mut entry.pipe else { return self.complete_stale(outcome) };
        match pipe.complete(owner, outcome, more, &mut self.ring, &mut core.ops) {
            PipeEvent::Received(buffer) => {
                self.link_buffer(index, buffer);
                self.core.settle_link(index);
            }
            event => core.link_event_of_socket(index, event),
        }
    }

    fn link_buffer(&mut self, index: usize, buffer: ReceivedBuffer) {
        if !self.core.links.entries[index].link.is_down() {
            self.core.link_input(index, self.ring.received(&buffer));
        }
        self.ring.give_back(buffer);
    }

    /// Fills one send for every link to which something happened, that has output and no send in
    /// flight, and brings what else depends on it in line.
    pub(super) fn flush_links(&mut self) {
        let mut dirty = std::mem::take(&mut self.core.links.dirty);
        for link in dirty.drain(..) {
            let index = usize::from(link);
            self.core.links.entries[index].dirty = false;
            self.flush_link(index);
            self.core.links.reconcile(index, &self.core.env.settings.deadlines);
        }
        let since = std::mem::replace(&mut self.core.links.dirty, dirty);
        self.core.links.dirty.extend(since);
        self.core.resume_woken();
    }

    fn flush_link(&mut self, index: usize) {
        let Core { links, ops, env, woken, .. } = &mut self.core;
        let entry = &mut links.entries[index];
        let owner = entry.owner(index);
        let LinkEntry { pipe: Some(pipe), link, .. } = entry else { return };
        if link.unsent() == 0 {
            return;
        }
        match pipe.flush(owner, &mut self.ring, ops, |bytes| link.copy_output(bytes)) {
            Flush::Sending(_) if link.may_wake() => link.take_waiting(woken),
            Flush::Sending(_) | Flush::Busy => {}
            Flush::NoSlot => {
                // It stays dirty until slots come back.
                env.counters.increment(Metric::SendStarved);
                links.at(index);
            }
        }
    }
}

/// What a client is told whose session cannot be opened. One whose request is too large for the
/// backend would find it no smaller another time.
pub(super) fn refusal(error: OpenError) -> Cause {
    match error {
        OpenError::NotReading => Cause::BackendUnavailable,
        OpenError::TooLarge => Cause::TooLarge,
    }
}

fn describe(failure: RingFailure) -> String {
    match failure {
        RingFailure::Errno(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        RingFailure::Disconnected => "refused or reset; is the backend listening there?".into(),
        RingFailure::Cancelled => "given up".into(),
        RingFailure::Exhausted => "out of descriptors or memory".into(),
        RingFailure::NoBuffers | RingFailure::NotFound => format!("{failure:?}"),
    }
}
