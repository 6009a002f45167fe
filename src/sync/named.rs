//! References that travel beside a call or a result: which objects of which managers a value names.
//!
//! * The sender encodes, and finds out which
//!   ([`names::collecting`](crate::wire::value::names::collecting)). Who sends a call keeps them
//!   until its task has ended ([`for_call`]), and has each *lent* to the worker that gets it ([`Leases`]): the
//!   worker then has a reference that is counted for it, and drops it itself. The first time that a
//!   worker is lent something of a manager, it gets a socket of its own to it.
//! * The receiver makes handles of them ([`received`]), among which the values that it decodes find
//!   theirs ([`crate::wire::value::names::resolving`]).
//! * What a worker puts into a result it hands over to the manager first ([`parcel`]), where
//!   whoever gets the result takes it over ([`Leases::take`]). So it does not matter that the
//!   worker drops its own right away, or dies.

use super::connection::Connection;
use super::handle::Inner;
use crate::error::sync::{Error, Why};
use crate::lock::Lock;
use crate::manager::message::{Kind, NAMES_MAX, Name, Place};
use crate::manager::object::{Client, Part};
use crate::wire::value::names::Thing;
use crate::wire::value::{self, DecodeError, EncodeError, Reader};
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A name of an object in some manager, as it is written.
type Written = (u64, u64, u8, u8, Option<(u32, u32, u32)>);

fn written(manager: u64, name: &Name) -> Written {
    let place = name.place.map(|place| (place.segment, place.offset, place.len));
    (manager, name.object, name.part.0, name.kind.0, place)
}

fn read((manager, object, part, kind, place): Written) -> Option<(u64, Name)> {
    let place = place.map(|(segment, offset, len)| Place { segment, offset, len });
    (part < Part::COUNT)
        .then_some((manager, Name { object, part: Part(part), kind: Kind(kind), place }))
}

/// Appends the names of these references: one value.
pub(crate) fn write_names(
    things: &[Thing],
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), EncodeError> {
    if things.len() > NAMES_MAX {
        let text = format!("more than {NAMES_MAX} handles of shared objects");
        return Err(EncodeError::Message(text));
    }
    let names: Vec<_> =
        inners(things).map(|inner| written(inner.connection().manager(), inner.name())).collect();
    value::encode(&names, out, limit)
}

/// The references that a call keeps until its task has ended, in the place of those that its
/// arguments name. They keep the objects, but not a pool's own manager.
pub(crate) fn for_call(things: Vec<Thing>) -> Vec<Thing> {
    let reference = |thing: Thing| {
        let kept = thing.downcast_ref::<Inner>().and_then(|inner| {
            let connection = inner.connection().for_calls()?;
            let name = connection.acquire(inner.name(), inner.name().part)?;
            Some(Arc::new(Inner::new(connection, name)) as Thing)
        });
        kept.unwrap_or(thing)
    };
    things.into_iter().map(reference).collect()
}

/// Names that came with a call or a result.
#[derive(Debug)]
pub(crate) struct Named(Vec<(u64, Name)>);

impl Named {
    /// Reads them from the beginning of `bytes`; gives where they end.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, usize), DecodeError> {
        // Decoded, a name takes many times its bytes.
        let count = rmp::decode::read_array_len(&mut &bytes[..]).unwrap_or(0);
        if count as usize > NAMES_MAX {
            let text = format!("more than {NAMES_MAX} names").into();
            return Err(DecodeError::Message { at: Some(0), text });
        }
        let mut reader = Reader::new(bytes);
        let names: Vec<Written> = reader.next()?;
        let end = bytes.len() - reader.rest().len();
        let wrong =
            || DecodeError::Message { at: Some(0), text: "a name that no object has".into() };
        let names: Option<_> = names.into_iter().map(read).collect();
        Ok((Self(names.ok_or_else(wrong)?), end))
    }
}

fn inners(things: &[Thing]) -> impl Iterator<Item = &Inner> {
    things.iter().filter_map(|thing| thing.downcast_ref())
}

// ---- whoever has a worker

/// What one worker was lent, by manager. Dropped when the worker has ended and what it sent has
/// been read.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Held only to look.
    leases: Lock<HashMap<u64, Lease>>,
}

