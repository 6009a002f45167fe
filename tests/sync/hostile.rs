//! Workers that write what they like into the memory that they share with a manager, and into the
//! sockets that they have: what they reach breaks, with a typed error, and nothing else; the
//! manager and the application go on, and no call waits for ever.
//!
//! A worker knows its memory from `/proc/self/maps`: what was mapped when it used an object for the
//! first time is that object's, and whatever lies in the same segment. (The rules are tried beside
//! them with words of every kind: `manager/lane.rs`, `sync/mutex_tests.rs`.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "a task that writes where it should not")]

use crate::support::{in_own_process, own_dir, soon, until};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockaddrLike, SockaddrStorage, getsockname, sendmsg,
    setsockopt, sockopt,
};
use procpool::Pool;
use procpool::sync::ErrorKind;
use procpool::sync::{Array, Channel, Map, Mutex, Queue, RwLock, Semaphore, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn pool(workers: usize) -> Pool {
    Pool::builder().workers(workers).build().unwrap()
}

// ---- the hostile task

/// What is written over all words.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Scribble {
    Zeros,
    Ones,
    /// Other words again and again, until it is killed.
    Noise,
}

const AT_ONCE: [Scribble; 2] = [Scribble::Zeros, Scribble::Ones];

/// The memfds that are mapped here.
fn shared_memory() -> BTreeSet<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared = maps.lines().filter(|line| line.contains(" rw-s ") && line.contains("/memfd:"));
    shared
        .map(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            (usize::from_str_radix(from, 16).unwrap(), usize::from_str_radix(to, 16).unwrap())
        })
        .collect()
}

/// Writes over what `first_use` maps; `told` is called when all of it was written over once.
fn scribble_over(how: Scribble, first_use: impl FnOnce(), told: impl FnOnce()) {
    let before = shared_memory();
    first_use();
    let ours: Vec<Range<usize>> =
        shared_memory().difference(&before).map(|(from, to)| *from..*to).collect();
    assert!(!ours.is_empty(), "it has no memory");
    let mut noise = 1u64;
    let mut write = || {
        for place in ours.iter().flat_map(|range| range.clone().step_by(8)) {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let word = match how {
                Scribble::Zeros => 0,
                Scribble::Ones => u64::MAX,
                // Many of these are small numbers, which make more sense.
                Scribble::Noise => noise >> (noise >> 58),
            };
            // SAFETY: the place is mapped as long as the handle exists, which outlives this;
            // everybody uses atomics there.
            unsafe { AtomicU64::from_ptr(place as *mut u64) }.store(word, Ordering::Relaxed);
        }
    };
    write();
    told();
    while let Scribble::Noise = how {
        write();
    }
}

/// Says that it has been done.
fn say(done: &Value<bool>) {
    done.store(true).unwrap();
}

// ---- locks

/// Longer than what shares a segment with others.
type Large = Vec<u64>;

fn large() -> Large {
    vec![u64::MAX; 1500]
}

fn scribble_lock(how: Scribble, lock: Mutex<Large>, done: Value<bool>) {
    done.load().unwrap(); // so that it has been mapped before
    scribble_over(how, || drop(lock.blocking_lock().unwrap()), || say(&done));
}

/// What may come of an attempt on such a lock.
fn is_typed(error: &procpool::sync::Error) -> bool {
    matches!(error.kind(), ErrorKind::ObjectBroken | ErrorKind::Decode | ErrorKind::TimedOut)
}

#[tokio::test]
async fn a_lock_whose_memory_is_written_over_is_broken_and_no_other() {
    for how in AT_ONCE {
        let pool = pool(2);
        let manager = pool.manager();
        let (bad, good, done) = (
            manager.mutex(large()).unwrap(),
            manager.mutex(5u64).unwrap(),
            manager.value(false).unwrap(),
        );
        soon(pool.spawn(scribble_lock, (how, bad.clone(), done.clone()))).await.unwrap();
        let error = soon(bad.lock_timeout(Duration::from_secs(5))).await.map(drop).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::ObjectBroken | ErrorKind::Decode),
            "{how:?}: {error}"
        );
        assert!(is_typed(&soon(bad.get()).await.unwrap_err()));
        // Elsewhere, too; and the good one is good there and here.
        let seen = |bad: Mutex<Large>, good: Mutex<u64>| {
            *good.blocking_lock().unwrap() += 1;
            bad.blocking_lock_timeout(Duration::from_secs(5)).map(drop).is_err()
        };
        assert!(soon(pool.spawn(seen, (bad.clone(), good.clone()))).await.unwrap());
        assert_eq!(soon(good.get()).await.unwrap(), 6);
        drop((bad, good, done));
        until("nothing is left", || manager.objects() == 0).await;
    }
}

