//! Much at once in little room: nothing is lost, nobody starves, and everything is given back.

use std::io::{Read, Write};
use std::thread::scope;
use std::time::Duration;

use portcullis::backend::Limits;
use socket2::{Domain, Socket, Type};

use crate::support::{
    Backend, Choices, Client, Config, End, Event, Gateway, Opcode, masked, request, wait_until,
};
use crate::tls;

const FRAMES: &str = "frames_per_second = 1_000_000\nframes_burst = 1_000_000\n";

/// A cheap sequence of numbers that looks random.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % end
    }
}

/// Waits until the gateway has had so many connections and holds nothing of any.
fn expect_at_rest(gateway: &Gateway, buffers: u64, accepted: u64) {
    gateway.wait_metric("portcullis_connections_accepted_total", |count| count == accepted);
    for stage in ["tls_handshake", "request_head", "authenticating", "open", "refused", "closing"] {
        let series = format!("portcullis_connections{{stage=\"{stage}\"}}");
        gateway.wait_metric(&series, |count| count == 0);
    }
    gateway.wait_metric("portcullis_queued_bytes", |bytes| bytes == 0);
    gateway.wait_metric("portcullis_reads_paused", |paused| paused == 0);
    gateway.wait_metric("portcullis_stalled_input_bytes", |bytes| bytes == 0);
    gateway.wait_metric("portcullis_receive_buffers_free", |free| free == buffers);
    assert_eq!(gateway.metric("portcullis_worker_panics_total"), 0);
}

/// Sends messages of many sizes while it reads them back; every one must be the one sent.
fn converse(mut client: Client, seed: u32, count: u32) {
    let mut numbers = Numbers(seed);
    let sizes: Vec<usize> = (0..count).map(|_| numbers.below(40_000) as usize).collect();
    let mut ahead = 0;
    for (number, size) in sizes.iter().enumerate() {
        while ahead < sizes.len() && ahead < number + 4 {
            client.send(true, Opcode::Binary, &vec![(seed as usize + ahead) as u8; sizes[ahead]]);
            ahead += 1;
        }
        let (opcode, payload) = client.message();
        let expected = vec![(seed as usize + number) as u8; *size];
        assert!((opcode, payload) == (Opcode::Binary, expected), "message {number} of {seed}");
    }
    client.close(1000, "");
    assert_eq!(client.close_frame(), (Some(1000), String::new()));
    assert_eq!(client.end(), End::Fin);
}

/// Its messages are three megabytes, of which it takes 60 KB in a second: that is progress, as long
/// as nothing but the client's own reading makes it.
#[test]
fn a_client_that_reads_slowly_but_steadily_stays() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).deadlines("write_stall = \"1s\"");
    let gateway = Gateway::start(&config);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(8 * 1024).expect("a small buffer");
    socket.connect(&gateway.address().into()).expect("connected");
    let mut client = Client::over_tcp(socket.into());
    client.write(request("/ws", "").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    let mut tcp = client.tcp().try_clone().expect("cloned");
    let messages = [vec![1_u8; 1_000_000], vec![2; 1_000_000], vec![3; 1_000_000]];
    let mut sender = client.tcp().try_clone().expect("cloned");
    let sent = messages.clone();
    std::thread::spawn(move || {
        for message in sent {
            sender.write_all(&masked(0x82, &message)).expect("sent");
        }
    });
    let mut taken = 0;
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(100));
        let mut piece = [0; 6_000];
        taken += tcp.read(&mut piece).expect("it is not reset");
    }
    assert!(taken > 100_000 && taken < 500_000, "{taken} bytes in four seconds");
    assert_eq!(gateway.metric("portcullis_deadline_closes_total{stage=\"write_stall\"}"), 0);
    // And one that stops is reset.
    gateway.wait_closes("slow_consumer", 1);
}

#[test]
fn many_large_conversations_share_small_windows_and_few_buffers() {
    let limits = Limits { session_window: 16 * 1024, link_window: 64 * 1024, ..Limits::default() };
    let choices = Choices { limits: Some(limits), ..Choices::default() };
    let backend = Backend::start_at("127.0.0.1:0", choices);
    let config = Config::to(backend.address()).limits(&format!(
        "{FRAMES}session_window = \"16KiB\"\nlink_window = \"64KiB\"\nclient_buffers = 16"
    ));
    let gateway = Gateway::start(&config);
    scope(|clients| {
        for seed in 1..=24 {
            let client = Client::open(gateway.address(), "/ws", "");
            clients.spawn(move || converse(client, seed, 40));
        }
    });
    gateway.wait_closes("client_closed", 24);
    expect_at_rest(&gateway, 16, 24);
}

