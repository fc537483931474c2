//! The gateway in a process of its own, and what it says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::support::{Child, Client, Config, series_value, token, wait_until};

/// A gateway, and how many descriptors it had at rest.
pub struct World {
    pub child: Child,
    descriptors: usize,
    closes: BTreeMap<String, u64>,
}

/// Every way to authenticate that a stage needs, to these endpoints.
pub fn config(endpoints: &[&str]) -> Config {
    let slow = "timeout = \"1m\"";
    Config { routes: String::new(), ..Config::default() }
        .backend(endpoints, "")
        .route("/ws", "auth = \"none\"")
        .guarded("first", "first-message", "")
        .guarded("header", "header:x-token", "")
        .asking("judged", "backend", &["header:x-token"], slow)
}

impl World {
    /// Starts it, with this shell text before it, and waits for its links.
    pub fn start(config: Config, before: &str, links: u64) -> World {
        let child = Child::start(config, before);
        let mut world = World { child, descriptors: 0, closes: BTreeMap::new() };
        world.wait_links(links);
        // What is made at the first use is there before anything is measured.
        world.greet();
        world.wait_metric("portcullis_closes_total{cause=\"client_closed\"}", |n| n == 1);
        world.rest();
        world.descriptors = world.descriptors();
        world.closes = world.all_closes();
        world
    }

    pub fn metrics(&self) -> String {
        self.child.get("/metrics").1
    }

    pub fn metric(&self, series: &str) -> u64 {
        series_value(&self.metrics(), series)
    }

    pub fn wait_metric(&self, series: &str, is: impl Fn(u64) -> bool) -> u64 {
        let mut last = 0;
        wait_until(series, || {
            last = self.metric(series);
            is(last)
        });
        last
    }

    /// Waits until so many links are ready.
    pub fn wait_links(&self, count: u64) {
        self.wait_metric("portcullis_links{state=\"ready\"}", |ready| ready == count);
    }

    /// An honest client is served.
    pub fn greet(&self) {
        let fields = format!("X-Token: {}\r\n", token("good"));
        let mut client = Client::open(self.child.address, "/header", &fields);
        client.echo("hello");
        client.close(1000, "");
        client.close_frame();
        client.end();
    }

    fn all_closes(&self) -> BTreeMap<String, u64> {
        let page = self.metrics();
        let lines = page.lines().filter_map(|line| {
            let (cause, count) =
                line.strip_prefix("portcullis_closes_total{cause=\"")?.split_once("\"} ")?;
            Some((cause.to_owned(), count.parse().ok()?))
        });
        lines.collect()
    }

    /// Waits until these causes, and no others, have ended so many connections since the start.
    #[track_caller]
    pub fn assert_closes(&self, expected: &[(&str, u64)]) {
        let expected: BTreeMap<&str, u64> = expected.iter().copied().collect();
        let closes = || -> BTreeMap<String, u64> {
            let before = |cause: &String| self.closes.get(cause).copied().unwrap_or(0);
            let since = |(cause, count)| (count - before(&cause), cause);
            let closes = self.all_closes().into_iter().map(since);
            closes.filter(|(count, _)| *count > 0).map(|(count, cause)| (cause, count)).collect()
        };
        let total: u64 = expected.values().sum();
        wait_until(&format!("{total} connections ended"), || {
            closes().values().sum::<u64>() >= total
        });
        let closes = closes();
        let closes: BTreeMap<&str, u64> = closes.iter().map(|(c, n)| (c.as_str(), *n)).collect();
        assert_eq!(closes, expected);
    }

    /// Waits until no connection is left, and nothing waits.
    pub fn rest(&self) {
        wait_until("no connection, no bytes that wait", || {
            let page = self.metrics();
            let gauges = page.lines().filter(|line| {
                let names =
                    ["connections{", "queued_bytes ", "stalled_input_bytes ", "verdicts_awaited "];
                names.iter().any(|name| line.starts_with(&format!("portcullis_{name}")))
            });
            !page.is_empty()
                && gauges.clone().count() > 3
                && gauges.clone().all(|l| l.ends_with(" 0"))
        });
        assert_eq!(self.metric("portcullis_worker_panics_total"), 0);
    }

    /// Descriptors of the process. A question to the admin listener is one for a moment: the
    /// least of a few looks.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        let looks = (0..10).map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            fs::read_dir(&folder).expect("it runs").count()
        });
        looks.min().expect("ten looks")
    }

    /// After the fault: links and new clients are as before, and what was taken is back.
    pub fn assert_recovered(&self, links: u64) {
        self.wait_links(links);
        wait_until("somebody is served", || {
            let fields = format!("X-Token: {}\r\n", token("good"));
            let mut client = Client::connect(self.child.address);
            client.write(crate::support::request("/header", &fields).as_bytes());
            let opened = client.try_head().is_some();
            if opened {
                client.text("hello");
            }
            opened && client.frame().is_some_and(|frame| frame.payload == b"hello")
        });
        self.greet();
        self.rest();
        wait_until("the descriptors are back", || self.descriptors() <= self.descriptors);
    }

    /// Runs `prlimit` on the gateway.
    pub fn limit_descriptors(&self, soft: usize) {
        let (pid, limit) = (self.child.id().to_string(), format!("--nofile={soft}:"));
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(status.expect("prlimit").success());
    }
}
