//! The workloads of `docs/performance.md`, measured. What each is, and is not: `benches/README.md`.
//!
//!     cargo bench --bench workloads -- [--rounds N] [--quick] [--multi-thread] [--low-latency] [W1 W1@1cpu W2 …]
//!
//! Each workload runs in a process of its own, so that none inherits another's threads, heap or
//! processor affinity. One figure is one line of JSON.

#![expect(clippy::print_stdout, reason = "the figures go there")]

mod child;
mod cost;
mod forked;
mod place;
mod report;
mod tasks;
mod w1;
mod w10;
mod w11;
mod w12;
mod w13;
mod w2;
mod w3;
mod w5;
mod w6;
mod w7;
mod w8;
mod w9;

use report::Report;
use std::error::Error;
use std::io;
use std::process::{Command, ExitCode};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;
/// A workload's name, and what measures it.
type Workload = (&'static str, fn(&Options, &Report) -> Result<()>);

const WORKLOADS: [Workload; 14] = [
    ("W1", w1::anywhere),
    ("W1@1cpu", w1::on_one_cpu),
    ("W2", w2::run),
    ("W3", w3::run),
    ("W5", w5::run),
    ("W6", w6::run),
    ("W7", w7::anywhere),
    ("W7@1cpu", w7::on_one_cpu),
    ("W8", w8::run),
    ("W9", w9::run),
    ("W10", w10::run),
    ("W11", w11::run),
    ("W12", w12::run),
    ("W13", w13::run),
];

/// The first argument of a process that measures one workload, named by the second.
const MEASURE: &str = "--measure";

const USAGE: &str = "[--rounds N] [--quick] [--multi-thread] [--low-latency] [WORKLOAD …]";

/// How to measure.
#[derive(Debug, Default)]
struct Options {
    /// A hundredth of the laps: shows that it works, no more.
    quick: bool,
    /// The parent's runtime has two threads, not one.
    multi_thread: bool,
    /// Pools wake for each result (W2, W3, W9 to W12).
    low_latency: bool,
}

impl Options {
    /// How many laps are made where the workload says `full`.
    fn laps(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(100) } else { full }
    }

    fn flags(&self) -> impl Iterator<Item = &'static str> {
        self.quick
            .then_some("--quick")
            .into_iter()
            .chain(self.multi_thread.then_some("--multi-thread"))
            .chain(self.low_latency.then_some("--low-latency"))
    }
}

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // (Workers of the pool do not come here: they never reach `main`.)
    if let [first, name] = &args[..]
        && first == child::CHILD
    {
        child::run(name)?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut options = Options::default();
    let (mut names, mut rounds, mut measure, mut by_cargo_bench) = (Vec::new(), 1, false, false);
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--bench" => by_cargo_bench = true,
            "--quick" => options.quick = true,
            "--multi-thread" => options.multi_thread = true,
            "--low-latency" => options.low_latency = true,
            "--rounds" => rounds = rest.next().ok_or(USAGE)?.parse()?,
            MEASURE => measure = true,
            name if WORKLOADS.iter().any(|(known, _)| *known == name) => names.push(arg),
            other => {
                let known: Vec<_> = WORKLOADS.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "{other:?} is not known; {USAGE}, workloads: {}",
                    known.join(" ")
                )
                .into());
            }
        }
    }
    let chosen =
        || WORKLOADS.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name));
    if measure {
        for (name, run) in chosen() {
            run(&options, &Report::new(name, &options))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // `cargo test --benches` does not say `--bench`, and wants to see that it works.
    options.quick |= !by_cargo_bench;
    let mut all_well = true;
    for _ in 0..rounds {
        for (name, _) in chosen() {
            all_well &= measure_apart(name, &options)?;
        }
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures one workload in a process of its own.
fn measure_apart(name: &str, options: &Options) -> io::Result<bool> {
    let status = Command::new(std::env::current_exe()?)
        .arg(MEASURE)
        .args(options.flags())
        .arg(name)
        .status()?;
    if !status.success() {
        eprintln!("{name}: {status}");
    }
    Ok(status.success())
}