#[tokio::test]
async fn a_lock_that_is_written_over_without_end_holds_up_nobody() {
    let pool = pool(2);
    let manager = pool.manager();
    let (bad, good, done) = (
        manager.mutex(large()).unwrap(),
        manager.mutex(0u64).unwrap(),
        manager.value(false).unwrap(),
    );
    let hostile = pool.spawn(scribble_lock, (Scribble::Noise, bad.clone(), done.clone()));
    until("it writes", || done.load().unwrap()).await;
    let add = |good: Mutex<u64>| *good.blocking_lock().unwrap() += 1;
    for _ in 0..50 {
        if let Err(error) = soon(bad.lock_timeout(Duration::from_millis(1))).await.map(drop) {
            assert!(is_typed(&error), "{error}");
        }
        soon(pool.spawn(add, &good)).await.unwrap();
        *soon(good.lock()).await.unwrap() += 1;
    }
    hostile.abort();
    assert!(soon(hostile).await.is_err());
    assert_eq!(soon(good.get()).await.unwrap(), 100);
    // What has been broken stays so, and can be dropped.
    drop((bad, good, done));
    until("nothing is left", || manager.objects() == 0).await;
}

// ---- values and arrays

#[tokio::test]
async fn whatever_is_written_into_an_array_is_some_number_there_and_not_elsewhere() {
    fn scribble(how: Scribble, array: Array<u8>, flags: Array<bool>) {
        scribble_over(
            how,
            || _ = (array.at(0).unwrap().load().unwrap(), flags.at(0).unwrap().load().unwrap()),
            || (),
        );
    }
    for (how, byte, flag) in [(Scribble::Zeros, 0, false), (Scribble::Ones, u8::MAX, true)] {
        let pool = pool(1);
        let manager = pool.manager();
        let (array, flags, good) = (
            manager.array(&[1u8; 5000]).unwrap(),
            manager.array(&[true; 5000]).unwrap(),
            manager.array(&[3u8; 5000]).unwrap(),
        );
        soon(pool.spawn(scribble, (how, array.clone(), flags.clone()))).await.unwrap();
        assert_eq!((array.len(), array.to_vec().unwrap()), (5000, vec![byte; 5000]));
        assert_eq!(flags.to_vec().unwrap(), vec![flag; 5000]);
        // Bits that no byte has are no hindrance to who compares.
        let element = array.at(9).unwrap();
        assert_eq!(
            (element.compare_exchange(byte, 8).unwrap(), element.fetch_add(1).unwrap()),
            (Ok(byte), 8)
        );
        assert_eq!(flags.at(9).unwrap().fetch_xor(true).unwrap(), flag);
        assert_eq!(flags.at(9).unwrap().load().unwrap(), !flag);
        assert_eq!(good.to_vec().unwrap(), [3; 5000]);
    }
}

// ---- the lanes of a queue

/// Uses the queue until it has both lanes, and then writes over them.
fn scribble_lanes(how: Scribble, queue: Queue<u64>, done: Value<bool>) {
    done.load().unwrap(); // so that it has been mapped before
    let have_lanes = || {
        let before = shared_memory().len();
        while shared_memory().len() < before + 2 {
            queue.blocking_send(1).unwrap();
            queue.blocking_recv().unwrap().unwrap();
        }
    };
    scribble_over(how, have_lanes, || say(&done));
    // It is told nothing of it, for nobody knows; but it is not kept waiting, either.
    let _ = queue.blocking_send_timeout(2, Duration::from_secs(5));
    let _ = queue.blocking_recv_timeout(Duration::from_millis(1));
}

