//! A lock over processes, with the value that it protects.
//!
//! Everything that matters is in shared memory (`manager/lock/`). Here: waiting, the value's way
//! into a `T` and back, and when a guard commits and when it rolls back.

use super::cell::Cell;
use super::connection::{error, unexpected};
use super::handle::{Handle, Opened, encode, handle_travels, kinds};
use super::holding;
use super::manager::Manager;
use super::stopping;
use super::wait;
use crate::coop::take_unit;
use crate::error::sync::{Error, ErrorKind, Why};
use crate::manager::lock::word::{self, Attempt, Release, Released, Stored, Word, always};
use crate::manager::mail::Arrived;
use crate::manager::message::{Refusal, VALUE_MAX};
use crate::manager::object::{Body, Part};
use crate::process::fork;
use crate::wire::packet::Packet;
use crate::wire::value::{self, names};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::task::Poll;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// How long one tries before one waits: about as long as to wait would cost. (Waking a thread on
/// another processor was measured at 45 µs.)
const SPIN: Duration = Duration::from_micros(20);
/// The longest pause between two tries, in hints to the processor: about 2 µs. Who looks more often
/// takes the word's line of the cache away from whoever holds the lock, each time, and slows both
/// down.
const PAUSE_MAX: u32 = 32;
/// Snapshots that are disturbed one after another, before the lock is taken instead.
const SNAPSHOTS: u32 = 100;
/// The least room for a value that may grow, in bytes.
const ROOM_MIN: usize = 256;
/// Room for a value that is no larger than a machine word and owns nothing: the longest integer
/// takes nine bytes.
const ROOM_WORD: usize = 16;
/// Words of a value that are copied without taking memory for them.
const SMALL: usize = 16;

/// A lock over processes, with the value that it protects.
///
/// Made by [`Manager::mutex`]. It is a cheap handle: clones, and what arrives elsewhere as an
/// argument or a result, are the same lock.
///
/// **A guard that is dropped commits**: what was changed through it is the value from then on, also
/// after an early return by `?`, or when `select!` drops the future that has it. It rolls back, to
/// the last committed value, when
///
/// * its process dies, however (the next in line has the lock within 10 ms of its end, as a rule
///   within one);
/// * the thread panics;
/// * its async task is being stopped: aborted, over its time limit, or by the pool's end (a sync
///   one is stopped with its process);
/// * the value cannot be encoded (or takes more than 16 MiB);
/// * [`MutexGuard::rollback`] is called.
///
/// The value is encoded where it is changed and decoded where it is locked; a guard through which
/// nothing was changed writes nothing. `Mutex<()>` is the plain lock.
///
/// Who waits is served in the order of arrival, except that one who comes may take the lock when it
/// is free just then, or becomes so within 20 µs, as long as nobody waits. One whose process is
/// stopped when its turn comes, or gets no time to run, is passed over after 10 ms, and asked no
/// more, so it holds up the others once; as soon as it runs again it is back at its place, before
/// all that came later. It has twice as long with each turn that it misses, up to a second: however
/// slow the machine, whoever comes to run within a second has the lock with the eighth of its turns
/// at the latest. One that is stopped while it holds the lock keeps it.
///
/// Processes of one thread each that hold locks and wait for each other's, in `blocking_` calls
/// without a limit, are told so where that is looked for ([`Manager::detect_deadlocks`], on by
/// default in debug builds): one of them gets an error that is [`is_deadlock`](Error::is_deadlock)
/// and names the ring. Of async tasks, and of processes with more threads, this is never certain,
/// and nothing is told.
///
/// Without contention, `lock` and the guard's drop are some atomic operations in shared memory: no
/// system call. In the application this works without any worker, from any thread, in any runtime
/// or none.
///
/// ```
/// use procpool::Manager;
/// use procpool::sync::Mutex;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let manager = Manager::new()?;
/// let total: Mutex<u64> = manager.mutex(40)?;
/// *total.lock().await? += 2;
/// assert_eq!(total.get().await?, 42);
/// # Ok(())
/// # }
/// ```
pub struct Mutex<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

handle_travels!(Mutex<T>, kinds::MUTEX);

