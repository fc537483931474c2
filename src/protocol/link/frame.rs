//! What every frame has: kinds, the header, the errors that end a link.

use crate::base::slab::Key;
use crate::protocol::revocation::NAME_MAX;

/// The only protocol version so far.
pub const VERSION: u16 = 1;
/// Length of every frame header, in bytes.
pub const HEADER_BYTES: usize = 12;
/// Largest payload that the length field can name, in bytes.
pub const PAYLOAD_MAX: usize = 0x00ff_ffff;
/// Largest payload of a frame before both sides' limits are known, in bytes.
pub const HANDSHAKE_FRAME_MAX: u32 = 1024;
/// Shortest key for mutual authentication, in bytes.
pub const KEY_MIN: usize = 32;
/// Longest reason of a CLOSE, in bytes: what fits a WebSocket close frame (RFC 6455 §5.5).
pub const CLOSE_REASON_MAX: usize = 123;
/// Longest reason of a REFUSED or GOAWAY, in bytes.
pub const REASON_MAX: usize = 200;
/// Largest payload of a REVOKE, in bytes: its three fields, and as much again for later ones.
const REVOKE_MAX: usize = 2 * (8 + 2 * (3 + NAME_MAX) + 11);
/// Longest label of a cause in a CLOSE, in bytes.
pub const LABEL_MAX: usize = 32;
/// Least and most bytes of a REJECT's payload: a cause has at least one letter.
const REJECT_BYTES: (usize, usize) = (6, 5 + LABEL_MAX + CLOSE_REASON_MAX);
/// Frames for sessions that do not exist that are forgiven at one time; one more ends the link.
pub const UNKNOWN_SESSION_FRAMES_MAX: u32 = 16;
/// One of them is forgiven for each so many frames of the link.
pub const UNKNOWN_SESSION_FRAMES_FORGIVEN_PER: u32 = 1024;

/// A session on one link: allocated by the gateway, unique while the link lives.
///
/// `0 <= generation < 2^24`. A slot is used again only with another generation, and only after
/// both sides sent CLOSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Which of the gateway's session slots.
    pub slot: u32,
    /// Which use of that slot (24 bits).
    pub generation: u32,
}

impl SessionId {
    /// In the header of frames that concern the link itself.
    pub const LINK: SessionId = SessionId { slot: u32::MAX, generation: 0 };

    /// A session's id; the generation is cut to its 24 bits.
    pub const fn new(slot: u32, generation: u32) -> Self {
        SessionId { slot, generation: generation & 0x00ff_ffff }
    }
}

impl From<Key> for SessionId {
    fn from(key: Key) -> Self {
        SessionId::new(key.slot, key.generation)
    }
}

impl From<SessionId> for Key {
    fn from(id: SessionId) -> Self {
        Key { slot: id.slot, generation: id.generation }
    }
}

/// Which header session a kind may carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Link,
    Session,
    Either,
}

macro_rules! kinds {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, $scope:ident, $min:expr, $max:expr; )*) => {
        /// What a frame is. The numbers are the wire's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Kind { $( $(#[$doc])* $name = $code, )* }

        impl Kind {
            /// Every kind, in the order of its number.
            pub const ALL: &'static [Kind] = &[ $( Kind::$name, )* ];

            /// The kind with this number.
            pub const fn from_code(code: u8) -> Option<Kind> {
                match code { $( $code => Some(Kind::$name), )* _ => None }
            }

            pub(super) const fn scope(self) -> Scope {
                match self { $( Kind::$name => Scope::$scope, )* }
            }

            /// Least and largest payload that any frame of this kind may have, in bytes.
            const fn payload_bounds(self) -> (usize, usize) {
                match self { $( Kind::$name => ($min, $max), )* }
            }
        }
    };
}

