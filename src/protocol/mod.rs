//! L1: pure codecs and decisions on bytes. Both directions of a format live in one file.

pub mod base64url;
pub mod carrier;
pub mod cause;
pub mod close_detail;
pub mod compact_json;
pub mod compact_token;
pub mod dialect;
pub mod external_term;
pub mod http_decision;
pub mod http_upgrade;
pub mod identity;
pub mod jwt;
pub mod link;
pub mod mac;
pub mod mask;
pub mod origin;
pub mod phoenix_token;
pub mod plug_crypto;
pub mod plug_session;
pub mod proxy_header;
pub mod rejected_tokens;
pub mod revocation;
pub mod scratch;
pub mod utf8;
pub mod verifier;
pub mod websocket;