impl<T> Clone for Mutex<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), marker: PhantomData }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("object", &self.handle.name().object).finish_non_exhaustive()
    }
}

impl Manager {
    /// A new lock with this value.
    ///
    /// Its place in shared memory has room for twice the encoded value, and for 256 bytes at least
    /// (a number has room for any number). What has no room travels by socket when it is
    /// committed and when it is read, which is slower.
    /// See [`mutex_with_capacity`](Self::mutex_with_capacity) for a value that will grow.
    ///
    /// # Errors
    ///
    /// When the value cannot be encoded, or takes more than 16 MiB; when there is no memory; when
    /// the manager is closed.
    pub fn mutex<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<Mutex<T>, Error> {
        self.make_mutex(None, &value, 0)
    }

    /// As [`mutex`](Self::mutex), with room for a value of so many bytes, encoded. Twice as many
    /// are taken.
    ///
    /// # Errors
    ///
    /// As `mutex`.
    pub fn mutex_with_capacity<T: Serialize + DeserializeOwned>(
        &self,
        value: T,
        bytes: usize,
    ) -> Result<Mutex<T>, Error> {
        self.make_mutex(None, &value, bytes)
    }

    /// The lock of this name; if there is none, one is made with this value. It has its name as
    /// long as there is a handle to it. Names of mutexes are told apart from those of other
    /// kinds of objects; the type of the value is not looked at.
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex).
    pub fn mutex_named<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        value: T,
    ) -> Result<Mutex<T>, Error> {
        self.make_mutex(Some(name), &value, 0)
    }

    fn make_mutex<T: Serialize>(
        &self,
        name: Option<&str>,
        value: &T,
        room: usize,
    ) -> Result<Mutex<T>, Error> {
        let connection = self.connection();
        let server = connection.local()?;
        let made = match name.and_then(|name| server.find(kinds::MUTEX, name, Part::WHOLE)) {
            Some(found) => found,
            None => {
                let (value, held) = encode(value)?;
                let is_word = size_of::<T>() <= 8 && !std::mem::needs_drop::<T>();
                let least = if is_word { ROOM_WORD } else { ROOM_MIN.max(2 * value.len()) };
                let room = room.max(least).min(VALUE_MAX);
                let names = connection.names(&held)?;
                server.create_lock(kinds::MUTEX, room, value, &names, name.map(str::to_owned))?
            }
        };
        Ok(Mutex { handle: Handle::of(connection, made), marker: PhantomData })
    }
}