kinds! {
    /// Gateway: who I am, what I can, my nonce and limits.
    Hello = 0x01, Link, 8, 1024;
    /// Backend: likewise, and its proof of the key.
    Challenge = 0x02, Link, 80, 1024;
    /// Gateway: its proof of the key.
    Proof = 0x03, Link, 0, 32;
    /// Backend: sessions may come.
    Ready = 0x04, Link, 0, 0;
    /// Either: no link, and why; the sender closes.
    Refused = 0x05, Link, 2, 2 + REASON_MAX;
    /// Either: are you there.
    Ping = 0x10, Link, 8, 8;
    /// Either: the answer, with the PING's own bytes.
    Pong = 0x11, Link, 8, 8;
    /// Either: no new sessions; those that are open go on.
    GoAway = 0x12, Link, 0, REASON_MAX;
    /// Either: that many more bytes of DATA may come, for the session or the whole link.
    Credit = 0x13, Either, 4, 4;
    /// Gateway: a client was authenticated and wants this backend.
    Open = 0x20, Session, 3, PAYLOAD_MAX;
    /// Either: a message, or a piece of one.
    Data = 0x21, Session, 0, PAYLOAD_MAX;
    /// Either: the sender's last frame for this session.
    Close = 0x22, Session, 4, 4 + LABEL_MAX + CLOSE_REASON_MAX;
    /// With [`features::VERDICTS`]. Gateway: decide on these credentials.
    Auth = 0x30, Session, 3, PAYLOAD_MAX;
    /// With [`features::VERDICTS`]. Backend: this is who it is; the session is open.
    Accept = 0x31, Session, 4, PAYLOAD_MAX;
    /// With [`features::VERDICTS`]. Backend: no, and why; its last frame for this session.
    Reject = 0x32, Session, REJECT_BYTES.0, REJECT_BYTES.1;
    /// With [`features::REAUTHENTICATION`]. Gateway: a fresh token was verified.
    Reauth = 0x33, Session, 0, PAYLOAD_MAX;
    /// With [`features::REAUTHENTICATION`]. Backend: the session's new expiry.
    Expire = 0x34, Session, 8, 8;
    /// With [`features::REAUTHENTICATION`]. Backend: these tokens are void.
    Revoke = 0x35, Link, 12, REVOKE_MAX;
    /// Reserved, with [`features::MULTICAST`]. Backend: one message for many sessions.
    Multicast = 0x40, Link, 0, PAYLOAD_MAX;
    /// Reserved, with [`features::GROUPS`]. Backend: the session joins a group.
    GroupJoin = 0x41, Session, 0, PAYLOAD_MAX;
    /// Reserved, with [`features::GROUPS`]. Backend: the session leaves a group.
    GroupLeave = 0x42, Session, 0, PAYLOAD_MAX;
    /// Reserved, with [`features::GROUPS`]. Backend: one message for a group.
    GroupPublish = 0x43, Link, 0, PAYLOAD_MAX;
    /// Reserved, with [`features::RESUMPTION`]. Gateway: a session that another backend had.
    Resume = 0x50, Session, 0, PAYLOAD_MAX;
    /// Reserved, with [`features::RESUMPTION`]. Backend: what RESUME will carry.
    Cookie = 0x51, Session, 0, PAYLOAD_MAX;
    /// Reserved, with [`features::RESUMPTION`]. Backend: so many messages are done with.
    Acknowledge = 0x52, Session, 0, PAYLOAD_MAX;
}

/// Bits of the feature fields of HELLO and CHALLENGE. A feature is on when both sides set it.
pub mod features {
    /// What this implementation can do.
    pub const SUPPORTED: u64 = VERDICTS | REAUTHENTICATION;
    /// AUTH, ACCEPT and REJECT.
    pub const VERDICTS: u64 = 1 << 0;
    /// REAUTH, EXPIRE and REVOKE.
    pub const REAUTHENTICATION: u64 = 1 << 1;
    /// MULTICAST.
    pub const MULTICAST: u64 = 1 << 2;
    /// GROUP_JOIN, GROUP_LEAVE and GROUP_PUBLISH.
    pub const GROUPS: u64 = 1 << 3;
    /// RESUME, COOKIE and ACKNOWLEDGE.
    pub const RESUMPTION: u64 = 1 << 4;
}

