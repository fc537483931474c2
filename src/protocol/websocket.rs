//! WebSocket frames (RFC 6455 §5), both directions.

mod error;
mod frame;
mod reader;

pub use error::FrameError;
pub use frame::{
    CONTROL_MAX, ControlPayload, DataKind, HEADER_MAX, HeaderBytes, OpCode, REASON_MAX,
    close_payload, is_sendable_close_code, write_header,
};
pub use reader::{FrameLimits, FrameReader, Side, Step};

#[cfg(test)]
mod tests;
