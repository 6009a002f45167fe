//! A task of the application's runtime that drives its manager while a future there waits: see
//! `manager/post.rs`.

use super::wait;
use crate::manager::post::Seen;
use crate::manager::server::Server;
use crate::process::fork;
use crate::reactor::readiness::{has_io, watch_readable};
use crate::reactor::{Source, drive_in_runtime};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

/// Somebody waits for what comes from the manager: sees to it that it is turned by him, if that can
/// be, and not late otherwise.
pub(super) fn attend(server: &Arc<Server>) {
    // A thread that blocks keeps its runtime from turning anything, if it has one.
    let runtime = if wait::is_blocked() { None } else { Handle::try_current().ok() };
    match (server.post().look(runtime.as_ref().map(Handle::id)), runtime) {
        (Seen::Own, _) | (Seen::Vacant, None) => {}
        (Seen::Others, _) => server.wait_outside(),
        (Seen::Vacant, Some(runtime)) => {
            if has_io(runtime.id())
                && let Some(number) = server.post().take(runtime.id())
            {
                let attendant = Attendant { server: Arc::clone(server), number };
                // (A descriptor of its own: a task that has lost the post may be there still, and
                // watch the other.) Else no descriptor is to be had or can be
                // watched now, and it leaves at once.
                if let Ok(ready) =
                    server.reactor().ready_fd().try_clone_to_owned().and_then(watch_readable)
                {
                    server.post().by(number, runtime.spawn(attendant.stay(ready)).abort_handle());
                }
            }
        }
    }
}

/// Who has the post, until it is dropped: with its task, or with its runtime.
struct Attendant {
    server: Arc<Server>,
    number: u64,
}

impl Attendant {
    async fn stay(self, ready: AsyncFd<OwnedFd>) {
        drive_in_runtime(ready, || self.server.drive_in_slot(self.number)).await;
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if !fork::is_forked_copy() {
            self.server.leave_post(self.number);
        }
    }
}
