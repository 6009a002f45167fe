//! A worker limits itself, as its welcome asks, before it runs anything of the user's.
//!
//! Soft and hard limit are set alike, so that nobody within can raise them again (the superuser
//! can); above the hard limit that was inherited nothing is asked for, which could only be refused.
//! The memory shared with the pool is mapped by then.

use super::raw;
use crate::wire::message::Limits;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::io;
use std::time::Duration;

/// Between SIGXCPU and SIGKILL, in seconds: the kernel counts no finer.
const CPU_GRACE: u64 = 1;
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// The highest there is (proc_pid_oom_score_adj(5)).
const OOM_SCORE_MAX: i32 = 1000;

/// Limits this process; gives what limits each of its tasks.
pub(super) fn apply(limits: &Limits) -> io::Result<TaskClock> {
    if let Some(raise) = limits.oom_score {
        raise_oom_score(i32::from(raise));
    }
    if limits.cpu_time.is_some() || limits.task_cpu_time.is_some() {
        // Whoever started the application may have had it ignored.
        raw::reset_signal(libc::SIGXCPU)?;
    }
    if limits.file_size.is_some() {
        raw::ignore_signal(libc::SIGXFSZ)?;
    }
    let task_clock = TaskClock::new(limits.task_cpu_time)?;
    let all = [
        (Resource::RLIMIT_CORE, limits.core_size),
        (Resource::RLIMIT_FSIZE, limits.file_size),
        (Resource::RLIMIT_NOFILE, limits.open_files),
        (Resource::RLIMIT_NPROC, limits.processes),
        (Resource::RLIMIT_CPU, limits.cpu_time),
        // Last: what the others need is there.
        (Resource::RLIMIT_AS, limits.memory),
    ];
    for (resource, limit) in all {
        let Some(limit) = limit else { continue };
        let (_, most) = getrlimit(resource)?;
        let grace = if resource == Resource::RLIMIT_CPU { CPU_GRACE } else { 0 };
        let within = |limit: u64| rlim_t::try_from(limit).unwrap_or(rlim_t::MAX).min(most);
        setrlimit(resource, within(limit), within(limit.saturating_add(grace)))?;
    }
    Ok(task_clock)
}

/// It is a wish: without `/proc`, or where that cannot be written to, the kernel chooses as it
/// would have.
fn raise_oom_score(raise: i32) {
    let Ok(own) = std::fs::read_to_string(OOM_SCORE_ADJ) else { return };
    let Ok(own) = own.trim().parse::<i32>() else { return };
    let score = (own + raise).min(OOM_SCORE_MAX);
    if score > own {
        let _ = std::fs::write(OOM_SCORE_ADJ, score.to_string());
    }
}

/// What ends the process by SIGXCPU when one task has used too much processor time.
#[derive(Debug)]
pub(super) struct TaskClock(Option<(Timer, TimeSpec)>);

impl TaskClock {
    fn new(nanos: Option<u64>) -> nix::Result<Self> {
        let Some(nanos) = nanos else { return Ok(Self(None)) };
        let event =
            SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGXCPU, si_value: 0 });
        let timer = Timer::new(ClockId::CLOCK_PROCESS_CPUTIME_ID, event)?;
        Ok(Self(Some((timer, Duration::from_nanos(nanos).into()))))
    }

    /// Without a limit.
    pub(super) fn unlimited() -> Self {
        Self(None)
    }

    /// A task begins: its time runs from now on.
    pub(super) fn start(&mut self) {
        // What failed in an earlier task must not be taken for the cause of this one's death.
        Errno::clear();
        if let Some((timer, limit)) = &mut self.0 {
            // Its arguments are in range: it does not fail.
            let _ = timer.set(Expiration::OneShot(*limit), TimerSetTimeFlags::empty());
        }
    }

    /// It has ended.
    pub(super) fn stop(&mut self) {
        if let Some((timer, _)) = &mut self.0 {
            // A time of zero disarms it (timer_settime(2)).
            let _ = timer.set(Expiration::OneShot(TimeSpec::new(0, 0)), TimerSetTimeFlags::empty());
        }
    }
}
