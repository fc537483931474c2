//! The backend of the demo: `/echo` sends everything back, `/chat` is one room. It runs on a
//! thread of its own behind a real link and knows of the gateway only what the link says.

use std::collections::HashMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::options::failure;
use crate::backend::{Backend, Message, Secret, SendError, Session, SessionSender, Stopper};
use crate::server::RunError;

/// A running backend; dropping it stops it.
pub(super) struct ChatBackend {
    address: String,
    stop: Option<(Stopper, tokio::runtime::Handle)>,
    thread: Option<JoinHandle<()>>,
}

impl ChatBackend {
    /// Listens on a free loopback port.
    pub(super) fn start(secret: &str) -> Result<ChatBackend, RunError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failure("the backend's runtime cannot be made", error))?;
        let secret = Secret::new(secret.as_bytes().to_vec());
        let bind = Backend::builder().secret(secret).bind("127.0.0.1:0");
        let backend = runtime.block_on(bind).map_err(|error| failure("the backend", error))?;
        let address = backend.address().to_owned();
        let stop = Some((backend.stopper(), runtime.handle().clone()));
        let thread = std::thread::Builder::new()
            .name("dev-backend".into())
            .spawn(move || runtime.block_on(serve(backend)))
            .map_err(|error| failure("the backend's thread cannot be started", error))?;
        Ok(ChatBackend { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for ChatBackend {
    fn drop(&mut self) {
        if let Some((stopper, runtime)) = self.stop.take() {
            let (done, is_done) = sync_channel(1);
            runtime.spawn(async move {
                stopper.shutdown(Duration::ZERO).await;
                let _ = done.send(());
            });
            let _ = is_done.recv_timeout(Duration::from_secs(2));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(mut backend: Backend) {
    let room = Arc::new(Mutex::new(Room::default()));
    while let Some(session) = backend.accept().await {
        if session.identity().path.contains("/chat") {
            tokio::spawn(chat(session, Arc::clone(&room)));
        } else {
            tokio::spawn(echo(session));
        }
    }
}

async fn echo(mut session: Session) {
    while let Some(message) = session.next().await {
        if let Some((code, reason)) = message.as_text().and_then(close_command) {
            session.close(code, reason);
        } else if session.send(message).await.is_err() {
            break;
        }
    }
}

/// Everyone who is in the chat.
#[derive(Default)]
struct Room {
    members: HashMap<u64, (String, SessionSender)>,
    joined: u64,
}

impl Room {
    fn join(&mut self, name: &str, sender: SessionSender) -> u64 {
        self.joined += 1;
        self.members.insert(self.joined, (name.to_owned(), sender));
        self.say(&format!("* {name} joined, {} here", self.members.len()));
        self.joined
    }

    fn leave(&mut self, number: u64) {
        if let Some((name, _)) = self.members.remove(&number) {
            self.say(&format!("* {name} left, {} here", self.members.len()));
        }
    }

    /// One who does not read must not hold up the others.
    fn say(&self, text: &str) {
        let message = Message::text(text);
        for (_, member) in self.members.values() {
            if member.try_send(&message) == Err(SendError::Full) {
                member.close(1013, "you read too slowly");
            }
        }
    }
}

async fn chat(mut session: Session, room: Arc<Mutex<Room>>) {
    let lock = || room.lock().unwrap_or_else(PoisonError::into_inner);
    let name = session.identity().subject.clone().unwrap_or_else(|| "anonymous".to_owned());
    let number = lock().join(&name, session.sender());
    while let Some(message) = session.next().await {
        match message.as_text() {
            Some(text) => match close_command(text) {
                Some((code, reason)) => session.close(code, reason),
                None => lock().say(&format!("{name}: {text}")),
            },
            None => session.close(1003, "the chat takes text only"),
        }
    }
    lock().leave(number);
}

/// `/close CODE REASON` makes the backend close: codes and reasons of applications are passed on
/// as they are.
fn close_command(text: &str) -> Option<(u16, &str)> {
    let (code, reason) = text.strip_prefix("/close ")?.split_once(' ')?;
    let code = code.parse().ok().filter(|code| *code == 1000 || (3000..5000).contains(code))?;
    Some((code, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_commands() {
        let table = [
            ("/close 4000 enough for today", Some((4000, "enough for today"))),
            ("/close 1000 bye", Some((1000, "bye"))),
            ("/close 3000 ", Some((3000, ""))),
            ("/close 4000", None),
            ("/close 1006 no", None),
            ("/close 5000 no", None),
            ("/close x y", None),
            ("say /close 4000 x", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(close_command(text), expected, "{text:?}");
        }
    }

    #[test]
    fn it_starts_and_stops() {
        let backend = ChatBackend::start(&"s".repeat(64)).unwrap_or_else(|error| panic!("{error}"));
        let address: std::net::SocketAddr = backend.address().parse().unwrap();
        assert!(std::net::TcpStream::connect(address).is_ok());
        drop(backend);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
