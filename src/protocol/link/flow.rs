//! The arithmetic of flow control and of messages in pieces, the same for both sides.

use super::{
    HEADER_BYTES, LinkError, UNKNOWN_SESSION_FRAMES_FORGIVEN_PER, UNKNOWN_SESSION_FRAMES_MAX,
    data_flags,
};

/// Most credit that a session or a link can hold, in bytes.
pub const CREDIT_MAX: u32 = 0x7fff_ffff;

/// What a DATA frame costs its sender: header and payload. The header counts so that empty
/// messages are not free.
pub const fn data_cost(payload_bytes: usize) -> u32 {
    assert!(payload_bytes <= super::PAYLOAD_MAX);
    (HEADER_BYTES + payload_bytes) as u32
}

/// What this side may still send. `0 <= available <= CREDIT_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendCredit {
    available: u32,
}

impl SendCredit {
    /// Starts with what the peer gave in its handshake or OPEN, in bytes.
    pub const fn new(initial: u32) -> Self {
        SendCredit { available: if initial > CREDIT_MAX { CREDIT_MAX } else { initial } }
    }

    /// Bytes that may be sent now, headers of DATA frames included.
    pub const fn available(self) -> u32 {
        self.available
    }

    /// Largest payload that a DATA frame may have now; `None` when not even an empty frame
    /// is allowed.
    pub const fn payload_max(self) -> Option<usize> {
        (self.available as usize).checked_sub(HEADER_BYTES)
    }

    /// The peer gave `bytes` more.
    ///
    /// # Errors
    /// [`LinkError::CreditOverflow`] for 0 or for a sum beyond [`CREDIT_MAX`].
    pub const fn grant(&mut self, bytes: u32) -> Result<(), LinkError> {
        match self.available.checked_add(bytes) {
            Some(sum) if bytes > 0 && sum <= CREDIT_MAX => {
                self.available = sum;
                Ok(())
            }
            _ => Err(LinkError::CreditOverflow),
        }
    }

    /// Spends `cost` bytes.
    ///
    /// # Panics
    /// When there are fewer: the caller must have asked.
    pub const fn spend(&mut self, cost: u32) {
        assert!(cost <= self.available, "spent more credit than there was");
        self.available -= cost;
    }
}

/// What the peer may still send here, and what it is owed.
/// `available + owed + held by the receiver = window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    window: u32,
    available: u32,
    owed: u32,
}

impl ReceiveWindow {
    /// A window of `window` bytes, all of them given.
    pub const fn new(window: u32) -> Self {
        ReceiveWindow { window, available: window, owed: 0 }
    }

    /// Takes a DATA frame of this cost.
    ///
    /// # Errors
    /// [`LinkError::CreditExceeded`] when the peer had no credit for it.
    pub const fn receive(&mut self, cost: u32) -> Result<(), LinkError> {
        if cost > self.available {
            return Err(LinkError::CreditExceeded);
        }
        self.available -= cost;
        Ok(())
    }

    /// `cost` received bytes are done with. Answers the CREDIT to send, once half the window
    /// is owed: often enough that the peer never waits, seldom enough to be cheap.
    pub const fn consume(&mut self, cost: u32) -> Option<u32> {
        self.owed += cost;
        assert!(self.owed + self.available <= self.window, "consumed more than was received");
        if self.owed < self.window.div_ceil(2) { None } else { self.flush() }
    }

    /// The CREDIT to send for all that is owed, however little; `None` for nothing.
    pub const fn flush(&mut self) -> Option<u32> {
        if self.owed == 0 {
            return None;
        }
        let grant = self.owed;
        self.available += grant;
        self.owed = 0;
        Some(grant)
    }
}

/// Frames that a peer sent for sessions that do not exist. The closing handshake rules them out,
/// so the peer is wrong; a few are forgiven, and over time all, so that rare ones do not add up
/// and end a link that has been up for months.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnknownSessionFrames {
    outstanding: u32,
    /// Frames since one was last forgiven.
    frames: u32,
}

impl UnknownSessionFrames {
    /// Takes note of a frame of any kind.
    pub const fn frame(&mut self) {
        self.frames += 1;
        if self.frames == UNKNOWN_SESSION_FRAMES_FORGIVEN_PER {
            self.frames = 0;
            self.outstanding = self.outstanding.saturating_sub(1);
        }
    }

