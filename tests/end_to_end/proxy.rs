//! The PROXY protocol: believed from those who are trusted, and from nobody else.

use std::net::SocketAddr;

use crate::support::{Backend, Client, Config, End, Gateway, request};
use crate::tls;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn config(backend: &Backend, trusted: &str) -> Config {
    let config = Config::to(backend.address());
    let listeners =
        config.listeners.clone() + &format!("proxy_protocol = {{ trusted = [\"{trusted}\"] }}\n");
    Config { listeners, ..config }
}

/// A version 2 header with this command and family, and these addresses.
fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = (addresses.len() as u16).to_be_bytes();
    [V2, &[command, family], &length, addresses].concat()
}

#[test]
fn a_trusted_balancer_says_who_the_client_is() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, "127.0.0.0/8"));
    let four = [[192, 0, 2, 7, 10, 0, 0, 1], [0x1f, 0x90, 0, 80, 0, 0, 0, 0]].concat();
    let mut six = [0; 36];
    six[..2].copy_from_slice(&[0x20, 0x01]);
    six[32..34].copy_from_slice(&[0x1f, 0x90]);
    let extra = [&four[..12], &[4, 0, 2, 1, 2]].concat();
    let table: Vec<(Vec<u8>, Option<&str>)> = vec![
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n".to_vec(), Some("192.0.2.7:8080")),
        (b"PROXY TCP6 2001:db8::1 ::1 8080 80\r\n".to_vec(), Some("[2001:db8::1]:8080")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
        (v2(0x21, 0x11, &four[..12]), Some("192.0.2.7:8080")),
        (v2(0x21, 0x11, &extra), Some("192.0.2.7:8080")),
        (v2(0x21, 0x21, &six), Some("[2001::]:8080")),
        // LOCAL: the balancer's own, as for a health check.
        (v2(0x20, 0x00, b""), None),
        (v2(0x20, 0x11, &four[..12]), None),
    ];
    for (header, remote) in table {
        for drip in [false, true] {
            let mut client = Client::connect(gateway.address());
            let sent = [&header, request("/ws", "").as_bytes()].concat();
            match drip {
                true => sent.chunks(1).for_each(|byte| client.write(byte)),
                false => client.write(&sent),
            }
            let what = header.escape_ascii().to_string();
            assert!(client.head().starts_with("HTTP/1.1 101 "), "{what}");
            client.echo("hello");
            let expected = match remote {
                Some(text) => text.parse::<SocketAddr>().expect("an address"),
                None => client.tcp().local_addr().expect("connected"),
            };
            assert_eq!(backend.opened().remote, Some(expected), "{what}");
        }
    }
}

#[test]
fn a_trusted_balancer_without_a_proper_header_is_dropped() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, "127.0.0.1"));
    let table: Vec<Vec<u8>> = vec![
        request("/ws", "").into_bytes(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 8080\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.777 10.0.0.1 8080 80\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::1 ::1 8080 80\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\n".to_vec(),
        [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat(),
        v2(0x31, 0x11, &[0; 12]),
        v2(0x22, 0x11, &[0; 12]),
        v2(0x21, 0x11, &[0; 11]),
        v2(0x21, 0x11, &[0; 5000]),
        b"\r\n\r\n\0\r\nQUIX".to_vec(),
    ];
    let count = table.len();
    for sent in table {
        let mut client = Client::connect(gateway.address());
        client.write(&sent);
        assert_eq!(client.end(), End::Reset, "{}", sent.escape_ascii());
    }
    assert!(backend.seen().is_empty());
    gateway.wait_closes("bad_request", count as u64);
}

#[test]
fn nobody_else_is_believed() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, "10.0.0.0/8"));
    let mut client = Client::connect(gateway.address());
    client.write(b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\n");
    client.write(request("/ws", "").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 400 Bad Request\r\n"));
    let mut client = Client::connect(gateway.address());
    client.write(&v2(0x21, 0x11, &[1; 12]));
    assert!(client.head().starts_with("HTTP/1.1 400 Bad Request\r\n"));
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.echo("hello");
    assert_eq!(backend.opened().remote, client.tcp().local_addr().ok());
}

#[test]
fn the_header_comes_before_tls() {
    let backend = Backend::start();
    let (config, _folder) = tls::config(Config::to(backend.address()), &["a.example"]);
    let listeners = config.listeners.clone() + "proxy_protocol = { trusted = [\"127.0.0.0/8\"] }\n";
    let gateway = Gateway::start(&Config { listeners, ..config });
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 443\r\n";
    let secured = tls::secure_after(gateway.address(), header, &tls::Wish::default());
    let stream = secured.expect("a handshake").stream;
    let tcp = stream.sock.try_clone().expect("cloned");
    let mut client = Client::over(stream, tcp);
    client.write(request("/ws", "").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client.echo("hello");
    assert_eq!(backend.opened().remote, "192.0.2.7:8080".parse().ok());
}

#[test]
fn a_header_may_be_as_long_as_the_limit_says() {
    let backend = Backend::start();
    let config = config(&backend, "127.0.0.0/8");
    let certificate = [&[0x21; 3][..], &vec![7; 7000]].concat();
    let mut body = vec![192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];
    body.extend_from_slice(&[0x30, 0x1b, 0x5b]);
    body.extend_from_slice(&certificate);
    let sent = [&v2(0x21, 0x11, &body), request("/ws", "").as_bytes()].concat();
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.address());
    client.write(&sent);
    assert!(client.try_head().is_none(), "it is over 4 KiB");
    let detail = "portcullis_close_details_total{detail=\"proxy_header_too_long\"}";
    gateway.wait_metric(detail, |count| count == 1);
    let gateway = Gateway::start(&config.limits("proxy_header_max = \"8KiB\""));
    let mut client = Client::connect(gateway.address());
    client.write(&sent);
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client.echo("hello");
    assert_eq!(backend.opened().remote, "192.0.2.7:8080".parse().ok());
}
