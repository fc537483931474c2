//! The ring against the real kernel, over loopback.
#![allow(unsafe_code)] // lowers a resource limit in a child process

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::listener::listen;
use super::probe::probe;
use super::ring::{DescriptorMode, LinuxRing, RingError, RingOptions, Waker};
use crate::base::slab::Key;
use crate::base::time::Instant;
use crate::ring::BufferGroup::{Client, Link};
use crate::ring::{
    BufferGroup, CLIENT_BUFFER_BYTES, CLIENT_SLOT_BYTES, Completion, EndpointAddress, Failure,
    LINK_SLOT_BYTES, Op, OpKey, OpKind, Outcome, Owner, Ring, Socket,
};

const PATIENCE: Duration = Duration::from_secs(10);
const MODES: [DescriptorMode; 2] = [DescriptorMode::Plain, DescriptorMode::Direct];

/// A ring with one listener, and the small things that every test does with it.
struct Bench {
    ring: LinuxRing,
    waker: Waker,
    address: SocketAddr,
}

fn key(kind: OpKind, slot: u32) -> OpKey {
    OpKey::new(kind, Owner::Client(Key { slot, generation: 0x00ab_cdef }))
}

fn options(descriptors: DescriptorMode) -> RingOptions {
    let listener = listen("127.0.0.1:0".parse().unwrap(), 1024, None, 128 * 1024).unwrap();
    RingOptions {
        entries: 256,
        client_buffers: 64,
        link_buffers: 4,
        client_slots: 16,
        link_slots: 4,
        listeners: vec![listener],
        descriptors,
    }
}

impl Bench {
    fn new(mode: DescriptorMode) -> Bench {
        Bench::with(options(mode))
    }

    fn with(options: RingOptions) -> Bench {
        if let Err(error) = probe() {
            panic!("these tests need io_uring: {error}");
        }
        let address = options.listeners[0].local_address();
        let (ring, waker) = LinuxRing::new(options).unwrap_or_else(|error| panic!("{error}"));
        Bench { ring, waker, address }
    }

    /// The next completion, within `PATIENCE`.
    fn next(&mut self) -> Completion {
        let deadline = self.ring.now().instant + PATIENCE;
        loop {
            if let Some(completion) = self.ring.completion() {
                return completion;
            }
            assert!(self.ring.now().instant < deadline, "no completion came");
            self.ring.enter(deadline);
        }
    }

    /// No completion comes for a while.
    fn assert_quiet(&mut self) {
        let until = super::clock::instant() + Duration::from_millis(50);
        while super::clock::instant() < until {
            self.ring.enter(until);
            if let Some(completion) = self.ring.completion() {
                panic!("unexpected {completion:?}");
            }
        }
    }

    fn submit(&mut self, kind: OpKind, slot: u32, op: Op) {
        self.ring.submit(key(kind, slot), op);
    }

