//! The worker's links: connecting, sessions, what comes from backends and goes to them.

use std::sync::Arc;

use crate::base::laps::Laps;
use crate::base::random::Random;
use crate::base::slab::{Key, KeyedSlab};
use crate::base::wheel::Wheel;
use crate::connection::client::End;
use crate::connection::stage::ClosedBy;
use crate::connection::upstream::link::{Due, Event, Failure, Identity, Link, OpenError};
use crate::counters::{EndpointMetric, Metric, Row};
use crate::protocol::cause::Cause;
use crate::protocol::link::{Close, Closer, HANDSHAKE_FRAME_MAX, LinkReader, Reject, SessionId};
use crate::ring::{BufferGroup, Owner, Ring, Socket};

use super::clients::Connection;
use super::core::{Core, Environment, Parts};
use super::endpoint_plan::{LinkTarget, Standing};
use super::endpoints::Group;
use super::mailbox::Report;
use super::rows::LinkCount;
use super::sessions::{Session, reason_of};
use super::sockets::{Agenda, DialledSocket, Flush, PipeEvent};
use super::upstreams::{Upstream, upstream};
use super::{Worker, WorkerOptions};

/// Links that one turn looks at when all are concerned, or acts on when their deadlines come.
const LINKS_PER_TURN: u32 = 64;

/// What a sweep over the links does to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkDuty {
    /// Its deadline may be another one.
    Deadlines,
    /// A drain has begun: a GOAWAY goes to its backend.
    GoAway,
    /// It is ended.
    End,
}

const LINK_DUTIES: usize = LinkDuty::End as usize + 1;

/// One endpoint of one backend, and the link to it.
pub(super) struct LinkEntry {
    pub(super) link: Link,
    pub(super) target: Arc<LinkTarget>,
    pub(super) standing: Standing,
    reader: LinkReader,
    /// Where its socket is in the table of upstreams. Each connection attempt has another key.
    key: Key,
    /// The sweep has not come by all clients of a connection that was lost.
    lost: bool,
    /// In the agenda's list.
    dirty: bool,
    /// How it is counted in the table, and in its endpoint's row.
    counted: Counted,
    pub(super) row: Row<EndpointMetric>,
}

/// A link's part of the table's sums.
#[derive(Clone, Copy, Default)]
struct Counted {
    ready: bool,
    at_endpoint: LinkCount,
    busy: bool,
    unsent: usize,
}

impl LinkEntry {
    pub(super) fn new(
        link: Link,
        key: Key,
        target: Arc<LinkTarget>,
        row: Row<EndpointMetric>,
    ) -> Self {
        LinkEntry {
            link,
            target,
            standing: Standing::Free,
            reader: LinkReader::new(HANDSHAKE_FRAME_MAX),
            key,
            lost: false,
            dirty: false,
            counted: Counted::default(),
            row,
        }
    }

    /// Whether it is not connected, and not to be: something has to end before, or its endpoint
    /// is there no more.
    fn rests(&self, is_busy: bool) -> bool {
        self.link.is_down() && (is_busy || self.lost || !self.standing.is_listed())
    }

    /// Whether its endpoint was removed, and nothing is left of the connection.
    fn is_over(&self, is_busy: bool) -> bool {
        self.standing.is_ending() && self.link.is_down() && !is_busy && !self.lost
    }
}

/// All links of a worker, in slots that are used again.
///
/// Invariant: whatever happens to a link marks it as dirty, and a dirty link's output, deadline
/// and part of the sums are looked at at the end of the turn. So no turn looks at all of them.
pub(super) struct LinkTable {
    pub(super) entries: Vec<LinkEntry>,
    /// In the order of the settings' backends.
    pub(super) groups: Vec<Group>,
    /// Slots of no endpoint.
    pub(super) free: Vec<u16>,
    /// Slots whose address the ring has to get.
    pub(super) claimed: Vec<u16>,
    /// What all links say of this worker; `link` is each one's own.
    pub(super) identity: Identity,
    pub(super) generation_bits: u32,
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
    /// The links that the settings name, with an entry each in the table of upstreams.
    pub(super) fn new(
        env: &Environment,
        options: &WorkerOptions,
        random: &mut Random,
        upstreams: &mut KeyedSlab<Upstream>,
    ) -> Self {
        let identity = Identity {
            instance: options.instance,
            epoch: options.epoch,
            worker: options.index,
            link: 0,
        };
        let mut table = LinkTable {
            entries: Vec::new(),
            groups: Vec::new(),
            free: Vec::new(),
            claimed: Vec::new(),
            identity,
            generation_bits: options.generation_bits.min(24),
            laps: Laps::default(),
            draining: false,
            ended: false,
            ready: 0,
            busy: 0,
            unsent: 0,
        };
        table.adopt(env, random, upstreams);
        table
    }

