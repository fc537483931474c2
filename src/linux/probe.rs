//! The start-up probe: makes a ring exactly as the workers will, and when that fails says why
//! and how to remedy it.

use std::fmt;
use std::io;

use io_uring::{Probe as Opcodes, opcode};

use super::buffers::ReceivePool;
use super::uring::{Permissions, Uring};

/// Operations that the gateway cannot do without.
const NEEDED: [(&str, u8); 8] = [
    ("accept", opcode::Accept::CODE),
    ("receive", opcode::Recv::CODE),
    ("poll", opcode::PollAdd::CODE),
    ("send", opcode::Send::CODE),
    ("connect", opcode::Connect::CODE),
    ("cancel", opcode::AsyncCancel::CODE),
    ("close", opcode::Close::CODE),
    ("read", opcode::Read::CODE),
];
/// The oldest kernel with deferred task work.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// What was being tried when the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// io_uring_setup(2).
    Setup,
    /// Asking for the operations that the kernel knows.
    Opcodes,
    /// Registering a pool of receive buffers.
    Buffers,
    /// Registering the table of direct descriptors.
    Files,
    /// Starting the ring, restricted to what the gateway does.
    Enable,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Setup => "creating an io_uring",
            Step::Opcodes => "asking io_uring for its operations",
            Step::Buffers => "registering receive buffers with io_uring",
            Step::Files => "registering a descriptor table with io_uring",
            Step::Enable => "starting the restricted io_uring",
        })
    }
}

/// Why io_uring cannot be used: what failed, the likely cause, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}\n  likely cause: {cause}\n  what to do: {remedy}")]
pub struct ProbeError {
    what: String,
    cause: String,
    remedy: String,
}

/// What is known about the system when the kernel refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What was being tried.
    pub step: Step,
    /// The kernel's answer; `None` when an operation is missing.
    pub errno: Option<i32>,
    /// `kernel.io_uring_disabled`, where there is one.
    pub disabled: Option<u8>,
    /// `kernel.io_uring_group`, when set.
    pub group: Option<u32>,
    /// Whether a seccomp filter is on this process.
    pub seccomp: bool,
    /// The kernel's release, as in `6.12.1-arm64`.
    pub release: String,
}

impl ProbeError {
    /// What failed, and the likely cause.
    pub fn finding(&self) -> String {
        format!("{}; likely cause: {}", self.what, self.cause)
    }

    /// What to do.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// Explains an error of the system by what can be read about it now.
    pub(super) fn from_system(step: Step, error: &io::Error) -> ProbeError {
        explain(&Facts::gather(step, error.raw_os_error()))
    }
}

impl Facts {
    fn gather(step: Step, errno: Option<i32>) -> Facts {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
        Facts {
            step,
            errno,
            disabled: read("/proc/sys/kernel/io_uring_disabled").trim().parse().ok(),
            group: read("/proc/sys/kernel/io_uring_group").trim().parse().ok(),
            seccomp: mode.is_some_and(|mode| mode.trim() == "2"),
            release: kernel_release(),
        }
    }

    fn kernel_is_old(&self) -> bool {
        version(&self.release).is_some_and(|version| version < KERNEL_MIN)
    }
}

/// Turns facts into advice; reads nothing.
pub fn explain(facts: &Facts) -> ProbeError {
    let what = match facts.errno {
        Some(errno) => {
            format!("{} failed: {}", facts.step, io::Error::from_raw_os_error(errno))
        }
        None => format!("{}: some are missing", facts.step),
    };
    let (cause, remedy) = diagnose(facts);
    ProbeError { what, cause, remedy }
}

fn diagnose(facts: &Facts) -> (String, String) {
    let errno = facts.errno.unwrap_or(libc::EINVAL);
    match errno {
        // The sysctl is looked at first: it is certain, the filter is a guess.
        libc::EPERM | libc::EACCES => sysctl(facts).unwrap_or_else(|| refused(facts)),
        libc::ENOSYS | libc::EINVAL if facts.kernel_is_old() => (
            format!("the kernel is {}, older than 6.1", facts.release),
            "run Linux 6.1 or later (6.12 or later is recommended)".into(),
        ),
        libc::ENOSYS if facts.seccomp => seccomp(),
        libc::ENOSYS => (
            "this kernel was built without io_uring (CONFIG_IO_URING), or a sandbox such as \
             gVisor stands in for it"
                .into(),
            "run on a kernel with io_uring; under gVisor use another runtime class".into(),
        ),
        libc::ENOMEM => (
            "locked memory is limited (RLIMIT_MEMLOCK), or the memory limit of the control \
             group is reached"
                .into(),
            "raise the limit: `LimitMEMLOCK=infinity` in the systemd unit, `--ulimit \
             memlock=-1` for docker run, or `ulimit -l unlimited`; else raise the memory limit"
                .into(),
        ),
        libc::EMFILE => (
            "the process has no descriptors left (RLIMIT_NOFILE)".into(),
            "raise the limit: `LimitNOFILE=1048576` in the systemd unit, `--ulimit \
             nofile=1048576:1048576` for docker run, or `ulimit -n 1048576`"
                .into(),
        ),
        libc::ENFILE => (
            "the system has no descriptors left (fs.file-max)".into(),
            "raise it: `sysctl -w fs.file-max=4194304`".into(),
        ),
        _ => (
            format!("the kernel, {}, lacks something that the gateway needs", facts.release),
            "run an unmodified Linux 6.1 or later (6.12 or later is recommended)".into(),
        ),
    }
}

