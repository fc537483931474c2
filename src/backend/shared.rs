//! What the tasks of one backend share: its links, and the places of those in their handshake.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::link::Link;
use super::settings::Settings;

/// Names a link across reconnects: instance, worker, link.
pub(super) type LinkName = ([u8; 16], u16, u16);
/// Links that are up, each with its gateway's epoch.
pub(super) type Registry = HashMap<LinkName, (u64, Arc<Link>)>;

pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) instance: [u8; 16],
    pub(super) registry: Mutex<Registry>,
    handshakes: Mutex<Handshakes>,
    pub(super) is_stopping: AtomicBool,
    /// A link ended, or the backend is stopping.
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn new(settings: Settings, instance: [u8; 16]) -> Self {
        Shared {
            settings,
            instance,
            registry: Mutex::new(HashMap::new()),
            handshakes: Mutex::new(Handshakes::default()),
            is_stopping: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handshakes(&self) -> MutexGuard<'_, Handshakes> {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }
}

/// Connections in their handshake, oldest first.
#[derive(Default)]
struct Handshakes {
    next: u64,
    /// The end of its channel makes each give its place up.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A connection's place among those in their handshake.
pub(super) struct Handshake {
    number: u64,
    shared: Arc<Shared>,
    evicted: oneshot::Receiver<()>,
}

impl Handshake {
    /// Takes a place; the oldest gives its own up where there are too many.
    pub(super) fn begin(shared: &Arc<Shared>) -> Self {
        let (sender, evicted) = oneshot::channel();
        let mut handshakes = shared.handshakes();
        let number = handshakes.next;
        handshakes.next += 1;
        handshakes.waiting.insert(number, sender);
        while handshakes.waiting.len() > shared.settings.handshakes_max {
            drop(handshakes.waiting.pop_first());
        }
        drop(handshakes);
        Handshake { number, shared: shared.clone(), evicted }
    }

    /// Waits until a newer connection needs the place.
    pub(super) async fn evicted(&mut self) {
        // Nothing is ever sent: the channel ends when the place is taken away.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.shared.handshakes().waiting.remove(&self.number);
    }
}
