//! The public face of the owner of shared objects.
//!
//! What makes an object of some kind (`mutex`, `queue`, …) stands with that kind, in an `impl
//! Manager` of its file.

use super::connection::Connection;
use crate::error::sync::Error;
use std::fmt;
use std::sync::Arc;

/// The owner of shared objects: what processes share, they share through a manager.
///
/// It lives in the application, and serves its objects from a thread of the crate's own. While a
/// future in a tokio runtime of the application waits for one of them, that runtime does it
/// instead, as long as it turns: this spares a wake-up for each thing that comes. (It must be a
/// runtime that is known to have I/O, for a pool was built or a channel used in it.) Every pool has
/// one ([`Pool::manager`](crate::Pool::manager), started on first use); one that is made by
/// itself may be given to several pools ([`Builder::manager`](crate::Builder::manager)).
///
/// It is a cheap handle: clones are the same manager. It goes on as long as any of its objects'
/// handles, any clone, or any pool that has it is left in the application; what its objects hold is
/// bounded (1 GiB), including what waits for them and what processes may put in without asking.
/// Past that, [`ManagerFull`](crate::sync::ErrorKind::ManagerFull) is the answer to what brings
/// something; and past it by a sixteenth, to all that a worker asks of it.
///
/// # Drop
///
/// With the last of those the manager is closed, as by [`close`](Self::close). What a call in
/// flight was given keeps a manager made by [`new`](Self::new). It does not keep a pool's own one:
/// when that pool's last handle and the application's handles of its objects are gone, a call of
/// another pool, or of a [`Process`](crate::Process), that waits for such an object ends with
/// [`ManagerClosed`](crate::sync::ErrorKind::ManagerClosed).
#[derive(Clone)]
pub struct Manager {
    connection: Arc<Connection>,
}

impl Manager {
    /// A manager without objects.
    ///
    /// # Errors
    ///
    /// [`Memory`](crate::sync::ErrorKind::Memory) when the thread or a descriptor that it needs is not to
    /// be had; [`Forked`](crate::sync::ErrorKind::Forked) in a forked copy of the application.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { connection: Connection::start()? })
    }

    /// The manager of a pool. If it cannot be started, every call that needs it says why.
    pub(crate) fn of_pool() -> Self {
        Self { connection: Connection::start_for_pool() }
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// How many objects there are: those to which a handle is left in any process, in a task that
    /// has not ended, or in a value of another object.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.connection.server().map_or(0, |server| server.objects())
    }

    /// Whether threads that wait for each other's locks are looked for: a ring of them, in
    /// `blocking_` calls without a limit, of whatever processes, is then told to the one that
    /// closes it ([`is_deadlock`](Error::is_deadlock)), instead of standing still.
    ///
    /// A lock counts as held by the thread that got it by a `blocking_` call, if that thread is the
    /// only one of its process, apart from the crate's own: as a rule in a worker that runs sync
    /// tasks. In a process with more threads, another one may have the guard and release the lock,
    /// so nothing is told there. What was got by `.await` or by `try_` counts for nobody, and a
    /// task that waits by `.await` is in no ring. That two tasks wait for each other is not told: a task may release a lock in one
    /// branch while it waits in another, and may be given up by a time limit around it, so that
    /// it is never certain. For these [`lock_timeout`](crate::sync::Mutex::lock_timeout) is of use,
    /// and one order in which all take their locks.
    ///
    /// Default: on in debug builds, off in others. Switched on, it concerns locks that are taken
    /// later, and processes that come to use this manager later; taking a lock costs some
    /// hundred nanoseconds more then, in this process for the locks of all managers.
    pub fn detect_deadlocks(&self, on: bool) {
        if let Some(server) = self.connection.server() {
            if on {
                super::holding::note_from_now_on();
            }
            server.detect_deadlocks(on);
        }
    }

    /// Sets whether each [`Mutex`](super::Mutex), [`Value`](super::Value) and
    /// [`Array`](super::Array) that is made from now on has memory of its own.
    ///
    /// Otherwise small ones share memory by the 64 KiB, and a process that was lent one of them can
    /// read and write the others that lie there, if it means to: the handles never do. Memory of
    /// its own costs a descriptor in the application and a page (4 KiB) for each object, and a
    /// mapping in each process that uses it.
    ///
    /// Default: off.
    pub fn separate_memory(&self, on: bool) {
        if let Some(server) = self.connection.server() {
            server.separate_memory(on);
        }
    }

    /// Ends it: all objects are gone. Whoever waits for one, in any process, is told
    /// [`is_manager_closed`](Error::is_manager_closed), and so is every later call. Another one may
    /// be made.
    pub fn close(&self) {
        self.connection.close();
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("id", &self.connection.manager()).finish_non_exhaustive()
    }
}
