//! A secret must never be seen outside: tokens by every carrier, good, bad and misplaced, the keys
//! of tokens, links and the admin listener; and then a search of all that the gateway writes, also
//! when a worker panics.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use portcullis::server::files::load_file;
use portcullis::server::{StartOptions, logs, start};

use crate::support::{
    Backend, Child, Choices, Client, Config, Opcode, PATIENCE, SECRET, mint, request, series_value,
    unix_now, wait_until,
};

/// Cookies that hold the token and nothing else are also secrets.
const COOKIE: &str = "canarycookie-9f2c77";
/// The key of the link, and one that the backend does not have.
const LINK: &str = "canarylink-0123456789abcdef0123456789";
const OTHER_LINK: &str = "canaryother-0123456789abcdef0123456789";
/// What the admin listener asks for, and what it must not accept.
const ADMIN: &str = "canaryadmin-0123456789abcdef0123456789";
const OTHER_ADMIN: &str = "canarywrong-0123456789abcdef0123456789";
const ADMIN_VARIABLE: &str = "PORTCULLIS_CANARY_ADMIN";

/// What other programs made: a Phoenix token, a session cookie with its masked CSRF token, and the
/// secret under all of them.
struct Plug {
    base: String,
    phoenix: String,
    session: String,
    csrf: String,
}

impl Plug {
    fn read() -> Plug {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/plug.json");
        let text = std::fs::read(path).expect("the vectors are there");
        let all: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let text = |pointer: &str| {
            let value = all.pointer(pointer).and_then(|value| value.as_str());
            value.unwrap_or_else(|| panic!("{pointer} is a text")).to_owned()
        };
        Plug {
            base: text("/secret_key_base"),
            phoenix: text("/tokens/0/token"),
            session: text("/sessions/0/cookie"),
            csrf: text("/sessions/0/csrf/0"),
        }
    }

    fn auths(&self) -> String {
        let base = &self.base;
        format!(
            "[[auth]]\nname = \"phoenix\"\nkind = \"phoenix\"\ncarriers = [\"subprotocol\"]\n\
             secret_key_base = \"{base}\"\nsalt = \"user auth\"\nmax_age = \"off\"\n\
             [[auth]]\nname = \"plug\"\nkind = \"plug-session\"\ncarriers = [\"cookie:_app_key\"]\n\
             secret_key_base = \"{base}\"\nsigning_salt = \"p4Xf2Qzk\"\nsubject = \"user_id\"\n\
             [[auth]]\nname = \"compact\"\nkind = \"compact\"\ncarriers = [\"authorization\"]\n\
             keys = [{{ id = \"9\", secret = \"{SECRET}\" }}]\n"
        )
    }

    /// What a client sends with each: path and query, and fields.
    fn requests(&self, refuse: &str) -> [(String, String); 4] {
        let origin = "Origin: https://app.example\r\n";
        let offer = STANDARD_NO_PAD.encode(&self.phoenix);
        let (csrf, session) = (&self.csrf, &self.session);
        let offer = format!("Sec-WebSocket-Protocol: base64url.bearer.phx.{offer}\r\n");
        let forged = offer.replace("phx.U", "phx.V");
        let cookie = format!("Cookie: _app_key={session}\r\n{origin}");
        [
            (format!("/phoenix-{refuse}"), offer),
            (format!("/phoenix-{refuse}"), forged),
            (format!("/plug-{refuse}?_csrf_token={csrf}"), cookie.clone()),
            (format!("/plug-{refuse}?_csrf_token={}", csrf.to_lowercase()), cookie),
        ]
    }

    /// All that must not be seen.
    fn secrets(&self) -> Vec<String> {
        let mut secrets = vec![self.base.clone(), self.csrf.clone(), self.csrf.to_lowercase()];
        secrets.extend([&self.phoenix, &self.session].into_iter().flat_map(|token| traces(token)));
        secrets
    }
}

/// How an open connection presents a fresh token.
const LIVE: &str = r#"reauthenticate = { prefix = '{"type":"authenticate",', token = "token" }"#;

