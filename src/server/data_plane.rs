//! The real workers: their listeners, their share of the limits, their rings.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};

use super::auth_client::{AuthNumbers, AuthService};
use super::error::RunError;
use super::memory::total_memory;
use super::workers::{DataPlane, WorkerHandle, WorkerSpawn};
use crate::base::random::Random;
use crate::linux::listener::{ListenerSocket, listen};
use crate::linux::probe::{Probe, probe};
use crate::linux::process;
use crate::linux::ring::{DescriptorMode, LinuxRing, RingOptions};
use crate::ring::GENERATION_BITS;
use crate::settings::{DeferAccept, Descriptors, Limits, Listener, Settings};
use crate::worker::admission::Allowance;
use crate::worker::{SWEEP_SLOTS, Turn, Worker, WorkerOptions};

/// Finished TCP handshakes that may wait for a worker; the kernel caps it at
/// `net.core.somaxconn`.
pub const BACKLOG: u32 = 4096;
/// Descriptors kept back for everything that is not a client: the ring and wake-up of each
/// worker, listeners, links, the control thread's files and sockets.
const DESCRIPTORS_KEPT: u64 = 256;
/// Connections that each worker must have descriptors for, unless the settings want fewer.
const CONNECTIONS_LEAST: u32 = 32;
/// No socket that has not authenticated is older, seen from outside.
const UNAUTHENTICATED_AGE_MAX: Duration = Duration::from_secs(10);
/// For how long the kernel keeps a silent connection to itself: TCP_DEFER_ACCEPT's least.
const DEFER_ACCEPT: Duration = Duration::from_secs(1);

/// One part in this many of the memory budget may be bytes that wait for clients; the rest is
/// for connections, receive buffers, TLS and the kernel.
const QUEUE_PARTS: u64 = 4;

/// Operations of a ring between two enters; more are submitted early.
const RING_ENTRIES: u32 = 4096;
/// 64 KiB each.
const LINK_BUFFERS: u16 = 64;
/// 16 KiB each; only connections with bytes to send hold one, for one send.
const CLIENT_SLOTS: u16 = 2048;
/// 256 KiB each.
const LINK_SLOTS: u16 = 16;

/// Whether another gateway may listen at the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// None: the start fails.
    Nobody,
    /// The one that is being taken over from.
    Predecessor,
}

/// Makes workers on io_uring.
pub struct LinuxDataPlane {
    addresses: Vec<SocketAddr>,
    workers: u16,
    descriptors_max: u32,
    descriptors: DescriptorMode,
    /// Memory that the process may use, in bytes.
    memory: u64,
    pinned: bool,
    instance: [u8; 16],
    /// When the process started, in milliseconds since 1970: one for all workers and lives, or
    /// a backend would take one worker's link for an older gateway's.
    epoch: u64,
    /// The listeners of each worker's first life, bound at the start so that their errors are
    /// the start's.
    first: Mutex<Vec<Option<Vec<ListenerSocket>>>>,
    decisions: AuthService,
}

/// Sockets that each of `workers` may have. With direct descriptors, `descriptor_limit` bounds
/// each ring's own table; otherwise it bounds all workers together.
pub fn descriptor_share(workers: u16, descriptor_limit: u64, mode: DescriptorMode) -> u32 {
    assert!(workers > 0);
    let spare = descriptor_limit.saturating_sub(DESCRIPTORS_KEPT);
    let descriptors = match mode {
        DescriptorMode::Direct => spare,
        DescriptorMode::Plain => spare / u64::from(workers),
    };
    u32::try_from(descriptors).unwrap_or(u32::MAX).max(1)
}

/// The limit on open files at which `workers` can have all connections that the limits allow.
pub fn descriptors_wanted(settings: &Settings, workers: u16, mode: DescriptorMode) -> u64 {
    let clients = Allowance::new(&settings.limits, workers, u32::MAX).connections_max;
    let each = u64::from(clients) * u64::from(settings.sockets_per_client());
    let sockets = match mode {
        DescriptorMode::Direct => each,
        DescriptorMode::Plain => each * u64::from(workers),
    };
    sockets + DESCRIPTORS_KEPT
}

/// The limit on descriptors below which the gateway does not start: one that is up, ready and
/// without room for clients serves none. `connections_max` is a worker's by the settings.
pub fn descriptors_needed(workers: u16, mode: DescriptorMode, connections_max: u32) -> u64 {
    let least = u64::from(CONNECTIONS_LEAST.min(connections_max));
    DESCRIPTORS_KEPT
        + match mode {
            DescriptorMode::Direct => least,
            DescriptorMode::Plain => least * u64::from(workers),
        }
}

