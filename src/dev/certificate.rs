//! The self-signed certificate of one run.

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::options::failure;
use crate::server::RunError;

/// The names that the certificate is good for.
pub(super) const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A certificate and its private key.
pub(super) struct Certificate {
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
}

/// Draws a key and signs a certificate for it.
pub(super) fn make() -> Result<Certificate, RunError> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(NAMES.map(str::to_owned))
        .map_err(|error| failure("the certificate cannot be made", error))?;
    Ok(Certificate { certificate_pem: cert.pem(), key_pem: signing_key.serialize_pem() })
}
