//! The gateway's state as the admin endpoints show it: health, readiness, live numbers.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::workers::WorkerStatus;
use crate::counters::{self, Description};

/// A worker whose loop has not turned for this long counts as dead. Its loop turns at least once
/// in `ring::ENTER_WAIT_MAX`.
pub const BEAT_AGE_MAX: Duration = Duration::from_secs(5);

/// What the gateway as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet serving.
    Starting,
    /// Serving.
    Serving,
    /// CloseDetails to stop; clients are being closed.
    Draining,
    /// About to exit.
    Stopping,
}

/// All that the endpoints show, but for `/metrics`.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the gateway is doing.
    pub phase: Phase,
    /// Listeners bound.
    pub listeners: usize,
    /// Each worker.
    pub workers: Vec<WorkerStatus>,
    /// Workers that panicked since the start.
    pub panics: u64,
    /// When the gateway started.
    pub started: Instant,
    /// The workers' counters summed, in the order of [`counters::descriptions`].
    pub sums: Vec<u64>,
    /// `gateway.ready_without_backend`.
    pub ready_without_backend: bool,
    /// Memory is so short that new connections are reset.
    pub memory_short: bool,
    /// Messages per second to the gateway, over the last full second.
    pub from_clients_per_second: f64,
    /// Messages per second to clients, over the last full second.
    pub to_clients_per_second: f64,
}

impl Status {
    /// The status of a gateway that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Status {
            phase: Phase::Starting,
            listeners: 0,
            workers: Vec::new(),
            panics: 0,
            started: now,
            ready_without_backend: true,
            memory_short: false,
            sums: vec![0; counters::descriptions().count()],
            from_clients_per_second: 0.0,
            to_clients_per_second: 0.0,
        }
    }

    /// Whether the process does its work; otherwise it should be restarted.
    ///
    /// # Errors
    /// What is wrong.
    pub fn health(&self) -> Result<(), String> {
        for (index, worker) in self.workers.iter().enumerate() {
            if worker.stopped && self.phase != Phase::Serving {
                continue;
            }
            if worker.beat_ago > BEAT_AGE_MAX {
                let seconds = worker.beat_ago.as_secs();
                return Err(format!("worker {index} has not turned for {seconds} s"));
            }
        }
        Ok(())
    }

    /// Whether new connections should be sent here.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), String> {
        match self.phase {
            Phase::Starting => return Err("starting".into()),
            Phase::Draining => return Err("draining".into()),
            Phase::Stopping => return Err("stopping".into()),
            Phase::Serving => {}
        }
        if self.listeners == 0 {
            return Err("no listener".into());
        }
        if self.workers_alive() == 0 {
            return Err("no worker is up".into());
        }
        if self.memory_short {
            return Err("memory is short".into());
        }
        if !self.ready_without_backend && self.links_ready() == 0 {
            return Err("no backend is linked".into());
        }
        Ok(())
    }

    /// How many workers run and turn.
    pub fn workers_alive(&self) -> usize {
        self.workers.iter().filter(|worker| alive(worker)).count()
    }

    /// Takes in the counters' new sums, `elapsed` after the last ones.
    pub fn take_sums(&mut self, sums: Vec<u64>, elapsed: Duration) {
        let rate = |direction: &str| {
            let is = |d: &Description| {
                d.name == "portcullis_messages_total" && d.label == Some(("direction", direction))
            };
            let index = counters::descriptions().position(|d| is(&d)).expect("both are described");
            let messages = sums[index].saturating_sub(self.sums[index]);
            messages as f64 / elapsed.as_secs_f64().max(0.001)
        };
        let (from, to) = (rate("from_client"), rate("to_client"));
        (self.from_clients_per_second, self.to_clients_per_second) = (from, to);
        self.sums = sums;
    }

    /// The numbers for the live page.
    pub fn live(&self, now: Instant) -> Value {
        let phase = match self.phase {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
            Phase::Stopping => "stopping",
        };
        let workers: Vec<Value> = (self.workers.iter())
            .map(|worker| json!({"alive": alive(worker), "connections": worker.connections}))
            .collect();
        json!({
            "pid": std::process::id(),
            "phase": phase,
            "ready": self.readiness().is_ok(),
            "uptime_seconds": now.saturating_duration_since(self.started).as_secs(),
            "connections": self.by_label("portcullis_connections"),
            "messages_per_second": {
                "from_clients": self.from_clients_per_second,
                "to_clients": self.to_clients_per_second,
            },
            "messages_total": self.by_label("portcullis_messages_total"),
            "bytes_total": self.by_label("portcullis_message_bytes_total"),
            "closes": self.by_label("portcullis_closes_total"),
            "links": self.by_label("portcullis_links"),
            "accepted_total": self.value("portcullis_connections_accepted_total"),
            "upgrades_total": self.value("portcullis_upgrades_total"),
            "tokens_refused_total": self.value("portcullis_tokens_refused_total"),
            "workers": workers,
            "worker_panics": self.panics,
        })
    }

    /// Links that can take sessions, of all workers.
    fn links_ready(&self) -> u64 {
        let is =
            |d: &Description| d.name == "portcullis_links" && d.label == Some(("state", "ready"));
        let found = counters::descriptions().zip(&self.sums).find(|(d, _)| is(d));
        found.map_or(0, |(_, sum)| *sum)
    }

    fn value(&self, name: &str) -> u64 {
        let sums = counters::descriptions().zip(&self.sums);
        sums.filter(|(d, _)| d.name == name).map(|(_, sum)| *sum).sum()
    }

    /// Every series of one name, keyed by its label's value.
    fn by_label(&self, name: &str) -> Value {
        let mut map = Map::new();
        for (description, sum) in counters::descriptions().zip(&self.sums) {
            if let (true, Some((_, value))) = (description.name == name, description.label) {
                map.insert(value.to_owned(), json!(sum));
            }
        }
        Value::Object(map)
    }
}

