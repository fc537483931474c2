//! A gateway that takes over from another: the same addresses, the same admin port, the same file
//! of revocations, and clients that are away for a moment at most.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Backend, Child, Client, Config, Opcode, mint, unix_now, wait_until};

/// Clients in the test of a rolling restart.
const CLIENTS: usize = 50;
/// How long one may be away.
const AWAY_MAX: Duration = Duration::from_secs(2);

fn wait_linked(child: &Child, workers: u64) {
    wait_until("every worker is linked", || {
        let page = child.get("/metrics").1;
        page.contains(&format!("portcullis_links{{state=\"ready\"}} {workers}\n"))
    });
}

fn wait_serving(child: &Child) {
    wait_until("it serves", || child.log().contains("\"serving\""));
}

/// The wait that an explanation asks for.
fn retry_after(explanation: &[u8]) -> Duration {
    let explanation: Value = serde_json::from_slice(explanation).expect("JSON");
    assert_eq!((&explanation["code"], &explanation["reconnect"]), (&1001.into(), &true.into()));
    Duration::from_millis(explanation["retry_after_ms"].as_u64().expect("a wait"))
}

/// A client that asked for an upgrade, once a 101 begins to arrive; `None` after a reset, which is
/// to a browser what a refused connect is.
fn upgraded(tcp: TcpStream) -> Option<Client> {
    let mut client = Client::over_tcp(tcp);
    client.write(crate::support::request("/ws", "").as_bytes());
    let mut begin = [0; 12];
    let count = client.tcp().peek(&mut begin).ok()?;
    (begin[..count] == *b"HTTP/1.1 101").then_some(client)
}

