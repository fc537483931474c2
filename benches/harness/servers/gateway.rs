//! The gateway and its backends, from generated settings.

use std::net::SocketAddr;
use std::process::Command;

use super::configs::{self, GatewayWiring};
use super::peers::{self, Kind, Peer, Purpose};
use super::{Server, Workshop, free_address};
use crate::kernel;
use crate::target::HelloArgs;

/// Messages to an answer in the fan-in.
pub const COUNT_BATCH: u32 = 64;
/// Part of a ring's table that is filled, of 8: the kernel spreads connections over the workers
/// by a hash, and none may overflow.
const FILL: u64 = 7;
/// Receive buffers of each worker when it is measured alone; the gateway's default.
const BUFFERS: u32 = 4096;
/// And when there are many workers, each with little to receive.
const BUFFERS_FEW: u32 = 256;
/// Silence on a link before it is pinged, seconds: the gateway's default.
const LINK_PING_S: u64 = 5;
/// And with many workers: dozens of threads share a few cores with the load and the one backend,
/// whose late answers would cost whole links.
const LINK_PING_MANY_S: u64 = 120;

/// Threads with a ring each that hold `connections`.
pub fn threads_for(connections: u64) -> u64 {
    let each = u64::from(kernel::descriptor_limit()).saturating_sub(512).max(64);
    match connections <= each {
        true => 1,
        false => connections.div_ceil(each * FILL / 8),
    }
}

/// Starts a gateway with its backends.
///
/// # Errors
/// What a program said when it did not start.
pub(super) fn start(
    workshop: &Workshop,
    purpose: &Purpose,
    upstream_kind: &str,
) -> Result<Peer, String> {
    let link = upstream_kind == "link";
    let kind = if link { Kind::Gateway } else { Kind::GatewayWebsocket };
    let (support, echo, count) = match link {
        true => {
            let (echo, echo_address) = echo_backend(workshop)?;
            let (count, count_address) = count_backend(workshop)?;
            (vec![echo, count], echo_address, count_address)
        }
        false => {
            let (upstream, address) =
                peers::bare(Kind::Ring, workshop, workshop.client_core, purpose)?;
            (vec![upstream], address, address)
        }
    };
    let (plain, secure, admin) = (free_address()?, free_address()?, free_address()?);
    let workers = threads_for(purpose.connections);
    let text = configs::gateway(&GatewayWiring {
        plain,
        secure,
        admin,
        workers: workers as u16,
        connections: purpose.connections,
        buffers: if workers > 4 { BUFFERS_FEW } else { BUFFERS },
        link_ping_s: if workers > 4 { LINK_PING_MANY_S } else { LINK_PING_S },
        ping_s: purpose.ping_s,
        flooded: purpose.flooded,
        upstream_kind,
        echo: &echo.to_string(),
        count: &count.to_string(),
        certificate: &workshop.path("certificate.pem"),
        key: &workshop.path("key.pem"),
        secret: &workshop.path("secret"),
    });
    let name = format!("{}-{}", kind.name(), plain.port());
    let config = workshop.write(&format!("{name}.toml"), text.as_bytes())?;
    let mut command = Command::new(&workshop.program);
    command.args(["run", "--config"]).arg(config);
    let mut server = workshop.spawn(&name, command, workshop.server_core)?;
    server.await_listening(kind.name(), plain)?;
    let hello = HelloArgs { token_file: Some(workshop.path("tokens")), ..HelloArgs::default() };
    Ok(Peer { kind, server, support, plain, secure: Some(secure), hello })
}

fn echo_backend(workshop: &Workshop) -> Result<(Server, SocketAddr), String> {
    let address = free_address()?;
    let mut command = Command::new(&workshop.program);
    command.args(["echo-backend", "--listen", &address.to_string()]);
    backend(workshop, "echo-backend", command, address)
}

fn count_backend(workshop: &Workshop) -> Result<(Server, SocketAddr), String> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.args(["count-backend", "--listen", &address.to_string()]);
    command.args(["--batch", &COUNT_BATCH.to_string()]);
    backend(workshop, "count-backend", command, address)
}

fn backend(
    workshop: &Workshop,
    name: &str,
    command: Command,
    address: SocketAddr,
) -> Result<(Server, SocketAddr), String> {
    let log = format!("{name}-{}", address.port());
    let mut server = workshop.spawn(&log, command, workshop.client_core)?;
    server.await_listening(name, address)?;
    Ok((server, address))
}
