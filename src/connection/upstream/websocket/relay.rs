//! The gateway's end of one connection to a WebSocket server, once its 101 has come: the frames of
//! one client to it, and its own back.
//!
//! The gateway is the client here (RFC 6455 §5.1): what it sends is masked, what it receives is
//! not. A message is passed on in the pieces in which it came, each a frame of its own, so that a
//! close frame can follow any of them.

use std::ops::Range;

use crate::base::byte_queue::{BytePool, ByteQueue, PoolExhausted};
use crate::connection::session::Fragment;
use crate::protocol::mask::apply_mask;
use crate::protocol::websocket::{
    self, ControlPayload, DataKind, FrameError, FrameLimits, FrameReader, OpCode, Side,
};

/// Frames to a server, and from it.
#[derive(Debug)]
pub struct Relay {
    reader: FrameReader,
    /// Whole frames that wait to be sent.
    out: ByteQueue,
    /// A close frame was queued: nothing may follow it.
    closed: bool,
}

/// What came from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// All input is used up.
    NeedMore,
    /// A piece of a message, in `input[range]`.
    Data {
        /// Where the piece is.
        range: Range<usize>,
        /// Text or binary.
        kind: DataKind,
        /// The message begins with this piece.
        first: bool,
        /// The message ends with this piece.
        last: bool,
    },
    /// A ping or a pong.
    Control(OpCode, ControlPayload),
    /// The server closes, with this code, if it sent one, and reason. All that follows it is
    /// dropped.
    Close(Option<u16>, ControlPayload),
}

impl Default for Relay {
    fn default() -> Self {
        let reader = FrameReader::new(Side::Client);
        Relay { reader, out: ByteQueue::default(), closed: false }
    }
}

impl Relay {
    /// How many bytes of a message may be queued beside what waits, of at most `window`; `None`:
    /// not even an empty message.
    pub fn allowance(&self, window: usize) -> Option<usize> {
        window.checked_sub(self.out.len()).filter(|room| *room > 0)
    }

    /// Bytes that wait to be sent.
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Whether the gateway's close frame is queued, or was sent.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Queues the request's head, before any frame.
    ///
    /// # Errors
    /// The pool is used up: nothing was queued.
    pub fn request(&mut self, head: &[u8], pool: &mut BytePool) -> Result<(), PoolExhausted> {
        self.out.push(pool, head)
    }

    /// Queues a piece of a client's message as a frame. `mask` is random and `room` is reused.
    ///
    /// # Errors
    /// The pool is used up: nothing was queued, so that the message cannot go on.
    pub fn data(
        &mut self,
        fragment: &Fragment<'_>,
        mask: [u8; 4],
        pool: &mut BytePool,
        room: &mut Vec<u8>,
    ) -> Result<(), PoolExhausted> {
        let opcode = fragment.kind.opcode(fragment.first);
        self.frame(fragment.last, opcode, fragment.bytes, mask, pool, room)
    }

    /// Queues a ping or a pong.
    ///
    /// # Errors
    /// The pool is used up: nothing was queued.
    pub fn control(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        mask: [u8; 4],
        pool: &mut BytePool,
        room: &mut Vec<u8>,
    ) -> Result<(), PoolExhausted> {
        self.frame(true, opcode, payload, mask, pool, room)
    }

    /// Queues the close frame, once; without room for it the server sees the connection end.
    pub fn close(
        &mut self,
        code: Option<u16>,
        reason: &str,
        mask: [u8; 4],
        pool: &mut BytePool,
        room: &mut Vec<u8>,
    ) {
        let payload = code.map(|code| websocket::close_payload(code, reason)).unwrap_or_default();
        let _ = self.frame(true, OpCode::Close, payload.as_slice(), mask, pool, room);
        self.closed = true;
    }

    fn frame(
        &mut self,
        fin: bool,
        opcode: OpCode,
        payload: &[u8],
        mask: [u8; 4],
        pool: &mut BytePool,
        room: &mut Vec<u8>,
    ) -> Result<(), PoolExhausted> {
        if self.closed {
            return Ok(());
        }
        let header = websocket::write_header(fin, opcode, payload.len() as u64, Some(mask));
        room.clear();
        room.extend_from_slice(header.as_slice());
        room.extend_from_slice(payload);
        apply_mask(&mut room[header.as_slice().len()..], mask, 0);
        self.out.push(pool, room)
    }

