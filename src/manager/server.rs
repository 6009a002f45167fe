//! The hands of a manager: the rules ([`State`]) under one short lock, and the sockets of its
//! clients.
//!
//! Whoever has news enters by [`Server::apply`]: a handle in the application, directly and from any
//! thread; the driver with what clients have written. What comes out is done after the lock has
//! been released: what is for the application is put into its mail, what is for a client is written
//! to its socket (whoever finds nobody writing writes).
//!
//! All descriptors are in the epoll set of one [`Reactor`]. The supervisor thread drives it, or while
//! a future of the application waits, a task of its runtime (`post.rs`).
//!
//! A client is a process at the other end of a socket. It has ended when the socket has (the kernel
//! closes a dead process's files only when none of its threads runs any more), or when its pidfd
//! says so: a process that it has forked may hold the socket still. Then what it had written is
//! read to the end, and only then its objects are told. One that does not keep to the protocol is
//! cut off in the same way.

use super::held::Dropped;
use super::lane::{self, Way};
use super::lock::served;
use super::lock::word::words_for;
use super::mail::{Arrived, Mail};
use super::message::{self, FRAME_MAX, Kind, Name, Refusal, ToClient, ToManager, error};
use super::object::{Answer, Body, Caller, Client, Held, NO_ANSWER, Part};
use super::outgoing::{Fd, Outgoing, write_out};
use super::post::Post;
use super::rings::Wait;
use super::segments::Segments;
use super::state::{Action, BYTES_MAX, LOCAL, State, What};
use super::{held, object};
use crate::error::sync::{Error, Why};
use crate::lock::Lock;
use crate::panics::{catch_user_panic, wake_all};
use crate::process::{PeerFd, PeerSocket, SharedMemory, fork, sys};
use crate::reactor::{Deadline, Pass, Reactor, Source, Token, supervisor};
use crate::wire::frame::{self, FrameBuffer};
use crate::wire::packet::Packet;
use crate::wire::value::names;
use nix::sys::epoll::EpollFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::MsgFlags;
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// A client that does not read its answers is not listened to any more, from so many bytes on.
const BACKLOG_MAX: u64 = 4 << 20;
/// A client that leaves more bytes of answers unread than this is cut off: what it waits for may be
/// answered at once, though it has stopped reading.
const ANSWERS_MAX: u64 = 256 << 20;
/// As much as this may a client leave unread that is read all the same, because one that it has
/// introduced has written something: some answers of the largest size.
const PAST_PAUSE_MAX: u64 = 64 << 20;
/// Answers, in bytes, after which the lock is released and the backlog is looked at.
const ANSWERED_MAX: usize = 256 << 10;
/// Readings of one client's socket in one go, at most, so that nobody else waits for long.
const READINGS: u32 = 16;
/// Clients that descend from one client of the application's own, by introductions of introduced
/// clients, at most.
const DESCENDANTS_MAX: usize = 256;
/// An introduced client is refused when no more than the soft limit of descriptors by this number
/// is left to the application.
const DESCRIPTORS_KEPT: u64 = 4;
/// The supervisor looks so often, at least, whether its runtime drives a busy manager: so long, and a
/// millisecond, workers may have to wait for a runtime that has begun to stand still.
const REST_MAX: Duration = Duration::from_millis(4);
/// Descriptors that have come from a client and that no message has claimed, at most.
const DESCRIPTORS_MAX: usize = 4;

/// Words of a lock whose value has hardly room.
const LEAST: usize = 8;

/// What a client's descriptor is.
const SOCKET: u64 = 0;
const ENDED: u64 = 1;

const READ: EpollFlags = EpollFlags::EPOLLIN;
const READ_WRITE: EpollFlags = READ.union(EpollFlags::EPOLLOUT);

fn token(client: Client, role: u64) -> Token {
    Token::new(u64::from(client.generation) << 32 | u64::from(client.seat), role)
}

fn client_of(token: Token) -> Client {
    Client { seat: token.key() as u32, generation: (token.key() >> 32) as u32 }
}

/// One manager.
pub(crate) struct Server {
    /// Tells managers apart, in all processes.
    id: u64,
    /// Held only to enter the rules; never over a system call, user code, or an await.
    inside: Lock<Inside>,
    reactor: Reactor,
    /// The incoming sides of the clients.
    driver: Lock<Driver>,
    /// The application's answers.
    mail: Arc<Mail>,
    /// References of values that were dropped: whoever has the lock looks here before he lets it
    /// go, and after.
    dropped: Lock<Vec<(u64, Part)>>,
    segments: Arc<Segments>,
    /// Who drives it, beside the supervisor thread.
    post: Post,
    /// Counts what has been put into the application's mail.
    delivered: AtomicU64,
}

struct Inside {
    state: State,
    links: HashMap<Client, Link>,
    /// [`ANSWERS_MAX`], but for tests.
    answers_max: u64,
    /// Clients that other clients have introduced, as those call them; and by whom each was.
    introduced: HashMap<(Client, u64), Client>,
    introducers: HashMap<Client, Client>,
    /// Of each introduced client, the client of the application's own from which it descends: until
    /// it has ended, and its introducer wants nothing of it any more.
    descended: HashMap<Client, Client>,
    deadline: Deadline,
    /// When descriptors that were not taken are sent again.
    held_at: Option<Instant>,
}

/// A client's socket, as whoever writes needs it.
struct Link {
    socket: Arc<PeerSocket>,
    pidfd: Option<PeerFd>,
    out: Outgoing,
}

impl Link {
    /// The client has broken the protocol: nothing more is written to it. Gives what is to be shut
    /// down, without the lock.
    fn cut(&mut self) -> Arc<PeerSocket> {
        let waiting = self.out.kill();
        debug_assert!(waiting.is_empty(), "the manager waits for no client");
        Arc::clone(&self.socket)
    }
}

#[derive(Default)]
struct Driver {
    readers: HashMap<Client, Reader>,
}

/// The incoming side of a client.
struct Reader {
    socket: Arc<PeerSocket>,
    buffer: FrameBuffer,
    descriptors: Vec<PeerFd>,
    /// Whole frames may be left in the buffer: the client does not read its answers.
    paused: bool,
}