fn alive(worker: &WorkerStatus) -> bool {
    worker.up && worker.beat_ago <= BEAT_AGE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{Counters, Metric};
    use crate::protocol::cause::Cause;
    use crate::server::exposition;

    const UP: WorkerStatus =
        WorkerStatus { up: true, stopped: false, beat_ago: Duration::ZERO, connections: 0 };
    const DEAD: WorkerStatus = WorkerStatus { up: false, ..UP };
    const HUNG: WorkerStatus = WorkerStatus { beat_ago: Duration::from_secs(6), ..UP };
    const STOPPED: WorkerStatus = WorkerStatus { up: false, stopped: true, ..HUNG };

    fn status(phase: Phase, listeners: usize, workers: &[WorkerStatus]) -> Status {
        Status { phase, listeners, workers: workers.to_vec(), ..Status::new(Instant::now()) }
    }

    #[test]
    fn readiness_and_health_in_every_phase() {
        use Phase::*;
        type Row<'a> = (Phase, usize, &'a [WorkerStatus], &'a str, &'a str);
        let table: &[Row] = &[
            (Starting, 0, &[], "starting", ""),
            (Serving, 1, &[UP, UP], "", ""),
            (Serving, 1, &[UP, DEAD], "", ""),
            (Serving, 1, &[UP, HUNG], "", "worker 1 has not turned for 6 s"),
            (Serving, 1, &[DEAD], "no worker is up", ""),
            (Serving, 1, &[HUNG], "no worker is up", "worker 0 has not turned for 6 s"),
            (Serving, 0, &[UP], "no listener", ""),
            (Serving, 1, &[], "no worker is up", ""),
            (Draining, 1, &[UP, STOPPED], "draining", ""),
            (Draining, 1, &[HUNG], "draining", "worker 0 has not turned for 6 s"),
            (Stopping, 1, &[STOPPED], "stopping", ""),
        ];
        for (phase, listeners, workers, unready, unhealthy) in table {
            let status = status(*phase, *listeners, workers);
            let why = |result: Result<(), String>| result.err().unwrap_or_default();
            assert_eq!(why(status.readiness()), *unready, "{status:?}");
            assert_eq!(why(status.health()), *unhealthy, "{status:?}");
        }
    }

    #[test]
    fn who_is_short_of_memory_is_healthy_but_not_ready() {
        let short = Status { memory_short: true, ..status(Phase::Serving, 1, &[UP]) };
        assert_eq!(short.readiness(), Err("memory is short".into()));
        assert_eq!(short.health(), Ok(()));
    }

    #[test]
    fn a_gateway_that_reaches_no_backend_is_ready_if_the_settings_say_so() {
        let counters = Counters::default();
        let mut status = status(Phase::Serving, 1, &[UP]);
        assert_eq!(status.readiness(), Ok(()));
        status.ready_without_backend = false;
        assert_eq!(status.readiness(), Err("no backend is linked".into()));
        assert_eq!(status.health(), Ok(()), "a restart would not help");
        counters.set(Metric::LinksReady, 1);
        status.take_sums(exposition::sums([&counters].into_iter()), Duration::from_secs(1));
        assert_eq!(status.readiness(), Ok(()));
    }

    #[test]
    fn the_live_numbers_come_from_the_counters() {
        let counters = Counters::default();
        let mut status = status(Phase::Serving, 1, &[UP]);
        counters.add(Metric::MessagesFromClients, 100);
        status.take_sums(exposition::sums([&counters].into_iter()), Duration::from_secs(1));
        counters.add(Metric::MessagesFromClients, 50);
        counters.add(Metric::MessagesToClients, 20);
        counters.set(Metric::StageOpen, 9);
        counters.set(Metric::LinksReady, 2);
        counters.closed(Cause::Idle, None);
        status.take_sums(exposition::sums([&counters].into_iter()), Duration::from_secs(2));
        let live = status.live(status.started + Duration::from_secs(61));
        let table = [
            ("/messages_per_second/from_clients", json!(25.0)),
            ("/messages_per_second/to_clients", json!(10.0)),
            ("/messages_total/from_client", json!(150)),
            ("/connections/open", json!(9)),
            ("/connections/refused", json!(0)),
            ("/links/ready", json!(2)),
            ("/closes/idle", json!(1)),
            ("/workers/0/alive", json!(true)),
            ("/uptime_seconds", json!(61)),
            ("/phase", json!("serving")),
            ("/ready", json!(true)),
        ];
        for (pointer, expected) in table {
            assert_eq!(live.pointer(pointer), Some(&expected), "{pointer} in {live}");
        }
        assert_eq!(live["closes"].as_object().unwrap().len(), Cause::ALL.len());
    }
}
