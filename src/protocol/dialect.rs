//! How a cause is put so that a client's own library understands it.

/// A family of clients with its own reading of close codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dialect {
    /// A raw WebSocket: the application reads code and reason.
    Plain,
}