/// What came of a reading.
struct Received {
    /// A short read: there was no more. (A read ends where descriptors lie.)
    all: bool,
    has_ended: bool,
}

/// What a client wants that needs system calls.
enum Apart {
    Introduce { number: u64, process: bool },
    Lane { object: u64, ticket: u64, way: Way },
}

/// What is to be done when the lock has been released.
#[derive(Default)]
struct Todo {
    local: Vec<(u64, Arrived)>,
    flush: Vec<Client>,
    /// Clients that have too many answers unread, or have broken the protocol.
    cut: Vec<Arc<PeerSocket>>,
    deadline: Option<Deadline>,
    remains: Vec<What>,
    /// What clients have been sent: the values' references are dropped without the lock.
    sent: Vec<Body>,
}

impl Server {
    /// A manager without objects. It is driven until it is [closed](Self::close).
    pub(crate) fn start() -> Result<Arc<Self>, Error> {
        fork::arm().map_err(|e| Error::system("arming the fork guard", e))?;
        supervisor::start().map_err(|e| Error::system("starting the supervisor thread", e))?;
        let reactor = Reactor::new()
            .map_err(|e| Error::system("making a manager's epoll set and its timer", e))?;
        let server = Arc::new_cyclic(|this: &Weak<Self>| Self {
            id: new_id(),
            inside: Lock::new(Inside {
                state: State::new(this.clone()),
                links: HashMap::new(),
                answers_max: ANSWERS_MAX,
                introduced: HashMap::new(),
                introducers: HashMap::new(),
                descended: HashMap::new(),
                deadline: Deadline::default(),
                held_at: None,
            }),
            reactor,
            driver: Lock::new(Driver::default()),
            mail: Arc::new(Mail::default()),
            dropped: Lock::new(Vec::new()),
            segments: Arc::default(),
            post: Post::default(),
            delivered: AtomicU64::new(0),
        });
        supervisor::watch(Arc::clone(&server) as Arc<dyn Source>);
        Ok(server)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn mail(&self) -> &Arc<Mail> {
        &self.mail
    }

    /// How many objects there are.
    pub(crate) fn objects(&self) -> usize {
        self.lock().state.len()
    }

    // ---- for the application's handles

    pub(crate) fn create(
        &self,
        kind: Kind,
        what: What,
        name: Option<String>,
        part: Part,
    ) -> Result<Name, Refusal> {
        self.apply(|state, now| state.create(kind, what, name, part, now))
    }

    /// Holds the references that a value of the application names, as long as what comes back is
    /// kept: for a value that is in an object from the start.
    pub(crate) fn hold(&self, names: &[Name]) -> Result<Held, Error> {
        self.apply(|state, now| state.hold(LOCAL, names, now))
            .map_err(|_| Error::from(Why::ForeignHandle))
    }

    /// Makes a lock, whose place has so many bytes for its value.
    pub(crate) fn create_lock(
        &self,
        kind: Kind,
        capacity: usize,
        value: Packet,
        names: &[Name],
        name: Option<String>,
    ) -> Result<Name, Error> {
        let held = self.hold(names)?;
        // Better a lock whose values are all kept here than none.
        let words = words_for(capacity);
        let memory = self.segments.allocate(words).or_else(|error| {
            if words > LEAST { self.segments.allocate(LEAST) } else { Err(error) }
        })?;
        let lock = What::Lock(Box::new(served::Lock::new(memory, value, held)));
        self.create(kind, lock, name, Part::WHOLE).map_err(error)
    }

    /// Makes atomics with these values.
    pub(crate) fn create_cells(
        &self,
        kind: Kind,
        values: impl ExactSizeIterator<Item = u64>,
        name: Option<String>,
    ) -> Result<Name, Error> {
        let len = u32::try_from(values.len()).map_err(|_| Error::from(Why::ManagerFull))?;
        if values.len() * 8 > BYTES_MAX {
            return Err(Why::ManagerFull.into());
        }
        let memory = self.segments.allocate(values.len().max(1))?;
        for (word, value) in memory.words().iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        self.create(kind, What::Cells(memory, len), name, Part::WHOLE).map_err(error)
    }

    /// A segment of the memory, as the application itself has it.
    pub(crate) fn memory(&self, segment: u32) -> Option<Arc<SharedMemory>> {
        self.segments.memory(segment)
    }

    /// `holds` is what the thread holds that waits, if it blocks.
    pub(crate) fn park(&self, object: u64, ticket: u64, limit: Option<Duration>, holds: &[u64]) {
        let wait = Wait { pid: std::process::id(), holds: holds.to_vec() };
        self.apply(|state, now| {
            state.park(Caller { client: LOCAL, ticket }, object, limit, wait, now)
        });
    }

    /// Whether each object that is made from now on has a segment of its own.
    pub(crate) fn separate_memory(&self, on: bool) {
        self.segments.separate(on);
    }

    /// Whether rings of waiting threads are looked for.
    pub(crate) fn detect_deadlocks(&self, on: bool) {
        self.apply(|state, _| state.rings.on = on);
    }

    pub(crate) fn back(&self, object: u64, ticket: u64) {
        self.apply(|state, now| state.back(Caller { client: LOCAL, ticket }, object, now));
    }

    pub(crate) fn rang(&self, object: u64) {
        self.apply(|state, now| state.rang(LOCAL, object, now));
    }

    /// Gives whether there was room for it.
    pub(crate) fn commit(&self, object: u64, unmark: bool, value: Packet, names: &[Name]) -> bool {
        self.apply(|state, now| {
            let held: Held = state.hold(LOCAL, names, now).unwrap_or_default();
            state.commit(LOCAL, object, unmark, value, held, now)
        })
    }

    pub(crate) fn fetch(&self, object: u64, ticket: u64) {
        self.apply(|state, _| state.fetch(Caller { client: LOCAL, ticket }, object));
    }

    pub(crate) fn find(&self, kind: Kind, name: &str, part: Part) -> Option<Name> {
        self.apply(|state, now| state.find(kind, name, part, now))
    }

    /// Asks an object; the answer comes by mail. `names` are the references that the body's value
    /// names.
    pub(crate) fn request(&self, object: u64, ticket: u64, mut body: Body, names: &[Name]) {
        let caller = Caller { client: LOCAL, ticket };
        self.apply(|state, now| match state.hold(LOCAL, names, now) {
            Ok(held) => {
                body.held = held;
                if state.request(caller, object, body, now).is_err() {
                    state.actions.push(Action::Refuse(caller, Refusal::NotYours));
                }
            }
            Err(why) => state.actions.push(Action::Refuse(caller, why)),
        });
    }

    /// Hands in a value that names nothing, if that can be done at once.
    pub(crate) fn put_now(&self, object: u64, value: Packet) -> Result<(), Packet> {
        self.apply(|state, now| state.put_now(object, value, now))
    }

    /// Takes a value out for ever, if that can be done at once.
    pub(crate) fn take_now(&self, object: u64) -> Option<Body> {
        self.apply(|state, now| state.take_now(object, now))
    }

    pub(crate) fn taken(&self, object: u64, ticket: u64) {
        self.apply(|state, now| state.taken(Caller { client: LOCAL, ticket }, object, now));
    }

    pub(crate) fn cancel(&self, object: u64, ticket: u64) {
        self.apply(|state, now| state.cancel(Caller { client: LOCAL, ticket }, object, now));
    }

    /// One reference more for the application. `None`: there is no such object (any more).
    pub(crate) fn acquire(&self, object: u64, part: Part) -> Option<Name> {
        self.apply(|state, now| state.lend(LOCAL, object, part, now))
    }

    pub(crate) fn release(&self, object: u64, part: Part) {
        self.apply(|state, now| state.release(LOCAL, object, part, 1, now));
    }

    // ---- clients

    /// Makes a client; gives it and the socket that is its own. With a pidfd its end is known even
    /// if another process holds the socket.
    pub(crate) fn connect(&self, pidfd: Option<OwnedFd>) -> io::Result<(Client, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        let ours = PeerSocket::claim(OwnedFd::from(ours).into())?;
        Ok((self.adopt(ours, pidfd.map(PeerFd::from), false)?, theirs.into()))
    }

    /// As [`connect`](Self::connect), with a socket that another process has made.
    fn adopt(
        &self,
        socket: PeerSocket,
        pidfd: Option<PeerFd>,
        introduced: bool,
    ) -> io::Result<Client> {
        let socket = Arc::new(socket);
        let full =
            || io::Error::other("the manager has as many clients as it can have, or is closed");
        let client = self.apply(|state, _| state.seat(introduced)).ok_or_else(full)?;
        let mut driver = self.driver.lock();
        let reader = Reader {
            socket: Arc::clone(&socket),
            buffer: FrameBuffer::new(FRAME_MAX),
            descriptors: Vec::new(),
            paused: false,
        };
        driver.readers.insert(client, reader);
        drop(driver);
        let mut inside = self.lock();
        // Under the lock: of a process that has ended already, the driver hears at once, and is
        // to find the link that is to go.
        let watched = pidfd
            .as_ref()
            .map_or(Ok(()), |pidfd| self.reactor.add(pidfd.as_fd(), READ, token(client, ENDED)));
        let mut out = Outgoing::default();
        let welcome = ToClient::Welcome {
            seat: client.seat,
            generation: client.generation,
            note: inside.state.rings.on,
        };
        out.push(Vec::new(), |body| welcome.write(body));
        inside.links.insert(client, Link { socket: Arc::clone(&socket), pidfd, out });
        drop(inside);
        self.flush(client);
        if let Err(error) =
            watched.and_then(|()| self.reactor.add(socket.as_fd(), READ, token(client, SOCKET)))
        {
            self.end(client);
            return Err(error);
        }
        Ok(client)
    }

    /// Gives a client a reference to an object that the application has one to.
    pub(crate) fn lend(&self, client: Client, object: u64, part: Part) -> Option<Name> {
        self.apply(|state, now| state.lend(client, object, part, now))
    }

    /// Takes over for the application what a client has put into a result.
    pub(crate) fn take(&self, from: Client, object: u64, part: Part) -> Option<Name> {
        self.apply(|state, now| state.take(LOCAL, from, object, part, now))
    }

    /// The objects that a client waits for now.
    pub(crate) fn waits_of(&self, client: Client) -> Vec<(u64, Kind, Option<String>)> {
        self.lock().state.waits_of(client)
    }

    /// No more results of this client will be taken.
    pub(crate) fn dismiss(&self, client: Client) {
        self.apply(|state, now| state.dismiss(client, now));
    }

    /// Ends the connection of a client, as if its process had ended. What it was to be sent is
    /// dropped: a client that does not read would otherwise not be read to its end either.
    pub(crate) fn hang_up(&self, client: Client) {
        let socket = self.lock().links.get_mut(&client).map(Link::cut);
        if let Some(socket) = socket {
            let _ =
                nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }

    // ---- the end

    /// Ends it: everyone who waits is told, and every later call as well.
    pub(crate) fn close(&self) {
        self.segments.close();
        self.apply(|state, now| state.close(now));
        self.mail.close();
        self.reactor.end();
        self.post.close();
        supervisor::look(self);
    }

    // ---- entering the rules

    fn lock(&self) -> Locked<'_> {
        Locked { inside: self.inside.lock(), _holds: Holds::new() }
    }

    /// Enters the rules with some news, and then does what they say.
    fn apply<R>(&self, news: impl FnOnce(&mut State, Instant) -> R) -> R {
        let now = Instant::now();
        let mut inside = self.lock();
        let result = news(&mut inside.state, now);
        let todo = self.sort(&mut inside, now);
        drop(inside);
        self.perform(todo);
        self.sweep();
        result
    }

    /// Does what belongs under the lock, and says what is to be done outside.
    fn sort(&self, inside: &mut Inside, now: Instant) -> Todo {
        let mut todo = Todo::default();
        loop {
            let dropped = std::mem::take(&mut *self.dropped.lock());
            if dropped.is_empty() {
                break;
            }
            for (object, part) in dropped {
                inside.state.unhold(object, part, now);
            }
        }
        let Inside { state, links, answers_max, deadline, held_at, .. } = inside;
        let mut actions = std::mem::take(&mut state.actions);
        for action in actions.drain(..) {
            match action {
                Action::Answer(Answer { to, descriptor: Some(descriptor), .. })
                    if to.client == LOCAL =>
                {
                    // Nobody else has it, so no call is needed.
                    let owned = Arc::try_unwrap(descriptor).or_else(|shared| shared.try_clone());
                    let arrived =
                        owned.map_or(Arrived::Refused(Refusal::NoMemory), Arrived::Mapped);
                    todo.local.push((to.ticket, arrived));
                }
                Action::Answer(Answer { to, descriptor: Some(descriptor), .. }) => {
                    let Some(link) = links.get_mut(&to.client) else { continue };
                    link.out.push(vec![descriptor as Fd], |out| {
                        ToClient::Mapped { ticket: to.ticket }.write(out)
                    });
                    todo.flush.push(to.client);
                }
                Action::Answer(answer) if answer.to.client == LOCAL => {
                    todo.local.push((
                        answer.to.ticket,
                        Arrived::Answer { body: answer.body, offer: answer.offer },
                    ));
                }
                Action::Refuse(caller, why) if caller.client == LOCAL => {
                    todo.local.push((caller.ticket, Arrived::Refused(why)))
                }
                Action::Answer(Answer { to, body, offer, descriptor: None }) => {
                    let Some(link) = links.get_mut(&to.client) else { continue };
                    let bytes = (body.head.len() + body.tail.len()) as u64;
                    if link.out.backlog() + bytes > *answers_max {
                        todo.cut.push(link.cut());
                        todo.sent.push(body);
                        continue;
                    }
                    let names = held::names(&body.held);
                    if !message::fits(body.head.len(), body.tail.len(), names.len()) {
                        let refused =
                            ToClient::Refused { ticket: to.ticket, why: Refusal::TooLarge };
                        link.out.push(Vec::new(), |out| refused.write(out));
                        todo.flush.push(to.client);
                        todo.sent.push(body);
                        continue;
                    }
                    let names: Vec<_> = names
                        .into_iter()
                        .filter_map(|(object, part)| state.lend(to.client, object, part, now))
                        .collect();
                    let (head, tail) = (&body.head[..], &body.tail[..]);
                    let answer = ToClient::Answer { ticket: to.ticket, offer, names, head, tail };
                    link.out.push(Vec::new(), |out| answer.write(out));
                    todo.flush.push(to.client);
                    todo.sent.push(body);
                }
                Action::Cut(client) => todo.cut.extend(links.get_mut(&client).map(Link::cut)),
                Action::Deadlock(caller, ring) if caller.client == LOCAL => {
                    todo.local.push((caller.ticket, Arrived::Deadlock(ring)))
                }
                Action::Deadlock(caller, ring) => {
                    let Some(link) = links.get_mut(&caller.client) else { continue };
                    let message =
                        ToClient::Deadlock { ticket: caller.ticket, ring: ring.as_bytes() };
                    link.out.push(Vec::new(), |out| message.write(out));
                    todo.flush.push(caller.client);
                }
                Action::Grant(caller, version) if caller.client == LOCAL => {
                    todo.local.push((caller.ticket, Arrived::Granted(version)))
                }
                Action::Map(caller, segment) => {
                    let Some(link) = links.get_mut(&caller.client) else { continue };
                    match self.segments.fd(segment) {
                        Some(fd) => {
                            link.out.push(vec![fd], |out| {
                                ToClient::Mapped { ticket: caller.ticket }.write(out)
                            });
                        }
                        None => {
                            let why = Refusal::NoMemory;
                            link.out.push(Vec::new(), |out| {
                                ToClient::Refused { ticket: caller.ticket, why }.write(out)
                            });
                        }
                    }
                    todo.flush.push(caller.client);
                }
                Action::Lane(caller, fd) => {
                    let Some(link) = links.get_mut(&caller.client) else { continue };
                    link.out.push(vec![Arc::new(fd)], |out| {
                        ToClient::Mapped { ticket: caller.ticket }.write(out)
                    });
                    todo.flush.push(caller.client);
                }
                Action::Refuse(caller, _) | Action::Grant(caller, _) => {
                    let Some(link) = links.get_mut(&caller.client) else { continue };
                    let ticket = caller.ticket;
                    let message = match action {
                        Action::Grant(_, version) => ToClient::Granted { ticket, version },
                        Action::Refuse(_, why) => ToClient::Refused { ticket, why },
                        _ => unreachable!("one of the two"),
                    };
                    link.out.push(Vec::new(), |out| message.write(out));
                    todo.flush.push(caller.client);
                }
            }
        }
        todo.flush.dedup();
        debug_assert!(state.actions.is_empty(), "lending answers nobody");
        state.actions = actions; // keeps its memory
        todo.remains = std::mem::take(&mut state.remains);
        todo.deadline = deadline.update(state.next_deadline().into_iter().chain(*held_at).min());
        todo
    }

    fn perform(&self, todo: Todo) {
        if !todo.local.is_empty() {
            self.delivered.fetch_add(1, Ordering::Relaxed);
        }
        let undelivered: Vec<_> = todo
            .local
            .into_iter()
            .filter_map(|(ticket, arrived)| self.mail.deliver(ticket, arrived))
            .collect();
        for client in todo.flush {
            self.flush(client);
        }
        for socket in todo.cut {
            // Whoever drives the manager sees the end of it.
            let _ =
                nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
        if let Some(deadline) = todo.deadline {
            self.reactor.set_timer(self, deadline);
        }
        // The caller sweeps afterwards, so what these hold is released in its loop.
        held::drop_flat((todo.remains, todo.sent, undelivered));
    }

    /// Releases the references of values that were dropped.
    ///
    /// Another thread may hold the lock only to look at something, so it is waited for. A thread
    /// that holds a manager's lock itself must not wait: it comes here again, or calls
    /// [`sort`](Self::sort), before it is done.
    fn sweep(&self) {
        while !self.dropped.lock().is_empty() {
            let mut inside = if Holds::any() {
                let Some(inside) = self.inside.try_lock() else { return };
                Locked { inside, _holds: Holds::new() }
            } else {
                self.lock()
            };
            let todo = self.sort(&mut inside, Instant::now());
            drop(inside);
            self.perform(todo);
        }
    }

    /// Writes what there is for a client, unless somebody is at it.
    fn flush(&self, client: Client) {
        let mut inside = self.lock();
        let Some(link) = inside.links.get_mut(&client) else { return };
        if !link.out.want_to_write() {
            return;
        }
        let socket = Arc::clone(&link.socket);
        drop(inside);
        self.write(client, &socket);
    }

    /// Only for whom the outgoing has told to write.
    fn write(&self, client: Client, socket: &PeerSocket) {
        let (full, wake) = write_out(socket.as_fd(), |act| {
            self.lock().links.get_mut(&client).map(|link| act(&mut link.out))
        });
        wake_all(wake);
        if !full {
            return;
        }
        self.watch(client);
        let mut inside = self.lock();
        let Some(link) = inside.links.get(&client) else { return };
        if link.out.gave_up() {
            drop(inside);
            return self.hang_up(client); // it is told by the end of its socket
        }
        if link.out.is_held() {
            inside.held_at.get_or_insert(Instant::now() + sys::Held::AGAIN);
            drop(inside);
            self.apply(|_, _| ()); // sets the timer
        }
    }

    /// Watches a client's socket for what is wanted of it now: something to read, unless it does
    /// not read itself; room. Then looks again: another thread may have set it to something
    /// newer, or older, meanwhile.
    fn watch(&self, client: Client) {
        let mut set = None;
        loop {
            let inside = self.lock();
            let Some(link) = inside.links.get(&client) else { return };
            let flags = match (link.out.is_blocked(), link.out.backlog() > BACKLOG_MAX) {
                (true, true) if inside.is_orphan(client) => {
                    drop(inside);
                    return self.hang_up(client);
                }
                (true, true) => EpollFlags::EPOLLOUT,
                (true, false) => READ_WRITE,
                (false, true) if link.out.is_held() => EpollFlags::empty(),
                (false, _) => READ,
            };
            if set.replace(flags) == Some(flags) {
                return;
            }
            let socket = Arc::clone(&link.socket);
            drop(inside);
            self.reactor.modify(socket.as_fd(), flags, token(client, SOCKET));
        }
    }

    // ---- the driver slot

    pub(crate) fn post(&self) -> &Post {
        &self.post
    }

    /// A caller waits, and another runtime has the driver slot.
    pub(crate) fn wait_outside(&self) {
        supervisor::attend(self);
    }

    /// A pass by the task that has the driver slot, under this number.
    pub(crate) fn drive_in_slot(&self, number: u64) -> Pass {
        // (First: in a copy a lock may be held by a thread that is not there.)
        if fork::is_forked_copy() || !self.post.is_held_by(number) {
            return Pass::Over;
        }
        let before = self.delivered.load(Ordering::Relaxed);
        let pass = self.reactor.drive_by_runtime(self);
        if self.post.turned(number, self.delivered.load(Ordering::Relaxed) != before) {
            pass
        } else {
            Pass::Over
        }
    }

    /// The driver slot that was taken under this number is vacant; the supervisor drives again.
    pub(crate) fn leave_post(&self, number: u64) {
        if self.post.leave(number) {
            supervisor::look(self);
        }
    }

    /// Does what an event of a client asks for.
    fn serve(&self, client: Client, role: u64, flags: EpollFlags) {
        if role == ENDED {
            // No answer is read any more.
            let mut inside = self.lock();
            let wake = inside.links.get_mut(&client).map(|link| link.out.kill());
            drop(inside);
            wake_all(wake.into_iter().flatten());
            // All that it wrote is there by now.
            for _ in 0..READINGS {
                if !self.read(client, true) {
                    break;
                }
            }
            self.end(client);
            return;
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.has_room(client);
        }
        // With an end there is something to read, too; without, READ has asked for it.
        if flags.intersects(READ | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.read(client, false);
        }
    }

    fn time_has_passed(&self, now: Instant) {
        let mut inside = self.lock();
        inside.deadline.passed();
        let again = inside.held_at.take_if(|at| *at <= now).is_some();
        let held = |(client, link): (&Client, &Link)| link.out.is_held().then_some(*client);
        let held: Vec<_> =
            if again { inside.links.iter().filter_map(held).collect() } else { Vec::new() };
        inside.state.tick(now);
        let todo = self.sort(&mut inside, now);
        drop(inside);
        self.perform(todo);
        self.sweep();
        held.into_iter().for_each(|client| self.has_room(client));
    }

    fn has_room(&self, client: Client) {
        let mut inside = self.lock();
        let Some(link) = inside.links.get_mut(&client) else { return };
        if !link.out.has_room() {
            return;
        }
        let socket = Arc::clone(&link.socket);
        drop(inside);
        self.write(client, &socket);
        self.watch(client);
        let driver = self.driver.lock();
        let paused = driver.readers.get(&client).is_some_and(|reader| reader.paused);
        drop(driver);
        if paused && !self.is_stuck(client) {
            self.read(client, false);
        }
    }

    /// Whether a client does not read its answers. If so, the event that there is room again
    /// comes.
    fn is_stuck(&self, client: Client) -> bool {
        let inside = self.lock();
        let link = inside.links.get(&client);
        link.is_some_and(|link| link.out.is_blocked() && link.out.backlog() > BACKLOG_MAX)
    }

    /// Reads what a client has written, `even` if it does not read its answers. Gives whether there
    /// may be more.
    fn read(&self, client: Client, even: bool) -> bool {
        let Some(mut reader) = self.driver.lock().readers.remove(&client) else {
            return false;
        };
        let mut end = false;
        let mut more = false;
        if std::mem::take(&mut reader.paused) {
            end = self.frames(client, &mut reader, even).is_err();
        }
        for reading in 0..READINGS {
            if end || reader.paused {
                break;
            }
            more = false;
            match reader.receive(false) {
                Ok(Received { all, has_ended }) => {
                    end = has_ended || reader.descriptors.len() > DESCRIPTORS_MAX;
                    self.read_introducers(client);
                    if end || self.frames(client, &mut reader, even).is_err() {
                        end = true;
                        break;
                    }
                    more = reading + 1 == READINGS;
                    if more {
                        self.reactor.leaves_more();
                    }
                    if all && !even {
                        end = reader.has_unclaimed();
                        break; // what comes now is told by the epoll set
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    end = reader.has_unclaimed();
                    break;
                }
                Err(_) => {
                    end = true;
                    break;
                }
            }
        }
        if end {
            drop(reader);
            self.end(client);
            return false;
        }
        self.driver.lock().readers.insert(client, reader);
        if !even
            && self.lock().links.get(&client).is_some_and(|link| link.out.backlog() > BACKLOG_MAX)
        {
            self.watch(client);
            return false;
        }
        more
    }

    /// Reads what the introducers of a client have written. A client may use at once what its
    /// introducer has lent it, and that word may still lie in the introducer's socket: but it was
    /// written before the client's own words, which have just been read. The same holds for the
    /// introducer of that one. So they are read from the nearest to the farthest, and obeyed from
    /// the farthest to the nearest.
    fn read_introducers(&self, client: Client) {
        let mut line = Vec::new();
        let inside = self.lock();
        let mut at = client;
        while let Some(by) = inside.introducers.get(&at).copied() {
            line.push(by);
            at = by;
        }
        drop(inside);
        let mut read = Vec::new();
        for by in line {
            let mut driver = self.driver.lock();
            let Some(mut reader) = driver.readers.remove(&by) else { continue };
            drop(driver);
            // A socket's buffer holds no more than so many readings.
            let (mut has_ended, mut drained) = (false, false);
            for _ in 0..READINGS {
                match reader.receive(true) {
                    Ok(received) if !received.has_ended => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        drained = true;
                        break;
                    }
                    Ok(_) | Err(_) => {
                        has_ended = true;
                        break;
                    }
                }
            }
            read.push((by, reader, has_ended, drained));
        }
        for (by, mut reader, has_ended, drained) in read.into_iter().rev() {
            reader.paused = false;
            // A panic ends the one whose message brought it up (see `Source::panicked`), and not the
            // client that is read or the other introducers, whose readers are here.
            let obeyed = catch_user_panic(|| self.frames(by, &mut reader, true));
            if !matches!(obeyed, Some(Ok(())))
                || has_ended
                || reader.descriptors.len() > DESCRIPTORS_MAX
                || (drained && reader.has_unclaimed())
            {
                drop(reader);
                self.end(by);
            } else {
                let mut driver = self.driver.lock();
                driver.readers.insert(by, reader);
            }
        }
    }

    /// Does what the whole frames say, until the client does not read its answers; `even` then.
    fn frames(&self, client: Client, reader: &mut Reader, even: bool) -> Result<(), object::Bad> {
        loop {
            if !even && self.is_stuck(client) {
                reader.paused = true;
                return Ok(());
            }
            let mut inside = self.lock();
            // Whatever it was sent: also refusals and the like, and while it is read all the same
            // (`even`).
            let backlog = inside.links.get(&client).map_or(0, |link| link.out.backlog());
            let most = inside.answers_max.min(if even { PAST_PAUSE_MAX } else { u64::MAX });
            if backlog > most {
                return Err(object::Bad("too much that it has not read".into()));
            }
            let now = Instant::now();
            // Some at a time, so that others get the lock as well.
            let (mut some, mut apart, mut answered, mut seen) = (0, None, 0, 0);
            let result = loop {
                answered += inside.state.actions[seen..].iter().map(Action::bytes).sum::<usize>();
                seen = inside.state.actions.len();
                if some == 64 || answered > ANSWERED_MAX {
                    break Ok(true);
                }
                some += 1;
                match reader.buffer.next_frame() {
                    Ok(Some(range)) => match ToManager::read(reader.buffer.bytes(range)) {
                        Ok(ToManager::Introduce { client, process }) => {
                            apart = Some(Apart::Introduce { number: client, process });
                            break Ok(true);
                        }
                        Ok(ToManager::Lane { object, ticket, way }) => {
                            apart = Some(Apart::Lane { object, ticket, way });
                            break Ok(true);
                        }
                        Ok(message) => {
                            if let Err(bad) = inside.obey(client, message, now) {
                                break Err(bad);
                            }
                        }
                        Err(bad) => break Err(bad),
                    },
                    Ok(None) => break Ok(false),
                    Err(too_long) => break Err(object::Bad(too_long.to_string())),
                }
            };
            let todo = self.sort(&mut inside, now);
            drop(inside);
            self.perform(todo);
            self.sweep();
            match apart {
                Some(Apart::Introduce { number, process }) => {
                    self.introduce(client, number, process, &mut reader.descriptors)?
                }
                Some(Apart::Lane { object, ticket, way }) => {
                    self.lane(Caller { client, ticket }, object, way)
                }
                None => {}
            }
            if !result? {
                return Ok(());
            }
        }
    }

    /// A client wants a lane.
    fn lane(&self, caller: Caller, object: u64, way: Way) {
        let memory = SharedMemory::create_reserved(lane::WORDS * 8);
        self.apply(|state, now| match memory {
            Ok((memory, fd)) => state.lane(caller, object, way, Arc::new(memory), fd, now),
            Err(_) => state.actions.push(Action::Refuse(caller, Refusal::NoMemory)),
        });
    }

    /// A client has made a client of its own; with the message came its socket, and perhaps its
    /// process.
    fn introduce(
        &self,
        by: Client,
        number: u64,
        process: bool,
        descriptors: &mut Vec<PeerFd>,
    ) -> Result<(), object::Bad> {
        let due = 1 + usize::from(process);
        if descriptors.len() < due {
            return Err(object::Bad("a client without its descriptors".into()));
        }
        let mut descriptors = descriptors.drain(..due);
        let (socket, pidfd) = (descriptors.next(), descriptors.next());
        let socket = socket.and_then(|socket| PeerSocket::claim(socket).ok());
        let Some(socket) =
            socket.filter(|_| pidfd.as_ref().is_none_or(|fd| sys::is_pidfd(fd.as_fd())))
        else {
            return Err(object::Bad(
                "a client whose descriptors are not a socket and a process".into(),
            ));
        };
        let inside = self.lock();
        // The first client of this number would never be dismissed, and its results stay for ever.
        if inside.introduced.contains_key(&(by, number)) {
            return Err(object::Bad("a client's number that is in use".into()));
        }
        let first = inside.descended.get(&by).copied().unwrap_or(by);
        let descendants = inside.descended.values().filter(|of| **of == first).count();
        drop(inside);
        if descendants >= DESCENDANTS_MAX || are_scarce(socket.as_fd()) {
            refuse(&socket);
            return Ok(());
        }
        // If it cannot be watched, it is gone at once.
        let Ok(client) = self.adopt(socket, pidfd, true) else { return Ok(()) };
        let mut inside = self.lock();
        inside.introduced.insert((by, number), client);
        inside.introducers.insert(client, by);
        inside.descended.insert(client, first);
        Ok(())
    }

    /// A client has ended, and what it had written has been read.
    fn end(&self, client: Client) {
        self.driver.lock().readers.remove(&client);
        let mut inside = self.lock();
        let now = Instant::now();
        let link = inside.links.remove(&client);
        inside.state.client_gone(client, now);
        // Nobody takes the results of those that it has introduced.
        let its_own: Vec<_> = inside
            .introduced
            .extract_if(|(introducer, _), _| *introducer == client)
            .map(|(_, own)| own)
            .collect();
        for own in its_own {
            inside.introducers.remove(&own);
            inside.forget(own);
            inside.state.dismiss(own, now);
        }
        inside.forget(client);
        let orphans = inside.stuck_orphans_of(client);
        let todo = self.sort(&mut inside, now);
        drop(inside);
        orphans.into_iter().for_each(|orphan| self.hang_up(orphan));
        if let Some(Link { socket, pidfd, mut out }) = link {
            self.reactor.delete(socket.as_fd());
            if let Some(pidfd) = pidfd {
                self.reactor.delete(pidfd.as_fd());
            }
            // Somebody may be writing, and holds the socket still: the other end shall see it now.
            let _ =
                nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            wake_all(out.kill());
        }
        self.perform(todo);
        self.sweep();
    }

    fn end_all(&self) {
        let clients: Vec<_> = self.lock().links.keys().copied().collect();
        clients.into_iter().for_each(|client| self.end(client));
    }
}

impl Reader {
    /// Whether descriptors have come that no message has claimed, once the socket has been read to
    /// its end.
    ///
    /// That breaks the protocol: a message arrives together with its descriptors, because the
    /// kernel does not divide what one `sendmsg(2)` of so few bytes has sent. They must not stay.
    /// One of them may be the other end of this very socket, and then the socket would never end.
    fn has_unclaimed(&self) -> bool {
        !self.paused && !self.descriptors.is_empty()
    }

    /// Reads once; with `more`, without frames having been taken since the last time.
    fn receive(&mut self, more: bool) -> io::Result<Received> {
        let space = if more { self.buffer.more_space() } else { self.buffer.space() };
        let room = space.len();
        let received = sys::recv_with_fds(self.socket.as_fd(), space)?;
        let all = received.bytes < room && received.fds.is_empty();
        self.buffer.filled(received.bytes);
        self.descriptors.extend(received.fds);
        Ok(Received { all, has_ended: received.bytes == 0 || received.truncated })
    }
}

/// Whether few descriptors are left to the application, as far as this new one tells: the kernel
/// gives the lowest number that is free (open(2)).
fn are_scarce(newest: BorrowedFd<'_>) -> bool {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    newest.as_raw_fd() as u64 >= soft - soft / DESCRIPTORS_KEPT
}

/// Tells a client that was introduced that it is one too many. If it cannot be told, it sees the
/// end of its socket.
fn refuse(socket: &PeerSocket) {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, |bytes| {
        ToClient::Refused { ticket: NO_ANSWER, why: Refusal::TooManyClients }.write(bytes)
    });
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = nix::sys::socket::send(socket.as_fd().as_raw_fd(), &bytes, flags);
}

/// Each handle takes [`names::LEN`] bytes of the value that contains it, so what a value names
/// takes no more memory than the value.
fn check_names(count: usize, value: &[u8]) -> Result<(), object::Bad> {
    if count * names::LEN > value.len() {
        return Err(object::Bad("more names than the value can contain".into()));
    }
    Ok(())
}

impl Inside {
    /// Whether the client of the application's own, from which this one descends, has ended.
    ///
    /// Such a client may go on, as a process that outlives the worker that started it does. But it
    /// has no pidfd that would tell of its end, or none that can be trusted, so it is hung up when
    /// it does not read its answers: nothing else would ever end a client whose socket keeps
    /// itself open, because its other end is queued in it unread.
    fn is_orphan(&self, client: Client) -> bool {
        self.descended.get(&client).is_some_and(|first| !self.links.contains_key(first))
    }

