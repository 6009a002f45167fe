//! This process's connection to a manager: directly, in the application that has it; by a socket
//! everywhere else.
//!
//! Either way a client: it asks under tickets, and what comes for them is found in its mail. A
//! connection is shared by all handles of one manager in one process. In the application it also
//! keeps the manager: with the last handle (and the last pool that has it) the manager is closed.

use super::attendant;
use super::cell::Cell;
use super::handle::{self, Inner};
use super::remote::{self, Remote};
use crate::error::sync::{Error, Why};
use crate::manager::lane::Way;
use crate::manager::lock::served::owner_of;
use crate::manager::mail::{Arrived, Mail};
pub(crate) use crate::manager::message::error;
use crate::manager::message::{Name, Place, Refusal, ToManager};
use crate::manager::object::{Body, Client, Held, NO_ANSWER, Part};
use crate::manager::outgoing::Fd;
use crate::manager::segments::SHARED_MAX;
use crate::manager::server::Server;
use crate::manager::state::LOCAL;
use crate::process::{SharedMemory, fork};
use crate::wire::packet::Packet;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

/// See the module.
pub(crate) struct Connection {
    manager: u64,
    mail: Arc<Mail>,
    route: Route,
    /// Clients that we have introduced.
    introduced: AtomicU64,
    /// The manager was started by a pool for itself.
    is_of_pool: bool,
    /// Of a connection that calls have: the one that keeps the manager.
    keeper: Option<Weak<Connection>>,
    /// See [`for_calls`](Connection::for_calls).
    for_calls: OnceLock<Arc<Connection>>,
}

enum Route {
    /// The manager is in this process.
    Local(Arc<Server>),
    Remote(Arc<Remote>),
    /// It could not be started.
    Failed(Error),
}

