//! A token must never be seen outside: every carrier, good, bad and misplaced tokens, and then a
//! search of all that the gateway writes.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::support::{
    Backend, Child, Client, Config, Opcode, SECRET, mint, request, series_value, unix_now,
    wait_until,
};

/// Cookies that hold the token and nothing else are also secrets.
const COOKIE: &str = "canarycookie-9f2c77";

fn config(backend: &Backend) -> Config {
    let mut config = Config::bare(backend.address());
    config.gateway = "log = { format = \"json\", level = \"trace\" }\n".into();
    for refuse in ["explain", "http"] {
        for (name, carrier) in [
            ("authorization", "authorization"),
            ("subprotocol", "subprotocol"),
            ("header", "header:x-token"),
            ("query", "query:token"),
            ("first", "first-message"),
            ("json", "first-message:token"),
        ] {
            let more = format!("refuse = \"{refuse}\"");
            config = config.guarded(&format!("{name}-{refuse}"), carrier, &more);
        }
        let more = format!(
            "refuse = \"{refuse}\"\norigins = [\"https://app.example\"]\norigin_absent = \"refuse\""
        );
        config = config.guarded(&format!("cookie-{refuse}"), "cookie:session", &more);
    }
    config
}

/// All that a token is recognised by: itself, its parts, and its base64 in both alphabets.
fn traces(token: &str) -> Vec<String> {
    let mut traces = vec![token.to_owned()];
    traces.extend(token.split('.').skip(1).map(str::to_owned));
    traces.push(STANDARD_NO_PAD.encode(token));
    traces.push(URL_SAFE_NO_PAD.encode(token));
    traces.retain(|trace| trace.len() > 12);
    traces
}

/// Uses a token by every carrier, on every route and on wrong ones; returns what was answered.
fn plant(child: &Child, token: &str) -> String {
    let bearer = URL_SAFE_NO_PAD.encode(token);
    let mut answers = String::new();
    for refuse in ["explain", "http", "nowhere"] {
        for (path, fields, message) in [
            ("authorization", format!("Authorization: Bearer {token}\r\n"), None),
            (
                "subprotocol",
                format!("Sec-WebSocket-Protocol: chat, base64url.bearer.phx.{bearer}\r\n"),
                None,
            ),
            ("header", format!("X-Token: {token}\r\n"), None),
            (
                "cookie",
                format!("Origin: https://app.example\r\nCookie: x={COOKIE}; session={token}\r\n"),
                None,
            ),
            ("query", String::new(), None),
            ("first", String::new(), Some(token.to_owned())),
            ("json", String::new(), Some(format!("{{\"token\":\"{token}\"}}"))),
        ] {
            let target = match path {
                "query" => format!("/query-{refuse}?token={token}"),
                _ => format!("/{path}-{refuse}"),
            };
            let mut client = Client::connect(child.address);
            client.write(request(&target, &fields).as_bytes());
            let head = client.head();
            answers += &head;
            if !head.starts_with("HTTP/1.1 101 ") {
                answers += &String::from_utf8_lossy(&client.drain().0);
                continue;
            }
            if let Some(message) = message {
                client.text(&message);
            }
            client.close(4000, "enough");
            answers += &String::from_utf8_lossy(&client.drain().0);
        }
        // In a head that is refused for another reason.
        for broken in [
            format!("POST /x?token={token} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n"),
            format!("GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\n\r\n"),
            format!("GET /query-http?token={token} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET /{token}/../x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ] {
            let mut client = Client::connect(child.address);
            client.write(broken.as_bytes());
            answers += &String::from_utf8_lossy(&client.drain().0);
        }
    }
    // As a message to a backend that closes over it, and as a broken frame.
    let mut client = Client::connect(child.address);
    client.write(request("/first-explain", "").as_bytes());
    client.head();
    client.send(true, Opcode::Ping, &token.as_bytes()[..100]);
    client.frame();
    client.write(&[0xff; 20]);
    answers += &String::from_utf8_lossy(&client.drain().0);
    answers
}

#[test]
fn no_token_shows_up_in_anything_that_the_gateway_writes() {
    let backend = Backend::start();
    for close_log in [false, true] {
        let mut config = config(&backend);
        if close_log {
            config.gateway += "close_log = \"closes.json\"\n";
        }
        let mut child = Child::start(config, "");
        wait_until("the link is up", || {
            series_value(&child.get("/metrics").1, "portcullis_links{state=\"ready\"}") == 1
        });
        let now = unix_now();
        let claims = |exp: u64| {
            format!(r#"{{"sub":"canarysubject","jti":"canaryid-{close_log}","exp":{exp}}}"#)
        };
        let good = mint(SECRET, &claims(now + 600));
        let forged = mint("fedcba9876543210fedcba9876543210", &claims(now + 601));
        let tokens = [
            good.clone(),
            mint(SECRET, &claims(now - 600)),
            forged,
            format!("canarymalformed-{}", "x".repeat(100)),
            format!("{good}A"),
        ];
        let mut texts = vec![("answers", String::new())];
        for token in &tokens {
            texts[0].1 += &plant(&child, token);
        }
        wait_until("every connection is accounted for", || {
            let page = child.get("/metrics").1;
            let open: u64 = ["request_head", "authenticating", "open", "refused", "closing"]
                .iter()
                .map(|stage| {
                    series_value(&page, &format!("portcullis_connections{{stage=\"{stage}\"}}"))
                })
                .sum();
            open == 0
        });
        texts.push(("/metrics", child.get("/metrics").1));
        texts.push(("/live.json", child.get("/live.json").1));
        texts.push(("/", child.get("/").1));
        // A reload tells its warnings, which are about secrets.
        child.signal("HUP");
        wait_until("it is reloaded", || child.log().contains("settings reloaded"));
        child.signal("TERM");
        assert_eq!(child.wait().code(), Some(0));
        wait_until("the log is whole", || child.log().contains("\"stopped\""));
        texts.push(("the log", child.log()));
        if close_log {
            let lines = std::fs::read_to_string(child.path("closes.json")).expect("written");
            assert!(lines.lines().count() > 100, "{lines}");
            texts.push(("the close log", lines));
        } else {
            let lines = child.log().matches("connection closed").count();
            assert!(lines > 100, "{lines} close lines");
        }
        let mut forbidden: Vec<String> = tokens.iter().flat_map(|token| traces(token)).collect();
        forbidden.extend([SECRET.to_owned(), COOKIE.to_owned(), "canarysubject".into()]);
        for (place, text) in &texts {
            for trace in &forbidden {
                // A pong repeats what the client itself put into its ping.
                let shown = text.find(trace.as_str());
                assert!(shown.is_none(), "{place} shows {trace}");
            }
        }
    }
}
