//! What a gateway tells of itself while it is loaded: its /metrics, read from time to time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Map, json};

use crate::report::Report;

/// Age of the oldest unauthenticated connection.
const OLDEST: &str = "portcullis_unauthenticated_oldest_seconds";
/// Connections that are not authenticated.
const COUNT: &str = "portcullis_unauthenticated_connections";
/// Counters that tell what became of junk; those that did not grow are left out.
const COUNTERS: [&str; 12] = [
    "portcullis_connections_accepted_total",
    "portcullis_connections_over_cap_total",
    "portcullis_accept_errors_total",
    "portcullis_early_drops_total",
    "portcullis_evictions_total",
    "portcullis_tls_rate_refusals_total",
    "portcullis_penalties_total",
    "portcullis_memory_refusals_total",
    "portcullis_memory_closes_total",
    "portcullis_deadline_closes_total",
    "portcullis_tokens_refused_total",
    "portcullis_worker_panics_total",
];

/// Readings of one gateway.
pub struct CloseDetails {
    address: String,
    before: Vec<(String, f64)>,
    after: Vec<(String, f64)>,
    oldest: f64,
    most: f64,
}

impl CloseDetails {
    /// The first reading.
    ///
    /// # Errors
    /// When there is no exposition at `address`.
    pub fn begin(address: &str) -> Result<CloseDetails, String> {
        let before = read(address)
            .filter(|series| !series.is_empty())
            .ok_or_else(|| format!("--metrics {address}: no answer to GET /metrics"))?;
        let after = before.clone();
        Ok(CloseDetails { address: address.to_owned(), before, after, oldest: 0.0, most: 0.0 })
    }

    /// Reads again. A gateway too busy to answer is asked the next time.
    pub fn look(&mut self) {
        let Some(now) = read(&self.address) else { return };
        self.oldest = self.oldest.max(value(&now, OLDEST).unwrap_or(0.0));
        self.most = self.most.max(value(&now, COUNT).unwrap_or(0.0));
        self.after = now;
    }

    /// Adds what was told to the report.
    pub fn report(&self, report: &mut Report) {
        if value(&self.before, OLDEST).is_some() {
            let text = format!("{:.2} s", self.oldest);
            report.line("oldest unauthenticated, it says", json!(self.oldest), text);
            report.count("unauthenticated at most, it says", self.most as u64);
        }
        let mut grown = Map::new();
        for (series, now) in &self.after {
            let name = series.split('{').next().unwrap_or(series);
            let more = now - value(&self.before, series).unwrap_or(0.0);
            if COUNTERS.contains(&name) && more > 0.0 {
                grown.insert(series.trim_start_matches("portcullis_").to_owned(), json!(more));
            }
        }
        for (series, more) in grown {
            let text = more.as_f64().unwrap_or(0.0).to_string();
            report.line(series, more, text);
        }
    }
}

fn value(series: &[(String, f64)], name: &str) -> Option<f64> {
    series.iter().find(|(series, _)| series == name).map(|(_, value)| *value)
}

/// Every series with its value.
fn read(address: &str) -> Option<Vec<(String, f64)>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let ask = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let lines = page.lines().filter(|line| line.starts_with("portcullis_"));
    let pairs = lines.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series.to_owned(), value.parse().ok()?))
    });
    Some(pairs.collect())
}