    /// A client and the ring's end of its connection.
    fn accept(&mut self) -> (TcpStream, Socket) {
        self.submit(OpKind::Accept, 3, Op::Accept { listener: 0 });
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let completion = self.next();
        assert_eq!((completion.key, completion.more), (key(OpKind::Accept, 3), false));
        match completion.outcome {
            Outcome::Accepted { socket, peer } => {
                assert_eq!(peer, Some(client.local_addr().unwrap()));
                (client, socket)
            }
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self, slot: u32, socket: Socket) {
        self.submit(OpKind::Receive, slot, Op::ReceiveMultishot { socket, group: Client });
    }

    fn send(&mut self, slot: u32, socket: Socket, group: BufferGroup, data: &[u8]) {
        let memory = self.ring.send_slot(group).unwrap();
        self.ring.slot_bytes(&memory)[..data.len()].copy_from_slice(data);
        let op = Op::Send { socket, slot: memory, start: 0, end: data.len() as u32 };
        self.submit(OpKind::Send, slot, op);
    }

    /// The bytes of the next completion, which must be a receive; the buffer goes back.
    fn bytes(&mut self) -> (Vec<u8>, bool) {
        let completion = self.next();
        match completion.outcome {
            Outcome::Received(buffer) => {
                let bytes = self.ring.received(&buffer).to_vec();
                self.ring.give_back(buffer);
                (bytes, completion.more)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next completion, which must be a failure or an end.
    fn ending(&mut self) -> (OpKey, Option<Failure>) {
        let completion = self.next();
        assert!(!completion.more);
        match completion.outcome {
            Outcome::Failed(failure) => (completion.key, Some(failure)),
            Outcome::EndOfStream | Outcome::Closed | Outcome::CancelDone | Outcome::Readable => {
                (completion.key, None)
            }
            other => panic!("{other:?}"),
        }
    }

    fn close(&mut self, slot: u32, socket: Socket, reset: bool) {
        self.submit(OpKind::Close, slot, Op::Close { socket, reset });
        assert_eq!(self.ending(), (key(OpKind::Close, slot), None));
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[test]
fn a_client_is_accepted_and_echoed() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        let (mut client, socket) = bench.accept();
        assert_eq!(bench.ring.open_sockets(), 1);
        bench.receive(5, socket);
        for round in 0..20 {
            let text = format!("message {round}");
            client.write_all(text.as_bytes()).unwrap();
            assert_eq!(bench.bytes(), (text.clone().into_bytes(), true));
            bench.send(6, socket, Client, text.as_bytes());
            let completion = bench.next();
            assert_eq!(completion.key, key(OpKind::Send, 6));
            let Outcome::Sent { slot, result } = completion.outcome else { panic!() };
            assert_eq!(result, Ok(text.len() as u32));
            bench.ring.release(slot);
            let mut back = vec![0; text.len()];
            client.read_exact(&mut back).unwrap();
            assert_eq!(back, text.as_bytes());
        }
        drop(client);
        assert_eq!(bench.ending(), (key(OpKind::Receive, 5), None), "end of stream");
        bench.close(5, socket, false);
        assert_eq!(bench.ring.open_sockets(), 0);
        let count = bench.ring.buffers(Client);
        assert_eq!((count.total, count.free), (64, 64));
    }
}

#[test]
fn accepted_sockets_send_at_once() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (_client, socket) = bench.accept();
    // SAFETY: the ring keeps the socket open for the rest of the test.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.0 as i32) };
    assert!(socket2::SockRef::from(&descriptor).tcp_nodelay().unwrap());
}

#[test]
fn whole_slots_are_sent_even_to_a_slow_reader() {
    for (group, length) in [
        (Client, 1),
        (Client, CLIENT_SLOT_BYTES),
        (Link, CLIENT_SLOT_BYTES + 1),
        (Link, LINK_SLOT_BYTES),
    ] {
        let mut bench = Bench::new(DescriptorMode::Plain);
        let (mut client, socket) = bench.accept();
        socket2::SockRef::from(&client).set_recv_buffer_size(4096).unwrap();
        let data = pattern(length);
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            let mut back = vec![0; length];
            client.read_exact(&mut back).map(|()| back).unwrap()
        });
        bench.send(1, socket, group, &data);
        let completion = bench.next();
        let Outcome::Sent { slot, result } = completion.outcome else { panic!() };
        assert_eq!((slot.group(), result), (group, Ok(length as u32)));
        bench.ring.release(slot);
        assert!(reader.join().unwrap() == data, "{group:?} {length}");
    }
}

#[test]
fn a_part_of_a_slot_can_be_sent() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (mut client, socket) = bench.accept();
    let slot = bench.ring.send_slot(Client).unwrap();
    bench.ring.slot_bytes(&slot)[..10].copy_from_slice(b"0123456789");
    bench.submit(OpKind::Send, 1, Op::Send { socket, slot, start: 3, end: 7 });
    let Outcome::Sent { result, slot } = bench.next().outcome else { panic!() };
    assert_eq!(result, Ok(4));
    bench.ring.release(slot);
    let mut back = [0; 4];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"3456");
}

