//! JWT.

/// Verifies tokens of one auth block.
pub struct JwtVerifier {}
