//! The buffers that tokens are verified in, so that verification allocates nothing.

/// Longest token, in bytes of text; `limits.token_max` is at most this.
pub const TOKEN_MAX: usize = 16 * 1024;

/// Longest header of a JWT, in decoded bytes.
pub(in crate::protocol) const HEADER_MAX: usize = 1024;

/// Longest claims, in decoded bytes: all that a token of [`TOKEN_MAX`] can hold.
pub(in crate::protocol) const CLAIMS_MAX: usize = TOKEN_MAX / 4 * 3;

/// Longest subject and token id, in bytes of UTF-8.
pub const NAME_MAX: usize = 256;

/// Longest claims after they were rendered as JSON, where a control character of one byte becomes
/// an escape of six; longer ones are marked as such. An OPEN that holds them must fit into a frame
/// of a link, by default of 64 KiB.
const RENDERED_MAX: usize = 32 * 1024;

/// Buffers that verification works in, made once per worker and `[[auth]]` of a route.
pub struct TokenScratch {
    pub(in crate::protocol) header: Box<[u8]>,
    pub(in crate::protocol) claims: Box<[u8]>,
    pub(in crate::protocol) rendered: Box<[u8]>,
    pub(in crate::protocol) subject: Box<[u8]>,
    pub(in crate::protocol) token_id: Box<[u8]>,
    /// For compressed terms; empty until the first comes.
    pub(in crate::protocol) inflated: Vec<u8>,
}

impl Default for TokenScratch {
    fn default() -> Self {
        Self::new()
    }
}

impl TokenScratch {
    /// Allocates the buffers.
    pub fn new() -> Self {
        let buffer = |length: usize| vec![0; length].into_boxed_slice();
        TokenScratch {
            header: buffer(HEADER_MAX),
            claims: buffer(CLAIMS_MAX),
            rendered: buffer(RENDERED_MAX),
            subject: buffer(NAME_MAX),
            token_id: buffer(NAME_MAX),
            inflated: Vec::new(),
        }
    }
}
