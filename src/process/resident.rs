//! How much memory a process has at the moment.

use std::path::Path;

/// Resident memory of a process in bytes, what it shares with others included (`VmRSS` of
/// proc_pid_status(5), which may be off by some pages for each processor). `None` if there is no
/// such process, or no `/proc`.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    number(&status(pid)?)
}

/// Whether a process is stopped, by a signal or by who traces it.
pub(crate) fn is_stopped(pid: u32) -> bool {
    status(pid).is_some_and(|status| state(&status).is_some_and(|state| "Tt".contains(state)))
}

fn status(pid: u32) -> Option<String> {
    let path = Path::new("/proc").join(pid.to_string()).join("status");
    std::fs::read_to_string(path).ok()
}

fn state(status: &str) -> Option<char> {
    status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().chars().next()
}

fn number(status: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = text.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_told_and_what_is_not_is_not() {
        assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(resident(u32::MAX), None);
        assert_eq!(number("Name:\tkthreadd\nState:\tS\n"), None, "it has no memory of its own");
        assert_eq!(state("Name:\tx\nState:\tT (stopped)\n"), Some('T'));
        assert!(!is_stopped(std::process::id()) && !is_stopped(u32::MAX));
        assert_eq!(number("VmHWM:\t  9 kB\nVmRSS:\t    1234 kB\n"), Some(1234 << 10));
    }
}
