//! The unit, the kernel settings and the image: the lines that the gateway depends on.

use std::process::Command;
use std::time::Duration;

use portcullis::settings::keys::{self, REQUIRED};
use portcullis::settings::units::parse_duration;

use crate::file;

/// Lines without comments, as key and value.
fn pairs(name: &str) -> Vec<(String, String)> {
    let text = file(name);
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '[']))
        .map(|line| line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}")))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

/// The values of a key of the unit, in order.
fn unit(key: &str) -> Vec<String> {
    let pairs = pairs("deploy/portcullis.service");
    pairs.into_iter().filter(|(name, _)| name == key).map(|(_, value)| value).collect()
}

#[test]
fn the_unit_has_what_the_gateway_needs() {
    const CONFIG: &str = "--config /etc/portcullis/portcullis.toml";
    let program = |command: &str| format!("/usr/local/bin/portcullis {command} {CONFIG}");
    for (key, expected) in [
        ("Type", vec!["exec".to_owned()]),
        ("ExecStartPre", vec![program("check --as-run")]),
        ("ExecStart", vec![program("run")]),
        ("ExecReload", vec![program("check"), "/bin/kill -HUP $MAINPID".into()]),
        ("KillSignal", vec!["SIGTERM".into()]),
        ("LimitNOFILE", vec!["1048576".into()]),
        ("LimitMEMLOCK", vec!["infinity".into()]),
        ("RestrictAddressFamilies", vec!["AF_INET AF_INET6 AF_UNIX".into()]),
        ("CapabilityBoundingSet", vec!["CAP_NET_BIND_SERVICE".into()]),
        ("NoNewPrivileges", vec!["yes".into()]),
        ("ProtectSystem", vec!["strict".into()]),
        ("MemoryDenyWriteExecute", vec!["yes".into()]),
    ] {
        assert_eq!(unit(key), expected, "{key}");
    }
    let filter = unit("SystemCallFilter").join(" ");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(filter.contains(call), "{call}: {filter}");
    }
}

