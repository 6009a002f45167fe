//! Clients that break the manager's protocol, before a real manager.
//!
//! The manager serves an honest client and the application at the same time. A hostile client has
//! references to one object of each kind. It sends requests that make sense, mutated ones, broken
//! frames, descriptors of all kinds and introductions of further clients; it reads its answers or
//! leaves them. The honest client must get the right answers, the memory of the application must
//! stay bounded, and after the end nothing may be left. `wire/fuzz.rs` describes the variables by
//! which one case can be run again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::handle::{Handle, kinds};
use super::object_tests::Process;
use super::*;
use crate::manager::fuzz::Known;
use crate::manager::message::{Name, ToManager};
use crate::manager::object::{Client, Object, Part};
use crate::manager::objects;
use crate::manager::objects::code::Message;
use crate::process::testing::{
    HANG, in_own_process, is_own_process, open_fds, threads, wait_until,
};
use crate::process::{PeerFd, sys};
use crate::wire::counting::process_peak_of;
use crate::wire::frame;
use crate::wire::fuzz::mutate::{Rng, mutate};
use crate::wire::fuzz::{Tally, count, run};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes by which the application may grow while one hostile client sends what it likes. The
/// client itself sends a few hundred KB, and its unread answers are bounded.
const GROWTH_MAX: usize = 64 << 20;

/// How long a hostile client waits for room in a socket.
const PATIENCE: Duration = Duration::from_millis(20);

/// Counts panics of all threads, because the manager's own may be caught.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, |bytes| bytes.extend(body));
    bytes
}

// ---- the hostile client

struct Hostile {
    /// Its own socket, and those of clients that it has introduced.
    sockets: Vec<UnixStream>,
    known: Known,
    rng: Rng,
    /// The number under which it introduces the next client.
    next: u64,
    /// What it has done, in order.
    done: Vec<&'static str>,
}

impl Hostile {
    /// A new socket for this client.
    fn new(socket: OwnedFd, known: Known, rng: Rng) -> Self {
        let mut hostile = Self { sockets: Vec::new(), known, rng, next: 0, done: Vec::new() };
        hostile.keep(socket.into());
        hostile
    }

    fn keep(&mut self, socket: UnixStream) {
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        self.sockets.push(socket);
    }

