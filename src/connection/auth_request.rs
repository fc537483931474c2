//! The question who a client is, as it is put to a backend or to an HTTP endpoint.

use std::sync::Arc;
use std::time::Duration;

use crate::settings::HttpAuth;

/// Who is to be asked about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthRequest {
    /// The backend with this index, by the credentials in
    /// [`Output::request`](super::Output::request).
    Backend(u16),
    /// An HTTP endpoint, by the [`Output::http_request`](super::Output::http_request).
    Http,
}

/// A request to an HTTP endpoint. It has no `Debug`: its fields carry tokens.
pub struct HttpAuthRequest {
    /// Who is asked, and how.
    pub endpoint: Arc<HttpAuth>,
    /// Names and values of the request's fields; the names are lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// After this the answer is of no use.
    pub timeout: Duration,
}