impl Kind {
    /// The feature that must be on for this kind to be allowed; 0 when none is needed.
    pub const fn feature(self) -> u64 {
        match self {
            Kind::Auth | Kind::Accept | Kind::Reject => features::VERDICTS,
            Kind::Reauth | Kind::Expire | Kind::Revoke => features::REAUTHENTICATION,
            Kind::Multicast => features::MULTICAST,
            Kind::GroupJoin | Kind::GroupLeave | Kind::GroupPublish => features::GROUPS,
            Kind::Resume | Kind::Cookie | Kind::Acknowledge => features::RESUMPTION,
            _ => 0,
        }
    }
}

/// Bits of the flags byte of a DATA frame. Other bits, and flags of other kinds, are 0.
pub mod data_flags {
    /// The message is text; the same on every piece.
    pub const TEXT: u8 = 1;
    /// The first piece of its message.
    pub const FIRST: u8 = 2;
    /// The last piece of its message.
    pub const FIN: u8 = 4;
    /// A message in one piece.
    pub const WHOLE: u8 = FIRST | FIN;
}

/// The header of one frame. `length <= PAYLOAD_MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload in bytes.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// [`data_flags`], for DATA; 0 otherwise.
    pub flags: u8,
    /// Whose it is; [`SessionId::LINK`] for the link's own.
    pub session: SessionId,
}

impl FrameHeader {
    /// The header of a DATA frame with `length` bytes of payload.
    pub const fn data(session: SessionId, flags: u8, length: u32) -> Self {
        FrameHeader { length, kind: Kind::Data, flags, session }
    }

    /// Reads a header, and checks all that can be known before the payload comes: the kind,
    /// its flags, whether it may name a session, and the length that its kind allows.
    ///
    /// # Errors
    /// A [`LinkError`] that says what the peer broke; the link cannot go on.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, LinkError> {
        let [l0, l1, l2, code, flags, g0, g1, g2, s0, s1, s2, s3] = *bytes;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let session = SessionId {
            slot: u32::from_be_bytes([s0, s1, s2, s3]),
            generation: u32::from_be_bytes([0, g0, g1, g2]),
        };
        let kind = Kind::from_code(code).ok_or(LinkError::UnknownKind { code })?;
        let scope_holds = match kind.scope() {
            Scope::Link => session == SessionId::LINK,
            Scope::Session => session.slot != u32::MAX,
            Scope::Either => session == SessionId::LINK || session.slot != u32::MAX,
        };
        if !scope_holds {
            return Err(LinkError::WrongScope { kind });
        }
        let flags_known = if kind == Kind::Data {
            data_flags::TEXT | data_flags::FIRST | data_flags::FIN
        } else {
            0
        };
        if flags & !flags_known != 0 {
            return Err(LinkError::UnknownFlags { kind, flags });
        }
        let (least, most) = kind.payload_bounds();
        if (length as usize) < least || length as usize > most {
            return Err(LinkError::WrongLength { kind, length });
        }
        Ok(FrameHeader { length, kind, flags, session })
    }

    /// The header's bytes.
    ///
    /// # Panics
    /// When `length` or the generation does not fit its 24 bits: an error of ours.
    pub fn format(&self) -> [u8; HEADER_BYTES] {
        assert!(self.length as usize <= PAYLOAD_MAX, "payload over the length field");
        assert!(self.session.generation <= 0x00ff_ffff, "generation over its field");
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [_, g0, g1, g2] = self.session.generation.to_be_bytes();
        let [s0, s1, s2, s3] = self.session.slot.to_be_bytes();
        [l0, l1, l2, self.kind as u8, self.flags, g0, g1, g2, s0, s1, s2, s3]
    }

    /// Appends a whole frame of this kind, flags and session with the given payload.
    pub fn encode_with(&self, payload: &[u8], out: &mut Vec<u8>) {
        assert_eq!(self.length as usize, payload.len(), "header and payload disagree");
        out.extend_from_slice(&self.format());
        out.extend_from_slice(payload);
    }
}