#[test]
fn many_large_conversations_over_tls() {
    let backend = Backend::start();
    let (config, _folder) = tls::config(Config::to(backend.address()), &["a.example"]);
    let config = config.limits(&format!(
        "{FRAMES}session_window = \"16KiB\"\nlink_window = \"64KiB\"\nclient_buffers = 16"
    ));
    let gateway = Gateway::start(&config);
    scope(|clients| {
        for seed in 1..=8 {
            let client = tls::open(gateway.address(), &tls::Wish::default(), "/ws", "");
            clients.spawn(move || converse(client, seed, 30));
        }
    });
    gateway.wait_closes("client_closed", 8);
    expect_at_rest(&gateway, 16, 8);
}

#[test]
fn what_a_client_sent_before_it_left_arrives() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    for _ in 0..20 {
        let mut client = Client::open(gateway.address(), "/ws", "");
        let burst: Vec<u8> = (0..50_u8).flat_map(|n| crate::support::masked(0x82, &[n])).collect();
        client.write(&burst);
        client.tcp().shutdown(std::net::Shutdown::Write).expect("shut down");
        client.drain();
        let mut next = 0;
        loop {
            match backend.event() {
                Event::Open(_) | Event::Asked(..) => {}
                Event::Message(message) => {
                    assert_eq!(message.borrowed().bytes(), [next]);
                    next += 1;
                }
                Event::Ended(ended) => {
                    assert_eq!((next, ended.cause.as_str()), (50, "client_gone"));
                    break;
                }
            }
        }
    }
}

#[test]
fn clients_that_vanish_at_any_moment_leave_nothing_behind() {
    let backend = Backend::start();
    let (mut config, _folder) = tls::config(Config::to(backend.address()), &["a.example"]);
    config.listeners = Config::default().listeners + &config.listeners.replace(":1\"", ":2\"");
    let config = config
        .guarded("first", "first-message", "")
        .limits(&format!("{FRAMES}session_window = \"16KiB\""))
        .deadlines("linger = \"200ms\"\nwrite_stall = \"500ms\"");
    let gateway = Gateway::start(&config);
    let addresses = [gateway.address(), gateway.handle.listeners()[1]];
    let mut numbers = Numbers(77);
    for round in 0..120 {
        let mut client = match round % 3 {
            0 => tls::open(addresses[1], &tls::Wish::default(), "/ws", ""),
            1 => Client::open(addresses[0], "/first", ""),
            _ => Client::open(addresses[0], "/ws", ""),
        };
        match numbers.below(6) {
            0 => client.text("flood 20 30000"),
            1 => client.text("sleep 50"),
            2 => client.write(&[0xff; 9]),
            3 => client.send(false, Opcode::Text, b"half a"),
            4 => client.close(1000, ""),
            _ => (0..20).for_each(|_| client.send(true, Opcode::Binary, &[1; 5000])),
        }
        if numbers.below(2) == 0 {
            std::thread::sleep(Duration::from_millis(u64::from(numbers.below(5))));
        }
        if numbers.below(3) == 0 {
            // RST instead of FIN.
            let now = Some(Duration::ZERO);
            socket2::SockRef::from(client.tcp()).set_linger(now).expect("set");
        }
    }
    expect_at_rest(&gateway, 256, 120);
    // Every session's end was told, and the worker is as good as new.
    let opened = gateway.metric("portcullis_sessions_opened_total") as usize;
    let mut ended = 0;
    wait_until("the backend knows", || {
        let seen = backend.seen();
        ended += seen.iter().filter(|event| matches!(event, Event::Ended(_))).count();
        assert!(ended <= opened);
        ended == opened
    });
    let mut client = Client::open(addresses[0], "/ws", "");
    client.echo("as good as new");
}

#[test]
fn backends_that_die_again_and_again_leave_nothing_behind() {
    let address = format!("127.0.0.1:{}", crate::support::free_port());
    let config = Config::to(&address).workers(2).limits(FRAMES);
    let gateway = Gateway::start_alone(&config);
    for round in 0..4 {
        let backend = Backend::start_at(&address, Choices::default());
        let links = 2 * (round + 1);
        gateway.wait_metric("portcullis_link_connects_total", |count| count == links);
        let mut clients: Vec<Client> =
            (0..20).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            match number % 3 {
                0 => client.text("flood 50 30000"),
                1 => client.echo("hello"),
                _ => (0..20).for_each(|_| client.send(true, Opcode::Binary, &[1; 20_000])),
            }
        }
        drop(backend);
        scope(|readers| {
            for (number, mut client) in clients.into_iter().enumerate() {
                readers.spawn(move || {
                    let mut close = None;
                    while let Some(frame) = client.frame() {
                        if frame.opcode == Opcode::Close {
                            close = Some(frame.payload[..2].to_vec());
                            client.close(1012, "");
                        }
                    }
                    let told = 1012_u16.to_be_bytes().to_vec();
                    assert_eq!(close, Some(told), "client {number} of round {round}");
                });
            }
        });
    }
    gateway.wait_closes("backend_unavailable", 80);
    expect_at_rest(&gateway, 512, 80);
}
