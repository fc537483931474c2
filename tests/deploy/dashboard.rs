//! The Grafana dashboard: a table of panels, from which `deploy/grafana/portcullis.json` is
//! written. `UPDATE=1 cargo test --test deploy dashboard` writes it again.

use std::path::Path;

use serde_json::{Value, json};

const FILE: &str = "deploy/grafana/portcullis.json";

/// A curve: its expression and its legend.
type Curve = (&'static str, &'static str);

struct Panel {
    title: &'static str,
    /// What to look for, shown at the panel.
    description: &'static str,
    unit: &'static str,
    stacked: bool,
    curves: &'static [Curve],
}

const fn panel(title: &'static str, unit: &'static str, curves: &'static [Curve]) -> Panel {
    Panel { title, description: "", unit, stacked: false, curves }
}

impl Panel {
    const fn about(mut self, description: &'static str) -> Panel {
        self.description = description;
        self
    }

    const fn stacked(mut self) -> Panel {
        self.stacked = true;
        self
    }
}

/// Panels of one row, side by side; at most four.
struct Row {
    title: &'static str,
    panels: &'static [Panel],
}

/// `METRIC` for the chosen machines, summed.
macro_rules! now {
    ($metric:literal) => {
        concat!("sum(", $metric, "{instance=~\"$instance\"})")
    };
    ($metric:literal by $label:literal) => {
        concat!("sum by (", $label, ") (", $metric, "{instance=~\"$instance\"})")
    };
}

/// A counter's growth in a second.
macro_rules! rate {
    ($metric:literal) => {
        concat!("sum(rate(", $metric, "{instance=~\"$instance\"}[$__rate_interval]))")
    };
    ($metric:literal by $label:literal) => {
        concat!(
            "sum by (",
            $label,
            ") (rate(",
            $metric,
            "{instance=~\"$instance\"}[$__rate_interval]))"
        )
    };
}

