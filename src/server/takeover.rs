//! `run --takeover`: the gateway that runs already is found at its admin socket, asked to make
//! room, and told of revocations until its last client is gone.
//!
//! The newcomer listens beside the other one (SO_REUSEPORT) and has links to its backends before
//! it asks. The other one then saves its revocations for the last time, gives up the admin port,
//! moves its socket aside and drains. Whatever fails before that leaves it as it was.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::error::RunError;
use crate::linux::process::effective_user;
use crate::protocol::revocation::ScopedRevocation;
use crate::settings::Settings;

/// How long the other gateway may take to make room: it saves its revocations first.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it may take to answer a revocation.
const FORWARD_MAX: Duration = Duration::from_secs(5);
/// Largest answer.
const ANSWER_MAX: u64 = 64 * 1024;

/// A gateway that runs with the same admin socket.
pub struct Predecessor {
    socket: PathBuf,
}

impl Predecessor {
    /// The gateway at the settings' admin socket; `None` when none runs there.
    ///
    /// # Errors
    /// [`RunError::Takeover`] when there is no such setting, or the socket is another user's.
    pub fn find(settings: &Settings) -> Result<Option<Predecessor>, RunError> {
        let failed = |reason: String| RunError::Takeover { reason };
        let Some(socket) = settings.gateway.admin_socket.clone() else {
            let why = "gateway.admin_socket is not set, and the running gateway is asked there";
            return Err(failed(why.into()));
        };
        let shown = socket.display();
        match UnixStream::connect(&socket) {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                tracing::info!(socket = %shown, "no gateway to take over from: starting as usual");
                return Ok(None);
            }
            Err(error) => return Err(failed(format!("cannot ask at {shown}: {error}"))),
        }
        let owner = std::fs::symlink_metadata(&socket).map(|file| file.uid());
        match owner {
            Ok(owner) if owner == effective_user() => Ok(Some(Predecessor { socket })),
            Ok(owner) => Err(failed(format!(
                "the gateway at {shown} runs as user {owner}, and this one as {}",
                effective_user()
            ))),
            Err(error) => Err(failed(format!("cannot look at {shown}: {error}"))),
        }
    }

    /// Has it give up its admin port and drain. Blocks until it has. Where it can be asked
    /// afterwards.
    ///
    /// # Errors
    /// [`RunError::Takeover`]; then it goes on as before, unless the answer was lost.
    pub fn make_room(&self) -> Result<PathBuf, RunError> {
        let failed = |reason: String| RunError::Takeover { reason };
        let answer = self.ask().map_err(|error| {
            failed(format!("the gateway at {} does not answer: {error}", self.socket.display()))
        })?;
        match parse(&answer) {
            Some((200, body)) => {
                let answer: Option<Value> = serde_json::from_str(body).ok();
                let socket = answer.as_ref().and_then(|answer| answer["socket"].as_str());
                socket.map(PathBuf::from).ok_or_else(|| failed("its answer names no socket".into()))
            }
            Some((404, _)) => Err(failed("the running gateway is of a version without it".into())),
            Some((status, why)) => {
                let why = super::logs::escaped(why.trim_end());
                Err(failed(format!("the running gateway refuses ({status}): {why}")))
            }
            None => Err(failed("the running gateway gave no answer in HTTP".into())),
        }
    }

    fn ask(&self) -> io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&request("/-/takeover", ""))?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Sends revocations to a gateway that drains, one after the other, until it is gone. Within a
/// local tokio runtime only.
pub fn forward_to(socket: PathBuf) -> UnboundedSender<ScopedRevocation> {
    let (sender, receiver) = unbounded_channel();
    tokio::task::spawn_local(forward(socket, receiver));
    sender
}

async fn forward(socket: PathBuf, mut revocations: UnboundedReceiver<ScopedRevocation>) {
    while let Some(revocation) = revocations.recv().await {
        let sent = tokio::time::timeout(FORWARD_MAX, tell(&socket, &revocation)).await;
        match sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((200, _)) => {}
            Ok((status, why)) => {
                let why = super::logs::escaped(why.trim_end());
                tracing::error!(status, why, "the gateway that drains refuses a revocation");
            }
            // It has ended, and its clients with it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the gateway that drains is not told of a revocation");
            }
        }
    }
}

