//! One chat room per path: `cargo run --example chat -- 127.0.0.1:7000`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use portcullis::backend::{Backend, Message, SendError, Session, SessionSender};

/// The members of every room, each with its own number.
#[derive(Default)]
struct Rooms {
    members: HashMap<String, HashMap<u64, SessionSender>>,
    joined: u64,
}

impl Rooms {
    fn join(&mut self, room: &str, member: SessionSender) -> u64 {
        self.joined += 1;
        self.members.entry(room.to_owned()).or_default().insert(self.joined, member);
        self.joined
    }

    fn say(&self, room: &str, text: String) {
        let message = Message::from(text);
        for member in self.members.get(room).into_iter().flat_map(HashMap::values) {
            if member.try_send(&message) == Err(SendError::Full) {
                member.close(1013, "you read too slowly");
            }
        }
    }
}

async fn attend(mut session: Session, rooms: Arc<Mutex<Rooms>>) {
    let who = session.identity().subject.clone().unwrap_or_else(|| "anonymous".to_owned());
    let room = session.identity().path.split('?').next().unwrap_or_default().to_owned();
    let number = rooms.lock().unwrap().join(&room, session.sender());
    rooms.lock().unwrap().say(&room, format!("* {who} joined"));
    while let Some(message) = session.next().await {
        match message.as_text() {
            Some(text) => rooms.lock().unwrap().say(&room, format!("{who}: {text}")),
            None => session.close(1003, "text only"),
        }
    }
    let mut rooms = rooms.lock().unwrap();
    rooms.members.get_mut(&room).map(|members| members.remove(&number));
    rooms.say(&room, format!("* {who} left"));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let mut backend = Backend::bind(&address).await?;
    println!("chat backend on {}", backend.address());
    let rooms = Arc::new(Mutex::new(Rooms::default()));
    while let Some(session) = backend.accept().await {
        tokio::spawn(attend(session, rooms.clone()));
    }
    Ok(())
}