    fn play(mut self) -> Vec<&'static str> {
        for _ in 0..self.rng.below(60) {
            if self.sockets.is_empty() {
                break;
            }
            let at = self.rng.below(self.sockets.len());
            if self.act(at).is_none() {
                self.done.push("ended");
                self.sockets.swap_remove(at);
            }
        }
        self.done
    }

    fn message(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        self.known.message(&mut self.rng, &mut body);
        body
    }

    /// Does something with one socket. `None`: the socket is of no use any more.
    fn act(&mut self, at: usize) -> Option<()> {
        let kind = self.rng.below(24);
        let what = match kind {
            0 => "mutated",
            1 => "broken stream",
            2 => "cut",
            3 => "flood",
            4..=6 => "introduction",
            7 => "strange introduction",
            8 => "descriptors",
            9..=11 => "reading",
            12 => "shutdown",
            _ => "messages",
        };
        self.done.push(what);
        match what {
            "mutated" => {
                let (mut body, other) = (self.message(), self.message());
                mutate(&mut body, &[other], &mut self.rng);
                self.send(at, &framed(&body), &[])
            }
            "broken stream" => {
                let (mut bytes, other) = (framed(&self.message()), self.message());
                mutate(&mut bytes, &[other], &mut self.rng);
                self.send(at, &bytes, &[])
            }
            "cut" => {
                let bytes = framed(&self.message());
                let len = self.rng.below(bytes.len());
                self.send(at, &bytes[..len], &[])?;
                None
            }
            // The same request over and over, each under a ticket of its own.
            "flood" => {
                let mut bytes = Vec::new();
                let rng = self.rng;
                for _ in 0..200 {
                    self.rng = rng;
                    bytes.extend(framed(&self.message()));
                }
                self.send(at, &bytes, &[])
            }
            "introduction" => self.introduce(at),
            "strange introduction" => self.introduce_what_is_no_client(at),
            "descriptors" => {
                let bytes = framed(&self.message());
                let null = File::open("/dev/null").unwrap();
                let number = self.rng.below(12);
                self.send(at, &bytes, &vec![null.as_fd(); number])
            }
            "reading" => {
                let mut bytes = [0; 4096];
                for _ in 0..self.rng.below(64) {
                    match (&self.sockets[at]).read(&mut bytes) {
                        Ok(0) => return None,
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
                Some(())
            }
            "shutdown" => {
                let how = *self.rng.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]);
                self.sockets[at].shutdown(how).ok()
            }
            _ => {
                let mut bytes = Vec::new();
                for _ in 0..self.rng.below(20) {
                    bytes.extend(framed(&self.message()));
                }
                self.send(at, &bytes, &[])
            }
        }
    }

    /// Makes further clients: of its own, of a ring, of one socket twice.
    fn introduce(&mut self, at: usize) -> Option<()> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        match self.rng.below(6) {
            // The manager's own answers come back to it.
            0 => {
                self.say_introduce(at, &[ours.as_fd()], false)?;
                self.say_introduce(at, &[theirs.as_fd()], false)
            }
            // A client whose words are those of its introducer.
            1 => {
                let own = self.sockets[at].try_clone().unwrap();
                self.say_introduce(at, &[own.as_fd()], false)
            }
            // The same socket again, with a process or without.
            2 => {
                self.say_introduce(at, &[theirs.as_fd()], false)?;
                self.say_introduce(at, &[theirs.as_fd()], false)?;
                self.keep(ours);
                Some(())
            }
            _ => {
                self.say_introduce(at, &[theirs.as_fd()], false)?;
                let names = (0..self.rng.below(4))
                    .map(|_| Name {
                        object: self.rng.pick(&self.known.objects).0,
                        part: Part::WHOLE,
                        kind: kinds::QUEUE,
                        place: None,
                    })
                    .collect();
                let mut lend = Vec::new();
                ToManager::Lend { client: self.next - 1, names }.write(&mut lend);
                self.send(at, &framed(&lend), &[])?;
                if !self.rng.one_in(4) {
                    self.keep(ours);
                }
                Some(())
            }
        }
    }

    fn introduce_what_is_no_client(&mut self, at: usize) -> Option<()> {
        let (pipe, _other_end) = nix::unistd::pipe().unwrap();
        let (stream, _kept) = UnixStream::pair().unwrap();
        // A name in the abstract space: nothing is left in a file system.
        let name = SocketAddr::from_abstract_name(self.rng.word().to_le_bytes()).unwrap();
        let any: [OwnedFd; 9] = [
            UnixListener::bind_addr(&name).unwrap().into(),
            pipe,
            File::open("/dev/null").unwrap().into(),
            File::open("/proc/self/exe").unwrap().into(),
            memfd_create(c"hostile", MFdFlags::MFD_CLOEXEC).unwrap(),
            EventFd::new().unwrap().into(),
            TcpListener::bind("127.0.0.1:0").unwrap().into(),
            UnixDatagram::unbound().unwrap().into(),
            stream.into(),
        ];
        let number = self.rng.below(4);
        let fds: Vec<_> = (0..number).map(|_| self.rng.pick(&any).as_fd()).collect();
        let process = self.rng.one_in(2);
        self.say_introduce(at, &fds, process)
    }

    fn say_introduce(&mut self, at: usize, fds: &[BorrowedFd<'_>], process: bool) -> Option<()> {
        let mut body = Vec::new();
        ToManager::Introduce { client: self.next, process }.write(&mut body);
        self.next += 1;
        self.send(at, &framed(&body), fds)
    }

    /// Reads its own socket until the manager ends the connection. Returns whether it does.
    fn is_ended(&mut self) -> bool {
        self.sockets[0].set_read_timeout(Some(HANG)).unwrap();
        let mut bytes = [0; 4096];
        loop {
            match (&self.sockets[0]).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return true,
                Err(_) => return false,
            }
        }
    }

    fn send(&mut self, at: usize, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Option<()> {
        let socket = &self.sockets[at];
        let start = Instant::now();
        let mut fds = fds;
        while !bytes.is_empty() {
            match sys::send_with_fds(socket.as_fd(), &[IoSlice::new(bytes)], fds) {
                Ok(sent) => bytes = &bytes[sent..],
                // The manager does not listen: perhaps it waits until its answers are read.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if start.elapsed() > PATIENCE {
                        self.done.push("not listened to");
                        // A frame that ends in its middle makes no sense of what follows.
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(_) => return None,
            }
            fds = &[];
        }
        Some(())
    }
}

