//! Real clients against the real gateway: real sockets, rings, tokens and backends.
//!
//! Tests are tables where that is possible: what is sent, and the exact answer.

mod admission;
mod backends;
mod canary;
mod deadlines;
mod dialects;
mod forward_auth;
mod forwarded;
mod frames;
mod heads;
mod labels;
mod life;
mod lifecycle;
mod logs;
mod origins;
mod proxy;
mod servers;
mod servers_tls;
mod stress;
mod support;
mod takeover;
mod tls;
mod token_kinds;
mod tokens;
mod upgrade;
mod verdicts;
