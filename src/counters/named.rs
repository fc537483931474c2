//! Numbers of each listener, route and endpoint that the settings name.
//!
//! A name gets a row of cells when the worker first takes settings that have it, and keeps it as
//! long as the worker's block lives. So a reload moves no number: a counter cannot go back, and a
//! route that is removed and comes again goes on where it was.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::description::{Description, MetricKind, bump};
use crate::protocol::cause::Cause;

/// Most names of one kind (listeners, routes or endpoints) that have series of their own, so that
/// settings with 1,024 routes do not burden a Prometheus with 1,024 times all series. Numbers of
/// the names beyond are those of [`OTHER`].
pub const NAMES_MAX: usize = 256;
/// What the names beyond [`NAMES_MAX`] are called.
pub const OTHER: &str = "other";

/// A metric that each thing of one kind has.
pub trait NamedMetric: Copy {
    /// The labels that name the thing.
    const LABELS: &'static [&'static str];
    /// The metrics, in the order of [`column`](Self::column).
    const TABLE: &'static [Description];
    /// Name and help of the closes by cause, if things of this kind have closes.
    const CLOSES: Option<(&'static str, &'static str)>;

    /// The metric's place in the table.
    fn column(self) -> usize;
}

/// One thing's numbers: an index into the table that gave it out.
#[derive(Debug)]
pub struct Row<M>(u16, PhantomData<M>);

impl<M> Clone for Row<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Row<M> {}

/// One worker's numbers of all things of one kind. The worker alone writes; cells never move.
pub struct NamedTable<M> {
    names: Mutex<Names>,
    cells: Box<[AtomicU64]>,
    kind: PhantomData<M>,
}

/// Which name has which row.
struct Names {
    /// By row; the first is [`OTHER`].
    rows: Vec<Vec<String>>,
    by_name: HashMap<Vec<String>, u16>,
}

impl<M: NamedMetric> Default for NamedTable<M> {
    fn default() -> Self {
        let other: Vec<String> = M::LABELS.iter().map(|_| OTHER.to_owned()).collect();
        let names = Names { rows: vec![other.clone()], by_name: HashMap::from([(other, 0)]) };
        let cells = (1 + NAMES_MAX) * columns::<M>();
        NamedTable {
            names: Mutex::new(names),
            cells: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            kind: PhantomData,
        }
    }
}

impl<M: NamedMetric> NamedTable<M> {
    /// The row of the thing with these values of its labels: the one that it has, or a new one.
    pub fn row(&self, name: &[&str]) -> Row<M> {
        assert_eq!(name.len(), M::LABELS.len(), "a value for each label");
        let name: Vec<String> = name.iter().map(|part| (*part).to_owned()).collect();
        let Names { rows, by_name } = &mut *self.names();
        let number = match by_name.get(&name) {
            Some(number) => *number,
            None if rows.len() > NAMES_MAX => 0,
            None => {
                let number = rows.len() as u16;
                rows.push(name.clone());
                by_name.insert(name, number);
                number
            }
        };
        Row(number, PhantomData)
    }

    /// The row of what has no row of its own.
    pub fn other(&self) -> Row<M> {
        Row(0, PhantomData)
    }

    /// Adds to a counter or gauge. Only the owning worker may call this.
    pub fn add(&self, row: Row<M>, metric: M, count: u64) {
        bump(self.cell(row, metric.column()), count);
    }

    /// Adds one.
    pub fn increment(&self, row: Row<M>, metric: M) {
        self.add(row, metric, 1);
    }

    /// Takes so much from a gauge.
    pub fn subtract(&self, row: Row<M>, metric: M, count: u64) {
        let cell = self.cell(row, metric.column());
        let value = cell.load(Relaxed);
        debug_assert!(value >= count, "{} below zero", M::TABLE[metric.column()].name);
        cell.store(value.saturating_sub(count), Relaxed);
    }

    /// Brings a gauge in line with what one of several has in it.
    pub fn replace(&self, row: Row<M>, metric: M, before: u64, now: u64) {
        if before != now {
            self.add(row, metric, now);
            self.subtract(row, metric, before);
        }
    }

    /// Counts a connection of this thing that ended.
    pub fn closed(&self, row: Row<M>, cause: Cause) {
        debug_assert!(M::CLOSES.is_some(), "things of this kind have no closes");
        bump(self.cell(row, M::TABLE.len() + cause as usize), 1);
    }

    /// One number of the thing with this name; 0 without such a thing.
    pub fn value(&self, name: &[&str], metric: M) -> u64 {
        let names = self.names();
        let row = names.rows.iter().position(|row| row == name);
        row.map_or(0, |row| self.cells[row * columns::<M>() + metric.column()].load(Relaxed))
    }

    /// Sets every gauge to zero: for a worker that took over a dead one's block.
    pub(super) fn clear_gauges(&self) {
        for row in self.cells.chunks(columns::<M>()) {
            for (cell, description) in row.iter().zip(M::TABLE) {
                if description.kind == MetricKind::Gauge {
                    cell.store(0, Relaxed);
                }
            }
        }
    }