fn sysctl(facts: &Facts) -> Option<(String, String)> {
    let enable = "`sysctl -w kernel.io_uring_disabled=0`, and a file in /etc/sysctl.d to keep it";
    match facts.disabled? {
        0 => None,
        1 => {
            let group = match facts.group {
                Some(group) => format!("add the gateway's user to group {group}"),
                None => "set kernel.io_uring_group to a group of the gateway's user".into(),
            };
            Some((
                "kernel.io_uring_disabled is 1: only processes with CAP_SYS_ADMIN or of the \
                 group kernel.io_uring_group may use io_uring"
                    .into(),
                format!("{group}; or {enable}"),
            ))
        }
        _ => Some((
            "kernel.io_uring_disabled is 2: io_uring is switched off for everybody".into(),
            enable.into(),
        )),
    }
}

fn refused(facts: &Facts) -> (String, String) {
    if facts.seccomp {
        return seccomp();
    }
    (
        "a security module (SELinux, AppArmor) forbids io_uring to this process".into(),
        "look for a denial in `journalctl -k` and allow io_uring in the policy of the gateway"
            .into(),
    )
}

fn seccomp() -> (String, String) {
    (
        "a seccomp filter blocks io_uring; the default profiles of Docker, containerd and \
         Kubernetes do"
            .into(),
        "use deploy/seccomp.json: `docker run --security-opt seccomp=deploy/seccomp.json`; in \
         Kubernetes copy it to the node's /var/lib/kubelet/seccomp and set \
         securityContext.seccompProfile to type Localhost with that file; under systemd allow \
         it with `SystemCallFilter=@io-event io_uring_setup io_uring_enter io_uring_register`"
            .into(),
    )
}

/// What the running kernel's io_uring can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The kernel's release.
    pub kernel: String,
    /// A registered ring descriptor (5.18).
    pub registered_ring: bool,
    /// A submission queue without index array (6.6).
    pub no_index_array: bool,
    /// Waiting for several completions within a time (6.12).
    pub min_wait: bool,
    /// The ring refuses operations that the gateway does not use.
    pub restrictions: bool,
    /// Direct descriptors.
    pub direct_descriptors: bool,
    /// Socket options on direct descriptors, for closing them with a reset (6.7).
    pub direct_reset: bool,
}

/// Makes a small ring with the flags that the workers use, on the calling thread, and looks at
/// what it can do.
///
/// # Errors
/// The first thing that the gateway needs and that does not work, with what to do about it.
pub fn probe() -> Result<Probe, ProbeError> {
    let failed = |step| move |error: io::Error| ProbeError::from_system(step, &error);
    let mut ring = Uring::new(64).map_err(failed(Step::Setup))?;
    let submitter = ring.inner().submitter();
    let mut opcodes = Opcodes::new();
    submitter.register_probe(&mut opcodes).map_err(failed(Step::Opcodes))?;
    let mut missing = NEEDED.iter().filter(|(_, code)| !opcodes.is_supported(*code));
    if missing.next().is_some() {
        return Err(explain(&Facts::gather(Step::Opcodes, None)));
    }
    ReceivePool::try_register(&submitter).map_err(failed(Step::Buffers))?;
    let direct = submitter.register_files_sparse(8).is_ok();
    let permissions = if direct { Permissions::Direct } else { Permissions::Plain };
    ring.enable(permissions).map_err(failed(Step::Enable))?;
    let parameters = ring.inner().params();
    let kernel = kernel_release();
    Ok(Probe {
        registered_ring: ring.is_registered(),
        no_index_array: ring.has_no_sqarray(),
        min_wait: parameters.is_feature_min_timeout(),
        restrictions: ring.is_restricted(),
        direct_descriptors: direct,
        direct_reset: direct && version(&kernel).is_some_and(|version| version >= (6, 7)),
        kernel,
    })
}