impl Connection {
    /// Starts a manager, and keeps it.
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        fork::refuse_in_copy().map_err(|_| Error::from(Why::Forked))?;
        Ok(Arc::new(Self::local_to(Server::start()?)))
    }

    /// Starts the manager that a pool has for itself. If it fails, every use says why.
    pub(crate) fn start_for_pool() -> Arc<Self> {
        let started = match fork::refuse_in_copy() {
            Ok(()) => Server::start().map(Self::local_to),
            Err(_) => Err(Why::Forked.into()),
        };
        Arc::new(match started {
            Ok(mut connection) => {
                connection.is_of_pool = true;
                connection
            }
            Err(error) => Self::new(0, Arc::default(), Route::Failed(error)),
        })
    }

    fn local_to(server: Arc<Server>) -> Self {
        Self::new(server.id(), Arc::clone(server.mail()), Route::Local(server))
    }

    fn new(manager: u64, mail: Arc<Mail>, route: Route) -> Self {
        Self {
            manager,
            mail,
            route,
            introduced: AtomicU64::new(0),
            is_of_pool: false,
            keeper: None,
            for_calls: OnceLock::new(),
        }
    }

    /// The connection for references that calls keep, if it is not this one.
    ///
    /// A pool's own manager ends with the pool and the application's handles. A call elsewhere that
    /// waits for one of its objects must not keep it, or the call would keep what it waits for.
    pub(super) fn for_calls(self: &Arc<Self>) -> Option<Arc<Self>> {
        let Route::Local(server) = &self.route else { return None };
        (self.is_of_pool && self.keeper.is_none()).then(|| {
            Arc::clone(self.for_calls.get_or_init(|| {
                let mut connection = Self::local_to(Arc::clone(server));
                connection.keeper = Some(Arc::downgrade(self));
                Arc::new(connection)
            }))
        })
    }

    /// The connection for handles of the application that come of a call's references.
    pub(super) fn for_handles(self: &Arc<Self>) -> Arc<Self> {
        let keeper = self.keeper.as_ref().and_then(Weak::upgrade);
        keeper.unwrap_or_else(|| Arc::clone(self))
    }

    /// At the other end of `socket` is the manager of this number.
    pub(crate) fn remote(manager: u64, socket: OwnedFd) -> Arc<Self> {
        let mail = Arc::new(Mail::default());
        Arc::new_cyclic(|this| {
            let remote = Remote::new(socket, Arc::clone(&mail), this.clone());
            Self::new(manager, mail, Route::Remote(remote))
        })
    }

    /// The number that tells managers apart.
    #[inline]
    pub(crate) fn manager(&self) -> u64 {
        self.manager
    }

    pub(crate) fn mail(&self) -> &Arc<Mail> {
        &self.mail
    }

    /// What has come under a ticket; else the waker is told, and it is seen to that somebody reads
    /// it, or turns the manager.
    pub(crate) fn poll(&self, ticket: u64, cx: &mut Context<'_>) -> Poll<Arrived> {
        let polled = self.mail.poll(ticket, cx.waker());
        if polled.is_pending() {
            match &self.route {
                Route::Local(server) => attendant::attend(server),
                Route::Remote(remote) if !remote.attend() => {
                    return Poll::Ready(Arrived::Refused(Refusal::NoMemory));
                }
                Route::Remote(_) | Route::Failed(_) => {}
            }
        }
        polled
    }

    /// The manager itself, if it is in this process.
    pub(crate) fn server(&self) -> Option<&Arc<Server>> {
        match &self.route {
            Route::Local(server) => Some(server),
            Route::Remote(_) | Route::Failed(_) => None,
        }
    }

    /// The manager itself, for what only the application can do.
    ///
    /// # Errors
    ///
    /// When it could not be started; in a forked copy.
    pub(crate) fn local(&self) -> Result<&Arc<Server>, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        match &self.route {
            Route::Local(server) => Ok(server),
            Route::Failed(error) => Err(error.clone()),
            Route::Remote(_) => Err(Why::NoSuchObject.into()),
        }
    }

    /// Ends the manager, if it is in this process.
    pub(crate) fn close(&self) {
        if let Route::Local(server) = &self.route
            && !fork::is_forked_copy()
        {
            server.close();
        }
    }

    /// A ticket for a request. Nothing may be asked in a forked copy, or of a manager that is
    /// closed.
    pub(crate) fn ticket(&self) -> Result<u64, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        match &self.route {
            Route::Local(_) => {}
            Route::Remote(remote) => remote.prepare()?,
            Route::Failed(error) => return Err(error.clone()),
        }
        self.mail.open().map_err(error)
    }

    /// The ticket of what wants no answer. As [`ticket`](Self::ticket).
    pub(crate) fn no_answer(&self) -> Result<u64, Error> {
        if fork::is_forked_copy() {
            return Err(Why::Forked.into());
        }
        if let Route::Remote(remote) = &self.route {
            remote.prepare()?;
        }
        if self.mail.is_closed() { Err(Why::ManagerClosed.into()) } else { Ok(NO_ANSWER) }
    }

    /// `names` are the references that the body's value holds.
    pub(crate) fn request(&self, object: u64, ticket: u64, mut body: Body, names: &[Name]) {
        // Let go only afterwards: the manager must have its own by then, and its lock must not be
        // held.
        let held = body.held.take();
        match &self.route {
            Route::Local(server) => server.request(object, ticket, body, names),
            Route::Remote(remote) => {
                let (head, tail) = (&body.head[..], &body.tail[..]);
                remote.send(&ToManager::Request {
                    object,
                    ticket,
                    names: names.to_vec(),
                    head,
                    tail,
                });
            }
            Route::Failed(_) => {}
        }
        drop(held);
    }

    /// Says that what was offered is about to be seen. Ready when the manager knows, or its
    /// kernel's socket does.
    pub(crate) fn poll_taken(
        &self,
        object: u64,
        ticket: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        match &self.route {
            Route::Local(server) => {
                server.taken(object, ticket);
                Poll::Ready(Ok(()))
            }
            Route::Remote(remote) => remote
                .poll_send_past(&ToManager::Taken { object, ticket }, cx)
                .map(|sent| sent.map_err(error)),
            Route::Failed(error) => Poll::Ready(Err(error.clone())),
        }
    }

    /// Tells an object something whose answer nobody waits for. Ready as
    /// [`poll_taken`](Self::poll_taken) is.
    pub(crate) fn poll_tell(
        &self,
        object: u64,
        body: &Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let ticket = match self.no_answer() {
            Ok(ticket) => ticket,
            Err(error) => return Poll::Ready(Err(error)),
        };
        match &self.route {
            Route::Local(server) => {
                server.request(object, ticket, body.clone(), &[]);
                Poll::Ready(Ok(()))
            }
            Route::Remote(remote) => {
                let (head, tail) = (&body.head[..], &body.tail[..]);
                let message = ToManager::Request { object, ticket, names: Vec::new(), head, tail };
                remote.poll_send_past(&message, cx).map(|sent| sent.map_err(error))
            }
            Route::Failed(error) => Poll::Ready(Err(error.clone())),
        }
    }

    pub(crate) fn cancel(&self, object: u64, ticket: u64) {
        if fork::is_forked_copy() {
            return;
        }
        match &self.route {
            Route::Local(server) => server.cancel(object, ticket),
            Route::Remote(remote) => remote.send(&ToManager::Cancel { object, ticket }),
            Route::Failed(_) => {}
        }
    }

    /// One reference more, beside one that this process has. `None`: the object is gone.
    pub(crate) fn acquire(&self, name: &Name, part: Part) -> Option<Name> {
        if fork::is_forked_copy() {
            return None;
        }
        match &self.route {
            Route::Local(server) => server.acquire(name.object, part),
            Route::Remote(remote) => {
                remote.send(&ToManager::Acquire { object: name.object, part });
                Some(Name { part, ..*name })
            }
            Route::Failed(_) => None,
        }
    }

    pub(crate) fn release(&self, name: &Name) {
        if fork::is_forked_copy() {
            return;
        }
        match &self.route {
            Route::Local(server) => server.release(name.object, name.part),
            Route::Remote(remote) => {
                remote.send(&ToManager::Release { object: name.object, part: name.part, count: 1 })
            }
            Route::Failed(_) => {}
        }
    }

    /// Asks for a lane of a queue, if the manager is elsewhere.
    pub(super) fn lane(&self, object: u64, ticket: u64, way: Way) {
        if let Route::Remote(remote) = &self.route {
            remote.send(&ToManager::Lane { object, ticket, way });
        }
    }

    // ---- locks and memory

    /// The manager's memory where an object lies, if this process has it mapped.
    pub(super) fn mapped(&self, place: Place) -> Option<Cell> {
        let (memory, owner) = match &self.route {
            Route::Local(server) => (server.memory(place.segment)?, LOCAL),
            Route::Remote(remote) => {
                let (seat, generation) = remote.seat()?;
                (remote.segment(place.segment)?, Client { seat, generation })
            }
            Route::Failed(_) => return None,
        };
        Cell::new(memory, place, owner_of(owner))
    }

    /// Asks for a segment of the memory.
    pub(super) fn map(&self, ticket: u64, segment: u32) {
        if let Route::Remote(remote) = &self.route {
            remote.send(&ToManager::Map { ticket, segment });
        }
    }

    /// Maps a segment that has come. `None`: it does not fit what we were told of the object, or we
    /// have not been told our seat.
    pub(super) fn keep(&self, place: Place, segment: OwnedFd) -> std::io::Result<Option<Cell>> {
        let Route::Remote(remote) = &self.route else { return Ok(None) };
        let Some((seat, generation)) = remote.seat() else { return Ok(None) };
        let memory = SharedMemory::from_fd(&segment)?;
        // Who only uses memory reads nothing, and would never hear that the manager is gone.
        if remote::outlives() {
            let _ = remote.lean(); // without a thread it hears of it when it asks for something
        }
        let memory = remote.keep_segment(place.segment, memory, place.len as usize <= SHARED_MAX);
        Ok(Cell::new(memory, place, owner_of(Client { seat, generation })))
    }

    /// `holds` is what this thread holds, if it blocks.
    pub(super) fn park(&self, object: u64, ticket: u64, limit: Option<Duration>, holds: &[u64]) {
        match &self.route {
            Route::Local(server) => server.park(object, ticket, limit, holds),
            Route::Remote(remote) => {
                // 0 is without a limit.
                let limit = limit
                    .map_or(0, |limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1));
                let pid = if holds.is_empty() { 0 } else { std::process::id() };
                remote.send(&ToManager::Park { object, ticket, limit, pid, holds: holds.to_vec() });
            }
            Route::Failed(_) => {}
        }
    }

    pub(super) fn back(&self, object: u64, ticket: u64) {
        match &self.route {
            Route::Local(server) => server.back(object, ticket),
            Route::Remote(remote) => remote.send(&ToManager::Back { object, ticket }),
            Route::Failed(_) => {}
        }
    }

    pub(super) fn rang(&self, object: u64) {
        match &self.route {
            Route::Local(server) => server.rang(object),
            Route::Remote(remote) => remote.send(&ToManager::Rang { object }),
            Route::Failed(_) => {}
        }
    }

    /// `names` are the references that the value holds. Gives whether there was room for it, as far
    /// as that is known here.
    pub(super) fn commit(
        &self,
        object: u64,
        unmark: bool,
        value: Packet,
        names: Vec<Name>,
    ) -> bool {
        match &self.route {
            Route::Local(server) => server.commit(object, unmark, value, &names),
            Route::Remote(remote) => {
                remote.send(&ToManager::Commit { object, unmark, names, value: &value });
                true
            }
            Route::Failed(_) => true,
        }
    }

    pub(super) fn fetch(&self, object: u64, ticket: u64) {
        match &self.route {
            Route::Local(server) => server.fetch(object, ticket),
            Route::Remote(remote) => remote.send(&ToManager::Fetch { object, ticket }),
            Route::Failed(_) => {}
        }
    }

    // ---- references that travel

    /// Makes a process of ours a client of a manager that is elsewhere. Gives how we call it, and
    /// its socket.
    pub(super) fn introduce(
        &self,
        pidfd: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<(u64, OwnedFd)> {
        let Route::Remote(remote) = &self.route else {
            return Err(std::io::ErrorKind::Unsupported.into());
        };
        let (ours, theirs) = UnixStream::pair()?;
        let number = self.introduced.fetch_add(1, Ordering::Relaxed);
        let mut fds = vec![Arc::new(OwnedFd::from(ours)) as Fd];
        if let Some(pidfd) = pidfd {
            fds.push(Arc::new(pidfd.try_clone_to_owned()?));
        }
        remote.send_with(fds, &ToManager::Introduce { client: number, process: pidfd.is_some() });
        Ok((number, theirs.into()))
    }

    /// Lends one that we have introduced a reference of ours.
    pub(super) fn lend(&self, client: u64, name: &Name) {
        self.tell(&ToManager::Lend { client, names: vec![*name] });
    }

    /// Takes over what one that we have introduced has put into a result.
    pub(super) fn take(&self, client: u64, name: Name) -> Name {
        self.tell(&ToManager::Take { client, names: vec![name] });
        name
    }

    /// One that we have introduced puts nothing into results any more.
    pub(super) fn dismiss(&self, client: u64) {
        self.tell(&ToManager::Dismiss { client });
    }

    /// Puts a reference into a result.
    pub(super) fn parcel(&self, name: &Name) {
        self.tell(&ToManager::Parcel { names: vec![*name] });
    }

    fn tell(&self, message: &ToManager<'_>) {
        if let Route::Remote(remote) = &self.route {
            remote.send(message);
        }
    }

    /// Waits until what was told has reached the manager's socket.
    pub(super) fn flush(&self) {
        if let Route::Remote(remote) = &self.route {
            super::wait::park_on(std::future::poll_fn(|cx| remote.poll_flushed(cx)));
        }
    }

    /// The references that a value names, which is to be put into an object of this manager.
    pub(super) fn names(&self, held: &Held) -> Result<Vec<Name>, Error> {
        let mut names = Some(Vec::new());
        crate::manager::held::each(held, &mut |one| {
            let Some(handle::Things(things)) = one.downcast_ref() else { return };
            for inner in things.iter().filter_map(|thing| thing.downcast_ref::<Inner>()) {
                match (&mut names, inner.name_in(self.manager)) {
                    (Some(names), Some(name)) => names.push(name),
                    _ => names = None,
                }
            }
        });
        names.ok_or_else(|| Why::ForeignHandle.into())
    }

    /// The references that a body's values name, which came with it.
    pub(crate) fn things(self: &Arc<Self>, body: &Body) -> Vec<crate::wire::value::names::Thing> {
        let mut things = Vec::new();
        crate::manager::held::each(&body.held, &mut |one| {
            if let Some(handle::Things(came)) = one.downcast_ref() {
                things.extend(came.iter().cloned());
            } else if let (Some(names), Some(server)) =
                (crate::manager::held::names_of(one), self.server())
            {
                let acquired =
                    names.iter().filter_map(|(object, part)| server.acquire(*object, *part));
                things
                    .extend(acquired.map(|name| Arc::new(Inner::new(Arc::clone(self), name)) as _));
            }
        });
        things
    }
}

#[cfg(test)]
impl Connection {
    /// The socket ends, as if this process had.
    pub(super) fn cut(&self) {
        if let Route::Remote(remote) = &self.route {
            remote.hang_up();
        }
    }

    pub(super) fn elsewhere(&self) -> Option<&Arc<Remote>> {
        match &self.route {
            Route::Remote(remote) => Some(remote),
            Route::Local(_) | Route::Failed(_) => None,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        match &self.route {
            Route::Local(_) if self.keeper.is_none() => self.close(),
            Route::Remote(remote) => remote.hang_up(),
            Route::Local(_) | Route::Failed(_) => {}
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("manager", &self.manager).finish_non_exhaustive()
    }
}

/// An answer that does not fit its question.
#[cold]
pub(crate) fn unexpected() -> Error {
    Why::Decode("the manager's answer does not fit the question".into()).into()
}