/// What accepted sockets are on this kernel.
///
/// # Errors
/// When direct descriptors are asked for and the kernel has none; says what to do.
pub fn descriptor_mode(wanted: Descriptors, kernel: &Probe) -> Result<DescriptorMode, String> {
    match wanted {
        Descriptors::Plain => Ok(DescriptorMode::Plain),
        Descriptors::Auto if kernel.direct_reset => Ok(DescriptorMode::Direct),
        Descriptors::Auto => Ok(DescriptorMode::Plain),
        Descriptors::Direct if !kernel.direct_descriptors => Err(
            "gateway.descriptors is \"direct\", and this kernel registers no descriptor table\n  \
             likely cause: RLIMIT_NOFILE is too small, or a security module forbids it\n  \
             what to do: raise the limit on open files, or set descriptors = \"plain\""
                .into(),
        ),
        Descriptors::Direct => {
            if !kernel.direct_reset {
                tracing::warn!(
                    kernel = kernel.kernel,
                    "direct descriptors cannot be reset before Linux 6.7: connections that \
                     should be reset are closed instead"
                );
            }
            Ok(DescriptorMode::Direct)
        }
    }
}

/// Bytes that may wait for one worker's clients. `memory` is the machine's, the budget when the
/// settings name none.
pub fn queue_share(limits: &Limits, workers: u16, memory: u64) -> u64 {
    limits.memory_max.unwrap_or(memory) / QUEUE_PARTS / u64::from(workers.max(1))
}

impl LinuxDataPlane {
    /// Probes io_uring, binds every listener once for each worker (a port 0 becomes the same
    /// port for all of them) and divides the limits. `beside` says whether another gateway of
    /// this user may listen there.
    ///
    /// # Errors
    /// [`RunError::Ring`] and [`RunError::Bind`].
    pub fn bind(settings: &Settings, beside: Beside) -> Result<LinuxDataPlane, RunError> {
        let ring = |reason: String| RunError::Ring { reason };
        let kernel = probe().map_err(|error| ring(error.to_string()))?;
        let mode = descriptor_mode(settings.gateway.descriptors, &kernel).map_err(ring)?;
        let cores = process::core_count();
        let most = u16::try_from(cores).unwrap_or(u16::MAX).max(1);
        let workers = settings.gateway.workers.unwrap_or(most).max(1);
        let (addresses, first) = bind_all(settings, workers, beside)?;
        let limit = process::raise_descriptor_limit().unwrap_or(1024);
        let wanted = Allowance::new(&settings.limits, workers, u32::MAX).connections_max;
        let needed = descriptors_needed(workers, mode, wanted);
        if limit < needed {
            return Err(RunError::Descriptors { limit, needed });
        }
        let descriptors_max = descriptor_share(workers, limit, mode);
        let wanted = descriptors_wanted(settings, workers, mode);
        if limit < wanted {
            tracing::warn!(
                connections_per_worker = descriptors_max,
                descriptor_limit = limit,
                "the limit on open files allows fewer connections than \
                 limits.connections_max: raise it to {wanted} (LimitNOFILE={wanted} in the \
                 systemd unit, --ulimit nofile={wanted}:{wanted} for docker run, ulimit -n \
                 {wanted} in a shell), or lower limits.connections_max"
            );
        }
        let seed = process::random_seed().map_err(|error| ring(error.to_string()))?;
        let mut instance = [0; 16];
        Random::from_seed(seed).fill(&mut instance);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(LinuxDataPlane {
            addresses,
            workers,
            descriptors_max,
            descriptors: mode,
            memory: total_memory().bytes,
            pinned: usize::from(workers) <= cores,
            instance,
            epoch: since.as_millis() as u64,
            first: Mutex::new(first),
            decisions: AuthService::default(),
        })
    }

    /// Where clients connect, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many workers there are.
    pub fn workers(&self) -> u16 {
        self.workers
    }

    /// The listeners bound at the start, or, for a later life, new ones at the same addresses.
    fn listeners(&self, spawn: &WorkerSpawn) -> Result<Vec<ListenerSocket>, String> {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = first[usize::from(spawn.index)].take() {
            return Ok(bound);
        }
        drop(first);
        let pairs = self.addresses.iter().zip(&spawn.settings.listeners);
        let bind = |(address, listener): (&SocketAddr, &Listener)| {
            let defer = defer_accept(&spawn.settings, listener);
            let send_buffer = spawn.settings.limits.client_send_buffer as usize;
            listen(*address, BACKLOG, defer, send_buffer)
                .map_err(|error| format!("cannot listen on {address} again: {error}"))
        };
        pairs.map(bind).collect()
    }
}

