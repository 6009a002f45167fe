//! Workers that break the protocol in every way we can think of, at every stage of their life,
//! before a real pool.
//!
//! As in `strange_workers.rs` a thread of the test says what the process is to have said. Up to a
//! point it keeps to the protocol; then it says what it should say broken, by the mutations that
//! the decoders are tried with. Whatever it says: its own tasks get a value or a typed error, no
//! other task does, memory is bounded, nothing is left, and the pool goes on. See `wire/fuzz.rs`
//! for the variables by which one case can be run again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::Pool;
use super::strange_workers::{HANG, Player, builder, framed, hello, launch, played, start_error};
use crate::Yielder;
use crate::error::{ErrorKind, TaskErrorKind};
use crate::process::sys::{self, Target};
use crate::process::testing::{in_own_process, is_own_process, open_fds, threads, wait_until};
use crate::process::{SharedMemory, WorkerMemory};
use crate::wire::claim::Claim;
use crate::wire::counting::peak_of;
use crate::wire::fuzz::mutate::{Rng, mutate};
use crate::wire::fuzz::{Tally, count, run};
use crate::wire::message::{self, Failed, InitFailed, Message, kind};
use futures::StreamExt;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::ftruncate;
use std::collections::HashSet;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where a hostile worker stops keeping to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    BeforeHello,
    Hello,
    Init,
    Ready,
    Running,
    Draining,
}

const STAGES: [Stage; 6] =
    [Stage::BeforeHello, Stage::Hello, Stage::Init, Stage::Ready, Stage::Running, Stage::Draining];

/// How long a hostile worker listens, once it has done its worst, for an answer that may never
/// come.
const PATIENCE: Duration = Duration::from_millis(20);

fn echo(n: u8) -> u8 {
    n
}

/// The played workers say what it does.
fn repeat(_: u8, _: Yielder<u8>) -> u8 {
    unreachable!("no worker of this program runs")
}

/// What a call asks of a played worker.
struct Asked {
    claim: Claim,
    argument: u8,
    yields: bool,
}

fn read_call(mut message: Message<'_>, body: &[u8]) -> Asked {
    let (slot, _attempt) = (message.uint().unwrap(), message.uint::<u8>().unwrap());
    let claim = Claim { slot, id: message.uint().unwrap() };
    let yields = message.uint::<u8>().unwrap() & message::FLAG_YIELDS != 0;
    // Behind the argument stands what the `Yielder` is made of.
    let argument = body[body.len() - 1 - usize::from(yields)];
    Asked { claim, argument, yields }
}

/// So many items of a task.
fn items(id: u64, argument: u8, count: usize) -> Vec<u8> {
    let item = framed(|out| {
        message::item(out, id);
        out.push(argument);
    });
    item.repeat(count)
}

/// So many an honest worker sends.
const ITEMS: usize = 3;

fn nothing() -> Result<(), String> {
    Ok(())
}

/// One worker that is up to no good.
struct Hostile {
    player: Player,
    process: OwnedFd,
    rng: Rng,
    stage: Stage,
}

impl Hostile {
    fn play(mut self) {
        // Whatever it has said: then its process is gone, and with it all doubt about what is to
        // come.
        let _ = self.session();
        end(&self.process);
        while !self.player.hear().is_empty() {}
    }

