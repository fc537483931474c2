//! The gateway itself is killed.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::backend::Process;
use crate::report::{Outcome, Row, assert_rows};
use crate::stages::{self, BUSY, CLOSED, FIRST, HALF_HEAD, IDLE, REFUSED, SILENT, VERDICT};
use crate::support::{Client, PATIENCE, free_port, mint, unix_now};
use crate::world::{World, config};

/// Revokes a subject for an hour; the answer's status and body, if one came.
fn revoke(admin: &Path, subject: &str) -> Option<(u16, String)> {
    let body = format!("{{\"subject\":\"{subject}\",\"lapses_in\":3600}}");
    let mut stream = UnixStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!(
        "POST /revocations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

/// Whether a fresh token of this subject is let in.
fn is_let_in(address: SocketAddr, subject: &str) -> bool {
    let claims = format!(r#"{{"sub":"{subject}","exp":{}}}"#, unix_now() + 600);
    let fields = format!("X-Token: {}\r\n", mint(crate::support::SECRET, &claims));
    let mut client = Client::open(address, "/header", &fields);
    client.text("hello");
    let frame = client.frame().expect("an answer");
    if frame.payload == b"hello" {
        return true;
    }
    assert_eq!(client.close_frame(), (Some(4401), "token_revoked".into()));
    false
}

pub fn killed() -> Outcome {
    let backend = Process::start(&format!("127.0.0.1:{}", free_port()));
    let mut config = config(&[&backend.address]);
    config.gateway += "revocations_file = \"revocations\"\n";
    let mut world = World::start(config, "", 1);
    let answer = revoke(&world.child.path("admin.sock"), "eve").expect("an answer");
    assert_eq!(answer.0, 200, "{}", answer.1);
    assert!(!is_let_in(world.child.address, "eve"));
    let following = stages::follow_all(stages::one_of_each(&world, Duration::from_secs(60)));
    let opened = backend.count("open");
    let since = Instant::now();
    // What a crash in the middle of a save leaves behind.
    std::fs::write(world.child.path("revocations.new"), "portcullis-revo").expect("written");
    world.child.kill_and_restart();
    let rows = stages::ends(following, since, Duration::from_secs(3));
    let gone = |stage| (stage, "FIN", 0, 0);
    let mut expected = [SILENT, HALF_HEAD, FIRST, VERDICT, IDLE, BUSY, CLOSED, REFUSED].map(gone);
    expected[5].2 = stages::IN_FLIGHT;
    assert_rows("gateway_killed", &rows, &expected);
    // Those who sleep over a message end when they wake.
    backend.wait_count("ended", opened - 1);
    assert!(!is_let_in(world.child.address, "eve"), "the revocation outlives the gateway");
    assert!(is_let_in(world.child.address, "ada"));
    assert_eq!(revoke(&world.child.path("admin.sock"), "mallory").expect("an answer").0, 200);
    assert!(!is_let_in(world.child.address, "mallory"), "the half file is in nobody's way");
    world.rest();
    Outcome::Ran(rows)
}

/// Every revocation that was answered as saved is in force after the restart.
pub fn killed_while_revoking() -> Outcome {
    let backend = Process::echo(&format!("127.0.0.1:{}", free_port()));
    let mut config = config(&[&backend.address]);
    config.gateway += "revocations_file = \"revocations\"\n";
    let mut world = World::start(config, "", 1);
    let (admin, address) = (world.child.path("admin.sock"), world.child.address);
    let (mut answered, mut asked) = (0, 0);
    for round in 0..3 {
        let saved = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&saved);
        let admin = admin.clone();
        let revoking = std::thread::spawn(move || {
            let mut number = 0;
            while let Some((200, body)) = revoke(&admin, &format!("user-{round}-{number}")) {
                assert!(body.contains("\"saved\":true"), "{body}");
                number += 1;
                count.store(number, Ordering::SeqCst);
            }
        });
        crate::support::wait_until("some were saved", || saved.load(Ordering::SeqCst) >= 20);
        world.child.signal("KILL");
        revoking.join().expect("it ended");
        world.child.kill_and_restart();
        let saved = saved.load(Ordering::SeqCst);
        (answered, asked) = (answered + saved, asked + saved + 1);
        // The last question may be in force without an answer.
        let held = world.metric("portcullis_revocations");
        assert!((u64::from(answered)..=u64::from(asked)).contains(&held), "{held} of {answered}");
        for number in [0, saved / 2, saved - 1] {
            assert!(!is_let_in(address, &format!("user-{round}-{number}")));
        }
    }
    world.rest();
    let saw = "in force after the restart".into();
    Outcome::Ran(vec![Row { stage: "revocation answered as saved", saw, sent: answered, answered }])
}