// ---- what it is lent

/// One object of each kind, with the place of its requests in the fuzzer's list.
fn objects_to_lend(manager: &Manager, server: Client) -> Vec<(Handle, Option<usize>)> {
    let make = |kind, object: Box<dyn Object>| {
        Handle::create(manager.connection(), kind, Part::WHOLE, None, || object).unwrap()
    };
    let pair = UnixStream::pair().unwrap();
    let (receives, sends): (PeerFd, PeerFd) =
        (OwnedFd::from(pair.0).into(), OwnedFd::from(pair.1).into());
    vec![
        (make(kinds::BARRIER, Box::new(objects::barrier::Barrier::new(2))), Some(0)),
        (
            make(
                kinds::CHANNEL,
                Box::new(objects::channel::End::new(Arc::new(receives), Arc::new(sends))),
            ),
            Some(1),
        ),
        (make(kinds::CONDVAR, Box::new(objects::condvar::Condvar::new())), Some(2)),
        (make(kinds::EVENT, Box::new(objects::event::Event::new())), Some(3)),
        (make(kinds::LIST, Box::new(objects::list::List::new())), Some(4)),
        (make(kinds::MAP, Box::new(objects::map::Map::new())), Some(5)),
        (make(kinds::QUEUE, Box::new(objects::queue::Queue::new(Some(4)))), Some(6)),
        (make(kinds::QUEUE, Box::new(objects::queue::Queue::new(None))), Some(6)),
        (make(kinds::REGISTERED, Box::new(objects::registered::Registered::new(server))), Some(7)),
        (
            make(kinds::RW_LOCK, Box::new(objects::rwlock::RwLock::new(Default::default(), None))),
            Some(8),
        ),
        (make(kinds::SEMAPHORE, Box::new(objects::semaphore::Semaphore::new(3, true))), Some(9)),
        (manager.mutex(vec![1u64; 4]).unwrap().handle().clone(), None),
    ]
}

// ---- those who must not notice

/// Uses objects that the hostile client was not lent, from another process, until it is told.
fn honest_client(process: Process, objects: Honest, ended: &AtomicBool) -> (u64, Duration) {
    let (mut rounds, mut longest) = (0, Duration::ZERO);
    while rounds < 5 || !ended.load(Ordering::Acquire) {
        let start = Instant::now();
        objects.list.blocking_push(rounds).unwrap();
        assert_eq!(objects.list.blocking_pop().unwrap(), Some(rounds));
        objects.queue.blocking_send(rounds).unwrap();
        assert_eq!(objects.queue.blocking_recv().unwrap(), Some(rounds));
        objects.map.blocking_insert(1, rounds).unwrap();
        assert_eq!(objects.map.blocking_get(&1).unwrap(), Some(rounds));
        *objects.mutex.blocking_lock().unwrap() += 1;
        longest = longest.max(start.elapsed());
        rounds += 1;
    }
    drop((objects, process));
    (rounds, longest)
}

#[derive(Clone)]
struct Honest {
    list: List<u64>,
    queue: Queue<u64>,
    map: Map<u64, u64>,
    mutex: Mutex<u64>,
}

impl Honest {
    fn new(manager: &Manager) -> Self {
        Self {
            list: manager.list().unwrap(),
            queue: manager.queue(2).unwrap(),
            map: manager.map().unwrap(),
            mutex: manager.mutex(0).unwrap(),
        }
    }

    fn seen_by(&self, process: &Process) -> Self {
        Self {
            list: process.has(&self.list),
            queue: process.has(&self.queue),
            map: process.has(&self.map),
            mutex: process.has(&self.mutex),
        }
    }
}

// ---- a case

