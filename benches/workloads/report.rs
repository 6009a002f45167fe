//! Figures, and how they are printed: the keys and names that the peers' programs use.

use crate::Options;
use std::time::{Duration, Instant};

/// Where the figures of one workload go.
#[derive(Debug)]
pub(crate) struct Report {
    workload: &'static str,
    runtime: &'static str,
    low_latency: bool,
    quick: bool,
}

impl Report {
    pub(crate) fn new(workload: &'static str, options: &Options) -> Self {
        let runtime = if options.multi_thread { "multi_thread(2)" } else { "current_thread" };
        Self { workload, runtime, low_latency: options.low_latency, quick: options.quick }
    }

    /// Prints one figure. The note gets the runtime's flavour and, if it is one, that this is no
    /// measurement.
    pub(crate) fn figure(&self, metric: &str, value: f64, unit: &str, note: &str) {
        let (version, workload, runtime) = (env!("CARGO_PKG_VERSION"), self.workload, self.runtime);
        let latency = if self.low_latency { ", low_latency" } else { "" };
        let quick = if self.quick { ", quick: not a measurement" } else { "" };
        println!(
            "{{\"peer\": \"procpool\", \"version\": {version:?}, \"workload\": {workload:?}, \"metric\": {metric:?}, \
             \"value\": {value:.4}, \"unit\": {unit:?}, \"note\": \"{note}, {runtime}{latency}{quick}\"}}"
        );
    }

    /// Prints the median, the 99th percentile and the mean of single durations.
    pub(crate) fn latencies(&self, prefix: &str, mut laps: Vec<Duration>, note: &str) {
        laps.sort_unstable();
        let (n, us) = (laps.len(), |lap: Duration| lap.as_secs_f64() * 1e6);
        let note = format!("n={n} {note}");
        self.figure(&format!("{prefix}p50"), us(laps[n / 2]), "us", &note);
        self.figure(&format!("{prefix}p99"), us(laps[n * 99 / 100]), "us", &note);
        self.figure(
            &format!("{prefix}mean"),
            us(laps.iter().sum::<Duration>()) / n as f64,
            "us",
            &note,
        );
    }
}

/// The middle one; the upper of two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
