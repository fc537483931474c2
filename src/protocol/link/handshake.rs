//! HELLO, CHALLENGE, PROOF, READY, REFUSED: how both sides agree on a link.
//!
//! With a key, each side proves it by an HMAC over both payloads, nonces and limits included;
//! the key itself never travels, and nothing said in the handshake can be altered unnoticed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    Fields, Frame, Kind, LinkError, PAYLOAD_MAX, REASON_MAX, SessionId, VERSION, cut, encode_frame,
};
use crate::base::secret::Secret;

/// The first bytes of every HELLO.
pub const MAGIC: [u8; 4] = *b"PTCL";
/// Length of CHALLENGE's payload without its proof, in bytes.
pub const CHALLENGE_BYTES: usize = 80;
/// Length of a proof, in bytes.
pub const PROOF_BYTES: usize = 32;

/// Goes into the backend's HMAC first.
const BACKEND_LABEL: &[u8] = b"portcullis link v1 backend";
/// Goes into the gateway's HMAC first.
const GATEWAY_LABEL: &[u8] = b"portcullis link v1 gateway";
/// The only flag of HELLO and CHALLENGE: this side has a key.
const FLAG_AUTHENTICATED: u16 = 1;

/// What one side takes. The other must keep to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of a frame, in bytes: 16 KiB to 2^24 - 1.
    pub frame_max: u32,
    /// Largest message, in bytes: 1 to 2^31 - 1.
    pub message_max: u32,
    /// Credit that each session begins with, in bytes: 4 KiB to 2^31 - 1.
    pub session_window: u32,
    /// Credit that the link begins with, in bytes: 64 KiB to 2^31 - 1.
    pub link_window: u32,
    /// Sessions at one time on this link: 1 to 2^31 - 1.
    pub sessions_max: u32,
}

/// Least `frame_max`, in bytes: an OPEN with a full request head must fit.
pub const FRAME_MAX_MIN: u32 = 16 * 1024;
/// Least `session_window`, in bytes.
pub const SESSION_WINDOW_MIN: u32 = 4 * 1024;
/// Least `link_window`, in bytes.
pub const LINK_WINDOW_MIN: u32 = 64 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_max: 64 * 1024,
            message_max: 1024 * 1024,
            session_window: 64 * 1024,
            link_window: 4 * 1024 * 1024,
            sessions_max: 1_000_000,
        }
    }
}

impl Limits {
    /// The name of the first limit that is out of its range, if one is.
    pub fn out_of_range(&self) -> Option<&'static str> {
        let top = 0x7fff_ffff;
        let checks = [
            ("frame_max", self.frame_max, FRAME_MAX_MIN, PAYLOAD_MAX as u32),
            ("message_max", self.message_max, 1, top),
            ("session_window", self.session_window, SESSION_WINDOW_MIN, top),
            ("link_window", self.link_window, LINK_WINDOW_MIN, top),
            ("sessions_max", self.sessions_max, 1, top),
        ];
        checks
            .into_iter()
            .find(|(_, value, least, most)| value < least || value > most)
            .map(|(name, ..)| name)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for value in [
            self.frame_max,
            self.message_max,
            self.session_window,
            self.link_window,
            self.sessions_max,
        ] {
            out.extend_from_slice(&value.to_be_bytes());
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, LinkError> {
        let limits = Limits {
            frame_max: fields.u32("frame_max")?,
            message_max: fields.u32("message_max")?,
            session_window: fields.u32("session_window")?,
            link_window: fields.u32("link_window")?,
            sessions_max: fields.u32("sessions_max")?,
        };
        match limits.out_of_range() {
            None => Ok(limits),
            Some(name) => Err(fields.bad(name)),
        }
    }
}

/// The gateway's first frame. `version_min <= version_max`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version that the gateway speaks.
    pub version_min: u16,
    /// Highest version that the gateway speaks.
    pub version_max: u16,
    /// What it can do ([`super::features`]).
    pub features: u64,
    /// Names the gateway installation; the same after a restart where it is configured so.
    pub instance: [u8; 16],
    /// Grows with every start of that instance (milliseconds of wall clock do).
    pub epoch: u64,
    /// Which of its workers dials.
    pub worker: u16,
    /// Which of the worker's links this is; the same when the link is dialled again.
    pub link: u16,
    /// Whether the gateway has a key: then it demands the backend's proof, and gives its own.
    pub authenticated: bool,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// What the gateway takes.
    pub limits: Limits,
}