impl DataPlane for LinuxDataPlane {
    fn prepare(&self, settings: &Settings) -> std::io::Result<()> {
        self.decisions.ensure(settings)
    }

    fn decisions(&self) -> Option<&AuthNumbers> {
        Some(self.decisions.numbers())
    }

    fn launch(&self, spawn: WorkerSpawn) -> Result<WorkerHandle, String> {
        if self.pinned
            && let Err(error) = process::pin_to_core(usize::from(spawn.index))
        {
            tracing::warn!(worker = spawn.index, %error, "cannot pin the worker to a core");
        }
        let options = RingOptions {
            entries: RING_ENTRIES,
            client_buffers: spawn.settings.limits.client_buffers,
            link_buffers: LINK_BUFFERS,
            client_slots: CLIENT_SLOTS,
            link_slots: LINK_SLOTS,
            listeners: self.listeners(&spawn)?,
            descriptors: self.descriptors,
        };
        let (ring, waker) = LinuxRing::new(options).map_err(|error| error.to_string())?;
        let seed = process::random_seed().map_err(|error| error.to_string())?;
        let worker_options = WorkerOptions {
            sweep_slots: SWEEP_SLOTS,
            index: spawn.index,
            instance: self.instance,
            epoch: self.epoch,
            generation_bits: GENERATION_BITS,
            workers: self.workers,
            descriptors_max: self.descriptors_max,
            queue_bytes_max: queue_share(&spawn.settings.limits, self.workers, self.memory),
        };
        let WorkerSpawn { settings, counters, mailbox, .. } = spawn;
        let verdicts_waker = waker.clone();
        let mailbox = mailbox.with_auth_client(self.decisions.port(move || verdicts_waker.wake()));
        let random = Random::from_seed(seed);
        let mut worker = Worker::new(ring, settings, counters, mailbox, random, worker_options);
        let body = Box::new(move || matches!(worker.tick(), Turn::Continue));
        Ok(WorkerHandle { body, wake: Box::new(move || waker.wake()) })
    }
}

type Bound = (Vec<SocketAddr>, Vec<Option<Vec<ListenerSocket>>>);

/// Binds every listener for every worker.
fn bind_all(settings: &Settings, workers: u16, beside: Beside) -> Result<Bound, RunError> {
    let mut addresses = Vec::new();
    let mut sockets: Vec<Vec<ListenerSocket>> = (0..workers).map(|_| Vec::new()).collect();
    let send_buffer = settings.limits.client_send_buffer as usize;
    for (index, listener) in settings.listeners.iter().enumerate() {
        let defer = defer_accept(settings, listener);
        let failed = |source| RunError::Bind {
            what: format!("listener {index}"),
            address: listener.address,
            source,
        };
        if beside == Beside::Nobody {
            refuse_if_taken(listener.address).map_err(failed)?;
        }
        let mut address = listener.address;
        for worker in &mut sockets {
            let socket = listen(address, BACKLOG, defer, send_buffer).map_err(failed)?;
            address = socket.local_address();
            worker.push(socket);
        }
        addresses.push(address);
    }
    Ok((addresses, sockets.into_iter().map(Some).collect()))
}