/// Everything that others send arrives once and in order, whatever else may stand between.
async fn others_are_served(pool: &Pool, queue: &Queue<u64>) {
    const FIRST: u64 = 1 << 40;
    const COUNT: u64 = 500;
    let send =
        |queue: Queue<u64>| (FIRST..FIRST + COUNT).for_each(|n| queue.blocking_send(n).unwrap());
    let sending = pool.spawn(send, queue);
    let mut next = FIRST;
    while next < FIRST + COUNT {
        match soon(queue.recv()).await {
            Ok(item) => next += u64::from(item == Some(next)),
            // One of those that the hostile one has "sent".
            Err(error) => assert_eq!(error.kind(), ErrorKind::Decode, "{error}"),
        }
    }
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn lanes_that_are_written_over_cost_their_process_and_leave_the_queue_to_the_others() {
    for how in AT_ONCE {
        let pool = pool(2);
        let manager = pool.manager();
        let (bad, good, done) =
            (manager.queue(32).unwrap(), manager.queue(4).unwrap(), manager.value(false).unwrap());
        soon(pool.spawn(scribble_lanes, (how, bad.clone(), done.clone()))).await.unwrap();
        others_are_served(&pool, &bad).await;
        others_are_served(&pool, &good).await;
        assert!(bad.len().unwrap() <= 32);
        soon(pool.shutdown()).await;
        drop((bad, good, done));
        until("nothing is left", || manager.objects() == 0).await;
    }
}

#[tokio::test]
async fn lanes_that_are_written_over_without_end_hold_up_nobody() {
    let pool = pool(2);
    let manager = pool.manager();
    let (bad, good, done) =
        (manager.queue(32).unwrap(), manager.queue(4).unwrap(), manager.value(false).unwrap());
    let hostile = pool.spawn(scribble_lanes, (Scribble::Noise, bad.clone(), done.clone()));
    until("it writes", || done.load().unwrap()).await;
    others_are_served(&pool, &bad).await;
    others_are_served(&pool, &good).await;
    hostile.abort();
    assert!(soon(hostile).await.is_err());
    others_are_served(&pool, &bad).await;
    drop((bad, good, done));
    until("nothing is left", || manager.objects() == 0).await;
}

// ---- a map's lane

#[tokio::test]
async fn a_map_whose_lane_is_written_over_is_right_for_all_others() {
    fn scribble(how: Scribble, map: Map<u32, u64>, done: Value<bool>) {
        done.load().unwrap();
        let before = shared_memory().len();
        let read = || {
            while shared_memory().len() == before {
                assert!(map.blocking_get(&1).unwrap().is_some());
            }
            // So often that it may set by lane.
            (0..40).for_each(|n| map.blocking_set(2, n).unwrap());
        };
        scribble_over(how, read, || say(&done));
        assert!(map.blocking_get(&1).is_ok());
        map.blocking_set(2, 7).unwrap();
        assert_eq!(map.blocking_get(&2).unwrap(), Some(7));
    }
    let read_on = |map: Map<u32, u64>, last: u64| {
        let mut newest = 0;
        while newest < last {
            let now = map.blocking_get(&1).unwrap().unwrap();
            assert!(now >= newest, "{now} after {newest}");
            newest = now;
        }
    };
    for how in [Scribble::Zeros, Scribble::Ones, Scribble::Noise] {
        let pool = pool(2);
        let manager = pool.manager();
        let (map, done) = (manager.map().unwrap(), manager.value(false).unwrap());
        soon(map.insert(1, 0)).await.unwrap();
        let hostile = pool.spawn(scribble, (how, map.clone(), done.clone()));
        until("it has written", || done.load().unwrap()).await;
        let reading = pool.spawn(read_on, (map.clone(), 300));
        for n in 1..=300 {
            soon(map.insert(1, n)).await.unwrap();
            assert_eq!(soon(map.get(&1)).await.unwrap(), Some(n));
        }
        soon(reading).await.unwrap();
        if let Scribble::Noise = how {
            hostile.abort();
        }
        let ended = soon(hostile).await;
        assert_eq!(ended.is_ok(), !matches!(how, Scribble::Noise), "{ended:?}");
    }
}

// ---- what a worker writes into its sockets

/// The Unix sockets of this process by number, and whether each raises a signal, as a lifeline
/// does.
fn unix_sockets() -> Vec<(RawFd, bool)> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut sockets: Vec<_> = numbers
        .filter(|fd| {
            getsockname::<SockaddrStorage>(*fd)
                .is_ok_and(|name| name.family() == Some(AddressFamily::Unix))
        })
        // SAFETY: the call takes integers.
        .map(|fd| (fd, unsafe { libc::fcntl(fd, libc::F_GETFL) } & libc::O_ASYNC != 0))
        .collect();
    sockets.sort_unstable();
    sockets
}