/// Dialects whose own handshake carries a token, and where.
const HANDSHAKES: [(&str, &str); 2] = [
    ("graphql-transport-ws", "first-message:payload.token"),
    ("centrifuge", "first-message:connect.token"),
];

/// One run: how the gateway logs, and what happens to it.
struct Run {
    log: &'static str,
    close_log: bool,
    panics: bool,
}

const RUNS: &[Run] = &[
    Run { log: "format = \"json\", level = \"trace\"", close_log: false, panics: false },
    Run { log: "format = \"json\", level = \"trace\"", close_log: true, panics: false },
    Run { log: "format = \"pretty\", level = \"debug\"", close_log: false, panics: false },
    Run { log: "format = \"json\", level = \"trace\"", close_log: false, panics: true },
];

/// What endpoints of `kind = "http"` answer in turn: decisions good and bad, all of them with
/// secrets in places where they do not belong.
const VERDICTS: &[&str] = &[
    "200 OK\r\nX-Auth-Subject: canarysubject\r\nX-Auth-Claims: canaryverdict-claims",
    "401 Unauthorized\r\nX-Auth-Reason: canaryverdict-reason",
    "403 Forbidden\r\nX-Auth-Reason: token_expired",
    "500 Oops canaryverdict-status",
    "302 Found\r\nLocation: http://127.0.0.1/?token=canaryverdict-location",
    "200 OK",
    "200 OK\r\nX-Auth-Subject: canarysubject\r\nX-Auth-Expires: canaryverdict-expires",
    "200 OK\r\nX-Auth-Subject: canarysubject\r\nX-Auth-Subject: canaryverdict-twice",
    "200 OK\r\nX-Auth-Subject: canarysubject\r\ncanaryverdict-no-colon",
    "canaryverdict-no-status",
];

/// An endpoint of `kind = "http"` that repeats what it was asked.
fn verdict_endpoint() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for (stream, answer) in listener.incoming().zip(VERDICTS.iter().cycle()) {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let mut asked = Vec::new();
            let mut buffer = [0; 4096];
            while !asked.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(count @ 1..) => asked.extend_from_slice(&buffer[..count]),
                    _ => break,
                }
            }
            let secrets = "Set-Cookie: s=canaryverdict-cookie\r\nX-Auth-Token-Id: canaryverdict-id";
            let length = asked.len();
            let head = format!(
                "HTTP/1.1 {answer}\r\n{secrets}\r\nConnection: close\r\n\
                 Content-Length: {length}\r\n\r\n"
            );
            let _ = stream.write_all(&[head.as_bytes(), &asked].concat());
        }
    });
    address
}

