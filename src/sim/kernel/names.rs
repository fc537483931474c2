//! Operations and outcomes as the trace and the checks name them.

use crate::ring::{Failure, Op, Outcome};

pub(super) fn op_socket(op: &Op) -> Option<u32> {
    match op {
        Op::ReceiveMultishot { socket, .. }
        | Op::ReceiveOnce { socket, .. }
        | Op::PollReadable { socket }
        | Op::PollHangup { socket }
        | Op::Send { socket, .. }
        | Op::Close { socket, .. } => Some(socket.0),
        Op::Accept { .. } | Op::Connect { .. } | Op::Cancel { .. } => None,
    }
}

pub(super) fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Accept { .. } => "> accept",
        Op::ReceiveMultishot { .. } => "> receive multi",
        Op::ReceiveOnce { .. } => "> receive once",
        Op::PollReadable { .. } => "> poll",
        Op::PollHangup { .. } => "> poll for hangup",
        Op::Send { .. } => "> send",
        Op::Connect { .. } => "> connect",
        Op::Close { .. } => "> close",
        Op::Cancel { .. } => "> cancel",
    }
}

pub(super) fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted { .. } => "< accepted",
        Outcome::Received(_) => "< received",
        Outcome::EndOfStream => "< end of stream",
        Outcome::Readable => "< readable",
        Outcome::Sent { result: Ok(_), .. } => "< sent",
        Outcome::Sent { result: Err(_), .. } => "< send failed",
        Outcome::Connected(_) => "< connected",
        Outcome::Closed => "< closed",
        Outcome::CancelDone => "< cancel done",
        Outcome::Failed(Failure::Cancelled) => "< cancelled",
        Outcome::Failed(Failure::NoBuffers) => "< no buffers",
        Outcome::Failed(Failure::Exhausted) => "< exhausted",
        Outcome::Failed(Failure::Disconnected) => "< disconnected",
        Outcome::Failed(Failure::NotFound) => "< not found",
        Outcome::Failed(Failure::Errno(_)) => "< errno",
    }
}

pub(super) fn outcome_detail(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Accepted { socket, .. } | Outcome::Connected(socket) => socket.0.into(),
        Outcome::Received(buffer) => buffer.length().into(),
        Outcome::Sent { result: Ok(count), .. } => (*count).into(),
        Outcome::Failed(Failure::Errno(number)) => *number as u64,
        _ => 0,
    }
}
