//! Revoked identities: what an entry voids, the bounded set of entries, and the form in which
//! workers ask whether an identity is revoked.
//!
//! A connection keeps no name, only its [`IdentityFingerprint`]: keyed hashes of its subject and its token's id,
//! and when the token was made. The key is drawn once for a process, so no client can make
//! two names meet; by chance two do once in 2^64 pairs.

mod set;

pub use set::{Full, IdReused, Inserted, RevocationSet};

use hmac::{Hmac, KeyInit as _, Mac};
use sha2::Sha256;

use crate::base::time::UnixTime;
use crate::protocol::identity::VerifiedIdentity;

/// Longest subject or token id in an entry, in bytes.
pub const NAME_MAX: usize = 1024;

/// What an entry voids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every token of this subject, or those made before an instant.
    Subject {
        /// The subject.
        subject: Box<str>,
        /// Only tokens made before this.
        issued_before: Option<UnixTime>,
    },
    /// The token with this id.
    TokenId(Box<str>),
    /// Every token made before this, whatever its subject.
    IssuedBefore(UnixTime),
}

/// Why a target names nothing that can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Nothing was named.
    #[error("name a subject, a token id, or an instant that tokens were made before")]
    Nothing,
    /// A token id beside something else.
    #[error("a token id stands alone: it names one token already")]
    TooMuch,
    /// A name without a byte.
    #[error("a subject or token id is empty")]
    Empty,
    /// A name over [`NAME_MAX`].
    #[error("a subject or token id is over 1,024 bytes")]
    TooLong,
}

impl Target {
    /// A target from its parts as they come over the wire.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn new(
        subject: Option<&str>,
        token_id: Option<&str>,
        issued_before: Option<UnixTime>,
    ) -> Result<Target, TargetError> {
        let name = |name: &str| match name.len() {
            0 => Err(TargetError::Empty),
            1..=NAME_MAX => Ok(name.into()),
            _ => Err(TargetError::TooLong),
        };
        match (subject, token_id, issued_before) {
            (Some(subject), None, issued_before) => {
                Ok(Target::Subject { subject: name(subject)?, issued_before })
            }
            (None, Some(id), None) => Ok(Target::TokenId(name(id)?)),
            (None, None, Some(before)) => Ok(Target::IssuedBefore(before)),
            (None, None, None) => Err(TargetError::Nothing),
            (_, Some(_), _) => Err(TargetError::TooMuch),
        }
    }

    /// The subject, if it names one.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Target::Subject { subject, .. } => Some(subject),
            _ => None,
        }
    }

    /// The token's id, if it names one.
    pub fn token_id(&self) -> Option<&str> {
        match self {
            Target::TokenId(id) => Some(id),
            _ => None,
        }
    }

    /// The instant that tokens were made before, if it names one.
    pub fn issued_before(&self) -> Option<UnixTime> {
        match self {
            Target::Subject { issued_before, .. } => *issued_before,
            Target::TokenId(_) => None,
            Target::IssuedBefore(before) => Some(*before),
        }
    }
}

/// A demand to void tokens until it lapses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Which tokens.
    pub target: Target,
    /// Until when: best the latest expiry of any token that is meant.
    pub lapses: UnixTime,
}

/// A revocation, and where it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedRevocation {
    /// What is revoked.
    pub revocation: Revocation,
    /// The backend of whose routes it holds; `None` is every route.
    pub backend: Option<Box<str>>,
}

impl From<Revocation> for ScopedRevocation {
    fn from(revocation: Revocation) -> Self {
        ScopedRevocation { revocation, backend: None }
    }
}

/// Hashes names. It holds a key and has no `Debug`.
#[derive(Clone)]
pub struct Hasher(Hmac<Sha256>);

/// Which name is hashed: a subject must not meet a token id of the same letters.
#[derive(Clone, Copy)]
enum Kind {
    Subject = 1,
    TokenId = 2,
    Backend = 3,
}

