//! Who gives way, with real sockets: crowds from one address, TLS in a hurry, too little memory.

use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Backend, Client, Config, End, Gateway, wait_until};
use crate::tls::{self, Wish, secure};

const CROWD: [u8; 4] = [127, 66, 0, 1];

/// A connection from an address of loopback's network.
fn from(source: [u8; 4], address: SocketAddr) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.bind(&SocketAddr::new(IpAddr::from(source), 0).into()).expect("bound");
    socket.connect(&address.into()).expect("connected");
    Client::over_tcp(TcpStream::from(socket))
}

/// Sockets that begin a request and do not finish it.
fn crowd(count: u64, gateway: &Gateway) -> Vec<Client> {
    let before = gateway.metric("portcullis_connections_accepted_total");
    let begin = |_| {
        let mut client = from(CROWD, gateway.address());
        client.write(b"GET /ws HTTP/1.1\r\n");
        client
    };
    let crowd: Vec<Client> = (0..count).map(begin).collect();
    gateway.wait_metric("portcullis_connections_accepted_total", |n| n >= before + count);
    crowd
}

/// How many of them the gateway has ended, once it has ended `count`.
fn wait_ended(crowd: &[Client], count: usize) -> Vec<bool> {
    let is_ended = |client: &Client| {
        let tcp = client.tcp();
        tcp.set_nonblocking(true).expect("set");
        let ended =
            !matches!(tcp.peek(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
        tcp.set_nonblocking(false).expect("set");
        ended
    };
    let mut ended = Vec::new();
    wait_until("the crowd gives way", || {
        ended = crowd.iter().map(is_ended).collect();
        ended.iter().filter(|ended| **ended).count() >= count
    });
    ended
}

fn config(backend: &Backend, limits: &str) -> Config {
    Config::to(backend.address())
        .limits("unauthenticated_max = 20\nconnections_max = 1_000")
        .limits(limits)
        .deadlines("request_head = \"60s\"")
}

#[test]
fn the_oldest_of_a_crowd_gives_way_and_nobody_else() {
    let backend = Backend::start();
    // The share is above the cap: early drop concerns nobody.
    let gateway = Gateway::start(&config(&backend, "prefix_share = 100"));
    let mut early = Client::open(gateway.address(), "/ws", "");
    let crowd = crowd(20, &gateway);
    gateway.wait_metric("portcullis_unauthenticated_connections", |count| count == 20);
    let mut late: Vec<Client> =
        (0..5).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    // The first newcomer had to have a place; the others found it free again.
    assert!(wait_ended(&crowd, 1)[0], "the oldest goes first");
    for client in late.iter_mut().chain([&mut early]) {
        client.echo("still here");
    }
    let more = self::crowd(30, &gateway);
    let ended = wait_ended(&more, 10);
    assert!(ended[..10].iter().all(|ended| *ended), "{ended:?}");
    for client in late.iter_mut().chain([&mut early]) {
        client.echo("still here");
    }
    gateway.wait_metric("portcullis_evictions_total{kind=\"oldest\"}", |count| count >= 30);
    assert!(gateway.metric("portcullis_unauthenticated_connections") <= 20);
    assert_eq!(gateway.metric("portcullis_unauthenticated_connections_max"), 20);
    assert_eq!(gateway.metric("portcullis_early_drops_total{reason=\"share\"}"), 0);
    gateway.wait_metric("portcullis_unauthenticated_oldest_seconds", |age| age > 0);
}

#[test]
fn early_drop_keeps_a_crowd_below_the_cap() {
    let backend = Backend::start();
    let limits = "prefix_share = 5\nearly_drop_start = 50\nearly_drop_rate = 100";
    let gateway = Gateway::start(&config(&backend, limits));
    let crowd = crowd(40, &gateway);
    wait_ended(&crowd, 30);
    gateway.wait_metric("portcullis_early_drops_total{reason=\"share\"}", |count| count == 30);
    Client::open(gateway.address(), "/ws", "").echo("from elsewhere");
    assert_eq!(gateway.metric("portcullis_unauthenticated_connections"), 10);
    assert_eq!(gateway.metric("portcullis_evictions_total{kind=\"oldest\"}"), 0);
}

#[test]
fn failures_count_under_pressure_only() {
    let backend = Backend::start();
    let limits = "prefix_failures_burst = 5\nprefix_failures_per_minute = 1\nprefix_share = 100\n\
                  early_drop_start = 50";
    let gateway = Gateway::start(&config(&backend, limits));
    let fail = || {
        let mut client = from([127, 66, 0, 9], gateway.address());
        client.write(b"POST / HTTP/1.1\r\n\r\n");
        client
    };
    for _ in 0..8 {
        assert!(fail().head().starts_with("HTTP/1.1 4"), "at rest everybody is heard");
    }
    gateway.wait_metric("portcullis_penalties_total", |count| count == 1);
    let _crowd = crowd(15, &gateway);
    gateway.wait_metric("portcullis_unauthenticated_connections", |count| count >= 15);
    wait_until("the prefix that failed is dropped", || fail().end() == End::Reset);
    gateway.wait_metric("portcullis_early_drops_total{reason=\"penalty\"}", |count| count >= 1);
    Client::open(gateway.address(), "/ws", "").echo("from elsewhere");
}

#[test]
fn the_address_in_a_proxy_header_is_what_counts() {
    let backend = Backend::start();
    // Early drop begins with the tenth.
    let limits = "unauthenticated_max = 100\nconnections_max = 1_000\nearly_drop_start = 10\n\
                  early_drop_rate = 100\nprefix_share = 5";
    let mut config = Config::to(backend.address()).limits(limits);
    config = config.deadlines("request_head = \"60s\"");
    config.listeners += "proxy_protocol = { trusted = [\"127.0.0.0/8\"] }\n";
    let gateway = Gateway::start(&config);
    let send = |source: &str, request: &str| {
        let mut client = from(CROWD, gateway.address());
        let header = format!("PROXY TCP4 {source} 192.0.2.1 1000 443\r\n");
        client.write(format!("{header}{request}").as_bytes());
        client
    };
    let crowd: Vec<Client> = (0..30).map(|_| send("198.51.100.1", "GET /ws ")).collect();
    wait_ended(&crowd, 15);
    gateway.wait_metric("portcullis_early_drops_total{reason=\"share\"}", |count| count >= 15);
    let mut other = send("198.51.100.2", &crate::support::request("/ws", ""));
    assert!(other.head().starts_with("HTTP/1.1 101 "));
}

#[test]
fn handshakes_above_the_rate_are_reset_and_silence_is_not_counted() {
    let backend = Backend::start();
    let (config, _folder) = tls::config(Config::to(backend.address()), &["a.example"]);
    let gateway = Gateway::start(&config.limits("tls_handshakes_per_second = 1"));
    let address = gateway.address();
    let mut silent: Vec<Client> = (0..10).map(|_| Client::connect(address)).collect();
    // The beginning of a hello is no handshake either.
    for client in &mut silent[5..] {
        client.write(&[22, 3, 1, 2]);
    }
    gateway.wait_metric("portcullis_connections{stage=\"tls_handshake\"}", |count| count == 10);
    secure(address, &Wish::default()).expect("the first one in this second");
    let refused = (0..10).filter(|_| secure(address, &Wish::default()).is_err()).count();
    assert!(refused >= 8, "{refused} of 10 refused");
    gateway.wait_metric("portcullis_tls_rate_refusals_total", |count| count == refused as u64);
    drop(silent);
    wait_until("a second later one is let in", || secure(address, &Wish::default()).is_ok());
}

#[test]
fn without_memory_nobody_new_comes_in() {
    let backend = Backend::start();
    // The gateway is in this process, which so uses more than that.
    let ballast = std::hint::black_box(vec![1_u8; 32 << 20]);
    let config = Config::to(backend.address()).limits("memory_max = \"16MiB\"");
    let gateway = Gateway::start(&config);
    gateway.wait_metric("portcullis_memory_rung", |pressure| pressure == 3);
    assert_eq!(gateway.get("/readyz"), (503, "memory is short\n".into()));
    assert_eq!(gateway.get("/healthz").0, 200, "a restart would not help");
    let mut client = Client::connect(gateway.address());
    client.write(b"GET /ws HTTP/1.1\r\n");
    assert_eq!(client.end(), End::Reset);
    gateway.wait_metric("portcullis_memory_refusals_total", |count| count == 1);
    assert_eq!(gateway.metric("portcullis_memory_budget_bytes"), 16 << 20);
    assert!(gateway.metric("portcullis_memory_used_bytes") > 16 << 20);
    drop(ballast);
}