#[test]
fn a_pool_that_runs_dry_ends_the_receive_and_recovers() {
    for mode in MODES {
        let mut bench = Bench::with(RingOptions { client_buffers: 4, ..options(mode) });
        let (mut client, socket) = bench.accept();
        let data = pattern(10 * CLIENT_BUFFER_BYTES);
        client.write_all(&data).unwrap();
        bench.receive(5, socket);
        let mut held = Vec::new();
        let failure = loop {
            let completion = bench.next();
            match completion.outcome {
                Outcome::Received(buffer) => held.push(buffer),
                Outcome::Failed(failure) => break failure,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((failure, held.len()), (Failure::NoBuffers, 4));
        assert_eq!(bench.ring.buffers(Client).free, 0);
        // Armed on an empty pool it fails immediately; the other group is not touched by that.
        bench.receive(5, socket);
        let (starved, failure) = bench.ending();
        assert_eq!((starved, failure), (key(OpKind::Receive, 5), Some(Failure::NoBuffers)));
        assert_eq!(bench.ring.buffers(Link).free, 4);
        let mut seen = Vec::new();
        for buffer in held {
            assert_eq!(buffer.length() as usize, CLIENT_BUFFER_BYTES);
            seen.extend_from_slice(bench.ring.received(&buffer));
            bench.ring.give_back(buffer);
        }
        while seen.len() < data.len() {
            let op = Op::ReceiveOnce { socket, group: Client };
            bench.submit(OpKind::Receive, 6, op);
            let (bytes, more) = bench.bytes();
            assert!(!more);
            seen.extend(bytes);
        }
        assert!(seen == data, "order and content survive");
        assert_eq!(bench.ring.buffers(Client).free, 4);
    }
}

#[test]
fn the_link_pool_has_large_buffers_of_its_own() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (mut client, socket) = bench.accept();
    let data = pattern(20_000);
    client.write_all(&data).unwrap();
    bench.submit(OpKind::Receive, 1, Op::ReceiveMultishot { socket, group: Link });
    let completion = bench.next();
    let Outcome::Received(buffer) = completion.outcome else { panic!() };
    assert_eq!((buffer.group(), buffer.length()), (Link, 20_000));
    assert!(bench.ring.received(&buffer) == data);
    let free = |bench: &Bench| (bench.ring.buffers(Link).free, bench.ring.buffers(Client).free);
    assert_eq!(free(&bench), (3, 64));
    bench.ring.give_back(buffer);
    assert_eq!(free(&bench), (4, 64));
}

#[test]
fn operations_are_cancelled_and_say_so() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        let (_client, socket) = bench.accept();
        bench.receive(7, socket);
        bench.submit(OpKind::Poll, 7, Op::PollReadable { socket });
        bench.submit(OpKind::Accept, 7, Op::Accept { listener: 0 });
        bench.assert_quiet();
        for kind in [OpKind::Receive, OpKind::Poll, OpKind::Accept] {
            let target = key(kind, 7);
            bench.submit(OpKind::Cancel, 8, Op::Cancel { target });
            let mut ends = [bench.ending(), bench.ending()];
            ends.sort_by_key(|(key, _)| key.kind == OpKind::Cancel);
            assert_eq!(ends[0], (target, Some(Failure::Cancelled)));
            assert_eq!(ends[1], (key(OpKind::Cancel, 8), None));
            bench.submit(OpKind::Cancel, 9, Op::Cancel { target });
            assert_eq!(bench.ending(), (key(OpKind::Cancel, 9), Some(Failure::NotFound)));
        }
        let target = key(OpKind::Send, 7);
        bench.submit(OpKind::Cancel, 9, Op::Cancel { target });
        assert_eq!(bench.ending(), (key(OpKind::Cancel, 9), Some(Failure::NotFound)));
    }
}

#[test]
fn a_stalled_send_is_cancelled_and_its_slot_comes_back() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (_client, socket) = bench.accept();
    let data = pattern(LINK_SLOT_BYTES);
    // Fill the socket's buffers until a send stays in flight.
    let mut slot = 0;
    let stalled = loop {
        slot += 1;
        bench.send(slot, socket, Link, &data);
        let until = super::clock::instant() + Duration::from_millis(200);
        bench.ring.enter(until);
        match bench.ring.completion().map(|completion| completion.outcome) {
            Some(Outcome::Sent { slot, result }) => {
                assert_eq!(result, Ok(LINK_SLOT_BYTES as u32));
                bench.ring.release(slot);
            }
            Some(other) => panic!("{other:?}"),
            None => break slot,
        }
    };
    let target = key(OpKind::Send, stalled);
    bench.submit(OpKind::Cancel, 1, Op::Cancel { target });
    let mut released = false;
    for _ in 0..2 {
        let completion = bench.next();
        match completion.outcome {
            Outcome::Sent { slot, result } => {
                assert_eq!(completion.key, target);
                // Some bytes may have left before the cancellation.
                assert!(result == Err(Failure::Cancelled) || result.unwrap() < data.len() as u32);
                bench.ring.release(slot);
                released = true;
            }
            Outcome::CancelDone => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(released);
    let all: Vec<_> = (0..4).map(|_| bench.ring.send_slot(Link).unwrap()).collect();
    assert_eq!(bench.ring.send_slot(Link), None);
    all.into_iter().for_each(|slot| bench.ring.release(slot));
}

#[test]
fn a_poll_completes_on_data_and_on_hang_up() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        let (mut client, socket) = bench.accept();
        bench.submit(OpKind::Poll, 4, Op::PollReadable { socket });
        bench.assert_quiet();
        client.write_all(b"x").unwrap();
        assert_eq!(bench.ending(), (key(OpKind::Poll, 4), None));
        bench.receive(4, socket);
        assert_eq!(bench.bytes(), (b"x".to_vec(), true));
        bench.submit(OpKind::Cancel, 4, Op::Cancel { target: key(OpKind::Receive, 4) });
        bench.ending();
        bench.ending();
        bench.submit(OpKind::Poll, 4, Op::PollReadable { socket });
        bench.assert_quiet();
        drop(client);
        assert_eq!(bench.ending(), (key(OpKind::Poll, 4), None));
    }
}

