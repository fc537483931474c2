//! The Grafana dashboard: a table of panels, from which `deploy/grafana/portcullis.json` is
//! written. `UPDATE=1 cargo test --test deploy dashboard` writes it again.

use std::path::Path;

use serde_json::{Value, json};

const FILE: &str = "deploy/grafana/portcullis.json";

/// A curve: its expression and its legend.
type Curve = (&'static str, &'static str);

struct Panel {
    title: &'static str,
    /// What to look for, shown at the panel's title.
    about: &'static str,
    unit: &'static str,
    stacked: bool,
    curves: &'static [Curve],
}

const fn panel(title: &'static str, unit: &'static str, curves: &'static [Curve]) -> Panel {
    Panel { title, about: "", unit, stacked: false, curves }
}

impl Panel {
    const fn about(mut self, about: &'static str) -> Panel {
        self.about = about;
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
        title: "Connections",
        panels: &[
            panel("By stage", "short", &[(now!("portcullis_connections" by "stage"), "{{stage}}")])
                .about(
                    "`authenticating` should be small. `open` are your clients; it must not \
                     fall in a flood.",
                )
                .stacked(),
            panel(
                "Accepts",
                "cps",
                &[
                    (rate!("portcullis_connections_accepted_total"), "accepted"),
                    (rate!("portcullis_connections_over_cap_total"), "reset, over a cap"),
                    (rate!("portcullis_accept_errors_total"), "failed"),
                    (rate!("portcullis_accept_exhausted_total"), "failed, exhausted"),
                ],
            )
            .about(
                "`reset, over a cap` means that connections_max or the descriptor limit \
                     is reached.",
            ),
            panel(
                "Handshakes and tokens",
                "cps",
                &[
                    (rate!("portcullis_tls_handshakes_total"), "TLS handshakes"),
                    (rate!("portcullis_upgrades_total"), "101 answers"),
                    (rate!("portcullis_tokens_accepted_total"), "tokens accepted"),
                    (rate!("portcullis_tokens_refused_total"), "tokens refused"),
                    (rate!("portcullis_dead_token_hits_total"), "refused from the cache"),
                ],
            )
            .about(
                "After an outage accepted tokens rise for a minute. Refused tokens: see \
                     Closes by cause.",
            ),
        ],
    },
    Row {
        title: "Admission",
        panels: &[
            panel(
                "Unauthenticated",
                "short",
                &[
                    (now!("portcullis_unauthenticated_connections"), "connections"),
                    (now!("portcullis_unauthenticated_connections_max"), "cap"),
                    (now!("portcullis_prefixes" by "table"), "prefixes, {{table}}"),
                ],
            )
            .about(
                "Early drop begins at 80 % of the cap. Few prefixes are one attacker, \
                     many are a flood from everywhere.",
            ),
            panel(
                "Oldest unauthenticated",
                "ms",
                &[(
                    "max by (instance) \
                     (portcullis_unauthenticated_oldest_milliseconds{instance=~\"$instance\"})",
                    "{{instance}}",
                )],
            )
            .about(
                "Below 1 s at rest. Above 11 s with the default deadlines the gateway \
                     does not keep up.",
            ),
            panel(
                "Resets",
                "cps",
                &[
                    (rate!("portcullis_early_drops_total" by "reason"), "early drop, {{reason}}"),
                    (rate!("portcullis_evictions_total" by "kind"), "evicted, {{kind}}"),
                    (rate!("portcullis_tls_rate_refusals_total"), "TLS rate"),
                    (rate!("portcullis_memory_refusals_total"), "memory, at accept"),
                    (rate!("portcullis_memory_closes_total"), "memory, slow readers"),
                    (rate!("portcullis_penalties_total"), "penalties begun"),
                ],
            )
            .about("0 at rest. `evicted, oldest` may hit honest clients."),
            panel(
                "Memory budget",
                "bytes",
                &[
                    (now!("portcullis_memory_used_bytes"), "used"),
                    (now!("portcullis_memory_budget_bytes"), "budget"),
                    (
                        "max by (instance) (portcullis_memory_rung{instance=~\"$instance\"})",
                        "pressure level, {{instance}}",
                    ),
                ],
            )
            .about(
                "At 85, 92 and 95 % of the budget the gateway resets new, unauthenticated \
                     and slow connections.",
            ),
        ],
    },
    Row {
        title: "Closes",
        panels: &[
            panel("Delayed closes", "cps", &[(rate!("portcullis_closes_paced_total"), "delayed")])
                .about(
                    "Close frames after the close delay, for clients that would reconnect \
                     immediately.",
                ),
            panel("By cause", "cps", &[(rate!("portcullis_closes_total" by "cause"), "{{cause}}")])
                .about("docs/closing.md explains every cause.")
                .stacked(),
            panel(
                "Ended by a deadline",
                "cps",
                &[(rate!("portcullis_deadline_closes_total" by "stage"), "{{stage}}")],
            )
            .about(
                "`tls_handshake` and `request_head` are scanners or a flood; \
                     `authenticating` are clients without a token.",
            )
            .stacked(),
            panel(
                "Log lines lost",
                "cps",
                &[
                    (rate!("portcullis_close_lines_dropped_total"), "above the rate limit"),
                    (rate!("portcullis_close_log_dropped_total"), "file too slow or not writable"),
                ],
            )
            .about("The counters on this dashboard still include them."),
        ],
    },
    Row {
        title: "Revocation and fresh tokens",
        panels: &[
            panel(
                "Revocations held",
                "short",
                &[(now!("portcullis_revocations" by "instance"), "{{instance}}")],
            )
            .about("At limits.revocations_max the gateway refuses further ones."),
            panel(
                "Revoked, refused, not saved",
                "cps",
                &[
                    (rate!("portcullis_revoked_total" by "when"), "client revoked, {{when}}"),
                    (rate!("portcullis_revocations_refused_total"), "revocation refused, no room"),
                    (rate!("portcullis_revocation_save_failures_total"), "save failed"),
                ],
            )
            .about("`no room` and `save failed` need action."),
            panel(
                "Fresh tokens",
                "cps",
                &[
                    (rate!("portcullis_reauthentications_total" by "result"), "{{result}}"),
                    (rate!("portcullis_expiries_set_total"), "expiry set by a backend"),
                ],
            )
            .about("Tokens presented on open connections."),
        ],
    },
    Row {
        title: "Messages",
        panels: &[
            panel(
                "Messages",
                "cps",
                &[(rate!("portcullis_messages_total" by "direction"), "{{direction}}")],
            )
            .about("Whole messages, in both directions."),
            panel(
                "Payload",
                "Bps",
                &[(rate!("portcullis_message_bytes_total" by "direction"), "{{direction}}")],
            )
            .about("Payload bytes, without framing and TLS."),
            panel("Pings", "cps", &[(rate!("portcullis_pings_sent_total"), "sent to clients")])
                .about("Each client that is silent for deadlines.ping_interval gets one."),
        ],
    },
    Row {
        title: "Links to backends",
        panels: &[
            panel("Links", "short", &[(now!("portcullis_links" by "state"), "{{state}}")])
                .about("One for each worker and endpoint. `down` should be 0.")
                .stacked(),
            panel(
                "Round trip of the last ping",
                "µs",
                &[(
                    "sum by (instance) (portcullis_link_rtt_microseconds{instance=~\"$instance\"}) \
                     / sum by (instance) (portcullis_workers{instance=~\"$instance\"})",
                    "{{instance}}, mean of its workers",
                )],
            )
            .about(
                "A slow backend or network. Three ping intervals without an answer drop \
                     the link.",
            ),
            panel(
                "Links made and lost",
                "cps",
                &[
                    (rate!("portcullis_link_connects_total"), "links made"),
                    (rate!("portcullis_link_failures_total"), "failed or lost"),
                    (rate!("portcullis_link_violations_total"), "protocol broken"),
                    (rate!("portcullis_link_stale_frames_total"), "stale frames"),
                    (rate!("portcullis_sessions_opened_total"), "sessions opened"),
                ],
            )
            .about(
                "Flat at rest, except for sessions opened. Violations are bugs of a \
                     backend.",
            ),
        ],
    },
    Row {
        title: "Auth decisions by backends and endpoints",
        panels: &[
            panel(
                "Auth decisions",
                "cps",
                &[
                    (rate!("portcullis_verdicts_total" by "outcome"), "{{outcome}}"),
                    (rate!("portcullis_verdicts_unasked_total"), "not requested"),
                ],
            )
            .about("`unavailable`, `timed_out` and `not requested` refuse honest clients.")
            .stacked(),
            panel(
                "Time per auth decision",
                "s",
                &[
                    (
                        "histogram_quantile(0.5, sum by (le) (rate(\
                         portcullis_verdicts_within_total{instance=~\"$instance\"}\
                         [$__rate_interval])))",
                        "half within",
                    ),
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(\
                         portcullis_verdicts_within_total{instance=~\"$instance\"}\
                         [$__rate_interval])))",
                        "99 % within",
                    ),
                    (
                        "sum(rate(portcullis_verdict_microseconds_total\
                         {instance=~\"$instance\"}[$__rate_interval])) / 1e6 \
                         / sum(rate(portcullis_verdicts_within_total\
                         {instance=~\"$instance\",le=\"+Inf\"}[$__rate_interval]))",
                        "mean",
                    ),
                ],
            )
            .about("Compare with the timeout of the [[auth]] block, 2 s by default."),
            panel(
                "In flight",
                "short",
                &[
                    (now!("portcullis_verdicts_awaited"), "awaited"),
                    (now!("portcullis_verdict_requests_in_flight"), "requests at endpoints"),
                    (now!("portcullis_verdict_circuits" by "state"), "circuits {{state}}"),
                ],
            )
            .about("An open circuit means that the gateway does not ask that endpoint."),
        ],
    },
    Row {
        title: "Backpressure and buffers",
        panels: &[
            panel(
                "Clients not read: no credit",
                "short",
                &[(now!("portcullis_reads_paused"), "reads paused")],
            )
            .about("Clients whose backend is behind."),
            panel(
                "Waiting bytes",
                "bytes",
                &[
                    (now!("portcullis_stalled_input_bytes"), "from clients, for credit"),
                    (now!("portcullis_queued_bytes"), "to be sent"),
                ],
            )
            .about("`from clients` grows with slow backends, `to be sent` with slow clients."),
            panel(
                "Receive buffers free",
                "short",
                &[(now!("portcullis_receive_buffers_free" by "instance"), "{{instance}}")],
            )
            .about("Near 0 the workers do not keep up."),
            panel(
                "Starvation",
                "cps",
                &[
                    (rate!("portcullis_receive_starved_total"), "receives"),
                    (rate!("portcullis_send_starved_total"), "sends"),
                ],
            )
            .about("A few in a burst are harmless."),
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
                    (now!("portcullis_draining"), "draining machines"),
                ],
            )
            .about("`running` below `configured`: see the alert PortcullisWorkerDead."),
            panel(
                "Loop iterations and completions",
                "cps",
                &[
                    (rate!("portcullis_worker_ticks_total"), "iterations"),
                    (rate!("portcullis_worker_completions_total"), "completions"),
                    (rate!("portcullis_stale_completions_total"), "stale completions"),
                ],
            )
            .about("Completions per iteration rise with the load."),
            panel(
                "Panics and reloads",
                "cps",
                &[
                    (rate!("portcullis_worker_panics_total"), "panics"),
                    (rate!("portcullis_reloads_total" by "result"), "reloads {{result}}"),
                ],
            )
            .about("Both 0 at rest. A panic is a bug of the gateway."),
        ],
    },
    Row {
        title: "Process",
        panels: &[
            panel(
                "Processor time",
                "short",
                &[(rate!("process_cpu_seconds_total" by "instance"), "{{instance}}, cores")],
            )
            .about("In cores. A worker that is at 1.0 is saturated."),
            panel(
                "Resident memory",
                "bytes",
                &[(now!("process_resident_memory_bytes" by "instance"), "{{instance}}")],
            )
            .about("Compare with Memory budget."),
            panel(
                "Open descriptors",
                "short",
                &[(now!("process_open_fds" by "instance"), "{{instance}}, without direct ones")],
            )
            .about(
                "Without direct descriptors, which hold the clients on Linux 6.7 and \
                     later.",
            ),
            panel(
                "Age and version",
                "s",
                &[(
                    "(time() - process_start_time_seconds{instance=~\"$instance\"}) \
                     * on (instance) group_left (version) portcullis_build_info",
                    "{{instance}} {{version}}",
                )],
            )
            .about("A fall to 0 is a restart."),
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
        "description": panel.about,
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
        "description": "The Portcullis gateway. docs/operating.md explains every metric and alert.",
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
        assert!(panel.about.len() > 10, "{} has no description", panel.title);
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
            assert!(titled && one["id"] != other["id"], "{} twice", one["title"]);
        }
    }
}