impl Hasher {
    /// A hasher with a key that no other process knows.
    pub fn new(key: &[u8; 32]) -> Self {
        Hasher(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    /// What a connection keeps of a verified identity.
    pub fn mark(&self, identity: &VerifiedIdentity<'_>) -> IdentityFingerprint {
        if identity.is_anonymous() {
            return IdentityFingerprint::ANONYMOUS;
        }
        let subject = identity.subject();
        let hash = |kind, name: Option<&str>| name.map_or(NO_NAME, |name| self.hash(kind, name));
        // A token that does not say when it was made counts as older than any instant.
        let issued = identity.issued_at().map_or(0, UnixTime::as_seconds);
        IdentityFingerprint {
            subject: hash(Kind::Subject, Some(subject).filter(|name| !name.is_empty())),
            token_id: hash(Kind::TokenId, identity.token_id().filter(|id| !id.is_empty())),
            issued: u32::try_from(issued).map_or(NEVER - 1, |issued| issued.min(NEVER - 1)),
        }
    }

    fn hash(&self, kind: Kind, name: &str) -> u64 {
        let mut mac = self.0.clone();
        mac.update(&[kind as u8]);
        mac.update(name.as_bytes());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(NO_NAME + 1)
    }
}

/// The hash of no name; entries without a name have it.
const NO_NAME: u64 = 0;
/// Later than any token was made.
const NEVER: u32 = u32::MAX;

/// What a connection keeps of its identity, in 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
pub struct IdentityFingerprint {
    subject: u64,
    token_id: u64,
    /// Seconds since 1970; `issued < NEVER` but for anonymous clients.
    issued: u32,
}

impl IdentityFingerprint {
    /// Of a client without an identity: no entry revokes it.
    pub const ANONYMOUS: IdentityFingerprint =
        IdentityFingerprint { subject: NO_NAME, token_id: NO_NAME, issued: NEVER };

    /// Whether both belong to the same subject. Tokens without a subject have no owner who could
    /// renew them.
    pub fn same_subject(self, other: IdentityFingerprint) -> bool {
        let (ours, theirs) = (self.subject, other.subject);
        ours != NO_NAME && ours == theirs
    }
}

/// One entry as workers ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    /// Of the subject or token id; [`NO_NAME`] for all tokens. See [`within`].
    hash: u64,
    /// Only tokens made before this second; [`NEVER`] for all.
    before: u32,
    /// The second from which the row says nothing. Rounded up: a second too long refuses a
    /// client once too often, a second too short lets one in.
    lapses: u32,
}

/// The hash of a name's row that holds on the routes of one backend alone. All hashes are keyed,
/// so two such rows meet by chance only, as two names do.
fn within(backend: u64, hash: u64) -> u64 {
    backend ^ hash
}

/// An immutable snapshot of a [`RevocationSet`], for workers.
pub struct Revoked {
    hasher: Hasher,
    /// Backends with rows of their own, in the order of their names.
    backends: Vec<(Box<str>, u64)>,
    /// In ascending order. Within one hash `lapses` falls, so that the first row that meets a
    /// token decides.
    rows: Vec<Row>,
}

impl Revoked {
    /// Nothing is revoked.
    pub fn nothing(hasher: Hasher) -> Self {
        Revoked { hasher, backends: Vec::new(), rows: Vec::new() }
    }

    /// Of rows in order of hash and `before`, whose `lapses` falls within one hash.
    fn new(hasher: Hasher, backends: Vec<(Box<str>, u64)>, rows: Vec<Row>) -> Self {
        debug_assert!(rows.windows(2).all(|two| {
            let key = |row: &Row| (row.hash, row.before);
            key(&two[0]) <= key(&two[1])
                && (two[0].hash != two[1].hash || two[0].lapses >= two[1].lapses)
        }));
        Revoked { hasher, backends, rows }
    }

    /// What a connection keeps of an identity.
    pub fn mark(&self, identity: &VerifiedIdentity<'_>) -> IdentityFingerprint {
        self.hasher.mark(identity)
    }

    /// Whether a client of this identity must not be let in to a route of `backend`, at `now`.
    pub fn is_revoked(
        &self,
        identity: &VerifiedIdentity<'_>,
        backend: &str,
        now: UnixTime,
    ) -> bool {
        !self.rows.is_empty() && self.holds(self.mark(identity), backend, now)
    }

    /// Whether a connection to `backend` with this mark must not be, at `now`.
    pub fn holds(&self, mark: IdentityFingerprint, backend: &str, now: UnixTime) -> bool {
        if self.rows.is_empty() {
            return false;
        }
        let (issued, now) = (mark.issued, now.as_seconds());
        let names = [NO_NAME, mark.subject, mark.token_id];
        let meets = |hash| {
            let at = self.rows.partition_point(|row| (row.hash, row.before) <= (hash, issued));
            let row = self.rows.get(at).filter(|row| row.hash == hash);
            row.is_some_and(|row| u64::from(row.lapses) > now)
        };
        let own = self.backends.binary_search_by(|(name, _)| (**name).cmp(backend));
        names.into_iter().any(meets)
            || own.is_ok_and(|at| {
                let (_, backend) = self.backends[at];
                names.into_iter().any(|hash| meets(within(backend, hash)))
            })
    }
}

fn seconds_up(time: UnixTime) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}