    /// `None`: there is nothing more to say.
    fn session(&mut self) -> Option<()> {
        if self.stage == Stage::BeforeHello {
            return self.strike(&[]);
        }
        let (_kept, lifeline) = UnixStream::pair().unwrap();
        self.say(
            Stage::Hello,
            &framed(|out| message::control(out, kind::HELLO, &hello())),
            &[lifeline.as_fd()],
        )?;
        loop {
            let body = self.player.hear();
            let Ok(message) = Message::new(&body) else {
                return if self.stage == Stage::Draining {
                    self.strike(&framed(|out| message::done(out, 1)))
                } else {
                    None
                };
            };
            match message.kind {
                kind::WELCOME if self.rng.one_in(4) && self.stage == Stage::Init => {
                    let failed = InitFailed::Error { message: "no".into() };
                    self.say(
                        Stage::Init,
                        &framed(|out| message::control(out, kind::INIT_FAILED, &failed)),
                        &[],
                    )?;
                }
                kind::WELCOME => {
                    self.say(Stage::Init, &framed(message::ready), &[])?;
                    self.say(Stage::Ready, &framed(|out| message::done(out, 0)), &[])?;
                }
                kind::CALL => {
                    let Asked { claim, argument, yields } = read_call(message, &body);
                    let id = claim.id;
                    if !self.player.memory.claims().begin(claim) {
                        continue;
                    }
                    let answer = match self.rng.below(4) {
                        0 if self.stage == Stage::Running => {
                            let texts = |rng: &mut Rng| "é".repeat(rng.length(100));
                            let failed = Failed::Panicked {
                                message: texts(&mut self.rng),
                                location: Some(texts(&mut self.rng)),
                                backtrace: None,
                            };
                            framed(|out| message::failed(out, id, &failed))
                        }
                        // Items that are due or not, in number and before their end or not.
                        1 | 2 if self.stage == Stage::Running => {
                            let count = *self.rng.pick(&[1, ITEMS, 1024, 1025, 3000]);
                            let items = items(id, argument, count);
                            let end = done(id, argument);
                            if self.rng.one_in(4) {
                                [end, items].concat()
                            } else {
                                [items, end].concat()
                            }
                        }
                        _ => {
                            let count = if yields { ITEMS } else { 0 };
                            [items(id, argument, count), done(id, argument)].concat()
                        }
                    };
                    self.say(Stage::Running, &answer, &[])?;
                    self.player.memory.claims().finish(claim);
                }
                _ => {}
            }
        }
    }

    /// Says it as it should be said, unless this is the stage.
    fn say(&mut self, stage: Stage, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> Option<()> {
        if stage == self.stage {
            return self.strike(frame);
        }
        // What stands for `Ready` is no message of an honest worker.
        if stage == Stage::Ready {
            return Some(());
        }
        self.send(frame, descriptors)
    }

    fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Option<()> {
        if descriptors.is_empty() {
            return self.player.socket.write_all(bytes).ok();
        }
        match sys::send_with_fds(self.player.socket.as_fd(), &[IoSlice::new(bytes)], descriptors) {
            Ok(sent) => self.player.socket.write_all(&bytes[sent..]).ok(),
            // The kernel itself refuses them.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.player.socket.write_all(bytes).ok()
            }
            Err(_) => None,
        }
    }

    /// Does its worst with what it should say now. After that it goes on for a while, if anybody
    /// listens.
    fn strike(&mut self, frame: &[u8]) -> Option<()> {
        self.player.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        self.player.socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let (null, _other) = UnixStream::pair().unwrap();
        let others = recorded();
        let mut bytes = frame.to_vec();
        let mut descriptors = if self.stage == Stage::Hello { 1 } else { 0 };
        if self.stage > Stage::Init && self.rng.one_in(3) {
            self.overwrite(&bytes);
        }
        match self.rng.below(12) {
            // The right bytes in the right order, one at a time: no reason to refuse it.
            0 => {
                let (first, rest) = bytes.split_at(bytes.len().min(1));
                self.send(first, &vec![null.as_fd(); descriptors][..])?;
                for byte in rest {
                    self.send(&[*byte], &[])?;
                }
                return Some(());
            }
            // Cut.
            1 => bytes.truncate(self.rng.below(bytes.len() + 1)),
            // The body broken, in a frame that is whole.
            2..=4 => {
                let mut body = bytes.split_off(bytes.len().min(4));
                mutate(&mut body, &others, &mut self.rng);
                bytes = framed(|out| out.extend(&body));
            }
            // The stream broken.
            5 => mutate(&mut bytes, &others, &mut self.rng),
            // Another kind of message, in place of it or before it.
            6 => bytes = framed(|out| out.extend(self.rng.pick(&others))),
            7 => drop(bytes.splice(0..0, framed(|out| out.extend(self.rng.pick(&others))))),
            // Said twice.
            8 => bytes = bytes.repeat(2 + self.rng.length(100)),
            // A length, and not what it says.
            9 => {
                bytes = [&(self.rng.word() as u32 >> self.rng.below(32)).to_le_bytes()[..], &bytes]
                    .concat()
            }
            // Heads within heads.
            10 => {
                let nest = *self.rng.pick(&[
                    &[0x91][..],
                    &[0x81, 0xc0],
                    &[0xdd, 0, 0, 0, 1],
                    &[0xdf, 0xff, 0xff, 0xff, 0xff],
                ]);
                let most = 50_000;
                let times = 1 + self.rng.length(most);
                bytes = framed(|out| {
                    out.extend(frame.get(4..7).unwrap_or_default());
                    out.extend(nest.repeat(times));
                });
            }
            // Descriptors that nobody has asked for.
            _ => descriptors = self.rng.below(60),
        }
        if self.rng.one_in(6) {
            descriptors = self.rng.below(4);
        }
        // In pieces, sometimes each with its own.
        let piece = if self.rng.one_in(4) { 1 + self.rng.length(300) } else { bytes.len().max(1) };
        for bytes in bytes.chunks(piece.max(bytes.len() / 300)) {
            self.send(bytes, &vec![null.as_fd(); descriptors][..])?;
            if !self.rng.one_in(3) {
                descriptors = 0;
            }
        }
        match self.rng.below(4) {
            0 => self.player.socket.shutdown(std::net::Shutdown::Write).ok(),
            1 => None,
            _ => Some(()),
        }
    }
}