    pub(super) fn deadlines_changed(&mut self) {
        self.laps.begin(LinkDuty::Deadlines as usize);
    }

    /// Tells every backend that this gateway drains.
    pub(super) fn announce_drain(&mut self) {
        self.draining = true;
        self.laps.begin(LinkDuty::GoAway as usize);
    }

    /// Ends every link for good.
    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.laps.begin(LinkDuty::End as usize);
        }
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
    pub(super) fn forget_sessions(&mut self, link: u16, agenda: &mut Agenda) {
        let entry = self.entry(link, agenda);
        entry.lost = false;
        entry.link.forget_sessions();
    }

    /// A link to which something is about to happen.
    pub(super) fn entry(&mut self, link: u16, agenda: &mut Agenda) -> &mut LinkEntry {
        let entry = &mut self.entries[usize::from(link)];
        agenda.mark_dirty(Owner::Upstream(entry.key), &mut entry.dirty);
        entry
    }

    /// Something happens to a link that its machine has no part in.
    pub(super) fn mark(&mut self, link: u16, agenda: &mut Agenda) {
        self.entry(link, agenda);
    }

    /// Brings timer and sums in line with what has become of a link.
    fn reconcile(
        &mut self,
        link: u16,
        socket: &DialledSocket,
        env: &Environment,
        wheel: &mut Wheel,
    ) {
        let entry = &mut self.entries[usize::from(link)];
        if entry.is_over(socket.is_busy()) {
            entry.standing = Standing::Free;
            self.free.push(link);
        }
        let is_free = entry.standing == Standing::Free;
        let now = Counted {
            ready: entry.link.is_ready(),
            at_endpoint: if is_free { LinkCount::default() } else { LinkCount::of(&entry.link) },
            busy: socket.is_busy(),
            unsent: entry.link.unsent(),
        };
        let before = std::mem::replace(&mut entry.counted, now);
        self.ready = self.ready + usize::from(now.ready) - usize::from(before.ready);
        self.busy = self.busy + usize::from(now.busy) - usize::from(before.busy);
        self.unsent = self.unsent + now.unsent - before.unsent;
        env.recount_link(entry.row, before.at_endpoint, now.at_endpoint);
        if entry.rests(now.busy) || (entry.link.is_down() && self.draining) {
            wheel.cancel(entry.key.slot);
        } else {
            wheel.schedule(entry.key.slot, entry.link.next_deadline(&env.settings.deadlines));
        }
    }

    /// Whether no link has a connection, or operations in flight, and none will have.
    pub(super) fn is_over(&self, agenda: &Agenda) -> bool {
        self.ended && self.busy == 0 && !agenda.is_any_dirty() && !self.is_swept()
    }

    /// Whether the backend at the other end has proved that it has our key.
    pub(super) fn proved_key(&self, link: u16) -> bool {
        self.entries[usize::from(link)].link.proved_key()
    }

    /// Bytes that wait to be sent to backends.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    pub(super) fn ready_and_down(&self) -> (u64, u64) {
        (self.ready as u64, (self.entries.len() - self.free.len() - self.ready) as u64)
    }
}

impl Parts {
    /// Gives an authenticated client a session, or tells it that no backend can take it.
    pub(super) fn open_session(&mut self, key: Key, connection: &mut Connection, backend: u16) {
        if !self.has_room_for(connection) {
            return self.refuse_session(connection, Cause::OverCapacity);
        }
        let draining = self.control.drain.is_some();
        let balance = self.env.settings.backends[usize::from(backend)].balance;
        let chosen = if draining { None } else { self.links.choose(backend, balance) };
        let number = self.connection_number(key, connection);
        let output = &mut self.scratch.output;
        output.request.set_connection(number);
        let opened = chosen.ok_or(Cause::BackendUnavailable).and_then(|link| {
            let entry = self.links.entry(link, &mut self.agenda);
            let id = entry.link.open(key, &output.request).map_err(refusal)?;
            Ok((Session::Link { link, id }, entry.link.message_max()))
        });
        match opened {
            Ok((session, message_max)) => {
                connection.session = Some(session);
                if let Some(identity) = output.request.identity() {
                    self.control.keep_subject(&self.env.settings, key, identity.subject);
                }
                connection.client.session_opened(message_max);
                self.session_opened(connection);
            }
            Err(cause) => {
                let cause = if draining { Cause::GoingAway } else { cause };
                return self.refuse_session(connection, cause);
            }
        }
        self.send_answers(connection);
    }

