//! A backend behind a network that becomes slow, or lets nothing through.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::backend::Process;
use crate::backends::{LINK_LOST, LINK_LOST_CLOSES, watchful};
use crate::report::{Outcome, Row, assert_rows};
use crate::stages::{self, BUSY, IDLE, VERDICT};
use crate::support::{Client, Opcode};
use crate::world::{World, config};

/// A network namespace of its own, with one pair of interfaces between it and here.
struct Network {
    name: String,
    outside: String,
    inside: String,
    /// The backend's address in it.
    address: String,
}

/// Runs a command; what it said when it failed.
fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            Err(format!("`{line}` failed: {said}"))
        }
        Err(error) => Err(format!("`{program}` is not there ({error}): install iproute2 (Debian)")),
    }
}

impl Network {
    /// Needs root and `ip`; says which is missing.
    fn new() -> Result<Network, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let name = format!("pf{process}x{number}");
        let (outside, inside) = (format!("{name}o"), format!("{name}i"));
        // 198.18.0.0/15 is for tests of networks (RFC 2544).
        let net = (process * 8 + number) % (1 << 14);
        let (third, fourth) = (net >> 6, (net & 63) * 4);
        let ip = |last: u32| format!("198.18.{third}.{}", fourth + last);
        run(&format!("ip netns add {name}")).map_err(|why| format!("{why}; it needs root"))?;
        let address = format!("{}:7000", ip(2));
        let network = Network { name, outside, inside, address };
        let Network { name, outside, inside, .. } = &network;
        run(&format!("ip link add {outside} type veth peer name {inside} netns {name}"))?;
        run(&format!("ip addr add {}/30 dev {outside}", ip(1)))?;
        run(&format!("ip link set {outside} up"))?;
        run(&format!("ip -n {name} addr add {}/30 dev {inside}", ip(2)))?;
        run(&format!("ip -n {name} link set {inside} up"))?;
        Ok(network)
    }

    fn backend(&self) -> Process {
        Process::start_behind(&["ip", "netns", "exec", &self.name], &self.address)
    }

    /// Nothing passes any more, in either direction, and nobody is told.
    fn cut(&self) {
        run(&format!("ip -n {} link set {} down", self.name, self.inside)).expect("cut");
    }

    fn remedy(&self) {
        run(&format!("ip -n {} link set {} up", self.name, self.inside)).expect("mended");
    }

    /// Both directions at 4 Mbit/s, with a delay where the kernel has netem. Says what it is.
    fn slow(&self) -> Result<&'static str, String> {
        let kinds = [
            ("netem delay 100ms rate 4mbit", "100 ms of delay, 4 Mbit/s"),
            ("tbf rate 4mbit burst 16kb latency 100ms", "4 Mbit/s (tbf; no netem here)"),
        ];
        let mut problems = Vec::new();
        for (kind, what) in kinds {
            let outside = run(&format!("tc qdisc add dev {} root {kind}", self.outside));
            let inside = format!("tc -n {} qdisc add dev {} root {kind}", self.name, self.inside);
            match outside.and_then(|()| run(&inside)) {
                Ok(()) => return Ok(what),
                Err(problem) => problems.push(problem),
            }
        }
        Err(problems.join("; "))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // With the namespace goes one end of the pair, and with that the other.
        let _ = run(&format!("ip netns del {}", self.name));
    }
}

/// Slow is not dead: everything arrives, in order, although pings wait behind it.
pub fn slowed() -> Outcome {
    const MESSAGES: u32 = 60;
    let network = match Network::new() {
        Ok(network) => network,
        Err(why) => return Outcome::NotRun(why),
    };
    let backend = network.backend();
    let world = World::start(watchful(config(&[&backend.address])), "", 1);
    let address = world.child.address;
    let mut idle = Client::open(address, "/ws", "");
    idle.echo("hello");
    let how = match network.slow() {
        Ok(how) => how,
        Err(why) => return Outcome::NotRun(why),
    };
    let begun = Instant::now();
    let busy: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::open(address, "/ws", "");
                let message = |number| format!("{number} {}", "x".repeat(16 << 10));
                (0..MESSAGES).for_each(|number| client.text(&message(number)));
                (0..MESSAGES).for_each(|number| {
                    client.expect(Opcode::Text, message(number).as_bytes());
                });
            })
        })
        .collect();
    let mut judged = Client::open(address, "/judged", "X-Token: accept_ada\r\n");
    judged.echo("judged");
    busy.into_iter().for_each(|thread| thread.join().expect("all came back"));
    // 3.9 MB at 4 Mbit/s.
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}: not slowed", begun.elapsed());
    idle.echo("still here");
    assert_eq!(world.metric("portcullis_link_connects_total"), 1, "the link was never lost");
    drop((idle, judged));
    world.assert_closes(&[("client_gone", 6)]);
    world.assert_recovered(1);
    let saw = format!("goes on, over {how}");
    let row = |stage, sent| Row { stage, saw: saw.clone(), sent, answered: sent };
    Outcome::Ran(vec![row(IDLE, 1), row(BUSY, 4 * MESSAGES), row(VERDICT, 1)])
}

/// Neither FIN nor RST: only silence tells.
pub fn cut_off() -> Outcome {
    let network = match Network::new() {
        Ok(network) => network,
        Err(why) => return Outcome::NotRun(why),
    };
    let backend = network.backend();
    let world = World::start(watchful(config(&[&backend.address])), "", 1);
    let following = stages::follow_all(stages::one_of_each(&world, Duration::from_secs(60)));
    let since = Instant::now();
    network.cut();
    let rows = stages::ends(following, since, Duration::from_millis(6500));
    assert_rows("backend_cut_off", &rows, LINK_LOST);
    world.assert_closes(LINK_LOST_CLOSES);
    network.remedy();
    world.assert_recovered(1);
    Outcome::Ran(rows)
}

/// For less than three times `link_ping`: TCP sends again what was lost.
pub fn cut_off_briefly() -> Outcome {
    let network = match Network::new() {
        Ok(network) => network,
        Err(why) => return Outcome::NotRun(why),
    };
    let backend = network.backend();
    let world = World::start(config(&[&backend.address]), "", 1);
    let mut busy = Client::open(world.child.address, "/ws", "");
    busy.echo("hello");
    network.cut();
    let count = 200;
    (0..count).for_each(|number| busy.text(&format!("message {number}")));
    std::thread::sleep(Duration::from_secs(2));
    network.remedy();
    for number in 0..count {
        busy.expect(Opcode::Text, format!("message {number}").as_bytes());
    }
    drop(busy);
    world.assert_closes(&[("client_gone", 1)]);
    world.assert_recovered(1);
    Outcome::Ran(vec![Row { stage: BUSY, saw: "goes on".into(), sent: count, answered: count }])
}
