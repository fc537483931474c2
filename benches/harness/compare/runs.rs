//! Outcomes of scenarios as values of a comparison.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::jwt::{self, Algorithm, JwtKey, JwtOptions, JwtVerifier, TokenScratch};
use serde_json::Value;

use crate::echo::EchoOutcome;
use crate::idle::IdleOutcome;
use crate::measure::{CpuSample, CpuUse};
use crate::open::OpenOutcome;
use crate::results::Run;
use crate::stats::{Latencies, Stats};

/// Bytes of the token that is verified.
const TOKEN_BYTES: usize = 200;
/// Verifications between two looks at the clock.
const TOKEN_BATCH: u64 = 1000;

/// Messages of an echo or a fan-in.
pub fn of_echo(outcome: &EchoOutcome, wanted: u64) -> Run {
    let mut run = Run::default();
    put(&mut run, "rate", outcome.messages as f64 / outcome.seconds.max(1e-9));
    if let Some(micros) = outcome.server_micros() {
        put(&mut run, "server_cpu_us", micros);
    }
    put(&mut run, "client_cpu_us", outcome.client_micros());
    latencies(&mut run, &outcome.stats.round_trips);
    late(&mut run, &outcome.stats.lateness);
    sides(&mut run, outcome.server.as_ref(), &outcome.client);
    faults(&mut run, &outcome.stats);
    if outcome.opened != wanted {
        run.faults.push(format!("{} of {wanted} connections opened", outcome.opened));
    }
    if outcome.messages == 0 {
        run.faults.push("no message came back".to_owned());
    }
    run
}

/// Cycles of connect and close.
pub fn of_open(outcome: &OpenOutcome) -> Run {
    let mut run = Run::default();
    put(&mut run, "rate", outcome.finished as f64 / outcome.seconds.max(1e-9));
    if let Some(used) = &outcome.server {
        put(&mut run, "server_cpu_us", outcome.micros(used));
    }
    put(&mut run, "client_cpu_us", outcome.micros(&outcome.client));
    latencies(&mut run, &outcome.stats.opening);
    let handshakes = outcome.stats.handshakes;
    if handshakes > 0 {
        put(&mut run, "resumed_percent", 100.0 * outcome.stats.resumed as f64 / handshakes as f64);
    }
    sides(&mut run, outcome.server.as_ref(), &outcome.client);
    faults(&mut run, &outcome.stats);
    if outcome.finished == 0 {
        run.faults.push("no cycle was finished".to_owned());
    }
    run
}

/// Connections that stayed.
pub fn of_idle(outcome: &IdleOutcome, wanted: u64) -> Run {
    let mut run = Run::default();
    let (user, resident) = outcome.user_bytes();
    put(&mut run, "user_bytes", user);
    put(&mut run, "resident_bytes", resident);
    put(&mut run, "kernel_bytes", outcome.kernel_bytes());
    put(&mut run, "connections", outcome.open_now as f64);
    if let Some(used) = &outcome.resting {
        let each = used.cpu * 1e6 / used.wall / outcome.open_now.max(1) as f64;
        put(&mut run, "rest_cpu_us", each);
    }
    faults(&mut run, &outcome.stats);
    if outcome.open_now != wanted {
        run.faults.push(format!("{} of {wanted} connections were open", outcome.open_now));
    }
    run
}

/// What the flood wrote as JSON.
pub fn of_flood(report: &Value) -> Run {
    let mut run = Run::default();
    let at = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let honest = "/honest_connections_during_the_flood";
    let field = |name: &str| at(&format!("{honest}/{name}"));
    if let (Some(begun), Some(succeeded)) = (field("begun"), field("succeeded"))
        && begun > 0.0
    {
        put(&mut run, "success_percent", 100.0 * succeeded / begun);
    }
    for (metric, name) in [("p50_ms", "p50_us"), ("p99_ms", "p99_us"), ("p999_ms", "p99_9_us")] {
        if let Some(micros) = field(&format!("intended_start_to_open/{name}")) {
            put(&mut run, metric, micros / 1000.0);
        }
    }
    let values = [
        ("disconnected", "/established_connections/disconnected"),
        ("lost", "/established_connections/messages_lost"),
        ("oldest_s", "/server/oldest_junk_socket/seconds"),
        ("recovered_s", "/server/no_junk_socket_left_after"),
        ("junk_rate", "/flood/junk_connects_per_second_reached"),
        ("peak_bytes", "/server/server_resident/1"),
    ];
    for (metric, path) in values {
        if let Some(value) = at(path) {
            put(&mut run, metric, value);
        }
    }
    if run.values.is_empty() {
        run.faults.push("the flood reported nothing that is known here".to_owned());
    }
    run
}