/// A copy of what a worker shares with its pool, as words.
fn words_of(memory: &WorkerMemory) -> SharedMemory {
    SharedMemory::from_fd(&memory.fd()).unwrap()
}

impl Hostile {
    /// Does its worst in the memory, where the answer may be as well.
    fn overwrite(&mut self, answer: &[u8]) {
        let memory = words_of(&self.player.memory);
        let (words, rng) = (memory.words(), &mut self.rng);
        let ring = self.player.memory.ring();
        let strange = |rng: &mut Rng| match rng.below(4) {
            0 => rng.word(),
            1 => rng.below(64) as u64,
            2 => (rng.word() >> 45) & !7,
            _ => (rng.below(40) as u64) << 3 | rng.below(8) as u64, // what a claim may look like
        };
        match rng.below(8) {
            // Anything anywhere, or everywhere at the beginning: the note, the positions, the
            // claims.
            0 => (0..rng.length(2000))
                .for_each(|_| rng.pick(words).store(strange(rng), Ordering::Relaxed)),
            1 => words[..600].iter().for_each(|word| word.store(strange(rng), Ordering::Relaxed)),
            // Positions that cannot be, or that could.
            2 => ring.tail.store(strange(rng), Ordering::Release),
            3 => ring.head.store(strange(rng), Ordering::Release),
            4 => rng.pick(&[ring.ring_at, ring.replies]).store(strange(rng), Ordering::Release),
            // Holes.
            5 => {
                let bytes = words.len() as i64 * 8;
                let mode =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(self.player.memory.fd(), mode, 0, bytes).unwrap();
                assert!(ftruncate(self.player.memory.fd(), 8).is_err(), "it is sealed");
            }
            // Replies in the ring: broken, or whole and many.
            6 => {
                let mut bytes = answer.to_vec();
                mutate(&mut bytes, &recorded(), rng);
                while ring.put(&bytes) && !rng.one_in(4) {}
            }
            _ => drop(ring.put(answer)),
        }
        let bells = if rng.one_in(8) { 1000 } else { rng.below(3) };
        let _ = self.player.socket.write_all(&framed(message::bell).repeat(bells));
    }
}

fn done(id: u64, value: u8) -> Vec<u8> {
    framed(|out| {
        message::done(out, id);
        out.push(value);
    })
}

/// Ends a played worker's process; nothing happens if it has ended.
fn end(process: &OwnedFd) {
    let _ = sys::pidfd_send_signal(process.as_fd(), libc::SIGKILL, Target::Process);
}