fn config(backend: &Backend, run: &Run) -> Config {
    let mut config = Config { backends: String::new(), ..Config::bare(backend.address()) }
        .backend(&[backend.address()], &format!("secret = \"{LINK}\""));
    config.gateway =
        format!("log = {{ {} }}\nadmin_token_file = \"env:{ADMIN_VARIABLE}\"\n", run.log);
    if run.close_log {
        config.gateway += "close_log = \"closes.json\"\n";
    }
    let endpoint = verdict_endpoint();
    config.auths += &format!(
        "[[auth]]\nname = \"asked\"\nkind = \"http\"\ncarriers = [\"authorization\", \"cookie:session\"]\n\
         endpoint = \"http://{endpoint}/verdict?key=canaryverdict-query\"\ncircuit_failures = 1_000\n"
    );
    config = config.guarded("live", "authorization", LIVE).asking(
        "decided",
        "backend",
        &["authorization", "first-message"],
        // It does not know what to say to most of them.
        "timeout = \"50ms\"",
    );
    config.auths += &Plug::read().auths();
    for refuse in ["explain", "http"] {
        for kind in ["phoenix", "plug", "compact"] {
            let more = format!(
                "auth = \"{kind}\"\nrefuse = \"{refuse}\"\norigins = [\"https://app.example\"]\n"
            );
            config = config.route(&format!("/{kind}-{refuse}"), &more);
        }
        let more = format!(
            "auth = \"asked\"\nrefuse = \"{refuse}\"\norigins = [\"https://app.example\"]\n"
        );
        config = config.route(&format!("/asked-{refuse}"), &more);
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
        for (dialect, carrier) in HANDSHAKES {
            let more = format!("refuse = \"{refuse}\"\ndialect = \"{dialect}\"");
            config = config.guarded(&format!("{dialect}-{refuse}"), carrier, &more);
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

/// Asks for a path, says a message if it is upgraded, and closes; returns what was answered.
fn tell(child: &Child, target: &str, fields: &str, message: Option<&str>) -> String {
    let mut client = Client::connect(child.address);
    client.write(request(target, fields).as_bytes());
    let mut answer = client.head();
    if answer.starts_with("HTTP/1.1 101 ") {
        message.into_iter().for_each(|message| client.text(message));
        client.close(4000, "enough");
    }
    answer += &String::from_utf8_lossy(&client.drain().0);
    answer
}

/// Uses a token by every carrier, on every route and on wrong ones; returns what was answered.
fn plant(child: &Child, token: &str, good: &str) -> String {
    let bearer = URL_SAFE_NO_PAD.encode(token);
    let mut answers = String::new();
    for refuse in ["explain", "http", "nowhere"] {
        let asked = format!("Authorization: Bearer {token}\r\n");
        let asked = std::iter::repeat_n(("asked", asked, None), VERDICTS.len() / 2);
        let cookie = format!("Cookie: x={COOKIE}; session={token}\r\n");
        let table = [
            ("authorization", format!("Authorization: Bearer {token}\r\n"), None),
            (
                "subprotocol",
                format!("Sec-WebSocket-Protocol: chat, base64url.bearer.phx.{bearer}\r\n"),
                None,
            ),
            ("header", format!("X-Token: {token}\r\n"), None),
            ("compact", format!("Authorization: Bearer {token}\r\n"), None),
            ("cookie", format!("Origin: https://app.example\r\n{cookie}"), None),
            ("asked", format!("Origin: https://app.example\r\n{cookie}"), None),
            ("query", String::new(), None),
            ("first", String::new(), Some(token.to_owned())),
            ("json", String::new(), Some(format!("{{\"token\":\"{token}\"}}"))),
            (
                "graphql-transport-ws",
                "Sec-WebSocket-Protocol: graphql-transport-ws\r\n".into(),
                Some(format!(r#"{{"type":"connection_init","payload":{{"token":"{token}"}}}}"#)),
            ),
            (
                "centrifuge",
                String::new(),
                Some(format!(r#"{{"id":1,"connect":{{"token":"{token}"}}}}"#)),
            ),
        ];
        for (path, fields, message) in table.into_iter().chain(asked) {
            let target = match path {
                "query" => format!("/query-{refuse}?token={token}"),
                _ => format!("/{path}-{refuse}"),
            };
            answers += &tell(child, &target, &fields, message.as_deref());
        }
        for (target, fields) in Plug::read().requests(refuse) {
            answers += &tell(child, &target, &fields, None);
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
    // On an open connection, and where the backend decides.
    let fresh = format!(r#"{{"type":"authenticate","token":"{token}"}}"#);
    answers += &tell(child, "/live", &format!("Authorization: Bearer {good}\r\n"), Some(&fresh));
    answers += &tell(child, "/decided", &format!("Authorization: Bearer {token}\r\n"), None);
    for decision in ["accept canarysubject", "busy", "never"] {
        answers += &tell(child, "/decided", "", Some(&format!("{decision} {token}")));
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

/// Uses the admin listener as its owner does, and as others try.
fn ask(child: &Child, line: &str, token: &str) -> String {
    ask_with(child, line, token, "")
}

fn ask_with(child: &Child, line: &str, token: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(child.admin).expect("the admin listener");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn metric(child: &Child, series: &str) -> u64 {
    series_value(&ask(child, "GET /metrics", ADMIN), series)
}

/// Asks for everything that the admin listener has, and for what it has not.
fn admin_answers(child: &Child, good: &str) -> Vec<(&'static str, String)> {
    let own = ["GET /metrics", "GET /live.json", "GET /", "GET /healthz", "GET /readyz"];
    let mut texts: Vec<_> = own.into_iter().map(|line| (line, ask(child, line, ADMIN))).collect();
    assert!(texts.iter().all(|(_, answer)| answer.starts_with("HTTP/1.1 200 ")), "{texts:?}");
    let refused = ask(child, "GET /metrics", OTHER_ADMIN);
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");
    texts.push(("401", refused));
    let absent = format!("GET /nothing?token={ADMIN}");
    texts.push(("404", ask(child, &absent, ADMIN)));
    // The token itself, where its id belongs.
    for body in
        [format!(r#"{{"token":"{good}"}}"#), format!(r#"{{"lapses":"{good}"}}"#), good.into()]
    {
        let refused = ask_with(child, "POST /revocations", ADMIN, &body);
        assert!(refused.starts_with("HTTP/1.1 422 "), "{refused}");
        texts.push(("a revocation", refused));
    }
    texts
}

/// A reload that tells warnings about secrets, and one whose file has them in wrong places.
fn reloads(child: &Child) -> Vec<(&'static str, String)> {
    let good = ask(child, "POST /-/reload", ADMIN);
    assert!(good.starts_with("HTTP/1.1 200 "), "{good}");
    let config = child.config();
    let mut broken = config.clone();
    broken.auths = broken.auths.replace("keys = [{ secret =", "keys = [{ secret_file =");
    broken.backends = broken.backends.replace("secret = \"", "secret = \"\\q");
    child.rewrite(&broken);
    let bad = ask(child, "POST /-/reload", ADMIN);
    assert!(bad.starts_with("HTTP/1.1 422 "), "{bad}");
    broken.backends = config.backends.clone();
    child.rewrite(&broken);
    let worse = ask(child, "POST /-/reload", ADMIN);
    assert!(worse.starts_with("HTTP/1.1 422 "), "{worse}");
    child.rewrite(&config);
    vec![("a reload", good), ("a refused reload", bad), ("another", worse)]
}

/// Makes the one worker panic while clients with tokens are open.
fn make_it_panic(child: &Child, good: &str) {
    let fields = format!("Authorization: Bearer {good}\r\n");
    let mut open = Client::open(child.address, "/authorization-explain", &fields);
    open.text(good);
    let mut waiting = Client::open(child.address, "/first-explain", "");
    waiting.send(false, Opcode::Text, &good.as_bytes()[..60]);
    std::fs::write(child.path("panic"), "").expect("written");
    wait_until("the worker panicked", || metric(child, "portcullis_worker_panics_total") == 1);
    wait_until("the link is up again", || metric(child, LINK_READY) == 1);
}

const LINK_READY: &str = "portcullis_links{state=\"ready\"}";

/// Everything that the gateway wrote in one run, by place.
fn collect(run: &Run, tokens: &[String]) -> Vec<(&'static str, String)> {
    let choices = Choices { secret: Some(LINK), decides: true, ..Choices::default() };
    let backend = Backend::start_at("127.0.0.1:0", choices);
    let address = backend.address().to_owned();
    let limits = format!("export RUST_BACKTRACE=full {ADMIN_VARIABLE}={ADMIN};");
    let config = config(&backend, run);
    let mut child = match run.panics {
        false => Child::start(config, &limits),
        true => Child::start_program(config, &limits, &panicking_program()),
    };
    wait_until("the link is up", || metric(&child, LINK_READY) == 1);
    let mut texts = vec![("answers to clients", String::new())];
    if run.panics {
        make_it_panic(&child, &tokens[0]);
    }
    for token in tokens {
        texts[0].1 += &plant(&child, token, &tokens[0]);
    }
    // Some were good: 7 carriers and 2 handshakes with the one good token, and 2 of Plug's, each on
    // 2 routes.
    let good = 2 * (9 + 2 * tokens.len() as u64);
    wait_until("the good ones were accepted", || {
        metric(&child, "portcullis_tokens_accepted_total") >= good
    });
    wait_until("a fresh token was accepted, and others refused", || {
        let series = |result| format!("portcullis_reauthentications_total{{result=\"{result}\"}}");
        metric(&child, &series("accepted")) > 0 && metric(&child, &series("refused")) > 0
    });
    wait_until("every connection is accounted for", || {
        let stages = ["request_head", "authenticating", "open", "refused", "closing"];
        let open = |stage| metric(&child, &format!("portcullis_connections{{stage=\"{stage}\"}}"));
        stages.into_iter().map(open).sum::<u64>() == 0
    });
    texts.extend(admin_answers(&child, &tokens[0]));
    texts.extend(reloads(&child));
    // A backend with another key: the handshake of the link fails.
    drop(backend);
    let other = Choices { secret: Some(OTHER_LINK), ..Choices::default() };
    let failures = metric(&child, "portcullis_link_failures_total");
    let impostor = Backend::start_at(&address, other);
    wait_until("the link failed", || {
        metric(&child, "portcullis_link_failures_total") > failures + 1
    });
    drop(impostor);
    child.signal("TERM");
    assert_eq!(child.wait().code(), Some(0), "{}", child.log());
    wait_until("the log is whole", || child.log().contains("stopped"));
    if run.panics {
        assert!(child.log().contains("told to panic"), "{}", child.log());
    }
    if run.close_log {
        let lines = std::fs::read_to_string(child.path("closes.json")).expect("written");
        assert!(lines.lines().count() > 100, "{lines}");
        texts.push(("the close log", lines));
    } else {
        let lines = child.log().matches("connection closed").count();
        assert!(lines > 100, "{lines} close lines");
    }
    texts.push(("the log", child.log()));
    texts
}

#[test]
fn no_secret_shows_up_in_anything_that_the_gateway_writes() {
    for (number, run) in RUNS.iter().enumerate() {
        let now = unix_now();
        let claims = |exp: u64| {
            format!(r#"{{"sub":"canarysubject","jti":"canaryid-{number}","exp":{exp}}}"#)
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
        let texts = collect(run, &tokens);
        let mut forbidden: Vec<String> = tokens.iter().flat_map(|token| traces(token)).collect();
        forbidden.extend(Plug::read().secrets());
        let keys = [
            SECRET,
            COOKIE,
            LINK,
            OTHER_LINK,
            ADMIN,
            OTHER_ADMIN,
            "canarysubject",
            "canaryverdict",
        ];
        forbidden.extend(keys.map(str::to_owned));
        for (place, text) in &texts {
            for trace in &forbidden {
                // A pong repeats what the client itself put into its ping.
                let shown = text.find(trace.as_str());
                assert!(shown.is_none(), "{place} shows {trace} with {}", run.log);
            }
        }
    }
}

/// This test program, as a gateway that a file named `panic` makes panic.
fn panicking_program() -> String {
    let program = std::env::current_exe().expect("a program");
    let test = "canary::a_gateway_that_panics_when_told";
    format!("{} --exact {test} --ignored --nocapture", program.display())
}

#[test]
#[ignore = "a program for the test above"]
fn a_gateway_that_panics_when_told() {
    let path = Path::new("portcullis.toml");
    if !path.exists() {
        return;
    }
    let settings = load_file(path).unwrap_or_else(|_| panic!("a good file")).settings;
    let gateway = &settings.gateway;
    let logs = logs::install(gateway.log_format, &gateway.log_level).expect("a filter");
    let path = Some(path.to_owned());
    let options =
        StartOptions { config_path: path, signals: true, logs, ..StartOptions::default() };
    let gateway = start(settings, options).expect("it starts");
    while !Path::new("panic").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.inject_panic(0);
    gateway.join().expect("it ends");
}
