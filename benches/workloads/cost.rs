//! What a measured stretch of work costs in CPU time: a figure that stands on a machine that other
//! programs use as well.

use crate::Result;
use crate::report::Report;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// CPU time and context switches, at a moment or of a stretch of work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// User and system time of this process.
    pub(crate) parent: Duration,
    /// User and system time of the workers.
    workers: Duration,
    /// Voluntary context switches of this process.
    switches: i64,
}

/// Reads the clocks of this process and of the workers that it has when the meter is made.
#[derive(Debug)]
pub(crate) struct Meter {
    workers: Vec<ClockId>,
    began: Cost,
    total: Cost,
}

impl Meter {
    pub(crate) fn new() -> Result<Self> {
        let clock = |pid| clock_getcpuclockid(Pid::from_raw(pid as i32));
        let workers = children()?.into_iter().map(clock).collect::<nix::Result<_>>()?;
        Ok(Self { workers, began: Cost::default(), total: Cost::default() })
    }

    /// Begins a stretch of work.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.began = self.read()?;
        Ok(())
    }

    /// Ends a stretch of work and adds it to the total.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let now = self.read()?;
        self.total.parent += now.parent - self.began.parent;
        self.total.workers += now.workers - self.began.workers;
        self.total.switches += now.switches - self.began.switches;
        Ok(())
    }

    pub(crate) fn total(&self) -> Cost {
        self.total
    }

    fn read(&self) -> Result<Cost> {
        let own = getrusage(UsageWho::RUSAGE_SELF)?;
        let mut workers = Duration::ZERO;
        for clock in &self.workers {
            workers += Duration::from(clock_gettime(*clock)?);
        }
        let micros = |time: TimeVal| Duration::from_micros(time.num_microseconds() as u64);
        Ok(Cost {
            parent: micros(own.user_time()) + micros(own.system_time()),
            workers,
            switches: own.voluntary_context_switches(),
        })
    }
}

impl Report {
    /// Prints what each of so many items cost. `work` is the CPU time of the tasks themselves.
    pub(crate) fn cost(&self, suffix: &str, items: usize, cost: Cost, work: Duration, note: &str) {
        let per_item = |micros: f64| micros / items as f64;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let parent = per_item(micros(cost.parent));
        self.figure(&format!("parent cpu/item{suffix}"), parent, "us", note);
        let overhead = per_item(micros(cost.workers) - micros(work));
        self.figure(&format!("worker overhead/item{suffix}"), overhead, "us", note);
        let switches = per_item(cost.switches as f64);
        self.figure(&format!("switches/item{suffix}"), switches, "", note);
    }
}

/// CPU time of this process, of all its threads.
pub(crate) fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock").into()
}

/// The processes that threads of this one have started (proc(5), `/proc/PID/task/TID/children`).
pub(crate) fn children() -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let pids = fs::read_to_string(thread?.path().join("children"))?;
        all.extend(pids.split_whitespace().flat_map(str::parse::<u32>));
    }
    Ok(all)
}
