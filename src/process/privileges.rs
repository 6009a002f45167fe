//! Whether a fresh start of this program would have more rights than this process has.
//!
//! The kernel decides that at the exec, from the ids of the thread that starts it and from the
//! program's file, and tells the new process alone (`AT_SECURE`, getauxval(3)). What it has told
//! *this* process says nothing of the next one: a process may change its ids at any time, and a
//! security module (SELinux, AppArmor) may have changed its domain at its own exec only. So this is
//! asked anew before each start, and what cannot be known here the new process finds out itself
//! (`worker/start.rs`).

use std::fmt;
use std::os::unix::fs::MetadataExt;

use super::sys;

/// Why a fresh start of this program would have raised privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Raised {
    /// The effective and the real user of this thread differ.
    User { effective: u32, real: u32 },
    /// Its effective and its real group do.
    Group { effective: u32, real: u32 },
    /// The program's file raises them (set-uid, set-gid, file capabilities), as it did when this
    /// process was started.
    File,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, effective, real) = match self {
            Self::User { effective, real } => ("user", effective, real),
            Self::Group { effective, real } => ("group", effective, real),
            Self::File => {
                return f.write_str("its file is set-uid or set-gid, or has capabilities");
            }
        };
        write!(f, "its effective {what} ({effective}) is not its real {what} ({real})")
    }
}

/// Looks at the ids of the calling thread, and at the program's file if that has raised the
/// privileges of this process already.
///
/// `None` does not mean that the new process will have none: see the module.
pub(crate) fn raised() -> Option<Raised> {
    let ids = sys::ids();
    if ids.effective_user != ids.user {
        return Some(Raised::User { effective: ids.effective_user, real: ids.user });
    }
    if ids.effective_group != ids.group {
        return Some(Raised::Group { effective: ids.effective_group, real: ids.group });
    }
    // A file system may be mounted, and a process be made, so that files raise nothing: then this
    // process would not have been raised by its file either.
    (sys::is_set_uid() && is_raising_file()).then_some(Raised::File)
}

/// Whether the program's file is of a kind that raises privileges.
fn is_raising_file() -> bool {
    /// `S_ISUID` and `S_ISGID` (inode(7)).
    const SET_ID: u32 = 0o6000;
    const THIS_PROGRAM: &std::ffi::CStr = c"/proc/self/exe";
    let is_set_id = std::fs::metadata("/proc/self/exe").is_ok_and(|file| file.mode() & SET_ID != 0);
    is_set_id || sys::has_file_capabilities(THIS_PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_special_rights_raises_nothing() {
        assert_eq!((raised(), is_raising_file()), (None, false));
    }
}