#[derive(Clone, Debug)]
struct Lease {
    connection: Arc<Connection>,
    worker: Borrower,
}

/// How a worker is called at the manager.
#[derive(Clone, Copy, Debug)]
enum Borrower {
    /// In the application.
    Client(Client),
    /// By another client, which has introduced it.
    Introduced(u64),
}

impl Lease {
    /// Nothing more is taken from the worker.
    fn dismiss(&self) {
        match (self.worker, self.connection.server()) {
            (Borrower::Client(client), Some(server)) => server.dismiss(client),
            (Borrower::Introduced(number), _) => self.connection.dismiss(number),
            _ => {}
        }
    }
}

impl Leases {
    fn of(&self, manager: u64) -> Option<Lease> {
        self.leases.lock().get(&manager).cloned()
    }

    /// Lends a worker what a call names that it is about to be sent. One at a time does so. Gives
    /// the managers that it has not known so far, each with a socket to it: they must be sent
    /// before the call. (If the call is never sent, they are lost with the worker.)
    ///
    /// With a pidfd its end is known even if another process holds its socket.
    ///
    /// # Errors
    ///
    /// When there is no descriptor to be had for such a socket, or the manager is closed. Nothing
    /// has been lent then.
    pub(crate) fn lend(
        &self,
        things: &[Thing],
        worker: Option<BorrowedFd<'_>>,
    ) -> io::Result<Vec<(u64, OwnedFd)>> {
        let (mut sockets, mut new) = (Vec::new(), HashMap::new());
        for inner in inners(things) {
            let manager = inner.connection().manager();
            if new.contains_key(&manager) || self.of(manager).is_some() {
                continue;
            }
            let connection = Arc::clone(inner.connection());
            let (worker, socket) = match connection.server() {
                Some(server) => {
                    let (client, socket) = server
                        .connect(worker.map(|worker| worker.try_clone_to_owned()).transpose()?)?;
                    (Borrower::Client(client), socket)
                }
                None => {
                    let (number, socket) = connection.introduce(worker)?;
                    (Borrower::Introduced(number), socket)
                }
            };
            new.insert(manager, Lease { connection, worker });
            sockets.push((manager, socket));
        }
        // Only now: those whose sockets are not sent end with these.
        self.leases.lock().extend(new);
        for inner in inners(things) {
            if let Some(lease) = self.of(inner.connection().manager()) {
                let Name { object, part, .. } = *inner.name();
                match lease.worker {
                    // `None`: the manager is closed, which the worker will see by itself.
                    Borrower::Client(client) => drop(
                        lease
                            .connection
                            .server()
                            .and_then(|server| server.lend(client, object, part)),
                    ),
                    Borrower::Introduced(number) => lease.connection.lend(number, inner.name()),
                }
            }
        }
        Ok(sockets)
    }

    /// The worker did not get the socket to this manager: it is announced again with the next call
    /// that names one of its objects. If the worker has that socket all the same, it loses it.
    pub(crate) fn not_attached(&self, manager: u64) {
        let lease = self.leases.lock().remove(&manager);
        let Some(lease) = lease else { return };
        if let (Borrower::Client(client), Some(server)) = (lease.worker, lease.connection.server())
        {
            server.hang_up(client);
        }
        lease.dismiss();
    }

    /// The objects of managers in this process that the worker waits for now: in which manager,
    /// which object, its kind and name.
    pub(crate) fn waits(&self) -> Vec<(u64, u64, Kind, Option<String>)> {
        let leases = self.leases.lock().clone();
        let mut waits = Vec::new();
        for (manager, lease) in &leases {
            if let (Borrower::Client(client), Some(server)) =
                (lease.worker, lease.connection.server())
            {
                let its_own = server.waits_of(client);
                waits.extend(
                    its_own.into_iter().map(|(object, kind, name)| (*manager, object, kind, name)),
                );
            }
        }
        waits
    }

