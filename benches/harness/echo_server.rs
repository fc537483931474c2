//! The bare WebSocket echo servers that others are compared with. The `ring` engine: one ring,
//! multishot receives into provided buffers, one send per connection, no TLS, no limits, no
//! identity. What it costs is about the least that a WebSocket echo costs on this kernel. The
//! others, in `echo_tokio`, run the same session on tokio's runtimes.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use socket2::{Domain, Socket, Type};

use crate::echo_session::EchoSession;
use crate::echo_tokio;
use crate::kernel::{self, Event, Ring};
use crate::worker::errno_name;

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The harness's own io_uring loop, with direct descriptors and provided buffers
    Ring,
    /// tokio on epoll, one thread, a buffer and a task per connection
    TokioEpoll,
    /// tokio-uring, one thread, a buffer and a task per connection
    TokioUring,
}

/// Options of `echo-server`.
#[derive(Args, Debug)]
pub struct EchoServerArgs {
    /// Where to listen; port 0 takes a free one and prints it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9001")]
    pub listen: SocketAddr,
    /// First core to run on; thread n runs on core + n
    #[arg(long)]
    pub core: Option<usize>,
    /// How bytes are moved
    #[arg(long, value_enum, default_value = "ring")]
    pub engine: Engine,
    /// Threads, each with its own runtime and listener
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Allow an address that others can reach
    #[arg(long)]
    pub i_own_this_host: bool,
    /// End when the parent process ends
    #[arg(long, hide = true)]
    pub end_with_parent: bool,
}

/// Serves until interrupted.
///
/// # Errors
/// When the address cannot be bound or the ring cannot be made.
pub fn run(args: &EchoServerArgs) -> Result<(), String> {
    if !args.listen.ip().is_loopback() && !args.i_own_this_host {
        return Err(format!(
            "{} can be reached by others; this server has no limits. If that is meant, say \
             --i-own-this-host",
            args.listen
        ));
    }
    if args.end_with_parent {
        kernel::end_with_parent();
    }
    let mut address = args.listen;
    let mut listeners = Vec::new();
    for _ in 0..args.threads.max(1) {
        let listener = listen(address).map_err(|error| format!("{address}: {error}"))?;
        address = listener.local_addr().map_err(|error| error.to_string())?;
        listeners.push(listener);
    }
    println!("listening on ws://{address}/ (pid {})", std::process::id());
    let _ = std::io::stdout().flush();
    let engine = args.engine;
    let threads: Vec<_> = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| {
            let core = args.core.map(|core| core + index);
            std::thread::spawn(move || match engine {
                Engine::Ring => serve(listener, core),
                Engine::TokioEpoll => echo_tokio::serve_epoll(listener, core),
                Engine::TokioUring => echo_tokio::serve_uring(listener, core),
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a server thread panicked".to_owned())??;
    }
    Ok(())
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it: an echo must never wait for an acknowledgement.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(65_535)?;
    Ok(socket.into())
}

fn serve(listener: TcpListener, core: Option<usize>) -> Result<(), String> {
    if let Some(core) = core {
        kernel::pin(0, core).map_err(|error| format!("core {core}: {error}"))?;
    }
    let slots = kernel::descriptor_limit();
    let mut ring = Ring::new(slots, 4096)?;
    let mut clients: Vec<EchoSession> = (0..slots).map(|_| EchoSession::default()).collect();
    let mut pool: Vec<Vec<u8>> = Vec::new();
    let mut failed_at: Option<Instant> = None;
    ring.accept(listener);
    while !kernel::interrupted() {
        if failed_at.is_some_and(|at| at.elapsed() >= Duration::from_millis(100)) {
            failed_at = None;
            ring.resume_accept();
        }
        ring.wait(Duration::from_millis(100)).map_err(|error| error.to_string())?;
        while let Some(event) = ring.next_event() {
            match event {
                Event::Accepted { slot } => {
                    clients[slot as usize] = EchoSession::default();
                    ring.receive(slot);
                }
                Event::Received { slot, buffer } => {
                    let client = &mut clients[slot as usize];
                    if client.out.capacity() == 0 {
                        client.out = pool.pop().unwrap_or_default();
                    }
                    client.receive(ring.bytes(&buffer));
                    ring.give_back(buffer);
                    flush(&mut ring, client, slot);
                }
                Event::Sent { slot, mut data } => {
                    data.clear();
                    if pool.len() < 4096 {
                        pool.push(data);
                    }
                    flush(&mut ring, &mut clients[slot as usize], slot);
                }
                Event::ReceiveEnded { slot, .. } | Event::SendFailed { slot, .. } => {
                    ring.close(slot);
                }
                Event::AcceptFailed { errno } => {
                    if failed_at.is_none() {
                        eprintln!("accept: {}", errno_name(errno));
                    }
                    failed_at = Some(Instant::now());
                }
                Event::Closed { slot } => clients[slot as usize] = EchoSession::default(),
                Event::Connected { .. } | Event::ConnectFailed { .. } => {
                    unreachable!("the server opens no connection")
                }
            }
        }
    }
    Ok(())
}

fn flush(ring: &mut Ring, client: &mut EchoSession, slot: u32) {
    if ring.is_sending(slot) {
        return;
    }
    if !client.out.is_empty() {
        ring.send(slot, std::mem::take(&mut client.out));
    } else if client.ending {
        ring.close(slot);
    }
}
