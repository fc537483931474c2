//! The configuration file as it is written: shapes, no meaning.
//!
//! The table of keys declares the sections. `settings/shape.rs` makes a [`RawSettings`] of a
//! text: it has reported and left out whatever is unknown, of a wrong type or out of range, so
//! that the checks of meaning can go on and find the rest. Nothing is required here, for the
//! same reason.

use serde::Deserialize;
use toml::Spanned;

pub use super::keys::table::{
    RawAuth, RawBackend, RawCertificate, RawClose, RawDeadlines, RawForwarded, RawGateway,
    RawIdentityHeaders, RawKey, RawLimits, RawListener, RawLog, RawMessagePattern,
    RawReauthenticate, RawRoute,
};

/// The whole file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSettings {
    /// `[gateway]`.
    pub gateway: RawGateway,
    /// `[limits]`.
    pub limits: RawLimits,
    /// `[deadlines]`.
    pub deadlines: RawDeadlines,
    /// `[[listener]]`, in order.
    pub listener: Vec<Spanned<RawListener>>,
    /// `[[auth]]`, in order.
    pub auth: Vec<Spanned<RawAuth>>,
    /// `[[route]]`, in order.
    pub route: Vec<Spanned<RawRoute>>,
    /// `[[backend]]`, in order.
    pub backend: Vec<Spanned<RawBackend>>,
}
