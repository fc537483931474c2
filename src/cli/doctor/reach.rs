//! Whether names resolve and backends answer, each within a deadline.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use portcullis::ring::EndpointAddress;
use portcullis::settings::{AuthKind, Settings};

use super::row::Row;

/// How long a connection attempt may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long the system's resolver may take.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// Attempts at one time.
const CONCURRENT: usize = 32;

/// Something to connect to.
#[derive(Clone, Debug)]
enum Target {
    Address(SocketAddr),
    Unix(std::path::PathBuf),
    /// A name that has to be looked up first.
    Name(String, u16),
}

/// A row for every endpoint of a backend, and for every HTTP endpoint that decides on tokens.
pub fn rows(settings: &Settings) -> Vec<Row> {
    let targets = targets(settings);
    let mut rows = Vec::with_capacity(targets.len());
    for some in targets.chunks(CONCURRENT) {
        std::thread::scope(|scope| {
            let tries: Vec<_> = some
                .iter()
                .map(|(check, what, target)| scope.spawn(move || attempt(check, what, target)))
                .collect();
            rows.extend(tries.into_iter().map(|tried| match tried.join() {
                Ok(row) => row,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
        });
    }
    rows
}

fn targets(settings: &Settings) -> Vec<(&'static str, String, Target)> {
    let mut targets = Vec::new();
    for backend in &settings.backends {
        for endpoint in &backend.endpoints {
            let target = match endpoint {
                EndpointAddress::Tcp(address) => Target::Address(*address),
                EndpointAddress::Unix(path) => Target::Unix(path.clone()),
            };
            targets.push(("backend", format!("{:?} {endpoint}", backend.name), target));
        }
    }
    for auth in &settings.auths {
        if let AuthKind::Http(http) = &auth.kind {
            let host = http.endpoint.host().unwrap_or_default();
            let default = if http.endpoint.scheme_str() == Some("https") { 443 } else { 80 };
            let port = http.endpoint.port_u16().unwrap_or(default);
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let target = match bare.parse() {
                Ok(ip) => Target::Address(SocketAddr::new(ip, port)),
                Err(_) => Target::Name(host.to_owned(), port),
            };
            targets.push(("auth", format!("{:?} {host}:{port}", auth.name), target));
        }
    }
    targets
}

fn attempt(check: &'static str, what: &str, target: &Target) -> Row {
    let connected = match target {
        Target::Address(address) => connect(*address),
        Target::Unix(path) => connect_unix(path),
        Target::Name(name, port) => match resolve(name, *port) {
            Ok(addresses) => connect_any(&addresses),
            Err(reason) => {
                let finding = format!("{what}: {name} does not resolve: {reason}");
                let remedy = "check the name, and /etc/resolv.conf or the cluster's DNS";
                return Row::fail("name", finding, remedy);
            }
        },
    };
    match connected {
        Ok(()) => Row::ok(check, format!("{what} accepts connections")),
        Err(error) => {
            let remedy = "start it, or check its address, and the firewalls and network policies \
                          on the way";
            Row::fail(check, format!("{what} cannot be reached: {error}"), remedy)
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<()> {
    TcpStream::connect_timeout(&address, CONNECT_MAX).map(drop)
}

/// One address of a name is enough; the error is the last one's.
fn connect_any(addresses: &[SocketAddr]) -> std::io::Result<()> {
    let mut outcome = Err(std::io::ErrorKind::AddrNotAvailable.into());
    for address in addresses {
        outcome = connect(*address);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// A connection over a unix socket is made or refused immediately, unless the backlog is full;
/// then a thread waits.
fn connect_unix(path: &Path) -> std::io::Result<()> {
    let path = path.to_owned();
    within(CONNECT_MAX, move || UnixStream::connect(path).map(drop))
        .unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()))
}

/// The system's resolver has no deadline, so that a thread is left behind if it hangs.
fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let name = name.to_owned();
    let found = within(RESOLVE_MAX, move || (name.as_str(), port).to_socket_addrs());
    match found {
        None => Err(format!("no answer in {} s", RESOLVE_MAX.as_secs())),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(addresses)) => match addresses.collect::<Vec<_>>() {
            addresses if addresses.is_empty() => Err("it has no address".into()),
            addresses => Ok(addresses),
        },
    }
}

/// What `work` returns, if it does so within `limit`.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = channel();
    std::thread::spawn(move || done.send(work()));
    result.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::super::row::Status;
    use super::*;

    #[test]
    fn what_listens_and_what_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        for (target, status) in [
            (Target::Address(here), Status::Ok),
            (Target::Address(closed), Status::Fail),
            (Target::Unix(path.clone()), Status::Ok),
            (Target::Unix(folder.path().join("none")), Status::Fail),
            (Target::Name("localhost".into(), here.port()), Status::Ok),
            (Target::Name("no-such-host.invalid".into(), 80), Status::Fail),
        ] {
            let row = attempt("backend", "b", &target);
            assert_eq!(row.status, status, "{target:?}: {row:?}");
            assert_eq!(row.remedy.is_empty(), status == Status::Ok, "{row:?}");
        }
        drop(unix);
    }

    #[test]
    fn what_hangs_is_left_behind() {
        let begun = Instant::now();
        let slow = within(Duration::from_millis(20), || std::thread::sleep(CONNECT_MAX));
        assert_eq!(slow, None);
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(within(CONNECT_MAX, || 7), Some(7));
    }
}
