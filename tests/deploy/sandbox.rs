//! The gateway under `deploy/seccomp.json`, on the running kernel: the profile is put on a thread,
//! and what that thread starts inherits it, as a container's program does from its runtime.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde_json::{Value, json};

use crate::profile::rules;

const PATIENCE: Duration = Duration::from_secs(20);
const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");
/// Names of the profile that aarch64 does not have.
const X86_ONLY: [&str; 5] = ["epoll_wait", "poll", "access", "arch_prctl", "readlink"];

/// The profile as filters, in the order in which they are put on. `change` alters the names
/// that are let through.
fn filters(change: impl Fn(&mut Vec<String>)) -> [BpfProgram; 2] {
    // What fails with an errno of its own is a filter below, and is let through by the one above.
    let (mut allow, mut fail) = (Vec::new(), Vec::new());
    for (mut names, action, rule) in rules() {
        names.retain(|name| cfg!(target_arch = "x86_64") || !X86_ONLY.contains(&name.as_str()));
        if action == "SCMP_ACT_ERRNO" {
            assert_eq!(rule["errnoRet"], 38);
            fail.extend(names.iter().map(|name| json!({ "syscall": name })));
        }
        change(&mut names);
        for name in names {
            match rule.get("args") {
                Some(conditions) => {
                    let list = conditions.as_array().expect("a list").iter();
                    let list: Vec<Value> = list.map(condition).collect();
                    allow.push(json!({ "syscall": name, "args": list }));
                }
                None => allow.push(json!({ "syscall": name })),
            }
        }
    }
    [
        compiled(json!({ "mismatch_action": "allow", "match_action": { "errno": 38 },
            "filter": fail })),
        compiled(json!({ "mismatch_action": { "errno": 1 }, "match_action": "allow",
            "filter": allow })),
    ]
}

fn condition(from: &Value) -> Value {
    let (op, value) = match from["op"].as_str() {
        Some("SCMP_CMP_EQ") => (json!("eq"), &from["value"]),
        Some("SCMP_CMP_MASKED_EQ") => (json!({ "masked_eq": from["value"] }), &from["valueTwo"]),
        other => panic!("unknown comparison {other:?}"),
    };
    json!({ "index": from["index"], "type": "qword", "op": op, "val": value })
}

fn compiled(filter: Value) -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("a known architecture");
    let text = json!({ "only": filter }).to_string();
    let mut programs = compile_from_json(text.as_bytes(), arch).expect("names that exist");
    programs.remove("only").expect("the one filter")
}

/// Starts `command` under the filters.
fn spawn_under(filters: [BpfProgram; 2], mut command: Command) -> Child {
    let thread = std::thread::spawn(move || {
        for filter in &filters {
            apply_filter(filter).expect("the kernel takes the filter");
        }
        command.spawn()
    });
    thread.join().expect("no panic").expect("it starts")
}

/// Stops a process when a test ends in whatever way.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports that were free a moment ago.
fn ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("an address").port())
}

fn write_config(folder: &Path, [clients, admin, backend, judge]: [u16; 4]) {
    let text = format!(
        r#"[gateway]
workers = 1
admin = "127.0.0.1:{admin}"
log = {{ level = "off" }}
[deadlines]
drain = "100ms"
[[listener]]
address = "127.0.0.1:{clients}"
[[auth]]
name = "app"
kind = "jwt"
carriers = ["authorization"]
keys = [{{ id = "k", algorithm = "HS256", secret_file = "key" }}]
[[auth]]
name = "asked"
kind = "http"
carriers = ["authorization"]
endpoint = "http://localhost:{judge}/"
[[route]]
path = "/asked"
origins = ["http://localhost"]
origin_absent = "allow"
auth = "asked"
backend = "echo"
[[route]]
path = "/ws"
origins = ["http://localhost"]
origin_absent = "allow"
auth = "app"
backend = "echo"
[[backend]]
name = "echo"
endpoints = ["127.0.0.1:{backend}"]
"#
    );
    std::fs::write(folder.join("c.toml"), text).expect("written");
    let key = folder.join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").expect("written");
    std::fs::set_permissions(key, Permissions::from_mode(0o600)).expect("set");
}