impl<T: Serialize + DeserializeOwned> Mutex<T> {
    /// Waits for the lock.
    ///
    /// # Errors
    ///
    /// The manager is closed; the lock's memory was corrupted; the value is no `T` (the lock is
    /// released then as it was); in a forked copy of the process.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, it has no effect but that the place in the line is lost.
    pub async fn lock(&self) -> Result<MutexGuard<'_, T>, Error> {
        Ok(MutexGuard { core: lock(&self.handle, None).await?, lock: &self.handle })
    }

    /// As [`lock`](Self::lock), for at most so long.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock); [`is_timeout`](Error::is_timeout).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Self::lock).
    pub async fn lock_timeout(&self, limit: Duration) -> Result<MutexGuard<'_, T>, Error> {
        Ok(MutexGuard { core: lock(&self.handle, Some(limit)).await?, lock: &self.handle })
    }

    /// As [`lock`](Self::lock), with a guard that has a handle of its own, for where a borrow
    /// cannot be.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As [`lock`](Self::lock).
    pub async fn lock_owned(self) -> Result<OwnedMutexGuard<T>, Error> {
        let core = lock(&self.handle, None).await?;
        Ok(OwnedMutexGuard { core, lock: self.handle })
    }

    /// The lock, if it is free now; else `None`, at once.
    ///
    /// The first use of a lock in a worker asks the manager for its memory, and a value that has no
    /// room in its place is asked for each time: these wait for the manager's answer, some tens
    /// of microseconds.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self) -> Result<Option<MutexGuard<'_, T>>, Error> {
        let cell = match self.handle.cell_at_once()? {
            Some(cell) => cell,
            None => wait::park_on(self.handle.cell())?,
        };
        match always(word::try_lock(cell.words(), cell.owner())) {
            Attempt::Held(word) => {
                let locked = Locked::new(&self.handle, cell, word);
                let core = match Core::open_at_once(locked)? {
                    Ok(core) => core,
                    Err(locked) => wait::park_on(Core::open(locked))?,
                };
                Ok(Some(MutexGuard { core, lock: &self.handle }))
            }
            // Of a manager that is gone, nobody gives it back.
            Attempt::Busy if self.handle.connection().mail().is_closed() => {
                Err(Why::ManagerClosed.into())
            }
            Attempt::Busy => Ok(None),
            Attempt::Broken => Err(broken(&self.handle)),
        }
    }

    /// As [`lock`](Self::lock), by blocking the thread.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    ///
    /// # Panics
    ///
    /// Within an async context, as tokio's blocking calls do: there, `.await` [`lock`](Self::lock).
    #[track_caller]
    pub fn blocking_lock(&self) -> Result<MutexGuard<'_, T>, Error> {
        wait::block_on(self.lock())
    }

    /// As [`lock_timeout`](Self::lock_timeout), by blocking the thread.
    ///
    /// # Errors
    ///
    /// As [`lock_timeout`](Self::lock_timeout).
    ///
    /// # Panics
    ///
    /// As [`blocking_lock`](Self::blocking_lock).
    #[track_caller]
    pub fn blocking_lock_timeout(&self, limit: Duration) -> Result<MutexGuard<'_, T>, Error> {
        wait::block_on(self.lock_timeout(limit))
    }

    /// The value that was committed last, without the lock: whoever holds it is neither waited for
    /// nor disturbed.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, it has no effect.
    pub async fn get(&self) -> Result<T, Error> {
        take_unit().await;
        let cell = self.handle.cell().await?;
        let mut bytes = Vec::new();
        for _ in 0..SNAPSHOTS {
            if word::look(cell.words()).is_ok_and(Word::is_broken) {
                return Err(broken(&self.handle));
            }
            bytes.clear();
            let Some((stored, _)) =
                always(word::snapshot(cell.words(), |word| bytes.extend(word.to_le_bytes())))
            else {
                continue;
            };
            match stored {
                Stored::Here(len) => {
                    bytes.truncate(len);
                    return value::decode(&bytes).map_err(|e| Why::Decode(e.to_string()).into());
                }
                Stored::Outside => {
                    // What comes is a whole value, committed before the question was read.
                    let body = fetch(&self.handle).await?;
                    if !body.tail.is_empty() {
                        return self.handle.decode(&body);
                    }
                }
                Stored::Broken => return Err(broken(&self.handle)),
            }
        }
        // It changes faster than it can be read.
        let guard = self.lock().await?;
        let (value, held) = encode(&*guard)?;
        drop(guard);
        self.handle.decode(&Body::with_value(Packet::default(), value, held))
    }

    /// As [`get`](Self::get), by blocking the thread.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    ///
    /// # Panics
    ///
    /// As [`blocking_lock`](Self::blocking_lock).
    #[track_caller]
    pub fn blocking_get(&self) -> Result<T, Error> {
        wait::block_on(self.get())
    }
}