    /// Every series with the values of its labels and its own: of causes those that occurred, and
    /// of [`OTHER`] only what is not zero.
    pub fn each(&self, mut take: impl FnMut(Description, &[String], u64)) {
        let names = self.names();
        let rows = names.rows.iter().zip(self.cells.chunks(columns::<M>()));
        for (number, (name, cells)) in rows.enumerate() {
            let series = descriptions::<M>().zip(cells).enumerate();
            for (column, (description, cell)) in series {
                let value = cell.load(Relaxed);
                if value > 0 || (number > 0 && column < M::TABLE.len()) {
                    take(description, name, value);
                }
            }
        }
    }

    fn cell(&self, row: Row<M>, column: usize) -> &AtomicU64 {
        &self.cells[usize::from(row.0) * columns::<M>() + column]
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn columns<M: NamedMetric>() -> usize {
    M::TABLE.len() + if M::CLOSES.is_some() { Cause::ALL.len() } else { 0 }
}

/// What each column of a row is.
pub(super) fn descriptions<M: NamedMetric>() -> impl Iterator<Item = Description> {
    let closes = M::CLOSES.into_iter().flat_map(|(name, help)| {
        Cause::ALL.iter().map(move |cause| Description {
            name,
            label: Some(("cause", cause.label())),
            names: M::LABELS,
            kind: MetricKind::Counter,
            per_unit: 1,
            help,
        })
    });
    M::TABLE.iter().copied().chain(closes)
}

#[cfg(test)]
mod tests {
    use super::super::{ListenerMetric, RouteMetric};
    use super::*;

    /// Every series as `/metrics` would have it.
    fn series<M: NamedMetric>(table: &NamedTable<M>) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        table.each(|description, names, value| {
            let label = description.label.map_or("", |(_, value)| value);
            all.push((format!("{} {label} {}", description.name, names.join(" ")), value));
        });
        all
    }

    fn value<M: NamedMetric>(table: &NamedTable<M>, wanted: &str) -> Option<u64> {
        series(table).into_iter().find(|(series, _)| series == wanted).map(|(_, value)| value)
    }

    #[test]
    fn a_name_keeps_its_numbers() {
        let table = NamedTable::<RouteMetric>::default();
        let (chat, feed) = (table.row(&["chat"]), table.row(&["feed"]));
        table.add(chat, RouteMetric::BytesToClients, 40);
        table.increment(feed, RouteMetric::SessionsOpened);
        table.closed(feed, Cause::Idle);
        // Settings without the one, and then with both in another order.
        let _ = table.row(&["feed"]);
        let (feed, chat) = (table.row(&["feed"]), table.row(&["chat"]));
        table.add(chat, RouteMetric::BytesToClients, 2);
        table.closed(feed, Cause::Idle);
        assert_eq!(table.value(&["chat"], RouteMetric::BytesToClients), 42);
        assert_eq!(table.value(&["feed"], RouteMetric::BytesToClients), 0);
        assert_eq!(table.value(&["feed"], RouteMetric::SessionsOpened), 1);
        assert_eq!(value(&table, "portcullis_route_closes_total idle feed"), Some(2));
        assert_eq!(value(&table, "portcullis_route_closes_total idle chat"), None, "none occurred");
        assert_eq!(value(&table, "portcullis_route_sessions_opened_total  chat"), Some(0));
        assert_eq!(value(&table, "portcullis_route_sessions_opened_total  other"), None);
    }

    #[test]
    fn names_beyond_the_bound_are_counted_together() {
        let table = NamedTable::<ListenerMetric>::default();
        for number in 0..NAMES_MAX + 3 {
            let row = table.row(&[&number.to_string()]);
            table.increment(row, ListenerMetric::Accepted);
        }
        let last = table.row(&[&(NAMES_MAX - 1).to_string()]);
        table.increment(last, ListenerMetric::Accepted);
        let accepted = "portcullis_listener_accepted_total ";
        assert_eq!(value(&table, &format!("{accepted} {}", NAMES_MAX - 1)), Some(2));
        assert_eq!(value(&table, &format!("{accepted} {NAMES_MAX}")), None);
        assert_eq!(value(&table, &format!("{accepted} other")), Some(3));
        let names = series(&table).iter().filter(|(name, _)| name.starts_with(accepted)).count();
        assert_eq!(names, NAMES_MAX + 1);
    }

    #[test]
    fn a_worker_that_takes_over_finds_its_counters_and_no_gauge() {
        let table = NamedTable::<ListenerMetric>::default();
        let row = table.row(&["0.0.0.0:443"]);
        table.add(row, ListenerMetric::Accepted, 3);
        table.add(row, ListenerMetric::Connections, 3);
        table.subtract(row, ListenerMetric::Connections, 1);
        assert_eq!(table.value(&["0.0.0.0:443"], ListenerMetric::Connections), 2);
        table.clear_gauges();
        assert_eq!(table.value(&["0.0.0.0:443"], ListenerMetric::Connections), 0);
        assert_eq!(table.value(&["0.0.0.0:443"], ListenerMetric::Accepted), 3);
    }
}
