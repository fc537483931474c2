//! Backends that die, or stop without dying.

use std::time::{Duration, Instant};

use crate::backend::Process;
use crate::report::{Outcome, Row, assert_rows};
use crate::stages::{self, BUSY, CLOSED, FIRST, HALF_HEAD, IDLE, REFUSED, SILENT, VERDICT};
use crate::support::{Client, Config, SLACK, free_port, wait_until};
use crate::world::{World, config};

const LONG: Duration = Duration::from_secs(60);
/// What no deadline may exceed from the fault on: that of the first message, and some slack.
const LATEST: Duration = Duration::from_millis(5000 + 1500);

/// What is seen wherever the link is lost: those who have a session, or wait for one, are told;
/// the others do not notice, and have their deadlines.
pub const LINK_LOST: &[(&str, &str, u32, u32)] = &[
    (SILENT, "reset", 0, 0),
    (HALF_HEAD, "408, FIN", 0, 0),
    (FIRST, "told, 4408 authentication_timed_out, FIN", 0, 0),
    (VERDICT, "told, 1012 backend_unavailable, FIN", 0, 0),
    (IDLE, "told, 1012 backend_unavailable, FIN", 0, 0),
    (BUSY, "told, 1012 backend_unavailable, FIN", stages::IN_FLIGHT, 0),
    (CLOSED, "reset", 0, 0),
    (REFUSED, "reset", 0, 0),
];
pub const LINK_LOST_CLOSES: &[(&str, u64)] = &[
    ("handshake_timed_out", 2),
    ("authentication_timed_out", 1),
    ("backend_unavailable", 3),
    ("backend_closed", 1),
    ("token_malformed", 1),
];

fn address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Links that notice silence after 1.5 s.
pub fn watchful(config: Config) -> Config {
    config.deadlines("link_ping = \"500ms\"\nlink_connect = \"500ms\"")
}

pub fn killed() -> Outcome {
    let mut backend = Process::start(&address());
    let world = World::start(config(&[&backend.address]), "", 1);
    let following = stages::follow_all(stages::one_of_each(&world, LONG));
    let since = Instant::now();
    backend.kill();
    let rows = stages::ends(following, since, LATEST);
    assert_rows("backend_killed", &rows, LINK_LOST);
    world.assert_closes(LINK_LOST_CLOSES);
    backend.restart();
    world.assert_recovered(1);
    Outcome::Ran(rows)
}

/// `portcullis echo-backend` dies and is there again at once, twice.
pub fn restarted() -> Outcome {
    let mut backend = Process::echo(&address());
    let world = World::start(config(&[&backend.address]), "", 1);
    let mut rows = Vec::new();
    for _ in 0..2 {
        let mut client = Client::open(world.child.address, "/ws", "");
        client.echo("hello");
        let following = stages::Watched::open(IDLE, client, 0).follow();
        let since = Instant::now();
        backend.kill();
        backend.restart();
        rows.extend(stages::ends(vec![following], since, LATEST));
        world.assert_recovered(1);
    }
    let told = (IDLE, "told, 1012 backend_unavailable, FIN", 0, 0);
    assert_rows("backend_restarted", &rows, &[told, told]);
    Outcome::Ran(rows)
}

pub fn stopped() -> Outcome {
    let backend = Process::start(&address());
    let world = World::start(watchful(config(&[&backend.address])), "", 1);
    let following = stages::follow_all(stages::one_of_each(&world, LONG));
    let since = Instant::now();
    backend.signal("STOP");
    let rows = stages::ends(following, since, LATEST);
    assert_rows("backend_stopped", &rows, LINK_LOST);
    world.assert_closes(LINK_LOST_CLOSES);
    // Its kernel still accepts connections: a link is none before its handshake.
    let mut late = Client::open(world.child.address, "/ws", "");
    late.frame();
    assert_eq!(late.close_frame(), (Some(1012), "backend_unavailable".into()));
    drop(late);
    backend.signal("CONT");
    world.assert_recovered(1);
    // It learns of everybody who left while it stood still.
    // The one that sleeps over a message learns of it when it wakes.
    wait_until("they ended", || backend.count("ended") + 1 >= backend.count("open"));
    Outcome::Ran(rows)
}

