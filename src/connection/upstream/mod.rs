//! What stands behind the gateway: one folder for each kind of upstream.

pub mod link;
pub mod websocket;