fn lifeline() -> RawFd {
    unix_sockets().iter().find(|socket| socket.1).unwrap().0
}

fn pool_socket() -> RawFd {
    unix_sockets().iter().find(|socket| !socket.1).unwrap().0
}

/// The socket to the manager whose object came with the call.
fn manager_socket() -> RawFd {
    unix_sockets().iter().rev().find(|socket| !socket.1).unwrap().0
}

fn send_fds(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<SockaddrStorage>(socket, &[IoSlice::new(bytes)], &rights, flags, None)
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    frame
}

/// `INTRODUCE`, of client 1, without its process.
const INTRODUCE: [u8; 4] = [0x93, 11, 1, 0];

/// A TCP socket whose close blocks for two minutes, longer than any test waits, and its peer,
/// which does not read.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let (junk, mut refused) = (vec![0; 1 << 20], 0);
    while refused < 5 {
        match socket.write(&junk) {
            Ok(written) if written > 0 => refused = 0,
            _ => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    let on = libc::linger { l_onoff: 1, l_linger: 120 };
    setsockopt(&socket, sockopt::Linger, &on).unwrap();
    (socket, peer)
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Handover {
    /// As the socket of a client that is introduced.
    Introduced,
    /// Behind something that ends the connection to the manager.
    Unread,
    ToThePool,
    ByTheLifeline,
    ByAChannel,
}

/// Hands over a descriptor whose close blocks, so that the application closes it last.
fn hand_over(how: Handover, value: Value<bool>, mut channel: Option<Channel<u8>>) {
    value.load().unwrap();
    let (lingers, peer) = lingering();
    let fds = [lingers.as_raw_fd()];
    match how {
        Handover::Introduced => {
            send_fds(manager_socket(), &frame(&INTRODUCE), &fds).unwrap();
        }
        Handover::Unread => {
            send_fds(manager_socket(), &[0xff; 4], &fds).unwrap();
            while send_fds(manager_socket(), &[0], &fds).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Handover::ToThePool => _ = send_fds(pool_socket(), &[0], &fds),
        Handover::ByTheLifeline => _ = send_fds(lifeline(), &[0], &fds),
        Handover::ByAChannel => {
            let before: Vec<_> = unix_sockets();
            let channel = channel.take().unwrap();
            channel.blocking_send(1).unwrap();
            for (socket, _) in unix_sockets().iter().filter(|socket| !before.contains(socket)) {
                let _ = send_fds(*socket, &frame(&[7]), &fds);
            }
        }
    }
    // The end of the process closes its own without waiting.
    std::mem::forget(lingers);
    // A process of a session of its own keeps the peer, so that nothing else ends the close.
    // SAFETY: only async-signal-safe calls follow in the child.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: the calls take integers.
        unsafe {
            libc::setsid();
            libc::syscall(libc::SYS_close_range, 0, peer.as_raw_fd() - 1, 0);
            libc::syscall(libc::SYS_close_range, peer.as_raw_fd() + 1, u32::MAX, 0);
            libc::sleep(60);
            libc::_exit(0);
        }
    }
    std::process::abort();
}

#[tokio::test]
async fn a_descriptor_whose_close_blocks_holds_up_neither_the_runtime_nor_the_supervisor() {
    use Handover::*;
    for how in [Introduced, Unread, ToThePool, ByTheLifeline, ByAChannel] {
        let pool = pool(1);
        let value = pool.manager().value(true).unwrap();
        let (ours, theirs) = pool.manager().channel::<u8>().unwrap();
        let theirs = matches!(how, ByAChannel).then_some(theirs);
        soon(pool.spawn(hand_over, (how, value.clone(), theirs))).await.unwrap_err();
        if let ByAChannel = how {
            assert_eq!(soon(ours.recv()).await.unwrap(), Some(1));
            while soon(ours.recv()).await.is_ok_and(|item| item.is_some()) {}
        }
        drop(ours);
        // The runtime goes on, and the supervisor thread starts processes.
        let load = |value: Value<bool>| value.load().unwrap();
        assert!(soon(pool.spawn(load, &value)).await.unwrap(), "{how:?}");
        soon(pool.shutdown()).await;
    }
}

// ---- clients of a client

/// Introduces as many clients as it can, and keeps them.
fn introduce_many(value: Value<u64>) -> usize {
    value.load().unwrap();
    let manager = manager_socket();
    let mut ours = Vec::new();
    for number in 0..1000u16 {
        let Ok((mine, theirs)) = std::os::unix::net::UnixStream::pair() else { break };
        let [high, low] = number.to_be_bytes();
        let message = frame(&[0x93, 11, 0xcd, high, low, 0]);
        send_fds(manager, &message, &[theirs.as_raw_fd()]).unwrap();
        drop(theirs);
        // WELCOME, or REFUSED and the end.
        let mut answer = [0; 64];
        let len = std::io::Read::read(&mut &mine, &mut answer).unwrap();
        assert!(len > 6, "it is told");
        if answer[5] != 32 {
            break;
        }
        ours.push(mine);
    }
    let many = ours.len();
    std::mem::forget(ours);
    many
}

#[test]
fn clients_that_a_worker_introduces_leave_descriptors_to_the_application() {
    in_own_process("own_process_with_few_descriptors");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_with_few_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if own_dir().is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = pool(2);
        soon(pool.ready()).await.unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 160, hard).unwrap();
        let value = pool.manager().value(1u64).unwrap();
        let many = soon(pool.spawn(introduce_many, &value)).await.unwrap();
        assert!((20..120).contains(&many), "{many}");
        // A quarter is left: for files, another pool, and what its calls name.
        let files: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        drop(files);
        let other = Pool::builder().workers(1).build().unwrap();
        let load = |value: Value<u64>| value.load().unwrap();
        assert_eq!(soon(other.spawn(load, &value)).await.unwrap(), 1);
        assert_eq!(soon(pool.spawn(load, &value)).await.unwrap(), 1);
    });
}

