//! Gateways, backends and clients for the tests.

mod backend;
mod child;
mod client;
mod config;
mod gateway;
mod http;
mod link;
mod server;
mod token;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub use backend::{Backend, Choices, Event};
pub use child::Child;
pub use client::{Client, End, Opcode, head, masked, request};
pub use config::Config;
pub use gateway::{Gateway, admin_get, series_value};
pub use http::{Endpoint, Reply, response};
pub use link::{RawBackend, RawLink};
pub use server::{Asked, Server, read};
pub use token::{SECRET, mint, token, unix_now};

/// How long anything may take that has no deadline of its own.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Beyond a deadline, how late it may be noticed on a busy machine.
pub const SLACK: Duration = Duration::from_millis(1500);

/// A port that nobody uses and that the kernel gives to no outgoing connection.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 12_000 + (std::process::id() % 1_000) as u16 * 16;
    for _ in 0..1_000 {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether something took as long as its deadline says, seen from outside.
pub fn assert_took(what: &str, begun: Instant, at_least: Duration) {
    let took = begun.elapsed();
    assert!(took >= at_least, "{what}: {took:?} is before {at_least:?}");
    assert!(took <= at_least + SLACK, "{what}: {took:?} is long after {at_least:?}");
}