/// What one client saw that stays connected by the rules of docs/front-end.md.
fn stay_connected(
    address: std::net::SocketAddr,
    over: &AtomicBool,
    refused: &AtomicUsize,
    drawn: f64,
) -> Vec<Duration> {
    let mut away = Vec::new();
    let mut left_at: Option<Instant> = None;
    loop {
        let tcp = match TcpStream::connect(address) {
            Ok(tcp) => tcp,
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let Some(mut client) = upgraded(tcp) else {
            refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        client.head();
        loop {
            client.text("still there?");
            let frame = client.frame().expect("an echo or an explanation");
            assert_eq!(frame.opcode, Opcode::Text);
            if frame.payload != b"still there?" {
                let wait = retry_after(&frame.payload);
                // What was echoed meanwhile has come already: the explanation is the last message.
                client.close_frame();
                client.close(1001, "");
                left_at = Some(Instant::now());
                std::thread::sleep(wait.mul_f64(1.0 + 0.5 * drawn));
                break;
            }
            if let Some(left_at) = left_at.take() {
                away.push(left_at.elapsed());
            }
            if over.load(Ordering::Relaxed) {
                return away;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn clients_that_follow_the_rules_are_never_refused_and_soon_back() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).workers(2).deadlines("drain = \"3s\"");
    let mut old = Child::start(config, "");
    wait_linked(&old, 2);
    let (over, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let opened = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| {
            let (over, refused) = (Arc::clone(&over), Arc::clone(&refused));
            let (address, drawn) = (old.address, index as f64 / CLIENTS as f64);
            std::thread::spawn(move || stay_connected(address, &over, &refused, drawn))
        })
        .collect();
    wait_until("all are there", || {
        let page = old.get("/metrics").1;
        page.contains(&format!("portcullis_connections{{stage=\"open\"}} {CLIENTS}\n"))
    });
    // Newcomers all the while, each of which comes when it likes.
    let newcomers = {
        let (over, refused, opened) =
            (Arc::clone(&over), Arc::clone(&refused), Arc::clone(&opened));
        let address = old.address;
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                match TcpStream::connect(address) {
                    Err(_) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(tcp) => {
                        let count = if upgraded(tcp).is_some() { &opened } else { &refused };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let mut new = old.beside("--takeover");
    wait_serving(&new);
    assert_eq!(new.get("/readyz").0, 200, "the admin port is the new one's");
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    assert!(old.log().contains("another gateway takes over"), "{}", old.log());
    wait_until("all are with the new one", || {
        let page = new.get("/metrics").1;
        page.lines().any(|line| {
            let open = line.strip_prefix("portcullis_connections{stage=\"open\"} ");
            open.is_some_and(|open| open.parse::<usize>().is_ok_and(|open| open >= CLIENTS))
        })
    });
    std::thread::sleep(Duration::from_millis(500));
    over.store(true, Ordering::Relaxed);
    let mut away: Vec<Duration> =
        clients.into_iter().flat_map(|client| client.join().expect("it stayed")).collect();
    newcomers.join().expect("they came");
    away.sort_unstable();
    let (refused, opened) = (refused.load(Ordering::Relaxed), opened.load(Ordering::Relaxed));
    let (median, longest) = (away[away.len() / 2], away[away.len() - 1]);
    println!("{CLIENTS} clients: {refused} refused, away median {median:?}, longest {longest:?}");
    println!("{opened} newcomers");
    assert_eq!(refused, 0, "of {opened} newcomers and {CLIENTS} clients");
    assert!(away.len() >= CLIENTS && longest <= AWAY_MAX, "{away:?}");
    assert!(opened > 100, "{opened} newcomers");
    assert!(new.is_running());
}

fn post(socket: &std::path::Path, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("the admin socket");
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn bearer(subject: &str) -> String {
    let claims = format!(r#"{{"sub":"{subject}","exp":{}}}"#, unix_now() + 600);
    format!("Authorization: Bearer {}\r\n", mint(crate::support::SECRET, &claims))
}

#[test]
fn revocations_pass_from_one_to_the_other_and_back() {
    let backend = Backend::start();
    let mut config = Config::to(backend.address())
        .guarded("a", "authorization", "")
        .deadlines("drain = \"20s\"");
    config.gateway += "revocations_file = \"revocations\"\n";
    let mut old = Child::start(config, "");
    wait_linked(&old, 1);
    let socket = old.path("admin.sock");
    let before = post(&socket, "/revocations", r#"{"subject":"before","lapses_in":600}"#);
    assert!(before.contains("\"saved\":true"), "{before}");
    let mut clients: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = Client::open(old.address, "/a", &bearer("during"));
            client.echo("hello");
            client
        })
        .collect();
    let mut new = old.beside("--takeover");
    wait_serving(&new);
    assert!(old.is_running(), "it drains");
    let beside = old.path(&format!("admin.sock.{}", old.id()));
    assert!(beside.exists(), "it can be asked still");
    assert_eq!(old.get("/readyz"), (200, "ok\n".into()), "the new one answers");
    // What was revoked before holds in the new one; what is revoked now, in both.
    let (mut client, _) = Client::ask(new.address, "/a", &bearer("before"));
    assert_eq!(client.message().0, Opcode::Text);
    assert_eq!(client.close_frame().1, "token_revoked");
    let begun = Instant::now();
    let during = post(&socket, "/revocations", r#"{"subject":"during","lapses_in":600}"#);
    assert!(during.contains("\"saved\":true"), "{during}");
    let mut revoked = 0;
    for client in &mut clients {
        client.message();
        revoked += usize::from(client.close_frame().1 == "token_revoked");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(revoked >= 4, "the draining one closes them for it: {revoked} of 8");
    // Only the new one writes the file, and the old one leaves nothing behind.
    let old_says = post(&beside, "/revocations", r#"{"subject":"to the old one","lapses_in":60}"#);
    assert!(old_says.contains("\"saved\":false"), "{old_says}");
    clients.clear();
    drop(client);
    assert_eq!(old.wait().code(), Some(0), "{}", old.log());
    assert!(!beside.exists() && socket.exists());
    let file = std::fs::read_to_string(old.path("revocations")).expect("the file");
    assert!(file.contains("before") && file.contains("during"), "{file}");
    assert!(!file.contains("to the old one"), "{file}");
    new.signal("TERM");
    assert_eq!(new.wait().code(), Some(0), "{}", new.log());
}

#[test]
fn a_takeover_that_cannot_be_leaves_the_other_gateway_alone() {
    let backend = Backend::start();
    let old = Child::start(Config::to(backend.address()), "");
    wait_linked(&old, 1);
    // Without the flag: refused as ever.
    let mut second = old.beside("");
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("another process (perhaps another gateway)"), "{}", second.log());
    // The new one cannot start: its configuration names a folder that is not there.
    let mut config = old.config();
    config.gateway += "close_log = \"nowhere/closes\"\n";
    old.rewrite(&config);
    let mut second = old.beside("--takeover");
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("cannot open the close log"), "{}", second.log());
    // There is no socket to ask at.
    let mut config = old.config();
    config.gateway = config.gateway.replace("admin_socket = \"admin.sock\"", "");
    old.rewrite(&config);
    let mut second = old.beside("--takeover");
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("gateway.admin_socket is not set"), "{}", second.log());
    assert_eq!(old.get("/readyz"), (200, "ok\n".into()));
    for _ in 0..20 {
        Client::open(old.address, "/ws", "").echo("hello");
    }
    // One that drains already is not taken over from.
    old.rewrite(&old.config().deadlines("drain = \"5s\""));
    old.signal("HUP");
    wait_until("it has the longer drain", || old.log().contains("settings reloaded"));
    let mut client = Client::open(old.address, "/ws", "");
    client.echo("hello");
    old.signal("TERM");
    wait_until("it drains", || old.get("/readyz").0 == 503);
    let mut second = old.beside("--takeover");
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.log().contains("is ending already"), "{}", second.log());
}

#[test]
fn without_a_gateway_to_take_over_from_it_starts_as_usual() {
    let backend = Backend::start();
    let run = concat!(env!("CARGO_BIN_EXE_portcullis"), " run --takeover -c portcullis.toml");
    let child = Child::start_program(Config::to(backend.address()), "", run);
    wait_linked(&child, 1);
    Client::open(child.address, "/ws", "").echo("hello");
}

#[test]
fn a_drain_says_so_before_it_refuses_clients() {
    let backend = Backend::start();
    let mut config = Config::to(backend.address()).deadlines("drain = \"100ms\"");
    config.gateway += "drain_delay = \"1500ms\"\n";
    let mut child = Child::start(config, "");
    wait_linked(&child, 1);
    let begun = Instant::now();
    child.signal("TERM");
    wait_until("it says so", || child.get("/readyz") == (503, "draining\n".into()));
    while begun.elapsed() < Duration::from_millis(1200) {
        Client::open(child.address, "/ws", "").echo("still served");
        assert_eq!(child.get("/readyz").0, 503);
    }
    assert_eq!(child.wait().code(), Some(0), "{}", child.log());
    assert!(begun.elapsed() > Duration::from_millis(1500));
}

/// As much of systemctl as deploy/upgrade uses: an instance is a process and a file with its id.
const SYSTEMCTL: &str = r#"#!/bin/sh
command=$1
for last in "$@"; do :; done
pid=$(cat "$last.pid" 2> /dev/null)
echo "$@" >> systemctl.log
case $command in
  is-active) kill -0 "$pid" 2> /dev/null && [ "$(cut -d' ' -f3 "/proc/$pid/stat")" != Z ] ;;
  start) "$PORTCULLIS_BIN" run --takeover -c "$PORTCULLIS_CONFIG" > /dev/null 2> "$last.log" &
    echo $! > "$last.pid" ;;
  show) echo "$pid" ;;
  enable | disable) ;;
  *) exit 1 ;;
esac
"#;

#[test]
fn the_upgrade_script_starts_the_other_instance_each_time() {
    let backend = Backend::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (port, admin) = (crate::support::free_port(), crate::support::free_port());
    let config = Config::to(backend.address()).ports(port, admin).deadlines("drain = \"500ms\"");
    std::fs::write(at("portcullis.toml"), config.text()).expect("written");
    std::fs::write(at("systemctl"), SYSTEMCTL).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(at("systemctl"), mode).expect("executable");
    let upgrade = || {
        let path = std::env::var("PATH").expect("a path");
        let output = std::process::Command::new("sh")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/upgrade"))
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", folder.path().display()))
            .env("PORTCULLIS_BIN", env!("CARGO_BIN_EXE_portcullis"))
            .env("PORTCULLIS_CONFIG", "portcullis.toml")
            .stdin(std::process::Stdio::null())
            .output()
            .expect("a shell");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        // On success its standard error has the configuration's warnings alone.
        let said = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code(), text(said))
    };
    let pid = |name: &str| {
        let text = std::fs::read_to_string(at(&format!("portcullis@{name}.pid"))).expect("it ran");
        text.trim().parse::<u32>().expect("a number")
    };
    let end = |pid: u32| {
        let signal = std::process::Command::new("kill").arg(pid.to_string()).status();
        assert!(signal.expect("kill").success());
    };
    let _ends = Ends(folder.path());
    assert_eq!(upgrade(), (Some(0), "portcullis@a serves".into()));
    let first = pid("a");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Client::open(address, "/ws", "");
    assert_eq!(upgrade(), (Some(0), "portcullis@b serves; portcullis@a drains".into()));
    wait_until("the first one has ended", || !is_alive(first));
    assert_eq!(upgrade(), (Some(0), "portcullis@a serves; portcullis@b drains".into()));
    assert_ne!(pid("a"), first);
    wait_until("the second one has ended", || !is_alive(pid("b")));
    // A configuration that is not good changes nothing.
    std::fs::write(at("portcullis.toml"), "[gateway]\nworker = 1\n").expect("written");
    let (code, said) = upgrade();
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing was changed"), "{said}");
    let log = std::fs::read_to_string(at("systemctl.log")).expect("it was used");
    assert!(
        log.contains("enable --quiet portcullis@b") && log.contains("disable --quiet portcullis@a")
    );
    end(pid("a"));
    wait_until("the last one has ended", || !is_alive(pid("a")));
}

/// Ends what still runs of both instances, whatever becomes of the test.
struct Ends<'p>(&'p std::path::Path);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        for name in ["portcullis@a.pid", "portcullis@b.pid"] {
            if let Ok(pid) = std::fs::read_to_string(self.0.join(name)) {
                let _ = std::process::Command::new("kill").args(["-9", pid.trim()]).status();
            }
        }
    }
}

/// Whether it runs; what is left of an ended one until its parent looks does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}
