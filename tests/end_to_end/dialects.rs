//! Closes that wait, on real sockets: plain and TLS, over a drain, and with a route's own words.

use std::time::{Duration, Instant};

use crate::support::{Backend, Child, Client, Config, End, Gateway, Opcode, SLACK};
use crate::tls::{Wish, config as with_tls, secure};

const PACE: Duration = Duration::from_secs(5);
const EXPLAINED: &str = concat!(
    r#"[null,null,"phoenix","phx_error",{"reason":"token_missing","code":1000,"#,
    r#""reconnect":false}]"#
);

fn phoenix(backend: &Backend) -> Config {
    Config::bare(backend.address()).guarded("a", "authorization", "dialect = \"phoenix\"")
}

/// Explained at once, closed after the pace and no later than half as much again.
fn refused_at_a_pace(client: &mut Client, begun: Instant) {
    client.expect(Opcode::Text, EXPLAINED.as_bytes());
    assert!(begun.elapsed() < PACE / 2, "{:?}", begun.elapsed());
    assert_eq!(client.close_frame(), (Some(1000), "token_missing".into()));
    assert!(begun.elapsed() >= PACE, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < PACE * 3 / 2 + SLACK, "{:?}", begun.elapsed());
    // Nobody answers, so it ends after the linger, and before 10.1 s are over.
    assert_eq!(client.end(), End::Reset);
    assert!(begun.elapsed() < Duration::from_millis(10_100) + SLACK);
}

#[test]
fn a_refusal_is_paced_over_plain_tcp_and_tls() {
    let backend = Backend::start();
    let plain = Gateway::start(&phoenix(&backend));
    let (settings, _folder) = with_tls(phoenix(&backend), &["a.example"]);
    let tls = Gateway::start(&settings);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            refused_at_a_pace(&mut Client::open(plain.address(), "/a", ""), begun);
        });
        scope.spawn(|| {
            let begun = Instant::now();
            let stream = secure(tls.address(), &Wish::default()).expect("a handshake").stream;
            let tcp = stream.sock.try_clone().expect("a clone");
            let mut client = Client::over(stream, tcp);
            client.write(crate::support::request("/a", "").as_bytes());
            assert!(client.head().starts_with("HTTP/1.1 101 "));
            refused_at_a_pace(&mut client, begun);
        });
    });
    for gateway in [&plain, &tls] {
        assert_eq!(gateway.metric("portcullis_closes_paced_total"), 1);
        gateway.wait_closes("token_missing", 1);
    }
    assert_eq!(backend.opens(), 0);
}

/// Who waits is not waited for.
#[test]
fn a_drain_ends_every_pace() {
    let backend = Backend::start();
    let config = phoenix(&backend).deadlines("drain = \"1s\"");
    let mut child = Child::start(config, "");
    let mut client = Client::open(child.address, "/a", "");
    client.expect(Opcode::Text, EXPLAINED.as_bytes());
    let begun = Instant::now();
    child.signal("TERM");
    assert_eq!(client.close_frame(), (Some(1000), "token_missing".into()));
    client.close(1000, "");
    assert_eq!(child.wait().code(), Some(0), "{}", child.log());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
