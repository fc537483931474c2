//! The program as people call it: what is printed where, and the exit codes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:8080"
proxy_protocol = { trusted = ["10.0.0.0/8"] }
[[auth]]
name = "app"
kind = "jwt"
carriers = ["authorization"]
keys = [{ id = "new", secret_file = "new" }, { id = "old", secret_file = "env:OLD_KEY" }]
issuer = "me"
audience = "chat"
lifetime_max = "24h"
[[route]]
path = "/ws/*"
origins = ["https://a.example"]
auth = "app"
backend = "main"
[[backend]]
name = "main"
endpoints = ["127.0.0.1:7000", "unix:/run/x"]
"#;

/// A folder with a configuration `c.toml` and the key that it names.
fn folder(config: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("set");
    };
    write("c.toml", config);
    write("new", &format!("{SECRET}\n"));
    folder
}

fn call_with(folder: &Path, line: &str, stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("OLD_KEY", SECRET.to_uppercase())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A command that reads nothing may be gone before this is written.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

fn call(folder: &Path, line: &str) -> (i32, String, String) {
    call_with(folder, line, "")
}

#[test]
fn check_sums_up_a_good_file() {
    let folder = folder(CONFIG);
    let (code, out, err) = call(folder.path(), "check --config c.toml");
    let expected = "\
c.toml: good
  workers   one for each core
  admission room for 50000 clients that have not authenticated yet: if they take up to 1s, \
   50000 new ones a second get in; 7142 silent ones a second, each closed after 7s, would fill it
  admin     http://127.0.0.1:9464/
  listener  127.0.0.1:8080 plain, PROXY header from 1 network
  auth      app (1 carrier)
  route     /ws/* -> main (auth: app; 404 for /ws)
  backend   main: 127.0.0.1:7000 unix:/run/x (least-sessions, without a secret)
";
    assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
}

#[test]
fn check_reports_everything_and_exits_with_1() {
    let config = CONFIG.replace("name = \"app\"", "nam = \"app\"").replace("/ws/*", "ws");
    let folder = folder(&format!("[limits]\nclient_buffers = 17\n{config}"));
    let (code, out, err) = call(folder.path(), "check --config c.toml");
    assert_eq!((code, out.as_str()), (1, ""));
    let expected = "\
c.toml:2:18: error: client_buffers = 17 is not a power of two; try 32
c.toml:7:1: error: \"name\" is missing from [[auth]]; it takes: name
c.toml:8:1: error: unknown key \"nam\" in [[auth]]; did you mean \"name\"?
c.toml:16:8: error: \"ws\" is not a path; write /PATH, or /PREFIX/* for all below it: visible \
ASCII without ? # and spaces
c.toml: 4 errors
";
    assert_eq!(err, expected);
}

#[test]
fn check_prints_json_for_programs() {
    let table = [
        (CONFIG.to_owned(), 0, json!([])),
        (
            CONFIG.replace("name = \"app\"", "nam = \"app\""),
            1,
            json!(["missing_key", "unknown_key"]),
        ),
        (CONFIG.replace("carriers = [", "carriers = [\"query:token\", "), 0, json!(["unwise"])),
    ];
    for (config, expected, codes) in table {
        let folder = folder(&config);
        let (code, out, err) = call(folder.path(), "check -c c.toml --format json");
        assert_eq!((code, err.as_str()), (expected, ""), "{out}");
        let report: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["good"], expected == 0);
        let problems = report["problems"].as_array().expect("a list");
        let found: Vec<_> = problems.iter().map(|problem| &problem["code"]).collect();
        assert_eq!(json!(found), codes, "{out}");
        for problem in problems {
            assert_eq!(problem["file"], "c.toml");
            assert!(problem["line"].as_u64() > Some(1) && problem["column"].is_u64(), "{problem}");
            assert!(problem["message"].is_string() && problem["remedy"].is_string(), "{problem}");
        }
    }
    let none = call(tempfile::tempdir().unwrap().path(), "check -c none.toml --format json");
    assert!(none.0 == 1 && none.1.contains("unreadable_file"), "{none:?}");
}

#[test]
fn check_sees_addresses_that_overlap() {
    let second = |address: &str| {
        CONFIG.replace("[[auth]]", &format!("[[listener]]\naddress = \"{address}\"\n[[auth]]"))
    };
    let of = |address: &str| CONFIG.replace("127.0.0.1:8080", address);
    for (config, expected) in [
        (second("[::]:8080"), Some("[::]:8080 overlaps with the listener at 127.0.0.1:8080")),
        (second("0.0.0.0:8080"), Some("0.0.0.0:8080 overlaps")),
        (second("127.0.0.1:8080"), Some("two listeners have the address")),
        (second("[::1]:8080"), None),
        (second("127.0.0.2:8080"), None),
        (second("0.0.0.0:8081"), None),
        (of("127.0.0.1:9464"), Some("admin 127.0.0.1:9464 overlaps")),
        (of("[::]:9464"), Some("admin 127.0.0.1:9464 overlaps with the listener at [::]:9464")),
        (of("[::1]:9464"), None),
    ] {
        let folder = folder(&config);
        let (code, _, err) = call(folder.path(), "check --config c.toml");
        assert_eq!(code, i32::from(expected.is_some()), "{err}");
        assert!(err.contains(expected.unwrap_or_default()), "{err}");
    }
}

#[test]
fn check_as_run_tries_what_run_needs() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let config = CONFIG.replace(":8080", &format!(":{port}"));
    let folder = folder(&format!("[gateway]\nadmin = \"off\"\nclose_log = \"no/x\"\n{config}"));
    let (code, out, err) = call(folder.path(), "check -c c.toml");
    assert_eq!(code, 0, "{err}{out}");
    let (code, _, err) = call(folder.path(), "check -c c.toml --as-run");
    assert_eq!(code, 1, "{err}");
    let held = format!("c.toml: error: listener 0 127.0.0.1:{port} is held by ");
    assert!(err.contains(&held), "{err}");
    assert!(err.contains("c.toml: error: gateway.close_log: the folder "), "{err}");
    assert!(err.contains("2 errors"), "{err}");
    drop(taken);
    std::fs::create_dir(folder.path().join("no")).expect("made");
    let (code, _, err) = call(folder.path(), "check -c c.toml --as-run");
    assert_eq!(code, 0, "{err}");
}

#[test]
fn the_configuration_is_found_by_variable_and_by_default() {
    let folder = folder(CONFIG);
    let run = |variable: Option<&str>, line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(line.split_whitespace()).current_dir(folder.path());
        command.env("OLD_KEY", SECRET.to_uppercase()).env_remove("PORTCULLIS_CONFIG");
        command.envs(variable.map(|v| ("PORTCULLIS_CONFIG", v)));
        let output = command.output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = run(Some("c.toml"), "check");
    assert!(code == 0 && out.starts_with("c.toml: good"), "{out}");
    let (code, _, err) = run(Some("none.toml"), "check -c c.toml");
    assert_eq!(code, 0, "--config wins: {err}");
    if !Path::new("/etc/portcullis/portcullis.toml").exists() {
        let (code, _, err) = run(None, "check");
        assert_eq!(code, 1);
        assert!(err.starts_with("/etc/portcullis/portcullis.toml:1:1: error: "), "{err}");
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

#[test]
fn doctor_examines_the_machine_with_and_without_a_configuration() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let backend = listener.local_addr().expect("its address");
    let config = CONFIG
        .replace("\"127.0.0.1:7000\", \"unix:/run/x\"", &format!("\"{backend}\""))
        .replace(":8080", &format!(":{}", free_port()));
    let admin = free_port();
    let folder = folder(&format!("[gateway]\nadmin = \"127.0.0.1:{admin}\"\n{config}"));
    let rows = |line: &str| -> (i32, Vec<Value>) {
        let (code, out, err) = call(folder.path(), line);
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        (code, report["rows"].as_array().expect("rows").clone())
    };
    let found = |rows: &[Value], check: &str| -> Vec<String> {
        let of = rows.iter().filter(|row| row["check"] == check);
        of.map(|row| row["status"].as_str().expect("a word").to_owned()).collect()
    };
    let (code, with) = rows("doctor -c c.toml --format json");
    assert_eq!(code, 0, "{with:#?}");
    for check in ["kernel", "io_uring", "open_files", "sysctl", "clock", "low_ports"] {
        assert!(!found(&with, check).is_empty(), "{check}: {with:#?}");
    }
    assert_eq!(found(&with, "configuration"), ["ok"]);
    assert_eq!(found(&with, "port"), ["ok", "ok"]);
    assert_eq!(found(&with, "backend"), ["ok"]);
    drop(listener);
    let (code, gone) = rows("doctor -c c.toml --format json");
    assert_eq!((code, found(&gone, "backend")), (1, vec!["fail".to_owned()]));
    let (code, out, _) = call(folder.path(), "doctor -c c.toml");
    assert_eq!(code, 1);
    assert!(out.contains("cannot be reached") && out.contains("-> start it"), "{out}");
    // What needs a configuration is left out, not failed, unless one was named.
    if !Path::new("/etc/portcullis/portcullis.toml").exists() {
        let (code, without) = rows("doctor --format json");
        assert_eq!((code, found(&without, "configuration")), (0, vec!["skip".to_owned()]));
        assert!(found(&without, "port").is_empty() && !found(&without, "kernel").is_empty());
    }
    let (code, missing) = rows("doctor -c none.toml --format json");
    assert_eq!((code, found(&missing, "configuration")), (1, vec!["fail".to_owned()]));
}

#[test]
fn only_check_and_run_speak_of_warnings() {
    let config = CONFIG.replace("carriers = [", "carriers = [\"query:token\", ");
    let folder = folder(&config);
    let mint = "token mint -c c.toml --auth app --subject alice --expires-in 1h";
    let (code, _, err) = call(folder.path(), mint);
    assert_eq!((code, err.as_str()), (0, ""));
    let (_, _, err) = call(folder.path(), "revoke -c c.toml --list");
    assert!(!err.contains("query strings"), "{err}");
    // `run` puts them into its log, in the log's own format, before it fails for want of a port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    std::fs::write(folder.path().join("c.toml"), config.replace("127.0.0.1:8080", &address))
        .expect("written");
    let (code, _, err) = call(folder.path(), "run -c c.toml");
    assert_eq!(code, 1, "{err}");
    let line = err.lines().next().expect("a line");
    let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{err}"));
    assert!(line["message"].as_str().expect("text").contains("query strings"), "{err}");
    assert_eq!((&line["level"], &line["file"]), (&json!("WARN"), &json!("c.toml")));
}

#[test]
fn check_never_repeats_a_secret_wherever_it_was_put() {
    const CANARY: &str = "canary+0123456789/abcdef-0123456789_abcdef=";
    // The lines of [[auth]] and of [[backend]] with the canary as $.
    let table = [
        ("keys = [\"$\"]", ""),
        ("keys = \"$\"", ""),
        ("keys = [{ secret = \"$ }]", ""),
        ("keys = [{ secret = '$\" }]", ""),
        ("keys = [{ secret = $ }]", ""),
        ("keys = [{ secret = [\"$\"] }]", ""),
        ("keys = [{ secret = { x = \"$\" } }]", ""),
        ("keys = [{ secret = \"$\\q\" }]", ""),
        ("keys = [{ secret = \"$\" \"$\" }]", ""),
        ("keys = [{ secret = \"$\", secret = \"$\" }]", ""),
        ("keys = [{ secret = \"$\", secret_file = \"$\" }]", ""),
        ("keys = [{ secret_file = \"$\" }]", ""),
        ("keys = [{ secret_file = \"env:$\" }]", ""),
        ("keys = [{ secret_file = [\"$\"] }]", ""),
        ("keys = [{ secret = \"$\", algorithm = \"$\" }]", ""),
        ("keys = [{ id = \"a\", secret = \"$\" }, { id = \"a\", secret = \"$\" }]", ""),
        ("secret = \"$\"", ""),
        ("kind = \"http\"\nendpoint = \"http://user:0123456789@127.0.0.1/verdict\"", ""),
        ("kind = \"http\"\nendpoint = \"ftp://127.0.0.1/verdict?key=0123456789\"", ""),
        ("kind = \"http\"\nendpoint = \"http://127.0.0.1/#0123456789\"", ""),
        ("token = \"$\"\nkeys = [{ secret = \"$\" }]", ""),
        ("keys = [{ secret = \"$\" }]", "$"),
        ("keys = [{ secret = \"$\" }]", "secret = [\"$\"]"),
        ("keys = [{ secret = \"$\" }]", "secret_file = \"$\""),
        ("keys = [{ secret = \"$\" }]", "secret_file = \"env:$\""),
        ("keys = [{ secret = \"$\" }]", "password = \"$\""),
        ("keys = [{ secret = \"$\" }]", "secret = \"$\"\nname = \"$\""),
    ];
    let keys_at = CONFIG.find("keys = ").expect("the keys");
    let keys_end = keys_at + CONFIG[keys_at..].find("]\n").expect("their end") + 1;
    for (auth, backend) in table {
        let before = match auth.starts_with("kind") {
            true => CONFIG[..keys_at].replace("kind = \"jwt\"\n", ""),
            false => CONFIG[..keys_at].to_owned(),
        };
        let config = [&before, auth, &CONFIG[keys_end..], backend, "\n"].concat();
        let folder = folder(&config.replace('$', CANARY));
        for command in ["check", "run"] {
            let (code, out, err) = call(folder.path(), &format!("{command} --config c.toml"));
            assert_eq!(code, 1, "{auth} {backend}: {err}");
            assert!(err.contains("c.toml:"), "{err}");
            assert!(!out.contains("0123456789") && !err.contains("0123456789"), "{out}{err}");
        }
    }
}

#[test]
fn check_warns_of_tokens_in_queries() {
    let config = CONFIG.replace("carriers = [", "carriers = [\"query:token\", ");
    let folder = folder(&config);
    let (code, _, err) = call(folder.path(), "check --config c.toml");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("warning: ") && err.contains("query strings end in the logs"), "{err}");
}

#[test]
fn a_missing_file_is_named() {
    let folder = folder(CONFIG);
    for command in ["check", "run"] {
        let (code, out, err) = call(folder.path(), &format!("{command} --config none.toml"));
        assert_eq!((code, out.as_str()), (1, ""), "{command}");
        assert!(err.starts_with("none.toml:1:1: error: cannot be read: No such file"), "{err}");
    }
}

#[test]
fn a_minted_token_is_alone_on_stdout_and_accepted() {
    let folder = folder(CONFIG);
    let mint = "token mint --config c.toml --auth app --subject alice --expires-in 1h";
    for (more, kid) in [("", "new"), (" --key old --claim role=admin", "old")] {
        let (code, token, err) = call(folder.path(), &format!("{mint}{more}"));
        assert_eq!((code, err.as_str(), token.lines().count()), (0, "", 1));
        let inspect = "token inspect --config c.toml --auth app";
        let (code, out, err) = call_with(folder.path(), inspect, &token);
        assert_eq!((code, err.as_str()), (0, ""));
        for part in ["\"sub\": \"alice\"", "\"iss\": \"me\"", "\"aud\": \"chat\"", "from now)"] {
            assert!(out.contains(part), "{part} is not in {out}");
        }
        assert!(out.contains(&format!("\"kid\": {kid:?}")), "{out}");
        assert!(out.ends_with("verdict accepted by auth \"app\"\n"), "{out}");
        let mac = token.trim().rsplit('.').next().expect("a signature");
        assert!(!out.contains(mac) && !out.contains(SECRET), "{out}");
    }
}

#[test]
fn a_token_that_would_be_refused_is_not_made() {
    let folder = folder(CONFIG);
    let mint = "token mint --config c.toml --subject alice";
    for (more, why) in [
        ("--auth app --expires-in 25h", "ends beyond lifetime_max"),
        ("--auth ap --expires-in 1h", "no [[auth]] called \"ap\"; there are: app"),
        ("--auth app --expires-in 1h --key k", "no key with the id \"k\"; there are: new, old"),
        ("--auth app --expires-in 1h --claim exp=1", "the claim \"exp\" is set already"),
    ] {
        let (code, out, err) = call(folder.path(), &format!("{mint} {more}"));
        assert_eq!((code, out.as_str()), (1, ""), "{more}");
        assert!(err.contains(why), "{err}");
    }
    let early = format!("{mint} --auth app --expires-in 1h --claim nbf=9999999999");
    let (code, out, err) = call(folder.path(), &early);
    assert_eq!((code, out.lines().count()), (0, 1));
    assert!(err.contains("token_not_yet_valid"), "{err}");
}

/// [`CONFIG`] with this block in the place of its own.
fn kind_folder(block: &str) -> tempfile::TempDir {
    let (start, rest) = CONFIG.split_once("kind = ").expect("CONFIG has an auth");
    let (_, end) = rest.split_once("[[route]]").expect("and a route behind it");
    let folder = folder(&format!("{start}{block}[[route]]{end}"));
    std::fs::write(folder.path().join("base"), SECRET.repeat(2)).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.path().join("base"), mode).expect("set");
    folder
}

#[test]
fn every_kind_is_minted_inspected_and_accepted() {
    let phoenix = "kind = \"phoenix\"\ncarriers = [\"subprotocol\"]\nsalt = \"s\"\n\
                   secret_key_base_file = [\"env:OLD_KEY\", \"base\"]\n";
    let mapped = format!("{phoenix}subject = \"user_id\"\n");
    let compact = "kind = \"compact\"\ncarriers = [\"authorization\"]\n\
                   keys = [{ id = \"3\", secret_file = \"new\" }]\n";
    let table: [(&str, &str, &[&str]); 5] = [
        (phoenix, "--subject 42", &["signed by Plug.Crypto", "        42,"]),
        (phoenix, "--subject ada --key 2", &["\"ada\""]),
        (&mapped, "--subject 42 --claim role=admin", &["\"user_id\": 42", "\"role\": \"admin\""]),
        (compact, "--subject ada --claim jti=t1", &["compact key 3", "subject ada", "id      t1"]),
        (compact, "--subject ada --key 3 --claim x=1", &["\"x\": 1", "exp     ", "from now)"]),
    ];
    for (block, more, parts) in table {
        let folder = kind_folder(block);
        let mint = format!("token mint --config c.toml --auth app --expires-in 1h {more}");
        let (code, token, err) = call(folder.path(), &mint);
        assert_eq!((code, token.lines().count()), (0, 1), "{more}: {err}");
        let inspect = "token inspect --config c.toml --auth app";
        let (code, out, _) = call_with(folder.path(), inspect, &token);
        assert_eq!(code, 0, "{more}: {out}");
        assert!(out.ends_with("verdict accepted by auth \"app\"\n"), "{out}");
        parts.iter().for_each(|part| assert!(out.contains(part), "{part} is not in {out}"));
        let stranger = kind_folder(&block.replace("\"s\"", "\"t\"").replace("\"3\"", "\"4\""));
        let (code, out, _) = call_with(stranger.path(), inspect, &token);
        assert_eq!(code, 1, "{out}");
        assert!(out.contains("refused by auth \"app\": token_bad_signature"), "{out}");
    }
    for (block, more, why) in [
        (
            phoenix,
            "--subject 42 --key 3",
            "--key counts the values of secret_key_base, from 1 to 2",
        ),
        (phoenix, "--subject 42 --claim a=1", "this [[auth]] has no `subject`"),
        (&mapped, "--subject 42 --claim user_id=1", "the claim \"user_id\" is set already"),
        (compact, "--subject ada --key 4", "no key with the id \"4\"; there are: 3"),
    ] {
        let folder = kind_folder(block);
        let mint = format!("token mint --config c.toml --auth app --expires-in 1h {more}");
        let (code, out, err) = call(folder.path(), &mint);
        assert_eq!((code, out.as_str()), (1, ""), "{more}");
        assert!(err.contains(why), "{err}");
    }
}

#[test]
fn a_session_is_minted_with_its_csrf_token() {
    let folder = kind_folder(
        "kind = \"plug-session\"\ncarriers = [\"cookie:_app_key\"]\nsigning_salt = \"s\"\n\
         subject = \"user_id\"\nsecret_key_base_file = \"base\"\n",
    );
    let mint = "token mint --config c.toml --auth app --subject 42 --expires-in 1h";
    let (code, token, err) = call(folder.path(), mint);
    assert_eq!((code, token.lines().count()), (0, 1), "{err}");
    let (_, csrf) = err.trim().rsplit_once("_csrf_token=").expect("it is told");
    let inspect = "token inspect --config c.toml --auth app --csrf";
    let (code, out, _) = call_with(folder.path(), &format!("{inspect} {csrf}"), &token);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("\"user_id\": 42") && !out.contains("_csrf_token\""), "{out}");
    let (code, out, _) = call_with(folder.path(), &format!("{inspect} {}", "A".repeat(56)), &token);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("csrf_mismatch"), "{out}");
}

#[test]
fn inspect_says_why_a_token_is_refused() {
    let folder = folder(CONFIG);
    let mint = "token mint --config c.toml --auth app --subject alice --expires-in 1h";
    let (_, token, _) = call(folder.path(), mint);
    let (head, mac) = token.trim().rsplit_once('.').expect("a token");
    let first = if mac.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{head}.{first}{}", &mac[1..]);
    let inspect = "token inspect --config c.toml --auth app -";
    let (code, out, _) = call_with(folder.path(), inspect, &format!("Bearer {forged}\n"));
    assert_eq!(code, 1);
    assert!(out.contains("verdict refused by auth \"app\": token_bad_signature ("), "{out}");
    // Without a configuration it is shown all the same, and called unverified.
    let (code, out, _) = call_with(folder.path(), "token inspect", &forged);
    assert_eq!(code, 0);
    assert!(out.contains("\"sub\": \"alice\"") && out.contains("verdict not verified"), "{out}");
    let (code, out, err) = call_with(folder.path(), "token inspect", "not a token");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("portcullis: this is not a token"), "{err}");
}

#[test]
fn inspect_names_the_rule_that_failed() {
    let folder = folder(CONFIG);
    let secret = portcullis::base::secret::Secret::new(SECRET.as_bytes().to_vec());
    let key = portcullis::protocol::jwt::JwtKey {
        id: Some("new".into()),
        algorithm: portcullis::protocol::jwt::Algorithm::HS256,
        secret,
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let soon = now.expect("after 1970").as_secs() + 3600;
    let inspect = "token inspect --config c.toml --auth app";
    let table: [(String, &[&str]); 6] = [
        (format!(r#"{{"sub":"x","exp":"{soon}"}}"#), &["fault   `exp` is text", "token_malformed"]),
        (r#"{"sub":"x","iss":"me","aud":"chat"}"#.into(), &["fault   `exp` is missing"]),
        (
            format!(r#"{{"exp":{soon},"iss":"you","aud":"mail"}}"#),
            &[
                r#"`iss` is "you", and `issuer` is "me""#,
                r#"`aud` is "mail", and `audience` is "chat""#,
            ],
        ),
        (
            r#"{"exp":9999999999,"iss":"me","aud":"chat"}"#.into(),
            &["`exp` is further ahead than lifetime_max, 86400 s, permits"],
        ),
        (r#"{"exp":1000,"iss":"me","aud":"chat"}"#.into(), &["it ended: exp     1970-01-01"]),
        (
            format!(
                r#"{{"exp":{soon},"iss":"me","aud":"chat","sub":"ada\u001b","n":1{}}}"#,
                "0".repeat(100)
            ),
            &[
                "subject ada\\u{1b}",
                "end     20",
                "from now)",
                "\"n\": 10000000000",
                "verdict accepted",
            ],
        ),
    ];
    for (claims, parts) in table {
        let token = portcullis::protocol::jwt::mint(&key, claims.as_bytes());
        let (_, out, _) = call_with(folder.path(), inspect, &token);
        parts.iter().for_each(|part| assert!(out.contains(part), "{part} is not in {out}"));
    }
    // {"alg":"RS256"} and the same claims.
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjk5OTk5OTk5OTl9.AAAA";
    let (code, out, _) = call_with(folder.path(), inspect, token);
    assert_eq!(code, 1);
    assert!(out.contains("the algorithm \"RS256\" is not accepted"), "{out}");
    assert!(out.contains("are for HS256; it is signed with a private key"), "{out}");
}

#[test]
fn inspect_knows_what_is_revoked() {
    use portcullis::base::time::UnixTime;
    use portcullis::protocol::revocation::{
        Hasher, Revocation, RevocationSet, ScopedRevocation, Target,
    };
    let config = format!("[gateway]\nrevocations_file = \"revoked\"\n{CONFIG}");
    let folder = folder(&config);
    let mut set = RevocationSet::new(Hasher::new(&[0; 32]));
    let target = Target::new(Some("eve"), None, None).expect("a target");
    let lapses = UnixTime::from_seconds(9_999_999_999);
    set.insert(Revocation { target, lapses }, 10, UnixTime::from_seconds(1)).expect("room");
    for backend in ["main", "another"] {
        let target = Target::new(Some("bob"), None, None).expect("a target");
        let revocation = Revocation { target, lapses };
        let scoped = ScopedRevocation { revocation, backend: Some(backend.into()) };
        set.insert(scoped, 10, UnixTime::from_seconds(1)).expect("room");
    }
    let file = portcullis::server::journal::Snapshot::of(&set).file();
    std::fs::write(folder.path().join("revoked"), file).expect("written");
    let inspect = "token inspect --config c.toml --auth app";
    for (subject, code, verdict) in [
        ("ada", 0, "accepted by"),
        ("eve", 1, "token_revoked"),
        ("bob", 0, "token_revoked on the routes of backend \"main\" (by its entry)\n"),
    ] {
        let mint =
            format!("token mint --config c.toml --auth app --subject {subject} --expires-in 1h");
        let (_, token, err) = call(folder.path(), &mint);
        let (got, out, _) = call_with(folder.path(), inspect, &token);
        assert_eq!(got, code, "{subject}: {out} {err}");
        assert!(out.contains(verdict), "{out}");
    }
}

#[test]
fn the_rest_of_the_command_line() {
    let folder = folder(CONFIG);
    let version = concat!("portcullis ", env!("CARGO_PKG_VERSION"), "\n");
    for line in ["--version", "-V"] {
        assert_eq!(call(folder.path(), line), (0, version.into(), String::new()), "{line}");
    }
    let (code, out, _) = call(folder.path(), "help");
    assert_eq!(code, 0);
    assert!(out.contains("doctor") && out.contains("PORTCULLIS_CONFIG"), "{out}");
    assert!(call(folder.path(), "help check").1.contains("--as-run"));
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, err) = call(folder.path(), &format!("completions {shell}"));
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.contains("echo-backend") && out.contains("expires-in"), "{shell}");
    }
    let (code, _, err) = call(folder.path(), "revoke");
    assert_eq!(code, 2);
    assert!(err.contains("--subject") && !err.contains("  --lapses-in"), "whom first: {err}");
    let (code, _, err) = call(folder.path(), "revoke --subject alice");
    assert!(code == 2 && err.contains("--lapses-in"), "{err}");
    let (code, _, err) = call(folder.path(), "serve");
    assert_eq!(code, 2);
    assert!(err.contains("unrecognized subcommand 'serve'"), "{err}");
    let (code, _, err) = call(folder.path(), "echo-backend --listen nowhere");
    assert_eq!(code, 1);
    assert!(err.contains("nowhere") && err.contains("portcullis: "), "{err}");
    let short = "echo-backend --listen 127.0.0.1:7000 --secret-file c.toml --secret-file none";
    assert_eq!(call(folder.path(), short).0, 2);
}
