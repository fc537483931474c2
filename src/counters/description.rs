//! What a metric is: its name, its labels, how it behaves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How a metric behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down; the sum over the workers is shown.
    Gauge,
    /// Goes up and down; the highest of the workers is shown.
    Peak,
    /// A `_bucket`, the `_sum` or the `_count` of a histogram; each only grows.
    Histogram,
}

/// What the exposition says of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The Prometheus name.
    pub name: &'static str,
    /// Label and value, when several metrics share the name.
    pub label: Option<(&'static str, &'static str)>,
    /// Labels whose values are names in the settings: there is a series for each.
    pub names: &'static [&'static str],
    /// How it behaves.
    pub kind: MetricKind,
    /// How many of a counter's own units make one of the metric's: 1,000,000 where microseconds
    /// are counted and seconds shown.
    pub per_unit: u32,
    /// One sentence, with the unit.
    pub help: &'static str,
}

impl Description {
    /// The name that help and type belong to: a histogram's series share one.
    pub fn family(&self) -> &'static str {
        let suffixes = ["_bucket", "_sum", "_count"];
        match self.kind {
            MetricKind::Histogram => suffixes
                .iter()
                .find_map(|suffix| self.name.strip_suffix(suffix))
                .unwrap_or(self.name),
            _ => self.name,
        }
    }
}

macro_rules! metrics {
    ($( #[$doc:meta] )* $metric:ident, $table:ident, $names:expr; $( $name:ident, $kind:ident $( / $per_unit:literal )?, $text:literal $( { $label:literal : $value:literal } )?, $help:literal; )*) => {
        $( #[$doc] )*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $metric { $( #[doc = $help] $name, )* }

        const $table: &[Description] = &[ $( Description {
            name: $text,
            label: metrics!(@label $( $label $value )?),
            names: $names,
            kind: MetricKind::$kind,
            per_unit: metrics!(@per_unit $( $per_unit )?),
            help: $help,
        }, )* ];
    };
    (@per_unit) => { 1 };
    (@per_unit $per_unit:literal) => { $per_unit };
    (@label) => { None };
    (@label $label:literal $value:literal) => { Some(($label, $value)) };
}

/// A load and a store, not a locked instruction: there is one writer.
pub(super) fn bump(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(count), Relaxed);
}