impl Hello {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_frame(Kind::Hello, SessionId::LINK, out, |out| self.encode_payload(out));
    }

    /// Appends the payload alone, as the proofs take it.
    pub fn encode_payload(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version_min.to_be_bytes());
        out.extend_from_slice(&self.version_max.to_be_bytes());
        out.extend_from_slice(&self.features.to_be_bytes());
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.worker.to_be_bytes());
        out.extend_from_slice(&self.link.to_be_bytes());
        out.extend_from_slice(&flags(self.authenticated).to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.nonce);
        self.limits.encode(out);
    }

    /// Reads the payload of a HELLO. A peer that also speaks later versions may append fields
    /// that this version does not know; they count in the proofs and are not looked at.
    ///
    /// # Errors
    /// [`LinkError::NotALink`], [`LinkError::NoCommonVersion`] (before anything else is read)
    /// or [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Hello, rest: payload };
        if fields.array("magic").map_err(|_| LinkError::NotALink)? != MAGIC {
            return Err(LinkError::NotALink);
        }
        let version_min = fields.u16("versions")?;
        let version_max = fields.u16("versions")?;
        if version_min > VERSION || version_max < VERSION {
            return Err(LinkError::NoCommonVersion { min: version_min, max: version_max });
        }
        let hello = Hello {
            version_min,
            version_max,
            features: fields.u64("features")?,
            instance: fields.array("instance")?,
            epoch: fields.u64("epoch")?,
            worker: fields.u16("worker")?,
            link: fields.u16("link")?,
            authenticated: authenticated(&mut fields)?,
            nonce: {
                if fields.u16("padding")? != 0 {
                    return Err(fields.bad("padding"));
                }
                fields.array("nonce")?
            },
            limits: Limits::decode(&mut fields)?,
        };
        if version_max == VERSION {
            fields.end("trailing bytes")?;
        }
        Ok(hello)
    }
}

/// The backend's answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The version that the link will speak.
    pub version: u16,
    /// The features that are on: a subset of HELLO's.
    pub features: u64,
    /// Names the backend process: another after every start.
    pub instance: [u8; 16],
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// What the backend takes.
    pub limits: Limits,
    /// The backend's proof of the key; [`Proof::Absent`] when it has none.
    pub proof: Proof,
}

impl Challenge {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_frame(Kind::Challenge, SessionId::LINK, out, |out| self.encode_payload(out));
    }

    /// Appends the payload alone: the part that the backend's proof covers, then that proof.
    pub fn encode_payload(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&flags(self.proof != Proof::Absent).to_be_bytes());
        out.extend_from_slice(&self.features.to_be_bytes());
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&self.nonce);
        self.limits.encode(out);
        out.extend_from_slice(self.proof.bytes());
    }

    /// Reads the payload of a CHALLENGE; the proof is not verified yet.
    ///
    /// # Errors
    /// [`LinkError::NoCommonVersion`] or [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Challenge, rest: payload };
        let version = fields.u16("version")?;
        if version != VERSION {
            return Err(LinkError::NoCommonVersion { min: version, max: version });
        }
        let has_proof = authenticated(&mut fields)?;
        let features = fields.u64("features")?;
        let instance = fields.array("instance")?;
        let nonce = fields.array("nonce")?;
        let limits = Limits::decode(&mut fields)?;
        let proof = Proof::decode_for(Kind::Challenge, fields.rest)?;
        if has_proof != (proof != Proof::Absent) {
            return Err(fields.bad("proof"));
        }
        Ok(Challenge { version, features, instance, nonce, limits, proof })
    }
}

/// An HMAC-SHA-256 that only someone with the key can make, or nothing where there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// There is no key.
    Absent,
    /// The HMAC.
    Hmac([u8; PROOF_BYTES]),
}

impl Proof {
    /// The backend's proof: over HELLO's payload, then CHALLENGE's without its proof.
    /// `challenge` may be given with its proof; only the part before it counts.
    pub fn of_backend(key: &Secret, hello: &[u8], challenge: &[u8]) -> Self {
        Proof::Hmac(backend_mac(key, hello, challenge).finalize().into_bytes().into())
    }

    /// The gateway's proof: over HELLO's payload, then all of CHALLENGE's.
    pub fn of_gateway(key: &Secret, hello: &[u8], challenge: &[u8]) -> Self {
        Proof::Hmac(gateway_mac(key, hello, challenge).finalize().into_bytes().into())
    }

    /// Whether this is the backend's proof for these payloads. In constant time; both sides
    /// without a key agree too, one alone does not.
    pub fn verify_backend(&self, key: Option<&Secret>, hello: &[u8], challenge: &[u8]) -> bool {
        match (key, self) {
            (None, Proof::Absent) => true,
            (Some(key), Proof::Hmac(mac)) => {
                backend_mac(key, hello, challenge).verify_slice(mac).is_ok()
            }
            _ => false,
        }
    }

    /// Whether this is the gateway's proof for these payloads. In constant time; both sides
    /// without a key agree too, one alone does not.
    pub fn verify_gateway(&self, key: Option<&Secret>, hello: &[u8], challenge: &[u8]) -> bool {
        match (key, self) {
            (None, Proof::Absent) => true,
            (Some(key), Proof::Hmac(mac)) => {
                gateway_mac(key, hello, challenge).verify_slice(mac).is_ok()
            }
            _ => false,
        }
    }

