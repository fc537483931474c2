//! Where the worker counts what concerns one listener, one route or one endpoint.

use crate::connection::upstream::link::{Link, Warning};
use crate::counters::{Counters, EndpointMetric, ListenerMetric, RouteMetric, Row};
use crate::protocol::cause::Cause;
use crate::settings::Settings;

use super::clients::Connection;
use super::core::Environment;

/// The rows of the counters' tables, by places in the settings in force.
pub(super) struct Rows {
    listeners: Vec<Row<ListenerMetric>>,
    routes: Vec<Row<RouteMetric>>,
}

impl Rows {
    /// The rows of what these settings name. A name that had one before has it still.
    pub(super) fn new(counters: &Counters, settings: &Settings) -> Self {
        let listener = |address: String| counters.listeners.row(&[&address]);
        let addresses = settings.listeners.iter().map(|listener| listener.address.to_string());
        let names = settings.routes.iter().map(|route| route.name.as_str());
        Rows {
            listeners: addresses.map(listener).collect(),
            routes: names.map(|name| counters.routes.row(&[name])).collect(),
        }
    }
}

impl Environment {
    /// Counts something at a listener.
    pub(super) fn count_at_listener(&self, listener: u16, metric: ListenerMetric) {
        self.counters.listeners.increment(self.rows.listeners[usize::from(listener)], metric);
    }

    /// Counts a client's session at its route, for good: the client may outlive the route.
    pub(super) fn count_session(&self, connection: &mut Connection) {
        let route = connection.client.route(&self.routes);
        let routes = &self.counters.routes;
        // A reload may remove its route while a backend decides on it.
        let row = route.map_or(routes.other(), |route| self.rows.routes[usize::from(route)]);
        routes.increment(row, RouteMetric::SessionsOpened);
        routes.increment(row, RouteMetric::Connections);
        connection.row = Some(row);
    }

    /// Counts a piece of a message of a client with a session.
    pub(super) fn count_fragment(
        &self,
        connection: &Connection,
        way: Way,
        bytes: usize,
        last: bool,
    ) {
        let Some(row) = connection.row else { return };
        let (messages, payload) = match way {
            Way::FromClient => (RouteMetric::MessagesFromClients, RouteMetric::BytesFromClients),
            Way::ToClient => (RouteMetric::MessagesToClients, RouteMetric::BytesToClients),
        };
        self.counters.routes.add(row, payload, bytes as u64);
        self.counters.routes.add(row, messages, u64::from(last));
    }

    /// Brings an endpoint's gauges in line with what has become of one of its links.
    pub(super) fn recount_link(&self, row: Row<EndpointMetric>, before: LinkCount, now: LinkCount) {
        let endpoints = &self.counters.endpoints;
        for (metric, before, now) in [
            (EndpointMetric::LinksReady, before.ready, now.ready),
            (EndpointMetric::LinksDown, before.down, now.down),
            (EndpointMetric::Sessions, before.sessions, now.sessions),
        ] {
            endpoints.replace(row, metric, before.into(), now.into());
        }
    }

    /// Counts a standstill of a backend that goes into the log.
    pub(super) fn count_warning(&self, row: Row<EndpointMetric>, warning: Warning) {
        let metric = match warning {
            Warning::PingUnanswered => EndpointMetric::PingsUnanswered,
            Warning::NoCredit { .. } => EndpointMetric::CreditStalls,
        };
        self.counters.endpoints.increment(row, metric);
    }

    /// Counts a connection that is gone: at its route, or at its listener if it never had one.
    pub(super) fn count_gone(&self, connection: &Connection, cause: Cause) {
        let Connection { client, row, .. } = connection;
        let listener = self.rows.listeners[usize::from(client.listener_number())];
        self.counters.listeners.subtract(listener, ListenerMetric::Connections, 1);
        if let Some(row) = row {
            self.counters.routes.subtract(*row, RouteMetric::Connections, 1);
        }
        let route = || client.route(&self.routes).map(|route| self.rows.routes[usize::from(route)]);
        match row.or_else(route) {
            Some(row) => self.counters.routes.closed(row, cause),
            None => self.counters.listeners.closed(listener, cause),
        }
    }
}

/// One link's part of its endpoint's gauges; none of a link that is not counted yet.
#[derive(Clone, Copy, Default)]
pub(super) struct LinkCount {
    ready: u32,
    down: u32,
    sessions: u32,
}

impl LinkCount {
    pub(super) fn of(link: &Link) -> Self {
        let ready = u32::from(link.is_ready());
        LinkCount { ready, down: 1 - ready, sessions: link.open_sessions() }
    }
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    FromClient,
    ToClient,
}
