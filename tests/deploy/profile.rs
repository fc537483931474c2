//! The seccomp profile against the calls that a run was seen to make.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{file, json};

/// Allowed though the recorded runs did not make them: each with who does.
const UNSEEN: [(&str, &str); 26] = [
    ("accept4", "the admin listeners: hyper, on the control thread's epoll"),
    ("clock_gettime", "where the vDSO cannot answer"),
    ("clock_nanosleep", "sleeps of glibc 2.31 and later"),
    ("clone", "threads, after clone3 was refused"),
    ("epoll_pwait", "aarch64, which has no epoll_wait"),
    ("fchmod", "the mode of the admin socket"),
    ("fdatasync", "a change in the file of revocations"),
    ("fstat", "musl, and glibc before 2.33"),
    ("fstatfs", "runc, before it executes the program"),
    ("fsync", "a new file of revocations, and its folder"),
    ("getcwd", "the text of a worker's panic, with RUST_BACKTRACE"),
    ("geteuid", "owners of files and of the admin socket's peers"),
    ("getpid", "abort(3)"),
    ("gettimeofday", "where the vDSO cannot answer"),
    ("mremap", "an allocation that grows"),
    ("nanosleep", "sleeps of musl"),
    ("ppoll", "aarch64, which has no poll"),
    ("readlinkat", "aarch64, which has no readlink"),
    ("recvmsg", "musl, which looks up names with it"),
    ("rename", "a new file of revocations"),
    ("renameat", "the same on aarch64"),
    ("restart_syscall", "a wait that a stop signal interrupted"),
    ("sched_yield", "threads that contend"),
    ("tgkill", "abort(3)"),
    ("unlink", "a dead admin socket, and what lies in the place of a new file of revocations"),
    ("unlinkat", "the same on aarch64"),
];

/// The names in `deploy/syscalls.txt`.
pub fn recorded() -> BTreeSet<String> {
    let text = file("deploy/syscalls.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(' ').next().expect("a name").to_owned()).collect()
}

/// The rules of the profile: names, action, and the whole rule.
pub fn rules() -> Vec<(Vec<String>, String, Value)> {
    let profile = json("deploy/seccomp.json");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let rules = profile["syscalls"].as_array().expect("rules").iter();
    rules
        .map(|rule| {
            let names = rule["names"].as_array().expect("names").iter().map(text).collect();
            (names, text(&rule["action"]), rule.clone())
        })
        .collect()
}

fn allowed() -> Vec<String> {
    let allow = |(_, action, _): &(_, String, _)| action == "SCMP_ACT_ALLOW";
    rules().into_iter().filter(allow).flat_map(|(names, ..)| names).collect()
}

#[test]
fn everything_else_is_refused_and_every_rule_has_a_reason() {
    let profile = json("deploy/seccomp.json");
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(profile["defaultErrnoRet"], 1);
    let (mut plain, mut conditional) = (BTreeSet::new(), BTreeSet::new());
    for (names, action, rule) in rules() {
        let comment = rule["comment"].as_str().unwrap_or_default();
        assert!(comment.len() > 10, "no reason: {names:?}");
        assert!(action == "SCMP_ACT_ALLOW" || names == ["clone3"], "{names:?}: {action}");
        for name in names {
            if rule.get("args").is_some() {
                conditional.insert(name);
            } else {
                assert!(plain.insert(name.clone()), "{name} twice");
            }
        }
    }
    let both: Vec<_> = plain.intersection(&conditional).collect();
    assert!(both.is_empty(), "the condition has no effect: {both:?}");
    assert_eq!(conditional, ["clone", "ioctl", "prctl", "socket"].map(str::to_owned).into());
}

#[test]
fn every_recorded_call_is_let_through() {
    let allowed = allowed();
    for call in recorded() {
        // clone3 fails so that the C library uses clone.
        assert!(allowed.contains(&call) || call == "clone3", "{call} is refused");
    }
}

#[test]
fn no_rule_is_dead() {
    let recorded = recorded();
    let allowed = allowed();
    for call in &allowed {
        let reason = UNSEEN.iter().any(|(name, _)| name == call);
        assert!(recorded.contains(call) != reason, "{call}: nobody makes it, or excused and made");
    }
    for (name, _) in UNSEEN {
        assert!(allowed.iter().any(|call| call == name), "{name}: excused, and not allowed");
    }
}

#[test]
fn dangerous_calls_are_refused() {
    let allowed = allowed();
    for call in [
        "bpf",
        "ptrace",
        "mount",
        "umount2",
        "unshare",
        "setns",
        "init_module",
        "keyctl",
        "kexec_load",
        "pivot_root",
        "process_vm_readv",
        "perf_event_open",
        "userfaultfd",
        "kill",
        "chmod",
        "renameat2",
        "fork",
        "vfork",
        "setuid",
        "memfd_create",
    ] {
        assert!(!allowed.iter().any(|name| name == call), "{call} is allowed");
    }
}