#[cfg(test)]
impl<T> Mutex<T> {
    pub(super) fn of(handle: Handle) -> Self {
        Self { handle, marker: PhantomData }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

// ---- waiting

/// More than one processor can run us: else whoever has the lock cannot release it while we try.
fn may_spin() -> bool {
    static MORE_THAN_ONE: OnceLock<bool> = OnceLock::new();
    *MORE_THAN_ONE.get_or_init(|| std::thread::available_parallelism().is_ok_and(|n| n.get() > 1))
}

/// Takes the lock and opens its value. When it is free, which is what should be fast, there is no
/// other future within this one, and nothing but some words of memory.
async fn lock<T: Serialize + DeserializeOwned>(
    handle: &Handle,
    limit: Option<Duration>,
) -> Result<Core<T>, Error> {
    take_unit().await;
    if let Some(cell) = handle.cell_at_once()?
        && let Attempt::Held(word) = always(word::try_lock(cell.words(), cell.owner()))
    {
        return match Core::open_at_once(Locked::new(handle, cell, word))? {
            Ok(core) => Ok(core),
            Err(locked) => Box::pin(Core::open(locked)).await,
        };
    }
    Box::pin(async move { Core::open(acquire(handle, limit).await?).await }).await
}

async fn acquire(handle: &Handle, limit: Option<Duration>) -> Result<Locked<'_>, Error> {
    let cell = handle.cell().await?;
    if let Attempt::Held(word) = always(word::try_lock(cell.words(), cell.owner())) {
        return Ok(Locked::new(handle, cell, word));
    }
    if may_spin()
        && let Some(word) = spin(cell, limit)
    {
        return Ok(Locked::new(handle, cell, word));
    }
    let parked = Parked { ticket: Opened::new(handle)?, handle, over: false };
    let mut parked = parked;
    // One that gives up by itself keeps nobody waiting for ever.
    let holds = if limit.is_none() {
        holding::held_while_blocking(handle.connection().manager())
    } else {
        Vec::new()
    };
    handle.connection().park(handle.name().object, parked.ticket.number, limit, &holds);
    let word = poll_fn(|cx| {
        loop {
            match handle.connection().poll(parked.ticket.number, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Arrived::Granted(version)) => {
                    match always(word::accept(cell.words(), cell.owner(), version)) {
                        Attempt::Held(word) => return Poll::Ready(Ok(word)),
                        // It came late, and was taken back: the next one comes when this has been
                        // said.
                        Attempt::Busy => {
                            handle.connection().back(handle.name().object, parked.ticket.number)
                        }
                        Attempt::Broken => return Poll::Ready(Err(broken(handle))),
                    }
                }
                Poll::Ready(Arrived::Refused(why)) => return Poll::Ready(Err(error(why))),
                Poll::Ready(Arrived::Deadlock(ring)) => {
                    return Poll::Ready(Err(Why::Deadlock { ring }.into()));
                }
                Poll::Ready(_) => return Poll::Ready(Err(unexpected())),
            }
        }
    })
    .await;
    parked.over = true;
    Ok(Locked::new(handle, cell, word?))
}

/// Tries for a while, as long as it makes sense.
fn spin(cell: &Cell, limit: Option<Duration>) -> Option<Word> {
    let (begun, limit) = (Instant::now(), limit.map_or(SPIN, |limit| limit.min(SPIN)));
    let mut pause = 1;
    loop {
        for _ in 0..pause {
            std::hint::spin_loop();
        }
        pause = (pause * 2).min(PAUSE_MAX);
        if let Attempt::Held(word) = always(word::try_lock(cell.words(), cell.owner())) {
            return Some(word);
        }
        // Who waits goes first; and of the manager's locks none becomes free.
        let word = always(word::look(cell.words()));
        if word.has_waiters() || word.is_broken() || begun.elapsed() >= limit {
            return None;
        }
    }
}

/// A place in the line.
struct Parked<'a> {
    ticket: Opened<'a>,
    handle: &'a Handle,
    /// The lock is ours, or refused.
    over: bool,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.handle.cancel(self.ticket.number);
        }
    }
}

/// What is told of a lock that nobody may have any more.
#[cold]
fn broken(handle: &Handle) -> Error {
    // The end of a manager is seen in the lock first.
    let asked = Opened::new(handle).and_then(|ticket| {
        handle.connection().park(
            handle.name().object,
            ticket.number,
            Some(Duration::from_millis(1)),
            &[],
        );
        let arrived = wait::park_on(poll_fn(|cx| handle.connection().poll(ticket.number, cx)));
        handle.cancel(ticket.number); // what the word says may be no reason to refuse
        match arrived {
            Arrived::Refused(Refusal::Closed) => Err(error(Refusal::Closed)),
            _ => Ok(()),
        }
    });
    asked.err().unwrap_or_else(|| Why::ObjectBroken.into())
}

/// Asks for the value that the manager keeps.
async fn fetch(handle: &Handle) -> Result<Body, Error> {
    let ticket = Opened::new(handle)?;
    handle.connection().fetch(handle.name().object, ticket.number);
    match poll_fn(|cx| handle.connection().poll(ticket.number, cx)).await {
        Arrived::Answer { body, .. } => Ok(body),
        Arrived::Refused(why) => Err(error(why)),
        Arrived::Granted(_) | Arrived::Mapped(_) | Arrived::Deadlock(_) => Err(unexpected()),
    }
}