    /// Tells a client that was let in that it gets no session.
    pub(super) fn refuse_session(&mut self, connection: &mut Connection, cause: Cause) {
        connection.session = None;
        let output = &mut self.scratch.output;
        output.connect_ack.clear();
        output.rest.clear();
        connection.client.refuse(cause, &self.env.context(), output);
        self.send_answers(connection);
    }

    /// Ends a client's session on a link.
    pub(super) fn end_link_session(&mut self, link: u16, id: SessionId, end: &End) {
        let Parts { links, agenda, scratch, .. } = self;
        let close = Close {
            by: match end.by {
                ClosedBy::Client => Closer::Client,
                ClosedBy::Gateway | ClosedBy::Backend => Closer::Gateway,
            },
            label: end.cause.label(),
            code: end.code.unwrap_or(0),
            reason: reason_of(&scratch.output, end),
        };
        links.entry(link, agenda).link.close(id, &close);
    }

    /// The most that a link's clients may send in one message.
    pub(super) fn link_message_max(&self, link: u16) -> u32 {
        self.links.entries[usize::from(link)].link.message_max()
    }
}

impl Core {
    /// A link's timer fired.
    pub(super) fn link_deadline(&mut self, link: u16) {
        let Parts { upstreams, links, agenda, env, control, .. } = &mut self.parts;
        let draining = links.draining;
        let entry = links.entry(link, agenda);
        let socket = &mut upstream(upstreams, entry.key).socket;
        if entry.rests(socket.is_busy()) || (entry.link.is_down() && draining) {
            return;
        }
        match entry.link.handle_deadline(env.now.instant, &env.settings.deadlines) {
            Due::Nothing => {}
            Due::Fail(failure) => self.fail_link(link, &failure),
            Due::Warn(warning) => {
                env.count_warning(entry.row, warning);
                let target = Arc::clone(&entry.target);
                control.mailbox.report(Report::LinkWarning { target, warning });
            }
            Due::Connect => {
                let Some(key) = upstreams.renew(entry.key) else {
                    unreachable!("{:?} names no upstream", entry.key)
                };
                entry.key = key;
                upstream(upstreams, key).socket.connect(key, link, &mut agenda.ops);
            }
        }
    }

    /// Gives a link up: the sweep has its clients told to come again, and it is tried again after
    /// that.
    pub(super) fn fail_link(&mut self, link: u16, failure: &Failure) {
        let Parts { upstreams, links, agenda, env, control, random, sweep, .. } = &mut self.parts;
        let entry = links.entry(link, agenda);
        if entry.link.is_down() {
            return;
        }
        let failure = &entry.link.cause_of(failure);
        let is_failure = *failure != Failure::Drained;
        env.counters.add(Metric::LinkFailures, u64::from(is_failure));
        env.counters.endpoints.add(entry.row, EndpointMetric::Failures, u64::from(is_failure));
        if matches!(failure, Failure::Protocol(_)) {
            env.counters.increment(Metric::LinkViolations);
        }
        entry.link.lost(env.now.instant, &env.settings.deadlines, random.number() as u32);
        entry.reader = LinkReader::new(HANDSHAKE_FRAME_MAX);
        if entry.link.open_sessions() == 0 {
            entry.link.forget_sessions();
        } else {
            entry.lost = true;
            sweep.begin_lost(link);
        }
        let target = Arc::clone(&entry.target);
        upstream(upstreams, entry.key).socket.end(false, entry.key, &mut agenda.ops);
        if is_failure {
            let reason = failure.to_string();
            control.mailbox.report(Report::LinkDown { target, reason });
        }
    }

