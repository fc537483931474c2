//! A gateway in this process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use portcullis::server::files::load_file;
use portcullis::server::{GatewayHandle, StartOptions, start};
use portcullis::settings::Settings;

use super::{Config, PATIENCE, wait_until};

/// A running gateway; dropped, it stops.
pub struct Gateway {
    pub handle: GatewayHandle,
    folder: tempfile::TempDir,
}

/// Loads a configuration as it lies in `path`.
fn settings(path: &Path) -> Settings {
    match load_file(path) {
        Ok(loaded) => loaded.settings,
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            panic!("the test's configuration is wrong:\n{}", lines.join("\n"))
        }
    }
}

impl Gateway {
    /// Starts on ports that the kernel chooses, and waits until every link that can be is up.
    pub fn start(config: &Config) -> Gateway {
        let gateway = Gateway::start_alone(config);
        gateway.wait_ready(usize::from(config.workers));
        gateway
    }

    /// Starts on ports that the kernel chooses, whatever the backends do.
    pub fn start_alone(config: &Config) -> Gateway {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("portcullis.toml");
        std::fs::write(&path, config.text()).expect("written");
        let mut settings = settings(&path);
        for listener in &mut settings.listeners {
            listener.address.set_port(0);
        }
        settings.gateway.admin = Some("127.0.0.1:0".parse().expect("an address"));
        settings.gateway.admin_socket = Some(folder.path().join("admin.sock"));
        let handle = start(settings, StartOptions::default()).expect("the gateway starts");
        Gateway { handle, folder }
    }

    /// Where changes are asked for.
    pub fn admin_socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    /// Starts from a file that `reload` reads again, on the ports that it names.
    pub fn start_from(config: &Config, folder: tempfile::TempDir) -> Gateway {
        let path = folder.path().join("portcullis.toml");
        std::fs::write(&path, config.text()).expect("written");
        let settings = settings(&path);
        let options = StartOptions { config_path: Some(path), ..StartOptions::default() };
        let handle = start(settings, options).expect("the gateway starts");
        Gateway { handle, folder }
    }

    /// Replaces the file and reloads it.
    pub fn reload(&self, config: &Config) -> Result<Vec<String>, Vec<String>> {
        std::fs::write(self.folder.path().join("portcullis.toml"), config.text()).expect("written");
        self.handle.reload()
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.handle.listeners()[0]
    }

    /// Waits until this many links are ready.
    pub fn wait_ready(&self, links: usize) {
        self.wait_metric("portcullis_links{state=\"ready\"}", |ready| ready >= links as u64);
    }

    /// Status and body of an admin endpoint.
    pub fn get(&self, path: &str) -> (u16, String) {
        admin_get(self.handle.admin().expect("there is an admin listener"), path)
    }

    /// The value of a series on `/metrics`, at most a second old.
    pub fn metric(&self, series: &str) -> u64 {
        series_value(&self.get("/metrics").1, series)
    }

    /// Waits until a series has the value it should.
    pub fn wait_metric(&self, series: &str, is: impl Fn(u64) -> bool) {
        let mut last = 0;
        wait_until(series, || {
            last = self.metric(series);
            is(last)
        });
    }

    /// How many connections ended for a cause.
    pub fn wait_closes(&self, cause: &str, count: u64) {
        let series = format!("portcullis_closes_total{{cause=\"{cause}\"}}");
        self.wait_metric(&series, |value| value == count);
    }
}

/// Status and body of an admin endpoint.
pub fn admin_get(admin: SocketAddr, path: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(admin) else { return (0, String::new()) };
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut answer = String::new();
    let asked = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    if asked.is_err() || stream.read_to_string(&mut answer).is_err() {
        return (0, String::new());
    }
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// The value of one series in an exposition, fractions rounded up; 0 when it is not there.
pub fn series_value(page: &str, series: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse::<f64>().ok()).map_or(0, |value| value.ceil() as u64)
}
