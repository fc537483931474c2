//! Servers that the harness starts, waits for, and ends: echo servers, proxies, the gateway.

pub mod configs;
pub mod counter;
pub mod gateway;
pub mod peers;

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portcullis::base::secret::Secret;
use portcullis::protocol::jwt::{self, Algorithm, JwtKey};
use tempfile::TempDir;

use crate::measure::with_children;
use crate::{kernel, process};

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a server may take to end.
const END_MAX: Duration = Duration::from_secs(3);
/// Subjects that connections stand for, in turn.
const SUBJECTS: usize = 1000;

/// A running program that ends with this value.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process and those that it made.
    pub fn pids(&self) -> Vec<u32> {
        with_children(self.pid())
    }

    /// The errors that it wrote, or else its last lines; without the folder's name.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let folder = self.log.parent().map_or(String::new(), |path| format!("{}/", path.display()));
        let text = text.replace(&folder, "");
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        match lines.iter().find(|line| line.contains("error")) {
            Some(first) => (*first).to_owned(),
            None => lines[lines.len().saturating_sub(3)..].join(" | "),
        }
    }

    /// Waits until something listens at `address`.
    ///
    /// # Errors
    /// With the program's own words when it ended or did not listen in time.
    pub fn await_listening(&mut self, name: &str, address: SocketAddr) -> Result<(), String> {
        let end = Instant::now() + START_MAX;
        while TcpStream::connect(address).is_err() {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return Err(format!("{name} ended at its start: {}", self.said()));
            }
            if Instant::now() > end || kernel::interrupted() {
                return Err(format!("{name} does not listen on {address}: {}", self.said()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        process::terminate(self.child.id());
        let end = Instant::now() + END_MAX;
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What servers are made with: a folder, a certificate, a key for tokens, cores.
pub struct Workshop {
    folder: TempDir,
    /// The gateway's program.
    pub program: PathBuf,
    /// Core of the server under measurement; `None` leaves it all.
    pub server_core: Option<usize>,
    /// Core of the load, of backends and of what stands behind proxies.
    pub client_core: Option<usize>,
}

impl Workshop {
    /// Makes the folder and what is in it; it goes with the value.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(
        program: PathBuf,
        server_core: Option<usize>,
        client_core: Option<usize>,
    ) -> Result<Workshop, String> {
        let folder = TempDir::new().map_err(|error| format!("a temporary folder: {error}"))?;
        let workshop = Workshop { folder, program, server_core, client_core };
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| error.to_string())?;
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        workshop.write("certificate.pem", certificate.as_bytes())?;
        workshop.write("key.pem", key.as_bytes())?;
        workshop.write("bundle.pem", format!("{certificate}{key}").as_bytes())?;
        let secret: [u8; 32] = rand::random();
        // As text: one newline at the end of a secret's file is not part of it.
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        workshop.write("secret", secret.as_bytes())?;
        workshop.write("tokens", tokens(secret.as_bytes()).as_bytes())?;
        Ok(workshop)
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that nobody else may read.
    ///
    /// # Errors
    /// With the file's name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, String> {
        let path = self.path(name);
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// A folder of its own for a server.
    ///
    /// # Errors
    /// With the folder's name.
    pub fn subfolder(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.path(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Starts a program on a core, with its output in a file of the folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(
        &self,
        name: &str,
        mut command: Command,
        core: Option<usize>,
    ) -> Result<Server, String> {
        let log = self.path(&format!("{name}.log"));
        let file = File::create(&log).map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        process::prepare(&mut command, core);
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{name} cannot be started: {error}"))?;
        Ok(Server { child, log })
    }
}

/// A token for each subject, a line each, good for a day.
fn tokens(secret: &[u8]) -> String {
    let key =
        JwtKey { id: None, algorithm: Algorithm::HS256, secret: Secret::new(secret.to_vec()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (0..SUBJECTS)
        .map(|number| {
            let claims = format!(
                r#"{{"sub":"user-{number:06}","iat":{now},"exp":{},"jti":"bench-{number:06}"}}"#,
                now + 86_400
            );
            jwt::mint(&key, claims.as_bytes()) + "\n"
        })
        .collect()
}

/// An address that nobody listened on a moment ago.
///
/// # Errors
/// When the machine has no loopback port left.
pub fn free_address() -> Result<SocketAddr, String> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|error| format!("no free port on 127.0.0.1: {error}"))
}

/// The gateway that cargo built beside this program, with the same options.
pub fn built_gateway() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_portcullis"))
}

/// A program on PATH or where system programs are.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    let named = Path::new(name);
    if named.components().count() > 1 {
        return named.is_file().then(|| named.to_owned());
    }
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
