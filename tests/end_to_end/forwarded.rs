//! Behind proxies that speak HTTP: who the client is, where it believes to be, and who may say so.

use std::net::SocketAddr;

use crate::support::{Backend, Client, Config, Gateway, head};

const TRUSTED: &str = "forwarded = { trusted = [\"127.0.0.0/8\", \"10.0.0.0/8\"] }\n";

fn behind(config: Config, listener: &str) -> Config {
    let listeners = config.listeners.clone() + listener;
    Config { listeners, ..config }
}

/// The head of an upgrade to `path` at `host`.
fn upgrade(path: &str, host: &str, fields: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
    )
}

fn ask(gateway: &Gateway, request: &str) -> (Client, String) {
    let mut client = Client::connect(gateway.address());
    client.write(request.as_bytes());
    let answer = client.head();
    (client, answer)
}

/// A gateway, a value, and the host and port that a request is for.
type Row<'a> = (&'a Gateway, &'a str, Option<(&'a str, Option<u16>)>);

#[test]
fn a_trusted_proxy_says_who_the_client_is() {
    let backend = Backend::start();
    let list = behind(Config::to(backend.address()), TRUSTED);
    let single = "forwarded = { trusted = [\"127.0.0.1\"], header = \"CF-Connecting-IP\" }\n";
    let single = behind(Config::to(backend.address()), single);
    let strangers = "forwarded = { trusted = [\"10.0.0.0/8\"] }\n";
    let strangers = behind(Config::to(backend.address()), strangers);
    let (list, single, strangers) =
        (Gateway::start(&list), Gateway::start(&single), Gateway::start(&strangers));
    // Without a port, the proxy's own counts.
    let table: &[Row<'_>] = &[
        (&list, "", None),
        (&list, "X-Forwarded-For: 198.51.100.7\r\n", Some(("198.51.100.7", None))),
        (&list, "x-forwarded-for: 198.51.100.7:99\r\n", Some(("198.51.100.7", Some(99)))),
        (&list, "X-Forwarded-For: [2001:db8::1]:99\r\n", Some(("2001:db8::1", Some(99)))),
        (&list, "X-Forwarded-For: 6.6.6.6, 198.51.100.7\r\n", Some(("198.51.100.7", None))),
        (&list, "X-Forwarded-For: 198.51.100.7, 10.1.2.3\r\n", Some(("198.51.100.7", None))),
        (
            &list,
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 198.51.100.7\r\n",
            Some(("198.51.100.7", None)),
        ),
        (&list, "X-Forwarded-For: unknown\r\n", None),
        (&list, "X-Forwarded-For: \r\n", None),
        (&list, "X-Real-IP: 6.6.6.6\r\nCF-Connecting-IP: 6.6.6.6\r\n", None),
        (&single, "CF-Connecting-IP: 198.51.100.7\r\n", Some(("198.51.100.7", None))),
        (&single, "CF-Connecting-IP: 6.6.6.6\r\nCF-Connecting-IP: 6.6.6.7\r\n", None),
        (&single, "CF-Connecting-IP: 6.6.6.6, 6.6.6.7\r\n", None),
        (&single, "X-Forwarded-For: 6.6.6.6\r\n", None),
        (&strangers, "X-Forwarded-For: 6.6.6.6\r\n", None),
    ];
    for (gateway, fields, expected) in table {
        let (mut client, answer) = ask(gateway, &upgrade("/ws", "gate.example", fields));
        assert!(answer.starts_with("HTTP/1.1 101 "), "{fields}: {answer}");
        client.echo("hello");
        let own = client.tcp().local_addr().expect("connected");
        let expected = expected.map_or(own, |(ip, port)| {
            SocketAddr::new(ip.parse().expect("an address"), port.unwrap_or(own.port()))
        });
        assert_eq!(backend.opened().remote, Some(expected), "{fields}");
    }
}