#[test]
fn backends_are_reached_over_tcp_and_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend.sock");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(DescriptorMode::Direct);
    bench.ring.set_endpoint(4, EndpointAddress::Tcp(tcp.local_addr().unwrap()));
    bench.ring.set_endpoint(2, EndpointAddress::Unix(path));
    for endpoint in [4, 2] {
        bench.submit(OpKind::Connect, 1, Op::Connect { endpoint });
        let completion = bench.next();
        assert_eq!(completion.key, key(OpKind::Connect, 1));
        let Outcome::Connected(socket) = completion.outcome else { panic!("{completion:?}") };
        bench.send(2, socket, Link, b"hello");
        let Outcome::Sent { slot, result: Ok(5) } = bench.next().outcome else { panic!() };
        bench.ring.release(slot);
        let mut heard = [0; 5];
        match endpoint {
            4 => tcp.accept().unwrap().0.read_exact(&mut heard).unwrap(),
            _ => unix.accept().unwrap().0.read_exact(&mut heard).unwrap(),
        }
        assert_eq!(&heard, b"hello");
        bench.close(1, socket, false);
    }
    assert_eq!(bench.ring.open_sockets(), 0);
}

#[test]
fn a_connect_that_fails_says_why_and_leaves_no_socket() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let missing = EndpointAddress::Unix("/nonexistent/backend.sock".into());
    let too_long = EndpointAddress::Unix("x".repeat(300).into());
    let mut bench = Bench::new(DescriptorMode::Plain);
    for (address, expected) in [
        (EndpointAddress::Tcp(closed), libc::ECONNREFUSED),
        (missing, libc::ENOENT),
        (too_long, libc::EINVAL),
    ] {
        bench.ring.set_endpoint(0, address);
        bench.submit(OpKind::Connect, 1, Op::Connect { endpoint: 0 });
        let failure = Some(Failure::Errno(expected));
        assert_eq!(bench.ending(), (key(OpKind::Connect, 1), failure));
        assert_eq!(bench.ring.open_sockets(), 0);
    }
}

#[test]
fn a_wait_ends_at_its_time() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let start = super::clock::instant();
    bench.ring.enter(start + Duration::from_millis(80));
    assert!(bench.ring.completion().is_none());
    let waited = bench.ring.now().instant.since(start);
    assert!(waited >= Duration::from_millis(80) && waited < Duration::from_secs(1), "{waited:?}");
    for past in [Instant::default(), start] {
        let before = super::clock::instant();
        bench.ring.enter(past);
        assert!(super::clock::instant().since(before) < Duration::from_millis(80));
    }
    let before = super::clock::instant();
    bench.ring.enter(Instant::NEVER);
    let waited = super::clock::instant().since(before);
    assert!(waited >= Duration::from_millis(990) && waited < PATIENCE, "{waited:?}");
}

#[test]
fn an_enter_that_does_not_wait_still_finishes_what_is_ready() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (mut client, socket) = bench.accept();
    bench.receive(1, socket);
    bench.ring.enter(Instant::default());
    client.write_all(b"x").unwrap();
    let deadline = super::clock::instant() + PATIENCE;
    let completion = loop {
        assert!(super::clock::instant() < deadline, "deferred work never ran");
        bench.ring.enter(Instant::default());
        if let Some(completion) = bench.ring.completion() {
            break completion;
        }
    };
    let Outcome::Received(buffer) = completion.outcome else { panic!("{completion:?}") };
    bench.ring.give_back(buffer);
}

