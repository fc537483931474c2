//! The sockets of the admin side: bound, served, and given up to a gateway that takes over.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::task::JoinHandle;

use super::error::RunError;
use crate::settings::Settings;

/// Connections that may wait for the control thread.
const BACKLOG: i32 = 1024;

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

/// The listeners as the gateway owns them.
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

    /// What is bound, to be served.
    pub fn take(&mut self) -> (Option<StdTcpListener>, Option<StdUnixListener>) {
        (self.tcp.take(), self.unix.take())
    }

    /// What serves the TCP listener, and ends when that is given up.
    pub fn set_tcp_task(&mut self, task: JoinHandle<()>) {
        self.tcp_task = Some(task);
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