// ---- holding

/// The lock is ours; its value has not been looked at. Dropped, it is released as it was.
struct Locked<'a> {
    handle: &'a Handle,
    cell: &'a Cell,
    word: Word,
    fencing_token: u64,
    noted: Option<ThreadId>,
    armed: bool,
}

impl<'a> Locked<'a> {
    #[inline]
    fn new(handle: &'a Handle, cell: &'a Cell, word: Word) -> Self {
        let fencing_token = always(word::next_fencing_number(cell.words()));
        let noted = holding::taken(handle.connection().manager(), handle.name().object);
        Self { handle, cell, word, fencing_token, noted, armed: true }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.armed && !fork::is_forked_copy() {
            forget(self.handle, self.noted);
            let _ = let_go(
                self.handle,
                self.cell,
                self.word,
                Release { commit: false, recovered: None },
            );
        }
    }
}

/// Releases the lock, and rings if it was left to the manager.
#[inline]
fn let_go(handle: &Handle, cell: &Cell, word: Word, how: Release) -> Result<(), Error> {
    match always(word::release(cell.words(), word, how)) {
        Released::Free => Ok(()),
        Released::Ring => {
            handle.connection().rang(handle.name().object);
            Ok(())
        }
        Released::Broken => Err(Why::ObjectBroken.into()),
    }
}

/// The lock is about to be released.
#[inline]
fn forget(handle: &Handle, noted: Option<ThreadId>) {
    if let Some(thread) = noted {
        holding::released(thread, handle.connection().manager(), handle.name().object);
    }
}

/// See [`commit`]: so that a guard's type asks nothing of its value's.
type Commit<T> = fn(&T, &Handle, &Cell, Word, bool) -> Result<(), (Error, bool)>;

/// What all guards have.
struct Core<T> {
    /// `None` only while it is being dropped.
    value: Option<T>,
    word: Word,
    fencing_token: u64,
    /// Which thread is noted to hold it.
    noted: Option<ThreadId>,
    changed: bool,
    /// The mark of those who did not end well is to be taken away.
    unmark: bool,
    /// The thread was panicking when the lock was taken, which is then nothing that happened to
    /// the guard.
    panicking: bool,
    commit: Commit<T>,
}

impl<T: Serialize + DeserializeOwned> Core<T> {
    fn new(mut locked: Locked<'_>, value: T) -> Self {
        locked.armed = false;
        let Locked { word, fencing_token, noted, .. } = locked;
        let panicking = std::thread::panicking();
        Self {
            value: Some(value),
            word,
            fencing_token,
            noted,
            changed: false,
            unmark: false,
            panicking,
            commit,
        }
    }