// ---- memory of the application

fn uint(out: &mut Vec<u8>, number: u64) {
    out.push(0xcf);
    out.extend(number.to_be_bytes());
}

/// `REQUEST`, to an object, with a head and a tail.
fn request(object: u64, ticket: u64, head: &[u8], tail: &[u8]) -> Vec<u8> {
    let mut body = vec![0x96, 1];
    uint(&mut body, object);
    uint(&mut body, ticket);
    body.push(0x90);
    for part in [head, tail] {
        body.push(0xc6);
        body.extend((part.len() as u32).to_be_bytes());
        body.extend(part);
    }
    frame(&body)
}

/// Sends until the other end has all, or has closed, or has not read for a second.
fn send_all(socket: RawFd, mut bytes: &[u8]) -> bool {
    let mut refused = 0;
    while !bytes.is_empty() {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match nix::sys::socket::send(socket, bytes, flags) {
            Ok(sent) => (bytes, refused) = (&bytes[sent..], 0),
            Err(nix::errno::Errno::EAGAIN) if refused < 1000 => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return false,
        }
    }
    true
}

/// What sets a key of a map.
fn set(map: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut head = vec![11];
    head.extend((key.len() as u32).to_le_bytes());
    head.extend(key);
    head.extend(0u64.to_le_bytes());
    request(map, 0, &head, value)
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Flood {
    /// Snapshots of a large map, none of which is read.
    Snapshots,
    /// Long keys without values.
    Keys,
    /// Changes of a large value, told to many watches at once.
    Watches,
    /// Permits of 0 of a semaphore, each under a ticket of its own.
    Permits,
    /// Read locks.
    Reads,
    /// Names of a result.
    Names,
}

/// Tries to make the application take memory. The objects are the first three of their manager.
fn flood(how: Flood, _objects: (Map<u8, u8>, Semaphore, RwLock<u8>)) {
    const MAP: u64 = 1;
    const SEMAPHORE: u64 = 2;
    const RW_LOCK: u64 = 3;
    let manager = manager_socket();
    let many = |of: u64, each: &dyn Fn(u64) -> Vec<u8>| -> Vec<u8> {
        (0..of).flat_map(|n| each(1 << 40 | n)).collect()
    };
    match how {
        Flood::Snapshots => {
            send_all(manager, &set(MAP, &[5], &vec![1; 15 << 20]));
            let snapshots = many(2000, &|ticket| request(MAP, ticket, &[7, 1], &[]));
            send_all(manager, &snapshots);
        }
        Flood::Keys => {
            for n in 0..200u64 {
                let mut key = vec![7; 15 << 20];
                key[..8].copy_from_slice(&n.to_le_bytes());
                if !send_all(manager, &set(MAP, &key, &[])) {
                    break;
                }
            }
        }
        Flood::Watches => {
            let watch = many(10_000, &|ticket| request(MAP, ticket, &[9, 0], &[]));
            send_all(manager, &watch);
            let next = |ticket: u64| {
                let mut head = vec![10];
                head.extend(ticket.to_le_bytes());
                head.extend([0; 8]);
                head.push(2); // for ever
                request(MAP, 1 << 41 | ticket, &head, &[])
            };
            send_all(manager, &many(10_000, &next));
            send_all(manager, &set(MAP, &[5], &vec![1; 15 << 20]));
        }
        Flood::Permits | Flood::Reads => {
            // What is answered is read, or the manager would stop reading.
            std::thread::spawn(move || {
                let mut answers = vec![0; 1 << 16];
                let flags = MsgFlags::empty();
                while nix::sys::socket::recv(manager, &mut answers, flags).is_ok_and(|n| n > 0) {}
            });
            let ask = |ticket| match how {
                Flood::Permits => request(SEMAPHORE, ticket, &[1, 0, 0, 0, 0, 0], &[]),
                _ => request(RW_LOCK, ticket, &[1, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[]),
            };
            for n in 0..3 {
                send_all(manager, &many(50_000, &|ticket| ask(ticket | n << 30)));
            }
        }
        Flood::Names => {
            let count = (64u32 << 20) / 6;
            let mut body = vec![0x94, 8];
            uint(&mut body, procpool::task_id().unwrap().get());
            body.push(0xdd);
            body.extend(count.to_be_bytes());
            for _ in 0..count {
                body.extend([0x95, 0, 0, 0, 0, 0xc0]);
            }
            body.push(0xc0);
            send_all(pool_socket(), &frame(&body));
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    std::process::abort();
}

/// The most memory that this process has had, in MiB (proc_pid_status(5)).
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_worker_that_was_lent_some_objects_takes_little_memory_of_the_application() {
    in_own_process("own_process_flooded");
}

#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn own_process_flooded() {
    use Flood::*;
    if own_dir().is_none() {
        return;
    }
    // 256 MiB of answers wait at most, about as much is made at once, and the allocator keeps some.
    const MOST: u64 = 900;
    for how in [Snapshots, Keys, Watches, Permits, Reads, Names] {
        let pool = pool(1);
        let manager = pool.manager();
        let map = manager.map().unwrap();
        let (semaphore, lock) = (manager.semaphore(5).unwrap(), manager.rwlock(1u8).unwrap());
        let objects = (map.clone(), semaphore.clone(), lock);
        soon(pool.spawn(flood, (how, objects))).await.unwrap_err();
        let most = most_memory();
        assert!(most < MOST, "{how:?}: {most} MiB");
        // The manager serves others.
        let use_it = |semaphore: Semaphore| drop(semaphore.blocking_acquire().unwrap());
        soon(pool.spawn(use_it, &semaphore)).await.unwrap();
        assert!(map.len().is_ok());
    }
}