#[test]
fn what_strangers_claim_of_themselves_is_not_passed_on() {
    let backend = Backend::start();
    let route = "auth = \"none\"\nforward_headers = [\"X-Forwarded-For\", \"accept-language\"]\n";
    let config = || Config::bare(backend.address()).route("/ws", route);
    let trusting = Gateway::start(&behind(config(), TRUSTED));
    let plain = Gateway::start(&config());
    let fields = "X-Forwarded-For: 198.51.100.7\r\nAccept-Language: de\r\n";
    for (gateway, expected) in [
        (&trusting, vec![("x-forwarded-for", "198.51.100.7"), ("accept-language", "de")]),
        (&plain, vec![("accept-language", "de")]),
    ] {
        let (mut client, _) = ask(gateway, &upgrade("/ws", "gate.example", fields));
        client.echo("hello");
        let headers = backend.opened().headers;
        let got: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), std::str::from_utf8(value).expect("text")))
            .collect();
        assert_eq!(got, expected);
    }
}

#[test]
fn routes_are_chosen_by_host_and_path() {
    let backend = Backend::start();
    let more = |hosts: &str, origins: &str| {
        format!("auth = \"none\"\nrefuse = \"http\"\nhosts = [{hosts}]\norigins = [{origins}]\n")
    };
    let config = Config::bare(backend.address())
        .route("/ws", &more("\"app.example\"", "\"https://app.example\""))
        .route(
            "/ws",
            &("name = \"wild\"\n".to_owned()
                + &more("\"*.wild.example\", \"192.0.2.1\"", "\"same-host\"")),
        )
        .route("/local", "auth = \"none\"\nrefuse = \"http\"\norigins = [\"null\", \"file://\"]\n");
    let proxied = Gateway::start(&behind(config.clone(), TRUSTED));
    let direct = Gateway::start(&config);
    let forwarded = |host: &str, more: &str| {
        format!("X-Forwarded-Host: {host}\r\nX-Forwarded-Proto: https\r\n{more}")
    };
    let origin = |origin: &str| format!("Origin: {origin}\r\n");
    let wild = forwarded("a.wild.example", "");
    let table: Vec<(&Gateway, &str, String, &str)> = vec![
        (&direct, "app.example", origin("https://app.example"), "101"),
        (&direct, "APP.example:8443", origin("https://app.example"), "101"),
        (&direct, "other.example", String::new(), "404 not_found_host"),
        (&direct, "wild.example", String::new(), "404 not_found_host"),
        // The origin of the page itself, as seen by this gateway: no TLS here.
        (&direct, "a.wild.example", origin("http://a.wild.example"), "101"),
        (&direct, "a.wild.example:8080", origin("http://a.wild.example:8080"), "101"),
        (&direct, "a.wild.example", origin("https://a.wild.example"), "403"),
        (&direct, "a.wild.example", origin("http://b.wild.example"), "403"),
        (&direct, "192.0.2.1", origin("http://192.0.2.1"), "101"),
        // A name of an attacker's that was made to point here.
        (&direct, "rebound.example", origin("http://rebound.example"), "404 not_found_host"),
        (&direct, "inner", forwarded("app.example", ""), "404 not_found_host"),
        (&proxied, "inner", forwarded("app.example", &origin("https://app.example")), "101"),
        (&proxied, "inner", wild.clone() + &origin("https://a.wild.example"), "101"),
        (&proxied, "inner", wild.clone() + &origin("http://a.wild.example"), "403"),
        (
            &proxied,
            "inner",
            wild.clone() + "X-Forwarded-Port: 8443\r\n" + &origin("https://a.wild.example:8443"),
            "101",
        ),
        (&proxied, "inner", forwarded("a.wild.example, b", ""), "404 not_found_host"),
        (
            &proxied,
            "inner",
            forwarded("app.example", "X-Forwarded-Host: a.wild.example\r\n"),
            "404 not_found_host",
        ),
    ];
    for (gateway, host, fields, expected) in table {
        let (mut client, answer) = ask(gateway, &upgrade("/ws", host, &fields));
        let (status, word) = expected.split_once(' ').unwrap_or((expected, ""));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host} {fields}: {answer}");
        if !word.is_empty() {
            let (body, _) = client.drain();
            assert!(body.starts_with(word.as_bytes()), "{host}: {}", body.escape_ascii());
        }
    }
    for (origin, status) in [("null", 101), ("file://", 101), ("file:///x", 403), ("nullx", 403)] {
        let fields = format!("Origin: {origin}\r\n");
        let (_, answer) = ask(&direct, &upgrade("/local", "any.example", &fields));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{origin}: {answer}");
    }
}

