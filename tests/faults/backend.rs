//! Backends in processes of their own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{Backend, Choices, Event, wait_until};

/// A backend that can be killed, stopped and started again on its address.
pub struct Process {
    process: std::process::Child,
    program: Vec<String>,
    said: Arc<Mutex<Vec<String>>>,
    pub address: String,
}

/// The backend's side, until it is killed: everything that it sees is a line.
pub fn serve(address: &str) -> ! {
    let backend = Backend::start_at(address, Choices { decides: true, ..Choices::default() });
    println!("listening");
    loop {
        for event in backend.seen() {
            match event {
                Event::Open(identity) => println!("open {}", identity.path),
                Event::Ended(ended) => {
                    println!("ended {:?} {} {}", ended.by, ended.cause, ended.code)
                }
                Event::Asked(path, _) => println!("asked {path}"),
                Event::Message(_) => println!("message"),
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

impl Process {
    /// The backend of the end-to-end tests, which decides on clients and obeys texts.
    pub fn start(address: &str) -> Process {
        Process::start_behind(&[], address)
    }

    /// The same, started by another command.
    pub fn start_behind(command: &[&str], address: &str) -> Process {
        let this = std::env::current_exe().expect("this program");
        let this = this.to_str().expect("a name in UTF-8");
        Process::spawn(command.iter().copied().chain([this, "backend"]), address)
    }

    /// `portcullis echo-backend`.
    pub fn echo(address: &str) -> Process {
        let portcullis = env!("CARGO_BIN_EXE_portcullis");
        Process::spawn([portcullis, "echo-backend", "--listen"].into_iter(), address)
    }

    fn spawn<'a>(program: impl Iterator<Item = &'a str>, address: &'a str) -> Process {
        let program: Vec<String> = program.chain([address]).map(str::to_owned).collect();
        let (process, said) = run(&program);
        Process { process, program, said, address: address.to_owned() }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(status.success(), "kill -s {name} {pid}");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.process.kill().expect("our child");
        self.process.wait().expect("our child");
    }

    /// Starts again what was killed.
    pub fn restart(&mut self) {
        (self.process, self.said) = run(&self.program);
    }

    /// How many lines begin so.
    pub fn count(&self, what: &str) -> usize {
        let said = self.said.lock().expect("not poisoned");
        said.iter().filter(|line| line.starts_with(what)).count()
    }

    /// Waits until so many lines begin so.
    pub fn wait_count(&self, what: &str, count: usize) {
        wait_until(&format!("the backend saw {count} of {what}"), || self.count(what) >= count);
        assert_eq!(self.count(what), count, "{what}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &[String]) -> (std::process::Child, Arc<Mutex<Vec<String>>>) {
    let mut process = Command::new(&program[0])
        .args(&program[1..])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the backend starts");
    let said = Arc::new(Mutex::new(Vec::new()));
    let (sink, stdout) = (Arc::clone(&said), process.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            sink.lock().expect("not poisoned").push(line);
        }
    });
    (process, said)
}
