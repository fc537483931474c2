//! The ring as a worker uses it: many connections, promotion and parking, over many ticks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::listener::listen;
use super::ring::{DescriptorMode, LinuxRing, RingOptions};
use crate::base::slab::{Key, KeyedSlab};
use crate::ring::BufferGroup::Client;
use crate::ring::{
    Completion, Failure, GENERATION_BITS, Op, OpKey, OpKind, Outcome, Owner, ReceivedBuffer, Ring,
    SendSlot, Socket,
};

/// One connection of the echo server. Closed when nothing is in flight.
struct Echo {
    socket: Socket,
    /// A receive or poll is in flight.
    listening: bool,
    /// A send is in flight.
    sending: bool,
    ended: bool,
    pending: std::collections::VecDeque<ReceivedBuffer>,
}

/// An echo server over the seam, with few buffers and slots so that it meets their end.
struct Server<R: Ring> {
    ring: R,
    echoes: KeyedSlab<Echo>,
    /// Connections that found no buffer.
    starved: Vec<Key>,
    /// Connections that found no send slot.
    waiting: Vec<Key>,
    closed: usize,
    starvations: usize,
}

impl<R: Ring> Server<R> {
    fn run(&mut self, connections: usize) {
        for slot in 0..8 {
            let owner = Owner::Acceptor(slot);
            self.ring.submit(OpKey::new(OpKind::Accept, owner), Op::Accept { listener: 0 });
        }
        let deadline = super::clock::instant() + Duration::from_secs(60);
        while self.closed < connections {
            assert!(super::clock::instant() < deadline, "{} of {connections}", self.closed);
            self.ring.enter(deadline);
            while let Some(completion) = self.ring.completion() {
                self.handle(completion);
            }
            self.resume();
            let (count, held) = (self.ring.buffers(Client), self.held());
            assert_eq!(count.free as usize + held, count.total as usize);
        }
    }

    fn held(&self) -> usize {
        self.echoes.iter().map(|(_, echo)| echo.pending.len()).sum()
    }

    fn resume(&mut self) {
        for key in std::mem::take(&mut self.waiting) {
            self.send(key);
        }
        for key in std::mem::take(&mut self.starved) {
            if self.ring.buffers(Client).free > 0 {
                self.listen(key, OpKind::Poll);
            } else {
                self.starved.push(key);
            }
        }
    }

    fn listen(&mut self, key: Key, kind: OpKind) {
        let Some(echo) = self.echoes.entry_mut(key) else { return };
        assert!(!echo.listening);
        echo.listening = true;
        let socket = echo.socket;
        let op = match kind {
            OpKind::Poll => Op::PollReadable { socket },
            _ => Op::ReceiveMultishot { socket, group: Client },
        };
        self.ring.submit(OpKey::new(kind, Owner::Client(key)), op);
    }

    fn handle(&mut self, completion: Completion) {
        let owner = completion.key.owner.key();
        match completion.outcome {
            Outcome::Accepted { socket, .. } => {
                let pending = Default::default();
                let (listening, sending, ended) = (false, false, false);
                let echo = Echo { socket, listening, sending, ended, pending };
                let key = self.echoes.insert(echo);
                self.listen(key, OpKind::Poll);
                self.ring.submit(completion.key, Op::Accept { listener: 0 });
            }
            Outcome::Closed => {
                self.echoes.remove(owner).unwrap();
                self.closed += 1;
            }
            outcome => {
                let echo = self.echoes.entry_mut(owner).unwrap();
                if !matches!(outcome, Outcome::Sent { .. }) {
                    echo.listening = completion.more;
                }
                self.progress(owner, outcome, completion.more);
            }
        }
    }

