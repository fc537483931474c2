//! How the commands that ask a running gateway reach it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use portcullis::base::secret::Secret;

use super::common::{ConfigFile, failed, load};

/// How long the gateway may take: a reload has 30 s.
const PATIENCE: Duration = Duration::from_secs(35);

/// Which gateway is asked.
#[derive(Args)]
pub struct Running {
    /// Its gateway.admin_socket is asked, or gateway.admin where there is none.
    #[command(flatten)]
    config: ConfigFile,
    /// The admin listener to ask instead of the configuration's, as in http://127.0.0.1:9464.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File with the token of that listener.
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
}

/// The way to a gateway.
pub struct AdminClient {
    place: Place,
    token: Option<Secret>,
}

enum Place {
    Socket(PathBuf),
    Address(SocketAddr),
}

/// Status and body.
pub type Answer = (u16, String);

impl Running {
    /// The way there.
    ///
    /// # Errors
    /// The exit code, when the reason is on stderr.
    pub fn client(&self) -> Result<AdminClient, ExitCode> {
        let Some(url) = self.url.as_deref() else {
            let gateway = load(self.config.path())?.settings.gateway;
            return match (gateway.admin_socket, gateway.admin) {
                (Some(path), _) => Ok(AdminClient { place: Place::Socket(path), token: None }),
                (None, Some(address)) => {
                    let place = Place::Address(reachable(address));
                    Ok(AdminClient { place, token: gateway.admin_token })
                }
                (None, None) => Err(failed(
                    "the gateway cannot be asked: set gateway.admin_socket, or gateway.admin to \
                     an address",
                )),
            };
        };
        let address = resolve(url).map_err(|why| failed(format_args!("--url {url:?}: {why}")))?;
        let token = match &self.token_file {
            None => None,
            Some(path) => match std::fs::read(path) {
                Ok(bytes) => Some(Secret::new(bytes.trim_ascii_end().to_vec())),
                Err(error) => {
                    let path = path.display();
                    return Err(failed(format_args!("the token file {path}: {error}")));
                }
            },
        };
        Ok(AdminClient { place: Place::Address(address), token })
    }

    /// One exchange, told to the person who asked: the body on stdout, or why not on stderr.
    pub fn ask(&self, line: &str, body: &str) -> ExitCode {
        match self.client() {
            Ok(client) => client.ask(line, body).map_or_else(|code| code, tell),
            Err(code) => code,
        }
    }
}

impl AdminClient {
    /// One exchange.
    ///
    /// # Errors
    /// The exit code, when the reason is on stderr.
    pub fn ask(&self, line: &str, body: &str) -> Result<Answer, ExitCode> {
        self.exchange(line, body).map_err(|error| {
            let place = match &self.place {
                Place::Socket(path) => path.display().to_string(),
                Place::Address(address) => address.to_string(),
            };
            failed(format_args!(
                "cannot ask the gateway at {place}: {error}\n  \
                 likely cause: it does not run with this configuration, or the socket is another \
                 user's\n  what to do: start it, or ask as its user or root"
            ))
        })
    }

    fn exchange(&self, line: &str, body: &str) -> io::Result<Answer> {
        match &self.place {
            Place::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                self.exchange_on(stream, "localhost", line, body)
            }
            Place::Address(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                self.exchange_on(stream, &address.to_string(), line, body)
            }
        }
    }

    fn exchange_on(
        &self,
        mut stream: impl Read + Write,
        host: &str,
        line: &str,
        body: &str,
    ) -> io::Result<Answer> {
        let mut request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
        if let Some(token) = &self.token {
            request.extend_from_slice(b"Authorization: Bearer ");
            request.extend_from_slice(token.expose());
            request.extend_from_slice(b"\r\n");
        }
        let length = format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        request.extend_from_slice(length.as_bytes());
        request.extend_from_slice(body.as_bytes());
        stream.write_all(&request)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        match (status, answer.split_once("\r\n\r\n")) {
            (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
            _ => Err(io::Error::other("that is no answer of a gateway's")),
        }
    }
}

/// Prints an answer.
pub fn tell((status, body): Answer) -> ExitCode {
    let body = body.trim_end();
    if status == 200 {
        println!("{body}");
        return ExitCode::SUCCESS;
    }
    failed(format_args!("the gateway refuses ({status}): {}", body.escape_debug()))
}

/// A listener on every address is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn resolve(url: &str) -> Result<SocketAddr, String> {
    let rest = url.strip_prefix("http://").ok_or("write http://HOST:PORT")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let mut found = authority.to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "that name has no address".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_addresses() {
        for (url, address) in [
            ("http://127.0.0.1:9464", Some("127.0.0.1:9464")),
            ("http://127.0.0.1:9464/", Some("127.0.0.1:9464")),
            ("http://[::1]:9464", Some("[::1]:9464")),
            ("https://127.0.0.1:9464", None),
            ("127.0.0.1:9464", None),
            ("http://127.0.0.1", None),
            ("http://127.0.0.1:9464/metrics", None),
        ] {
            let found = resolve(url).ok().map(|address| address.to_string());
            assert_eq!(found.as_deref(), address, "{url}");
        }
    }
}
