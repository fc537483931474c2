//! The bare WebSocket echo server that others are compared with: one ring, multishot receives
//! into provided buffers, one send per connection, no TLS, no limits, no identity. What it costs
//! is about the least that a WebSocket echo costs on this kernel.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use clap::Args;
use socket2::{Domain, Socket, Type};

use crate::kernel::{self, Event, Ring};
use crate::wire::{self, FrameReader};
use crate::worker::errno_name;

/// Options of `echo-server`.
#[derive(Args, Debug)]
pub struct EchoServerArgs {
    /// Where to listen; port 0 takes a free one and prints it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9001")]
    pub listen: SocketAddr,
    /// First core to run on; thread n runs on core + n
    #[arg(long)]
    pub core: Option<usize>,
    /// Threads, each with its own ring and listener
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
    let threads: Vec<_> = listeners
        .into_iter()
        .enumerate()
        .map(|(index, listener)| {
            let core = args.core.map(|core| core + index);
            std::thread::spawn(move || serve(listener, core))
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

#[derive(Default)]
struct Client {
    upgraded: bool,
    ending: bool,
    head: Vec<u8>,
    control: Vec<u8>,
    reader: FrameReader,
    out: Vec<u8>,
}

fn serve(listener: TcpListener, core: Option<usize>) -> Result<(), String> {
    if let Some(core) = core {
        kernel::pin(0, core).map_err(|error| format!("core {core}: {error}"))?;
    }
    let slots = kernel::descriptor_limit();
    let mut ring = Ring::new(slots, 4096)?;
    let mut clients: Vec<Client> = (0..slots).map(|_| Client::default()).collect();
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
                    clients[slot as usize] = Client::default();
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
                Event::Closed { slot } => clients[slot as usize] = Client::default(),
                Event::Connected { .. } | Event::ConnectFailed { .. } => {
                    unreachable!("the server opens no connection")
                }
            }
        }
    }
    Ok(())
}

fn flush(ring: &mut Ring, client: &mut Client, slot: u32) {
    if ring.is_sending(slot) {
        return;
    }
    if !client.out.is_empty() {
        ring.send(slot, std::mem::take(&mut client.out));
    } else if client.ending {
        ring.close(slot);
    }
}

impl Client {
    fn receive(&mut self, mut bytes: &[u8]) {
        if !self.upgraded {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = wire::head_end(&self.head) else {
                self.ending = self.head.len() > 16 * 1024;
                return;
            };
            bytes = &bytes[end - before..];
            let head = std::mem::take(&mut self.head);
            let Some(key) = websocket_key(&head[..end]) else {
                self.out
                    .extend_from_slice(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
                self.ending = true;
                return;
            };
            let accept = wire::accept_key(key);
            self.out.extend_from_slice(
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                )
                .as_bytes(),
            );
            self.upgraded = true;
        }
        while !self.ending {
            let Some(piece) = self.reader.next(&mut bytes) else { return };
            if piece.opcode >= wire::CLOSE {
                let start = self.control.len();
                self.control.extend_from_slice(piece.bytes);
                wire::unmask(&mut self.control[start..], piece.mask, 0);
                self.ending = piece.length > 125;
                if piece.ends {
                    self.answer_control(piece.opcode);
                }
                continue;
            }
            if piece.begins {
                let at = self.out.len();
                wire::encode_header(&mut self.out, piece.opcode, piece.length as usize, None);
                self.out[at] = piece.opcode | if piece.fin { 0x80 } else { 0 };
            }
            let start = self.out.len();
            self.out.extend_from_slice(piece.bytes);
            wire::unmask(&mut self.out[start..], piece.mask, 0);
        }
    }

    fn answer_control(&mut self, opcode: u8) {
        let payload = std::mem::take(&mut self.control);
        let answer = match opcode {
            wire::PING => wire::PONG,
            wire::CLOSE => {
                self.ending = true;
                wire::CLOSE
            }
            _ => return,
        };
        wire::encode_header(&mut self.out, answer, payload.len(), None);
        self.out.extend_from_slice(&payload);
    }
}

fn websocket_key(head: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(head).ok()?;
    text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })
}