    /// The clients that have become orphans by this end and do not read their answers.
    fn stuck_orphans_of(&self, first: Client) -> Vec<Client> {
        let of_first = self.descended.iter().filter(|(_, of)| **of == first);
        of_first
            .map(|(client, _)| *client)
            .filter(|client| {
                let out = self.links.get(client).map(|link| &link.out);
                out.is_some_and(|out| out.is_blocked() && out.backlog() > BACKLOG_MAX)
            })
            .collect()
    }

    /// A client that has ended, and of which its introducer wants nothing any more, counts no
    /// longer.
    fn forget(&mut self, client: Client) {
        if !self.links.contains_key(&client) && !self.introducers.contains_key(&client) {
            self.descended.remove(&client);
        }
    }

    /// Does what a client's message says. An error means that it does not keep to the protocol.
    fn obey(
        &mut self,
        client: Client,
        message: ToManager<'_>,
        now: Instant,
    ) -> Result<(), object::Bad> {
        if let ToManager::Dismiss { client: number } = message {
            if let Some(own) = self.introduced.remove(&(client, number)) {
                self.introducers.remove(&own);
                self.forget(own);
                self.state.dismiss(own, now);
            }
            return Ok(());
        }
        let Self { state, introduced, .. } = self;
        match message {
            ToManager::Request { object, ticket, names, head, tail } => {
                check_names(names.len(), tail)?;
                let caller = Caller { client, ticket };
                match state.hold(client, &names, now) {
                    Ok(held) => {
                        let body = Body {
                            head: Packet::copy_from(head),
                            tail: Packet::copy_from(tail),
                            held,
                        };
                        state.request(caller, object, body, now)?;
                    }
                    Err(why) => state.actions.push(Action::Refuse(caller, why)),
                }
            }
            ToManager::Taken { object, ticket } => {
                state.taken(Caller { client, ticket }, object, now)
            }
            ToManager::Cancel { object, ticket } => {
                state.cancel(Caller { client, ticket }, object, now)
            }
            ToManager::Release { object, part, count } => {
                state.release(client, object, part, count, now)
            }
            ToManager::Acquire { object, part } => drop(state.acquire(client, object, part, now)),
            ToManager::Parcel { names } => state.parcel(client, &names, now),
            ToManager::Park { object, ticket, limit, pid, holds } => {
                let limit = (limit > 0).then(|| Duration::from_nanos(limit));
                state.park(Caller { client, ticket }, object, limit, Wait { pid, holds }, now);
            }
            ToManager::Back { object, ticket } => {
                state.back(Caller { client, ticket }, object, now)
            }
            ToManager::Rang { object } => state.rang(client, object, now),
            ToManager::Commit { object, unmark, names, value } => {
                check_names(names.len(), value)?;
                let held = state
                    .hold(client, &names, now)
                    .map_err(|_| object::Bad("a value with a handle that is not its own".into()))?;
                state.commit(client, object, unmark, Packet::copy_from(value), held, now);
            }
            ToManager::Fetch { object, ticket } => state.fetch(Caller { client, ticket }, object),
            ToManager::Map { ticket, segment } => state.map(Caller { client, ticket }, segment),
            ToManager::Introduce { .. } | ToManager::Lane { .. } | ToManager::Dismiss { .. } => {
                return Err(object::Bad("what is done apart".into()));
            }
            ToManager::Lend { client: number, names } => {
                if let Some(to) = introduced.get(&(client, number)) {
                    for name in names {
                        if state.covers(client, name.object, name.part) {
                            state.lend(*to, name.object, name.part, now);
                        }
                    }
                }
            }
            ToManager::Take { client: number, names } => {
                let from = introduced.get(&(client, number)).copied();
                for name in names {
                    state.take_between(client, from, name.object, name.part, now);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Server {
    /// How many bytes its objects may hold.
    pub(crate) fn set_bound(&self, bytes: usize) {
        self.lock().state.set_bound(bytes);
    }

    /// How many bytes of answers a client may leave unread.
    pub(crate) fn set_answers_bound(&self, bytes: u64) {
        self.lock().answers_max = bytes;
    }

    /// How many clients there are, beside the application.
    pub(crate) fn clients(&self) -> usize {
        self.lock().links.len()
    }

    /// The state of each client's connection, for the message of a test that fails.
    pub(crate) fn describe_clients(&self) -> String {
        let driver = self.driver.lock();
        let inside = self.lock();
        let describe = |(client, link): (&Client, &Link)| {
            let reader = driver.readers.get(client).map(|reader| {
                (reader.paused, reader.descriptors.len(), sys::queued(reader.socket.as_fd()))
            });
            format!(
                "{client:?} of {:?}: pidfd {}, backlog {}, blocked {}, held {}, dead {}; \
                 (paused, descriptors, queued) {reader:?}",
                inside.introducers.get(client),
                link.pidfd.is_some(),
                link.out.backlog(),
                link.out.is_blocked(),
                link.out.is_held(),
                link.out.is_dead(),
            )
        };
        inside.links.iter().map(describe).collect::<Vec<_>>().join("\n")
    }

    /// How many grants of a lock came too late.
    pub(crate) fn late(&self, object: u64) -> u64 {
        self.lock().state.look_at(object).late()
    }

    /// How many wait for a lock.
    pub(crate) fn waiting(&self, object: u64) -> usize {
        self.lock().state.look_at(object).waiting()
    }
}

/// The rules, under the lock.
struct Locked<'a> {
    // Released first.
    inside: MutexGuard<'a, Inside>,
    _holds: Holds,
}

impl Deref for Locked<'_> {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inside {
        &mut self.inside
    }
}

thread_local! {
    /// How many managers' locks this thread holds. It has no destructor, so it is there as long as
    /// the thread.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
}

/// Counts one lock of this thread, until it is dropped.
struct Holds(PhantomData<*const ()>);

impl Holds {
    fn new() -> Self {
        HOLDS.set(HOLDS.get() + 1);
        Self(PhantomData)
    }

    fn any() -> bool {
        HOLDS.get() > 0
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        HOLDS.set(HOLDS.get() - 1);
    }
}

impl Dropped for Server {
    fn dropped(&self, names: Vec<(u64, Part)>) {
        self.dropped.lock().extend(names);
        if !held::is_dropping() {
            self.sweep();
        }
    }
}

impl Source for Server {
    fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    fn ready(&self, token: Token, flags: EpollFlags) {
        self.serve(client_of(token), token.role(), flags);
    }

    fn tick(&self, now: Instant) {
        self.time_has_passed(now);
    }

    /// What the client had written is lost, so its connection ends.
    fn panicked(&self, token: Token) {
        self.end(client_of(token));
    }

    fn deadline(&self) -> Deadline {
        self.lock().deadline
    }

    fn is_alone(&self) -> bool {
        self.post.is_vacant()
    }

    fn taken_over(&self) {
        self.post.vacate();
    }

    fn forgotten(&self) {
        self.end_all();
    }

    fn longest_rest(&self) -> Duration {
        REST_MAX
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A number that no other manager has, in this process or another: hash keys of std are random. The
/// forks of a template begin with the same keys, so the process's number and the time count, too.
fn new_id() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(sys::monotonic_nanos());
    hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}