    /// Takes what the server sent, up to and including the next event; returns how many bytes.
    /// Messages pass in pieces, so that `message_max` need bound none.
    ///
    /// # Errors
    /// The server broke RFC 6455, or a message is larger: all that follows is dropped.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        message_max: u32,
    ) -> Result<(usize, FromServer), FrameError> {
        let limits = FrameLimits { message_max, fragments_max: u32::MAX, text: true, binary: true };
        let (used, step) = self.reader.next(input, usize::MAX, &limits)?;
        let event = match step {
            websocket::Step::NeedMore => FromServer::NeedMore,
            websocket::Step::Blocked => unreachable!("the allowance has no end"),
            websocket::Step::Data { range, kind, first, last } => {
                FromServer::Data { range, kind, first, last }
            }
            websocket::Step::Ping(payload) => FromServer::Control(OpCode::Ping, payload),
            websocket::Step::Pong(payload) => FromServer::Control(OpCode::Pong, payload),
            websocket::Step::Close { code, reason } => FromServer::Close(code, reason),
        };
        Ok((used, event))
    }

    /// Moves output out until `into` is full or nothing waits; returns how many bytes.
    pub fn copy_output(&mut self, pool: &mut BytePool, into: &mut [u8]) -> usize {
        self.out.copy_out(pool, into)
    }

    /// Gives up what waits.
    pub fn drop_output(&mut self, pool: &mut BytePool) {
        self.out.clear(pool);
        self.closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];
    const FROM_GATEWAY: FrameLimits =
        FrameLimits { message_max: u32::MAX, fragments_max: u32::MAX, text: true, binary: true };

    fn queued(relay: &mut Relay, pool: &mut BytePool) -> Vec<u8> {
        let mut bytes = vec![0; relay.unsent()];
        assert_eq!(relay.copy_output(pool, &mut bytes), bytes.len());
        bytes
    }

    /// What a strict server reads of it.
    fn read(mut bytes: Vec<u8>) -> Vec<websocket::Step> {
        let mut reader = FrameReader::new(Side::Server);
        let (mut steps, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let (used, step) = reader.next(&mut bytes[at..], usize::MAX, &FROM_GATEWAY).unwrap();
            steps.push(step);
            at += used;
        }
        steps
    }

    #[test]
    fn what_goes_to_a_server_is_masked_and_nothing_follows_the_close() {
        let (mut pool, mut room, mut relay) = (BytePool::new(8), Vec::new(), Relay::default());
        let piece = |first, last, bytes| Fragment { kind: DataKind::Text, first, last, bytes };
        relay.data(&piece(true, false, b"hel"), MASK, &mut pool, &mut room).unwrap();
        relay.control(OpCode::Ping, b"x", MASK, &mut pool, &mut room).unwrap();
        relay.data(&piece(false, true, b"lo"), MASK, &mut pool, &mut room).unwrap();
        relay.close(Some(4000), "why", MASK, &mut pool, &mut room);
        relay.data(&piece(true, true, b"late"), MASK, &mut pool, &mut room).unwrap();
        let bytes = queued(&mut relay, &mut pool);
        assert_eq!(&bytes[..9], [0x01, 0x83, 1, 2, 3, 4, b'h' ^ 1, b'e' ^ 2, b'l' ^ 3]);
        let steps = read(bytes);
        assert!(
            matches!(
                &steps[..],
                [
                    websocket::Step::Data { first: true, last: false, .. },
                    websocket::Step::Ping(_),
                    websocket::Step::Data { first: false, last: true, .. },
                    websocket::Step::Close { code: Some(4000), reason },
                ] if reason.as_text() == "why"
            ),
            "{steps:?}"
        );
    }

    #[test]
    fn a_close_without_a_code_stays_one() {
        let (mut pool, mut room, mut relay) = (BytePool::new(8), Vec::new(), Relay::default());
        relay.close(None, "", MASK, &mut pool, &mut room);
        assert_eq!(queued(&mut relay, &mut pool), [0x88, 0x80, 1, 2, 3, 4]);
        let (used, event) = Relay::default().receive(&mut [0x88, 0x00], u32::MAX).unwrap();
        assert_eq!((used, event), (2, FromServer::Close(None, ControlPayload::default())));
    }

    #[test]
    fn a_server_that_masks_breaks_the_protocol() {
        let mut relay = Relay::default();
        assert!(relay.receive(&mut [0x81, 0x81, 1, 2, 3, 4, 5], u32::MAX).is_err());
        assert_eq!(relay.receive(&mut [0x81, 0x00], u32::MAX), Ok((2, FromServer::NeedMore)));
    }

    #[test]
    fn the_window_bounds_what_waits_and_an_exhausted_pool_takes_no_part_of_a_frame() {
        let (mut pool, mut room, mut relay) = (BytePool::new(1), Vec::new(), Relay::default());
        let bytes = [7; 1018];
        let piece = Fragment { kind: DataKind::Binary, first: true, last: true, bytes: &bytes };
        assert_eq!(relay.allowance(100), Some(100));
        assert_eq!(relay.data(&piece, MASK, &mut pool, &mut room), Err(PoolExhausted));
        assert_eq!(relay.unsent(), 0);
        let piece = Fragment { bytes: &bytes[..90], ..piece };
        relay.data(&piece, MASK, &mut pool, &mut room).unwrap();
        assert_eq!(
            (relay.unsent(), relay.allowance(100), relay.allowance(96)),
            (96, Some(4), None)
        );
        relay.drop_output(&mut pool);
        assert_eq!((relay.unsent(), pool.in_use_bytes()), (0, 0));
    }

    #[test]
    fn a_bound_of_the_servers_messages_holds_over_all_frames_of_one() {
        let mut relay = Relay::default();
        assert!(matches!(relay.receive(&mut [0x01, 2, 7, 7], 3), Ok((4, FromServer::Data { .. }))));
        assert_eq!(relay.receive(&mut [0x80, 2], 3), Err(FrameError::TooLarge));
    }
}
