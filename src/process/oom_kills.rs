//! How often the kernel has killed in this process's cgroup because memory had run out.
//!
//! A process that is killed so ends by SIGKILL, and nothing that can be asked about it says why.
//! But the kernel counts such kills for each cgroup, before it sends the signal (`memory.events` of
//! cgroup v2, `memory.oom_control` of v1). So of a child that was killed, and not by us, it is said
//! if a kill was counted while the child lived that no other child's death accounts for.
//! Where there is no such count (no cgroup, the root of all, a child that was moved to another one)
//! nothing is said.

use crate::lock::Lock;
use std::path::{Path, PathBuf};

/// Where cgroups are mounted, as a rule (cgroups(7)).
const MOUNTED: &str = "/sys/fs/cgroup";

/// Up to here, kills have been accounted for.
static ACCOUNTED: Lock<u64> = Lock::new(0);

/// How many kills have been counted; `None` if nobody counts.
pub(crate) fn count() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    files(&own, Path::new(MOUNTED))
        .iter()
        .find_map(|file| number(&std::fs::read_to_string(file).ok()?))
}

/// Whether one of the kills that were counted since `born`, and that is nobody else's, can be a
/// child's that was killed. It is that child's from now on.
pub(crate) fn account_for(born: Option<u64>) -> bool {
    let (Some(born), Some(now)) = (born, count()) else { return false };
    account(&mut ACCOUNTED.lock(), born, now)
}

fn account(accounted: &mut u64, born: u64, now: u64) -> bool {
    let before = born.max(*accounted);
    if now > before {
        *accounted = before + 1;
    }
    now > before
}

/// Where the count may stand, given `/proc/self/cgroup`: in the cgroup of that name, or, where a
/// container sees only its own, at the top.
fn files(own: &str, mounted: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (top, file) = match (hierarchy, controllers) {
            ("0", "") => (mounted.to_owned(), "memory.events"),
            (_, controllers) if controllers.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), "memory.oom_control")
            }
            _ => continue,
        };
        files.push(top.join(path.trim_start_matches('/')).join(file));
        files.push(top.join(file));
    }
    files
}

fn number(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_where_the_kernel_keeps_it() {
        let at = |own: &str| {
            files(own, Path::new("/c"))
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            at("0::/user.slice/a:b\n"),
            ["/c/user.slice/a:b/memory.events", "/c/memory.events"]
        );
        let v1 = "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n";
        assert_eq!(
            at(v1)[..2],
            ["/c/memory/docker/1/memory.oom_control", "/c/memory/memory.oom_control"]
        );
        assert_eq!(at("rubbish\n1:name=systemd:/\n"), [""; 0]);
        assert_eq!(number("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(number("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(number("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn each_kill_accounts_for_one_death_of_a_child_that_lived_then() {
        let mut accounted = 0;
        assert!(!account(&mut accounted, 5, 5), "none in its time");
        assert!(account(&mut accounted, 5, 6));
        assert!(!account(&mut accounted, 5, 6), "that was the other's");
        assert!(account(&mut accounted, 5, 8) && account(&mut accounted, 6, 8));
        assert!(!account(&mut accounted, 0, 8));
    }
}
