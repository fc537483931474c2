//! The control thread as a whole, over real sockets and signals, on workers that only obey.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::admin::{Asset, AssetBody, Page};
use super::error::RunError;
use super::files;
use super::gateway::{GatewayHandle, Plane, StartOptions, start, start_on};
use super::testing;
use super::workers::{DataPlane, WorkerHandle, WorkerSpawn};
use crate::base::secret::Secret;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::settings::Settings;
use crate::worker::mailbox::{CloseRecord, ClosedBy, Report, Stage, WorkerOrder};

/// Workers without sockets. Each counts and reports one closed connection at its birth.
struct Obedient {
    /// How long a drain takes.
    drain: Duration,
}

impl DataPlane for Obedient {
    fn launch(&self, mut spawn: WorkerSpawn) -> Result<WorkerHandle, String> {
        let drain = self.drain;
        let mut end = None;
        spawn.counters.increment(Metric::Accepted);
        spawn.counters.closed(Cause::ClientGone, None);
        spawn.mailbox.report(Report::Closed(closed()));
        let body = Box::new(move || {
            std::thread::sleep(Duration::from_millis(1));
            match spawn.mailbox.take_plan().map(|change| change.now.order) {
                Some(WorkerOrder::Panic) => panic!("planted"),
                Some(WorkerOrder::Stop) => return false,
                Some(WorkerOrder::Drain { .. }) => {
                    end.get_or_insert(Instant::now() + drain);
                }
                Some(WorkerOrder::Serve) | None => {}
            }
            end.is_none_or(|end| Instant::now() < end)
        });
        Ok(WorkerHandle { body, wake: Box::new(|| ()) })
    }
}

fn closed() -> CloseRecord {
    CloseRecord {
        connection: 1,
        subject: None,
        cause: Cause::ClientGone,
        detail: None,
        by: ClosedBy::Client,
        stage: Stage::Open,
        code: None,
        dialect: None,
        route: None,
        peer: None,
        age: Duration::from_secs(1),
        received_ago: Duration::ZERO,
        sent_ago: Duration::ZERO,
        queued: 0,
    }
}

fn started(settings: Settings, options: StartOptions, drain: Duration) -> GatewayHandle {
    let listeners = vec!["127.0.0.1:1".parse().unwrap()];
    let plane = Plane { workers: Arc::new(Obedient { drain }), count: 2, listeners };
    start_on(plane, Arc::new(settings), options).unwrap()
}

fn simple() -> GatewayHandle {
    started(testing::settings(), StartOptions::default(), Duration::ZERO)
}

/// Settings with an admin socket in a folder of its own.
fn with_socket() -> (tempfile::TempDir, Settings) {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = testing::settings();
    settings.gateway.admin_socket = Some(folder.path().join("admin.sock"));
    (folder, settings)
}

/// Sends bytes, reads to the end.
fn exchange(admin: SocketAddr, input: &[u8]) -> String {
    let stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    exchange_on(stream, input)
}

