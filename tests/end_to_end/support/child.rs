//! The gateway as a program of its own.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Config, PATIENCE, admin_get, free_port, wait_until};

const RUN: &str = concat!(env!("CARGO_BIN_EXE_portcullis"), " run --config portcullis.toml");

/// `portcullis run` in a process. Dropped, it is killed.
pub struct Child {
    process: std::process::Child,
    output: Arc<Mutex<Vec<u8>>>,
    config: Config,
    folder: Arc<tempfile::TempDir>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Child {
    /// Starts with the configuration on free ports; `limits` is put before it as shell text,
    /// as in `ulimit -n 300;`.
    pub fn start(config: Config, limits: &str) -> Child {
        Child::start_program(config, limits, RUN)
    }

    /// The same with another program, which finds the configuration in its folder.
    pub fn start_program(config: Config, limits: &str, program: &str) -> Child {
        let (port, admin) = (free_port(), free_port());
        let config = config.ports(port, admin);
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let path = folder.path().join("portcullis.toml");
        std::fs::write(&path, config.text()).expect("written");
        let (process, output) = spawn(folder.path(), &format!("{limits} exec {program}"));
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (address, admin) = (local(port), local(admin));
        let child = Child { process, output, config, folder, address, admin };
        wait_until("the gateway is ready", || admin_get(child.admin, "/readyz").0 == 200);
        child
    }

    /// Starts another one with the same configuration, in the same folder; `more` is put behind
    /// its arguments.
    pub fn beside(&self, more: &str) -> Child {
        let (process, output) = spawn(self.folder.path(), &format!("exec {RUN} {more}"));
        let (config, folder) = (self.config.clone(), Arc::clone(&self.folder));
        Child { process, output, config, folder, address: self.address, admin: self.admin }
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("our child").is_none()
    }

    /// Kills it without a warning and starts it again, in the same folder and on the same ports.
    pub fn kill_and_restart(&mut self) {
        self.process.kill().expect("our child");
        self.process.wait().expect("our child");
        // The kernel takes down a dead process's rings in its own time, and their sockets with
        // them: until then the ports are taken, and a supervisor tries again.
        wait_until("the gateway is ready again", || {
            if self.process.try_wait().expect("our child").is_some() {
                (self.process, self.output) = spawn(self.folder.path(), &format!("exec {RUN}"));
            }
            self.get("/readyz").0 == 200
        });
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Everything that it wrote to its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("not poisoned")).into_owned()
    }

    /// The configuration on the chosen ports, to be changed and written back.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// Replaces the configuration file.
    pub fn rewrite(&self, config: &Config) {
        std::fs::write(self.folder.path().join("portcullis.toml"), config.text()).expect("written");
    }

    /// A path in the program's folder.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        admin_get(self.admin, path)
    }

    /// Sends a signal by name, as in `HUP`.
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("our child") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// The program, and what it writes.
fn spawn(folder: &Path, line: &str) -> (std::process::Child, Arc<Mutex<Vec<u8>>>) {
    let mut process = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let output = Arc::new(Mutex::new(Vec::new()));
    let mut stderr = process.stderr.take().expect("piped");
    let sink = Arc::clone(&output);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            sink.lock().expect("not poisoned").extend_from_slice(&buffer[..count]);
        }
    });
    (process, output)
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