/// The unit of two instances that take over from each other, as deploy/README.md installs it.
#[test]
fn the_unit_of_two_instances_is_the_unit_and_takes_over() {
    let change = pairs("deploy/takeover.conf");
    let last = |key: &str| {
        let found = change.iter().rev().find(|(name, _)| name == key);
        found.unwrap_or_else(|| panic!("{key} is not there")).1.as_str()
    };
    assert_eq!(
        last("ExecStart"),
        "/usr/local/bin/portcullis run --takeover --config /etc/portcullis/portcullis.toml"
    );
    assert!(!last("ExecStartPre").contains("--as-run"), "the ports are taken");
    assert_eq!(last("RuntimeDirectoryPreserve"), "yes");
    // What is replaced is emptied first: systemd appends to these lists.
    for key in ["ExecStart", "ExecStartPre"] {
        let values: Vec<&str> = change
            .iter()
            .filter(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .collect();
        assert_eq!((values.len(), values[0]), (2, ""), "{key}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let unit = folder.path().join("portcullis@.service");
    // The program is not installed here.
    let here = |text: String| text.replace("/usr/local/bin/portcullis", "/bin/true");
    std::fs::write(&unit, here(file("deploy/portcullis.service"))).expect("written");
    let drop_in = folder.path().join("portcullis@.service.d");
    std::fs::create_dir(&drop_in).expect("a folder");
    std::fs::write(drop_in.join("takeover.conf"), here(file("deploy/takeover.conf")))
        .expect("written");
    let instance = folder.path().join("portcullis@a.service");
    let verify = Command::new("systemd-analyze").arg("verify").arg(&instance).output();
    let Ok(output) = verify else {
        eprintln!("no systemd-analyze: not tried");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("portcullis")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn the_service_manager_waits_longer_than_a_drain_takes() {
    let key = keys::find("deadlines", "drain");
    let default = key.expect("deadlines.drain").default;
    assert_ne!(default, REQUIRED);
    let drain = parse_duration(default).expect("a duration");
    let stop = parse_duration(&unit("TimeoutStopSec")[0]).expect("a duration");
    assert!(stop > drain + Duration::from_secs(10), "{stop:?} {drain:?}");
}

/// By systemd's own idea of its groups, where systemd is.
#[test]
fn the_units_filter_lets_through_what_a_run_does() {
    let Ok(output) = Command::new("systemd-analyze").arg("syscall-filter").output() else {
        eprintln!("no systemd-analyze: not tried");
        return;
    };
    let groups = String::from_utf8(output.stdout).expect("UTF-8");
    let mut allowed: Vec<String> = Vec::new();
    for line in unit("SystemCallFilter") {
        let (names, take) = match line.strip_prefix('~') {
            Some(names) => (names, true),
            None => (line.as_str(), false),
        };
        for name in names.split_whitespace() {
            let members = expand(&groups, name);
            assert!(!members.is_empty(), "systemd knows no {name}");
            allowed.retain(|call| !take || !members.contains(call));
            allowed.extend(members.into_iter().filter(|_| !take));
        }
    }
    for call in crate::profile::recorded() {
        assert!(allowed.contains(&call), "the unit refuses {call}");
    }
    for refused in ["mount", "ptrace", "bpf", "setuid", "init_module", "keyctl", "chown"] {
        assert!(!allowed.iter().any(|call| call == refused), "the unit allows {refused}");
    }
}

/// A call, or every call of a group and the groups within.
fn expand(groups: &str, name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let mut lines = groups.lines().skip_while(|line| *line != name).skip(1);
    let mut members = Vec::new();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let line = line.trim();
        if !line.starts_with('#') {
            members.extend(expand(groups, line));
        }
    }
    members
}

#[test]
fn the_kernel_settings_fit_the_gateway() {
    let settings = pairs("deploy/99-portcullis.conf");
    let value = |name: &str| {
        let found = settings.iter().find(|(key, _)| key == name);
        let (_, value) = found.unwrap_or_else(|| panic!("{name} is missing"));
        value.split_whitespace().map(|part| part.parse::<u64>().expect("a number")).collect()
    };
    let one = |name: &str| -> u64 { Vec::<u64>::from_iter::<Vec<u64>>(value(name))[0] };
    assert_eq!(one("kernel.io_uring_disabled"), 0);
    // What the workers ask listen(2) for.
    assert!(one("net.core.somaxconn") >= 4096);
    assert!(one("net.ipv4.tcp_max_syn_backlog") >= one("net.core.somaxconn"));
    let descriptors: u64 = unit("LimitNOFILE")[0].parse().expect("a number");
    assert!(one("fs.nr_open") >= descriptors);
    for name in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        let sizes: Vec<u64> = value(name);
        assert!(sizes.len() == 3 && sizes.is_sorted(), "{name} {sizes:?}");
    }
    let text = file("deploy/99-portcullis.conf");
    let mut reason = false;
    for line in text.lines() {
        match line {
            "" => reason = false,
            line if line.starts_with("# ") => reason = true,
            line => assert!(reason, "no reason above: {line}"),
        }
    }
}

#[test]
fn the_image_is_static_empty_and_nobodys() {
    let text = file("deploy/Dockerfile");
    let (build, image) = text.split_once("\nFROM scratch\n").expect("an empty base");
    assert!(build.contains("-C target-feature=+crt-static") && build.contains("--locked"));
    for line in [
        "COPY --from=build /image /",
        "USER 65532:65532",
        "STOPSIGNAL SIGTERM",
        "ENTRYPOINT [\"/portcullis\"]",
        "CMD [\"run\", \"--config\", \"/etc/portcullis/portcullis.toml\"]",
    ] {
        assert!(image.lines().any(|other| other == line), "{line}");
    }
    assert!(!image.lines().any(|line| line.starts_with("RUN ")), "there is nothing to run");
    let version = format!("rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    let base = build.lines().find_map(|line| line.strip_prefix("FROM ")).expect("a base");
    assert!(base >= version.as_str(), "{base} is older than {version}");
}
