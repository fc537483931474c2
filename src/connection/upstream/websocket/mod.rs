//! An ordinary WebSocket server behind the gateway: one connection to it for each client.

mod answer;
pub mod handshake;
pub mod relay;
pub mod request;
pub mod tls;
