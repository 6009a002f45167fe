//! Threads of the library's own, which as a rule hold nothing of the user's but wakers.

use crate::lock::Lock;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::gettid;
use std::collections::BTreeSet;
use std::io;

/// Starts a thread that handles no signal: one that is meant for the application must not be
/// handled where the application does not expect it.
///
/// # Errors
///
/// Those of `pthread_create(3)`.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    thread.map(drop)
}

/// The thread ids of those that run. Held only to look.
static OWN: Lock<BTreeSet<i32>> = Lock::new(BTreeSet::new());

/// Registers the current thread as one of the crate's own, until it is dropped.
#[derive(Debug)]
pub(crate) struct OwnThread(i32);

impl OwnThread {
    pub(crate) fn register() -> Self {
        let id = gettid().as_raw();
        OWN.lock().insert(id);
        Self(id)
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        OWN.lock().remove(&self.0);
    }
}

/// The names of all threads of this process but the calling one, each with its number.
///
/// # Errors
///
/// Where `/proc` cannot be read.
pub(crate) fn others() -> io::Result<Vec<String>> {
    let this = gettid().as_raw().to_string();
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let id = entry?.file_name();
        let Some(id) = id.to_str().filter(|id| *id != this) else { continue };
        // One that has ended meanwhile is none.
        if let Ok(name) = std::fs::read_to_string(format!("/proc/self/task/{id}/comm")) {
            names.push(format!("{} ({id})", name.trim_end()));
        }
    }
    Ok(names)
}

/// Whether the current thread is the only one of this process, apart from the crate's own. `false`
/// where that cannot be known, because `/proc` cannot be read.
pub(crate) fn is_the_only_one() -> bool {
    let Ok(directory) = std::fs::read_dir("/proc/self/task") else { return false };
    let this = gettid().as_raw();
    let mut others = Vec::new();
    for entry in directory {
        match entry.map(|entry| entry.file_name().to_str().and_then(|id| id.parse().ok())) {
            Ok(Some(id)) if id == this => {}
            Ok(Some(id)) => others.push(id),
            Ok(None) | Err(_) => return false,
        }
    }
    // Looked at only now. If an id was given again in between, the user's thread that had it
    // before has ended.
    let own = OWN.lock();
    others.iter().all(|id| own.contains(id))
}
