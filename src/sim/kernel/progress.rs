//! What operations in flight do when bytes, room or connections are there.

use std::net::{Ipv4Addr, SocketAddr};

use super::pools::Place;
use super::{Kernel, Pending, Work, planted};
use crate::ring::{BufferGroup, Failure, Outcome, ReceivedBuffer, Socket};
use crate::sim::check::ConnId;
use crate::sim::faults::Fault;
use crate::sim::memory::Memory;
use crate::sim::net::{Event, MICROS, Net, Party, Side};

/// Shots of one multishot receive in one pass, as in Linux.
const SHOTS_MAX: u32 = 32;
/// ECONNABORTED.
const ABORTED: i32 = 103;

impl Kernel {
    pub(super) fn progress_accepts(&mut self, net: &mut Net, listener: u16) {
        loop {
            let entry = &mut self.listeners[listener as usize];
            if entry.backlog.is_empty() || entry.accepts.is_empty() {
                return;
            }
            let Some(id) = entry.accepts.pop_front() else { return };
            if self.descriptors.len() >= self.sizes.descriptors || net.fault(Fault::AcceptExhausted)
            {
                self.finish(net, id, Outcome::Failed(Failure::Exhausted));
                continue;
            }
            let Some(conn) = self.listeners[listener as usize].backlog.pop_front() else { return };
            if net.fault(Fault::AcceptAborted) {
                net.close(conn, Side::Gateway, true);
                self.finish(net, id, Outcome::Failed(Failure::Errno(ABORTED)));
                continue;
            }
            let socket = self.open_descriptor(net, conn);
            let now = net.now;
            let entry = net.conn_mut(conn);
            entry.accepted_at = Some(now);
            let peer = match entry.party {
                Party::Client(index) => {
                    let [_, _, high, low] = (index as u32).to_be_bytes();
                    let own = Ipv4Addr::new(10, 0, high, low);
                    // Behind a balancer only the PROXY header tells.
                    let source = entry.floods_from.filter(|_| !self.balanced).unwrap_or(own);
                    let source = if self.bugs.peers_alike { [10, 0, 0, 0].into() } else { source };
                    let port = 1024 + (conn % 60_000) as u16;
                    Some(SocketAddr::from((source, port)))
                }
                Party::Backend(_) | Party::Test => None,
            };
            self.finish(net, id, Outcome::Accepted { socket: Socket(socket), peer });
        }
    }

    /// Looks again at every operation on a connection's gateway end.
    pub fn poke(&mut self, net: &mut Net, memory: &mut Memory, conn: ConnId) {
        let Some(socket) = net.conn(conn).socket else { return };
        self.progress_receive(net, memory, socket);
        self.progress_poll(net, socket);
        self.progress_send(net, memory, socket);
    }

    pub(super) fn live(&self, op: Option<u64>) -> Option<(u64, &Pending)> {
        let id = op?;
        let pending = self.ops.get(&id)?;
        let started = !self.submitted.iter().any(|(waiting, _)| *waiting == id);
        (!pending.finished && started).then_some((id, pending))
    }

    pub(super) fn progress_receive(&mut self, net: &mut Net, memory: &mut Memory, socket: u32) {
        let Some(descriptor) = self.descriptors.get(&socket) else { return };
        let conn = descriptor.conn;
        for _ in 0..SHOTS_MAX {
            let Some(descriptor) = self.descriptors.get(&socket) else { return };
            let Some((id, pending)) = self.live(descriptor.receive) else { return };
            let Work::Receive { group, multi, .. } = pending.work else { return };
            let readable = net.readable(conn, Side::Gateway);
            if readable > 0 {
                let Some(buffer) = self.buffers[group as usize].take(Place::InFlight) else {
                    net.faults.note(Fault::NoBuffers);
                    return self.finish(net, id, Outcome::Failed(Failure::NoBuffers));
                };
                let more = multi && !net.fault(Fault::MultishotEnded);
                self.shot(net, memory, id, conn, (group, buffer), more);
                continue;
            }
            let outcome = if net.is_reset(conn, Side::Gateway) {
                Outcome::Failed(Failure::Disconnected)
            } else if net.ended(conn, Side::Gateway) {
                Outcome::EndOfStream
            } else {
                return;
            };
            return self.finish(net, id, outcome);
        }
        net.schedule(net.now + 10 * MICROS, Event::Poke(conn));
    }

