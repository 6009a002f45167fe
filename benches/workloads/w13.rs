//! W13: a pool that has worked and is idle. How often does it wake up?

use crate::report::Report;
use crate::{Options, Result, cost, place, tasks};
use futures::StreamExt;
use std::fs;
use std::path::Path;
use std::time::Duration;

const SECONDS: usize = 10;
/// What follows work (the end of the looks at workers that have been given tasks, say) is over.
const SETTLED: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &Options, report: &Report) -> Result<()> {
    let seconds = options.laps(SECONDS);
    // A thread of its own, which waits within the runtime: that of `block_on` only runs there.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let pool = runtime.block_on(async {
        let pool = place::pool(options).workers(2).build()?;
        pool.ready().await?;
        let items = std::iter::repeat_n(200, 1000);
        let results: Vec<_> = pool.map(tasks::spin, items).collect().await;
        results.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        Ok::<_, Box<dyn std::error::Error>>(pool)
    })?;
    std::thread::sleep(SETTLED);
    let workers = cost::children()?;
    let count = || -> Result<_> { Ok((switches("/proc/self")?, all_switches(&workers)?)) };
    let (own, theirs) = count()?;
    std::thread::sleep(Duration::from_secs(seconds as u64));
    let (own_then, theirs_then) = count()?;
    let note = format!("{seconds} s, 2 workers that have worked before, {}", workers.len());
    let note = format!(
        "{note} processes; voluntary context switches of all threads but the one that measures"
    );
    report.figure("parent wake-ups", (own_then - own) as f64, "", &note);
    report.figure("worker wake-ups", (theirs_then - theirs) as f64, "", &note);
    runtime.block_on(pool.shutdown());
    Ok(())
}

fn all_switches(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| switches(format!("/proc/{pid}"))).sum()
}

/// Voluntary context switches of all threads of a process but the calling one (proc(5)).
fn switches(process: impl AsRef<Path>) -> Result<u64> {
    let own = nix::unistd::gettid().to_string();
    let mut sum = 0;
    for thread in fs::read_dir(process.as_ref().join("task"))? {
        let thread = thread?;
        if thread.file_name().to_str() == Some(&own) {
            continue;
        }
        let status = fs::read_to_string(thread.path().join("status"))?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += count.ok_or("no count of switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}
