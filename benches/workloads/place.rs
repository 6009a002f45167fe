//! Where things run: the parent's runtime, the processors.

use crate::{Options, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};

/// The options of a pool whose workers the workload does not say more about.
pub(crate) fn pool(options: &Options) -> procpool::Builder {
    procpool::Pool::builder().low_latency(options.low_latency)
}

pub(crate) fn runtime(options: &Options) -> Result<Runtime> {
    let mut builder = if options.multi_thread {
        Builder::new_multi_thread()
    } else {
        Builder::new_current_thread()
    };
    Ok(builder.worker_threads(2).enable_all().build()?)
}

/// Pins this thread, and all that it starts from now on, to the first processor it may use.
pub(crate) fn pin_to_one_cpu() -> Result<()> {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own)?;
    let first =
        (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).ok_or("no processor")?;
    let mut one = CpuSet::new();
    one.set(first)?;
    Ok(sched_setaffinity(own, &one)?)
}
