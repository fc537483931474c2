//! The echo servers on tokio: the baselines for "what an ordinary Rust server costs".

use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::echo_session::EchoSession;
use crate::kernel;

/// Bytes of a connection's receive buffer, as large as one of the ring engine's.
const BUFFER_BYTES: usize = 4096;
/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// How long nothing is accepted after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves on tokio's epoll runtime until interrupted.
///
/// # Errors
/// When the core or the runtime cannot be had.
pub fn serve_epoll(listener: TcpListener, core: Option<usize>) -> Result<(), String> {
    bind_to(core)?;
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("tokio: {error}"))?;
    let outcome: std::io::Result<()> = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, _)) => drop(tokio::spawn(epoll_client(socket))),
                    Err(error) => complain(&error).await,
                }
            }
        });
        until_interrupted().await;
        Ok(())
    });
    outcome.map_err(|error| format!("tokio: {error}"))
}

async fn epoll_client(mut socket: tokio::net::TcpStream) {
    let _ = socket.set_nodelay(true);
    let mut session = EchoSession::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    while !session.ending {
        let Ok(length @ 1..) = socket.read(&mut buffer).await else { return };
        session.receive(&buffer[..length]);
        if !session.out.is_empty() {
            if socket.write_all(&session.out).await.is_err() {
                return;
            }
            session.out.clear();
        }
    }
}

/// Serves on tokio-uring until interrupted.
///
/// # Errors
/// When the core cannot be had.
pub fn serve_uring(listener: TcpListener, core: Option<usize>) -> Result<(), String> {
    bind_to(core)?;
    tokio_uring::start(async {
        let listener = Rc::new(tokio_uring::net::TcpListener::from_std(listener));
        tokio_uring::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((socket, _)) => drop(tokio_uring::spawn(uring_client(socket))),
                    Err(error) => complain(&error).await,
                }
            }
        });
        until_interrupted().await;
    });
    Ok(())
}

async fn uring_client(socket: tokio_uring::net::TcpStream) {
    let _ = socket.set_nodelay(true);
    let mut session = EchoSession::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    while !session.ending {
        let (outcome, returned) = socket.read(buffer).await;
        buffer = returned;
        let Ok(length @ 1..) = outcome else { return };
        session.receive(&buffer[..length]);
        if !session.out.is_empty() {
            // The kernel reads the memory while it is sent, so the operation owns it.
            let (outcome, mut sent) = socket.write_all(std::mem::take(&mut session.out)).await;
            if outcome.is_err() {
                return;
            }
            sent.clear();
            session.out = sent;
        }
    }
}

fn bind_to(core: Option<usize>) -> Result<(), String> {
    match core {
        Some(core) => kernel::pin(0, core).map_err(|error| format!("core {core}: {error}")),
        None => Ok(()),
    }
}

async fn complain(error: &std::io::Error) {
    eprintln!("accept: {error}");
    tokio::time::sleep(PAUSE).await;
}

async fn until_interrupted() {
    while !kernel::interrupted() {
        tokio::time::sleep(LOOK).await;
    }
}
