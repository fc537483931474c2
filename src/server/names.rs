//! The names of endpoints: resolved by the system's resolver, again and again, on threads of their
//! own, because that resolver blocks and has no deadline.
//!
//! It is the one that the HTTP service uses, too: it honours /etc/hosts and nsswitch.conf. A failed,
//! late or empty answer changes nothing but a counter and the log: what a name stood for last, it
//! stands for.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::logs::escaped;
use crate::settings::Settings;
use crate::settings::endpoint::HostPort;
use crate::worker::mailbox::EndpointPlan;

/// Lookups at one time: one that hangs keeps its thread until the system gives it up.
const LOOKUPS_MAX: usize = 8;
/// Addresses of one name that are used.
pub const ADDRESSES_MAX: usize = 64;
/// How long a start or a reload waits for names that have no answer yet.
pub const FIRST_ANSWER_MAX: Duration = Duration::from_secs(2);

/// Finds the addresses of names. It may block.
pub trait Resolver: Send + Sync {
    /// All addresses of a name.
    ///
    /// # Errors
    /// Why there are none, for people.
    fn resolve(&self, name: &HostPort) -> Result<Vec<SocketAddr>, String>;
}

/// The system's resolver.
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, name: &HostPort) -> Result<Vec<SocketAddr>, String> {
        let addresses = (name.host.as_str(), name.port).to_socket_addrs();
        addresses.map(Iterator::collect).map_err(|error| error.to_string())
    }
}

/// Asks once, with a deadline. The thread is left behind when the resolver hangs.
///
/// # Errors
/// Why there is no address, for people.
pub fn resolve_within(name: &HostPort, limit: Duration) -> Result<Vec<SocketAddr>, String> {
    let (name, (done, answer)) = (name.clone(), channel());
    let lookup = move || drop(done.send(SystemResolver.resolve(&name)));
    let spawned = std::thread::Builder::new().name("resolver".into()).spawn(lookup);
    spawned.map_err(|error| error.to_string())?;
    let late = |_| format!("no answer in {} s", limit.as_secs());
    answer.recv_timeout(limit).map_err(late)?.and_then(usable)
}

/// An answer in a lasting order, without what is in it twice and what is beyond the bound.
fn usable(mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, String> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() { Err("it has no address".into()) } else { Ok(addresses) }
}

type Answer = (HostPort, Result<Vec<SocketAddr>, String>);

/// Every name that the settings have, and what each stands for.
pub struct Names {
    resolver: Arc<dyn Resolver>,
    names: BTreeMap<HostPort, Name>,
    plan: Arc<EndpointPlan>,
    interval: Duration,
    lookups: usize,
    failures: u64,
    answers_in: Sender<Answer>,
    answers: Receiver<Answer>,
}

struct Name {
    state: State,
    /// When it is asked next.
    due: Instant,
    /// There was an answer, or none in time.
    settled: bool,
    /// The last answer was none.
    failing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// A lookup is under way since then.
    Asked(Instant),
    /// It takes too long, which is counted. No other begins before it ends.
    Late,
}

impl Names {
    /// No names yet.
    pub fn new(resolver: Arc<dyn Resolver>) -> Self {
        let (answers_in, answers) = channel();
        Names {
            resolver,
            names: BTreeMap::new(),
            plan: Arc::default(),
            interval: Duration::MAX,
            lookups: 0,
            failures: 0,
            answers_in,
            answers,
        }
    }

    /// What they stand for.
    pub fn plan(&self) -> &Arc<EndpointPlan> {
        &self.plan
    }