async fn tell(socket: &Path, revocation: &ScopedRevocation) -> io::Result<(u16, String)> {
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream.write_all(&request("/revocations", &body(revocation))).await?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
    let (status, body) = parse(&answer).ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// A revocation as the admin API takes it. Its times are whole seconds: what lapses a little
/// later, and takes a little more, is on the safe side.
fn body(scoped: &ScopedRevocation) -> String {
    let ScopedRevocation { revocation, backend } = scoped;
    let target = &revocation.target;
    let up = |millis: u64| millis.div_ceil(1000);
    let before = target.issued_before().map(|at| up(at.as_millis()));
    let mut body = json!({ "lapses": up(revocation.lapses.as_millis()) });
    for (name, value) in [
        ("subject", target.subject().map(Value::from)),
        ("token_id", target.token_id().map(Value::from)),
        ("issued_before", before.map(Value::from)),
        ("backend", backend.as_deref().map(Value::from)),
    ] {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body.to_string()
}

fn request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Status and body of an answer.
fn parse(answer: &str) -> Option<(u16, &str)> {
    let status = answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::UnixTime;
    use crate::protocol::revocation::{Revocation, Target};
    use crate::server::admin::revocations;

    #[test]
    fn a_revocation_arrives_as_the_admin_api_takes_it() {
        let now = UnixTime::from_seconds(1000);
        let before = Some(UnixTime::from_millis(900_500));
        for (target, expected) in [
            (Target::new(Some("a\"\n\u{1}"), None, None), None),
            (Target::new(Some("a"), None, before), Some(UnixTime::from_seconds(901))),
            (Target::new(None, Some("t"), None), None),
            (Target::new(None, None, before), Some(UnixTime::from_seconds(901))),
        ] {
            let target = target.unwrap();
            let sent = Revocation { target, lapses: UnixTime::from_millis(2_000_001) };
            let backend = expected.map(|_| "chat".into());
            let scoped = ScopedRevocation { revocation: sent.clone(), backend };
            let found = revocations::parse(body(&scoped).as_bytes(), now).unwrap();
            assert_eq!(found.backend, scoped.backend);
            let found = found.revocation;
            assert_eq!(found.lapses, UnixTime::from_seconds(2001));
            assert_eq!(found.target.subject(), sent.target.subject());
            assert_eq!(found.target.token_id(), sent.target.token_id());
            assert_eq!(found.target.issued_before(), expected);
        }
    }

    #[test]
    fn a_gateway_is_looked_for_at_the_admin_socket() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = super::super::testing::settings();
        let why = |settings: &Settings| Predecessor::find(settings).err().unwrap().to_string();
        assert!(why(&settings).contains("gateway.admin_socket is not set"), "{}", why(&settings));
        let path = folder.path().join("admin.sock");
        settings.gateway.admin_socket = Some(path.clone());
        assert!(Predecessor::find(&settings).unwrap().is_none(), "there is no file");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(Predecessor::find(&settings).unwrap().is_none(), "nobody listens");
        std::fs::remove_file(&path).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = Predecessor::find(&settings).unwrap().expect("it runs");
        drop(listener.accept().unwrap());
        for (answer, told) in [
            ("HTTP/1.1 404 Not Found\r\n\r\nno such path\n", "a version without it"),
            ("HTTP/1.1 409 Conflict\r\n\r\nit is \u{1b}[2J ending\n", "(409): it is \\u{1b}[2J"),
            ("HTTP/1.1 200 OK\r\n\r\n{}", "names no socket"),
            ("nonsense", "no answer in HTTP"),
        ] {
            let told_to = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut head = [0; 256];
                    let count = stream.read(&mut head).unwrap();
                    assert!(head[..count].starts_with(b"POST /-/takeover HTTP/1.1\r\n"));
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                found.make_room().err().unwrap().to_string()
            });
            assert!(told_to.contains(told), "{told_to}");
        }
    }
}
