//! The gateway in a control group with little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::backend::Process;
use crate::descriptors::{from, narrow_from};
use crate::report::{Outcome, Row};
use crate::stages::{IDLE, SILENT};
use crate::support::{Client, Config, End, PATIENCE, free_port, request};
use crate::world::{World, config};

const RUNG: &str = "portcullis_memory_rung";
/// Percent of its budget that the gateway needs when it serves nobody. The test's clients and
/// what they make it touch for the first time are some 9 more: below 80, where a pressure ends, and with
/// the quarter that may wait for clients above 95, where the last one begins.
const AT_REST: u64 = 67;
/// Slow readers at most.
const SLOW: usize = 60;

/// A control group that is removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// Below this folder, with so many bytes in the file of its limit.
    fn new(parent: &Path, file: &str, bytes: u64) -> Result<Group, String> {
        let path = parent.join(format!("portcullis-faults-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        let group = Group(path);
        let file = group.0.join(file);
        fs::write(&file, bytes.to_string())
            .map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        Ok(group)
    }

    /// Shell text by which a process enters it.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs;", self.0.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its process was killed, and may still be on its way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The folder of this process' own group, in the hierarchy that `choose` finds in
/// /proc/self/cgroup.
fn own(root: &str, choose: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(choose)?;
    Some(Path::new(root).join(path.trim_start_matches('/')))
}

/// In cgroup v2 the budget is the group's limit, as the gateway finds it. cgroup v1 limits the
/// process as well, but the gateway does not look there: its budget is set by hand.
pub fn group() -> Outcome {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let backend = Process::start(&format!("127.0.0.1:{}", free_port()));
    let budget = at_rest(&backend) * 100 / AT_REST;
    if controllers.split_whitespace().any(|name| name == "memory") {
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        return match Group::new(root, "memory.max", budget) {
            Ok(group) => climb(&backend, &group, "", "cgroup v2"),
            Err(why) => Outcome::NotRun(format!("{why}; it needs root")),
        };
    }
    let memory = |line: &str| line.split_once(":memory:").map(|(_, path)| path.to_owned());
    let Some(parent) = own("/sys/fs/cgroup/memory", memory).filter(|parent| parent.is_dir()) else {
        return Outcome::NotRun("neither cgroup v2 nor v1 has a memory controller here".into());
    };
    // What the kernel needs besides comes on top.
    match Group::new(&parent, "memory.limit_in_bytes", budget + (32 << 20)) {
        Ok(group) => {
            let limits = format!("memory_max = \"{budget}B\"");
            climb(&backend, &group, &limits, "cgroup v1, budget by hand; v2 NOT RUN here")
        }
        Err(why) => Outcome::NotRun(format!("{why}; it needs root")),
    }
}

fn settings(backend: &Process, limits: &str) -> Config {
    config(&[&backend.address])
        .limits(&format!("{limits}\nsession_window = \"512KiB\""))
        .deadlines("write_stall = \"10m\"\nrequest_head = \"1m\"\nidle = \"10m\"")
}

/// Resident bytes of a gateway that serves nobody.
fn at_rest(backend: &Process) -> u64 {
    let world = World::start(settings(backend, ""), "", 1);
    world.wait_metric("portcullis_memory_used_bytes", |bytes| bytes > 0)
}

/// Slow readers fill the memory, one after the other, up to the last pressure. A quarter of the
/// budget may be bytes that wait for clients.
fn climb(backend: &Process, group: &Group, limits: &str, how: &str) -> Outcome {
    let world = World::start(settings(backend, limits), &group.enter(), 1);
    let address = world.child.address;
    let mut honest: Vec<Client> = (0..5).map(|_| Client::open(address, "/ws", "")).collect();
    honest.iter_mut().for_each(|client| client.echo("hello"));
    // All are there before memory is short: nobody gets in later.
    let mut slow: Vec<Client> = (0..SLOW).map(|_| narrow_from(address, 3)).collect();
    for client in &mut slow {
        client.write(request("/ws", "").as_bytes());
        assert!(client.head().starts_with("HTTP/1.1 101 "));
    }
    let mut silent: Vec<Client> = (0..5).map(|_| from(address, 2)).collect();
    let mut highest = 0;
    let mut flooding = 0;
    let mut refused = false;
    let mut shed = false;
    while highest < 3 {
        // One at a time, as the gateway looks once a second: no pressure is to be left out.
        assert!(flooding < SLOW, "{flooding} are not enough:\n{}", memory(&world));
        slow[flooding].text("flood 100 60000");
        flooding += 1;
        std::thread::sleep(Duration::from_millis(1200));
        highest = highest.max(world.metric(RUNG));
        if highest >= 1 && !refused {
            let mut newcomer = Client::connect(address);
            newcomer.write(b"GET /ws HTTP/1.1\r\n");
            assert_eq!(newcomer.end(), End::Reset);
            assert_eq!(world.child.get("/readyz"), (503, "memory is short\n".into()));
            refused = true;
        }
        if highest >= 2 && !shed {
            silent.iter_mut().for_each(|client| assert_eq!(client.end(), End::Reset));
            shed = true;
        }
    }
    let closed = world.wait_metric("portcullis_memory_closes_total", |count| count > 0);
    assert!(closed as usize <= flooding, "only those who did not read are closed");
    honest.iter_mut().for_each(|client| client.echo("undisturbed"));
    // What they held comes back, and with it everybody is connect_ack again.
    let begun = Instant::now();
    while world.metric(RUNG) > 0 || world.child.get("/readyz").0 != 200 {
        assert!(begun.elapsed() < PATIENCE, "memory stays short:\n{}", memory(&world));
        std::thread::sleep(Duration::from_millis(100));
    }
    honest.iter_mut().for_each(|client| client.echo("to the end"));
    let killed = fs::read_to_string(group.0.join("memory.events"))
        .or_else(|_| fs::read_to_string(group.0.join("memory.oom_control")))
        .expect("the group tells");
    assert!(killed.lines().any(|line| line == "oom_kill 0"), "{killed}");
    drop((honest, slow, silent));
    world.assert_recovered(1);
    let row = |stage, saw: &str, sent| Row { stage, saw: saw.into(), sent, answered: sent };
    Outcome::Ran(vec![
        row(IDLE, "goes on", 15),
        row("newcomer, from 85 % on", "reset", 0),
        row(SILENT, "reset at 92 %", 0),
        row("does not read", "reset at 95 %", 0),
        row("the process", &format!("not killed ({how})"), 0),
    ])
}

/// What the gateway says of its memory.
fn memory(world: &World) -> String {
    let page = world.metrics();
    let names = ["portcullis_memory_", "portcullis_queued_", "process_resident_"];
    let lines = page.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    lines.collect::<Vec<_>>().join("\n")
}
