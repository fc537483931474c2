//! The configuration: the shipped examples, every rule's exact answer, the documentation's
//! tables, and what a reload may change.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis::protocol::carrier::Carrier;
use portcullis::settings::keys::{self, NONE, REQUIRED, Reload, SECTIONS, Shape, schema};
use portcullis::settings::load::{Environment, FileContents, Loaded, Problem, load};
use portcullis::settings::reload::restart_required;
use portcullis::settings::units::{SIZES, TIMES, format_duration, format_size};
use portcullis::settings::{
    AuthKind, Descriptors, LogFormat, MessageTypes, PathPattern, Refuse, Settings,
};

/// Noon of 2026-11-22.
const NOW_S: u64 = 1_795_348_800;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Files and variables that exist only here.
struct World {
    files: HashMap<PathBuf, (Vec<u8>, bool)>,
    variables: HashMap<&'static str, String>,
}

impl Environment for World {
    fn read(&self, path: &Path) -> io::Result<FileContents> {
        match self.files.get(path) {
            Some((bytes, others)) => {
                Ok(FileContents { bytes: bytes.clone(), readable_by_others: *others })
            }
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn unix_seconds(&self) -> u64 {
        NOW_S
    }
}

impl World {
    fn with(mut self, path: &str, contents: impl Into<Vec<u8>>) -> World {
        self.files.insert(Path::new("c").join(path), (contents.into(), false));
        self
    }
}

/// A world whose configuration lies in the folder `c`.
fn world() -> World {
    let variables = HashMap::from([
        ("PORTCULLIS_OLD_KEY", SECRET.repeat(2)),
        ("PORTCULLIS_DEV_KEY", SECRET.to_owned()),
        ("SHORT", "short".to_owned()),
    ]);
    let (com, com_key) = certificate(&["example.com", "*.example.com"], 2020, 2100);
    let (org, org_key) = certificate(&["example.org"], 2020, 2100);
    let (old, old_key) = certificate(&["example.com"], 2020, 2021);
    let (issuer, issued, issued_key) = issued_certificate();
    let com_again = com.clone();
    let mut world = World { files: HashMap::new(), variables }
        .with("tls/example.com.pem", com)
        .with("tls/example.com.key", com_key)
        .with("tls/example.org.pem", org)
        .with("tls/example.org.key", org_key)
        .with("tls/old.pem", old)
        .with("tls/old.key", old_key)
        .with("tls/issued.pem", issued.clone())
        .with("tls/issued.key", issued_key)
        .with("tls/whole.pem", format!("{issued}{issuer}"))
        .with("tls/gap.pem", format!("{issued}{com_again}"))
        .with("tls/locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n")
        .with("tls/empty.pem", "")
        .with("keys/2026-11", format!("{SECRET}\n"))
        .with("keys/link", format!("{SECRET}\r\n"))
        .with("keys/admin", SECRET)
        .with("keys/31-and-newlines", format!("{}\n\n", &SECRET[2..]))
        .with("keys/short", format!("{}\n", &SECRET[1..]));
    world.files.insert("c/keys/open".into(), (SECRET.into(), true));
    world
}

/// PEM of a self-signed certificate and of its key.
fn certificate(names: &[&str], from: i32, to: i32) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = rcgen::CertificateParams::new(names).expect("proper names");
    parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(to, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

/// PEM of an authority's certificate, of one that it issued, and of the latter's key.
fn issued_certificate() -> (String, String, String) {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "An authority");
    let key = rcgen::KeyPair::generate().expect("a key");
    let issuer = parameters.self_signed(&key).expect("a certificate");
    let signer = rcgen::Issuer::new(parameters, key);
    let names = vec!["issued.example".to_owned()];
    let mut parameters = rcgen::CertificateParams::new(names).expect("a proper name");
    parameters.not_after = rcgen::date_time_ymd(2100, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let issued = parameters.signed_by(&key, &signer).expect("a certificate");
    (issuer.pem(), issued.pem(), key.serialize_pem())
}

fn load_text(text: &str) -> Result<Loaded, Vec<Problem>> {
    load(text, Path::new("c/x.toml"), &world())
}

fn settings(text: &str) -> Settings {
    match load_text(text) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{}\n{text}", lines(&problems).join("\n")),
    }
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Every problem of a text, errors or warnings.
fn problems(text: &str) -> Vec<String> {
    match load_text(text) {
        Ok(loaded) => lines(&loaded.warnings),
        Err(problems) => lines(&problems),
    }
}

/// A file without problems: one line for each part, so that a test can replace it by its start.
const BASE: &str = r#"[gateway]
[limits]
[deadlines]
[[listener]]
address = "127.0.0.1:8080"
[[auth]]
name = "app"
kind = "jwt"
carriers = ["authorization"]
keys = [{ id = "k1", secret_file = "keys/2026-11" }]
[[route]]
path = "/ws"
origins = ["https://a.example"]
auth = "app"
backend = "main"
[[backend]]
name = "main"
endpoints = ["127.0.0.1:7000"]
"#;

/// [`BASE`] with the line that is `line` (or starts with `line =`) replaced.
fn base_with(line: &str, replacement: &str) -> String {
    let is = |l: &&str| *l == line || l.starts_with(&format!("{line} = "));
    let found = BASE.lines().find(is).unwrap_or_else(|| panic!("no line {line} in BASE"));
    BASE.replacen(&format!("{found}\n"), &format!("{replacement}\n"), 1)
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    std::fs::read_to_string(path).expect("the example is there")
}

/// The README's commands mint a token and connect without an Origin, as programs do.
#[test]
fn the_example_of_the_readme_works_as_its_commands_use_it() {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```toml\n").expect("the README shows a configuration");
    let (text, _) = rest.split_once("```").expect("the block ends");
    let settings = settings(text);
    assert!(settings.routes[0].origin_absent_allowed, "connect sends no Origin");
    assert_eq!(settings.auths[0].name, "app");
    assert_eq!(settings.route_for("any.example", "/ws"), Some(0));
}

#[test]
fn the_full_example_loads_without_a_warning() {
    let loaded = load(&example("portcullis.toml"), Path::new("c/portcullis.toml"), &world());
    let loaded = loaded.unwrap_or_else(|p| panic!("{}", lines(&p).join("\n")));
    assert_eq!(lines(&loaded.warnings), [""; 0]);
    let Settings { gateway, limits, deadlines, listeners, auths, routes, backends, .. } =
        loaded.settings;
    assert_eq!((gateway.workers, gateway.log_format), (None, LogFormat::Auto));
    assert_eq!(gateway.descriptors, Descriptors::Auto);
    assert_eq!(gateway.admin, "127.0.0.1:9464".parse().ok());
    // What the example shows as defaults are the defaults.
    let plain = settings(BASE);
    assert_eq!((&limits, &deadlines), (&plain.limits, &plain.deadlines));
    assert_eq!((listeners.len(), listeners[0].proxy_trusted.len()), (2, 2));
    assert!(listeners[0].tls.is_none() && listeners[1].tls.is_some());
    assert_eq!((auths[0].name.as_str(), auths[0].carriers.len()), ("app", 3));
    assert_eq!(routes[0].path, PathPattern::Exact("/ws".into()));
    assert_eq!((&routes[0].auths[..], routes[0].backend), (&[0][..], 0));
    assert!(routes[0].no_authentication.is_none());
    assert_eq!(routes[0].subprotocols, ["chat.v2", "chat.v1"]);
    assert_eq!((routes[0].refuse, routes[0].messages), (Refuse::Explain, MessageTypes::Any));
    assert!(!routes[0].origin_absent_allowed && !routes[0].health);
    assert_eq!(backends[0].endpoints.len(), 2);
    // One newline (here CR LF) is not part of a secret.
    assert_eq!(backends[0].secret.as_ref().map(|s| s.expose()), Some(SECRET.as_bytes()));
}

#[test]
fn the_full_example_shows_every_key() {
    let text = example("portcullis.toml");
    for key in keys::all() {
        let shown = text.lines().any(|line| {
            let code = line.trim_start().trim_start_matches("# ");
            let starts = |code: &str| {
                let rest = code.trim_start().strip_prefix(key.name);
                rest.is_some_and(|rest| rest.trim_start().starts_with('='))
            };
            starts(code) || code.split(['{', ',']).any(starts)
        });
        assert!(shown, "config/portcullis.toml does not show {}", key.full_name);
    }
}

#[test]
fn the_development_example_loads_without_a_warning() {
    let loaded = load(&example("dev.toml"), Path::new("c/dev.toml"), &world());
    let loaded = loaded.unwrap_or_else(|p| panic!("{}", lines(&p).join("\n")));
    assert_eq!(lines(&loaded.warnings), [""; 0]);
    assert_eq!(loaded.settings.gateway.workers, Some(1));
    assert_eq!(loaded.settings.gateway.log_level, "info,portcullis=debug");
    assert!(loaded.settings.routes[0].health && loaded.settings.routes[0].origin_absent_allowed);
}

#[test]
fn the_base_of_these_tests_is_clean() {
    assert_eq!(problems(BASE), [""; 0]);
}

#[test]
fn several_errors_are_reported_at_once_in_order() {
    let text = r#"[gateway]
wokers = 4
[limits]
message_max = 65536
head_max = "8KB"
[deadlines]
idel = "60s"
ping_interval = "2m"
drain = "2 s"
[[listener]]
address = "localhost:8080"
[[route]]
path = "ws"
auth = "ap"
backend = "mian"
dialect = "phoenx"
[[auth]]
name = "app"
kind = "phoenyx"
slat = "user auth"
[[backend]]
name = "main"
endpoints = ["ws://127.0.0.1:4000/socket"]
balance = "hash-subject"
[extra]
"#;
    let expected = r#"
c/x.toml:2:1: error: unknown key "wokers" in [gateway]; did you mean "workers"?
c/x.toml:4:15: error: "message_max" in [limits] is 65536; write a size in quotes, as in "64KiB", from 125B to 256MiB
c/x.toml:5:12: error: "head_max" in [limits] is "8KB"; write a size in quotes, as in "64KiB", from 512B to 64KiB
c/x.toml:7:1: error: unknown key "idel" in [deadlines]; did you mean "idle"?
c/x.toml:8:17: error: ping_interval (2m) is not shorter than idle (1m): a healthy but silent client would be closed before it is pinged; make idle at least twice ping_interval
c/x.toml:9:9: error: "drain" in [deadlines] is "2 s"; write a duration in quotes, as in "3s" or "250ms", from 0s to 1h
c/x.toml:11:11: error: "localhost:8080" is not an IP address and port; write 127.0.0.1:8080 or [::1]:8080; names are not resolved
c/x.toml:12:1: error: "origins" is missing from [[route]]; list the pages that may connect; [] refuses every page
c/x.toml:13:8: error: "ws" is not a path; write /PATH, or /PREFIX/* for all below it: visible ASCII without ? # and spaces
c/x.toml:14:8: error: there is no [[auth]] called "ap"; did you mean "app"?
c/x.toml:15:11: error: there is no [[backend]] called "mian"; did you mean "main"?
c/x.toml:16:11: error: "dialect" in [[route]] is "phoenx"; did you mean "phoenix"?
c/x.toml:18:8: warning: no route uses the [[auth]] "app"
c/x.toml:19:8: error: "kind" in [[auth]] is "phoenyx"; did you mean "phoenix"?
c/x.toml:20:1: error: unknown key "slat" in [[auth]]; did you mean "salt"?
c/x.toml:22:8: warning: no route uses the [[backend]] "main"
c/x.toml:23:14: error: "ws://127.0.0.1:4000/socket" belongs to kind = "websocket"; set that, or write IP:PORT for kind = "link"
c/x.toml:24:11: error: balance = "hash-subject" is for kind = "websocket"; write "least-sessions" or "round-robin"
c/x.toml:25:2: error: unknown key "extra"; sections are gateway, limits, deadlines, listener, auth, route and backend
"#;
    assert_eq!(problems(text), expected.trim().lines().collect::<Vec<_>>());
}

#[test]
fn every_syntax_error_is_reported() {
    let found = problems("[gateway\nworkers = = 2\n[limits]\nmessage_max = \"1MiB\n");
    assert!(found.len() >= 3, "{found:#?}");
    for (problem, place) in found.iter().zip(["c/x.toml:1:", "c/x.toml:2:"]) {
        assert!(problem.starts_with(place), "{problem}");
    }
}

#[test]
fn an_empty_file_says_what_is_missing() {
    let found = problems("");
    let fix = "config/portcullis.toml shows one of each";
    let expected = ["listener", "route", "backend"]
        .map(|section| format!("c/x.toml:1:1: error: there is no [[{section}]]; {fix}"));
    assert_eq!(found, expected);
}

#[test]
fn yaml_is_one_error() {
    for text in ["gateway:\n  workers: 2\n  admin: off\n", "# mine\n---\nlimits:\n"] {
        let found = problems(text);
        let line = if text.starts_with('#') { 2 } else { 1 };
        let expected = format!(
            "c/x.toml:{line}:1: error: this looks like YAML; write TOML: [section] above its \
             keys, and key = value"
        );
        assert_eq!(found, [expected]);
    }
    // Broken TOML is not called YAML.
    for text in ["[gateway\n", "workers = = 2\n", "a:b\n", "x\n"] {
        assert!(problems(text).iter().all(|problem| !problem.contains("YAML")), "{text}");
    }
}

#[test]
fn mistakes_of_other_programs_configurations_are_answered() {
    const KEY_SETS: &str = "this version verifies HMAC only (HS256, HS384, HS512) and fetches no \
                            key sets; for RS256 and the like let an HTTP endpoint decide: kind = \
                            \"http\"";
    let jwks = "keys = [{ secret_file = \"keys/link\" }]\njwks_url = \"https://i/jwks.json\"";
    let found = problems(&base_with("keys", jwks));
    let expected =
        format!("c/x.toml:11:1: error: unknown key \"jwks_url\" in [[auth]]; {KEY_SETS}");
    assert_eq!(found, [expected]);
    let rsa = "keys = [{ secret_file = \"keys/link\", algorithm = \"RS256\" }]";
    let found = problems(&base_with("keys", rsa));
    let expected = "\"algorithm\" in \"keys\" of [[auth]] is \"RS256\"";
    assert_eq!(found, [format!("c/x.toml:10:50: error: {expected}; {KEY_SETS}")]);
    check_cases(&[
        (
            "carriers",
            "carriers = \"authorization\"",
            &[
                "9:12: error: \"carriers\" in [[auth]] is \"authorization\"; it takes a list: write \
               [\"authorization\"]",
            ],
        ),
        (
            "origins",
            "origins = \"*\"",
            &["13:11: error: \"origins\" in [[route]] is \"*\"; write origins = \"any\""],
        ),
        (
            "[gateway]",
            "[gateway.limits]",
            &["1:10: error: unknown key \"limits\" in [gateway]; it is a section of its own: \
               write [limits]"],
        ),
        (
            "[gateway]",
            "[gateway]\nbackend = []",
            &["2:1: error: unknown key \"backend\" in [gateway]; it is a section of its own: \
               write [[backend]]"],
        ),
    ]);
}

#[test]
fn a_file_that_cannot_be_read_gets_the_hint_of_its_cause() {
    struct Refusing(io::ErrorKind);
    impl Environment for Refusing {
        fn read(&self, _: &Path) -> io::Result<FileContents> {
            Err(self.0.into())
        }

        fn variable(&self, _: &str) -> Option<String> {
            None
        }

        fn unix_seconds(&self) -> u64 {
            NOW_S
        }
    }
    for (kind, hint) in [
        (io::ErrorKind::NotFound, "file names are relative to the configuration file's folder"),
        (
            io::ErrorKind::PermissionDenied,
            "let the user that runs the gateway read it, and enter its folders",
        ),
        (io::ErrorKind::Other, "name a regular file"),
    ] {
        let problems = load(BASE, Path::new("c/x.toml"), &Refusing(kind)).err().expect("refused");
        assert_eq!((problems.len(), problems[0].fix.as_str()), (1, hint));
    }
}

/// The hash is of what was parsed, so that no later state of the file is taken for what runs.
#[test]
fn settings_carry_the_hash_of_their_text() {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(BASE);
    let expected = digest[..6].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte));
    assert_eq!(settings(BASE).hash, expected);
    assert_ne!(settings(&format!("{BASE}\n")).hash, expected);
}

/// A line of [`BASE`], what it is replaced by, and everything that is then said.
type Case = (&'static str, &'static str, &'static [&'static str]);

fn check_cases(cases: &[Case]) {
    for (line, replacement, expected) in cases {
        let found = problems(&base_with(line, replacement));
        let expected: Vec<String> =
            expected.iter().map(|problem| format!("c/x.toml:{problem}")).collect();
        assert_eq!(found, expected, "{replacement}");
    }
}

#[test]
fn shapes() {
    check_cases(&[
        ("[gateway]", "gateway = 1", &["1:1: error: \"gateway\" must be a table; write [gateway]"]),
        (
            "[gateway]",
            "[gateway]\nworkers = 0",
            &["2:11: error: \"workers\" in [gateway] is 0; write a whole number without quotes, \
             from 1 to 1024, or \"auto\""],
        ),
        (
            "[gateway]",
            "[gateway]\nworkers = \"many\"",
            &["2:11: error: \"workers\" in [gateway] is \"many\"; write a whole number without \
             quotes, from 1 to 1024, or \"auto\""],
        ),
        (
            "[gateway]",
            "[gateway]\nlog = { subject = \"hash\" }",
            &["2:19: error: subject = \"hash\" in log of [gateway] has no key; set \
             subject_key_file; openssl rand -hex 32 makes a key"],
        ),
        (
            "[gateway]",
            "[gateway]\nlog = { subject = \"hash\", subject_key_file = \"keys/short\" }",
            &[
                "2:46: error: this secret has 31 bytes and can be guessed: at least 32 are required; \
             make one with: openssl rand -hex 32",
            ],
        ),
        (
            "[gateway]",
            "[gateway]\nlog = \"info\"",
            &[
                "2:7: error: \"log\" in [gateway] is \"info\"; write { … } with the keys format, level, \
             subject, subject_key_file",
            ],
        ),
        (
            "[gateway]",
            "[gateway]\nlog = { formt = \"json\" }",
            &[
                "2:9: error: unknown key \"formt\" in \"log\" of [gateway]; did you mean \"format\"?",
            ],
        ),
        (
            "[limits]",
            "[limits]\nidle = \"1s\"",
            &["3:1: error: unknown key \"idle\" in [limits]; a key of that name belongs in \
             [deadlines]"],
        ),
        (
            "[limits]",
            "[limits]\nhead_max = \"1GiB\"",
            &["3:12: error: \"head_max\" in [limits] is \"1GiB\"; write a size in quotes, as in \
             \"64KiB\", from 512B to 64KiB"],
        ),
        (
            "[deadlines]",
            "[deadlines]\nauthenticate = \"0s\"",
            &[
                "4:16: error: \"authenticate\" in [deadlines] is \"0s\"; write a duration in quotes, \
             as in \"3s\" or \"250ms\", from 100ms to 1m",
            ],
        ),
        (
            "address",
            "adress = \"127.0.0.1:1\"",
            &[
                "4:1: error: \"address\" is missing from [[listener]]; it takes: IP address and port",
                "5:1: error: unknown key \"adress\" in [[listener]]; did you mean \"address\"?",
            ],
        ),
        (
            "kind",
            "kind = \"jtw\"",
            &["8:8: error: \"kind\" in [[auth]] is \"jtw\"; did you mean \"jwt\"?"],
        ),
        (
            "keys",
            "keys = [\"k\"]",
            &["10:8: error: \"keys\" in [[auth]] must hold tables; write a list of tables, \
             [{ … }], each { … } with the keys id, algorithm, secret_file, secret, secret_encoding"],
        ),
        (
            "keys",
            "keys = [{ secret = 12345678 }]",
            &[
                "10:9: error: this key has no secret; add secret_file = \"keys/NAME\" or \
             secret_file = \"env:NAME\"",
                "10:20: error: \"secret\" in \"keys\" of [[auth]] is not text; it takes: text",
            ],
        ),
        (
            "origins",
            "origins = \"all\"",
            &[
                "13:11: error: \"origins\" in [[route]] is \"all\"; it takes a list: write [\"all\"], \
             or \"any\"",
            ],
        ),
        (
            "path",
            "path = \"/ws\"\nhealth = \"yes\"",
            &["13:10: error: \"health\" in [[route]] is \"yes\"; it takes: true, false"],
        ),
        (
            "auth",
            "",
            &[
                "7:8: warning: no route uses the [[auth]] \"app\"",
                "11:1: error: \"auth\" is missing from [[route]]; name an [[auth]], or write auth = \
             \"none\" if anybody may connect",
            ],
        ),
    ]);
}

#[test]
fn rules_of_gateway_limits_and_deadlines() {
    check_cases(&[
        (
            "[gateway]",
            "[gateway]\nadmin = \"0.0.0.0:9464\"",
            &["2:9: error: admin 0.0.0.0:9464 can be reached from other machines; set \
             admin_token_file, or listen on 127.0.0.1"],
        ),
        (
            "[gateway]",
            "[gateway]\nadmin = \"0.0.0.0:9464\"\nadmin_token_file = \"keys/admin\"",
            &[],
        ),
        ("[gateway]", "[gateway]\nadmin = \"off\"", &[]),
        (
            "[gateway]",
            "[gateway]\nadmin = \"127.0.0.1:0\"",
            &["2:9: error: \"127.0.0.1:0\" has no port; give one from 1 to 65535"],
        ),
        (
            "[gateway]",
            "[gateway]\nlog = { level = \"inof\" }",
            &[
                "2:17: error: \"level\" in log of [gateway] is \"inof\"; write a level (error, warn, \
             info, debug, trace, off) or target=level, several separated by commas",
            ],
        ),
        (
            "[limits]",
            "[limits]\nunauthenticated_max = 10_000",
            &["3:23: warning: unauthenticated_max = 10000 cannot hold honest clients: when \
             connections_max = 1000000 of them come back within a minute and each takes 1 s to \
             authenticate, 16667 are unauthenticated at once, 6667 too many, and the oldest are \
             evicted; set it to 16667 or more"],
        ),
        (
            "[limits]",
            "[limits]\nconnections_max = 100\nunauthenticated_max = 101",
            &["4:23: warning: unauthenticated_max is above connections_max and cannot protect \
             anybody; set it to a tenth of connections_max or less"],
        ),
        (
            "[limits]",
            "[limits]\nprefix_share = 40_001",
            &[
                "3:16: warning: prefix_share = 40001 is above the 40000 connections that early drop \
             begins at (early_drop_start = 80 % of unauthenticated_max): one address may reach \
             the cap before early drop concerns it; set it to 4000 or less",
            ],
        ),
        (
            "[limits]",
            // Nobody speaks TLS here.
            "[limits]\ntls_handshakes_per_second = 100",
            &[],
        ),
        (
            "[limits]",
            "[limits]\nclient_buffers = 1000",
            &["3:18: error: client_buffers = 1000 is not a power of two; try 1024"],
        ),
        (
            "[limits]",
            "[limits]\nsession_window = \"32MiB\"",
            &[
                "3:18: error: session_window (33554432 bytes) is above link_window (16777216 bytes); \
             raise link_window or lower session_window",
            ],
        ),
        (
            "[limits]",
            "[limits]\nfirst_message_max = \"1KiB\"",
            &["1:1: error: token_max (4096 bytes) is above first_message_max (1024 bytes); raise \
             first_message_max or lower token_max"],
        ),
        (
            "[limits]",
            "[limits]\nmemory_max = \"32MiB\"",
            &["1:1: warning: stalled_input_max is above memory_max, so memory_max is no limit; \
             lower it"],
        ),
        (
            "[deadlines]",
            "[deadlines]\nidle = \"20s\"",
            &[
                "4:8: error: ping_interval (25s) is not shorter than idle (20s): a healthy but silent \
             client would be closed before it is pinged; make idle at least twice ping_interval",
            ],
        ),
        (
            "[deadlines]",
            "[deadlines]\nping_interval = \"59500ms\"",
            &["4:17: warning: idle leaves a client less than 1s to answer a ping; make idle at \
             least twice ping_interval"],
        ),
        (
            "[deadlines]",
            "[deadlines]\nlink_retry_min = \"20s\"",
            &["4:18: error: link_retry_min is above link_retry_max; swap them"],
        ),
        (
            "[deadlines]",
            "[deadlines]\nauthenticate = \"1m\"",
            &["4:16: warning: a client that never authenticates can hold a connection for 66s \
             (tls_handshake + request_head + authenticate + linger); lower them until together \
             they are 30s or less"],
        ),
        (
            "[deadlines]",
            "[deadlines]\nlifetime = \"1m\"",
            &[
                "4:12: warning: lifetime is not longer than idle: every connection is soon asked to \
             leave; an hour or more is usual",
            ],
        ),
    ]);
}

#[test]
fn rules_of_listeners_and_backends() {
    check_cases(&[
        (
            "address",
            "address = \"127.0.0.1:8080\"\n[[listener]]\naddress = \"127.0.0.1:8080\"",
            &["7:11: error: two listeners have the address 127.0.0.1:8080; remove one"],
        ),
        (
            "address",
            "address = \"127.0.0.1:8080\"\nproxy_protocol = { trusted = [\"10.0.0.1/8\", \
                     \"x\", \"0.0.0.0/0\"] }",
            &[
                "6:31: error: 10.0.0.1/8 has bits beyond its prefix; shorten the address, or write /32",
                "6:45: error: \"x\" is not a network; write 10.0.0.0/8 or fd00::/8",
                "6:50: warning: 0.0.0.0/0 lets everybody forge their address; list the load balancers \
             alone",
            ],
        ),
        ("address", "address = \"127.0.0.1:8080\"\ndefer_accept = \"on\"", &[]),
        (
            "address",
            "address = \"127.0.0.1:8080\"\nforwarded = { trusted = [\"10.0.0.0/8\", \"fd00::/8\"] }",
            &[],
        ),
        (
            "address",
            "address = \"127.0.0.1:8080\"\nforwarded = { trusted = [\"10.0.0.0/7\", \
             \"203.0.113.7\"], header = \"Forwarded\" }",
            &[
                "6:26: warning: 10.0.0.0/7 holds public addresses: whoever has one of them can be any \
                 client; list only what your proxies have, and let nothing else reach this listener",
                "6:40: warning: 203.0.113.7 holds public addresses: whoever has one of them can be any \
                 client; list only what your proxies have, and let nothing else reach this listener",
                "6:65: error: the Forwarded field (RFC 7239) is not read; let the proxy send \
                 X-Forwarded-For",
            ],
        ),
        ("address", "address = \"127.0.0.1:8080\"\nredirect = \"https\"", &[]),
        (
            "address",
            "address = \"127.0.0.1:8080\"\nredirect = \"https\"\nexternal_scheme = \"https\"",
            &[
                "6:12: warning: redirect = \"https\" where every request comes with TLS: it redirects \
               none; put it on the listener of port 80",
            ],
        ),
        (
            "address",
            "address = \"127.0.0.1:8080\"\ndefer_accept = \"on\"\n\
             tls = { certificate = \"tls/example.com.pem\", key = \"tls/example.com.key\" }",
            &[
                "6:16: warning: defer_accept = \"on\" adds 1s to the age of a silent connection: seen \
             from outside, one may be unauthenticated for 11s, 1s longer than 10s; lower the \
             deadlines, or leave it to \"auto\"",
            ],
        ),
        (
            "[limits]",
            "[limits]\ntls_handshakes_per_second = 60_000\n\
             [[listener]]\naddress = \"127.0.0.1:8443\"\n\
             tls = { certificate = \"tls/example.com.pem\", key = \"tls/example.com.key\" }",
            &[
                "3:29: warning: tls_handshakes_per_second = 60000 is more than unauthenticated_max = \
             50000 can hold: clients that finish TLS and fall silent (for up to 2s) fill it after \
             833ms, and an honest one that takes 1s to authenticate is evicted; 10000 are \
             missing; lower it to 50000, or set unauthenticated_max to 60000 or more",
            ],
        ),
        (
            "[limits]",
            "[limits]\ntls_handshakes_per_second = 1_000\n\
             [[listener]]\naddress = \"127.0.0.1:8443\"\n\
             tls = { certificate = \"tls/example.com.pem\", key = \"tls/example.com.key\" }",
            &["3:29: warning: tls_handshakes_per_second = 1000 lets connections_max = 1000000 \
             clients come back over TLS in 1000s at best; within a minute it would take 16667; \
             raise it as far as the cores can bear"],
        ),
        (
            "endpoints",
            "endpoints = []",
            &["18:13: error: endpoints is empty: the backend has no server; list \"IP:PORT\", \
                \"NAME:PORT\" or \
             \"unix:/PATH\""],
        ),
        (
            "endpoints",
            "endpoints = [\"unix:run/x\", \"127.0.0.1:1\", \"127.0.0.1:1\"]",
            &[
                "18:14: error: \"unix:run/x\" is not the address of a unix socket; write unix:/PATH, \
             absolute, at most 107 bytes",
                "18:43: error: endpoint \"127.0.0.1:1\" is listed twice; remove one",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"127.0.0.1:1\", \"10.0.0.1:1\"]",
            &["18:29: warning: this endpoint is on another machine and the link has no secret: \
             whoever answers there is believed; set secret_file"],
        ),
        ("endpoints", "endpoints = [\"10.0.0.1:1\"]\nsecret_file = \"keys/link\"", &[]),
    ]);
}

#[test]
fn fields_that_no_client_may_set_are_passed_on_from_proxies_alone() {
    const NEVER: &str = "is never passed on: any client can write it, and no listener has \
                         `forwarded`; name the proxies that set it in the listener's `forwarded`, or \
                         remove it; the client's address is passed on without it";
    let fields = "path = \"/ws\"\nforward_headers = [\"accept-language\", \"X-Forwarded-For\"]";
    let text = base_with("path", fields);
    let found = problems(&text);
    assert_eq!(found, [format!("c/x.toml:13:39: warning: \"X-Forwarded-For\" {NEVER}")]);
    let listener = "address = \"127.0.0.1:8080\"\n";
    let forwarded = format!("{listener}forwarded = {{ trusted = [\"10.0.0.0/8\"] }}\n");
    assert_eq!(problems(&text.replace(listener, &forwarded)), [""; 0]);
    // What an HTTP endpoint is told likewise; a PROXY header vouches for an address, not for fields.
    let proxied = format!("{listener}proxy_protocol = {{ trusted = [\"10.0.0.0/8\"] }}\n");
    let auth = asking(
        "kind = \"http\"\ncarriers = [\"authorization\"]\n\
         endpoint = \"http://127.0.0.1:9/\"\nheaders = [\"x_real_ip\"]\n",
    );
    let found = problems(&auth.replace(listener, &proxied));
    assert_eq!(found, [format!("c/x.toml:12:12: warning: \"x_real_ip\" {NEVER}")]);
}

#[test]
fn rules_of_routes() {
    check_cases(&[
        (
            "path",
            "path = \"/ws\"\nsubprotocols = [\"a b\", \"x\", \"x\", \"base64url.bearer.x\"]",
            &[
                "13:17: error: \"a b\" is not a subprotocol: it must be an HTTP token",
                "13:29: error: subprotocol \"x\" is listed twice",
                "13:34: error: \"base64url.bearer.x\" carries a token and can never be answered with",
            ],
        ),
        (
            "path",
            "path = \"/ws\"\nforward_headers = [\"Authorization\", \"Cookie\", \"a:\"]",
            &[
                "13:20: error: header \"authorization\" belongs to the gateway and is not forwarded",
                "13:37: warning: the backend gets every cookie of the client, session included; \
             forward what it needs alone",
                "13:47: error: \"a:\" is not a header name",
            ],
        ),
        (
            "[[route]]",
            "[[route]]\npath = \"/*\"\norigins = []\norigin_absent = \"allow\"\n\
                       auth = \"app\"\nbackend = \"main\"\n[[route]]",
            &[
                "18:8: warning: \"/ws\" is never reached: an earlier route takes everything below it \
             or around it; move it before that one",
            ],
        ),
        (
            "[[route]]",
            "[[route]]\npath = \"/ws\"\norigins = []\norigin_absent = \"allow\"\n\
                       auth = \"app\"\nbackend = \"main\"\n[[route]]",
            &["18:8: error: two routes have the path \"/ws\"; remove one"],
        ),
        (
            "[[route]]",
            "[[route]]\nname = \"chat\"\npath = \"/a\"\norigins = []\norigin_absent = \"allow\"\n\
                       auth = \"app\"\nbackend = \"main\"\n[[route]]\nname = \"chat\"",
            &["19:8: error: two routes have the name \"chat\"; give one of them another name"],
        ),
        (
            "[[route]]",
            "[[route]]\nname = \"/chat\"",
            &[
                "12:8: error: \"/chat\" cannot name an [[route]]; use 1 to 64 letters, digits, -, _ \
             and .",
            ],
        ),
        (
            "origins",
            "origins = []",
            &["13:11: warning: origins = [] and origin_absent = \"refuse\": nobody can use this \
             route; list origins, or write origin_absent = \"allow\" for programs"],
        ),
        ("origins", "origins = \"any\"", &[]),
        ("origins", "origins = [\"null\", \"file://\"]", &[]),
        (
            "origins",
            "origins = [\"same-host\"]",
            &[
                "13:12: error: \"same-host\" without hosts: a page of any domain could connect whose \
             name is made to point here (DNS rebinding); add hosts = [\"app.example.com\"] to the \
             route",
            ],
        ),
        ("origins", "origins = [\"same-host\"]\nhosts = [\"a.example\"]", &[]),
        (
            "origins",
            "origins = []\norigin_absent = \"allow\"\nhosts = [\"https://a.example\", \"b:80\", \"*.com\"]",
            &[
                "15:10: error: \"https://a.example\" is not a host; a host has no scheme: write \
                 app.example.com",
                "15:31: error: \"b:80\" is not a host; a host has no port here: all ports of it are \
                 meant",
                "15:39: error: \"*.com\" is not a host; write app.example.com, or *.example.com for \
                 all hosts below it",
            ],
        ),
        (
            "[[route]]",
            "[[route]]\nname = \"a\"\npath = \"/ws\"\nhosts = [\"a.example\"]\norigins = []\n\
             origin_absent = \"allow\"\nauth = \"app\"\nbackend = \"main\"\n[[route]]",
            &[],
        ),
        (
            "[[route]]",
            "[[route]]\npath = \"/*\"\nhosts = [\"*.a.example\"]\norigins = []\n\
             origin_absent = \"allow\"\nauth = \"app\"\nbackend = \"main\"\n\
             [[route]]\nhosts = [\"b.a.example\"]",
            &[
                "20:8: warning: \"/ws\" is never reached: an earlier route takes everything below it \
             or around it; move it before that one",
            ],
        ),
        (
            "origins",
            "origins = [\"any\"]",
            &["13:12: error: \"any\" is not an origin, and cannot be in a list; write origins = \
             \"any\""],
        ),
    ]);
    let found = problems(&base_with("origins", "origins = [\"https://a.example/\", \"nil\"]"));
    assert_eq!(found.len(), 2, "{found:#?}");
    for (problem, place) in found.iter().zip(["c/x.toml:13:12: error: \"https", "c/x.toml:13:34: "])
    {
        assert!(problem.starts_with(place), "{problem}");
    }
    let open = BASE.replace("\"app\"\nbackend", "\"none\"\nbackend");
    let open = open.replace("[\"https://a.example\"]", "\"any\"");
    assert_eq!(
        problems(&open),
        [
            "c/x.toml:7:8: warning: no route uses the [[auth]] \"app\"",
            "c/x.toml:14:8: warning: auth = \"none\" with origins = \"any\": anybody can reach the \
         backend; keep it so only where everything is public",
        ]
    );
}

#[test]
fn rules_of_closes() {
    let closes = |text: &str| base_with("path", &format!("path = \"/ws\"\ncloses = {text}"));
    let long = "x".repeat(124);
    let table = [
        ("{}", vec![]),
        ("{ token_expired = {} }", vec![]),
        ("{ token_expired = { code = 4999, reason = \"\" } }", vec![]),
        (
            "{ token_expird = { code = 4000 } }",
            vec![
                "13:12: error: unknown name \"token_expird\" in \"closes\" of [[route]]; did you \
                 mean \"token_expired\"?",
            ],
        ),
        (
            "{ idle = 4000 }",
            vec![
                "13:19: error: \"idle\" in \"closes\" of [[route]] must be a table; write it in \
                 braces, as in { code = 4000 }",
            ],
        ),
        (
            "{ idle = { cod = 4000 } }",
            vec![
                "13:21: error: unknown key \"cod\" in \"closes\" of [[route]]; did you mean \
                 \"code\"?",
            ],
        ),
        (
            "{ idle = { code = 1005 }, internal = { code = 2999 } }",
            vec![
                "13:28: error: 1005 may not be in a close frame (RFC 6455 section 7.4); write 1000 \
                 to 1003, 1007 to 1014 or 3000 to 4999",
                "13:56: error: 2999 may not be in a close frame (RFC 6455 section 7.4); write 1000 \
                 to 1003, 1007 to 1014 or 3000 to 4999",
            ],
        ),
        (
            "{ idle = { pace = \"9s\" } }",
            vec![
                "13:28: error: \"pace\" in \"closes\" of [[route]] is \"9s\"; write a duration in \
                 quotes, as in \"3s\" or \"250ms\", from 0s to 8s",
            ],
        ),
        (
            "{ idle = { reconnect = false, retry_after = \"5s\" } }",
            vec![
                "13:54: warning: idle: retry_after counts for nothing with reconnect = false; \
                 remove one of them",
            ],
        ),
        (
            "{ client_gone = { code = 4000 } }",
            vec![
                "13:26: error: client_gone: the gateway says nothing then, so nothing can differ; \
                 remove it",
            ],
        ),
        (
            "{ backend_closed = { code = 4000, pace = \"1s\" } }",
            vec![
                "13:51: error: backend_closed: a backend's close is passed on at once; remove pace",
            ],
        ),
    ];
    for (text, expected) in table {
        let expected: Vec<_> = expected.iter().map(|line| format!("c/x.toml:{line}")).collect();
        assert_eq!(problems(&closes(text)), expected, "{text}");
    }
    let found = problems(&closes(&format!("{{ idle = {{ reason = \"{long}\" }} }}")));
    assert_eq!(
        found,
        ["c/x.toml:13:30: error: this reason has 124 bytes, and a close frame has room for 123; \
          shorten it"]
    );
}

#[test]
fn every_dialect_can_be_named() {
    use portcullis::protocol::dialect::Dialect;
    for dialect in Dialect::ALL {
        let line = format!("path = \"/ws\"\ndialect = \"{}\"", dialect.name());
        assert_eq!(settings(&base_with("path", &line)).routes[0].dialect, Some(*dialect));
    }
    assert_eq!(settings(BASE).routes[0].dialect, None);
}

#[test]
fn messages_that_bring_fresh_tokens() {
    let line = |reauthenticate: &str| format!("path = \"/ws\"\nreauthenticate = {reauthenticate}");
    let good = r#"{ prefix = '{"type":"authenticate",', token = "a.b" }"#;
    let route = &settings(&base_with("path", &line(good))).routes[0];
    let form = route.reauthenticate.as_deref().expect("configured");
    assert_eq!(form.prefix, r#"{"type":"authenticate","#);
    assert_eq!(form.token, Carrier::parse("first-message:a.b").expect("a carrier"));
    assert_eq!(form.auths, ["app"]);
    let long = format!(r#"{{ prefix = '{{{}', token = "t" }}"#, "x".repeat(64));
    for (text, what) in [
        (r#"{ prefix = 'authenticate ', token = "t" }"#, "cannot begin a message"),
        (r#"{ prefix = "{\n", token = "t" }"#, "cannot begin a message"),
        (r#"{ prefix = '', token = "t" }"#, "cannot begin a message"),
        (&long, "cannot begin a message"),
        (r#"{ prefix = '{', token = "t" }"#, "takes every JSON object"),
        (r#"{ prefix = '{"a', token = "" }"#, "is no way to a member"),
        (r#"{ prefix = '{"a', token = "a..b" }"#, "is no way to a member"),
        (r#"{ prefix = '{"a' }"#, "\"token\" is missing"),
        (r#"{ token = "a" }"#, "\"prefix\" is missing"),
    ] {
        let found = problems(&base_with("path", &line(text)));
        assert!(found.len() == 1 && found[0].contains(what), "{text}: {found:?}");
    }
    let binary = line(good) + "\nmessages = \"binary\"";
    let found = problems(&base_with("path", &binary));
    assert!(found[0].contains("the route takes binary ones only"), "{found:?}");
    let text = base_with("path", &line(good)).replace("auth = \"app\"", "auth = \"none\"");
    let found = problems(&text);
    assert!(found.iter().any(|p| p.contains("judges no token itself")), "{found:?}");
}

#[test]
fn visitors_are_written_out_last() {
    let auth = |list: &str| problems(&base_with("auth", &format!("auth = {list}")));
    assert_eq!(auth("[\"app\", \"anonymous\"]"), [""; 0]);
    let place = "c/x.toml:14:8: error: \"anonymous\" stands for what remains when no block has a \
                 credential; write it last, once, behind other blocks; without any write auth = \
                 \"none\"";
    for list in [
        "\"anonymous\"",
        "[\"anonymous\"]",
        "[\"anonymous\", \"app\"]",
        "[\"app\", \"anonymous\", \"anonymous\"]",
    ] {
        let found = auth(list);
        assert!(found.iter().any(|problem| problem == place), "{list}: {found:?}");
    }
    let named = base_with("name", "name = \"anonymous\"").replacen("\"app\"", "\"anonymous\"", 2);
    let found = problems(&named);
    assert!(found[0].contains("\"anonymous\" cannot name an [[auth]]"), "{found:?}");
    let list = "auth = [\"app\", \"anonymous\"]";
    let late = base_with("auth", list).replace("[\"authorization\"]", "[\"first-message\"]");
    let found = problems(&late);
    assert!(
        found[0].contains("may still send one; give visitors a route of their own"),
        "{found:?}"
    );
    let open = base_with("auth", list).replace("[\"https://a.example\"]", "\"any\"");
    let found = problems(&open);
    assert!(
        found[0].contains("warning: auth = [..., \"anonymous\"] with origins = \"any\""),
        "{found:?}"
    );
}

#[test]
fn cookies_need_a_closed_list_of_origins() {
    let cookie = |carriers: &str, origins: &str| {
        let text = base_with("carriers", &format!("carriers = {carriers}"));
        problems(&text.replace("origins = [\"https://a.example\"]", origins))
    };
    let hijack = "c/x.toml:13:11: error: origins = \"any\" with a cookie carrier: every page on \
                  the internet could connect as the visitor, since browsers add the cookie by \
                  themselves (cross-site WebSocket hijacking); list the origins, or take the \
                  cookie out of the carriers";
    let alone = "c/x.toml:14:17: warning: origin_absent = \"allow\" where cookies alone \
                 authenticate: whoever obtains a cookie can use it outside a browser, without an \
                 Origin; write origin_absent = \"refuse\", or give programs another carrier";
    let opaque = |origin: &str| {
        format!(
            "c/x.toml:13:12: error: origin {origin:?} with a cookie carrier: sandboxed pages of every \
             site have it, and browsers add the cookie by themselves (cross-site WebSocket \
             hijacking); give such pages a route of their own, with another carrier"
        )
    };
    for origin in ["null", "file://"] {
        let origins = format!("origins = [{origin:?}]");
        assert_eq!(cookie("[\"authorization\"]", &origins), [""; 0]);
        assert_eq!(cookie("[\"cookie:s\"]", &origins), [opaque(origin)]);
        assert_eq!(cookie("[\"authorization\", \"cookie:s\"]", &origins), [opaque(origin)]);
    }
    let listed = "origins = [\"https://a.example\"]";
    let absent = "origins = [\"https://a.example\"]\norigin_absent = \"allow\"";
    assert_eq!(cookie("[\"cookie:s\"]", listed), [""; 0]);
    assert_eq!(cookie("[\"cookie:s\"]", "origins = \"any\""), [hijack]);
    assert_eq!(cookie("[\"authorization\", \"cookie:s\"]", "origins = \"any\""), [hijack]);
    assert_eq!(cookie("[\"cookie:s\"]", absent), [alone]);
    assert_eq!(cookie("[\"authorization\", \"cookie:s\"]", absent), [""; 0]);
}

#[test]
fn rules_of_auth() {
    const QUERY: &str = "9:13: warning: query strings end in the logs of proxies and in browser \
                 histories, and a token with them; prefer subprotocol or first-message for \
                 browsers";
    check_cases(&[
        (
            "carriers",
            "carriers = []",
            &["9:12: error: carriers is empty: no client could show a token; list at least \
             \"authorization\""],
        ),
        ("carriers", "carriers = [\"query:token\"]", &[QUERY]),
        (
            "carriers",
            "carriers = [\"header:x-a\", \"header:x-b\"]",
            &[
                "9:27: warning: \"header:x-b\" can disagree with the carrier of the same sort before \
             it, which counts where a request holds both; another server may read the other; keep \
             one of them",
            ],
        ),
        (
            "carriers",
            "carriers = [\"cookie:s\", \"subprotocol\"]",
            &[
                "9:25: warning: \"subprotocol\" comes after a cookie: a browser sends the cookie by \
             itself, so an old cookie would count instead of the token that the page shows; list \
             cookies last",
            ],
        ),
        (
            "carriers",
            "carriers = [\"subprotocol\", \"subprotocol\"]",
            &["9:28: error: carrier \"subprotocol\" is listed twice; remove one"],
        ),
        ("keys", "keys = []", &["10:8: error: keys is empty: no token could be valid; list one"]),
        (
            "keys",
            "keys = [{ id = \"a\" }]",
            &[
                "10:9: error: this key has no secret; add secret_file = \"keys/NAME\" or secret_file \
             = \"env:NAME\"",
            ],
        ),
        (
            "keys",
            "keys = [{ id = \"a\", secret_file = \"keys/2026-11\" }, { id = \"a\", \
                  secret_file = \"keys/link\" }]",
            &["10:60: error: there are two keys with the id \"a\"; give another, or leave it out"],
        ),
        (
            "keys",
            "keys = [{ algorithm = \"HS512\", secret_file = \"keys/link\" }]",
            &[
                "10:9: error: this secret has 32 bytes; RFC 7518 asks for 64 with its algorithm; make \
             one with: openssl rand -hex 64",
            ],
        ),
        (
            "keys",
            "keys = [{ algorithm = \"none\", secret_file = \"keys/link\" }]",
            &[
                "10:23: error: \"algorithm\" in \"keys\" of [[auth]] is \"none\"; it must be one of \
             \"HS256\", \"HS384\", \"HS512\"",
            ],
        ),
        (
            "name",
            "name = \"none\"",
            &[
                "7:8: error: \"none\" cannot name an [[auth]]; in a route it means no authentication",
                "7:8: warning: no route uses the [[auth]] \"none\"",
                "14:8: error: there is no [[auth]] called \"app\"; there is none",
            ],
        ),
        ("auth", "auth = [\"app\"]", &[]),
        (
            "auth",
            "auth = []",
            &[
                "7:8: warning: no route uses the [[auth]] \"app\"",
                "14:8: error: auth names 0 blocks; name 1 to 8, or write auth = \"none\"",
            ],
        ),
        (
            "auth",
            "auth = [\"app\", \"app\", \"none\"]",
            &[
                "14:16: error: \"app\" is named twice",
                "14:23: error: \"none\" beside other blocks: anybody could connect; write auth = \
             \"none\" alone, or drop it",
            ],
        ),
    ]);
    let found = problems(&base_with("carriers", "carriers = [\"authorisation\", \"cookie:\"]"));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("c/x.toml:9:13: error: \"authorisation\" is not a carrier"));
    assert!(found[1].starts_with("c/x.toml:9:30: error: \"\" is not a name of letters"));
}

/// [`BASE`] with this `[[auth]]` body, which starts in line 7.
fn auth_with(body: &str) -> String {
    let (start, rest) = BASE.split_once("name = \"app\"\n").expect("BASE has the block");
    let (_, end) = rest.split_once("[[route]]").expect("BASE has a route");
    format!("{start}name = \"app\"\n{body}[[route]]{end}")
}

#[test]
fn kinds_of_tokens_have_their_own_keys() {
    let base = format!("secret_key_base = \"{}\"\n", SECRET.repeat(2));
    let phoenix = "kind = \"phoenix\"\ncarriers = [\"subprotocol\"]\nsalt = \"s\"\n";
    let session = "kind = \"plug-session\"\ncarriers = [\"cookie:_app_key\"]\n\
                   signing_salt = \"s\"\nsubject = \"user_id\"\n";
    let compact = "kind = \"compact\"\ncarriers = [\"authorization\"]\n";
    let inline = "a secret in the configuration file is for development only; put it into a file \
                  that only the gateway may read: secret_key_base_file = …";
    let inline = |place: &str| format!("{place}: warning: {inline}");
    let key = format!("secret = \"{SECRET}\"");
    let table: Vec<(String, Vec<String>)> = vec![
        (format!("{phoenix}{base}"), vec![inline("11:19")]),
        (format!("{phoenix}secret_key_base_file = \"env:PORTCULLIS_OLD_KEY\"\n"), vec![]),
        (
            format!(
                "{phoenix}secret_key_base_file = [\"env:PORTCULLIS_OLD_KEY\"]\nmax_age = \"off\"\n"
            ),
            vec![],
        ),
        (
            format!("{phoenix}secret_key_base_file = \"env:PORTCULLIS_DEV_KEY\"\n"),
            vec![
                "11:24: warning: this secret_key_base has 32 bytes; Phoenix makes 64, and Plug \
                  signs no session with less; make one with: mix phx.gen.secret, or openssl rand \
                  -base64 48"
                    .into(),
            ],
        ),
        (
            format!("{phoenix}secret_key_base_file = \"env:SHORT\"\n"),
            vec![
                "11:24: error: this secret has 5 bytes and can be guessed: at least 32 are required; \
                  make one with: openssl rand -hex 32"
                    .into(),
            ],
        ),
        (
            format!(
                "{phoenix}secret_key_base_file = [\"env:PORTCULLIS_OLD_KEY\", \
                 \"env:PORTCULLIS_OLD_KEY\"]\n"
            ),
            vec!["11:51: error: this secret_key_base is listed twice; remove one".into()],
        ),
        (
            format!("{phoenix}secret_key_base_file = []\n"),
            vec!["11:24: error: there are 0 values; list 1 to 16".into()],
        ),
        (
            phoenix.to_owned(),
            vec![
                "6:1: error: there is no secret_key_base; add secret_key_base_file = \
                  \"keys/NAME\" or \"env:SECRET_KEY_BASE\""
                    .into(),
            ],
        ),
        (
            format!("{phoenix}{base}secret_key_base_file = \"x\"\n"),
            vec![
                "11:19: error: both secret_key_base_file and secret_key_base are given; keep \
                  the file"
                    .into(),
            ],
        ),
        (
            format!("{}{base}", phoenix.replace("salt = \"s\"", "salt = \"\"")),
            vec![
                "10:8: error: this salt is empty; write the application's".into(),
                inline("11:19"),
            ],
        ),
        (
            format!("{phoenix}{base}issuer = \"me\"\ncsrf = false\nkeys = []\n"),
            vec![
                inline("11:19"),
                "12:1: error: \"issuer\" means nothing to kind = \"phoenix\"; it belongs to kind = \
                 \"jwt\""
                    .into(),
                "13:1: error: \"csrf\" means nothing to kind = \"phoenix\"; it belongs to kind = \
                 \"plug-session\""
                    .into(),
                "14:1: error: \"keys\" means nothing to kind = \"phoenix\"; it belongs to kind = \
                 \"jwt\" and \"compact\""
                    .into(),
            ],
        ),
        (
            format!("{}{base}", phoenix.replace("salt = \"s\"\n", "digest = \"md5\"\n")),
            vec![
                "6:1: error: \"salt\" is missing from [[auth]]; it takes: text".into(),
                "10:10: error: \"digest\" in [[auth]] is \"md5\"; it must be one of \"sha256\", \
                 \"sha384\", \"sha512\""
                    .into(),
                inline("11:19"),
            ],
        ),
        (
            format!("{session}secret_key_base_file = \"env:PORTCULLIS_DEV_KEY\"\n"),
            vec![
                "12:24: error: this secret_key_base has 32 bytes; Plug refuses to sign sessions \
                  with less than 64; make one with: mix phx.gen.secret, or openssl rand -base64 48"
                    .into(),
            ],
        ),
        (
            format!("{}{base}", session.replace("cookie:_app_key", "authorization")),
            vec![
                "9:13: error: a session is a cookie, and not \"authorization\"; write \
                 cookie:_my_app_key, the endpoint's key"
                    .into(),
            ],
        ),
        (
            format!("{}{base}", session.replace("\"user_id\"", "[\"a\", -1]")),
            vec![
                "11:11: error: \"subject\" in [[auth]] is an array; it takes: name, or a list of \
                 names and numbers"
                    .into(),
                inline("12:19"),
            ],
        ),
        (
            format!("{}{base}", session.replace("\"user_id\"", "[\"_csrf_token\"]")),
            vec![
                "11:11: error: the CSRF token names nobody; name the user's key".into(),
                inline("12:19"),
            ],
        ),
        (
            format!("{}{base}", session.replace("\"user_id\"", "\"_csrf_token\"")),
            vec![
                "11:11: error: the CSRF token names nobody; name the user's key".into(),
                inline("12:19"),
            ],
        ),
        (
            format!("{compact}keys = [{{ id = \"256\", {key} }}]\n"),
            vec![
                "10:16: error: the id of a compact key is a number from 0 to 255; write id = \"1\""
                    .into(),
                "10:32: warning: a secret in the configuration file is for development only; put \
                 it into a file that only the gateway may read: secret_file = …"
                    .into(),
            ],
        ),
        (
            format!(
                "{compact}keys = [{{ id = \"1\", secret_file = \"keys/2026-11\" }}, {{ id = \"01\", \
                 secret_file = \"keys/link\" }}]\n"
            ),
            vec!["10:60: error: there are two keys of this number; write id = \"1\"".into()],
        ),
        (
            format!(
                "{compact}keys = [{{ id = \"1\", algorithm = \"HS512\", \
                 secret_file = \"env:PORTCULLIS_OLD_KEY\" }}]\n"
            ),
            vec!["10:16: error: compact tokens have HS256 alone; write id = \"1\"".into()],
        ),
        (
            compact.to_owned(),
            vec![
                "6:1: error: \"keys\" is missing from [[auth]]; write a list of tables, \
                 [{ … }], each { … } with the keys id, algorithm, secret_file, secret, secret_encoding"
                    .into(),
            ],
        ),
    ];
    for (body, expected) in table {
        let expected: Vec<String> = expected.iter().map(|p| format!("c/x.toml:{p}")).collect();
        let mut found = problems(&auth_with(&body));
        found.retain(|problem| !problem.contains("where cookies alone authenticate"));
        assert_eq!(found, expected, "{body}");
    }
}

/// What remembers decisions goes by it: whatever changes one must change it.
#[test]
fn fingerprints_follow_keys_and_options() {
    let file = "secret_key_base_file = \"env:PORTCULLIS_OLD_KEY\"\n";
    let phoenix = format!("kind = \"phoenix\"\ncarriers = [\"subprotocol\"]\n{file}");
    let session = format!("kind = \"plug-session\"\ncarriers = [\"cookie:s\"]\n{file}");
    let jwt = "kind = \"jwt\"\ncarriers = [\"authorization\"]\n";
    let compact = "kind = \"compact\"\ncarriers = [\"authorization\"]\n";
    let bodies = [
        format!("{phoenix}salt = \"a\"\n"),
        format!("{phoenix}salt = \"b\"\n"),
        format!("{phoenix}salt = \"a\"\nmax_age = \"1h\"\n"),
        format!("{phoenix}salt = \"a\"\nmax_age = \"off\"\n"),
        format!("{phoenix}salt = \"a\"\nsubject = \"id\"\n"),
        format!("{phoenix}salt = \"a\"\nsubject = [\"id\", 0]\n"),
        format!("{phoenix}salt = \"a\"\nsubject = [\"id\", \"0\"]\n"),
        format!("{phoenix}salt = \"a\"\nsubject = [1]\n"),
        format!("{phoenix}salt = \"a\"\niterations = 2\n"),
        format!("{phoenix}salt = \"a\"\nlength = 33\n"),
        format!("{phoenix}salt = \"a\"\ndigest = \"sha512\"\n"),
        format!("{session}signing_salt = \"a\"\nsubject = \"id\"\n"),
        format!("{session}signing_salt = \"a\"\nsubject = \"user\"\n"),
        format!("{session}signing_salt = \"a\"\nsubject = \"id\"\ncsrf = false\n"),
        format!("{jwt}keys = [{{ secret_file = \"env:PORTCULLIS_OLD_KEY\" }}]\n"),
        format!("{jwt}keys = [{{ secret_file = \"keys/link\" }}]\n"),
        format!("{jwt}keys = [{{ id = \"1\", secret_file = \"keys/link\" }}]\n"),
        format!("{jwt}keys = [{{ secret_file = \"keys/link\" }}]\nissuer = \"me\"\n"),
        format!("{jwt}keys = [{{ secret_file = \"keys/link\" }}]\naudience = \"me\"\n"),
        format!("{jwt}keys = [{{ secret_file = \"keys/link\" }}]\nleeway = \"1s\"\n"),
        format!("{compact}keys = [{{ id = \"1\", secret_file = \"keys/link\" }}]\n"),
        format!("{compact}keys = [{{ id = \"2\", secret_file = \"keys/link\" }}]\n"),
    ];
    let fingerprint = |body: &String| {
        let settings = settings(&auth_with(body));
        *settings.auths[0].kind.verifier().expect("tokens").fingerprint()
    };
    let prints: Vec<_> = bodies.iter().map(fingerprint).collect();
    for (index, print) in prints.iter().enumerate() {
        assert_eq!(fingerprint(&bodies[index]), *print);
        assert!(!prints[..index].contains(print), "{}", bodies[index]);
    }
}

#[test]
fn secrets() {
    let found = |source: &str| problems(&base_with("keys", &format!("keys = [{{ {source} }}]")));
    let short = |at: u32, bytes: u32| {
        format!(
            "c/x.toml:10:{at}: error: this secret has {bytes} bytes and can be guessed: at least 32 \
             are required; make one with: openssl rand -hex 32"
        )
    };
    assert_eq!(found("secret_file = \"env:PORTCULLIS_DEV_KEY\""), [""; 0]);
    assert_eq!(found("secret_file = \"keys/short\""), [short(25, 31)]);
    // One newline goes, the second is taken for a part of the secret.
    assert_eq!(found("secret_file = \"keys/31-and-newlines\""), [short(25, 31)]);
    assert_eq!(found("secret_file = \"env:SHORT\""), [short(25, 5)]);
    assert_eq!(
        found("secret_file = \"env:ABSENT\""),
        ["c/x.toml:10:25: error: the environment variable \"ABSENT\" is not set; set it where \
          the gateway is started"]
    );
    assert_eq!(
        found("secret_file = \"keys/absent\""),
        ["c/x.toml:10:25: error: cannot read c/keys/absent: entity not found; file names are \
          relative to the configuration file's folder"]
    );
    assert_eq!(
        found("secret_file = \"keys/open\""),
        ["c/x.toml:10:25: warning: c/keys/open can be read by every user; chmod o-rwx c/keys/open"]
    );
    let inline = format!("secret = \"{SECRET}\"");
    assert_eq!(
        found(&inline),
        ["c/x.toml:10:20: warning: a secret in the configuration file is for development only; \
          put it into a file that only the gateway may read: secret_file = …"]
    );
    assert_eq!(
        found(&format!("{inline}, secret_file = \"keys/link\"")),
        ["c/x.toml:10:20: error: both secret_file and secret are given; keep the file"]
    );
}

#[test]
fn no_problem_repeats_a_secret() {
    let canary = "canary-canary";
    for line in [
        format!("keys = [{{ secret = \"{canary}\" }}]"),
        format!("keys = [{{ secret = [\"{canary}\"] }}]"),
        format!("keys = [{{ secret = \"{canary}\", secret_file = \"keys/link\" }}]"),
        format!("keys = [{{ secert = \"{canary}\" }}]"),
        format!("keys = \"{canary}-which-is-quite-long\""),
    ] {
        let found = problems(&base_with("keys", &line));
        assert!(!found.is_empty(), "{line}");
        assert!(!found.iter().any(|problem| problem.contains(canary)), "{found:#?}");
    }
}

#[test]
fn certificates() {
    let found = |tls: &str| {
        problems(&base_with("address", &format!("address = \"127.0.0.1:8080\"\ntls = {tls}")))
    };
    let pair = |name: &str, key: &str| {
        format!("{{ certificate = \"tls/{name}.pem\", key = \"tls/{key}.key\" }}")
    };
    assert_eq!(found(&pair("example.com", "example.com")), [""; 0]);
    assert_eq!(
        found(&pair("example.com", "example.org")),
        ["c/x.toml:6:52: error: this private key does not belong to the certificate; the first \
          certificate in the file must be the server's own"]
    );
    assert_eq!(
        found(&pair("old", "old")),
        ["c/x.toml:6:23: warning: this certificate expired on Jan  1 00:00:00 2021 +00:00; \
          clients will refuse it: renew it"]
    );
    assert_eq!(
        found(&pair("empty", "locked")),
        [
            "c/x.toml:6:23: error: tls/empty.pem holds no certificate; it must be PEM: \
             -----BEGIN CERTIFICATE-----",
            "c/x.toml:6:46: error: this private key is encrypted; decrypt it: openssl pkey -in \
             OLD -out NEW"
        ]
    );
    assert_eq!(found(&pair("whole", "issued")), [""; 0]);
    assert_eq!(
        found(&pair("issued", "issued")),
        ["c/x.toml:6:23: warning: the file has the server's certificate only, without its \
          issuer's (CN=An authority); append the intermediate certificates (a CA calls that file \
          fullchain); clients refuse the chain unless they have this issuer already"]
    );
    assert_eq!(
        found(&pair("gap", "issued")),
        ["c/x.toml:6:23: warning: certificate 2 of the file is not the issuer of the one before \
          it; write the server's certificate first, then each one's issuer"]
    );
    let twice = format!("[{0}, {0}]", pair("example.org", "example.org"));
    assert_eq!(
        found(&twice),
        ["c/x.toml:6:94: warning: an earlier certificate of this listener has example.org too; \
          the earlier one is served for it"]
    );
    assert_eq!(
        found("[]"),
        ["c/x.toml:6:7: error: tls has no certificate; remove it, or list one"]
    );
    assert_eq!(
        found("{ certificate = \"tls/example.com.pem\" }"),
        ["c/x.toml:6:7: error: \"key\" is missing from \"tls\" of [[listener]]; it takes: file \
          name, relative to the configuration file, or env:NAME"]
    );
}

/// Whether a client that trusts both certificates of the example completes a handshake for
/// `server_name`, and the application protocol that was agreed on.
fn handshake(
    server: &std::sync::Arc<rustls::ServerConfig>,
    roots: &rustls::RootCertStore,
    server_name: &str,
    version: &'static rustls::SupportedProtocolVersion,
) -> Result<Option<Vec<u8>>, rustls::Error> {
    let provider = rustls::crypto::ring::default_provider();
    let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[version])?
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = server_name.to_owned().try_into().expect("a server name");
    let mut client = rustls::ClientConnection::new(config.into(), name)?;
    let mut server = rustls::ServerConnection::new(server.clone())?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("into memory");
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).expect("from memory");
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("into memory");
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).expect("from memory");
            client.process_new_packets()?;
        }
    }
    Ok(server.alpn_protocol().map(<[u8]>::to_vec))
}

#[test]
fn the_server_name_selects_the_certificate() {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let world = world();
    let loaded = load(&example("portcullis.toml"), Path::new("c/portcullis.toml"), &world);
    let settings = loaded.map_err(|p| lines(&p)).expect("the example loads").settings;
    let config = &settings.listeners[1].tls.as_ref().expect("TLS").config;
    assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (1, 0));
    let mut roots = rustls::RootCertStore::empty();
    for file in ["c/tls/example.com.pem", "c/tls/example.org.pem"] {
        let pem = &world.files[Path::new(file)].0;
        roots.add(CertificateDer::from_pem_slice(pem).expect("PEM")).expect("a certificate");
    }
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        for (name, served) in [
            ("example.com", true),
            ("a.example.com", true),
            ("A.Example.COM", true),
            ("example.org", true),
            ("a.example.org", false),
            ("a.b.example.com", false),
            ("example.net", false),
        ] {
            match handshake(config, &roots, name, version) {
                Ok(protocol) => {
                    assert!(served, "{name}");
                    assert_eq!(protocol.as_deref(), Some(b"http/1.1".as_slice()), "{name}");
                }
                // The first certificate was served, and is for another name.
                Err(rustls::Error::InvalidCertificate(_)) => assert!(!served, "{name}"),
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}

#[test]
fn the_conformance_profile_lets_the_test_suite_through() {
    let plain = settings(BASE).limits;
    let limits = settings(&base_with("[limits]", "[limits]\nprofile = \"conformance\"")).limits;
    assert!(limits.message_max >= 16 << 20 && plain.message_max == 1 << 20);
    assert!(limits.fragments_max >= limits.message_max / 64, "messages in 64-byte fragments");
    assert!(limits.frames_per_second >= 1_000_000 && limits.frames_burst >= 1_000_000);
    assert!(limits.controls_per_second >= 1_000_000 && limits.controls_burst >= 1_000_000);
    // What is written beats the profile.
    let text = "[limits]\nprofile = \"conformance\"\nmessage_max = \"2MiB\"";
    assert_eq!(settings(&base_with("[limits]", text)).limits.message_max, 2 << 20);
}

/// A key that has a range: its ends as they are written, and its section's line in [`BASE`].
fn ends(key: &keys::Key) -> Option<[String; 2]> {
    let time = |ms: u64| format!("{:?}", format_duration(Duration::from_millis(ms)));
    let size = |bytes: u64| format!("{:?}", format_size(bytes));
    match key.shape {
        Shape::Count(min, max) | Shape::CountOrAuto(min, max) => {
            Some([min.to_string(), max.to_string()])
        }
        Shape::Size(min, max) | Shape::SizeOrAuto(min, max) => Some([size(min), size(max)]),
        Shape::Time(min, max) | Shape::TimeOrOff(min, max) => Some([time(min), time(max)]),
        _ => None,
    }
}

#[test]
fn both_ends_of_every_range_fit_their_fields() {
    let ranged: Vec<_> = keys::all().filter_map(|key| Some((key, ends(key)?))).collect();
    assert!(ranged.len() > 30);
    for (key, [min, max]) in ranged {
        let line = match key.section {
            "auth" => "kind".to_owned(),
            "backend" => "endpoints".to_owned(),
            "route" => "path".to_owned(),
            section => format!("[{section}]"),
        };
        for end in [&min, &max] {
            if key.section == "route.closes" {
                let one = format!("closes = {{ internal = {{ {} = {end} }} }}", key.name);
                let text = base_with("path", &format!("path = \"/ws\"\n{one}"));
                assert_eq!(problems(&text), [""; 0]);
                continue;
            }
            let before = match key.section {
                "auth" => "kind = \"jwt\"",
                "backend" => "endpoints = [\"ws://127.0.0.1:1\"]\nkind = \"websocket\"",
                "route" => "path = \"/ws\"",
                _ => &line,
            };
            let text = base_with(&line, &format!("{before}\n{} = {end}", key.name));
            // Another rule may object, but the type and range must not, and nothing may panic.
            for problem in problems(&text) {
                let objects = problem.contains(&format!("\"{}\" in ", key.name));
                assert!(!objects, "{problem}");
            }
        }
    }
}

#[test]
fn every_default_is_as_the_table_says() {
    let absent = settings(BASE);
    let of_blocks = ["auth", "backend"];
    let scalar = |key: &&keys::Key| {
        ends(key).is_some() && !of_blocks.contains(&key.section) && key.default != NONE
    };
    for key in keys::all().filter(scalar) {
        let quoted = !matches!(key.shape, Shape::Count(..));
        let value = if quoted { format!("{:?}", key.default) } else { key.default.to_owned() };
        let line = format!("[{}]", key.section);
        let written = settings(&base_with(&line, &format!("{line}\n{} = {value}", key.name)));
        assert_eq!(written.limits, absent.limits, "{}", key.full_name);
        assert_eq!(written.deadlines, absent.deadlines, "{}", key.full_name);
        assert_eq!(written.gateway.workers, absent.gateway.workers);
    }
}

#[test]
fn changes_that_require_a_restart_are_named_and_live_ones_are_not() {
    let old = settings(BASE);
    let changes = |text: &str| restart_required(&old, &settings(text));
    assert_eq!(changes(BASE), [""; 0]);
    let live = [
        ("[limits]", "[limits]\nconnections_max = 999_999\nmessage_max = \"2MiB\""),
        ("[limits]", "[limits]\nprofile = \"conformance\""),
        ("[deadlines]", "[deadlines]\nidle = \"90s\""),
        ("endpoints", "endpoints = [\"127.0.0.1:7001\"]"),
        ("[gateway]", "[gateway]\nlog = { level = \"debug\" }"),
        ("keys", "keys = [{ id = \"k2\", secret_file = \"keys/link\" }]"),
        ("origins", "origins = [\"https://b.example\"]"),
        ("path", "path = \"/ws/*\""),
        ("path", "path = \"/ws\"\ndialect = \"phoenix\"\ncloses = { idle = { code = 4000 } }"),
        ("endpoints", "endpoints = [\"127.0.0.1:7000\"]\nsecret_file = \"keys/link\""),
        ("address", "address = \"127.0.0.1:8080\"\nproxy_protocol = { trusted = [\"::1\"] }"),
        ("address", "address = \"127.0.0.1:8080\"\nforwarded = { trusted = [\"10.0.0.0/8\"] }"),
        ("address", "address = \"127.0.0.1:8080\"\nredirect = \"https\""),
        ("path", "path = \"/ws\"\nhosts = [\"a.example\"]"),
    ];
    for (line, replacement) in live {
        assert_eq!(changes(&base_with(line, replacement)), [""; 0], "{replacement}");
    }
    let tls = "address = \"127.0.0.1:8080\"\n\
               tls = { certificate = \"tls/example.com.pem\", key = \"tls/example.com.key\" }";
    let second = "address = \"127.0.0.1:8080\"\n[[listener]]\naddress = \"127.0.0.1:8081\"";
    let restart_for = [
        ("[gateway]", "[gateway]\nworkers = 2", "gateway.workers"),
        ("[gateway]", "[gateway]\ndescriptors = \"plain\"", "gateway.descriptors"),
        ("[gateway]", "[gateway]\nadmin = \"127.0.0.1:1\"", "gateway.admin"),
        ("[gateway]", "[gateway]\nadmin_token_file = \"keys/admin\"", "gateway.admin_token_file"),
        ("[gateway]", "[gateway]\nadmin_socket = \"admin.sock\"", "gateway.admin_socket"),
        ("[gateway]", "[gateway]\nlog = { format = \"json\" }", "gateway.log.format"),
        ("[gateway]", "[gateway]\nclose_log = \"closes.json\"", "gateway.close_log"),
        ("[gateway]", "[gateway]\nrevocations_file = \"r\"", "gateway.revocations_file"),
        ("[limits]", "[limits]\nconnections_per_worker = 500", "limits.connections_per_worker"),
        ("[limits]", "[limits]\nmemory_max = \"1GiB\"", "limits.memory_max"),
        ("[limits]", "[limits]\nclient_buffers = 512", "limits.client_buffers"),
        ("[limits]", "[limits]\nclient_send_buffer = \"64KiB\"", "limits.client_send_buffer"),
        ("[limits]", "[limits]\naccepts = 8", "limits.accepts"),
        ("[limits]", "[limits]\ndead_tokens_max = 0", "limits.dead_tokens_max"),
        ("address", "address = \"127.0.0.1:8081\"", "listener.address"),
        ("address", second, "listener.address"),
        ("address", tls, "listener.tls"),
        ("address", "address = \"127.0.0.1:8080\"\ndefer_accept = \"on\"", "listener.defer_accept"),
    ];
    for (line, replacement, key) in restart_for {
        assert_eq!(changes(&base_with(line, replacement)), [key], "{replacement}");
    }
    let server = settings(&server_with("name", "name = \"main\""));
    let live = "credentials = \"strip\"\nidentity_headers = \"remote\"\nhandshakes_max = 5\n\
                request_headers = { X-A = \"b\" }\nupstream_message_max = \"1MiB\"\n\
                sessions_max = 7\npreserve_host = false\ncircuit_failures = 7\n\
                circuit_open_min = \"2s\"\ncircuit_open_max = \"9s\"";
    let new = settings(&server_with("name", &format!("name = \"main\"\n{live}")));
    assert_eq!(restart_required(&server, &new), [""; 0]);
    let renamed = BASE.replace("\"main\"", "\"other\"");
    assert_eq!(changes(&renamed), [""; 0]);
    let restart = keys::all().filter(|key| matches!(key.reload, Reload::RestartRequired(_)));
    let elsewhere = |key: &&keys::Key| {
        key.full_name == "backend.kind" || key.full_name.starts_with("backend.circuit_")
    };
    for key in restart.filter(|key| !elsewhere(key)) {
        let tried = restart_for.iter().any(|(_, _, name)| *name == key.full_name);
        assert!(tried, "{} is untried", key.full_name);
    }
}

#[test]
fn the_documentation_lists_every_key_that_needs_a_restart() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md is there");
    let line = document.lines().find(|line| line.starts_with("Keys that need a restart: "));
    let restart = keys::all().filter(|key| matches!(key.reload, Reload::RestartRequired(_)));
    let names: Vec<String> = restart.map(|key| format!("`{}`", key.full_name)).collect();
    assert_eq!(line, Some(&*format!("Keys that need a restart: {}.", names.join(", "))));
}

#[test]
fn the_documentation_has_every_key_as_the_table_has_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md is there");
    let is_row = |line: &&str| line.starts_with("| `");
    let documented: Vec<&str> = document.lines().filter(is_row).collect();
    let mut sections: Vec<&str> = Vec::new();
    for key in keys::all() {
        if !sections.contains(&key.section) {
            sections.push(key.section);
        }
    }
    let declared: Vec<String> =
        sections.iter().flat_map(|s| keys::of_section(s)).map(keys::Key::row).collect();
    // When this fails: `PORTCULLIS_PRINT_KEYS=1 cargo test --test config documentation -- --nocapture`.
    if std::env::var_os("PORTCULLIS_PRINT_KEYS").is_some() {
        declared.iter().for_each(|row| println!("{row}"));
    }
    for (documented, declared) in documented.iter().zip(&declared) {
        assert_eq!(documented, declared);
    }
    assert_eq!(documented.len(), declared.len());
    for (section, _) in SECTIONS {
        assert!(document.contains(&format!("[{section}]")), "{section} has no heading");
    }
    assert!(keys::all().any(|key| key.default == REQUIRED));
}

/// `BASE` with a WebSocket server as its backend, and the line that starts with `line =` replaced.
fn server_with(line: &str, replacement: &str) -> String {
    let text =
        BASE.replace("\"127.0.0.1:7000\"]", "\"ws://127.0.0.1:7000\"]\nkind = \"websocket\"");
    match line {
        "name" => text.replace("name = \"main\"", replacement),
        _ => {
            let is = |l: &&str| l.starts_with(&format!("{line} = "));
            let found = text.lines().find(is).unwrap_or_else(|| panic!("no line {line}"));
            text.replacen(&format!("{found}\n"), &format!("{replacement}\n"), 1)
        }
    }
}

/// Each line in place of another in a file with a WebSocket server, and what is wrong then.
fn check_server_cases(cases: &[Case]) {
    for (line, replacement, expected) in cases {
        let told = problems(&server_with(line, replacement));
        let told: Vec<_> =
            told.iter().map(|told| told.strip_prefix("c/x.toml:").unwrap()).collect();
        assert_eq!(told, *expected, "{replacement}");
    }
}

#[test]
fn rules_of_websocket_backends() {
    check_server_cases(&[
        ("name", "name = \"main\"", &[]),
        ("endpoints", "endpoints = [\"ws://10.0.0.5:4000/base/\", \"ws://[::1]:80/base\"]", &[]),
        (
            "endpoints",
            "endpoints = [\"ws://10.0.0.5\", \"ws://[::1]\", \"unix:/run/app.sock\"]",
            &[],
        ),
        (
            "endpoints",
            "endpoints = [\"127.0.0.1:1\", \"http://127.0.0.1:1\"]",
            &[
                "18:14: error: \"127.0.0.1:1\" does not say how its server is spoken to; write ws://IP:PORT or ws://NAME:PORT, with the path that all its URLs begin with, if any, or unix:/PATH",
                "18:29: error: \"http://127.0.0.1:1\" does not say how its server is spoken to; write ws://IP:PORT or ws://NAME:PORT, with the path that all its URLs begin with, if any, or unix:/PATH",
            ],
        ),
        ("endpoints", "endpoints = [\"ws://app:4000/base\", \"ws://app.internal/base\"]", &[]),
        (
            "endpoints",
            "endpoints = [\"ws://app\", \"ws://APP:80\"]",
            &["18:26: error: endpoint \"ws://APP:80\" is listed twice; remove one"],
        ),
        (
            "endpoints",
            "endpoints = [\"ws://10.0.0:4000\", \"ws://10.0.0\"]",
            &[
                "18:14: error: \"10.0.0:4000\" is not an IP address, or a name, and a port; write 127.0.0.1:7000, [::1]:7000 or app.internal:7000",
                "18:34: error: \"10.0.0:80\" is not an IP address, or a name, and a port; write 127.0.0.1:7000, [::1]:7000 or app.internal:7000",
            ],
        ),
        // The system's resolver takes it for an address.
        ("endpoints", "endpoints = [\"ws://0x7f000001\"]", &[]),
        (
            "endpoints",
            "endpoints = [\"wss://0x7f000001\"]\nca_file = \"tls/example.com.pem\"",
            &[
                "18:14: error: no certificate can have the name \"0x7f000001\"; write wss://app.internal",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"wss://app.internal.\", \"wss://app:8443\"]\nca_file = \"tls/example.com.pem\"",
            &[],
        ),
        (
            "endpoints",
            "endpoints = [\"ws://u@10.0.0.5:1\", \"ws://10.0.0.5:1/a?b=c\", \"ws://10.0.0.6:1/a b\"]",
            &[
                "18:14: error: this is not the URL of a WebSocket server; write ws://NAME:PORT or ws://NAME:PORT/PATH, without query and user",
                "18:35: error: this is not the URL of a WebSocket server; write ws://NAME:PORT or ws://NAME:PORT/PATH, without query and user",
                "18:60: error: this is not the URL of a WebSocket server; write ws://NAME:PORT or ws://NAME:PORT/PATH, without query and user",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"ws://10.0.0.5:1/a\", \"ws://10.0.0.6:1/b\", \"unix:/run/x\"]",
            &[
                "18:35: error: the endpoints of this backend have different paths; give all of them the same scheme and path, or make two backends of them",
                "18:56: error: the endpoints of this backend have different paths; give all of them the same scheme and path, or make two backends of them",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"ws://10.0.0.5\", \"ws://10.0.0.5:80\"]",
            &["18:31: error: endpoint \"ws://10.0.0.5:80\" is listed twice; remove one"],
        ),
        (
            "endpoints",
            "endpoints = [\"wss://10.0.0.5:443\"]",
            &[
                "18:13: error: the system's certificates cannot be read: entity not found; install ca-certificates, or name the issuer's certificate as ca_file",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"wss://10.0.0.5\", \"ws://10.0.0.6\"]\nca_file = \"tls/example.com.pem\"",
            &[
                "18:32: error: some endpoints of this backend speak TLS and some do not; give all of them the same scheme and path, or make two backends of them",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"wss://10.0.0.5\"]\nca_file = \"tls/empty.pem\"",
            &[
                "19:11: error: c/tls/empty.pem has no certificate; it must be PEM: -----BEGIN CERTIFICATE-----",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"wss://10.0.0.5\", \"wss://10.0.0.6:8443\"]\nca_file = \"tls/example.com.pem\"\nserver_name = \"app.internal\"",
            &[],
        ),
        (
            "endpoints",
            "endpoints = []",
            &[
                "18:13: error: endpoints is empty: the backend has no server; list \"ws://IP:PORT\", \"ws://NAME:PORT\" or \"unix:/PATH\"",
            ],
        ),
        (
            "name",
            "name = \"main\"\nsecret_file = \"keys/link\"\nrevoke = \"all\"",
            &[
                "18:1: error: \"secret_file\" means nothing to kind = \"websocket\"; it belongs to kind = \"link\"",
                "19:1: error: \"revoke\" means nothing to kind = \"websocket\"; it belongs to kind = \"link\"",
            ],
        ),
        ("name", "name = \"main\"\nbalance = \"hash-query:room\"", &[]),
        (
            "name",
            "name = \"main\"\nbalance = \"hash-cookie:\"",
            &[
                "18:11: error: \"balance\" in [[backend]] is \"hash-cookie:\"; it takes: \"least-sessions\", \"round-robin\", \"hash-subject\", \"hash-address\", \"hash-cookie:NAME\", \"hash-query:NAME\"",
            ],
        ),
        (
            "name",
            "name = \"main\"\nbalance = \"hash-cookie:a b\"",
            &[
                "18:11: error: \"a b\" names no cookie and no parameter; write hash-cookie:NAME or hash-query:NAME",
            ],
        ),
        (
            "name",
            "name = \"main\"\nbalance = \"hash-header:x\"",
            &[
                "18:11: error: \"balance\" in [[backend]] is \"hash-header:x\"; it takes: \"least-sessions\", \"round-robin\", \"hash-subject\", \"hash-address\", \"hash-cookie:NAME\", \"hash-query:NAME\"",
            ],
        ),
        (
            "name",
            "name = \"main\"\nca_file = \"tls/example.com.pem\"\nserver_name = \"app.internal\"",
            &[
                "18:11: error: ca_file has no use: no endpoint is wss://; remove it, or write wss://",
                "19:15: error: server_name has no use: no endpoint is wss://; remove it, or write preserve_host = false",
            ],
        ),
        (
            "name",
            "name = \"main\"\nserver_name = \"a b\"\npreserve_host = false",
            &[
                "18:15: error: \"a b\" is neither a host name nor an IP address; write app.example.com",
            ],
        ),
        (
            "name",
            "name = \"main\"\nidentity_headers = \"forward\"",
            &[
                "18:20: error: \"identity_headers\" in [[backend]] is \"forward\"; did you mean \"forwarded\"?",
            ],
        ),
        (
            "name",
            "name = \"main\"\nidentity_headers = { sub = \"X-User\", email = \"x_user\" }",
            &["18:28: error: header \"X-User\" is set twice"],
        ),
        (
            "name",
            "name = \"main\"\nidentity_headers = { sub = \"Host\", a = \"X-A-Encoded\", b = \"Cookie\", c = \"a b\" }",
            &[
                "18:28: error: header \"Host\" is the gateway's own",
                "18:40: error: header \"X-A-Encoded\" ends as those do whose values are percent-encoded",
                "18:59: error: header \"Cookie\" is the client's own; name another for the identity",
                "18:73: error: \"a b\" is not a header name",
            ],
        ),
        (
            "name",
            "name = \"main\"\nidentity_headers = { sub = 5 }",
            &[
                "18:20: error: \"identity_headers\" in [[backend]] is a table; it takes: \"none\", \"forwarded\", \"remote\", or a table of header names by claim",
            ],
        ),
        (
            "name",
            "name = \"main\"\nidentity_headers = \"remote\"\nrequest_headers = { remote_user = \"x\" }",
            &["19:35: error: header \"remote_user\" is set twice"],
        ),
        (
            "name",
            "name = \"main\"\nrequest_headers = { X-A = \"a\", Connection = \"close\", Sec-WebSocket-Key = \"k\" }",
            &[
                "18:45: error: header \"Connection\" is the gateway's own",
                "18:74: error: header \"Sec-WebSocket-Key\" is the gateway's own",
            ],
        ),
        (
            "name",
            "name = \"main\"\nrequest_headers = { X-A = \" secret\", X-B = \"a\\nb\", X-C = \"\" }",
            &[
                "18:27: error: the value of header \"X-A\" cannot be sent; it must be 1 to 4096 visible ASCII characters, with spaces between them only",
                "18:44: error: the value of header \"X-B\" cannot be sent; it must be 1 to 4096 visible ASCII characters, with spaces between them only",
                "18:58: error: the value of header \"X-C\" cannot be sent; it must be 1 to 4096 visible ASCII characters, with spaces between them only",
            ],
        ),
        (
            "name",
            "name = \"main\"\nrequest_headers = { X-A = 5 }",
            &[
                "18:19: error: \"request_headers\" in [[backend]] is not a table of texts; it takes: table of values by header name",
            ],
        ),
        (
            "name",
            "name = \"main\"\nrequest_header_files = { Authorization = \"keys/link\", X-B = \"keys/none\" }",
            &[
                "18:61: error: cannot read c/keys/none: entity not found; file names are relative to the configuration file's folder",
            ],
        ),
        (
            "name",
            "name = \"main\"\nrequest_headers = { X-A = \"a\" }\nrequest_header_files = { X_a = \"keys/link\" }",
            &["19:32: error: header \"X_a\" is set twice"],
        ),
        (
            "name",
            "name = \"main\"\ncircuit_open_min = \"40s\"",
            &[
                "18:20: error: circuit_open_max is below circuit_open_min; the wait begins at the one and doubles up to the other",
            ],
        ),
    ]);
    // What these keys are for, and what they are not for.
    check_cases(&[
        (
            "endpoints",
            "endpoints = [\"ws://127.0.0.1:1\"]",
            &[
                "18:14: error: \"ws://127.0.0.1:1\" belongs to kind = \"websocket\"; set that, or write IP:PORT for kind = \"link\"",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"127.0.0.1:1\"]\nbalance = \"hash-subject\"",
            &[
                "19:11: error: balance = \"hash-subject\" is for kind = \"websocket\"; write \"least-sessions\" or \"round-robin\"",
            ],
        ),
        (
            "endpoints",
            "endpoints = [\"127.0.0.1:1\"]\ncredentials = \"pass\"",
            &[
                "19:1: error: \"credentials\" means nothing to kind = \"link\"; it belongs to kind = \"websocket\"",
            ],
        ),
        (
            "path",
            "path = \"/ws\"\nstrip_prefix = \"/ws\"",
            &[
                "13:16: error: strip_prefix has no use: a backend of kind = \"link\" gets the path; remove it",
            ],
        ),
        (
            "path",
            "path = \"/ws\"\ncookies = \"pass\"",
            &[
                "13:11: error: cookies has no use: a backend of kind = \"link\" gets none; remove it",
            ],
        ),
        ("path", "path = \"/ws\"\nmessage_max = \"64KiB\"", &[]),
        (
            "path",
            "path = \"/ws\"\nmessage_max = \"2MiB\"",
            &[
                "13:15: error: message_max is above limits.message_max, which the link agreed on; raise that one, too",
            ],
        ),
    ]);
}

#[test]
fn rules_of_routes_to_websocket_backends() {
    check_server_cases(&[
        (
            "origins",
            "origins = \"any\"",
            &[
                "13:11: error: origins = \"any\" where the application gets cookies: every page on the internet could connect as the visitor, since browsers add cookies by themselves (cross-site WebSocket hijacking); list the origins, or write cookies = \"strip\" if the application needs none",
            ],
        ),
        ("origins", "origins = \"any\"\ncookies = \"strip\"", &[]),
        (
            "origins",
            "origins = [\"null\", \"https://a.example\", \"file://\"]",
            &[
                "13:12: error: origin \"null\" where the application gets cookies: sandboxed pages of every site have it, and browsers add cookies by themselves (cross-site WebSocket hijacking); list the origins, or write cookies = \"strip\" if the application needs none",
                "13:41: error: origin \"file://\" where the application gets cookies: sandboxed pages of every site have it, and browsers add cookies by themselves (cross-site WebSocket hijacking); list the origins, or write cookies = \"strip\" if the application needs none",
            ],
        ),
        ("origins", "origins = [\"null\"]\ncookies = \"strip\"", &[]),
        (
            "path",
            "path = \"/ws\"\nforward_headers = [\"user-agent\"]",
            &[
                "13:19: error: forward_headers has no use: a WebSocket server gets all headers; remove it",
            ],
        ),
        ("path", "path = \"/ws\"\nforward_headers = []", &[]),
        ("path", "path = \"/app/ws\"\nstrip_prefix = \"/app\"", &[]),
        ("path", "path = \"/app/*\"\nstrip_prefix = \"/app/\"", &[]),
        (
            "path",
            "path = \"/app/*\"\nstrip_prefix = \"/ap\"",
            &[
                "13:16: error: the route's path does not begin with strip_prefix; write whole segments of it",
            ],
        ),
        ("path", "path = \"/ws\"\nstrip_prefix = \"/ws\"", &[]),
        (
            "path",
            "path = \"/app/ws\"\nstrip_prefix = \"app\"",
            &[
                "13:16: error: strip_prefix is not a path; write /PATH, which the route's path begins with",
            ],
        ),
        ("path", "path = \"/ws\"\nmessage_max = \"64MiB\"", &[]),
    ]);
}

/// What stands in an `[[auth]]` and in the route beside it, and what is wrong then.
#[test]
fn rules_of_applications_that_judge_their_clients() {
    let table: &[Case] = &[
        ("kind = \"upstream\"", "", &[]),
        (
            "kind = \"upstream\"\ncarriers = [\"authorization\"]",
            "",
            &[
                "9:1: error: \"carriers\" means nothing to kind = \"upstream\"; it belongs to kind = \"jwt\" and \"phoenix\" and \"plug-session\" and \"compact\" and \"backend\" and \"http\"",
            ],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"handshake\"\npreset = \"phoenix\"",
            "",
            &[
                "10:10: error: this means nothing to accepted_by = \"handshake\", where the 101 accepts; write accepted_by = \"message\", or remove it",
            ],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"message\"",
            "",
            &[
                "9:15: error: accepted_by = \"message\" does not say which message accepts; set preset = \"phoenix\" or another, or accepted_when = [{ json = \"type\", equals = \"auth_ok\" }]",
            ],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"message\"\npreset = \"phoenix\"",
            "",
            &[
                "10:10: error: this preset needs accepted_topics: a join of a public topic proves nothing; list those that only signed-in clients may join, as in [\"room:*\"], or [\"*\"] where every join is checked",
            ],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"message\"\npreset = \"phoenix\"\naccepted_topics = [\"room:*\"]",
            "",
            &[],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"message\"\npreset = \"stomp\"\naccepted_topics = [\"*\"]",
            "",
            &[
                "11:19: error: accepted_topics has no use without a preset that has topics; remove it, or set preset = \"phoenix\"",
            ],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"message\"\naccepted_when = [{ json = \"4..x\" }, { prefix = \"\" }, { equals = \"x\" }, { prefix = \"a\", equals = \"b\" }]",
            "",
            &[
                "10:27: error: this is no path of names and indexes with dots between them; write { json = \"4.status\", equals = \"ok\" } or { prefix = \"CONNECTED\" }",
                "10:48: error: every message has an empty prefix; write { json = \"4.status\", equals = \"ok\" } or { prefix = \"CONNECTED\" }",
                "10:54: error: a pattern has either json or prefix; write { json = \"4.status\", equals = \"ok\" } or { prefix = \"CONNECTED\" }",
                "10:97: error: equals means nothing beside prefix; remove it",
            ],
        ),
        (
            "kind = \"upstream\"\naccepted_by = \"message\"\naccepted_when = []",
            "",
            &["10:17: error: there are 0 patterns; write 1 to 64"],
        ),
        (
            "kind = \"upstream\"",
            "subprotocols = [\"graphql-ws\"]",
            &[
                "12:8: error: accepted_by = \"handshake\" with graphql-ws: its servers answer 101 to every client, and ask for credentials in messages; write accepted_by = \"message\" and preset = \"graphql-ws\" in the [[auth]]",
            ],
        ),
        (
            "kind = \"upstream\"",
            "dialect = \"graphql-transport-ws\"",
            &[
                "12:8: error: accepted_by = \"handshake\" with graphql-transport-ws: its servers answer 101 to every client, and ask for credentials in messages; write accepted_by = \"message\" and preset = \"graphql-transport-ws\" in the [[auth]]",
            ],
        ),
        ("kind = \"upstream\"", "dialect = \"phoenix\"", &[]),
        (
            "kind = \"upstream\"",
            "auth = [\"app\", \"key\"]",
            &[
                "18:8: error: a block of kind = \"upstream\" judges every client, so none behind it would be asked; name it last, or alone",
            ],
        ),
        (
            "kind = \"backend\"\ncarriers = [\"authorization\"]",
            "",
            &[
                "13:8: error: kind = \"backend\" is asked over a link, and this route's backend is a WebSocket server; use kind = \"upstream\", where the application itself judges its clients, or kind = \"http\"",
            ],
        ),
    ];
    for (block, route, expected) in table {
        let told = problems(&judged_by_application(block, route));
        let told: Vec<_> =
            told.iter().map(|told| told.strip_prefix("c/x.toml:").unwrap()).collect();
        assert_eq!(told, *expected, "{block} {route}");
    }
    let text = asking("kind = \"upstream\"");
    assert_eq!(
        problems(&text),
        [
            "c/x.toml:12:8: error: kind = \"upstream\" has no meaning for a backend of kind = \"link\", which sees only clients that are let in; use kind = \"backend\" here, or a backend of kind = \"websocket\""
        ]
    );
    assert_eq!(settings(&judged_by_application("kind = \"upstream\"", "")).auths[0].carriers, []);
}

/// A file with a WebSocket server whose one route has this `[[auth]]`, beside a token where the
/// route names one.
fn judged_by_application(block: &str, route: &str) -> String {
    let auth = match route.contains("auth = ") {
        true => "",
        false => "auth = \"app\"",
    };
    let text = server_with("auth", &format!("{auth}\n{route}"));
    let start = text.find("[[auth]]").expect("it has one");
    let end = text[start..].find("[[route]]").expect("before the route") + start;
    let keyed = "[[auth]]\nname = \"key\"\nkind = \"jwt\"\ncarriers = [\"authorization\"]\n\
                 keys = [{ secret_file = \"keys/2026-11\" }]\n";
    let keyed = if route.contains("\"key\"") { keyed } else { "" };
    format!("{}[[auth]]\nname = \"app\"\n{block}\n{keyed}{}", &text[..start], &text[end..])
}

/// `BASE` with another block in place of its `[[auth]]`.
fn asking(block: &str) -> String {
    let start = BASE.find("[[auth]]").expect("it has one");
    let end = BASE[start..].find("[[route]]").expect("before the route") + start;
    format!("{}[[auth]]\nname = \"app\"\n{block}\n{}", &BASE[..start], &BASE[end..])
}

#[test]
fn blocks_that_ask_somebody_else_load() {
    let text = asking("kind = \"backend\"\ncarriers = [\"authorization\"]\ntimeout = \"700ms\"");
    assert_eq!(problems(&text), [""; 0]);
    assert!(matches!(settings(&text).auths[0].kind, AuthKind::Backend(t) if t.as_millis() == 700));
    let text = asking(
        "kind = \"http\"\ncarriers = [\"authorization\"]\n\
         endpoint = \"http://127.0.0.1:9000/verify?x=1\"\nheaders = [\"User-Agent\"]\n\
         identity = { subject = \"X-User\" }\nin_flight_max = 7",
    );
    assert_eq!(problems(&text), [""; 0]);
    let settings = settings(&text);
    let AuthKind::Http(http) = &settings.auths[0].kind else { panic!("an endpoint") };
    assert_eq!(http.endpoint.to_string(), "http://127.0.0.1:9000/verify?x=1");
    assert_eq!((http.in_flight_max, http.queue_max, http.response_max), (7, 1024, 16 * 1024));
    assert_eq!(http.headers, ["user-agent"]);
    assert_eq!((&*http.identity.subject, &*http.identity.expires), ("x-user", "x-auth-expires"));
    assert_eq!((http.timeout.as_millis(), http.circuit.failures), (2000, 5));
    assert!(http.roots.is_none());
}

#[test]
fn blocks_that_ask_somebody_else_are_checked() {
    const HTTP: &str = "kind = \"http\"\ncarriers = [\"authorization\"]\n";
    const HERE: &str = "endpoint = \"http://127.0.0.1:9000/\"\n";
    let table: &[(String, &str)] = &[
        (HTTP.into(), "error: \"endpoint\" is missing from [[auth]]"),
        (format!("{HTTP}endpoint = \"ftp://a/\""), "begins with neither http:// nor https://"),
        (format!("{HTTP}endpoint = \"/verify\""), "begins with neither http:// nor https://"),
        (format!("{HTTP}endpoint = \"http:///x\""), "is not an endpoint"),
        (format!("{HTTP}endpoint = \"http://a b/\""), "is not an endpoint"),
        (format!("{HTTP}endpoint = \"http://u:p@a/\""), "a user and password would end in logs"),
        (format!("{HTTP}endpoint = \"http://a/#x\""), "a fragment is never sent"),
        (format!("{HTTP}endpoint = \"http://a/\""), "warning: clients' tokens travel"),
        (format!("{HTTP}{HERE}headers = [\"Cookie\"]"), "is the gateway's own"),
        (format!("{HTTP}{HERE}headers = [\"Sec-WebSocket-Key\"]"), "is the gateway's own"),
        (format!("{HTTP}{HERE}headers = [\"a b\"]"), "is not a header name"),
        (format!("{HTTP}{HERE}headers = [\"a\", \"A\"]"), "listed twice"),
        (format!("{HTTP}{HERE}identity = {{ subject = \"a b\" }}"), "is not a header name"),
        (format!("{HTTP}{HERE}identity = {{ claims = \"x-auth-subject\" }}"), "mean two things"),
        (format!("{HTTP}{HERE}identity = {{ user = \"x\" }}"), "unknown key \"user\""),
        (format!("{HTTP}{HERE}ca_file = \"none.pem\""), "ca_file has no use"),
        (
            format!("{HTTP}endpoint = \"https://a/\"\nca_file = \"none.pem\""),
            "cannot read c/none.pem",
        ),
        (
            format!("{HTTP}{HERE}circuit_open_min = \"10s\"\ncircuit_open_max = \"1s\""),
            "circuit_open_max is below circuit_open_min",
        ),
        (format!("{HTTP}{HERE}in_flight_max = 0"), "\"in_flight_max\" in [[auth]] is 0"),
        (format!("{HTTP}{HERE}keys = [{{ secret = \"x\" }}]"), "\"keys\" means nothing to kind"),
        (format!("{HTTP}{HERE}issuer = \"x\""), "\"issuer\" means nothing to kind"),
        ("kind = \"http\"".into(), "\"carriers\" is missing"),
        ("kind = \"backend\"".into(), "\"carriers\" is missing"),
        (
            format!("kind = \"backend\"\ncarriers = [\"authorization\"]\n{HERE}"),
            "\"endpoint\" means nothing to kind = \"backend\"",
        ),
        (
            "kind = \"backend\"\ncarriers = [\"authorization\"]\ntimeout = \"5s\"".into(),
            "warning: timeout = 5s is not below deadlines.authenticate = 5s",
        ),
    ];
    for (block, expected) in table {
        let found = problems(&asking(block));
        assert!(found.iter().any(|line| line.contains(expected)), "{block}: {found:?}");
    }
    let found = problems(&BASE.replace("[[route]]", "timeout = \"1s\"\n[[route]]"));
    assert!(found.iter().any(|line| line.contains("\"timeout\" means nothing to")), "{found:?}");
    let text = asking("kind = \"backend\"\ncarriers = [\"authorization\"]");
    let found = problems(&text.replace("[[route]]", "[[route]]\nrefuse = \"http\""));
    let expected = "warning: refuse = \"http\" cannot hold where somebody else decides";
    assert!(found.iter().any(|line| line.contains(expected)), "{found:?}");
}

/// Refuses what an editor would underline.
struct Schema {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Schema {
    /// The one in the repository.
    fn committed() -> Schema {
        Schema::at("portcullis.schema.json")
    }

    /// A part of it, as in `portcullis.schema.json#/properties/limits`.
    fn at(part: &str) -> Schema {
        let schema = serde_json::from_str(&example("portcullis.schema.json")).expect("JSON");
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.set_default_draft(boon::Draft::V2020_12);
        compiler.add_resource("portcullis.schema.json", schema).expect("a resource");
        let index = compiler.compile(part, &mut schemas);
        Schema { index: index.unwrap_or_else(|error| panic!("{error:#}")), schemas }
    }

    fn check(&self, text: &str) -> Result<(), String> {
        let value: serde_json::Value = toml::from_str(text).expect("TOML");
        self.schemas.validate(&value, self.index).map_err(|error| format!("{error:#}"))
    }
}

#[test]
fn the_committed_schema_is_of_this_table_of_keys() {
    let remedy = "portcullis schema > config/portcullis.schema.json";
    assert!(example("portcullis.schema.json") == schema::text(), "outdated; {remedy}");
    for key in keys::all() {
        let description = serde_json::to_string(key.meaning).expect("a string");
        let said = schema::text().contains(description.trim_matches('"'));
        assert!(said, "{} is not described", key.full_name);
    }
}

#[test]
fn the_schema_takes_what_the_loader_takes() {
    let schema = Schema::committed();
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```toml\n").expect("the README shows a configuration");
    let (of_the_readme, _) = rest.split_once("```").expect("the block ends");
    let good = [
        example("portcullis.toml"),
        example("dev.toml"),
        of_the_readme.to_owned(),
        BASE.to_owned(),
        base_with("[gateway]", "[gateway]\nworkers = 4\nlog = { level = \"debug\" }"),
        base_with("[limits]", "[limits]\nmemory_max = \"auto\"\nconnections_max = 1_000"),
        base_with("[deadlines]", "[deadlines]\nlifetime = \"off\""),
        base_with("origins", "origins = \"any\""),
        base_with("auth", "auth = [\"app\"]"),
        base_with("path", "path = \"/ws\"\ncloses = { idle = { code = 4000 } }"),
        asking("kind = \"backend\"\ncarriers = [\"authorization\"]\ntimeout = \"700ms\""),
        asking("kind = \"phoenix\"\ncarriers = [\"query:token\"]\nsalt = \"s\""),
        server_with("name", "name = \"main\"\nbalance = \"hash-query:room\""),
        server_with("name", "name = \"main\"\nidentity_headers = { sub = \"X-User\" }"),
        server_with("name", "name = \"main\"\nrequest_headers = { X-A = \"b\" }"),
        judged_by_application("kind = \"upstream\"", ""),
    ];
    for text in good {
        schema.check(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

#[test]
fn the_schema_refuses_what_the_loader_refuses() {
    let schema = Schema::committed();
    let bad = [
        base_with("[gateway]", "[gateways]"),
        base_with("[limits]", "[limits]\nconnections = 5"),
        base_with("[limits]", "[limits]\nconnections_max = 0"),
        base_with("[limits]", "[limits]\nconnections_max = \"5\""),
        base_with("[limits]", "[limits]\nconnections_per_worker = \"many\""),
        base_with("[limits]", "[limits]\nmessage_max = 65536"),
        base_with("[limits]", "[limits]\nmessage_max = \"64KB\""),
        base_with("[limits]", "[limits]\nmemory_max = \"off\""),
        base_with("[deadlines]", "[deadlines]\nidle = \"60 s\""),
        base_with("[deadlines]", "[deadlines]\nidle = \"off\""),
        base_with("[deadlines]", "[deadlines]\nidle = 60"),
        base_with("address", "defer_accept = \"off\""),
        base_with("address", "address = \"127.0.0.1:1\"\ntls = { certificate = \"c\" }"),
        base_with("kind", "kind = \"jwtt\""),
        base_with("kind", "kind = \"phoenix\""),
        base_with("kind", "kind = \"jwt\"\nsalt = \"s\""),
        base_with("kind", "kind = \"backend\""),
        base_with("carriers", "carriers = \"authorization\""),
        base_with("keys", "issuer = \"i\""),
        base_with("keys", "keys = [{ secret = 5 }]"),
        base_with("origins", "origins = \"*\""),
        base_with("origins", "origin_absent = \"allow\""),
        base_with("path", "path = \"/ws\"\nhealth = \"true\""),
        base_with("path", "path = \"/ws\"\ncloses = { idol = { code = 4000 } }"),
        base_with("path", "path = \"/ws\"\ncloses = { idle = { code = 999 } }"),
        base_with("path", "path = \"/ws\"\nreauthenticate = { prefix = \"{x\" }"),
        base_with("endpoints", "kind = \"link\""),
        base_with("endpoints", "endpoints = [\"127.0.0.1:7000\"]\nbalance = \"random\""),
        base_with("endpoints", "endpoints = [\"127.0.0.1:7000\"]\nbalance = \"hash-cookie:\""),
        base_with("endpoints", "endpoints = [\"127.0.0.1:7000\"]\ncredentials = \"pass\""),
        server_with("name", "name = \"main\"\nsecret_file = \"keys/link\""),
        server_with("name", "name = \"main\"\nidentity_headers = { sub = 5 }"),
        server_with("name", "name = \"main\"\nidentity_headers = \"forward\""),
        judged_by_application("kind = \"upstream\"\ncarriers = [\"authorization\"]", ""),
        "[gateway]\n".to_owned(),
    ];
    for text in bad {
        assert!(load_text(&text).is_err(), "the loader takes\n{text}");
        assert!(schema.check(&text).is_err(), "the schema takes\n{text}");
    }
}

/// What can be written for a key at the ends of its range, and just beyond them.
fn at_the_bounds(shape: Shape) -> Vec<String> {
    let quantities = |units: &[(&str, u64)], min: u64, max: u64, word: &str| {
        let mut texts = vec![format!("\"{word}\""), "\"\"".to_owned(), min.to_string()];
        for (unit, scale) in units {
            for bound in [min.div_ceil(*scale), max / scale] {
                for number in [bound.saturating_sub(1), bound, bound + 1, bound * 10] {
                    texts.push(format!("\"{number}{unit}\""));
                    texts.push(format!("\"00{number}{unit}\""));
                }
            }
            texts.extend([format!("\"{unit}\""), format!("\"{min} {unit}\"")]);
        }
        texts
    };
    let counts = |min: u64, max: u64| -> Vec<String> {
        let beyond = [max + 1, min.saturating_sub(1)].map(|count| count.to_string());
        let other = ["-1", "\"auto\"", "\"off\"", "\"1\"", "true"].map(str::to_owned);
        [min, max].map(|count| count.to_string()).into_iter().chain(beyond).chain(other).collect()
    };
    match shape {
        Shape::Count(min, max) | Shape::CountOrAuto(min, max) => counts(min, max),
        Shape::Size(min, max) | Shape::SizeOrAuto(min, max) => quantities(SIZES, min, max, "auto"),
        Shape::Time(min, max) | Shape::TimeOrOff(min, max) => quantities(TIMES, min, max, "off"),
        _ => Vec::new(),
    }
}

/// A file that says `inner` in a section, and where the section is in the schema. A section
/// within another is written as the inline table that leads to it.
fn file_with(section: &str, kind: Option<&str>, inner: &str) -> (String, String) {
    let inner = match kind {
        Some(kind) => format!("kind = \"{kind}\", {inner}"),
        None => inner.to_owned(),
    };
    if let Some((_, is_list)) = SECTIONS.iter().find(|(name, _)| *name == section) {
        let (text, items) = match is_list {
            true => (format!("{section} = [{{ {inner} }}]"), "/items"),
            false => (format!("{section} = {{ {inner} }}"), ""),
        };
        return (text, format!("#/properties/{section}{items}"));
    }
    let leads = |key: &&keys::Key| match key.shape {
        Shape::Table(to)
        | Shape::Tables(to)
        | Shape::TableOrTables(to)
        | Shape::TablesByName(to, ..) => to == section,
        _ => false,
    };
    let key = keys::all().find(leads).expect("a key leads to every section");
    let (value, step) = match key.shape {
        Shape::Table(_) => (format!("{{ {inner} }}"), ""),
        Shape::Tables(_) => (format!("[{{ {inner} }}]"), "/items"),
        Shape::TableOrTables(_) => (format!("{{ {inner} }}"), "/anyOf/0"),
        Shape::TablesByName(_, _, names) => {
            (format!("{{ {} = {{ {inner} }} }}", names[0]), "/additionalProperties")
        }
        _ => unreachable!("it leads to a section"),
    };
    let outer = format!("{} = {value}", key.name);
    let (text, at) = file_with(key.section, key.kinds().next(), &outer);
    (text, format!("{at}/properties/{}{step}", key.name))
}

/// At both ends of each range, and beyond them.
#[test]
fn the_schema_has_the_ranges_of_the_loader() {
    let (mut taken, mut refused) = (0, 0);
    for key in keys::all() {
        let mut schema = None;
        for value in at_the_bounds(key.shape) {
            let inner = format!("{} = {value}", key.name);
            let (text, at) = file_with(key.section, key.kinds().next(), &inner);
            let of_this_key = format!("\"{}\" in ", key.name);
            let loader_takes = problems(&text).iter().all(|problem| {
                assert!(!problem.contains("unknown key"), "{text}: {problem}");
                !problem.contains(&of_this_key)
            });
            let part = format!("portcullis.schema.json{at}/properties/{}", key.name);
            let value: toml::Table = toml::from_str(&format!("value = {value}")).expect("TOML");
            let value = serde_json::to_value(&value["value"]).expect("JSON");
            let schema = schema.get_or_insert_with(|| Schema::at(&part));
            let schema_takes = schema.schemas.validate(&value, schema.index).is_ok();
            assert_eq!(schema_takes, loader_takes, "{text}");
            *if loader_takes { &mut taken } else { &mut refused } += 1;
        }
    }
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}
