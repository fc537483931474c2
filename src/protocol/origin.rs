//! Origin lists.

/// Which origins a route accepts.
pub struct OriginPolicy {}
