//! What must hold, whatever goes wrong.
//!
//! The rules of descriptors, operations and buffers are checked by the fake kernel as they are
//! used; order, duplicates and losses by clients and backends as they read. This file keeps the
//! decision, and what must be known on both sides of the gateway: who presented a valid token.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::messages::Author;
use crate::base::random::Random;

/// Names one connection of a run; never reused.
pub type ConnId = usize;

/// What is known of one connection of one client.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// The connection.
    pub conn: ConnId,
    /// Whether the token that it sends or will send is valid.
    pub is_valid: bool,
    /// Whether a backend saw its OPEN.
    pub is_open: bool,
    /// The connection to a WebSocket server on which frames of it came.
    pub heard_on: Option<ConnId>,
    /// The client's address, where a PROXY header told it.
    pub remote: Option<SocketAddr>,
}

/// The first broken invariant, if there is one, and the facts that some of them need.
#[derive(Debug, Default)]
pub struct Check {
    failure: Option<String>,
    lives: BTreeMap<Author, Life>,
    /// Messages that backends took from clients.
    pub messages_up: u64,
    /// Echoes and pushes that clients took.
    pub messages_down: u64,
    /// Clients that exchanged everything and closed in order.
    pub completed: u64,
    /// Clients that were refused as they had to be.
    pub refused: u64,
    /// Connections that ended before all was exchanged.
    pub cut_short: u64,
    /// Of them, those of honest clients.
    pub cut_short_honest: u64,
    /// Sessions that backends saw.
    pub sessions: u64,
    /// By WebSocket server, how many handshakes met something that may make them fail and is not
    /// the gateway's or a client's doing.
    troubles: u64,
    /// How often each of them was said to rest.
    rests: u64,
}

impl Check {
    /// Notes a broken invariant; only the first is kept.
    pub fn fail(&mut self, message: String) {
        self.failure.get_or_insert(message);
    }

    /// The first broken invariant.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A client begins a connection.
    pub fn begin_life(&mut self, author: Author, conn: ConnId, is_valid: bool) {
        self.lives
            .insert(author, Life { conn, is_valid, is_open: false, heard_on: None, remote: None });
    }

    /// A connection tells its client's address in a PROXY header.
    pub fn proxied(&mut self, author: Author, remote: SocketAddr) {
        if let Some(life) = self.lives.get_mut(&author) {
            life.remote = Some(remote);
        }
    }

    /// What is known of one connection of one client.
    pub fn life(&self, author: Author) -> Option<&Life> {
        self.lives.get(&author)
    }

    /// One of the connections whose session a backend saw.
    pub fn any_open(&self, random: &mut Random) -> Option<Author> {
        let open: Vec<Author> =
            self.lives.iter().filter(|(_, life)| life.is_open).map(|(author, _)| *author).collect();
        open.get(random.below(open.len() as u64) as usize).copied()
    }

    /// Whose connection this is.
    pub fn author_of(&self, conn: ConnId) -> Option<Author> {
        self.lives.iter().find(|(_, life)| life.conn == conn).map(|(author, _)| *author)
    }

    /// A WebSocket server got a request for a client: its subject must be a connection that
    /// presents a valid token. The same may come to another server if the first did not answer.
    pub fn asked(&mut self, subject: &str, remote: Option<IpAddr>) -> Option<Author> {
        let author = Author::from_subject(subject);
        match author.and_then(|author| self.lives.get(&author)) {
            Some(life) if life.is_valid => {
                let claimed = life.remote.map(|remote| remote.ip());
                if claimed.is_some() && claimed != remote {
                    self.fail(format!("a request from {remote:?}, but the proxy said {claimed:?}"));
                }
            }
            _ => self.fail(format!("a request without a valid token: subject {subject:?}")),
        }
        author
    }

    /// A WebSocket server accepted a client.
    pub fn served(&mut self, author: Author) {
        self.sessions += 1;
        if let Some(life) = self.lives.get_mut(&author) {
            life.is_open = true;
        }
    }

    /// A WebSocket server read a frame of a client: it must be the only one that does.
    pub fn heard(&mut self, author: Author, conn: ConnId) {
        let Some(life) = self.lives.get_mut(&author) else { return };
        let first = *life.heard_on.get_or_insert(conn);
        if first != conn {
            self.fail(format!("frames of {author:?} on two connections: {first} and {conn}"));
        }
    }

    /// A handshake with a server may fail, or does.
    pub fn trouble(&mut self) {
        self.troubles += 1;
    }

    /// The worker has counted so many failures of servers: no client can have caused any.
    pub fn failed(&mut self, failures: u64) {
        let troubles = self.troubles;
        if failures > troubles {
            let why =
                format!("{failures} failures of servers are counted, {troubles} had a reason");
            self.fail(why);
        }
    }

    /// A server is said to rest, which takes `failures` in a row. All servers are counted together: a reload moves them among the
    /// numbers by which the kernel knows them.
    pub fn rests(&mut self, failures: u64) {
        self.rests += 1;
        let (rests, troubles) = (self.rests, self.troubles);
        if troubles < rests * failures {
            self.fail(format!("servers rest for the time {rests}, of {troubles} troubles"));
        }
    }

    /// A backend got an OPEN: its subject must be a connection that presents a valid token, and
    /// must not have had one before.
    pub fn open(&mut self, subject: Option<&str>, remote: Option<SocketAddr>) -> Option<Author> {
        self.sessions += 1;
        let author = subject.and_then(Author::from_subject);
        match author.and_then(|author| self.lives.get_mut(&author)) {
            Some(life) if life.is_valid && !life.is_open => {
                life.is_open = true;
                if life.remote.is_some() && life.remote != remote {
                    let claimed = life.remote;
                    self.fail(format!("OPEN from {remote:?}, but the proxy said {claimed:?}"));
                }
            }
            Some(life) if life.is_valid => self.fail(format!("second OPEN for {subject:?}")),
            _ => self.fail(format!("OPEN without a valid token: subject {subject:?}")),
        }
        author
    }
}