    /// Appends a PROOF frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_frame(Kind::Proof, SessionId::LINK, out, |out| {
            out.extend_from_slice(self.bytes());
        });
    }

    /// Reads the payload of a PROOF: empty or 32 bytes.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        Proof::decode_for(Kind::Proof, payload)
    }

    fn decode_for(kind: Kind, bytes: &[u8]) -> Result<Self, LinkError> {
        if bytes.is_empty() {
            return Ok(Proof::Absent);
        }
        let mac = bytes.try_into().map_err(|_| LinkError::BadField { kind, field: "proof" })?;
        Ok(Proof::Hmac(mac))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Proof::Absent => &[],
            Proof::Hmac(mac) => mac,
        }
    }
}

/// The backend's last word of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready;

impl Ready {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_frame(Kind::Ready, SessionId::LINK, out, |_| {});
    }
}

macro_rules! refusals {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, $hint:literal; )*) => {
        /// Why a side refuses a link. Numbers that this version does not know are kept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RefusalCode {
            $( $(#[$doc])* $name, )*
            /// A code of a later version.
            Other(u16),
        }

        impl RefusalCode {
            /// Every code of this version.
            pub const ALL: &'static [RefusalCode] = &[ $( RefusalCode::$name, )* ];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self { $( RefusalCode::$name => $code, )* RefusalCode::Other(code) => code }
            }

            /// The code with this number.
            pub const fn from_code(code: u16) -> Self {
                match code { $( $code => RefusalCode::$name, )* _ => RefusalCode::Other(code) }
            }

            /// What is wrong and how to remedy it: the text that goes out as the reason.
            pub const fn hint(self) -> &'static str {
                match self {
                    $( RefusalCode::$name => $hint, )*
                    RefusalCode::Other(_) => "refused for a reason unknown to this version",
                }
            }
        }
    };
}

refusals! {
    /// No version in common.
    Version = 1, "no protocol version in common; upgrade the older side";
    /// The proof does not match.
    WrongKey = 2, "the link keys differ; both sides need the same secret";
    /// This side has a key, the other none.
    AuthenticationRequired = 3, "this side requires a link key; set the same secret on yours";
    /// The other side has a key, this one none.
    AuthenticationNotConfigured = 4, "you require a link key, but this side has none configured";
    /// Too many links.
    TooManyLinks = 5, "too many links; raise the backend's links_max or run fewer workers";
    /// A later start of the same gateway instance was seen.
    StaleEpoch = 6, "a newer start of this gateway instance is connected already";
    /// The handshake broke the protocol.
    Malformed = 7, "the handshake broke the protocol; is the other side a Portcullis link?";
    /// The side is about to end.
    ShuttingDown = 8, "shutting down; try another endpoint";
    /// The handshake took too long.
    TimedOut = 9, "the handshake took too long";
}

/// Either side's "no"; it closes the connection after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// Why.
    pub code: RefusalCode,
    /// Why, for people; at most [`REASON_MAX`] bytes (longer ones are cut).
    pub reason: &'a str,
}

impl<'a> Refused<'a> {
    /// A refusal with its standard reason.
    pub const fn new(code: RefusalCode) -> Refused<'static> {
        Refused { code, reason: code.hint() }
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_frame(Kind::Refused, SessionId::LINK, out, |out| {
            out.extend_from_slice(&self.code.code().to_be_bytes());
            out.extend_from_slice(cut(self.reason, REASON_MAX).as_bytes());
        });
    }

    /// Reads the payload of a REFUSED.
    ///
    /// # Errors
    /// [`LinkError::BadField`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, LinkError> {
        let mut fields = Fields { kind: Kind::Refused, rest: payload };
        let code = RefusalCode::from_code(fields.u16("code")?);
        Ok(Refused { code, reason: fields.text(REASON_MAX, "reason")? })
    }
}

/// The frame's payload when it is of the expected kind.
///
/// # Errors
/// [`LinkError::Unexpected`].
pub fn expect<'a>(frame: &Frame<'a>, kind: Kind) -> Result<&'a [u8], LinkError> {
    if frame.header.kind == kind {
        Ok(frame.payload)
    } else {
        Err(LinkError::Unexpected { kind: frame.header.kind })
    }
}

fn flags(authenticated: bool) -> u16 {
    if authenticated { FLAG_AUTHENTICATED } else { 0 }
}

fn authenticated(fields: &mut Fields<'_>) -> Result<bool, LinkError> {
    match fields.u16("flags")? {
        0 => Ok(false),
        FLAG_AUTHENTICATED => Ok(true),
        _ => Err(fields.bad("flags")),
    }
}

fn backend_mac(key: &Secret, hello: &[u8], challenge: &[u8]) -> Hmac<Sha256> {
    let covered = &challenge[..challenge.len().min(CHALLENGE_BYTES)];
    mac(key, BACKEND_LABEL, hello, covered)
}

fn gateway_mac(key: &Secret, hello: &[u8], challenge: &[u8]) -> Hmac<Sha256> {
    mac(key, GATEWAY_LABEL, hello, challenge)
}

fn mac(key: &Secret, label: &[u8], hello: &[u8], challenge: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose())
        .expect("HMAC takes a key of any length");
    mac.update(label);
    mac.update(hello);
    mac.update(challenge);
    mac
}