    /// One buffer's worth of a receive.
    pub(super) fn shot(
        &mut self,
        net: &mut Net,
        memory: &mut Memory,
        id: u64,
        conn: ConnId,
        (group, buffer): (BufferGroup, u16),
        more: bool,
    ) {
        self.received += 1;
        let bytes = memory.buffer(group, buffer);
        let short = net.fault(Fault::ReceiveShort);
        let most = if short { 1 + net.random.below(16) as usize } else { bytes.len() };
        let most = most.min(bytes.len());
        let count = net.read(conn, Side::Gateway, &mut bytes[..most]);
        if planted(self.bugs.receives_twice, self.received) {
            net.unread(conn, Side::Gateway, &bytes[..count]);
        }
        if !net.conn(conn).is_tls {
            net.trace.note_bytes(&bytes[..count]);
        }
        let received = ReceivedBuffer::of_ring(group, buffer, count as u32);
        if planted(self.bugs.completes_twice, self.received) {
            let again = ReceivedBuffer::of_ring(group, buffer, count as u32);
            self.post(net, id, Outcome::Received(again), true);
        }
        self.post(net, id, Outcome::Received(received), more);
    }

    pub(super) fn progress_poll(&mut self, net: &mut Net, socket: u32) {
        let Some(descriptor) = self.descriptors.get(&socket) else { return };
        let conn = descriptor.conn;
        let Some((id, pending)) = self.live(descriptor.poll) else { return };
        let hangup = matches!(pending.work, Work::Poll { hangup: true, .. });
        let readable = (!hangup && net.readable(conn, Side::Gateway) > 0)
            || net.ended(conn, Side::Gateway)
            || net.is_reset(conn, Side::Gateway);
        if readable {
            self.finish(net, id, Outcome::Readable);
        }
    }

    pub(super) fn progress_send(&mut self, net: &mut Net, memory: &mut Memory, socket: u32) {
        let Some(descriptor) = self.descriptors.get(&socket) else { return };
        let conn = descriptor.conn;
        let Some((id, _)) = self.live(descriptor.send) else { return };
        let drops = planted(self.bugs.drops_sent_byte, self.sent + 1);
        let Some(pending) = self.ops.get_mut(&id) else { return };
        let Work::Send { slot, next, start, end, held_until, .. } = &mut pending.work else {
            return;
        };
        if *held_until > net.now {
            return;
        }
        if net.fault(Fault::SendReset) {
            net.kill(conn);
        }
        let Some(held) = slot.as_ref() else { return };
        let all = &memory.slot(held)[*next as usize..*end as usize];
        // A fault may end the send early, so only part of it is even offered.
        let short = net.fault(Fault::SendShort);
        let offered =
            if short { 1 + net.random.below(all.len() as u64) as usize } else { all.len() };
        let written = match net.write(conn, Side::Gateway, &all[..offered - usize::from(drops)]) {
            Ok(count) => Ok(count + usize::from(drops && count + 1 == offered)),
            Err(dead) => Err(dead),
        };
        let result = match written {
            Ok(count) => {
                if !net.conn(conn).is_tls {
                    net.trace.note_bytes(&all[..count]);
                }
                *next += count as u32;
                if *next < *end && !(short && count > 0) {
                    return;
                }
                Ok(*next - *start)
            }
            Err(_) if *next > *start => Ok(*next - *start),
            Err(_) => Err(Failure::Disconnected),
        };
        let Some(slot) = slot.take() else { return };
        self.sent += 1;
        self.finish(net, id, Outcome::Sent { slot, result });
    }
}