    /// A link's socket is there.
    pub(super) fn link_connected(&mut self, key: Key, link: u16, socket: Socket) {
        let Parts { upstreams, links, agenda, env, random, .. } = &mut self.parts;
        let mut nonce = [0; 32];
        random.fill(&mut nonce);
        let pipe = upstream(upstreams, key).socket.connected(socket, BufferGroup::Link);
        let entry = links.entry(link, agenda);
        if entry.link.is_down() {
            // It was given up while it was being connected.
            pipe.end(true);
        } else {
            let secret = entry.standing.secret(&env.settings);
            entry.link.connected(nonce, secret.is_some(), &env.settings.limits);
        }
        pipe.reconcile(Owner::Upstream(key), &mut agenda.ops);
    }

    /// No socket came.
    pub(super) fn link_unconnected(&mut self, link: u16, why: &str) {
        let Parts { links, agenda, .. } = &mut self.parts;
        links.mark(link, agenda);
        self.fail_link(link, &Failure::Connect(why.into()));
    }

    /// Takes bytes from a backend.
    fn link_input(&mut self, link: u16, mut input: &[u8]) {
        let Parts { links, agenda, .. } = &mut self.parts;
        // Events borrow from the reader, so it leaves the table while they are acted on.
        let fresh = LinkReader::new(HANDSHAKE_FRAME_MAX);
        let mut reader = std::mem::replace(&mut links.entry(link, agenda).reader, fresh);
        let result = loop {
            let Parts { links, env, .. } = &mut self.parts;
            let entry = &mut links.entries[usize::from(link)];
            if entry.link.is_down() {
                break Ok(());
            }
            let LinkEntry { link: machine, standing, .. } = &mut *entry;
            let secret = standing.secret(&env.settings);
            let now = env.now.instant;
            match machine.receive(&mut reader, &mut input, now, secret, &env.counters) {
                Ok(None) => break Ok(()),
                Ok(Some(Event::Ready)) => {
                    let frame_max = entry.link.frame_max();
                    reader.set_frame_max(frame_max);
                    self.link_ready(link);
                }
                Ok(Some(event)) => self.act_on_link(link, event),
                Err(failure) => break Err(failure),
            }
        };
        let entry = &mut self.parts.links.entries[usize::from(link)];
        match result {
            Ok(()) if entry.link.has_gone_away() => self.fail_link(link, &Failure::GoneAway),
            Ok(()) if entry.has_left() => self.fail_link(link, &Failure::Drained),
            Ok(()) if entry.link.is_down() => {}
            Ok(()) => entry.reader = reader,
            Err(failure) => self.fail_link(link, &failure),
        }
        self.reconcile_marked();
    }

    fn link_ready(&mut self, link: u16) {
        let Parts { links, env, control, .. } = &mut self.parts;
        env.counters.increment(Metric::LinkConnects);
        let LinkEntry { target, row, .. } = &links.entries[usize::from(link)];
        env.counters.endpoints.increment(*row, EndpointMetric::Connects);
        control.mailbox.report(Report::LinkReady { target: Arc::clone(target) });
    }

    fn act_on_link(&mut self, link: u16, event: Event<'_>) {
        match event {
            Event::Data { client, fragment, cost } => {
                self.make_room(client, fragment.bytes.len());
                let (parts, connection) = self.session_client(client);
                parts.deliver(client, connection, &fragment, cost);
            }
            Event::InvalidText { client } => {
                let (parts, connection) = self.session_client(client);
                let ctx = parts.env.context();
                connection.client.close(Cause::InvalidUtf8, &ctx, &mut parts.scratch.output);
                parts.send_answers(connection);
                parts.mark_for_reconcile(client, connection);
            }
            Event::Closed { client, code, reason } => {
                let (parts, connection) = self.session_client(client);
                connection.session = None;
                let code = if code == 0 { 1000 } else { code };
                let ctx = parts.env.context();
                let output = &mut parts.scratch.output;
                connection.client.close_by_backend(Some(code), reason, &ctx, output);
                parts.send_answers(connection);
                parts.mark_for_reconcile(client, connection);
            }
            Event::Expire { client, expires } => {
                let (parts, connection) = self.session_client(client);
                parts.env.counters.increment(Metric::ExpirySet);
                connection.client.set_expiry(expires, &parts.env.context());
                parts.mark_for_reconcile(client, connection);
            }
            Event::Revoke(revocation) => self.revoke(link, revocation),
            Event::Accepted { client, identity } => {
                self.with_session_client(client, |parts, key, connection| {
                    parts.accepted_by_backend(key, connection, link, &identity.0);
                });
            }
            Event::Rejected { client, reject } => {
                self.with_session_client(client, |parts, key, connection| {
                    parts.rejected_by_backend(key, connection, &reject);
                });
            }
            Event::Declined { client } => {
                let reject = Reject::new(Cause::BackendUnavailable);
                self.with_session_client(client, |parts, key, connection| {
                    parts.rejected_by_backend(key, connection, &reject);
                });
            }
            Event::SessionCredit { client } => {
                self.with_session_client(client, Parts::take_backlog);
            }
            Event::LinkCredit => {
                let Parts { links, agenda, .. } = &mut self.parts;
                links.entries[usize::from(link)].link.take_waiting(&mut agenda.woken);
                self.resume_woken();
            }
            Event::Ready | Event::Routine => {}
        }
    }