fn exchange_on(mut stream: impl Read + Write, input: &[u8]) -> String {
    stream.write_all(input).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Status and body of a change, asked for on the socket in `folder`.
fn change(folder: &tempfile::TempDir, line: &str, body: &str) -> (u16, serde_json::Value) {
    let length = body.len();
    let input =
        format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
    let stream = UnixStream::connect(folder.path().join("admin.sock")).unwrap();
    let answer = exchange_on(stream, input.as_bytes());
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (answer[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

fn request(gateway: &GatewayHandle, line: &str, fields: &str) -> (u16, String) {
    let input = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let answer = exchange(gateway.admin().unwrap(), input.as_bytes());
    let status = answer[9..12].parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn get(gateway: &GatewayHandle, path: &str) -> (u16, String) {
    request(gateway, &format!("GET {path}"), "")
}

/// Asks until the answer is as wanted, at most ten seconds.
fn wait_for(gateway: &GatewayHandle, path: &str, wanted: impl Fn(u16, &str) -> bool) {
    let begun = Instant::now();
    loop {
        let (status, body) = get(gateway, path);
        if wanted(status, &body) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{path}: {status} {body}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_endpoint_answers() {
    let gateway = simple();
    assert_eq!(gateway.listeners(), ["127.0.0.1:1".parse().unwrap()]);
    assert_eq!(get(&gateway, "/healthz"), (200, "ok\n".into()));
    assert_eq!(get(&gateway, "/readyz"), (200, "ok\n".into()));
    assert_eq!(get(&gateway, "/nothing").0, 404);
    assert_eq!(request(&gateway, "HEAD /metrics", ""), (200, String::new()));
    assert!(get(&gateway, "/").1.contains("/-/reload"));
    wait_for(&gateway, "/metrics", |_, page| {
        page.contains("\nportcullis_connections_accepted_total 2\n")
            && page.contains("\nportcullis_workers_alive 2\n")
            && page.contains("\nportcullis_closes_total{cause=\"client_gone\"} 2\n")
    });
    let live: serde_json::Value = serde_json::from_str(&get(&gateway, "/live.json").1).unwrap();
    assert_eq!(live["phase"], "serving");
    assert_eq!(live["workers"].as_array().unwrap().len(), 2);
    gateway.stop();
    gateway.join().unwrap();
}

#[test]
fn a_token_guards_everything_but_the_probes() {
    let mut settings = testing::settings();
    settings.gateway.admin_token = Some(Secret::new(b"s3cret".to_vec()));
    let gateway = started(settings, StartOptions::default(), Duration::ZERO);
    assert_eq!(get(&gateway, "/metrics").0, 401);
    assert_eq!(request(&gateway, "POST /-/reload", "").0, 401);
    assert_eq!(get(&gateway, "/readyz").0, 200);
    let field = "Authorization: Bearer s3cret\r\n";
    assert_eq!(request(&gateway, "GET /metrics", field).0, 200);
    // Allowed, and refused for a reason of its own: there is no file.
    assert_eq!(request(&gateway, "POST /-/reload", field).0, 409);
}

#[test]
fn without_a_token_tcp_only_reads() {
    let (folder, settings) = with_socket();
    let gateway = started(settings, StartOptions::default(), Duration::ZERO);
    for line in ["POST /-/reload", "POST /-/drain", "POST /revocations", "DELETE /revocations/1"] {
        let (status, why) = request(&gateway, line, "");
        assert!(status == 403 && why.contains("gateway.admin_socket"), "{line}: {status} {why}");
    }
    assert_eq!(request(&gateway, "GET /revocations", "").0, 200);
    assert_eq!(
        change(&folder, "POST /-/drain", ""),
        (200, serde_json::json!({"result": "draining"}))
    );
    gateway.join().unwrap();
    assert!(!folder.path().join("admin.sock").exists(), "the socket goes with the gateway");
}

#[test]
fn bad_requests_get_their_exact_status_over_the_wire() {
    let gateway = simple();
    let admin = gateway.admin().unwrap();
    let huge = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    for (input, status) in [
        (&b"nonsense\r\n\r\n"[..], "HTTP/1.1 400 "),
        (b"PUT /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 405 "),
        (b"POST /-/reload HTTP/1.1\r\nHost: evil.example\r\n\r\n", "HTTP/1.1 403 "),
        (huge.as_bytes(), "HTTP/1.1 431 "),
    ] {
        let answer = exchange(admin, input);
        assert!(answer.starts_with(status), "{answer:?}");
    }
}

#[test]
fn a_slow_head_gets_408() {
    let gateway = simple();
    let admin = gateway.admin().unwrap();
    let begun = Instant::now();
    let slow = exchange(admin, b"GET / HT");
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow:?}");
    let took = begun.elapsed();
    assert!((super::admin::DEADLINE..Duration::from_secs(9)).contains(&took), "{took:?}");
}

/// One thread that keeps more half requests open than there are places.
#[test]
fn half_requests_do_not_keep_health_checks_out() {
    let gateway = simple();
    let admin = gateway.admin().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let half = move || {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: l");
        stream
    };
    let attacker = std::thread::spawn({
        let stop = Arc::clone(&stop);
        let mut held: Vec<TcpStream> = (0..80).map(|_| half()).collect();
        assert!(held.len() > super::admin::room::CONNECTIONS_MAX);
        move || {
            let mut reopened = 0;
            while !stop.load(Relaxed) {
                for stream in &mut held {
                    let open = stream.peek(&mut [0]);
                    if !open.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
                        *stream = half();
                        reopened += 1;
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            reopened
        }
    });
    for probe in 0..40 {
        let begun = Instant::now();
        assert_eq!(get(&gateway, "/healthz").0, 200, "probe {probe}");
        assert!(begun.elapsed() < Duration::from_secs(1), "probe {probe}: {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(25));
    }
    stop.store(true, Relaxed);
    assert!(attacker.join().unwrap() > 16, "the attacker was never turned away: no attack");
}

#[test]
fn a_page_is_served_with_a_strict_policy() {
    let page = Box::new(|listeners: &[SocketAddr]| Page {
        assets: vec![Asset {
            path: "/".into(),
            content_type: "text/html; charset=utf-8",
            body: AssetBody::Fixed(b"<p>hello".to_vec()),
        }],
        connect_sources: listeners.iter().map(|address| format!("ws://{address}")).collect(),
    });
    let options = StartOptions { page: Some(page), ..StartOptions::default() };
    let gateway = started(testing::settings(), options, Duration::ZERO);
    let answer = exchange(gateway.admin().unwrap(), b"GET / HTTP/1.0\r\n\r\n");
    for part in [
        "Content-Type: text/html; charset=utf-8\r\n",
        "Content-Security-Policy: default-src 'none'; script-src 'self';",
        "connect-src 'self' ws://127.0.0.1:1;",
        "frame-ancestors 'none'\r\n",
        "X-Content-Type-Options: nosniff\r\n",
        "\r\n\r\n<p>hello",
    ] {
        assert!(answer.contains(part), "{answer} lacks {part}");
    }
}

#[test]
fn a_drain_is_announced_and_ends_the_gateway() {
    let (folder, settings) = with_socket();
    let gateway = started(settings, StartOptions::default(), Duration::from_secs(1));
    gateway.shutdown(Duration::from_secs(1));
    wait_for(&gateway, "/readyz", |status, body| (status, body) == (503, "draining\n"));
    assert_eq!(get(&gateway, "/healthz").0, 200);
    let refused = change(&folder, "POST /-/reload", "").0;
    assert_eq!(refused, 409, "no reload while draining");
    gateway.join().unwrap();
}

#[test]
fn a_drain_that_hangs_is_stopped_after_its_grace() {
    let gateway = started(testing::settings(), StartOptions::default(), Duration::from_secs(3600));
    let begun = Instant::now();
    gateway.shutdown(Duration::ZERO);
    gateway.join().unwrap();
    let took = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&took), "{took:?}");
}

#[test]
fn a_panic_is_counted_and_the_worker_comes_back() {
    let gateway = simple();
    gateway.inject_panic(1);
    wait_for(&gateway, "/metrics", |_, page| {
        page.contains("\nportcullis_worker_panics_total 1\n")
            && page.contains("\nportcullis_workers_alive 2\n")
            && page.contains("\nportcullis_connections_accepted_total 3\n")
    });
    assert_eq!(get(&gateway, "/readyz").0, 200);
}

#[test]
fn a_refused_reload_is_counted_and_told() {
    let options = StartOptions {
        config_path: Some("/nowhere/portcullis.toml".into()),
        ..StartOptions::default()
    };
    let (folder, settings) = with_socket();
    let gateway = started(settings, options, Duration::ZERO);
    let problems = gateway.reload().unwrap_err();
    assert!(!problems.is_empty());
    let (status, told) = change(&folder, "POST /-/reload", "");
    assert_eq!((status, &told["result"]), (422, &"refused".into()));
    wait_for(&gateway, "/metrics", |_, page| {
        page.contains("\nportcullis_reloads_total{result=\"refused\"} 2\n")
    });
}

/// A configuration file's text, with `gateway` lines put in.
fn config(gateway: &str) -> String {
    format!(
        "[gateway]\n{gateway}\n[[listener]]\naddress = \"127.0.0.1:8080\"\n\
         [[route]]\npath = \"/ws\"\norigins = []\norigin_absent = \"allow\"\n\
         auth = \"none\"\nbackend = \"main\"\n\
         [[backend]]\nname = \"main\"\nkind = \"link\"\nendpoints = [\"127.0.0.1:7000\"]\n"
    )
}

#[test]
fn a_reload_takes_hot_changes_and_refuses_the_whole_file_for_a_cold_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    let hot = "workers = 2\nlog = { level = \"warn\" }";
    let cold = "workers = 3\nlog = { level = \"debug\" }";
    std::fs::write(&path, config("workers = 2")).unwrap();
    let mut settings = files::load_file(&path).map_err(|p| format!("{p:?}")).unwrap().settings;
    settings.gateway.admin = None;
    let options = StartOptions { config_path: Some(path.clone()), ..StartOptions::default() };
    let gateway = started(settings, options, Duration::ZERO);
    let reload = |text: &str| {
        std::fs::write(&path, text).unwrap();
        gateway.reload()
    };
    let off = "admin = \"off\"\n";
    assert!(reload(&config(&format!("{off}{hot}"))).is_ok());
    let refused = reload(&config(&format!("{off}{cold}"))).unwrap_err();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("gateway.workers cannot change"), "{refused:?}");
    // A warning (nothing uses the block) is no reason to refuse, and is not told as one.
    let unused = "workers = 0\nwrokers = 1\n[[auth]]\nname = \"x\"\nkind = \"backend\"\n\
                  carriers = [\"authorization\"]";
    let broken = reload(&config(unused)).unwrap_err();
    assert!(broken.iter().all(|problem| problem.contains(": error: ")), "{broken:?}");
    assert!(broken.len() == 2 && broken[0].contains("portcullis.toml:2:"), "{broken:?}");
    // Nothing of the refused files stuck.
    assert!(reload(&config(&format!("{off}{hot}"))).is_ok());
}

/// What runs is what was parsed, whatever the file has become meanwhile.
#[test]
fn the_settings_hash_is_of_what_was_parsed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    std::fs::write(&path, config("workers = 2")).unwrap();
    let mut settings = files::load_file(&path).map_err(|p| format!("{p:?}")).unwrap().settings;
    settings.gateway.admin = Some(([127, 0, 0, 1], 0).into());
    let hash = settings.hash;
    std::fs::write(&path, "other").unwrap();
    let options = StartOptions { config_path: Some(path), ..StartOptions::default() };
    let gateway = started(settings, options, Duration::ZERO);
    let (_, page) = get(&gateway, "/metrics");
    assert!(page.contains(&format!("\nportcullis_settings_hash {hash}\n")), "{hash}: {page}");
}

/// On real rings; without routes and backends' answers no client is needed.
#[test]
fn the_real_workers_come_up_survive_a_panic_and_drain() {
    let gateway = start(testing::settings(), StartOptions::default()).unwrap();
    let address = gateway.listeners()[0];
    assert_eq!(get(&gateway, "/readyz").0, 200);
    drop(TcpStream::connect(address).unwrap());
    gateway.inject_panic(0);
    wait_for(&gateway, "/metrics", |_, page| {
        page.contains("\nportcullis_worker_panics_total 1\n")
            && page.contains("\nportcullis_workers_alive 2\n")
    });
    drop(TcpStream::connect(address).unwrap());
    gateway.shutdown(Duration::ZERO);
    gateway.join().unwrap();
    let refused = TcpStream::connect(address).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn signals_reload_drain_and_stop() {
    let options = StartOptions { signals: true, ..StartOptions::default() };
    let folder = tempfile::tempdir().unwrap();
    let (path, old) = (folder.path().join("close.log"), folder.path().join("close.log.1"));
    let mut settings = testing::settings();
    settings.gateway.close_log = Some(path.clone());
    // The drain alone would take an hour: only the second signal ends it now.
    let gateway = started(settings, options, Duration::from_secs(3600));
    let send = |signal: &str| {
        let pid = std::process::id().to_string();
        assert!(Process::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    };
    send("HUP");
    wait_for(&gateway, "/metrics", |_, page| {
        page.contains("\nportcullis_reloads_total{result=\"refused\"} 1\n")
    });
    std::fs::rename(&path, &old).unwrap();
    send("USR1");
    // A worker's birth writes a line.
    gateway.inject_panic(1);
    let begun = Instant::now();
    while !std::fs::read_to_string(&path).is_ok_and(|text| !text.is_empty()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "SIGUSR1 reopens nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    for ignored in ["USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR", "STKFLT", "XCPU", "40", "64"] {
        send(ignored);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(get(&gateway, "/readyz").0, 200, "it serves on");
    send("TERM");
    wait_for(&gateway, "/readyz", |status, body| (status, body) == (503, "draining\n"));
    let begun = Instant::now();
    send("QUIT");
    gateway.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn close_lines_go_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("close.log");
    let mut settings = testing::settings();
    settings.gateway.close_log = Some(path.clone());
    let gateway = started(settings, StartOptions::default(), Duration::ZERO);
    gateway.shutdown(Duration::ZERO);
    gateway.join().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["cause"] == "client_gone"), "{text}");
}

#[test]
fn a_gateway_that_cannot_start_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = testing::settings();
    settings.gateway.admin = Some(taken.local_addr().unwrap());
    let plane = || Plane {
        workers: Arc::new(Obedient { drain: Duration::ZERO }),
        count: 1,
        listeners: Vec::new(),
    };
    let error = start_on(plane(), Arc::new(settings), StartOptions::default()).err();
    assert!(matches!(error, Some(RunError::Bind { .. })), "{error:?}");
    let mut settings = testing::settings();
    settings.gateway.close_log = Some("/nowhere/close.log".into());
    let error = start_on(plane(), Arc::new(settings), StartOptions::default()).err();
    assert!(matches!(error, Some(RunError::CloseLog { .. })), "{error:?}");
}

fn post(folder: &tempfile::TempDir, body: &str) -> (u16, serde_json::Value) {
    change(folder, "POST /revocations", body)
}

fn revocations(gateway: &GatewayHandle) -> serde_json::Value {
    let (status, body) = get(gateway, "/revocations");
    assert_eq!(status, 200);
    serde_json::from_str(&body).unwrap()
}

#[test]
fn revocations_are_made_listed_taken_back_and_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("revocations");
    let settings = || {
        let mut settings = testing::settings();
        settings.gateway.revocations_file = Some(path.clone());
        settings.gateway.admin_socket = Some(folder.path().join("admin.sock"));
        settings.limits.revocations_max = 2;
        settings
    };
    let start = || started(settings(), StartOptions::default(), Duration::ZERO);
    let gateway = start();
    assert!(path.exists(), "it is tried at the start whether it can be written");
    let (status, answer) = post(&folder, r#"{"subject":"al\nice","lapses":99999999999}"#);
    assert_eq!((status, &answer["result"], &answer["id"]), (200, &"revoked".into(), &1.into()));
    assert_eq!(answer["saved"], true);
    let (status, answer) = post(&folder, r#"{"subject":"al\nice","lapses":99999999998}"#);
    assert_eq!((status, &answer["result"], &answer["id"]), (200, &"covered".into(), &1.into()));
    assert_eq!(post(&folder, r#"{"token_id":"t","lapses_in":3600}"#).0, 200);
    let (status, answer) = post(&folder, r#"{"issued_before":5,"lapses_in":3600}"#);
    assert_eq!((status, &answer["result"]), (507, &"refused".into()));
    assert_eq!(post(&folder, r#"{"subject":"bob","lapses":5}"#).0, 422);
    assert_eq!(post(&folder, "{}").0, 422);
    // No token that is made tomorrow can be known to be bad.
    let (status, answer) = post(&folder, r#"{"issued_before":99999999999,"lapses_in":3600}"#);
    assert!(
        status == 422 && answer["problems"][0].as_str().unwrap().contains("future"),
        "{answer}"
    );
    assert_eq!(change(&folder, "DELETE /revocations/2", "").0, 200);
    assert_eq!(change(&folder, "DELETE /revocations/2", "").0, 404);
    wait_for(&gateway, "/metrics", |_, page| {
        page.contains("\nportcullis_revocations 1\n")
            && page.contains("\nportcullis_revocations_refused_total 1\n")
            && page.contains("\nportcullis_revocation_save_failures_total 0\n")
    });
    let left = serde_json::json!({
        "held": 1,
        "revocations": [{"id": 1, "subject": "al\nice", "lapses": 99_999_999_999u64}],
    });
    assert_eq!(revocations(&gateway), left);
    gateway.stop();
    gateway.join().unwrap();
    let gateway = start();
    assert_eq!(revocations(&gateway), left);
    // An id that was ended never names another entry.
    assert_eq!(post(&folder, r#"{"token_id":"u","lapses_in":3600}"#).1["id"], 3);
    drop(gateway);
    // A damaged file is no reason to let the revoked in again.
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = start_refused(settings());
    for part in ["file of revocations", "checksum", "likely cause: ", "what to do: restore"] {
        assert!(refused.contains(part), "{refused}");
    }
    let mut nowhere = settings();
    nowhere.gateway.revocations_file = Some("/nowhere/revocations".into());
    assert!(start_refused(nowhere).contains("create it for this user"));
}

fn start_refused(settings: Settings) -> String {
    let listeners = vec!["127.0.0.1:1".parse().unwrap()];
    let drain = Duration::ZERO;
    let plane = Plane { workers: Arc::new(Obedient { drain }), count: 1, listeners };
    match start_on(plane, Arc::new(settings), StartOptions::default()) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn without_a_file_the_answer_says_so_and_bodies_may_come_in_parts() {
    let (folder, settings) = with_socket();
    let gateway = started(settings, StartOptions::default(), Duration::ZERO);
    assert_eq!(post(&folder, r#"{"subject":"a","lapses_in":60}"#).1["saved"], false);
    let connect = || UnixStream::connect(folder.path().join("admin.sock")).unwrap();
    let mut stream = connect();
    let body = r#"{"subject":"b","lapses_in":60}"#;
    let head = format!(
        "POST /revocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for part in [head.as_str(), &body[..7], &body[7..]] {
        stream.write_all(part.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Half a body is no revocation.
    let half = b"POST /revocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n{\"sub";
    let mut stream = connect();
    stream.write_all(half).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    answer.clear();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(revocations(&gateway)["held"], 2);
}