/// Verifies one token for a while, in this thread.
pub fn of_tokens(accepted: bool, duration: Duration) -> Result<Run, String> {
    let secret = Secret::new(vec![7; 32]);
    let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let claims = |filler: usize| {
        let filler = "x".repeat(filler);
        format!(r#"{{"sub":"user-4711","iat":{now},"exp":{},"jti":"{filler}"}}"#, now + 86_400)
    };
    let token = (0..TOKEN_BYTES)
        .map(|filler| jwt::mint(&key, claims(filler).as_bytes()))
        .find(|token| token.len() >= TOKEN_BYTES)
        .ok_or("no token of that length")?;
    let mut bytes = token.into_bytes();
    if !accepted {
        let at = bytes.len() - 5;
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    }
    let verifier = JwtVerifier::new(vec![key], JwtOptions::default())
        .map_err(|error| format!("the verifier: {error}"))?;
    let mut scratch = TokenScratch::default();
    let at = UnixTime::from_seconds(now);
    if verifier.verify(&bytes, at, &mut scratch).is_ok() != accepted {
        return Err("the verifier does not say what it should".to_owned());
    }
    let mine = [std::process::id()];
    let (mut done, began) = (0u64, Instant::now());
    let before = CpuSample::take(&mine)?;
    while began.elapsed() < duration {
        for _ in 0..TOKEN_BATCH {
            let outcome = verifier.verify(black_box(&bytes), at, &mut scratch).is_ok();
            black_box(outcome);
        }
        done += TOKEN_BATCH;
    }
    // CPU time, not time: another program may have had the core. Other threads of ours sleep.
    let each = before.until(&CpuSample::take(&mine)?).cpu / done as f64;
    let mut run = Run::default();
    put(&mut run, "server_cpu_us", each * 1e6);
    put(&mut run, "rate", 1.0 / each);
    run.limit = instructions().to_owned();
    Ok(run)
}

/// Whether the processor helps with SHA-256.
fn instructions() -> &'static str {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    match flags.split_whitespace().any(|flag| flag == "sha_ni") {
        true => "with SHA-NI",
        false => "without SHA-NI",
    }
}

fn put(run: &mut Run, metric: &str, value: f64) {
    debug_assert!(crate::results::METRICS.iter().any(|known| known.id == metric), "{metric}");
    if value.is_finite() {
        run.values.insert(metric.to_owned(), value);
    }
}

fn latencies(run: &mut Run, spans: &Latencies) {
    if spans.is_empty() {
        return;
    }
    let quantiles = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p999_ms", 0.999)];
    for (metric, quantile) in quantiles {
        put(run, metric, spans.value_at_quantile(quantile) as f64 / 1e6);
    }
}

fn late(run: &mut Run, spans: &Latencies) {
    if !spans.is_empty() {
        put(run, "late_p99_ms", spans.value_at_quantile(0.99) as f64 / 1e6);
    }
}

fn sides(run: &mut Run, server: Option<&CpuUse>, client: &CpuUse) {
    if let Some(server) = server {
        put(run, "server_busy", server.busiest * 100.0);
    }
    put(run, "client_busy", client.busiest * 100.0);
    run.limit = match (server.is_some_and(CpuUse::saturated), client.saturated()) {
        (true, false) => "server saturated",
        (false, true) => "client saturated",
        (true, true) => "both saturated",
        (false, false) => "neither saturated",
    }
    .to_owned();
}

fn faults(run: &mut Run, stats: &Stats) {
    if let Some(error) = &stats.error {
        run.faults.push(error.clone());
    }
    let kinds = stats.failures.iter().take(5);
    run.faults.extend(kinds.map(|(kind, count)| format!("{kind}: {count}")));
    if stats.unanswered > 0 {
        run.faults.push(format!("{} answers missing", stats.unanswered));
    }
    if let (Some(sample), false) = (&stats.sample, run.faults.is_empty()) {
        run.faults.push(format!("the server said {sample}"));
    }
}