    /// That frame was for a session that does not exist.
    ///
    /// # Errors
    /// [`LinkError::TooManyStrays`] beyond [`UNKNOWN_SESSION_FRAMES_MAX`].
    pub const fn unknown(&mut self) -> Result<(), LinkError> {
        self.outstanding += 1;
        if self.outstanding > UNKNOWN_SESSION_FRAMES_MAX {
            return Err(LinkError::TooManyStrays);
        }
        Ok(())
    }
}

/// Checks that the pieces of a session's messages come in order. Starts between messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PieceOrder {
    /// Whether the unfinished message is text.
    unfinished: Option<bool>,
}

impl PieceOrder {
    /// Takes the flags of the next DATA frame.
    ///
    /// # Errors
    /// [`LinkError::PieceOutOfOrder`] when FIRST comes within a message or is missing at its
    /// start, or when TEXT changes within one.
    pub const fn accept(&mut self, flags: u8) -> Result<(), LinkError> {
        let text = flags & data_flags::TEXT != 0;
        let first = flags & data_flags::FIRST != 0;
        match self.unfinished {
            None if !first => return Err(LinkError::PieceOutOfOrder),
            Some(_) if first => return Err(LinkError::PieceOutOfOrder),
            Some(before) if before != text => return Err(LinkError::PieceOutOfOrder),
            _ => {}
        }
        self.unfinished = if flags & data_flags::FIN != 0 { None } else { Some(text) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_never_exceeds_its_limit_nor_what_was_given() {
        let mut credit = SendCredit::new(100);
        assert_eq!(credit.payload_max(), Some(88));
        credit.spend(data_cost(80));
        assert_eq!((credit.available(), credit.payload_max()), (8, None));
        assert_eq!(credit.grant(0), Err(LinkError::CreditOverflow));
        assert_eq!(credit.grant(CREDIT_MAX - 7), Err(LinkError::CreditOverflow));
        assert_eq!(credit.grant(CREDIT_MAX - 8), Ok(()));
        assert_eq!(credit.available(), CREDIT_MAX);
    }

    #[test]
    fn the_window_grants_at_half_and_keeps_its_sum() {
        let mut window = ReceiveWindow::new(100);
        assert_eq!(window.receive(101), Err(LinkError::CreditExceeded));
        assert_eq!(window.receive(100), Ok(()));
        assert_eq!(window.receive(1), Err(LinkError::CreditExceeded));
        assert_eq!(window.consume(49), None);
        assert_eq!(window.consume(1), Some(50));
        assert_eq!(window.receive(51), Err(LinkError::CreditExceeded));
        assert_eq!(window.consume(20), None);
        assert_eq!((window.flush(), window.flush()), (Some(20), None));
    }

    #[test]
    fn frames_for_unknown_sessions_are_forgiven_over_time() {
        let mut link = UnknownSessionFrames::default();
        for _ in 0..UNKNOWN_SESSION_FRAMES_MAX {
            link.frame();
            assert_eq!(link.unknown(), Ok(()));
        }
        let mut full = link;
        full.frame();
        assert_eq!(full.unknown(), Err(LinkError::TooManyStrays));
        for _ in 0..UNKNOWN_SESSION_FRAMES_FORGIVEN_PER {
            link.frame();
        }
        assert_eq!(link.unknown(), Ok(()), "one was forgiven");
        assert_eq!(link.unknown(), Err(LinkError::TooManyStrays), "and one only");
    }

    #[test]
    fn pieces_come_in_order_or_not_at_all() {
        use data_flags::{FIN, FIRST, TEXT, WHOLE};
        let broken = Err(LinkError::PieceOutOfOrder);
        let cases: &[(&[u8], Result<(), LinkError>)] = &[
            (&[WHOLE, WHOLE | TEXT], Ok(())),
            (&[FIRST | TEXT, TEXT, FIN | TEXT, WHOLE], Ok(())),
            (&[FIN], broken),
            (&[0], broken),
            (&[FIRST, FIRST], broken),
            (&[FIRST, WHOLE], broken),
            (&[FIRST | TEXT, FIN], broken),
            (&[FIRST, FIN | TEXT], broken),
            (&[WHOLE, FIN], broken),
        ];
        for (flags, expected) in cases {
            let mut order = PieceOrder::default();
            let found = flags.iter().try_for_each(|flags| order.accept(*flags));
            assert_eq!(found, *expected, "{flags:?}");
        }
    }
}
