//! TCP and unix sockets behind one face.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::io::{Interest, Ready};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Why a backend cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is not understood.
    #[error("'{address}' is no address: write HOST:PORT, as 127.0.0.1:7000, or unix:/path")]
    Address {
        /// What was given.
        address: String,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {error} (is another process listening there?)")]
    Listen {
        /// What was given.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The secret is too short to be one.
    #[error("the link secret has {bytes} bytes; make one of 32 or more: openssl rand -hex 32")]
    WeakSecret {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A limit is out of its range.
    #[error("limit {name} is out of its range; see the documentation of Limits")]
    Limit {
        /// The limit's name.
        name: &'static str,
    },
}

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    pub(super) async fn bind(address: &str) -> Result<Self, BindError> {
        let fail = |error| BindError::Listen { address: address.to_owned(), error };
        let Some(path) = address.strip_prefix("unix:") else {
            let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return Err(BindError::Address { address: address.to_owned() });
            }
            return Ok(Listener::Tcp(TcpListener::bind(address).await.map_err(fail)?));
        };
        let path = Path::new(path);
        remove_stale(path).await.map_err(fail)?;
        let listener = UnixListener::bind(path).map_err(fail)?;
        Ok(Listener::Unix(listener, path.to_owned()))
    }

    pub(super) fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
            }
            Listener::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Stream {
    pub(super) fn peer(&self) -> String {
        match self {
            Stream::Tcp(stream) => {
                stream.peer_addr().map_or_else(|error| error.to_string(), |a| a.to_string())
            }
            Stream::Unix(_) => "unix".to_owned(),
        }
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Stream::Tcp(stream) => stream.ready(interest).await,
            Stream::Unix(stream) => stream.ready(interest).await,
        }
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_read(buffer),
            Stream::Unix(stream) => stream.try_read(buffer),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Unix(stream) => stream.try_write(bytes),
        }
    }
}

/// Removes the socket file of a process that is gone; one that answers is left alone.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(path).await {
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens")),
            Err(_) => std::fs::remove_file(path),
        },
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path is not a socket")),
        Err(_) => Ok(()),
    }
}