/// What may be said in the place of something else: all that either side ever says.
fn recorded() -> Vec<Vec<u8>> {
    let mut all = crate::wire::fuzz::messages();
    for id in 0..4 {
        for value in [&[7][..], &[0xc0], &[0xa1, b'x']] {
            let mut out = Vec::new();
            message::done(&mut out, id);
            out.extend(value);
            all.push(out.clone());
            message::worth_another_try(&mut out);
            all.push(out);
        }
        let mut out = Vec::new();
        message::failed(&mut out, id, &Failed::Cancelled);
        all.push(out);
        all.push(items(id, 7, 1).split_off(4));
        let mut out = Vec::new();
        message::started(&mut out, id, 7);
        all.push(out);
        // Objects that nobody has been lent: of a manager, the first object, its parts and kinds,
        // with and without a place.
        for names in [
            &[0x90][..],
            &[0x91, 0x95, 1, 1, 0, 0, 0xc0],
            &[0x92, 0x95, 2, 7, 1, 3, 0x93, 0, 0, 8, 0x95, 1, 2, 9, 9, 0xc0],
        ] {
            for kind in [kind::DONE_NAMING, kind::AGAIN_NAMING] {
                all.push([&[0x94, kind, id as u8], names, &[7]].concat());
            }
        }
    }
    all
}

/// A worker that keeps to the protocol, whoever listens, and then ends. It notes the arguments of
/// its calls.
fn honest(mut player: Player, process: &OwnedFd, heard: &Mutex<HashSet<u8>>) {
    let (_kept, lifeline) = UnixStream::pair().unwrap();
    let bytes = framed(|out| message::control(out, kind::HELLO, &hello()));
    let _ = sys::send_with_fds(player.socket.as_fd(), &[IoSlice::new(&bytes)], &[lifeline.as_fd()]);
    loop {
        let body = player.hear();
        let Ok(message) = Message::new(&body) else { return end(process) };
        let answer = match message.kind {
            kind::WELCOME => framed(message::ready),
            kind::CALL => {
                let Asked { claim, argument, yields } = read_call(message, &body);
                if !player.memory.claims().begin(claim) {
                    continue;
                }
                heard.lock().unwrap().insert(argument);
                let answer = done(claim.id, argument);
                if yields {
                    let _ = player.socket.write_all(&items(claim.id, argument, ITEMS));
                }
                // Small replies go by the outbox, as a rule.
                if !yields && player.memory.ring().put(&answer) {
                    player.memory.claims().finish(claim);
                    if player.memory.ring().wants_bell() {
                        let _ = player.socket.write_all(&framed(message::bell));
                    }
                    continue;
                }
                answer
            }
            _ => continue,
        };
        let _ = player.socket.write_all(&answer);
    }
}

/// One pool of two workers, of which one is hostile: what becomes of the tasks of both, and of the
/// pool.
fn case(rng: &mut Rng, tally: &mut Tally) {
    let stage = *rng.pick(&STAGES);
    let heard = Arc::new(Mutex::new(HashSet::new()));
    let players = Arc::new(Mutex::new(Vec::new()));
    let options = builder({
        let (heard, players, started, rng) =
            (Arc::clone(&heard), Arc::clone(&players), AtomicUsize::new(0), Rng(rng.word()));
        move || {
            let (launched, socket, memory) = launch(Command::new("sleep").arg("1000"));
            let player = Player::new(socket, memory);
            let process = launched.child.pidfd().try_clone_to_owned().unwrap();
            let thread = if started.fetch_add(1, Ordering::Relaxed) == 0 {
                let hostile = Hostile { player, process, rng, stage };
                std::thread::spawn(move || hostile.play())
            } else {
                let heard = Arc::clone(&heard);
                std::thread::spawn(move || honest(player, &process, &heard))
            };
            players.lock().unwrap().push(thread);
            Ok(launched)
        }
    });
    let options = options.workers(2);
    let options = if rng.one_in(3) { options.on_worker_start(nothing, ()) } else { options };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (closes_early, drains) = (rng.one_in(5), rng.one_in(2));
    let ((), peak) = peak_of(|| {
        runtime.block_on(serve(
            options.build().unwrap(),
            stage,
            &heard,
            closes_early,
            drains,
            tally,
        ))
    });
    // What it says is no longer than some 250 KB.
    assert!(peak < 3 << 20, "{peak} bytes");
    // Not under the lock: a worker may be starting at this moment.
    let all = std::mem::take(&mut *players.lock().unwrap());
    all.into_iter().for_each(|player| player.join().unwrap());
    count(tally, &format!("{stage:?}"));
}