/// One frame: a checked header and its bytes, which are not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: FrameHeader,
    /// `header.length` bytes.
    pub payload: &'a [u8],
}

/// Appends a DATA frame: one piece of a message, or a whole one. Allocates only when `out` is
/// too small.
///
/// # Panics
/// When `payload` is longer than [`PAYLOAD_MAX`].
pub fn encode_data(session: SessionId, flags: u8, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= PAYLOAD_MAX, "piece over the length field");
    FrameHeader::data(session, flags, payload.len() as u32).encode_with(payload, out);
}

/// What the peer broke. Each of these ends the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No such kind in this version.
    #[error("frame kind {code:#04x} is unknown to version 1")]
    UnknownKind {
        /// The kind byte.
        code: u8,
    },
    /// A session where the kind concerns the link, or the reverse.
    #[error("{kind:?} frame with the wrong session field")]
    WrongScope {
        /// The frame's kind.
        kind: Kind,
    },
    /// A flag bit that the kind does not have.
    #[error("{kind:?} frame with unknown flags {flags:#04x}")]
    UnknownFlags {
        /// The frame's kind.
        kind: Kind,
        /// The flags byte.
        flags: u8,
    },
    /// A payload length that the kind never has.
    #[error("{kind:?} frame with a payload of {length} bytes")]
    WrongLength {
        /// The frame's kind.
        kind: Kind,
        /// The payload's length in bytes.
        length: u32,
    },
    /// A payload over the limit that this side named in the handshake.
    #[error("{kind:?} frame of {length} bytes is over the agreed {limit}")]
    FrameTooLarge {
        /// The frame's kind.
        kind: Kind,
        /// The payload's length in bytes.
        length: u32,
        /// The limit in bytes.
        limit: u32,
    },
    /// A payload that ends early, goes on too long or has a field out of its range.
    #[error("{kind:?} frame: bad {field}")]
    BadField {
        /// The frame's kind.
        kind: Kind,
        /// Which field, for people.
        field: &'static str,
    },
    /// A kind that is not allowed now: out of the handshake's order, from the wrong side, or
    /// of a feature that is off.
    #[error("{kind:?} frame is not allowed here")]
    Unexpected {
        /// The frame's kind.
        kind: Kind,
    },
    /// Not this protocol at all.
    #[error("the peer does not speak the Portcullis link protocol")]
    NotALink,
    /// No version in common.
    #[error("the peer speaks versions {min} to {max}, this side version 1")]
    NoCommonVersion {
        /// The peer's lowest version.
        min: u16,
        /// The peer's highest version.
        max: u16,
    },
    /// More DATA than the credit allowed.
    #[error("DATA beyond the credit given")]
    CreditExceeded,
    /// Credit beyond 2^31 - 1, or a CREDIT of 0.
    #[error("CREDIT of 0 or beyond 2^31 - 1 in total")]
    CreditOverflow,
    /// FIRST, FIN or TEXT do not fit the pieces before.
    #[error("DATA pieces out of order")]
    PieceOutOfOrder,
    /// A message over the limit that this side named in the handshake.
    #[error("message over the agreed {limit} bytes")]
    MessageTooLarge {
        /// The limit in bytes.
        limit: u32,
    },
    /// OPEN for a session that is open, or DATA or CREDIT after the sender's own CLOSE.
    #[error("{kind:?} frame for a session in the wrong state")]
    WrongState {
        /// The frame's kind.
        kind: Kind,
    },
    /// Too many frames for sessions that do not exist.
    #[error("too many frames for sessions that do not exist")]
    TooManyStrays,
}

/// Appends a link-level frame whose payload `fill` writes, and its header before it.
pub(crate) fn encode_frame(
    kind: Kind,
    session: SessionId,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    fill(out);
    let length = out.len() - start - HEADER_BYTES;
    assert!(length <= PAYLOAD_MAX, "payload over the length field");
    let header = FrameHeader { length: length as u32, kind, flags: 0, session };
    out[start..start + HEADER_BYTES].copy_from_slice(&header.format());
}