/// For less than three times `link_ping`.
pub fn stopped_briefly() -> Outcome {
    let backend = Process::start(&address());
    let world = World::start(config(&[&backend.address]), "", 1);
    let mut idle = Client::open(world.child.address, "/ws", "");
    idle.echo("hello");
    let mut busy = Client::open(world.child.address, "/ws", "");
    busy.echo("hello");
    backend.signal("STOP");
    let count = 200;
    (0..count).for_each(|number| busy.text(&format!("message {number}")));
    std::thread::sleep(Duration::from_secs(2));
    let mut late = Client::open(world.child.address, "/ws", "");
    late.text("hello");
    assert!(late.is_quiet_for(Duration::from_millis(200)));
    backend.signal("CONT");
    for number in 0..count {
        busy.expect(crate::support::Opcode::Text, format!("message {number}").as_bytes());
    }
    late.expect(crate::support::Opcode::Text, b"hello");
    idle.echo("still here");
    drop((idle, busy, late));
    world.assert_closes(&[("client_gone", 3)]);
    world.assert_recovered(1);
    let row = |stage, sent| Row { stage, saw: "goes on".into(), sent, answered: sent };
    Outcome::Ran(vec![row(IDLE, 0), row(BUSY, count), row("opened meanwhile", 1)])
}

pub fn one_of_two_killed() -> Outcome {
    one_of_two(|backend| backend.kill(), Process::restart)
}

pub fn one_of_two_stopped() -> Outcome {
    one_of_two(|backend| backend.signal("STOP"), |backend| backend.signal("CONT"))
}

/// Ten sessions, half of them on each; one backend fails.
fn one_of_two(fail: fn(&mut Process), remedy: fn(&mut Process)) -> Outcome {
    let (mut first, second) = (Process::start(&address()), Process::start(&address()));
    let endpoints = [first.address.as_str(), second.address.as_str()];
    let world = World::start(watchful(config(&endpoints)), "", 2);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..10 {
        let mut client = Client::open(world.child.address, "/ws", "");
        client.echo("hello");
        clients.push(client);
    }
    first.wait_count("open /ws", 5);
    second.wait_count("open /ws", 5);
    // Sessions were given out one here, one there; whose they are shows once one of them fails.
    let since = Instant::now();
    fail(&mut first);
    let mut rows = Vec::new();
    world.wait_metric("portcullis_closes_total{cause=\"backend_unavailable\"}", |n| n == 5);
    assert!(since.elapsed() < LATEST + SLACK);
    let mut kept = 0;
    for mut client in clients {
        client.text("message 0");
        let frame = client.frame().expect("an answer, or an explanation");
        if frame.payload == b"message 0" {
            client.echo("undisturbed");
            kept += 1;
            continue;
        }
        assert_eq!(client.close_frame(), (Some(1012), "backend_unavailable".into()));
        client.close(1000, "");
        let saw = "told, 1012 backend_unavailable".into();
        rows.push(Row { stage: "open, on the one", saw, sent: 0, answered: 0 });
    }
    assert_eq!((rows.len(), kept), (5, 5));
    // Meanwhile the other takes all.
    for _ in 0..4 {
        Client::open(world.child.address, "/ws", "").echo("hello");
    }
    assert_eq!(second.count("ended Link"), 0);
    remedy(&mut first);
    world.assert_recovered(2);
    rows.truncate(1);
    let saw = "goes on".into();
    rows.push(Row { stage: "open, on the other", saw, sent: 10, answered: 10 });
    Outcome::Ran(rows)
}