async fn serve(
    pool: Pool,
    stage: Stage,
    heard: &Mutex<HashSet<u8>>,
    closes_early: bool,
    drains: bool,
    tally: &mut Tally,
) {
    let handles: Vec<_> = (1..=4).map(|n| (n, pool.spawn(echo, n))).collect();
    let streams: Vec<_> = (100..102).map(|n| (n, pool.stream(repeat, n))).collect();
    let closing = async {
        if closes_early {
            tokio::time::timeout(HANG, pool.shutdown()).await.expect("the pool does not end");
        }
        tokio::time::timeout(HANG, pool.ready()).await.expect("the start hangs")
    };
    let outcomes = async {
        let mut outcomes = Vec::new();
        for (n, handle) in handles {
            outcomes.push((n, tokio::time::timeout(HANG, handle).await.expect("a task hangs")));
        }
        for (n, mut stream) in streams {
            let mut came = 0;
            while let Some(item) =
                tokio::time::timeout(HANG, stream.next()).await.expect("a stream hangs")
            {
                came += usize::from(item.is_ok_and(|item| item == n));
            }
            let is_an_honest_one = heard.lock().unwrap().contains(&n);
            assert!(!is_an_honest_one || came == ITEMS, "{came} items of an honest worker");
            let end = tokio::time::timeout(HANG, stream.finish()).await.expect("a stream hangs");
            outcomes.push((n, end));
        }
        for (n, outcome) in outcomes {
            let is_an_honest_one = heard.lock().unwrap().contains(&n);
            assert!(
                !is_an_honest_one || outcome.as_ref().is_ok_and(|value| *value == n),
                "a task of an honest worker: {outcome:?}"
            );
            let Err(error) = outcome else { continue };
            count(tally, &format!("{:?}", error.kind()));
            match error.kind() {
                // Told to all who wait, if no worker is left.
                TaskErrorKind::StartFailed | TaskErrorKind::InitFailed => {
                    assert!(stage < Stage::Running, "{stage:?}: {error}")
                }
                TaskErrorKind::ProtocolViolation
                | TaskErrorKind::WorkerDied
                | TaskErrorKind::Panicked
                | TaskErrorKind::Cancelled
                | TaskErrorKind::ArgumentDecode
                | TaskErrorKind::ResultEncode
                | TaskErrorKind::TooLarge
                | TaskErrorKind::ResultDecode => {}
                other => panic!("{other:?}: {error}"),
            }
        }
    };
    if let (Err(error), ()) = futures::future::join(closing, outcomes).await {
        let kind = error.kind();
        assert!(stage < Stage::Running || kind == ErrorKind::PoolClosed, "{stage:?}: {error}");
        count(tally, &format!("{kind:?}"));
    }
    if closes_early {
        return;
    }
    // It goes on, as soon as a start is tried again.
    for n in (5..100).cycle() {
        match tokio::time::timeout(HANG, pool.spawn(echo, n)).await.expect("a task hangs") {
            Ok(value) if value == n => break,
            outcome => assert!(
                !heard.lock().unwrap().contains(&n),
                "a task of an honest worker: {outcome:?}"
            ),
        }
        tokio::task::yield_now().await;
    }
    if drains || stage == Stage::Draining {
        tokio::time::timeout(HANG, pool.shutdown()).await.expect("the pool does not end");
    }
}

/// Children of this process, zombies included.
fn children() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| task.unwrap().path().join("children"));
    tasks
        .map(|file| std::fs::read_to_string(file).unwrap_or_default().split_whitespace().count())
        .sum()
}

#[test]
fn workers_that_break_the_protocol_cost_their_own_tasks_and_leave_nothing() {
    in_own_process("pool::hostile_workers::hostile_workers");
}

#[test]
#[ignore = "is run by workers_that_break_the_protocol_cost_their_own_tasks_and_leave_nothing"]
fn hostile_workers() {
    if !is_own_process() {
        return;
    }
    case(&mut Rng(0), &mut Tally::new()); // what is made once is there
    wait_until("the first pool's processes are gone", || children() == 0);
    let (fds_before, threads_before) = (open_fds(), threads());
    let tally = run("workers", 400, case);
    wait_until("all processes are gone", || children() == 0);
    wait_until("all descriptors are closed", || open_fds() <= fds_before);
    wait_until("all threads have ended", || threads() <= threads_before);
    for stage in STAGES {
        assert!(tally.contains_key(&format!("{stage:?}")), "no {stage:?} in {tally:?}");
    }
    for what in [
        "ProtocolViolation",
        "WorkerDied",
        "ResultDecode",
        "NotAWorker",
        "DiedAtStart",
        "PoolClosed",
    ] {
        assert!(tally.contains_key(what), "no {what} in {tally:?}");
    }
}