#[test]
fn another_thread_ends_the_wait() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    for round in 0..5 {
        let waker = bench.waker.clone();
        let before = super::clock::instant();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
            waker.wake();
        });
        bench.ring.enter(before + PATIENCE);
        let waited = super::clock::instant().since(before);
        assert!(waited >= Duration::from_millis(19), "{round}: {waited:?}");
        assert!(waited < Duration::from_millis(900), "{round}: {waited:?}");
        assert!(bench.ring.completion().is_none(), "a wake-up is no completion");
        thread.join().unwrap();
        // The second wake-up may have come after the first was read.
        bench.ring.enter(Instant::default());
        assert!(bench.ring.completion().is_none());
    }
    // A wake-up while the ring does not wait ends the next wait.
    bench.waker.wake();
    let before = super::clock::instant();
    bench.ring.enter(before + PATIENCE);
    assert!(super::clock::instant().since(before) < Duration::from_millis(900));
}

#[test]
fn a_waker_may_outlive_its_ring() {
    let bench = Bench::new(DescriptorMode::Plain);
    let waker = bench.waker.clone();
    drop(bench);
    waker.wake();
}

#[test]
fn a_close_with_reset_is_seen_as_one() {
    for mode in MODES {
        for (reset, expected) in [(false, Ok(0)), (true, Err(ErrorKind::ConnectionReset))] {
            let mut bench = Bench::new(mode);
            let (mut client, socket) = bench.accept();
            bench.close(1, socket, reset);
            let seen = client.read(&mut [0; 8]).map_err(|error| error.kind());
            assert_eq!(seen, expected, "{mode:?}");
        }
    }
}

#[test]
fn a_peers_reset_is_a_disconnection() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (client, socket) = bench.accept();
    bench.receive(1, socket);
    bench.ring.enter(Instant::default());
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(bench.ending(), (key(OpKind::Receive, 1), Some(Failure::Disconnected)));
    bench.send(2, socket, Client, b"late");
    let Outcome::Sent { slot, result } = bench.next().outcome else { panic!() };
    assert_eq!(result, Err(Failure::Disconnected));
    bench.ring.release(slot);
}

#[test]
fn a_closed_listener_ends_its_accepts() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        bench.submit(OpKind::Accept, 0, Op::Accept { listener: 0 });
        bench.submit(OpKind::Accept, 1, Op::Accept { listener: 0 });
        bench.assert_quiet();
        bench.ring.close_listener(0);
        for slot in [0, 1] {
            assert_eq!(bench.ending(), (key(OpKind::Accept, slot), Some(Failure::Cancelled)));
        }
        let error = TcpStream::connect(bench.address).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        bench.submit(OpKind::Accept, 1, Op::Accept { listener: 0 });
        assert_eq!(bench.ending(), (key(OpKind::Accept, 1), Some(Failure::Cancelled)));
        bench.ring.close_listener(0);
    }
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let mut bench = Bench::with(RingOptions { entries: 8, ..options(DescriptorMode::Plain) });
    let (client, socket) = bench.accept();
    for slot in 0..500 {
        bench.submit(OpKind::Poll, slot, Op::PollReadable { socket });
    }
    (&client).write_all(b"x").unwrap();
    let mut seen: Vec<u32> = (0..500).map(|_| bench.ending().0.owner.key().slot).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..500));
}

#[test]
fn options_out_of_range_are_refused() {
    let good = || options(DescriptorMode::Plain);
    for (options, expected) in [
        (RingOptions { entries: 100, ..good() }, "entries must be a power of two"),
        (RingOptions { client_buffers: 0, ..good() }, "a pool has 1 to 32768 receive buffers"),
        (RingOptions { link_buffers: 40_000, ..good() }, "a pool has 1 to 32768 receive buffers"),
        (RingOptions { link_slots: 0, ..good() }, "a pool has at least one send slot"),
    ] {
        match LinuxRing::new(options) {
            Err(RingError::Options(text)) => assert_eq!(text, expected),
            other => panic!("{:?}", other.err()),
        }
    }
}

