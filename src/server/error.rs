//! Why the gateway did not start, or stopped, told to the person who started it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::journal::FileError;

/// Why the gateway did not start, or could not go on. The text names what failed, where, the
/// likely cause and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener's address could not be had.
    #[error("cannot listen on {address} ({what}): {source}\n{}", bind_advice(source, *address))]
    Bind {
        /// Which listener, as in "listener 0" or "admin".
        what: String,
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The admin socket could not be bound.
    #[error(
        "cannot listen on gateway.admin_socket {}: {source}\n  \
         likely cause: {}", path.display(), socket_advice(source)
    )]
    AdminSocket {
        /// The path asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The gateway that runs already does not make room.
    #[error(
        "cannot take over: {reason}\n  \
         likely cause: the running gateway is of an older version, ends already, or runs with \
         another configuration or as another user\n  \
         what to do: see docs/upgrading.md; without --takeover, stop it first"
    )]
    Takeover {
        /// What went wrong.
        reason: String,
    },
    /// The kernel, or whatever guards it, does not let the gateway use io_uring.
    #[error("io_uring cannot be used here: {reason}")]
    Ring {
        /// The probe's account: cause and remedy included.
        reason: String,
    },
    /// The limit on open files leaves no room for clients.
    #[error(
        "the limit on open files is {limit}, and this configuration needs {needed} at least\n  \
         likely cause: `ulimit -n`, LimitNOFILE of the unit, or the container's limit\n  \
         what to do: raise it to {needed} or more (best: one for each client and 256), or set \
         fewer gateway.workers"
    )]
    Descriptors {
        /// The hard limit of the process.
        limit: u64,
        /// The least that will do.
        needed: u64,
    },
    /// The control thread's own io_uring runtime could not be made.
    #[error(
        "the control thread cannot start its io_uring runtime: {source}\n  \
         likely cause: io_uring is switched off (sysctl kernel.io_uring_disabled), blocked by a \
         seccomp profile, or RLIMIT_MEMLOCK is too small\n  \
         what to do: see \"Limits\" in docs/operating.md"
    )]
    Runtime {
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error(
        "cannot start the thread {name}: {source}\n  \
         likely cause: the limit on tasks (TasksMax of the unit, or RLIMIT_NPROC) is reached\n  \
         what to do: raise it, or set fewer gateway.workers"
    )]
    Thread {
        /// The thread's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker did not come up.
    #[error("worker {index} did not start: {reason}")]
    Worker {
        /// The worker's number.
        index: u16,
        /// Why, for people.
        reason: String,
    },
    /// The close log could not be opened.
    #[error(
        "cannot open the close log {}: {source}\n  \
         likely cause: the directory does not exist, or this user may not write there\n  \
         what to do: create it for this user, or change gateway.close_log", path.display()
    )]
    CloseLog {
        /// The path asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The revocations of the last run cannot be had, or no others saved.
    #[error(
        "cannot use the file of revocations {}: {source}\n  \
         likely cause: {}\n  \
         what to do: {}", path.display(), revocations_advice(source).0,
         revocations_advice(source).1
    )]
    Revocations {
        /// The path asked for.
        path: PathBuf,
        /// What is wrong.
        source: FileError,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {source}")]
    Random {
        /// What the kernel said.
        source: io::Error,
    },
    /// The log filter cannot be read.
    #[error(
        "gateway.log.level: {reason}\n  what to do: use a level such as \"info\", or a filter \
             such as \"portcullis=debug\""
    )]
    LogFilter {
        /// What is wrong with it.
        reason: String,
    },
    /// Signal handlers could not be installed.
    #[error("cannot watch for signals: {source}")]
    Signals {
        /// What the kernel said.
        source: io::Error,
    },
    /// A part of `portcullis dev` could not be made.
    #[error("portcullis dev: {reason}")]
    Dev {
        /// Which part, and why.
        reason: String,
    },
    /// The control thread died: a bug of ours.
    #[error("the control thread panicked; the log above says where. This is a bug of the gateway")]
    ControlDied,
}

/// What to tell someone who could not bind.
fn bind_advice(error: &io::Error, address: SocketAddr) -> String {
    let port = address.port();
    let (cause, remedy) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            "another process (perhaps another gateway) listens there".to_owned(),
            format!("find it with `ss -ltnp 'sport = :{port}'` and stop it, or change the address"),
        ),
        io::ErrorKind::PermissionDenied if port < 1024 => (
            format!("ports below 1024 are reserved, and {port} is one"),
            "grant CAP_NET_BIND_SERVICE (the systemd unit does), or use a higher port".to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            "a security module or sandbox forbids it".to_owned(),
            "look into the audit log, or use another address".to_owned(),
        ),
        io::ErrorKind::AddrNotAvailable => (
            format!("no interface of this machine has the address {}", address.ip()),
            "use an address that `ip address` shows, or 0.0.0.0 for all of them".to_owned(),
        ),
        _ => (
            "unknown; the kernel's words are above".to_owned(),
            "check the address and the limits on open files".to_owned(),
        ),
    };
    format!("  likely cause: {cause}\n  what to do: {remedy}")
}

fn socket_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another gateway listens there, or the path is another file's\n  \
             what to do: stop it, or change the path"
        }
        _ => {
            "the directory does not exist, this user may not write there, or the path is over \
             107 bytes\n  what to do: create the directory for this user, or change the path"
        }
    }
}

/// The likely cause, and what to do. Starting all the same would let the revoked in again.
fn revocations_advice(error: &FileError) -> (&'static str, &'static str) {
    match error {
        FileError::Io(_) => (
            "the directory does not exist, or this user may not write there",
            "create it for this user, or change gateway.revocations_file",
        ),
        FileError::Unsafe(_) => (
            "another user could have changed it",
            "look at what it says; if that is right, make it a regular file of this user with \
             mode 0600",
        ),
        FileError::Damaged(_) => (
            "the file was edited, or the disk lost a part of it",
            "restore it from a backup; or, knowing that the tokens it revoked are let in again \
             until they expire, move it away",
        ),
        FileError::TooMany { .. } => {
            ("the limit was lowered", "raise limits.revocations_max; entries lapse by themselves")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_error_names_place_cause_and_mend() {
        let table = [
            (io::ErrorKind::AddrInUse, "127.0.0.1:8080", "listens there", "sport = :8080"),
            (io::ErrorKind::PermissionDenied, "0.0.0.0:443", "below 1024", "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::PermissionDenied, "0.0.0.0:8443", "security module", "audit log"),
            (io::ErrorKind::AddrNotAvailable, "192.0.2.1:80", "192.0.2.1", "ip address"),
        ];
        for (kind, address, cause, remedy) in table {
            let error = RunError::Bind {
                what: "listener 0".into(),
                address: address.parse().unwrap(),
                source: io::Error::from(kind),
            };
            let text = error.to_string();
            for part in [address, "listener 0", cause, remedy] {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        }
    }
}