    /// Lookups that failed, were late or empty.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Takes the names of these settings in place of those before, and waits for the answers about
    /// new ones, for a while.
    pub fn follow(&mut self, settings: &Settings, patience: Duration) {
        let now = Instant::now();
        self.interval = settings.deadlines.resolve_interval;
        let endpoints = settings.backends.iter().flat_map(|backend| &backend.endpoints);
        let mut before = std::mem::take(&mut self.names);
        for name in endpoints.filter_map(|endpoint| endpoint.name()) {
            let fresh = || Name { state: State::Idle, due: now, settled: false, failing: false };
            let known = before.remove(name).unwrap_or_else(fresh);
            // An answer to an earlier lookup of a name that was removed and is back counts, too.
            self.names.entry(name.clone()).or_insert(known);
        }
        let mut addresses = self.plan.addresses.clone();
        addresses.retain(|name, _| self.names.contains_key(name));
        self.publish(addresses);
        self.advance(now);
        while self.names.values().any(|name| !name.settled) {
            let left = patience.saturating_sub(now.elapsed());
            match self.answers.recv_timeout(left) {
                Ok(answer) => self.take(answer, Instant::now()),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
            self.advance(Instant::now());
        }
    }

    /// Does what is due. Whether a name stands for something else now.
    pub fn advance(&mut self, now: Instant) -> bool {
        let before = Arc::clone(&self.plan);
        while let Ok(answer) = self.answers.try_recv() {
            self.take(answer, now);
        }
        let names: Vec<HostPort> = self.names.keys().cloned().collect();
        for name in names {
            self.advance_name(&name, now);
        }
        !Arc::ptr_eq(&before, &self.plan)
    }

    fn advance_name(&mut self, host_port: &HostPort, now: Instant) {
        let Some(name) = self.names.get_mut(host_port) else { return };
        match name.state {
            State::Asked(since) if now.duration_since(since) >= self.interval => {
                name.state = State::Late;
                let why = format!("no answer in {} s", self.interval.as_secs());
                self.failed(host_port, &why);
            }
            State::Idle if name.due <= now && self.lookups < LOOKUPS_MAX => {
                name.state = State::Asked(now);
                name.due = now + self.interval;
                let (resolver, answers) = (Arc::clone(&self.resolver), self.answers_in.clone());
                let asked = host_port.clone();
                let lookup = move || {
                    let answer = resolver.resolve(&asked).and_then(usable);
                    // The gateway may have ended.
                    let _ = answers.send((asked, answer));
                };
                let thread = std::thread::Builder::new().name("resolver".into());
                match thread.spawn(lookup) {
                    Ok(_) => self.lookups += 1,
                    Err(error) => {
                        name.state = State::Idle;
                        self.failed(host_port, &error.to_string());
                    }
                }
            }
            State::Idle | State::Asked(_) | State::Late => {}
        }
    }

    fn take(&mut self, (host_port, answer): Answer, now: Instant) {
        self.lookups -= 1;
        // A reload may have removed it.
        let Some(name) = self.names.get_mut(&host_port) else { return };
        let was_late = std::mem::replace(&mut name.state, State::Idle) == State::Late;
        name.due = name.due.max(now);
        match answer {
            Ok(found) => {
                if std::mem::take(&mut name.failing) {
                    tracing::info!(name = %host_port, "the name resolves again");
                }
                name.settled = true;
                self.stands_for(host_port, found);
            }
            Err(why) if !was_late => self.failed(&host_port, &why),
            Err(_) => {}
        }
    }

    fn stands_for(&mut self, name: HostPort, found: Vec<SocketAddr>) {
        if self.plan.addresses.get(&name) == Some(&found) {
            return;
        }
        tracing::info!(%name, addresses = ?found, "the name of an endpoint resolves to other addresses");
        let mut addresses = self.plan.addresses.clone();
        addresses.insert(name, found);
        self.publish(addresses);
    }

    fn failed(&mut self, host_port: &HostPort, why: &str) {
        self.failures += 1;
        let Some(name) = self.names.get_mut(host_port) else { return };
        name.settled = true;
        if !std::mem::replace(&mut name.failing, true) {
            let kept = self.plan.addresses.get(host_port).map_or(0, Vec::len);
            let reason = escaped(why);
            tracing::error!(
                name = %host_port,
                reason,
                addresses_kept = kept,
                "the name of an endpoint does not resolve: check it, and the system's DNS"
            );
        }
    }

    fn publish(&mut self, addresses: BTreeMap<HostPort, Vec<SocketAddr>>) {
        if self.plan.addresses != addresses {
            self.plan = Arc::new(EndpointPlan { addresses });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::testing;
    use super::*;
    use crate::settings::endpoint::Endpoint;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Gives the answer that a test set, once the test lets go of the lock.
    struct Fake(Mutex<Result<Vec<SocketAddr>, String>>);

    impl Resolver for Fake {
        fn resolve(&self, _: &HostPort) -> Result<Vec<SocketAddr>, String> {
            self.0.lock().unwrap().clone()
        }
    }

    fn name(text: &str) -> HostPort {
        HostPort::parse(text).unwrap()
    }

    fn naming(names: &[&str]) -> Settings {
        let mut settings = testing::settings();
        settings.backends[0].endpoints =
            names.iter().map(|text| Endpoint::Name(name(text))).collect();
        settings
    }

    fn addresses(hosts: impl IntoIterator<Item = u8>) -> Vec<SocketAddr> {
        hosts.into_iter().map(|host| ([10, 0, 0, host], 7000).into()).collect()
    }

    /// Asks as if an interval had passed, and takes the answer.
    fn ask_again(names: &mut Names) -> bool {
        let later = Instant::now() + names.interval + Duration::from_secs(1);
        names.names.values_mut().for_each(|name| name.due = later);
        names.advance(later);
        let answer = names.answers.recv_timeout(PATIENCE).unwrap();
        let before = Arc::clone(names.plan());
        names.take(answer, later);
        !Arc::ptr_eq(&before, names.plan())
    }

    #[test]
    fn only_good_answers_change_what_a_name_stands_for() {
        let fake = Arc::new(Fake(Mutex::new(Ok(addresses([2, 1, 2])))));
        let mut names = Names::new(fake.clone());
        let app = name("app:7000");
        let answer = |what| *fake.0.lock().unwrap() = what;
        let of = |names: &Names| names.plan().addresses.get(&app).cloned();

        names.follow(&naming(&["app:7000"]), PATIENCE);
        assert_eq!(of(&names), Some(addresses([1, 2])), "in order, and once");
        answer(Ok(addresses([2, 1])));
        assert!(!ask_again(&mut names), "the same in another order");
        for bad in [Err("SERVFAIL\n".into()), Ok(Vec::new())] {
            answer(bad);
            assert!(!ask_again(&mut names));
        }
        assert_eq!((of(&names), names.failures()), (Some(addresses([1, 2])), 2));
        answer(Ok(addresses(1..=200)));
        assert!(ask_again(&mut names));
        assert_eq!(of(&names).map(|found| found.len()), Some(ADDRESSES_MAX));

        names.follow(&naming(&["app:7000", "app:7001"]), PATIENCE);
        assert_eq!(names.plan().addresses.len(), 2, "a reload has new names resolved");
        names.follow(&naming(&[]), PATIENCE);
        assert_eq!(**names.plan(), EndpointPlan::default(), "and forgets removed ones");
    }

    #[test]
    fn a_resolver_that_hangs_is_a_failure_and_its_late_answer_counts() {
        let fake = Arc::new(Fake(Mutex::new(Ok(addresses([1])))));
        let mut names = Names::new(fake.clone());
        let hang = fake.0.lock().unwrap();
        let many: Vec<String> = (0..20).map(|number| format!("app{number}:7000")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let begun = Instant::now();
        names.follow(&naming(&many), Duration::from_millis(50));
        assert!(begun.elapsed() < PATIENCE, "the start goes on");
        assert_eq!((names.lookups, names.failures()), (LOOKUPS_MAX, 0));
        let late = Instant::now() + names.interval;
        assert!(!names.advance(late));
        names.advance(late + names.interval);
        assert_eq!((names.lookups, names.failures()), (LOOKUPS_MAX, LOOKUPS_MAX as u64));

        drop(hang);
        let begun = Instant::now();
        while names.plan().addresses.len() < many.len() {
            assert!(begun.elapsed() < PATIENCE);
            names.advance(Instant::now());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((names.lookups, names.failures()), (0, LOOKUPS_MAX as u64));
    }

    #[test]
    fn the_systems_resolver_knows_localhost() {
        let found = resolve_within(&name("localhost:7000"), PATIENCE).unwrap();
        assert!(found.iter().all(|at| at.ip().is_loopback() && at.port() == 7000), "{found:?}");
        let error = resolve_within(&name("no-such-host.invalid:1"), PATIENCE).unwrap_err();
        assert!(!error.is_empty());
    }
}