fn run_command(folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--config"]).arg(folder.join("c.toml"));
    command
}

/// Asks the admin listener; `None` while nobody answers.
fn get(admin: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", admin)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An endpoint that accepts everybody.
fn judge() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                head.push(byte[0]);
            }
            let answer = "HTTP/1.1 200 OK\r\nX-Auth-Subject: a\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// What a command prints.
fn output(command: &mut Command, input: &str) -> String {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = piped.spawn().expect("it starts");
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_gateway_serves_reloads_and_drains_under_the_profile() {
    let folder = tempfile::tempdir().expect("a folder");
    let [clients, admin, backend] = ports();
    write_config(folder.path(), [clients, admin, backend, judge()]);
    let mut echo = Command::new(PROGRAM);
    echo.args(["echo-backend", "--listen", &format!("127.0.0.1:{backend}")]);
    let echo = echo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let _echo = Stopped(echo);
    let mut gateway = Stopped(spawn_under(filters(|_| ()), run_command(folder.path())));
    eventually("it becomes ready", || {
        get(admin, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    let pid = gateway.0.id().to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");

    eventually("a link", || {
        get(admin, "/metrics").is_some_and(|p| p.contains("links{state=\"ready\"} 1\n"))
    });
    let config = folder.path().join("c.toml");
    let mut mint = Command::new(PROGRAM);
    mint.args(["token", "mint", "--auth", "app", "--subject", "a", "--expires-in", "1h"]);
    let token = output(mint.arg("--config").arg(&config), "");
    for path in ["ws", "asked"] {
        let mut connect = Command::new(PROGRAM);
        connect.args(["connect", &format!("ws://127.0.0.1:{clients}/{path}")]);
        let echoed = output(connect.env("PORTCULLIS_TOKEN", token.trim()), "there and back\n");
        assert_eq!(echoed, "there and back\n", "/{path}");
    }

    let signal = |name: &str| Command::new("kill").args([name, &pid]).status().expect("kill");
    assert!(signal("-HUP").success());
    eventually("a reload", || {
        get(admin, "/metrics").is_some_and(|p| p.contains("reloads_total{result=\"ok\"} 1\n"))
    });
    assert!(signal("-TERM").success());
    eventually("it ends", || gateway.0.try_wait().expect("a child").is_some());
    let status = gateway.0.wait().expect("a child");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn without_io_uring_it_says_which_profile_to_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let [clients, admin, backend, judge] = ports();
    write_config(folder.path(), [clients, admin, backend, judge]);
    let log = folder.path().join("log");
    let mut command = run_command(folder.path());
    command.stderr(File::create(&log).expect("a file"));
    let filters = filters(|names| {
        names.retain(|name| name != "io_uring_setup");
        // For giving the program its standard error, which a container's runtime has done.
        if names.iter().any(|name| name == "close") {
            let dup2 = cfg!(target_arch = "x86_64").then(|| "dup2".to_owned());
            names.extend(dup2.into_iter().chain(["dup3".to_owned()]));
        }
    });
    let mut gateway = Stopped(spawn_under(filters, command));
    eventually("it gives up", || gateway.0.try_wait().expect("a child").is_some());
    let text = std::fs::read_to_string(log).expect("written");
    assert_eq!(gateway.0.wait().expect("a child").code(), Some(1), "{text}");
    for part in [
        "creating an io_uring failed: Operation not permitted",
        "likely cause: a seccomp filter blocks io_uring",
        "what to do: use deploy/seccomp.json",
    ] {
        assert!(text.contains(part), "{part} in: {text}");
    }
}