#[test]
#[should_panic(expected = "is not open")]
fn a_socket_cannot_be_closed_twice() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (_client, socket) = bench.accept();
    bench.close(1, socket, false);
    bench.submit(OpKind::Close, 1, Op::Close { socket, reset: false });
}

/// Everything that can be in flight is, when the ring goes away.
fn drop_busy_ring(mode: DescriptorMode) {
    let mut bench = Bench::new(mode);
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    bench.ring.set_endpoint(0, EndpointAddress::Tcp(backend.local_addr().unwrap()));
    let mut clients = Vec::new();
    for slot in 0..20 {
        let (client, socket) = bench.accept();
        if slot % 2 == 0 {
            bench.receive(slot, socket);
        } else {
            bench.submit(OpKind::Poll, slot, Op::PollReadable { socket });
        }
        clients.push(client);
    }
    bench.submit(OpKind::Connect, 0, Op::Connect { endpoint: 0 });
    let Outcome::Connected(socket) = bench.next().outcome else { panic!() };
    bench.send(0, socket, Link, &pattern(LINK_SLOT_BYTES));
    bench.send(1, socket, Link, &pattern(LINK_SLOT_BYTES));
    bench.submit(OpKind::Connect, 1, Op::Connect { endpoint: 0 });
    bench.submit(OpKind::Accept, 9, Op::Accept { listener: 0 });
    bench.ring.enter(Instant::default());
    // Accepted by the kernel or about to be, but not yet seen by the worker.
    let late = TcpStream::connect(bench.address).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    clients.push(late);
    drop(bench);
    for mut client in clients {
        match client.read(&mut [0; 8]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{mode:?}: {other:?}"),
        }
    }
    let mut link = backend.accept().unwrap().0;
    link.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    link.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_dropped_ring_closes_all_its_sockets() {
    for mode in MODES {
        drop_busy_ring(mode);
    }
}

#[test]
fn the_sockets_of_a_worker_that_panics_are_closed() {
    for mode in MODES {
        let (sender, receiver) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            let mut bench = Bench::new(mode);
            let (client, socket) = bench.accept();
            bench.receive(1, socket);
            bench.ring.enter(Instant::default());
            sender.send(client).unwrap();
            panic!("planned");
        });
        let mut client = receiver.recv().unwrap();
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
        assert!(worker.join().is_err());
    }
}

/// Runs one ignored test of this file alone in a process of its own, because it looks at or
/// changes what all tests of a process share.
fn run_alone(test: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("linux::ring_tests::{test}"), "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn no_descriptor_is_left_behind() {
    run_alone("child_counts_descriptors");
}

#[test]
#[ignore = "run by no_descriptor_is_left_behind"]
fn child_counts_descriptors() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop_busy_ring(DescriptorMode::Plain);
    let before = count();
    for _ in 0..20 {
        for mode in MODES {
            drop_busy_ring(mode);
        }
    }
    assert_eq!(count(), before);
}

#[test]
fn running_out_of_descriptors_is_survived() {
    run_alone("child_runs_out_of_descriptors");
}

#[test]
#[ignore = "run by running_out_of_descriptors_is_survived"]
fn child_runs_out_of_descriptors() {
    let mut bench = Bench::new(DescriptorMode::Plain);
    let (first, socket) = bench.accept();
    bench.ring.set_endpoint(0, EndpointAddress::Tcp(bench.address));
    let second = TcpStream::connect(bench.address).unwrap();
    let old = super::process::descriptor_limit().unwrap();
    let set = |soft| {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: old };
        // SAFETY: `limit` is a valid rlimit that outlives the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    };
    set(3);
    bench.submit(OpKind::Accept, 0, Op::Accept { listener: 0 });
    assert_eq!(bench.ending(), (key(OpKind::Accept, 0), Some(Failure::Exhausted)));
    bench.submit(OpKind::Connect, 1, Op::Connect { endpoint: 0 });
    assert_eq!(bench.ending(), (key(OpKind::Connect, 1), Some(Failure::Exhausted)));
    set(old);
    bench.submit(OpKind::Accept, 0, Op::Accept { listener: 0 });
    let Outcome::Accepted { peer, .. } = bench.next().outcome else { panic!() };
    assert_eq!(peer, Some(second.local_addr().unwrap()), "the connection was not lost");
    bench.close(1, socket, false);
    drop(first);
}
