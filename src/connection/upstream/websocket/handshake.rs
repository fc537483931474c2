//! The opening handshake with a WebSocket server (RFC 6455 §4.1), with the gateway as the client.

pub use super::answer::{Accepted, AnswerReader, Answered, Expected, Fault, Refused};
use super::request::{self, ServerRequest};

/// Room for most requests.
const REQUEST_BYTES: usize = 1024;

/// What a server is asked, and as much of its answer as has come. It has no `Debug`: the request
/// holds credentials.
pub struct Handshake {
    request: Vec<u8>,
    key: [u8; 24],
    /// The subprotocols that the request offers, entries with tokens included where they pass.
    offered: Vec<String>,
    head_max: usize,
    answer: AnswerReader,
}

impl Handshake {
    /// What a server is asked.
    pub fn new(asked: &ServerRequest<'_, '_, '_>) -> Self {
        let mut request = Vec::with_capacity(REQUEST_BYTES);
        asked.write(&mut request);
        Handshake {
            request,
            key: request::key(asked.nonce),
            offered: asked.subprotocols().map(str::to_owned).collect(),
            head_max: asked.settings.limits.upstream_head_max as usize,
            answer: AnswerReader::default(),
        }
    }

    /// The request's head.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The same for another server.
    pub fn again(mut self) -> Self {
        self.answer = AnswerReader::default();
        self
    }

    /// Takes what the server sent; returns how many bytes of `input` belong to its head, all of
    /// them while that is not whole.
    pub fn receive(&mut self, input: &[u8]) -> (usize, Answered) {
        let Handshake { key, offered, head_max, .. } = self;
        self.answer.receive(input, Expected { key, offered, head_max: *head_max })
    }
}
