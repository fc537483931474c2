//! The listeners and connections of the admin side: accepted into a bounded room, one request
//! each, then closed without losing the answer.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;

use super::access::Sender;
use super::room::{Place, Room};
use super::{Admin, DEADLINE, RELOAD_MAX};
use crate::linux::process::effective_user;

/// Largest request head, in bytes; hyper takes no less.
pub const HEAD_MAX: usize = 8 * 1024;
/// Most header fields of a request.
const FIELDS_MAX: usize = 64;
/// No connection lives longer: its parts have deadlines of their own, but for a client that
/// does not read.
const LIFE_MAX: Duration = RELOAD_MAX.saturating_add(DEADLINE.saturating_mul(3));
/// How long a client's leftovers are read after the answer, so that its kernel does not throw
/// the answer away at our reset.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of leftovers that are read.
const LEFTOVER_MAX: u64 = 1 << 20;
/// How long after a failed accept the next is tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Admin {
    /// Serves a TCP listener until the runtime ends.
    ///
    /// # Errors
    /// Those of giving the listener to the runtime.
    pub async fn serve_tcp(self: Rc<Self>, listener: StdTcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let room = Rc::new(Room::default());
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    self.admit(&room, stream, Sender::Tcp, Some(peer.ip().to_canonical())).await;
                }
                Err(error) => cannot_accept(&error).await,
            }
        }
    }

    /// Serves a unix listener until the runtime ends; for root and our own user. It has a room
    /// of its own, so that nothing on the network can fill it.
    ///
    /// # Errors
    /// Those of giving the listener to the runtime.
    pub async fn serve_unix(self: Rc<Self>, listener: StdUnixListener) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let room = Rc::new(Room::default());
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if [0, effective_user()].contains(&peer.uid()) => {
                        self.admit(&room, stream, Sender::OwnUser, None).await;
                    }
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "admin socket: not our user"),
                    Err(error) => tracing::warn!(%error, "admin socket: a peer without a name"),
                },
                Err(error) => cannot_accept(&error).await,
            }
        }
    }

    /// Starts a connection once there is room for it.
    async fn admit<S: AsyncRead + AsyncWrite + Unpin + 'static>(
        self: &Rc<Self>,
        room: &Rc<Room>,
        mut stream: S,
        sender: Sender,
        peer: Option<std::net::IpAddr>,
    ) {
        let (place, end) = loop {
            match room.enter(peer, Instant::now()) {
                Ok(entered) => break entered,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        };
        let admin = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let life = timeout(LIFE_MAX, admin.connection(&mut stream, sender, &place));
            tokio::select! {
                _ = life => {}
                _ = end => {}
            }
        });
        // Its first turn comes before the next accept.
        tokio::task::yield_now().await;
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        sender: Sender,
        place: &Place,
    ) {
        let service = service_fn(|request| self.answer(request, sender, place));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(DEADLINE)
            .keep_alive(false)
            .half_close(true)
            .max_buf_size(HEAD_MAX)
            .max_headers(FIELDS_MAX)
            .title_case_headers(true)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(&mut *stream), service)
            .without_shutdown()
            .await;
        if served.is_err_and(|error| error.is_timeout()) {
            let answer =
                b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
        let _ = stream.shutdown().await;
        let (mut leftovers, mut nowhere) = (stream.take(LEFTOVER_MAX), tokio::io::sink());
        let _ = timeout(LINGER, tokio::io::copy(&mut leftovers, &mut nowhere)).await;
    }
}

async fn cannot_accept(error: &io::Error) {
    tracing::warn!(%error, "the admin listener cannot accept");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