    /// Decodes the value if it is in its place.
    #[inline]
    fn open_at_once(locked: Locked<'_>) -> Result<Result<Self, Locked<'_>>, Error> {
        let (memory, word) = (locked.cell.words(), locked.word);
        let len = match always(word::stored(memory, word)) {
            Stored::Here(len) => len,
            Stored::Outside => return Ok(Err(locked)),
            Stored::Broken => return Err(broken(locked.handle)),
        };
        let words = len.div_ceil(8);
        let decoded = if words <= SMALL {
            let mut bytes = [0; SMALL * 8];
            let mut chunks = bytes.as_chunks_mut::<8>().0.iter_mut();
            always(word::read(memory, word, words, |word| {
                if let Some(chunk) = chunks.next() {
                    *chunk = word.to_le_bytes();
                }
            }));
            value::decode(&bytes[..len])
        } else {
            let mut bytes = Vec::with_capacity(words * 8);
            always(word::read(memory, word, words, |word| bytes.extend(word.to_le_bytes())));
            value::decode(&bytes[..len])
        };
        let value = decoded.map_err(|e| Error::from(Why::Decode(e.to_string())))?;
        Ok(Ok(Self::new(locked, value)))
    }

    async fn open(locked: Locked<'_>) -> Result<Self, Error> {
        let locked = match Self::open_at_once(locked)? {
            Ok(core) => return Ok(core),
            Err(locked) => locked,
        };
        let body = fetch(locked.handle).await?;
        let value = locked.handle.decode(&body)?;
        Ok(Self::new(locked, value))
    }
}

/// Writes the value and releases the lock with it. An error comes with whether the lock has been
/// released all the same.
fn commit<T: Serialize>(
    value: &T,
    handle: &Handle,
    cell: &Cell,
    word: Word,
    unmark: bool,
) -> Result<(), (Error, bool)> {
    thread_local! {
        static SCRATCH: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
    }
    // Taken out, not borrowed: the value's own code may use another lock.
    let mut out = SCRATCH.try_with(std::cell::Cell::take).unwrap_or_default();
    out.clear();
    // A handle is something to be dropped: what needs no drop has none.
    let (encoded, things) = if std::mem::needs_drop::<T>() {
        names::collecting(|| value::encode(value, &mut out, VALUE_MAX))
    } else {
        (value::encode(value, &mut out, VALUE_MAX), Vec::new())
    };
    let mut released = false;
    let done = match encoded {
        Ok(())
            if things.is_empty()
                && out.len() <= word::capacity(cell.words().len())
                && !always(word::has_outside(cell.words())) =>
        {
            always(word::write(cell.words(), word, out.len(), word::words_of(&out)));
            let_go(handle, cell, word, Release { commit: true, recovered: unmark.then_some(false) })
        }
        Ok(()) => handle.connection().names(&super::handle::held(things)).and_then(|names| {
            if !always(word::is_held(cell.words(), word)) {
                return Err(Why::ObjectBroken.into());
            }
            if handle.connection().commit(
                handle.name().object,
                unmark,
                Packet::copy_from(&out),
                names,
            ) {
                return Ok(());
            }
            released = true; // and rolled back
            Err(Why::ManagerFull.into())
        }),
        Err(value::EncodeError::TooLarge { limit }) => Err(Why::TooLarge { limit }.into()),
        Err(error) => Err(Why::Encode(error.to_string()).into()),
    };
    if out.capacity() <= 64 << 10 {
        let _ = SCRATCH.try_with(|scratch| scratch.set(out)); // the memory of a large one is not kept
    }
    done.map_err(|error| (error, released))
}

impl<T> Core<T> {
    fn value(&self) -> &T {
        self.value.as_ref().expect("it is there until the guard is dropped")
    }

    fn value_mut(&mut self) -> &mut T {
        self.changed = true;
        self.value.as_mut().expect("it is there until the guard is dropped")
    }

    /// Ends it. Gives why a change could not be committed; then it was rolled back.
    fn end(&mut self, lock: &Handle, roll_back: bool, mark: bool) -> Result<(), Error> {
        let Some(value) = self.value.take() else { return Ok(()) };
        if fork::is_forked_copy() {
            return Err(Why::Forked.into()); // the lock is the original's
        }
        forget(lock, self.noted.take());
        let cell = lock.cell_at_once()?.ok_or_else(|| Error::from(Why::ObjectBroken))?;
        let unmarked = self.unmark.then_some(false);
        if !self.changed && !roll_back {
            return let_go(lock, cell, self.word, Release { commit: false, recovered: unmarked });
        }
        // Nothing of the user's may run between the failure of his encoding and the release; but it
        // may panic.
        struct ReleaseOnPanic<'a>(&'a Handle, &'a Cell, Word, bool);
        impl Drop for ReleaseOnPanic<'_> {
            fn drop(&mut self) {
                if self.3 {
                    let _ = let_go(
                        self.0,
                        self.1,
                        self.2,
                        Release { commit: false, recovered: Some(true) },
                    );
                }
            }
        }
        let mut otherwise = ReleaseOnPanic(lock, cell, self.word, true);
        let committed = if roll_back {
            Ok(())
        } else {
            (self.commit)(&value, lock, cell, self.word, self.unmark)
        };
        otherwise.3 = false;
        match committed {
            Ok(()) if roll_back => {
                let recovered = if mark { Some(true) } else { unmarked };
                let_go(lock, cell, self.word, Release { commit: false, recovered })
            }
            Ok(()) => Ok(()),
            Err((error, true)) => Err(error),
            Err((error, false)) => {
                let recovered = mark.then_some(true);
                let _ = let_go(lock, cell, self.word, Release { commit: false, recovered });
                Err(error)
            }
        }
    }