#[test]
fn requests_without_tls_are_redirected_and_health_checks_are_not() {
    let backend = Backend::start();
    let config =
        || Config::to(backend.address()).route("/health", "auth = \"none\"\nhealth = true\n");
    let direct = Gateway::start(&behind(config(), "redirect = \"https\"\n"));
    let proxied = format!("redirect = \"https\"\n{TRUSTED}");
    let proxied = Gateway::start(&behind(config(), &proxied));
    let balanced = "redirect = \"https\"\nproxy_protocol = { trusted = [\"127.0.0.1\"] }\n";
    let balanced = Gateway::start(&behind(config(), balanced));
    let plain = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: app.example:8080\r\n\r\n");
    for (request, location) in [
        (upgrade("/ws?a=%20b", "app.example", ""), "https://app.example/ws?a=%20b"),
        (plain("/"), "https://app.example/"),
        (plain("/nowhere?x"), "https://app.example/nowhere?x"),
    ] {
        let (_, answer) = ask(&direct, &request);
        assert!(answer.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{answer}");
        assert_eq!(head(&answer, "location"), Some(location));
        assert_eq!(head(&answer, "connection"), Some("close"));
    }
    let old = "GET / HTTP/1.0\r\n\r\n";
    assert!(ask(&direct, old).1.starts_with("HTTP/1.1 400 "), "there is no host to go to");
    assert!(ask(&direct, &plain("/health")).1.starts_with("HTTP/1.1 200 "));
    // What a stranger says of its own TLS counts for nothing.
    let claims = upgrade("/ws", "app.example", "X-Forwarded-Proto: https\r\n");
    assert!(ask(&direct, &claims).1.starts_with("HTTP/1.1 308 "));
    assert!(ask(&proxied, &claims).1.starts_with("HTTP/1.1 101 "));
    let http = upgrade("/ws", "app.example", "X-Forwarded-Proto: http\r\n");
    assert!(ask(&proxied, &http).1.starts_with("HTTP/1.1 308 "));
    let twice = "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: https\r\n";
    assert!(ask(&proxied, &upgrade("/ws", "app.example", twice)).1.starts_with("HTTP/1.1 308 "));
    // A PROXY header may say that the client speaks TLS to the balancer.
    for (client, status) in [(1, "101"), (0, "308")] {
        let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];
        let ssl = [0x20, 0, 5, client, 0, 0, 0, 0];
        let mut sent = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14".to_vec();
        sent.extend_from_slice(&addresses);
        sent.extend_from_slice(&ssl);
        sent.extend_from_slice(upgrade("/ws", "app.example", "").as_bytes());
        let mut asking = Client::connect(balanced.address());
        asking.write(&sent);
        let answer = asking.head();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{client}: {answer}");
    }
    direct.wait_closes("redirected", 4);
}

/// A proxy of many clients has no share of its own; from the head on each client has its own.
#[test]
fn the_forwarded_address_is_what_counts() {
    let backend = Backend::start();
    let limits = "unauthenticated_max = 100\nconnections_max = 1_000\nearly_drop_start = 10\n\
                  early_drop_rate = 100\nprefix_share = 5";
    let config =
        Config::bare(backend.address()).guarded("late", "first-message", "").limits(limits);
    let config = config.deadlines("request_head = \"60s\"\nauthenticate = \"60s\"");
    let gateway = Gateway::start(&behind(config, TRUSTED));
    const DROPS: &str = "portcullis_early_drops_total{reason=\"share\"}";
    // Half heads are the proxy's, whose crowd nobody drops.
    let halves: Vec<Client> = (0..30)
        .map(|_| {
            let mut client = Client::connect(gateway.address());
            client.write(b"GET /late ");
            client
        })
        .collect();
    let open = |source: &str| {
        let mut client = Client::connect(gateway.address());
        let fields = format!("X-Forwarded-For: {source}\r\n");
        client.write(upgrade("/late", "gate.example", &fields).as_bytes());
        client
            .try_head()
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 101 "))
            .then_some(client)
    };
    assert_eq!(gateway.metric(DROPS), 0);
    let crowd: Vec<Option<Client>> = (0..20).map(|_| open("198.51.100.1")).collect();
    gateway.wait_metric(DROPS, |count| count >= 10);
    let other = open("198.51.100.2");
    assert!(other.is_some(), "another client of the same proxy");
    drop((halves, crowd));
}