    /// Does a turn's part of a sweep over the links.
    pub(super) fn sweep_links(&mut self) {
        let Parts { links, options, .. } = &mut self.parts;
        let most = LINKS_PER_TURN.min(options.sweep_slots);
        let count = links.entries.len() as u32;
        let Some((part, duties)) = links.laps.advance(count, most) else { return };
        for link in part.map(|link| link as u16) {
            let Parts { links, agenda, .. } = &mut self.parts;
            // Looked at again, its deadline and the sums are brought in line.
            let entry = links.entry(link, agenda);
            if duties.has(LinkDuty::GoAway as usize) && entry.backend().is_some() {
                entry.link.go_away("the gateway drains");
            }
            if duties.has(LinkDuty::End as usize) {
                self.fail_link(link, &Failure::Drained);
            }
        }
    }
}

impl<R: Ring> Worker<R> {
    /// Something happened to a link's socket.
    pub(super) fn link_event(&mut self, key: Key, link: u16, event: PipeEvent) {
        let parts = &mut self.core.parts;
        let entry = parts.links.entry(link, &mut parts.agenda);
        match event {
            PipeEvent::Received(buffer) => {
                if !entry.link.is_down() {
                    self.core.link_input(link, self.ring.received(&buffer));
                }
                self.ring.give_back(buffer);
            }
            PipeEvent::Sent => entry.link.send_progressed(parts.env.now.instant),
            PipeEvent::Finished | PipeEvent::Broken => {
                self.core.fail_link(link, &Failure::Disconnected);
            }
            PipeEvent::Starved => {
                parts.env.counters.increment(Metric::ReceiveStarved);
                parts.agenda.starve(Owner::Upstream(key), BufferGroup::Link);
            }
            PipeEvent::Routine => {}
        }
        let Parts { upstreams, agenda, .. } = &mut self.core.parts;
        upstream(upstreams, key).socket.reconcile(key, &mut agenda.ops);
    }

    /// Fills a link's next send, if there is something to send, and brings what else depends on
    /// the link in line. False when no slot is free.
    pub(super) fn flush_link(&mut self, number: u16) -> bool {
        let Parts { upstreams, links, agenda, env, .. } = &mut self.core.parts;
        let LinkEntry { link, dirty, key, .. } = &mut links.entries[usize::from(number)];
        let socket = &mut upstream(upstreams, *key).socket;
        *dirty = false;
        if let Some(pipe) = socket.pipe_mut()
            && link.unsent() > 0
        {
            let (owner, ops) = (Owner::Upstream(*key), &mut agenda.ops);
            match pipe.flush(owner, &mut self.ring, ops, |bytes| link.copy_output(bytes)) {
                Flush::Sending(_) if link.may_wake() => link.take_waiting(&mut agenda.woken),
                Flush::Sending(_) | Flush::Busy => {}
                Flush::NoSlot => *dirty = true,
                Flush::Nothing => unreachable!("a link's output is made already"),
            }
        }
        let flushed = !*dirty;
        links.reconcile(number, socket, env, &mut agenda.upstream_timers);
        flushed
    }
}

/// Why a client is refused whose session cannot be opened. One whose request is too large for the
/// backend would find it no smaller another time.
pub(super) fn refusal(error: OpenError) -> Cause {
    match error {
        OpenError::NotReading => Cause::BackendUnavailable,
        OpenError::TooLarge => Cause::TooLarge,
    }
}
