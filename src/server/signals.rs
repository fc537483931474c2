//! The signals. All that can be caught are: none but SIGKILL ends the process without a drain.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

/// Signals that may wait for the control loop; the kernel merges equal ones, too.
const WAITING_MAX: usize = 16;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Read the configuration file again.
    Reload,
    /// Open log files again, after they were renamed.
    Reopen,
    /// Drain; the second time, stop.
    End,
    /// Nothing. The number is the signal's.
    Ignored(i32),
}

impl Signal {
    fn of(number: i32) -> Signal {
        match number {
            libc::SIGHUP => Signal::Reload,
            libc::SIGUSR1 => Signal::Reopen,
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => Signal::End,
            number => Signal::Ignored(number),
        }
    }
}

/// All signals whose default is to end the process, but for those of faults: after SIGSEGV and
/// its like there is no going on, and SIGABRT is a panic's last word. SIGPIPE is ignored by the
/// language's runtime.
fn caught() -> impl Iterator<Item = i32> {
    let named = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ];
    named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// The signals as they come.
pub struct Signals(Receiver<Signal>);

impl Signals {
    /// Watches for signals. Within a local tokio runtime only.
    ///
    /// # Errors
    /// Those of installing a handler.
    pub fn watch() -> io::Result<Signals> {
        let (sender, receiver) = channel(WAITING_MAX);
        for number in caught() {
            let mut stream = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::task::spawn_local(async move {
                while stream.recv().await.is_some() {
                    // With so many waiting, one more of them changes nothing.
                    let _ = sender.try_send(Signal::of(number));
                }
            });
        }
        Ok(Signals(receiver))
    }

    /// The next signal; never, without a watch.
    pub async fn next(signals: &mut Option<Signals>) -> Signal {
        let Some(Signals(receiver)) = signals else { return std::future::pending().await };
        match receiver.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}