impl Probe {
    /// Each feature that the gateway can use, and whether it is there.
    pub fn features(&self) -> [(&'static str, bool); 6] {
        [
            ("registered ring descriptor", self.registered_ring),
            ("no index array", self.no_index_array),
            ("min-wait", self.min_wait),
            ("restricted to the operations in use", self.restrictions),
            ("direct descriptors", self.direct_descriptors),
            ("reset of direct descriptors", self.direct_reset),
        ]
    }
}

/// The running kernel's release, as in `6.12.1-arm64`.
pub fn kernel_release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Major and minor number of a kernel's release.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(errno: i32) -> Facts {
        Facts {
            step: Step::Setup,
            errno: Some(errno),
            disabled: Some(0),
            group: None,
            seccomp: false,
            release: "6.12.1".into(),
        }
    }

    #[test]
    fn each_refusal_names_its_cause_and_mend() {
        let on = |errno| facts(errno);
        for (facts, cause, remedy) in [
            (Facts { disabled: Some(2), ..on(libc::EPERM) }, "io_uring_disabled is 2", "sysctl -w"),
            (
                Facts { disabled: Some(2), seccomp: true, ..on(libc::EPERM) },
                "io_uring_disabled is 2",
                "kernel.io_uring_disabled=0",
            ),
            (
                Facts { disabled: Some(1), ..on(libc::EPERM) },
                "CAP_SYS_ADMIN",
                "set kernel.io_uring_group to a group",
            ),
            (
                Facts { disabled: Some(1), group: Some(991), ..on(libc::EPERM) },
                "io_uring_disabled is 1",
                "user to group 991",
            ),
            (Facts { seccomp: true, ..on(libc::EPERM) }, "seccomp filter", "--security-opt"),
            (Facts { seccomp: true, ..on(libc::EPERM) }, "Kubernetes", "/var/lib/kubelet/seccomp"),
            (Facts { seccomp: true, ..on(libc::ENOSYS) }, "seccomp filter", "deploy/seccomp.json"),
            (Facts { disabled: None, ..on(libc::EACCES) }, "SELinux", "journalctl -k"),
            (on(libc::ENOSYS), "CONFIG_IO_URING", "kernel with io_uring"),
            (on(libc::ENOMEM), "RLIMIT_MEMLOCK", "LimitMEMLOCK=infinity"),
            (on(libc::EMFILE), "RLIMIT_NOFILE", "LimitNOFILE=1048576"),
            (on(libc::ENFILE), "fs.file-max", "sysctl -w fs.file-max"),
            (
                Facts { release: "5.15.0-91-generic".into(), ..on(libc::EINVAL) },
                "5.15.0-91-generic, older than 6.1",
                "Linux 6.1 or later",
            ),
            (Facts { release: "4.19.0".into(), ..on(libc::ENOSYS) }, "older than 6.1", "6.12"),
            (
                Facts { step: Step::Opcodes, errno: None, ..on(0) },
                "6.12.1, lacks something",
                "unmodified Linux",
            ),
            (Facts { release: "?".into(), ..on(libc::EINVAL) }, "lacks", "6.1"),
        ] {
            let error = explain(&facts);
            assert!(error.cause.contains(cause), "{facts:?}: {error}");
            assert!(error.remedy.contains(remedy), "{facts:?}: {error}");
        }
    }

    #[test]
    fn the_whole_text_says_what_failed_first() {
        let error = explain(&Facts { disabled: Some(2), ..facts(libc::EPERM) });
        assert_eq!(
            error.to_string(),
            "creating an io_uring failed: Operation not permitted (os error 1)\n  likely cause: \
             kernel.io_uring_disabled is 2: io_uring is switched off for everybody\n  what to \
             do: `sysctl -w kernel.io_uring_disabled=0`, and a file in /etc/sysctl.d to keep it"
        );
    }

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [
            ("6.1.0-21-amd64", Some((6, 1))),
            ("5.15.153.1-microsoft-standard-WSL2", Some((5, 15))),
            ("10.0", Some((10, 0))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release:?}");
        }
    }

    #[test]
    fn this_kernel_has_what_the_gateway_needs() {
        let probe = probe().unwrap_or_else(|error| panic!("{error}"));
        assert!(version(&probe.kernel) >= Some(KERNEL_MIN), "{probe:?}");
        assert!(probe.features().iter().any(|(_, present)| *present), "{probe:?}");
    }
}