/// With SO_REUSEPORT alone, a second gateway of the same user would silently take half of the
/// first one's connections. A bind without it fails while any process listens there.
pub fn refuse_if_taken(address: SocketAddr) -> std::io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Whether the kernel keeps silent connections to itself at first. Only where that second fits
/// under the age that no unauthenticated socket may pass.
fn defer_accept(settings: &Settings, listener: &Listener) -> Option<Duration> {
    let deadlines = &settings.deadlines;
    let handshake = if listener.tls.is_some() { deadlines.tls_handshake } else { Duration::ZERO };
    let age = DEFER_ACCEPT + handshake + deadlines.request_head + deadlines.authenticate;
    let defers = match listener.defer_accept {
        DeferAccept::Auto => age <= UNAUTHENTICATED_AGE_MAX,
        DeferAccept::On => true,
        DeferAccept::Off => false,
    };
    defers.then_some(DEFER_ACCEPT)
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn limits_are_divided_and_capped() {
        use DescriptorMode::{Direct, Plain};
        // connections, unauthenticated, per worker, workers, descriptors, mode -> share
        let table = [
            ((1_000_000, 50_000, None, 4, 1_048_576, Direct), (250_000, 12_500, false)),
            ((1_000_000, 50_000, None, 4, 1_048_576, Plain), (250_000, 12_500, false)),
            ((1_000_000, 50_000, None, 2, 20_000, Direct), (19_744, 19_744, true)),
            ((1_000_000, 50_000, None, 2, 20_000, Plain), (9_872, 9_872, true)),
            ((1_000_000, 50_000, Some(100), 2, 20_000, Direct), (100, 100, false)),
            ((10, 3, None, 4, 20_000, Direct), (2, 1, false)),
            ((1, 1, None, 4, 20_000, Direct), (1, 1, false)),
            ((1000, 100, None, 1, 0, Plain), (1, 1, true)),
        ];
        for ((total, young, each, workers, descriptors, mode), (most, young_most, capped)) in table
        {
            let mut limits = testing::settings().limits;
            limits.connections_max = total;
            limits.unauthenticated_max = young;
            limits.connections_per_worker = each;
            let sockets = descriptor_share(workers, descriptors, mode);
            let share = Allowance::new(&limits, workers, sockets);
            let wanted = Allowance::new(&limits, workers, u32::MAX).connections_max;
            let found = (share.connections_max, share.unauthenticated_max, sockets < wanted);
            assert_eq!(
                found,
                (most, young_most, capped),
                "{total} over {workers}, {descriptors} {mode:?}"
            );
        }
    }

    #[test]
    fn the_least_limit_gives_each_worker_its_least() {
        use DescriptorMode::{Direct, Plain};
        for (workers, mode, wanted, needed) in [
            (1, Plain, 1000, 288),
            (4, Plain, 1000, 384),
            (4, Direct, 1000, 288),
            (4, Plain, 2, 264),
        ] {
            assert_eq!(descriptors_needed(workers, mode, wanted), needed);
            let least = CONNECTIONS_LEAST.min(wanted);
            assert_eq!(descriptor_share(workers, needed, mode), least);
        }
    }

    #[test]
    fn direct_descriptors_are_used_where_they_can_be_reset_or_are_asked_for() {
        use DescriptorMode::{Direct as InRing, Plain as InProcess};
        use Descriptors::{Auto, Direct, Plain};
        // wanted, the kernel has them, and can reset them -> what is used
        for (wanted, present, reset, expected) in [
            (Auto, true, true, Some(InRing)),
            (Auto, true, false, Some(InProcess)),
            (Auto, false, false, Some(InProcess)),
            (Plain, true, true, Some(InProcess)),
            (Plain, false, false, Some(InProcess)),
            (Direct, true, true, Some(InRing)),
            (Direct, true, false, Some(InRing)),
            (Direct, false, false, None),
        ] {
            let kernel = Probe {
                kernel: "6.1.0".into(),
                registered_ring: true,
                no_index_array: false,
                min_wait: false,
                restrictions: false,
                direct_descriptors: present,
                direct_reset: reset,
            };
            let mode = descriptor_mode(wanted, &kernel);
            assert_eq!(mode.as_ref().ok(), expected.as_ref(), "{wanted:?} {present} {reset}");
            if let Err(why) = mode {
                assert!(why.contains("what to do: raise the limit on open files"), "{why}");
            }
        }
    }

    #[test]
    fn queues_get_a_part_of_the_budget() {
        let mut limits = testing::settings().limits;
        assert_eq!(queue_share(&limits, 2, 16 << 30), 2 << 30);
        limits.memory_max = Some(1 << 30);
        assert_eq!(queue_share(&limits, 2, 16 << 30), 128 << 20);
    }

    #[test]
    fn silent_connections_are_deferred_only_where_the_deadlines_leave_a_second() {
        let mut settings = testing::settings();
        let defers = |settings: &Settings| defer_accept(settings, &settings.listeners[0]).is_some();
        assert!(defers(&settings));
        settings.listeners[0].defer_accept = DeferAccept::Off;
        assert!(!defers(&settings));
        settings.listeners[0].defer_accept = DeferAccept::Auto;
        settings.deadlines.authenticate = Duration::from_secs(8);
        assert!(!defers(&settings));
        settings.listeners[0].defer_accept = DeferAccept::On;
        assert!(defers(&settings));
    }

    #[test]
    fn every_worker_listens_on_the_one_port_and_a_second_gateway_is_refused() {
        let mut settings = testing::settings();
        let plane = LinuxDataPlane::bind(&settings, Beside::Nobody).unwrap();
        let address = plane.addresses()[0];
        assert_ne!(address.port(), 0);
        for listeners in plane.first.lock().unwrap().iter().flatten() {
            assert_eq!(listeners[0].local_address(), address);
        }
        settings.listeners[0].address = address;
        let error = LinuxDataPlane::bind(&settings, Beside::Nobody)
            .err()
            .expect("the port is taken")
            .to_string();
        assert!(error.contains("listener 0") && error.contains("listens there"), "{error}");
        drop(plane);
        assert!(LinuxDataPlane::bind(&settings, Beside::Nobody).is_ok());
    }
}
