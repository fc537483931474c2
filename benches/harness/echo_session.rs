//! One connection of the echo servers, without its socket: the upgrade, then frames answered
//! as they come. The engines of [`crate::echo_server`] differ only in how they move the bytes.

use crate::wire::{self, FrameReader};

/// Longest request head that is read.
const HEAD_MAX: usize = 16 * 1024;

/// A request for this path with a number behind it gets no echo: messages are swallowed, and each
/// batch of so many is answered with their number up to then.
const COUNT_PATH: &str = "/count/";

/// One client's session.
#[derive(Default)]
pub struct EchoSession {
    upgraded: bool,
    /// Nothing more is read; the connection ends once `out` is sent.
    pub ending: bool,
    head: Vec<u8>,
    control: Vec<u8>,
    reader: FrameReader,
    /// Messages of a batch; 0: all are echoed.
    batch: u64,
    messages: u64,
    /// What must be sent.
    pub out: Vec<u8>,
}

impl EchoSession {
    /// Takes bytes from the socket; what they ask for is in `out` afterwards.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        if !self.upgraded {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = wire::head_end(&self.head) else {
                self.ending = self.head.len() > HEAD_MAX;
                return;
            };
            bytes = &bytes[end - before..];
            let head = std::mem::take(&mut self.head);
            let Some(key) = websocket_key(&head[..end]) else {
                self.out
                    .extend_from_slice(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
                self.ending = true;
                return;
            };
            let accept = wire::accept_key(key);
            self.out.extend_from_slice(
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                )
                .as_bytes(),
            );
            self.upgraded = true;
            self.batch = batch_of(&head[..end]);
        }
        while !self.ending {
            let Some(piece) = self.reader.next(&mut bytes) else { return };
            if piece.opcode >= wire::CLOSE {
                let start = self.control.len();
                self.control.extend_from_slice(piece.bytes);
                wire::unmask(&mut self.control[start..], piece.mask, 0);
                self.ending = piece.length > 125;
                if piece.ends {
                    self.answer_control(piece.opcode);
                }
                continue;
            }
            if self.batch > 0 {
                if piece.fin && piece.ends {
                    self.count();
                }
                continue;
            }
            if piece.begins {
                let at = self.out.len();
                wire::encode_header(&mut self.out, piece.opcode, piece.length as usize, None);
                self.out[at] = piece.opcode | if piece.fin { 0x80 } else { 0 };
            }
            let start = self.out.len();
            self.out.extend_from_slice(piece.bytes);
            wire::unmask(&mut self.out[start..], piece.mask, 0);
        }
    }

    fn count(&mut self) {
        self.messages += 1;
        if self.messages.is_multiple_of(self.batch) {
            wire::encode_header(&mut self.out, wire::BINARY, 8, None);
            self.out.extend_from_slice(&self.messages.to_be_bytes());
        }
    }

    fn answer_control(&mut self, opcode: u8) {
        let payload = std::mem::take(&mut self.control);
        let answer = match opcode {
            wire::PING => wire::PONG,
            wire::CLOSE => {
                self.ending = true;
                wire::CLOSE
            }
            _ => return,
        };
        wire::encode_header(&mut self.out, answer, payload.len(), None);
        self.out.extend_from_slice(&payload);
    }
}

fn websocket_key(head: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(head).ok()?;
    text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })
}

/// The number behind [`COUNT_PATH`], 0 for other paths.
fn batch_of(head: &[u8]) -> u64 {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let path = line.split(' ').nth(1).unwrap_or_default();
    path.strip_prefix(COUNT_PATH).and_then(|number| number.parse().ok()).unwrap_or(0)
}
