//! The gateway in a control group with little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backend::Process;
use crate::descriptors::{from, narrow_from};
use crate::report::{Outcome, Row};
use crate::stages::{IDLE, SILENT};
use crate::support::{Client, Config, End, free_port, request, wait_until};
use crate::world::{World, config};

const RUNG: &str = "portcullis_memory_rung";
/// What the group may use. A debug build needs some 20 MiB of it at rest.
const LIMIT: u64 = 64 << 20;

/// Slow readers that begin at one time.
const BATCH: usize = 10;

/// A control group that is removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// Below this folder, with its limit in this file.
    fn new(parent: &Path, limit: &str) -> Result<Group, String> {
        let path = parent.join(format!("portcullis-faults-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        let group = Group(path);
        let file = group.0.join(limit);
        fs::write(&file, LIMIT.to_string())
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

pub fn group_v2() -> Outcome {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "memory") {
        let why = "/sys/fs/cgroup is no cgroup v2 with a memory controller; boot with \
                   systemd.unified_cgroup_hierarchy=1 and without cgroup_enable=…v1";
        return Outcome::NotRun(why.into());
    }
    let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
    match Group::new(root, "memory.max") {
        // The budget is the group's limit, found by the gateway itself.
        Ok(group) => climb(&group, ""),
        Err(why) => Outcome::NotRun(format!("{why}; it needs root")),
    }
}

/// cgroup v1 limits as well, but the gateway does not look there: its budget is set by hand.
pub fn group_v1() -> Outcome {
    let root = "/sys/fs/cgroup/memory";
    let memory = |line: &str| line.split_once(":memory:").map(|(_, path)| path.to_owned());
    let Some(parent) = own(root, memory).filter(|parent| parent.is_dir()) else {
        return Outcome::NotRun(
            "no cgroup v1 memory controller; memory_cgroup_v2 covers it".into(),
        );
    };
    match Group::new(&parent, "memory.limit_in_bytes") {
        // A quarter is left to the kernel's part of the sockets.
        Ok(group) => climb(&group, "memory_max = \"48MiB\""),
        Err(why) => Outcome::NotRun(format!("{why}; it needs root")),
    }
}

/// Slow readers fill the memory, one after the other, up to the last rung.
fn climb(group: &Group, limits: &str) -> Outcome {
    let backend = Process::start(&format!("127.0.0.1:{}", free_port()));
    let config: Config = config(&[&backend.address])
        .limits(&format!("{limits}\nsession_window = \"1MiB\"\nlink_window = \"512MiB\""))
        .deadlines("write_stall = \"10m\"\nrequest_head = \"1m\"\nidle = \"10m\"");
    let world = World::start(config, &group.enter(), 1);
    let address = world.child.address;
    let mut honest: Vec<Client> = (0..5).map(|_| Client::open(address, "/ws", "")).collect();
    honest.iter_mut().for_each(|client| client.echo("hello"));
    // All are there before memory is short: nobody gets in later.
    let mut slow: Vec<Client> = (0..300).map(|_| narrow_from(address, 3)).collect();
    for client in &mut slow {
        client.write(request("/ws", "").as_bytes());
        assert!(client.head().starts_with("HTTP/1.1 101 "));
    }
    let mut silent: Vec<Client> = (0..5).map(|_| from(address, 2)).collect();
    let mut highest = 0;
    let mut flooding = 0;
    let mut rounds = 0..slow.len() / BATCH + 3;
    let mut refused = false;
    let mut shed = false;
    while highest < 3 {
        // A few at a time, as the gateway looks once a second: no rung is to be left out.
        let more = slow.iter_mut().skip(flooding).take(BATCH);
        flooding += more.map(|client| client.text("flood 3000 2000")).count();
        assert!(rounds.next().is_some(), "{flooding} are not enough:\n{}", memory(&world));
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
    println!("{flooding} slow readers:\n{}", memory(&world));
    let closed = world.wait_metric("portcullis_memory_closes_total", |count| count > 0);
    assert!(closed as usize <= flooding, "only those who did not read are closed");
    honest.iter_mut().for_each(|client| client.echo("undisturbed"));
    // What they held comes back, and with it everybody is welcome again.
    wait_until(&format!("memory is there again:\n{}", memory(&world)), || {
        world.metric(RUNG) == 0 && world.child.get("/readyz").0 == 200
    });
    println!("after:\n{}", memory(&world));
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
        row("the process", "not killed", 0),
    ])
}

/// What the gateway says of its memory.
fn memory(world: &World) -> String {
    let page = world.metrics();
    let names = ["portcullis_memory_", "portcullis_queued_", "process_resident_"];
    let lines = page.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    lines.collect::<Vec<_>>().join("\n")
}
