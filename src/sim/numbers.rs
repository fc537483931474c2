//! Numbers by name against the numbers of the whole worker.

use std::collections::HashMap;

use crate::counters::{Counters, Metric};
use crate::protocol::cause::Cause;

/// What is counted by listener, route and endpoint adds up to what is counted for the whole worker, once
/// no client is left.
///
/// # Errors
/// The first difference.
pub fn named_adds_up(counters: &Counters) -> Result<(), String> {
    let mut named: HashMap<(&str, Option<&str>), u64> = HashMap::new();
    counters.each_named(|description, _, value| {
        // A connection is counted at its route, or at its listener if it never had one.
        let name = match description.name {
            "portcullis_listener_closes_total" => "portcullis_route_closes_total",
            name => name,
        };
        *named.entry((name, description.label.map(|(_, value)| value))).or_default() += value;
    });
    let (from, to) = (Some("from_client"), Some("to_client"));
    let metrics = [
        ("portcullis_listener_accepted_total", None, Some(Metric::Accepted)),
        ("portcullis_listener_connections", None, None),
        ("portcullis_route_connections", None, None),
        ("portcullis_route_sessions_opened_total", None, Some(Metric::SessionsOpened)),
        ("portcullis_route_messages_total", from, Some(Metric::MessagesFromClients)),
        ("portcullis_route_messages_total", to, Some(Metric::MessagesToClients)),
        ("portcullis_route_message_bytes_total", from, Some(Metric::BytesFromClients)),
        ("portcullis_route_message_bytes_total", to, Some(Metric::BytesToClients)),
        ("portcullis_endpoint_links", Some("ready"), Some(Metric::LinksReady)),
        ("portcullis_endpoint_links", Some("down"), Some(Metric::LinksDown)),
        ("portcullis_endpoint_sessions", None, None),
    ];
    let closes = Cause::ALL.iter().map(|cause| {
        ("portcullis_route_closes_total", Some(cause.label()), counters.closes(*cause))
    });
    let metrics = metrics.map(|(n, label, m)| (n, label, m.map_or(0, |m| counters.value(m))));
    let both = |link, server| counters.value(link) + counters.value(server);
    let connects = both(Metric::LinkConnects, Metric::UpstreamConnects);
    let failures = both(Metric::LinkFailures, Metric::UpstreamFailures);
    let endpoints = [
        ("portcullis_endpoint_connects_total", None, connects),
        ("portcullis_endpoint_failures_total", None, failures),
    ];
    for (name, label, whole) in metrics.into_iter().chain(endpoints).chain(closes) {
        let sum = named.get(&(name, label)).copied().unwrap_or_default();
        if sum != whole {
            return Err(format!("{name} {label:?} is {sum} with all names, {whole} in all"));
        }
    }
    Ok(())
}