fn case(rng: &mut Rng, tally: &mut Tally) {
    let manager = Manager::new().unwrap();
    let server = Arc::clone(manager.connection().server().unwrap());
    let process = Process::new(&manager);
    let objects = Honest::new(&manager);
    let theirs = objects.seen_by(&process);

    // As of a worker, the manager knows when its process has ended.
    let mut worker = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let (client, socket) = server.connect(Some(sys::pidfd_open(worker.id()).unwrap())).unwrap();
    server.dismiss(client);
    let lent = objects_to_lend(&manager, client);
    let mut known = Known::default();
    for (handle, kind) in &lent {
        let Name { object, .. } = *handle.name();
        if rng.one_in(3) {
            continue;
        }
        // Of a queue, sometimes only one half.
        let part = if rng.one_in(4) { Part::SENDER } else { Part::WHOLE };
        server.lend(client, object, part).unwrap();
        known.objects.push((object, *kind));
    }
    if known.objects.is_empty() {
        known.objects.push((lent[0].0.name().object, lent[0].1));
    }
    let hostile = Hostile::new(socket, known, Rng(rng.word()));

    let ended = Arc::new(AtomicBool::new(false));
    let honest = std::thread::spawn({
        let ended = Arc::clone(&ended);
        move || honest_client(process, theirs, &ended)
    });
    let hostile = std::thread::spawn(move || hostile.play());
    // The application itself, in a runtime that drives the manager while it waits.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rounds = runtime.block_on(async {
        let soon = |what| tokio::time::timeout(HANG, what);
        let mut rounds = 0;
        while rounds < 5 || !hostile.is_finished() {
            soon(objects.list.get(0)).await.expect("the application waits in vain").unwrap();
            let mut guard = tokio::time::timeout(HANG, objects.mutex.lock())
                .await
                .expect("the application waits in vain")
                .unwrap();
            *guard += 1;
            drop(guard);
            tokio::task::yield_now().await;
            rounds += 1;
        }
        rounds
    });
    let done = hostile.join().unwrap();
    done.iter().for_each(|what| count(tally, what));
    worker.kill().unwrap();
    worker.wait().unwrap();
    ended.store(true, Ordering::Release);
    wait_until("the honest client has its answers", || honest.is_finished());
    let (answers, _longest) = honest.join().unwrap();
    assert_eq!(objects.mutex.blocking_get().unwrap(), answers + rounds, "an update was lost");

    // With their sockets all clients go, and what they had references to.
    wait_for_the_end_of_all_clients(&manager, &format!("{done:?}"));
    drop((lent, objects));
    wait_until(&format!("{done:?}: the manager has no object"), || manager.objects() == 0);
    drop(manager);
    drop(server);
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread has panicked");
}

#[test]
fn clients_that_break_the_protocol_hinder_no_other_and_leave_nothing() {
    in_own_process("sync::hostile_clients::hostile_clients");
}

