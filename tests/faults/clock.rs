//! The wall clock jumps under the gateway; nobody else's does.
//!
//! The gateway reads it through the C library, so a library put before that one moves it for one
//! process alone; that it has moved shows in which tokens are refused.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::backend::Process;
use crate::report::{Outcome, Row};
use crate::stages::{IDLE, SILENT};
use crate::support::{Client, End, SECRET, free_port, mint, unix_now, wait_until};
use crate::world::{World, config};

const HOUR: i64 = 3600;

/// A gateway with a clock of its own.
struct Shifted {
    world: World,
    _backend: Process,
    folder: tempfile::TempDir,
}

impl Shifted {
    fn start() -> Result<Shifted, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let (library, offset) = (folder.path().join("clock.so"), folder.path().join("offset"));
        fs::write(&offset, 0i64.to_ne_bytes()).expect("written");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/clock.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", source, "-o"])
            .arg(&library)
            .output();
        match built {
            Err(error) => return Err(format!("`cc` is not there ({error}): install gcc (Debian)")),
            Ok(output) => assert!(output.status.success(), "{output:?}"),
        }
        let backend = Process::echo(&format!("127.0.0.1:{}", free_port()));
        let before = format!(
            "export PORTCULLIS_CLOCK={} LD_PRELOAD={};",
            offset.display(),
            library.display()
        );
        let config = config(&[&backend.address]).deadlines("request_head = \"4s\"");
        let world = World::start(config, &before, 1);
        let shifted = Shifted { world, _backend: backend, folder };
        Ok(shifted)
    }

    /// The gateway's clock from now on, in seconds off the machine's.
    fn jump(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(self.folder.path().join("offset"));
        file.expect("there").write_all_at(&seconds.to_ne_bytes(), 0).expect("written");
    }

    /// What a client with this token is told.
    fn answer(&self, token: &str) -> String {
        let fields = format!("X-Token: {token}\r\n");
        let mut client = Client::open(self.world.child.address, "/header", &fields);
        client.text("hello");
        let frame = client.frame().expect("an answer");
        match frame.payload == b"hello" {
            true => "let in".into(),
            false => client.close_frame().1,
        }
    }

    fn open(&self, token: &str) -> Client {
        let fields = format!("X-Token: {token}\r\n");
        let mut client = Client::open(self.world.child.address, "/header", &fields);
        client.echo("hello");
        client
    }
}

fn until(seconds: i64) -> String {
    let end = unix_now() as i64 + seconds;
    mint(SECRET, &format!(r#"{{"sub":"ada","exp":{end}}}"#))
}

/// A connection that says nothing ends when 4 s have passed, whatever the wall clock says.
fn assert_deadline(mut silent: Client, since: Instant) {
    assert_eq!(silent.end(), End::Reset);
    let took = since.elapsed();
    let allowed = Duration::from_secs(4)..Duration::from_millis(5500);
    assert!(allowed.contains(&took), "{took:?}");
}

/// One whose token ends 5 to 6 s from `since` is told so then, whatever the wall clock says.
fn assert_expires(mut ending: Client, since: Instant) {
    ending.frame().expect("an explanation");
    let took = since.elapsed();
    assert_eq!(ending.close_frame(), (Some(4401), "token_expired".into()));
    ending.close(4401, "");
    assert_eq!(ending.end(), End::Fin);
    let allowed = Duration::from_secs(5)..Duration::from_millis(7500);
    assert!(allowed.contains(&took), "{took:?}");
}

pub fn forwards() -> Outcome {
    let shifted = match Shifted::start() {
        Ok(shifted) => shifted,
        Err(why) => return Outcome::NotRun(why),
    };
    let address = shifted.world.child.address;
    let since = Instant::now();
    let (short, long) = (until(600), until(7200));
    let ending = shifted.open(&until(6));
    let (mut judged, mut later) = (shifted.open(&short), shifted.open(&long));
    let mut endless = Client::open(address, "/ws", "");
    endless.echo("hello");
    let (silent, connected) = (Client::connect(address), Instant::now());
    shifted.jump(HOUR);
    // A token is judged by the wall clock, once.
    wait_until("the gateway's clock has moved", || shifted.answer(&short) == "token_expired");
    assert_eq!(shifted.answer(&long), "let in");
    assert_deadline(silent, connected);
    assert_expires(ending, since);
    let mut all = [&mut judged, &mut later, &mut endless];
    all.iter_mut().for_each(|client| client.echo("undisturbed"));
    // What was refused by the wrong clock alone is not remembered as dead.
    shifted.jump(0);
    assert_eq!(shifted.answer(&short), "let in");
    all.iter_mut().for_each(|client| client.echo("to the end"));
    drop((judged, later, endless));
    shifted.world.assert_recovered(1);
    let row = |stage, saw: &str, sent| Row { stage, saw: saw.into(), sent, answered: sent };
    Outcome::Ran(vec![
        row("open, its token ended by the wall clock alone", "goes on", 3),
        row("open, its token ends", "told, 4401 token_expired, FIN, at its time", 1),
        row(IDLE, "goes on", 3),
        row(SILENT, "reset, at its deadline", 0),
        row("newcomer, token ended by the wall clock", "told, 4401 token_expired", 0),
        row("the same when the clock is right again", "let in", 1),
    ])
}

pub fn backwards() -> Outcome {
    let shifted = match Shifted::start() {
        Ok(shifted) => shifted,
        Err(why) => return Outcome::NotRun(why),
    };
    let address = shifted.world.child.address;
    let since = Instant::now();
    let (ending, gone) = (shifted.open(&until(6)), until(-60));
    let mut endless = Client::open(address, "/ws", "");
    endless.echo("hello");
    assert_eq!(shifted.answer(&gone), "token_expired");
    let (silent, connected) = (Client::connect(address), Instant::now());
    shifted.jump(-HOUR);
    let early = format!(r#"{{"sub":"ada","nbf":{},"exp":{}}}"#, unix_now(), unix_now() + 600);
    let early = mint(SECRET, &early);
    wait_until("its clock has moved", || shifted.answer(&early) == "token_not_yet_valid");
    assert_eq!(shifted.answer(&until(600)), "let in");
    // Whoever sets the clock back makes old tokens good, as the threat model says.
    assert_eq!(shifted.answer(&gone), "let in");
    assert_deadline(silent, connected);
    assert_expires(ending, since);
    endless.echo("undisturbed");
    shifted.jump(0);
    assert_eq!(shifted.answer(&early), "let in");
    assert_eq!(shifted.answer(&gone), "token_expired");
    endless.echo("to the end");
    drop(endless);
    shifted.world.assert_recovered(1);
    let row = |stage, saw: &str, sent| Row { stage, saw: saw.into(), sent, answered: sent };
    Outcome::Ran(vec![
        row("open, its token ends", "told, 4401 token_expired, FIN, at its time", 1),
        row(IDLE, "goes on", 3),
        row(SILENT, "reset, at its deadline", 0),
        row("newcomer, token not valid yet by it", "told, 4401 token_not_yet_valid", 0),
        row("newcomer, token ended before", "let in, until the clock is right again", 0),
    ])
}