    /// Takes over what a worker's result names.
    ///
    /// # Errors
    ///
    /// When the worker names what it did not hand over.
    pub(crate) fn take(&self, named: &Named) -> Result<Vec<Thing>, String> {
        let take = |(manager, name): &(u64, Name)| {
            let lease = self.of(*manager).ok_or_else(|| {
                format!("an object of manager {manager:x}, which it does not know")
            })?;
            let taken = match (lease.worker, lease.connection.server()) {
                (Borrower::Client(client), Some(server)) => {
                    server.take(client, name.object, name.part)
                }
                (Borrower::Introduced(number), _) => Some(lease.connection.take(number, *name)),
                _ => None,
            };
            if taken.is_none() && !lease.connection.mail().is_closed() {
                return Err(format!("object {}, to which it has no reference", name.object));
            }
            // Of a closed manager: the handle says so itself.
            let name = taken.unwrap_or(*name);
            Ok(Arc::new(Inner::new(lease.connection.for_handles(), name)) as Thing)
        };
        named.0.iter().map(take).collect()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if crate::process::fork::is_forked_copy() {
            return;
        }
        let leases = std::mem::take(self.leases.get_mut());
        leases.values().for_each(Lease::dismiss);
    }
}

// ---- a worker

/// The managers that this process has been given sockets to. For ever, or until a manager is
/// closed: whoever lends us something sends the socket once, and again if it did not arrive.
static GIVEN: Lock<Option<HashMap<u64, Arc<Connection>>>> = Lock::new(None);

/// The managers whose socket did not arrive, which nobody has been told of yet.
static UNATTACHED: Lock<Vec<u64>> = Lock::new(Vec::new());

/// This process has been given a socket to this manager; `None`: it could not take it in.
pub(crate) fn given(manager: u64, socket: Option<OwnedFd>) {
    let mut unattached = UNATTACHED.lock();
    unattached.retain(|other| *other != manager);
    let Some(socket) = socket else { return unattached.push(manager) };
    drop(unattached);
    let connection = Connection::remote(manager, socket);
    let mut given = GIVEN.lock();
    let given = given.get_or_insert_default();
    given.retain(|_, connection| !connection.mail().is_closed());
    given.insert(manager, connection);
}

/// Whether whoever sent the socket to this manager is to be told now that it did not arrive: once
/// for each time, since it is announced again for each.
pub(crate) fn tell_unattached(manager: u64) -> bool {
    let mut unattached = UNATTACHED.lock();
    let at = unattached.iter().position(|other| *other == manager);
    at.map(|at| unattached.swap_remove(at)).is_some()
}

/// A call names an object of a manager to which this process has no socket.
#[derive(Debug)]
pub(crate) struct Unknown {
    pub(crate) manager: u64,
    pub(crate) reason: String,
}

/// The references that came with a call. Each was counted for this process: what no value takes is
/// dropped here.
///
/// # Errors
///
/// When one is of a manager to which this process has no socket. The others are dropped.
pub(crate) fn received(named: Named) -> Result<Vec<Thing>, Unknown> {
    let given = GIVEN.lock();
    let (mut things, mut unknown) = (Vec::new(), None);
    for (manager, name) in named.0 {
        match given.as_ref().and_then(|given| given.get(&manager)) {
            Some(connection) => {
                things.push(Arc::new(Inner::new(Arc::clone(connection), name)) as Thing)
            }
            None => unknown = Some(manager),
        }
    }
    drop(given);
    let Some(manager) = unknown else { return Ok(things) };
    let reason = format!(
        "an object of manager {manager:x}, to which this process has no socket: no descriptor for \
         it was left or could be sent, or the manager has been closed"
    );
    Err(Unknown { manager, reason })
}

/// Hands over to their managers what a result names; it must not be sent before. Waits while a
/// manager does not read.
///
/// # Errors
///
/// When one belongs to a manager of this very process: nobody could reach it where the result goes.
pub(crate) fn parcel(things: &[Thing]) -> Result<(), Error> {
    for inner in inners(things) {
        if inner.connection().server().is_some() {
            return Err(Why::ForeignHandle.into());
        }
    }
    for inner in inners(things) {
        inner.connection().parcel(inner.name());
    }
    for inner in inners(things) {
        inner.connection().flush();
    }
    Ok(())
}
