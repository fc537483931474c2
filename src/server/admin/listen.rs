//! The listeners and connections of the admin side: accepted into a bounded room, one request
//! each, then closed without losing the answer.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::access::Sender;
use super::room::{Place, Room};
use super::{Admin, DEADLINE, RELOAD_MAX};
use crate::linux::process::effective_user;
use crate::server::error::RunError;
use crate::settings::Settings;

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
/// Connections that may wait for the control thread.
const BACKLOG: i32 = 1024;
/// How long after a failed accept the next is tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the TCP listener, without SO_REUSEPORT: a second gateway is refused.
///
/// # Errors
/// What the kernel says of the address.
pub fn bind_tcp(address: SocketAddr) -> io::Result<StdTcpListener> {
    // std would call ioctl(FIONBIO), which the sandbox profile does not let through.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds the unix listener, for its owner alone. A socket that no process listens on any more is
/// replaced.
///
/// # Errors
/// What the kernel says of the path; `AddrInUse` when a gateway listens there.
pub fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    let address = SockAddr::unix(path)?;
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None);
    let is_socket = |file: std::fs::Metadata| file.file_type().is_socket();
    // Another file also refuses a connection: it stays, and binding fails.
    if std::fs::symlink_metadata(path).is_ok_and(is_socket) {
        match socket()?.connect(&address) {
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        }
    }
    // The kernel gives the path the mode of the socket, less the umask: no moment is open to all.
    let file = std::fs::File::from(OwnedFd::from(socket()?));
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    let socket = Socket::from(OwnedFd::from(file));
    socket.bind(&address)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The admin side's listeners.
#[derive(Default)]
pub struct AdminListeners {
    tcp: Option<StdTcpListener>,
    unix: Option<StdUnixListener>,
    /// Removed at the end.
    unix_path: Option<PathBuf>,
    tcp_task: Option<JoinHandle<()>>,
}

impl AdminListeners {
    /// Binds what the settings name; also says where the TCP listener is.
    ///
    /// # Errors
    /// [`RunError::Bind`] and [`RunError::AdminSocket`].
    pub fn bind(settings: &Settings) -> Result<(AdminListeners, Option<SocketAddr>), RunError> {
        let gateway = &settings.gateway;
        let tcp = |address| {
            let bound = bind_tcp(address)
                .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
            bound.map_err(|source| RunError::Bind { what: "gateway.admin".into(), address, source })
        };
        let unix = |path: &PathBuf| {
            bind_unix(path).map_err(|source| RunError::AdminSocket { path: path.clone(), source })
        };
        let (tcp, address) = gateway.admin.map(tcp).transpose()?.unzip();
        let unix = gateway.admin_socket.as_ref().map(unix).transpose()?;
        let unix_path = unix.as_ref().and(gateway.admin_socket.clone());
        Ok((AdminListeners { tcp, unix, unix_path, tcp_task: None }, address))
    }

    /// Serves both. Within the control thread's runtime only.
    pub fn serve(&mut self, admin: &Rc<Admin>) {
        let failed = |error| tracing::error!(%error, "an admin listener cannot be served");
        if let Some(listener) = self.tcp.take() {
            let served = Rc::clone(admin).serve_tcp(listener);
            let task = async move { served.await.unwrap_or_else(failed) };
            self.tcp_task = Some(tokio_uring::spawn(task));
        }
        if let Some(listener) = self.unix.take() {
            let served = Rc::clone(admin).serve_unix(listener);
            tokio_uring::spawn(async move { served.await.unwrap_or_else(failed) });
        }
    }

    /// Closes the TCP listener and moves the socket aside, so that another gateway of the same
    /// settings can have both. Answers where the socket is now.
    ///
    /// # Errors
    /// Why the socket cannot be moved; then both stay.
    pub fn give_up(&mut self) -> Result<PathBuf, String> {
        let Some(path) = &self.unix_path else { return Err("it has no admin socket".into()) };
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        SockAddr::unix(&beside)
            .and_then(|_| std::fs::rename(path, &beside))
            .map_err(|error| format!("cannot move {}: {error}", path.display()))?;
        self.unix_path = Some(beside.clone());
        if let Some(task) = self.tcp_task.take() {
            task.abort();
        }
        Ok(beside)
    }
}

impl Drop for AdminListeners {
    fn drop(&mut self) {
        if let Some(path) = &self.unix_path {
            let _ = std::fs::remove_file(path);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_and_only_a_dead_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let first = bind_unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600 & !0o077);
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(bind_unix(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind_unix(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