const ROWS: &[Row] = &[
    Row {
        title: "Overview",
        panels: &[
            panel(
                "Machines up and draining",
                "short",
                &[
                    (now!("portcullis_build_info"), "up"),
                    (now!("portcullis_draining"), "draining"),
                ],
            )
            .about("Gateways that answer their scrapes."),
            panel(
                "Memory pressure",
                "short",
                &[(
                    "max by (instance) (portcullis_memory_rung{instance=~\"$instance\"})",
                    "{{instance}}",
                )],
            )
            .about(
                "0 none, 1 new connections are reset, 2 unauthenticated ones too, 3 slow readers \
                 too.",
            ),
            panel(
                "Certificates: time left",
                "s",
                &[(
                    "min by (instance, listener) (portcullis_certificate_not_after_seconds\
                     {instance=~\"$instance\"}) - time()",
                    "{{instance}} {{listener}}",
                )],
            )
            .about("Until the first certificate of each listener expires."),
            panel(
                "Uptime",
                "s",
                &[(
                    "time() - max by (instance) (process_start_time_seconds\
                     {instance=~\"$instance\"})",
                    "{{instance}}",
                )],
            )
            .about("Since the process started."),
        ],
    },
    Row {
        title: "Connections",
        panels: &[
            panel("Connections by stage", "short", &[(now!("portcullis_connections" by "stage"), "{{stage}}")]).about("Where connections are between accept and close. Most should be open; many in an early stage mean slow clients or a flood.")
                .stacked(),
            panel(
                "New connections",
                "cps",
                &[
                    (rate!("portcullis_connections_accepted_total"), "accepted"),
                    (rate!("portcullis_connections_over_cap_total"), "reset, over a cap"),
                    (rate!("portcullis_accept_errors_total"), "failed"),
                    (rate!("portcullis_accept_exhausted_total"), "failed, exhausted"),
                ],
            ).about("Accepted, reset or failed at accept. Anything but accepted should be zero."),
            panel(
                "TLS handshakes, upgrades and tokens",
                "cps",
                &[
                    (rate!("portcullis_tls_handshakes_total"), "TLS handshakes"),
                    (rate!("portcullis_upgrades_total"), "101 answers"),
                    (rate!("portcullis_tokens_accepted_total"), "tokens accepted"),
                    (rate!("portcullis_tokens_refused_total"), "tokens refused"),
                    (rate!("portcullis_dead_token_hits_total"), "refused from the cache"),
                ],
            ).about("How far new connections come. More tokens refused than accepted points to an expired key or an attack."),
        ],
    },
    Row {
        title: "Admission (unauthenticated connections)",
        panels: &[
            panel(
                "Unauthenticated connections and cap",
                "short",
                &[
                    (now!("portcullis_unauthenticated_connections"), "connections"),
                    (now!("portcullis_unauthenticated_connections_max"), "cap"),
                    (now!("portcullis_prefixes" by "table"), "prefixes, {{table}}"),
                ],
            ).about("At 80 % of the cap early drop begins; at the cap, old connections are evicted."),
            panel(
                "Visitors and cap",
                "short",
                &[
                    (now!("portcullis_visitors"), "visitors"),
                    (now!("portcullis_visitors_max"), "cap"),
                    (rate!("portcullis_visitors_evicted_total"), "closed for others, per second"),
                ],
            ).about("Clients without an identity, on routes whose auth ends with anonymous."),
            panel(
                "Age of the oldest unauthenticated connection",
                "s",
                &[(
                    "max by (instance) \
                     (portcullis_unauthenticated_oldest_seconds{instance=~\"$instance\"})",
                    "{{instance}}",
                )],
            ).about("Never above the sum of the deadlines, 10 s by default."),
            panel(
                "Resets under pressure",
                "cps",
                &[
                    (rate!("portcullis_early_drops_total" by "reason"), "early drop, {{reason}}"),
                    (rate!("portcullis_evictions_total" by "kind"), "evicted, {{kind}}"),
                    (rate!("portcullis_tls_rate_refusals_total"), "TLS rate"),
                    (rate!("portcullis_memory_refusals_total"), "memory, at accept"),
                    (rate!("portcullis_memory_closes_total"), "memory, slow readers"),
                    (rate!("portcullis_penalties_total"), "penalties begun"),
                ],
            ).about("Connections reset to protect the others, by reason. Zero in quiet times."),
            panel(
                "Memory, used and budget",
                "bytes",
                &[
                    (now!("portcullis_memory_used_bytes"), "used"),
                    (now!("portcullis_memory_budget_bytes"), "budget"),
                ],
            ).about("At 85 % of the budget new connections are reset."),
        ],
    },
    Row {
        title: "Closes",
        panels: &[
            panel("Delayed closes", "cps", &[(rate!("portcullis_closes_paced_total"), "paced")]).about("Close frames sent after the dialect's close delay, so that clients do not return immediately."),
            panel("Closes by cause", "cps", &[(rate!("portcullis_closes_total" by "cause"), "{{cause}}")]).about("Why connections ended. docs/closing.md explains each cause.")
                .stacked(),
            panel("Closes by detail", "cps", &[(rate!("portcullis_close_details_total" by "detail"), "{{detail}}")]).about("What a bad request, a failed TLS handshake or a wrong PROXY header was in particular.")
                .stacked(),
            panel(
                "Closes by deadline",
                "cps",
                &[(rate!("portcullis_deadline_closes_total" by "stage"), "{{stage}}")],
            ).about("Connections that a deadline ended, by stage.")
            .stacked(),
            panel(
                "Close log lines lost",
                "cps",
                &[
                    (rate!("portcullis_close_lines_dropped_total"), "above the rate limit"),
                    (rate!("portcullis_close_log_dropped_total"), "file too slow or not writable"),
                ],
            ).about("Lines beyond limits.close_lines_per_second, and lines that the file could not take."),
        ],
    },
    Row {
        title: "Revocation and re-authentication",
        panels: &[
            panel(
                "Active revocations",
                "short",
                &[(now!("portcullis_revocations" by "instance"), "{{instance}}")],
            ).about("The limit is limits.revocations_max."),
            panel(
                "Effects and failures of revocations",
                "cps",
                &[
                    (rate!("portcullis_revoked_total" by "when"), "client revoked, {{when}}"),
                    (rate!("portcullis_revocations_refused_total"), "revocation refused, no room"),
                    (rate!("portcullis_revocation_save_failures_total"), "save failed"),
                ],
            ).about("Clients that were revoked; revocations that could not be kept or saved should be zero."),
            panel(
                "Failed lookups of endpoints' names",
                "cps",
                &[(rate!("portcullis_resolve_failures_total"), "lookup failed")],
            ).about("While a name does not resolve, the addresses that it had stay in use."),
            panel(
                "Fresh tokens on open connections",
                "cps",
                &[
                    (rate!("portcullis_reauthentications_total" by "result"), "{{result}}"),
                    (rate!("portcullis_expiries_set_total"), "expiry set by a backend"),
                ],
            ).about("Re-authentications by result, and expiries that backends set."),
        ],
    },
    Row {
        title: "Messages",
        panels: &[
            panel(
                "Messages",
                "cps",
                &[(rate!("portcullis_messages_total" by "direction"), "{{direction}}")],
            ).about("Whole messages relayed, by direction."),
            panel(
                "Message bytes",
                "Bps",
                &[(rate!("portcullis_message_bytes_total" by "direction"), "{{direction}}")],
            ).about("Payload bytes relayed, by direction."),
            panel("Pings to clients", "cps", &[(rate!("portcullis_pings_sent_total"), "sent to clients")]).about("Sent after deadlines.ping_interval without input."),
        ],
    },
    Row {
        title: "Listeners",
        panels: &[
            panel(
                "Connections by listener",
                "short",
                &[(now!("portcullis_listener_connections" by "listener"), "{{listener}}")],
            ).about("In any stage.")
                .stacked(),
            panel(
                "New connections by listener",
                "cps",
                &[
                    (rate!("portcullis_listener_accepted_total" by "listener"), "{{listener}}"),
                    (rate!("portcullis_listener_refused_total" by "listener"), "{{listener}}, reset"),
                ],
            ).about("Accepted, and of these reset immediately for a cap, a share, a penalty or want of memory."),
            panel(
                "Closes before a route by listener",
                "cps",
                &[(rate!("portcullis_listener_closes_total" by "listener, cause"), "{{listener}} {{cause}}")],
            ).about("Connections that ended before their route was known: failed TLS handshakes, unknown paths, scanners."),
        ],
    },
    Row {
        title: "Routes",
        panels: &[
            panel(
                "Connections and new sessions by route",
                "short",
                &[
                    (now!("portcullis_route_connections" by "route"), "{{route}}"),
                    (rate!("portcullis_route_sessions_opened_total" by "route"), "{{route}}, new in a second"),
                ],
            ).about("Connections whose session was opened."),
            panel(
                "Closes by route",
                "cps",
                &[(rate!("portcullis_route_closes_total" by "route, cause"), "{{route}} {{cause}}")],
            ).about("Why connections of a route ended. docs/closing.md explains each cause."),
            panel(
                "Messages by route",
                "cps",
                &[(rate!("portcullis_route_messages_total" by "route, direction"), "{{route}} {{direction}}")],
            ).about("A route whose messages go one way only may have a backend that does not answer."),
            panel(
                "Message bytes by route",
                "Bps",
                &[(rate!("portcullis_route_message_bytes_total" by "route, direction"), "{{route}} {{direction}}")],
            ).about("Payload bytes relayed, by route and direction."),
        ],
    },
    Row {
        title: "Links to backends",
        panels: &[
            panel("Links to backends", "short", &[(now!("portcullis_links" by "state"), "{{state}}")]).about("One for each worker and endpoint. All should be ready.")
                .stacked(),
            panel(
                "Round trip of link pings",
                "s",
                &[
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(\
                         portcullis_link_rtt_seconds_bucket{instance=~\"$instance\"}\
                         [$__rate_interval])))",
                        "median",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(\
                         portcullis_link_rtt_seconds_bucket{instance=~\"$instance\"}\
                         [$__rate_interval])))",
                        "99th percentile",
                    ),
                    (
                        "sum(rate(portcullis_link_rtt_seconds_sum\
                         {instance=~\"$instance\"}[$__rate_interval])) \
                         / sum(rate(portcullis_link_rtt_seconds_count\
                         {instance=~\"$instance\"}[$__rate_interval]))",
                        "mean",
                    ),
                ],
            ).about("A rise means that a backend, or the way to it, is slow."),
            panel(
                "Link connects, failures and sessions",
                "cps",
                &[
                    (rate!("portcullis_link_connects_total"), "links made"),
                    (rate!("portcullis_link_failures_total"), "failed or lost"),
                    (rate!("portcullis_link_violations_total"), "protocol broken"),
                    (rate!("portcullis_link_stale_frames_total"), "stale frames"),
                    (rate!("portcullis_link_revocations_ignored_total"), "revocations ignored"),
                    (rate!("portcullis_sessions_opened_total"), "sessions opened"),
                ],
            ).about("Links that connect and fail again and again show a backend that restarts, or a wrong secret."),
        ],
    },
    Row {
        title: "WebSocket servers behind the gateway",
        panels: &[
            panel("Servers", "short", &[(now!("portcullis_upstreams" by "state"), "{{state}}")]).about("One for each worker and endpoint. One that rests has failed several times in a row.")
                .stacked(),
            panel(
                "Connections to servers",
                "short",
                &[(now!("portcullis_upstream_connections"), "connections")],
            ).about("One for each proxied client, those included that are being made."),
            panel(
                "Handshakes with servers",
                "cps",
                &[
                    (rate!("portcullis_upstream_dials_total"), "begun"),
                    (rate!("portcullis_upstream_connects_total"), "accepted"),
                    (rate!("portcullis_upstream_ports_exhausted_total"), "no port free"),
                    (rate!("portcullis_upstream_refusals_total"), "answered with a refusal"),
                    (rate!("portcullis_upstream_message_refusals_total"), "refused by a message"),
                    (rate!("portcullis_upstream_messages_held_total"), "messages held back"),
                    (rate!("portcullis_upstream_failures_total"), "failed"),
                ],
            ).about("Refusals are about clients, failures about servers."),
            panel(
                "Connections to servers that broke",
                "cps",
                &[
                    (rate!("portcullis_upstream_violations_total"), "protocol broken"),
                    (rate!("portcullis_upstream_stalls_total"), "nothing read in time"),
                ],
            ).about("Their clients were told to come again."),
        ],
    },
    Row {
        title: "Endpoints of backends",
        panels: &[
            panel(
                "Links and resting servers by endpoint",
                "short",
                &[
                    (now!("portcullis_endpoint_links" by "backend, endpoint, state"), "{{backend}} {{endpoint}} {{state}}"),
                    (now!("portcullis_endpoint_resting" by "backend, endpoint"), "{{backend}} {{endpoint}} rests"),
                ],
            ).about("One for each worker. All links should be ready, and no WebSocket server should rest."),
            panel(
                "Sessions by endpoint",
                "short",
                &[(now!("portcullis_endpoint_sessions" by "backend, endpoint"), "{{backend}} {{endpoint}}")],
            ).about("Open sessions, and auth requests that wait. Endpoints of one backend should have about the same.")
                .stacked(),
            panel(
                "Connects and failures by endpoint",
                "cps",
                &[
                    (rate!("portcullis_endpoint_connects_total" by "backend, endpoint"), "{{backend}} {{endpoint}} made"),
                    (rate!("portcullis_endpoint_failures_total" by "backend, endpoint"), "{{backend}} {{endpoint}} failed or lost"),
                ],
            ).about("An endpoint with both restarts again and again, or does not answer pings."),
            panel(
                "Standstills by endpoint",
                "cps",
                &[
                    (rate!("portcullis_endpoint_pings_unanswered_total" by "backend, endpoint"), "{{backend}} {{endpoint}} ping unanswered"),
                    (rate!("portcullis_endpoint_credit_stalls_total" by "backend, endpoint"), "{{backend}} {{endpoint}} no credit"),
                ],
            ).about("Times that deadlines.link_ping passed without an answer to a ping, and deadlines.link_stall without credit."),
        ],
    },
    Row {
        title: "Auth requests to backends and HTTP endpoints",
        panels: &[
            panel(
                "Auth requests by outcome",
                "cps",
                &[
                    (rate!("portcullis_verdicts_total" by "outcome"), "{{outcome}}"),
                    (rate!("portcullis_verdicts_unasked_total"), "not requested"),
                ],
            ).about("Decisions of backends and HTTP endpoints about tokens.")
            .stacked(),
            panel(
                "Auth request duration",
                "s",
                &[
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(\
                         portcullis_verdict_seconds_bucket{instance=~\"$instance\"}\
                         [$__rate_interval])))",
                        "median",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(\
                         portcullis_verdict_seconds_bucket{instance=~\"$instance\"}\
                         [$__rate_interval])))",
                        "99th percentile",
                    ),
                    (
                        "sum(rate(portcullis_verdict_seconds_sum\
                         {instance=~\"$instance\"}[$__rate_interval])) \
                         / sum(rate(portcullis_verdict_seconds_count\
                         {instance=~\"$instance\"}[$__rate_interval]))",
                        "mean",
                    ),
                ],
            ).about("From an auth request to its answer: median, 99th percentile, mean."),
            panel(
                "Auth requests in flight",
                "short",
                &[
                    (now!("portcullis_verdicts_awaited"), "awaited"),
                    (now!("portcullis_verdict_requests_in_flight"), "requests at endpoints"),
                    (now!("portcullis_verdict_circuits" by "state"), "circuits {{state}}"),
                ],
            ).about("Requests that wait for an answer, and HTTP endpoints by the state of their circuit breaker."),
        ],
    },
    Row {
        title: "Backpressure and buffers",
        panels: &[
            panel(
                "Clients not read (no credit)",
                "short",
                &[(now!("portcullis_reads_paused"), "reads paused")],
            ).about("Clients whose backend does not keep up: the gateway stops reading from them."),
            panel(
                "Bytes waiting",
                "bytes",
                &[
                    (now!("portcullis_stalled_input_bytes"), "from clients, for credit"),
                    (now!("portcullis_queued_bytes"), "to be sent"),
                ],
            ).about("Input that waits for a backend's credit, and output that waits for readers."),
            panel(
                "Free receive buffers",
                "short",
                &[(now!("portcullis_receive_buffers_free" by "instance"), "{{instance}}")],
            ).about("The lowest worker decides; near zero, receives are delayed."),
            panel(
                "Operations delayed for lack of buffers",
                "cps",
                &[
                    (rate!("portcullis_receive_starved_total"), "receives"),
                    (rate!("portcullis_send_starved_total"), "sends"),
                ],
            ).about("Zero but for bursts; else raise limits.client_buffers."),
        ],
    },
    Row {
        title: "Workers",
        panels: &[
            panel(
                "Workers",
                "short",
                &[
                    (now!("portcullis_workers"), "configured"),
                    (now!("portcullis_workers_alive"), "running"),
                    (now!("portcullis_draining"), "machines that drain"),
                ],
            ).about("Running should equal configured."),
            panel(
                "Worker loop",
                "cps",
                &[
                    (rate!("portcullis_worker_ticks_total"), "iterations"),
                    (rate!("portcullis_worker_completions_total"), "completions"),
                    (rate!("portcullis_stale_completions_total"), "stale completions"),
                ],
            ).about("Iterations and completions; stale completions are harmless."),
            panel(
                "Longest loop iteration",
                "s",
                &[(
                    "max by (phase) \
                     (portcullis_worker_tick_longest_seconds{instance=~\"$instance\"})",
                    "{{phase}}",
                )],
            ).about("By part, of the last one to two minutes. Every client of the worker waits for it."),
            panel(
                "Panics and reloads",
                "cps",
                &[
                    (rate!("portcullis_worker_panics_total"), "panics"),
                    (rate!("portcullis_reloads_total" by "result"), "reloads {{result}}"),
                ],
            ).about("A panic is a bug: report it. A refused reload changes nothing."),
        ],
    },
    Row {
        title: "Process",
        panels: &[
            panel(
                "CPU",
                "percentunit",
                &[(rate!("process_cpu_seconds_total" by "instance"), "{{instance}}")],
            ).about("100 % is one core."),
            panel(
                "Resident memory",
                "bytes",
                &[(now!("process_resident_memory_bytes" by "instance"), "{{instance}}")],
            ).about("Memory of the process itself, without the kernel's socket buffers."),
            panel(
                "Open file descriptors",
                "short",
                &[(now!("process_open_fds" by "instance"), "{{instance}}, without direct ones")],
            ).about("Plain descriptors only: direct ones belong to the rings."),
            panel(
                "Version",
                "short",
                &[(
                    "count by (version) (portcullis_build_info{instance=~\"$instance\"})",
                    "{{version}}",
                )],
            ).about("Each version that runs."),
        ],
    },
];

/// Every expression of the file as it is committed.
pub fn expressions() -> Vec<String> {
    let dashboard = crate::json(FILE);
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}

const SOURCE: fn() -> Value = || json!({ "type": "prometheus", "uid": "${source}" });

fn chart(panel: &Panel, id: usize, position: Value) -> Value {
    let targets = panel.curves.iter().zip('A'..).map(|((expression, legend), letter)| {
        json!({
            "datasource": SOURCE(), "expr": expression, "legendFormat": legend,
            "refId": letter.to_string(),
        })
    });
    let stacking = if panel.stacked { "normal" } else { "none" };
    let fill = if panel.stacked { 30 } else { 5 };
    json!({
        "id": id,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE(),
        "gridPos": position,
        "targets": targets.collect::<Vec<_>>(),
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit, "min": 0,
                "custom": { "fillOpacity": fill, "lineWidth": 1, "stacking": { "mode": stacking } },
            },
            "overrides": [],
        },
        "options": {
            "legend": { "displayMode": "list", "placement": "bottom" },
            "tooltip": { "mode": "multi", "sort": "desc" },
        },
    })
}

fn panels() -> Vec<Value> {
    let mut panels: Vec<Value> = Vec::new();
    let mut y = 0;
    for row in ROWS {
        let position = json!({ "x": 0, "y": y, "w": 24, "h": 1 });
        let id = panels.len() + 1;
        panels.push(json!({
            "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": position,
        }));
        let width = 24 / row.panels.len();
        for (column, panel) in row.panels.iter().enumerate() {
            let position = json!({ "x": column * width, "y": y + 1, "w": width, "h": 8 });
            let id = panels.len() + 1;
            panels.push(chart(panel, id, position));
        }
        y += 9;
    }
    panels
}

fn dashboard() -> Value {
    json!({
        "uid": "portcullis",
        "title": "Portcullis",
        "description": "A Portcullis WebSocket gateway: clients, authentication, closes, backends, workers. docs/operating.md explains every metric and every alert.",
        "tags": ["portcullis"],
        "schemaVersion": 38,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": { "from": "now-3h", "to": "now" },
        "templating": { "list": [
            { "name": "source", "type": "datasource", "query": "prometheus", "label": "Source" },
            {
                "name": "instance", "type": "query", "label": "Machine", "datasource": SOURCE(),
                "query": { "query": "label_values(portcullis_build_info, instance)", "refId": "A" },
                "includeAll": true, "multi": true, "refresh": 2,
                "current": { "text": "All", "value": "$__all" },
            },
        ] },
        "panels": panels(),
    })
}

#[test]
fn the_file_is_what_the_table_makes() {
    let mut expected = serde_json::to_string_pretty(&dashboard()).expect("it is plain data");
    expected.push('\n');
    if std::env::var_os("UPDATE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
        std::fs::write(path, &expected).expect("written");
    }
    let same = crate::file(FILE) == expected;
    assert!(same, "{FILE} is old: UPDATE=1 cargo test --test deploy dashboard");
}

#[test]
fn panels_have_titles_of_their_own_and_do_not_overlap() {
    for panel in ROWS.iter().flat_map(|row| row.panels) {
        assert!(panel.description.len() > 10, "{} has no description", panel.title);
    }
    let panels = panels();
    let area = |panel: &Value| {
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        (at("x"), at("y"), at("w"), at("h"))
    };
    for (index, one) in panels.iter().enumerate() {
        let (x, y, w, h) = area(one);
        assert!(w > 0 && x + w <= 24, "{}", one["title"]);
        for other in &panels[index + 1..] {
            let (x2, y2, w2, h2) = area(other);
            let apart = x + w <= x2 || x2 + w2 <= x || y + h <= y2 || y2 + h2 <= y;
            assert!(apart, "{} over {}", one["title"], other["title"]);
            let titled = one["title"] != other["title"] || one["type"] != other["type"];
            let described = one["type"] == "row" || one["description"] != "";
            assert!(described, "{} has no description", one["title"]);
            assert!(titled && one["id"] != other["id"], "{} twice", one["title"]);
        }
    }
}