/// Each of these costs the worker's own task, says why, and takes no memory.
#[test]
fn items_that_are_not_due_break_the_protocol() {
    type Play = fn(&mut Player, u64);
    let plays: [(&str, bool, Play, &str); 6] = [
        (
            "a start that nobody asked about",
            false,
            |player, id| {
                player.socket.write_all(&framed(|out| message::started(out, id, 1))).unwrap()
            },
            "which it was not to tell",
        ),
        (
            "of a task that does not yield",
            false,
            |player, id| player.socket.write_all(&items(id, 1, 1)).unwrap(),
            "which it was not to send",
        ),
        (
            "of a task that it does not have",
            true,
            |player, id| player.socket.write_all(&items(id + 1, 1, 1)).unwrap(),
            "which it was not to send",
        ),
        (
            "without end",
            true,
            |player, id| while player.socket.write_all(&items(id, 1, 1000)).is_ok() {},
            "no credit for it",
        ),
        (
            "large ones without end",
            true,
            |player, id| {
                let item = framed(|out| {
                    message::item(out, id);
                    out.extend([0xc5, 0xff, 0xff]);
                    out.resize(out.len() + 0xffff, 0);
                });
                while player.socket.write_all(&item).is_ok() {}
            },
            "no credit for it",
        ),
        (
            "that is no value at all",
            true,
            |player, id| {
                let item = framed(|out| message::item(out, id));
                player.socket.write_all(&item).unwrap();
            },
            "an item that is not one value",
        ),
    ];
    for (what, yields, play, reason) in plays {
        let options = played(move |n, player| {
            player.become_ready();
            let id = player.call();
            if n == 0 {
                play(player, id);
            } else {
                player.answer(id, 42);
            }
            player.wait();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ((), peak) = peak_of(|| {
            runtime.block_on(async {
                let pool = options.build().unwrap();
                let error = if yields {
                    // Its reader does not read.
                    let stream = pool.stream(repeat, 1);
                    let abort = stream.abort_handle();
                    let end = async {
                        while !abort.is_finished() {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    };
                    tokio::time::timeout(HANG, end).await.expect("it hangs");
                    stream.finish().await.unwrap_err()
                } else {
                    tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.unwrap().unwrap_err()
                };
                assert_eq!(error.kind(), TaskErrorKind::ProtocolViolation, "{what}: {error}");
                assert!(error.to_string().contains(reason), "{what}: {error}");
                let next = tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.unwrap();
                assert_eq!(next.unwrap(), 42, "{what}");
            });
        });
        assert!(peak < 2 << 20, "{what}: {peak} bytes");
    }
}

#[test]
fn a_length_without_a_body_costs_no_memory() {
    // Both as much as may be, and more.
    for (length, reason) in [((1u32 << 30) - 1, "closed its socket"), (u32::MAX, "is the limit")] {
        let options = played(move |n, player| {
            player.become_ready();
            let id = player.call();
            if n == 0 {
                player.socket.write_all(&length.to_le_bytes()).unwrap();
                player.socket.write_all(&[0x93, kind::DONE, 1, 1]).ok(); // as a message may begin
                player.socket.write_all(&[0x93; 100]).ok();
                player.socket.shutdown(std::net::Shutdown::Both).ok();
            } else {
                player.answer(id, 42);
            }
            player.wait();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ((), peak) = peak_of(|| {
            runtime.block_on(async {
                let pool = options.build().unwrap();
                let error = tokio::time::timeout(HANG, pool.spawn(echo, 1))
                    .await
                    .expect("it hangs")
                    .unwrap_err();
                assert_eq!(error.kind(), TaskErrorKind::ProtocolViolation, "{error}");
                assert!(error.to_string().contains(reason), "{error}");
                assert_eq!(
                    tokio::time::timeout(HANG, pool.spawn(echo, 1))
                        .await
                        .expect("it hangs")
                        .unwrap(),
                    42
                );
            });
        });
        assert!(peak < 1 << 20, "{peak} bytes for a length of {length}");
    }
}

#[tokio::test]
async fn descriptors_that_nobody_asked_for_do_not_pile_up() {
    for says_hello in [false, true] {
        let pool = played(move |_, player| {
            if says_hello {
                player.hello(|_| {});
                player.hear();
            }
            // A frame that has no end, and two descriptors with each byte of it.
            let (descriptor, _other) = UnixStream::pair().unwrap();
            for byte in 60_000u32.to_le_bytes().into_iter().chain([0; 100]) {
                match sys::send_with_fds(
                    player.socket.as_fd(),
                    &[IoSlice::new(&[byte])],
                    &[descriptor.as_fd(); 2],
                ) {
                    // The kernel itself has refused them.
                    Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                        let _ = player.socket.shutdown(std::net::Shutdown::Both);
                    }
                    _ => {}
                }
            }
            player.hear();
        });
        let error = start_error(&pool.build().unwrap()).await;
        assert_eq!(error.kind(), ErrorKind::NotAWorker);
        assert!(says_hello || error.to_string().contains("descriptor"), "{error}");
    }
}

/// A descriptor may be such that its closing takes as long as its maker likes.
#[test]
fn a_ready_worker_can_hand_over_no_descriptor_where_the_kernel_can_refuse_them() {
    let (a, _b) = UnixStream::pair().unwrap();
    if sys::refuse_descriptors(a.as_fd()).is_err() {
        return; // before Linux 6.16
    }
    let (tell, told) = std::sync::mpsc::channel();
    let options = played(move |_, player| {
        player.become_ready();
        let (descriptor, _other) = UnixStream::pair().unwrap();
        let sent =
            sys::send_with_fds(player.socket.as_fd(), &[IoSlice::new(&[0])], &[descriptor.as_fd()]);
        tell.send(sent.map_err(|error| error.raw_os_error())).unwrap();
        let id = player.call();
        player.answer(id, 1);
        player.wait();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = options.build().unwrap();
        assert_eq!(
            tokio::time::timeout(HANG, pool.spawn(echo, 1)).await.expect("it hangs").unwrap(),
            1
        );
    });
    assert_eq!(told.recv().unwrap(), Err(Some(libc::EPERM)));
}

/// Who holds a copy of a dead worker's socket may write for ever.
#[test]
fn what_is_written_after_a_worker_has_ended_keeps_nobody_waiting() {
    let writers = Arc::new(Mutex::new(Vec::new()));
    let options = builder({
        let (writers, started) = (Arc::clone(&writers), AtomicUsize::new(0));
        move || {
            let (launched, socket, memory) = launch(Command::new("sleep").arg("1000"));
            let process = launched.child.pidfd().try_clone_to_owned().unwrap();
            let mut player = Player::new(socket, memory);
            if started.fetch_add(1, Ordering::Relaxed) > 0 {
                std::thread::spawn(move || honest(player, &process, &Mutex::default()));
                return Ok(launched);
            }
            let all = Arc::clone(&writers);
            std::thread::spawn(move || {
                player.become_ready();
                player.call();
                player.socket.write_all(&(1u32 << 29).to_le_bytes()).unwrap();
                player.socket.write_all(&[0x93, kind::DONE, 1, 1]).unwrap(); // as a message may begin
                let socket = player.socket.try_clone().unwrap();
                let writer =
                    std::thread::spawn(
                        move || while (&socket).write_all(&[0; 32 << 10]).is_ok() {},
                    );
                all.lock().unwrap().push(writer);
                end(&process);
            });
            Ok(launched)
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ((), peak) = peak_of(|| {
        runtime.block_on(async {
            let pool = options.build().unwrap();
            let error = tokio::time::timeout(HANG, pool.spawn(echo, 1))
                .await
                .expect("it hangs")
                .unwrap_err();
            assert_eq!(error.kind(), TaskErrorKind::WorkerDied);
            assert_eq!(
                tokio::time::timeout(HANG, pool.spawn(echo, 2)).await.expect("it hangs").unwrap(),
                2
            );
        });
    });
    assert!(peak < 16 << 20, "{peak} bytes");
    writers.lock().unwrap().drain(..).for_each(|writer| writer.join().unwrap());
}