#[test]
#[ignore = "is run by clients_that_break_the_protocol_hinder_no_other_and_leave_nothing"]
fn hostile_clients() {
    if !is_own_process() {
        return;
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    case(&mut Rng(0), &mut Tally::new()); // what is made once is there
    // What stays: two of the test, and the supervisor.
    wait_until("the first manager is gone", || threads() <= 3);
    let (fds_before, threads_before) = (open_fds(), threads());
    let tally = run("clients", 150, |rng, tally| {
        let ((), growth) = process_peak_of(|| case(rng, tally));
        assert!(growth < GROWTH_MAX, "the application has grown by {growth} bytes");
    });
    wait_until("all descriptors are closed", || open_fds() <= fds_before);
    wait_until("all threads have ended", || threads() <= threads_before);
    for what in [
        "mutated",
        "broken stream",
        "cut",
        "flood",
        "introduction",
        "strange introduction",
        "descriptors",
        "reading",
        "shutdown",
        "messages",
    ] {
        assert!(tally.contains_key(what), "no {what} in {tally:?}");
    }
}

/// Starts a manager with one client; returns the client's socket.
fn hostile_client_of(manager: &Manager) -> (Client, Hostile) {
    let server = manager.connection().server().unwrap();
    let (client, socket) = server.connect(None).unwrap();
    server.dismiss(client);
    (client, Hostile::new(socket, Known::default(), Rng(1)))
}

fn wait_for_the_end_of_all_clients(manager: &Manager, after: &str) {
    let server = manager.connection().server().unwrap();
    let start = Instant::now();
    while server.clients() > 0 {
        let clients = || server.describe_clients();
        assert!(start.elapsed() < HANG, "after {after} the manager has clients:\n{}", clients());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Otherwise the first client of that number would never be dismissed, and what it had put into
/// results would stay.
#[test]
fn a_number_for_an_introduced_client_that_is_in_use_ends_the_connection() {
    let manager = Manager::new().unwrap();
    let list: List<u8> = manager.list().unwrap();
    let (client, mut hostile) = hostile_client_of(&manager);
    let Name { object, kind, .. } = *list.handle().name();
    let name = Name { object, part: Part::WHOLE, kind, place: None };
    manager.connection().server().unwrap().lend(client, object, Part::WHOLE).unwrap();
    let sockets = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];

    hostile.say_introduce(0, &[sockets[0].0.as_fd()], false).unwrap();
    let mut lend = Vec::new();
    ToManager::Lend { client: 0, names: vec![name] }.write(&mut lend);
    hostile.send(0, &framed(&lend), &[]).unwrap();
    // The introduced client puts the object into a result.
    let mut parcel = Vec::new();
    ToManager::Parcel { names: vec![name] }.write(&mut parcel);
    (&sockets[0].1).write_all(&framed(&parcel)).unwrap();
    hostile.next = 0;
    hostile.say_introduce(0, &[sockets[1].0.as_fd()], false).unwrap();
    assert!(hostile.is_ended(), "the manager has not ended the connection");

    drop((hostile, sockets, list));
    wait_for_the_end_of_all_clients(&manager, "the end of their sockets");
    wait_until("the manager has no object", || manager.objects() == 0);
}

/// Refusals are answers, too.
#[test]
fn a_client_that_leaves_refusals_unread_loses_its_connection() {
    let manager = Manager::new().unwrap();
    manager.connection().server().unwrap().set_answers_bound(256 << 10);
    let (_, hostile) = hostile_client_of(&manager);
    let mut refused = Vec::new();
    for ticket in 1..=8192 {
        let mut fetch = Vec::new();
        ToManager::Fetch { object: u64::MAX, ticket }.write(&mut fetch);
        refused.extend(framed(&fetch));
    }
    let mut socket = &hostile.sockets[0];
    socket.set_write_timeout(Some(HANG)).unwrap();
    let error = (0..64).find_map(|_| socket.write_all(&refused).err()).map(|error| error.kind());
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    assert!(matches!(error, Some(BrokenPipe | ConnectionReset)), "{error:?}");
    wait_for_the_end_of_all_clients(&manager, "the end of their sockets");
}

/// A client that was introduced, and the socket of its process.
fn introduced_client(hostile: &mut Hostile) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    hostile.say_introduce(0, &[theirs.as_fd()], false).unwrap();
    // Its welcome tells that it is a client.
    ours.set_read_timeout(Some(HANG)).unwrap();
    assert!((&ours).read(&mut [0; 64]).unwrap() > 0);
    ours
}

/// Queues a client's own socket in that socket.
fn send_itself(socket: &UnixStream, bytes: &[u8]) {
    let sent = sys::send_with_fds(socket.as_fd(), &[IoSlice::new(bytes)], &[socket.as_fd()]);
    assert_eq!(sent.unwrap(), bytes.len());
}

/// The manager would keep the descriptor for the rest of a message that never comes, and with it
/// the other end of the client's connection: so the connection would never end.
#[test]
fn a_client_that_sends_its_own_socket_with_half_a_message_does_not_stay() {
    let manager = Manager::new().unwrap();
    let (_, mut hostile) = hostile_client_of(&manager);
    let socket = introduced_client(&mut hostile);
    let mut introduce = Vec::new();
    ToManager::Introduce { client: 7, process: false }.write(&mut introduce);
    let bytes = framed(&introduce);
    send_itself(&socket, &bytes[..bytes.len() - 1]);
    drop((hostile, socket));
    wait_for_the_end_of_all_clients(&manager, "the end of their sockets");
}

/// The manager would have both ends of one connection, in which it says nothing to itself: its
/// welcome is lost in a message that never ends.
#[test]
fn both_ends_of_one_connection_cannot_be_clients() {
    let manager = Manager::new().unwrap();
    let (_, mut hostile) = hostile_client_of(&manager);
    let socket = introduced_client(&mut hostile);
    (&socket).write_all(&1000u32.to_le_bytes()).unwrap();
    hostile.say_introduce(0, &[socket.as_fd()], false).unwrap();
    assert!(hostile.is_ended(), "the manager has not ended the connection");
    drop((hostile, socket));
    wait_for_the_end_of_all_clients(&manager, "the end of their sockets");
}

/// The manager does not even read the descriptor, because the client leaves its
/// answers unread: whether it gets stuck before its introducer has ended, or after.
#[test]
fn a_client_that_is_stuck_with_its_own_socket_does_not_outlive_its_introducer() {
    for ends_first in [false, true] {
        let manager = Manager::new().unwrap();
        let server = Arc::clone(manager.connection().server().unwrap());
        let list: List<Vec<u8>> = manager.list().unwrap();
        list.blocking_push(vec![0; 1 << 20]).unwrap();
        let (first, mut hostile) = hostile_client_of(&manager);
        let Name { object, kind, .. } = *list.handle().name();
        server.lend(first, object, Part::WHOLE).unwrap();
        let socket = introduced_client(&mut hostile);
        let name = Name { object, part: Part::WHOLE, kind, place: None };
        let mut lend = Vec::new();
        ToManager::Lend { client: 0, names: vec![name] }.write(&mut lend);
        hostile.send(0, &framed(&lend), &[]).unwrap();

        let mut hostile = Some(hostile);
        if ends_first {
            drop(hostile.take());
            wait_until("the introducer has ended", || server.clients() == 1);
        }
        let get = objects::list::Ask::Get { at: 0 }.body().head;
        for ticket in 1..=16 {
            let mut request = Vec::new();
            let (head, tail) = (&get[..], &[][..]);
            ToManager::Request { object, ticket, names: Vec::new(), head, tail }
                .write(&mut request);
            if (&socket).write_all(&framed(&request)).is_err() {
                break; // it has been hung up
            }
        }
        if !ends_first {
            wait_until("the client is stuck", || {
                server.describe_clients().contains("blocked true")
            });
            send_itself(&socket, &[0]);
        }
        drop((hostile, socket));
        let after = if ends_first { "getting stuck" } else { "the end of the introducer" };
        wait_for_the_end_of_all_clients(&manager, after);
    }
}

/// Its requests are read though it reads no answers, for a client that it has introduced may need
/// what it has lent.
#[test]
fn a_client_that_has_its_requests_read_by_one_that_it_introduced_reads_its_answers() {
    let manager = Manager::new().unwrap();
    let server = manager.connection().server().unwrap();
    let list: List<Vec<u8>> = manager.list().unwrap();
    list.blocking_push(vec![0; 1 << 20]).unwrap();
    let (first, mut hostile) = hostile_client_of(&manager);
    let object = list.handle().name().object;
    server.lend(first, object, Part::WHOLE).unwrap();
    let introduced = introduced_client(&mut hostile);
    introduced.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let get = objects::list::Ask::Get { at: 0 }.body().head;
    let (mut ticket, mut asked) = (0, 0);
    let ended = loop {
        ticket += 1;
        let mut request = Vec::new();
        let (head, tail) = (&get[..], &[][..]);
        ToManager::Request { object, ticket, names: Vec::new(), head, tail }.write(&mut request);
        if hostile.send(0, &framed(&request), &[]).is_none() || server.clients() == 1 {
            break true;
        }
        asked += 1;
        if asked == 150 {
            break false;
        }
        // The other one says something, and is answered after that has been read.
        let mut fetch = Vec::new();
        ToManager::Fetch { object: u64::MAX, ticket }.write(&mut fetch);
        (&introduced).write_all(&framed(&fetch)).unwrap();
        while (&introduced).read(&mut [0; 4096]).is_err() && server.clients() == 2 {}
    };
    assert!(ended, "{asked} MiB are kept for it:\n{}", server.describe_clients());
    assert!(asked > 16, "answers of the largest size are kept");
    drop((hostile, introduced, list));
    wait_for_the_end_of_all_clients(&manager, "the end of their sockets");
}

/// No end of it would ever be reported, so it would stay a client for ever.
#[test]
fn a_listening_socket_is_no_client() {
    let manager = Manager::new().unwrap();
    let (_, mut hostile) = hostile_client_of(&manager);
    let name = format!("procpool-test-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&name).unwrap();
    hostile.say_introduce(0, &[listener.as_fd()], false).unwrap();
    assert!(hostile.is_ended(), "the manager has not ended the connection");
    drop(hostile);
    wait_for_the_end_of_all_clients(&manager, "the end of their sockets");
}
