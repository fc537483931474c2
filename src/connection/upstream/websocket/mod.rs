//! An ordinary WebSocket server behind the gateway: one connection to it for each client.

pub mod handshake;
pub mod relay;