    /// As a guard's drop ends it.
    fn end_in_drop(&mut self, lock: &Handle) {
        let failed = std::thread::panicking() && !self.panicking || stopping::is_stopping();
        let _ = self.end(lock, failed, true);
    }
}

/// What guards of both kinds can do.
macro_rules! guard {
    ($guard:ident $(<$life:lifetime>)?) => {
        impl<$($life,)? T> $guard<$($life,)? T> {
            /// Commits what was changed, and releases the lock. As dropping the guard does, which cannot tell an error.
            ///
            /// # Errors
            ///
            /// When the value cannot be encoded, or takes more than 16 MiB; when the lock's memory was corrupted. The
            /// value is then what was committed before.
            pub fn commit(mut self) -> Result<(), Error> {
                let Self { core, lock } = &mut self;
                let committed = core.end(lock, false, false);
                // The end of a manager is seen in the lock first.
                committed.map_err(|error| match error.kind() {
                    ErrorKind::ObjectBroken => broken(lock),
                    _ => error,
                })
            }

            /// Throws away what was changed, and releases the lock.
            pub fn rollback(mut self) {
                let Self { core, lock } = &mut self;
                let _ = core.end(lock, true, false);
            }

            /// Whether somebody who held the lock before did not end as he should: his process died, his thread panicked, his
            /// task was aborted, or what he had changed could not be encoded. The value is what was committed last before
            /// that; what the lock protects beside it may be half done. It stays so until somebody
            /// [clears](Self::clear_recovered) it.
            pub fn recovered(&self) -> bool {
                self.core.word.is_recovered() && !self.core.unmark
            }

            /// From the release of this guard on, [`recovered`](Self::recovered) is no longer said. (Should the guard not
            /// end well itself, it is said all the same.)
            pub fn clear_recovered(&mut self) {
                self.core.unmark = true;
            }

            /// A number that is higher than that of every guard of this lock before, in any process: for a store that
            /// refuses what comes from one who has lost the lock meanwhile.
            pub fn fencing_token(&self) -> u64 {
                self.core.fencing_token
            }
        }

        impl<$($life,)? T> Deref for $guard<$($life,)? T> {
            type Target = T;

            fn deref(&self) -> &T {
                self.core.value()
            }
        }

        impl<$($life,)? T> DerefMut for $guard<$($life,)? T> {
            fn deref_mut(&mut self) -> &mut T {
                self.core.value_mut()
            }
        }

        impl<$($life,)? T> Drop for $guard<$($life,)? T> {
            fn drop(&mut self) {
                let Self { core, lock } = self;
                core.end_in_drop(lock);
            }
        }

        impl<$($life,)? T: fmt::Debug> fmt::Debug for $guard<$($life,)? T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($guard)).field(self.core.value()).finish()
            }
        }
    };
}

/// The value of a [`Mutex`], as long as the lock is held.
///
/// # Drop
///
/// Commits what was changed and releases the lock; rolls back in a panic and while the task is
/// being aborted. See [`Mutex`]. A failure to commit rolls back, and is told by
/// [`recovered`](Self::recovered) to the next; use [`commit`](Self::commit) to be told yourself.
#[must_use = "dropping a guard releases the lock"]
pub struct MutexGuard<'a, T> {
    core: Core<T>,
    lock: &'a Handle,
}

/// As [`MutexGuard`], with a handle of its own; made by [`Mutex::lock_owned`].
#[must_use = "dropping a guard releases the lock"]
pub struct OwnedMutexGuard<T> {
    core: Core<T>,
    lock: Handle,
}

guard!(MutexGuard<'a>);
guard!(OwnedMutexGuard);

/// For a condition variable: which lock it is, and how to get it again.
impl<'a, T: Serialize + DeserializeOwned> MutexGuard<'a, T> {
    pub(super) fn of_lock(&self) -> &'a Handle {
        self.lock
    }

    pub(super) async fn lock_again(lock: &'a Handle) -> Result<Self, Error> {
        Ok(Self { core: Core::open(acquire(lock, None).await?).await?, lock })
    }
}
