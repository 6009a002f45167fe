//! Threads of the library's own.

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
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