    fn progress(&mut self, owner: Key, outcome: Outcome, more: bool) {
        let echo = self.echoes.entry_mut(owner).unwrap();
        match outcome {
            Outcome::Readable => self.listen(owner, OpKind::Receive),
            Outcome::Received(buffer) => {
                echo.pending.push_back(buffer);
                if !more {
                    self.listen(owner, OpKind::Receive);
                }
                self.send(owner);
            }
            Outcome::Failed(Failure::NoBuffers) => {
                self.starvations += 1;
                self.starved.push(owner);
            }
            Outcome::Sent { slot, result } => {
                result.unwrap();
                echo.sending = false;
                self.ring.release(slot);
                self.send(owner);
            }
            Outcome::EndOfStream => {
                echo.ended = true;
                self.send(owner);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends one pending buffer, or closes when all is done.
    fn send(&mut self, owner: Key) {
        let Some(echo) = self.echoes.entry_mut(owner) else { return };
        if echo.sending {
            return;
        }
        if echo.pending.is_empty() {
            if echo.ended {
                let op = Op::Close { socket: echo.socket, reset: false };
                echo.sending = true;
                self.ring.submit(OpKey::new(OpKind::Close, Owner::Client(owner)), op);
            }
            return;
        }
        let Some(slot) = self.ring.send_slot(Client) else {
            return self.waiting.push(owner);
        };
        let buffer = echo.pending.pop_front().unwrap();
        echo.sending = true;
        let socket = echo.socket;
        let end = self.copy(&slot, buffer);
        let op = Op::Send { socket, slot, start: 0, end };
        self.ring.submit(OpKey::new(OpKind::Send, Owner::Client(owner)), op);
    }

    fn copy(&mut self, slot: &SendSlot, buffer: ReceivedBuffer) -> u32 {
        let bytes = self.ring.received(&buffer).to_vec();
        self.ring.slot_bytes(slot)[..bytes.len()].copy_from_slice(&bytes);
        self.ring.give_back(buffer);
        bytes.len() as u32
    }
}

/// A client that sends messages of many sizes and checks that each comes back.
fn client(address: SocketAddr, index: usize, messages: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    for message in 0..messages {
        let length = 1 + (index * 7919 + message * 104_729) % 9000;
        let data: Vec<u8> = (0..length).map(|byte| (byte * index + message) as u8).collect();
        stream.write_all(&data).unwrap();
        let mut back = vec![0; length];
        stream.read_exact(&mut back).unwrap();
        assert!(back == data, "client {index} message {message}");
    }
}

fn load(descriptors: DescriptorMode, client_buffers: u16, client_slots: u16) -> usize {
    const CLIENTS: usize = 200;
    const MESSAGES: usize = 50;
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1024, None, 128 * 1024).unwrap();
    let address = listener.local_address();
    let server = std::thread::spawn(move || {
        let (ring, _waker) = LinuxRing::new(RingOptions {
            entries: 64,
            client_buffers,
            link_buffers: 1,
            client_slots,
            link_slots: 1,
            listeners: vec![listener],
            descriptors,
        })
        .unwrap_or_else(|error| panic!("{error}"));
        let mut server = Server {
            ring,
            echoes: KeyedSlab::new(GENERATION_BITS),
            starved: Vec::new(),
            waiting: Vec::new(),
            closed: 0,
            starvations: 0,
        };
        server.run(CLIENTS);
        assert_eq!(server.ring.open_sockets(), 0);
        let count = server.ring.buffers(Client);
        assert_eq!(count.free, count.total);
        server.starvations
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| std::thread::spawn(move || client(address, index, MESSAGES)))
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    server.join().unwrap()
}

/// What can be starved while the pool learns that 200 clients send in one burst: those beyond the 64
/// buffers that it publishes at first, and beyond twice as many.
const WHILE_IT_LEARNS: usize = (200 - 64) + (200 - 128);

#[test]
fn two_hundred_connections_are_echoed() {
    let starvations = load(DescriptorMode::Plain, 2048, 512);
    assert!(starvations <= WHILE_IT_LEARNS, "{starvations}");
}

#[test]
fn two_hundred_connections_are_echoed_over_direct_descriptors() {
    let starvations = load(DescriptorMode::Direct, 2048, 512);
    assert!(starvations <= WHILE_IT_LEARNS, "{starvations}");
}

#[test]
fn few_buffers_and_slots_only_make_it_slower() {
    let starvations = load(DescriptorMode::Plain, 8, 4);
    assert!(starvations > 0, "the pool was meant to run dry");
}
