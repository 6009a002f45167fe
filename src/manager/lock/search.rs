//! An exhaustive search over the interleavings of a few processes that lock, wait, cancel, are
//! late, roll back and die. It runs the very functions that the lock uses.
//!
//! **Steps.** A step runs one of these functions up to and including its next operation on the
//! lock's word. An operation on what only the holder touches (the buffer that is not the value)
//! belongs to the step before it, unless a process reads without the lock (`Setup::reader`): then
//! every operation is a step. A process may die between any two operations, also where there is no
//! step.
//!
//! **Stopping a function.** The memory returns an error where the function is to stop. The next
//! time, the function runs again from its beginning, and is given the results that it was given
//! before (`log`). What a function does depends on nothing but its code and these results, so this
//! is exact. The manager's functions are stopped in the same way: clients step in between.
//!
//! **The value.** It is a counter, in two words that belong together: what is read must be what was
//! committed last, whole. It may also be out of line (`Setup::larges`): then it is committed by a
//! message, and the manager keeps it and gives it to readers. A commit by message may find the
//! manager full (`Setup::fulls`): then it is a roll-back.
//!
//! **Stopped processes.** A process may be stopped between any two steps (`Setup::stops`), for ever
//! or for a while. Then the manager's timer is a step that must happen: a grant that the process
//! does not accept is revoked if others wait, and a lock that it has left to the manager without
//! saying so is checked.
//!
//! **Checked in every state**:
//!
//! * at most one process holds the lock, and it owns the word;
//! * a holder finds what was committed last, and is told whether a holder has ended without
//!   releasing;
//! * no living process waits for ever (no step is left, and a process is not done), unless for one
//!   that was stopped while it holds the lock;
//! * at the end the lock is free and the value is right.

use super::kept::Kept;
use super::waiters::{Broken, Grant, Waiters, Waiting};
use super::word::{self, Attempt, Memory, Owner, Release, Released, Stored, Word};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;

/// Word, fencing number, two lengths, two buffers of two words.
const WORDS: usize = 8;

// ---- the memory that stops

struct Stop;

/// What is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// A grant is accepted whatever its version.
    NoVersion,
    /// A death looks at the dead one's own locks only.
    OwnOnly,
    /// Who leaves the lock to the manager does not say so.
    NoBell,
    /// A release writes the word, whatever it has become.
    BlindRelease,
    /// There is but one buffer.
    OneBuffer,
    /// The value is written after the release.
    LateWrite,
    /// A death leaves no mark.
    NoMark,
    /// A grant to one who has given up is not taken back.
    KeptGrant,
    /// Who commits a value that has room does not ask whether the manager keeps one.
    NotAsked,
    /// What the manager keeps it keeps for the other buffer.
    OtherBuffer,
    /// The manager looks after an end before it has read what was sent.
    DeathFirst,
    /// A commit for which there is no room leaves no mark.
    FullUnmarked,
    /// Who was late does not say that he is there.
    NotBack,
    /// Who says that he is there is taken in, whether he was late or not.
    AlwaysBack,
}

struct Stopping<'a> {
    words: RefCell<&'a mut [u64; WORDS]>,
    /// What was given before, and what is given now.
    log: RefCell<Vec<u64>>,
    at: Cell<usize>,
    /// Operations that may still be done.
    left: Cell<usize>,
    /// An operation that others can see has been done in this step.
    stepped: Cell<bool>,
    /// All operations can be seen.
    fine: bool,
    bug: Option<Bug>,
}

impl<'a> Stopping<'a> {
    fn new(
        words: &'a mut [u64; WORDS],
        log: Vec<u64>,
        left: usize,
        fine: bool,
        bug: Option<Bug>,
    ) -> Self {
        let (at, left, stepped) = (Cell::new(0), Cell::new(left), Cell::new(false));
        Self { words: RefCell::new(words), log: RefCell::new(log), at, left, stepped, fine, bug }
    }

    fn op(&self, at: usize, act: impl FnOnce(&mut [u64; WORDS]) -> u64) -> Result<u64, Stop> {
        let place = self.at.replace(self.at.get() + 1);
        if let Some(given) = self.log.borrow().get(place) {
            return Ok(*given);
        }
        let seen = self.fine || at == 0;
        if self.left.get() == 0 || seen && self.stepped.get() {
            return Err(Stop);
        }
        self.left.set(self.left.get() - 1);
        self.stepped.set(self.stepped.get() || seen);
        let given = act(&mut self.words.borrow_mut());
        self.log.borrow_mut().push(given);
        Ok(given)
    }
}

impl Memory for Stopping<'_> {
    type Stop = Stop;

    fn len(&self) -> usize {
        WORDS
    }

    fn load(&self, at: usize, _: Ordering) -> Result<u64, Stop> {
        self.op(at, |words| words[at])
    }

    fn store(&self, at: usize, value: u64) -> Result<(), Stop> {
        self.op(at, |words| {
            let mut at = at;
            if self.bug == Some(Bug::OneBuffer) && at >= word::HEAD {
                at = word::HEAD + at % 2;
            }
            words[at] = value;
            0
        })
        .map(drop)
    }

    fn compare_exchange(&self, at: usize, old: u64, new: u64) -> Result<Result<u64, u64>, Stop> {
        let found = self.op(at, |words| {
            let found = words[at];
            let blind =
                self.bug == Some(Bug::BlindRelease) && old & 0xfffff > 1 && new & 0xfffff <= 1;
            if found == old || blind {
                words[at] = new;
                return old;
            }
            found
        })?;
        Ok(if found == old { Ok(found) } else { Err(found) })
    }

    fn fetch_or(&self, at: usize, bits: u64) -> Result<u64, Stop> {
        self.op(at, |words| {
            let found = words[at];
            words[at] |= bits;
            found
        })
    }

    fn fetch_and(&self, at: usize, bits: u64) -> Result<u64, Stop> {
        self.op(at, |words| {
            let found = words[at];
            words[at] &= bits;
            found
        })
    }

    fn fence(&self, _: Ordering) {}
}

// ---- the world

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ticket {
    process: u8,
    number: u8,
}

impl Waiting for Ticket {
    fn owner(self) -> Owner {
        owner(self.process)
    }
}

fn owner(process: u8) -> Owner {
    Owner::new(u32::from(process) + 2, 0)
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Trying,
    Parked(Ticket),
    Accepting(Ticket, u64),
    /// Has the lock, and has yet to decide.
    Holding(Word),
    /// Reads the value, or has had it from the manager, adds one, releases; the new one may have no
    /// room.
    Adding {
        held: Word,
        fetched: Option<u8>,
        large: bool,
    },
    /// Releases as it was, and leaves the mark: a task that is stopped, or whose limit ran out.
    RollingBack(Word),
    /// Releases as it was, having looked only.
    Leaving(Word),
    /// Has left the lock to the manager, and has yet to say so.
    Ringing,
    /// Reads without the lock; with what had been committed when it began.
    Snapshot(u8),
    /// The same, of a value that the manager keeps.
    Fetching(u8),
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Thread {
    doing: Doing,
    /// What the function under way has been given so far.
    log: Vec<u64>,
    rounds: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ToManager {
    Park(Ticket),
    Back(Ticket),
    Cancel(Ticket),
    Rang,
    /// The holder leaves it with a value.
    Commit {
        process: u8,
        value: u8,
        large: bool,
    },
    /// The same, and there is no room for it.
    Full(u8),
}

/// What the manager is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Managing {
    Message(ToManager),
    Death(u8),
    Revoking,
    /// This one's time is up.
    TimedOut(Ticket),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    alive: bool,
    stopped: bool,
    /// The manager has heard of its end.
    buried: bool,
    /// For whom, and at which version; without one he is refused.
    mail: Vec<(Ticket, Option<u64>)>,
    channel: Vec<ToManager>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    words: [u64; WORDS],
    threads: Vec<Thread>,
    processes: Vec<Process>,
    waiters: Waiters<Ticket>,
    managing: Option<(Managing, Vec<u64>)>,
    kept: Kept<u8>,
    /// The commit that the manager is at has been counted.
    counted: bool,
    tickets: u8,
    committed: u8,
    /// Somebody has ended without releasing, and nobody has been told.
    mark_due: bool,
    kills: u8,
    cancels: u8,
    revokes: u8,
    stops: u8,
    limits: u8,
    rollbacks: u8,
    looks: u8,
    larges: u8,
    fulls: u8,
}

struct Setup {
    /// The process of each thread.
    threads: &'static [u8],
    rounds: u8,
    kills: u8,
    cancels: u8,
    /// Grants that come too late to processes that are not stopped.
    revokes: u8,
    /// Processes that are stopped.
    stops: u8,
    /// Waiters whose time is up, by the manager's clock.
    limits: u8,
    rollbacks: u8,
    looks: u8,
    /// Commits of values that have no room in their place; the first value is one of them if there
    /// are any.
    larges: u8,
    /// Commits by message for which the manager has no room.
    fulls: u8,
    /// A thread more, of a process of its own, which reads without the lock.
    reader: bool,
    /// It begins when the first thread has the lock and all others are parked, in order.
    in_line: bool,
    bug: Option<Bug>,
}

const CALM: Setup = Setup {
    threads: &[0, 1],
    rounds: 1,
    kills: 0,
    cancels: 0,
    revokes: 0,
    stops: 0,
    limits: 0,
    rollbacks: 0,
    looks: 0,
    larges: 0,
    fulls: 0,
    reader: false,
    in_line: false,
    bug: None,
};

fn look(world: &World) -> Word {
    word::look(&Stopping::new(&mut world.words.clone(), Vec::new(), 1, false, None))
        .unwrap_or_else(|Stop| unreachable!())
}

/// Where the value of this word stands.
fn stored(world: &World, word: Word) -> Stored {
    word::stored(&Stopping::new(&mut world.words.clone(), Vec::new(), 1, false, None), word)
        .unwrap_or_else(|Stop| unreachable!())
}

/// What came of running a function for one step.
enum Ran<T> {
    /// It was stopped; with all that it has been given.
    Stopped(Vec<u64>),
    Ended(T),
}

type Next = (World, &'static str);

impl Setup {
    fn start(&self) -> World {
        let thread = |doing| Thread { doing, log: Vec::new(), rounds: self.rounds };
        let mut threads: Vec<_> = self.threads.iter().map(|_| thread(Doing::Trying)).collect();
        let mut processes = self.threads.iter().max().map_or(0, |last| usize::from(*last) + 1);
        if self.reader {
            threads.push(thread(Doing::Snapshot(0)));
            processes += 1;
        }
        let process = Process {
            alive: true,
            stopped: false,
            buried: false,
            mail: Vec::new(),
            channel: Vec::new(),
        };
        let mut words = [0; WORDS];
        // The value 0, whole.
        (words[2], words[3], words[4], words[5]) = (16, 16, 0, !0);
        if self.larges > 0 {
            words[2] = word::OUTSIDE;
        }
        let world = World {
            words,
            threads,
            processes: vec![process; processes],
            waiters: Waiters::new(),
            managing: None,
            kept: Kept::new((self.larges > 0).then_some(0)),
            counted: false,
            tickets: 0,
            committed: 0,
            mark_due: false,
            kills: self.kills,
            cancels: self.cancels,
            revokes: self.revokes,
            stops: self.stops,
            limits: self.limits,
            rollbacks: self.rollbacks,
            looks: self.looks,
            larges: self.larges,
            fulls: self.fulls,
        };
        if self.in_line { self.lined_up(world) } else { world }
    }

    fn lined_up(&self, mut world: World) -> World {
        let well = "nothing has gone wrong yet";
        for index in 0..world.threads.len() {
            while world.threads[index].doing == Doing::Trying {
                world = self.function_step(&world, index).expect(well).0;
            }
            while let Some(message) =
                world.processes[usize::from(self.process_of(index))].channel.pop()
            {
                world.managing = Some((Managing::Message(message), Vec::new()));
                while world.managing.is_some() {
                    world = self.manage(&world).expect(well);
                }
            }
        }
        world
    }

    fn process_of(&self, thread: usize) -> u8 {
        self.threads
            .get(thread)
            .copied()
            .unwrap_or_else(|| self.threads.iter().max().map_or(0, |last| last + 1))
    }

    /// Runs a function for one step, or only so many operations of it.
    fn run<T>(
        &self,
        words: &mut [u64; WORDS],
        log: &[u64],
        left: usize,
        f: impl FnOnce(&Stopping<'_>) -> Result<T, Stop>,
    ) -> Ran<T> {
        let memory = Stopping::new(words, log.to_vec(), left, self.reader, self.bug);
        match f(&memory) {
            Ok(value) => Ran::Ended(value),
            Err(Stop) => Ran::Stopped(memory.log.into_inner()),
        }
    }

    /// All steps: those that must go on happening, and those that may.
    fn steps(
        &self,
        world: &World,
        must: &mut Vec<Next>,
        may: &mut Vec<Next>,
    ) -> Result<(), String> {
        for index in 0..world.threads.len() {
            let process = &world.processes[usize::from(self.process_of(index))];
            if process.alive && !process.stopped {
                self.thread_steps(world, index, must, may)?;
            }
        }
        for number in 0..world.processes.len() {
            self.process_steps(world, number, must, may);
        }
        self.manager_steps(world, must, may)
    }

    fn thread_steps(
        &self,
        world: &World,
        index: usize,
        must: &mut Vec<Next>,
        may: &mut Vec<Next>,
    ) -> Result<(), String> {
        let process = self.process_of(index);
        let thread = &world.threads[index];
        let now = |doing: Doing| {
            let mut next = world.clone();
            next.threads[index].doing = doing;
            next.threads[index].log.clear();
            next
        };
        let finished = |world: &mut World| {
            let thread = &mut world.threads[index];
            thread.rounds -= 1;
            thread.doing = if thread.rounds == 0 { Doing::Done } else { Doing::Trying };
        };
        let tell = |world: &mut World, message| {
            world.processes[usize::from(process)].channel.push(message)
        };
        match thread.doing {
            Doing::Trying
            | Doing::Accepting(..)
            | Doing::Adding { .. }
            | Doing::RollingBack(_)
            | Doing::Leaving(_)
            | Doing::Snapshot(_) => {
                let (whole, died_within) = self.function_step(world, index)?;
                must.push((whole, "thread"));
                if world.kills > 0 {
                    may.extend(
                        died_within
                            .into_iter()
                            .map(|world| (self.killed(world, process), "died within")),
                    );
                }
            }
            Doing::Holding(word) => {
                // What the manager keeps it gives between two things that it does.
                let outside = stored(world, word) == Stored::Outside;
                if !outside || world.managing.is_none() {
                    let fetched = world.kept.of(word).copied().filter(|_| outside);
                    must.push((now(Doing::Adding { held: word, fetched, large: false }), "adds"));
                    if world.larges > 0 {
                        let mut next = now(Doing::Adding { held: word, fetched, large: true });
                        next.larges -= 1;
                        may.push((next, "makes it large"));
                    }
                }
                if world.rollbacks > 0 {
                    let mut next = now(Doing::RollingBack(word));
                    next.rollbacks -= 1;
                    may.push((next, "is stopped"));
                }
                if world.looks > 0 {
                    let mut next = now(Doing::Leaving(word));
                    next.looks -= 1;
                    may.push((next, "only looks"));
                }
            }
            Doing::Ringing => {
                let mut next = now(Doing::Trying);
                finished(&mut next);
                if self.bug != Some(Bug::NoBell) {
                    tell(&mut next, ToManager::Rang);
                }
                must.push((next, "rings"));
            }
            Doing::Fetching(from) => {
                let word = look(world);
                if world.managing.is_some() {
                    // not now
                } else if stored(world, word) == Stored::Outside {
                    let value = world.kept.of(word).copied();
                    if !value.is_some_and(|value| (from..=world.committed).contains(&value)) {
                        return Err(format!(
                            "a stale snapshot of what the manager keeps: {value:?}"
                        ));
                    }
                    must.push((now(Doing::Done), "fetches"));
                } else {
                    must.push((now(Doing::Snapshot(from)), "looks again"));
                }
            }
            Doing::Parked(_) | Doing::Done => {}
        }
        // A waiter gives up (and then tries anew, or its time is up: it is done).
        if let Doing::Parked(ticket) | Doing::Accepting(ticket, _) = thread.doing
            && thread.log.is_empty()
            && world.cancels > 0
        {
            for doing in [Doing::Trying, Doing::Done] {
                let mut next = now(doing);
                next.cancels -= 1;
                tell(&mut next, ToManager::Cancel(ticket));
                may.push((next, "gives up"));
            }
        }
        Ok(())
    }

    /// One step of the function that a thread is in; and the worlds in which it has got less far,
    /// for its process to die there.
    fn function_step(&self, world: &World, index: usize) -> Result<(World, Vec<World>), String> {
        let mut died_within = Vec::new();
        for left in 1.. {
            let mut next = world.clone();
            let ended = self.function(&mut next, index, left)?;
            let stopped_early =
                !ended && next.threads[index].log.len() == world.threads[index].log.len() + left;
            if !stopped_early {
                return Ok((next, died_within));
            }
            died_within.push(next);
        }
        unreachable!("a function ends or is stopped")
    }

    /// Runs a thread's function; gives whether it has ended.
    fn function(&self, world: &mut World, index: usize, left: usize) -> Result<bool, String> {
        let process = self.process_of(index);
        let me = owner(process);
        let Thread { doing, log, .. } = world.threads[index].clone();
        let attempt = |world: &mut World, ran, otherwise: &dyn Fn(&mut World)| {
            match ran {
                Ran::Stopped(log) => {
                    world.threads[index].log = log;
                    return Ok(false);
                }
                Ran::Ended(Attempt::Held(word)) => {
                    if world.mark_due && !word.is_recovered() {
                        return Err("a holder is not told that another did not end well".to_owned());
                    }
                    world.threads[index].doing = Doing::Holding(word);
                }
                Ran::Ended(Attempt::Busy) => otherwise(world),
                Ran::Ended(Attempt::Broken) => return Err("broken".to_owned()),
            }
            world.threads[index].log.clear();
            Ok(true)
        };
        let release = |world: &mut World, ran| match ran {
            Ran::Stopped(log) => {
                world.threads[index].log = log;
                Ok(false)
            }
            Ran::Ended(Released::Broken) => Err("a release finds the word changed".to_owned()),
            Ran::Ended(released) => {
                let thread = &mut world.threads[index];
                thread.log.clear();
                if released == Released::Ring {
                    thread.doing = Doing::Ringing;
                } else {
                    thread.rounds -= 1;
                    thread.doing = if thread.rounds == 0 { Doing::Done } else { Doing::Trying };
                }
                Ok(true)
            }
        };
        match doing {
            Doing::Trying => {
                let ran =
                    self.run(&mut world.words, &log, left, |memory| word::try_lock(memory, me));
                attempt(world, ran, &|world| {
                    world.tickets += 1;
                    let ticket = Ticket { process, number: world.tickets };
                    world.threads[index].doing = Doing::Parked(ticket);
                    world.processes[usize::from(process)].channel.push(ToManager::Park(ticket));
                })
            }
            Doing::Accepting(ticket, version) => {
                let version = match self.bug {
                    Some(Bug::NoVersion) => word::look(&Stopping::new(
                        &mut world.words.clone(),
                        Vec::new(),
                        1,
                        false,
                        None,
                    ))
                    .map_or(version, Word::version),
                    _ => version,
                };
                let ran = self
                    .run(&mut world.words, &log, left, |memory| word::accept(memory, me, version));
                attempt(world, ran, &|world| {
                    world.threads[index].doing = Doing::Parked(ticket);
                    if self.bug != Some(Bug::NotBack) {
                        world.processes[usize::from(process)].channel.push(ToManager::Back(ticket));
                    }
                })
            }
            Doing::Adding { held, fetched, large } => {
                let committed = u64::from(world.committed);
                let ran = self.run(&mut world.words, &log, left, |memory| {
                    let mut value = [0; 2];
                    match word::stored(memory, held)? {
                        Stored::Here(16) => {
                            let mut words = value.iter_mut();
                            word::read(memory, held, 2, |word| *words.next().expect("two") = word)?;
                        }
                        Stored::Outside => {
                            value =
                                fetched.map_or(value, |value| [u64::from(value), !u64::from(value)])
                        }
                        Stored::Here(_) | Stored::Broken => {}
                    }
                    let right = value == [committed, !committed];
                    if large || self.bug != Some(Bug::NotAsked) && word::has_outside(memory)? {
                        let held = word::is_held(memory, held)?;
                        return Ok((right, if held { None } else { Some(Released::Broken) })); // the manager is told
                    }
                    let new = [value[0] + 1, !(value[0] + 1)];
                    let how = Release { commit: true, recovered: Some(false) };
                    if self.bug == Some(Bug::LateWrite) {
                        let released = word::release(memory, held, how)?;
                        word::write(memory, held, 16, new.into_iter())?;
                        return Ok((right, Some(released)));
                    }
                    word::write(memory, held, 16, new.into_iter())?;
                    Ok((right, Some(word::release(memory, held, how)?)))
                });
                let ran = match ran {
                    Ran::Ended((false, _)) => {
                        return Err(
                            "a holder finds another value than was committed last".to_owned()
                        );
                    }
                    Ran::Ended((true, None)) => {
                        let message =
                            ToManager::Commit { process, value: world.committed + 1, large };
                        world.processes[usize::from(process)].channel.push(message);
                        return release(world, Ran::Ended(Released::Free));
                    }
                    Ran::Ended((true, Some(released))) => Ran::Ended(released),
                    Ran::Stopped(log) => Ran::Stopped(log),
                };
                let ended = release(world, ran)?;
                if ended {
                    world.committed += 1;
                    world.mark_due = false; // it was told, and took the mark away
                }
                Ok(ended)
            }
            Doing::RollingBack(held) => {
                let ran = self.run(&mut world.words, &log, left, |memory| {
                    word::write(memory, held, 16, [77, 78].into_iter())?; // what it had begun
                    word::release(memory, held, Release { commit: false, recovered: Some(true) })
                });
                let ended = release(world, ran)?;
                world.mark_due |= ended;
                Ok(ended)
            }
            Doing::Leaving(held) => {
                let how = Release { commit: false, recovered: None };
                let ran = self
                    .run(&mut world.words, &log, left, |memory| word::release(memory, held, how));
                release(world, ran)
            }
            Doing::Snapshot(from) => {
                let mut out = Vec::new();
                let ran = self.run(&mut world.words, &log, left, |memory| {
                    word::snapshot(memory, |word| out.push(word))
                });
                match ran {
                    Ran::Stopped(log) => {
                        world.threads[index].log = log;
                        Ok(false)
                    }
                    Ran::Ended(None) => {
                        world.threads[index].log.clear();
                        world.threads[index].doing = Doing::Snapshot(world.committed);
                        Ok(true)
                    }
                    Ran::Ended(Some((Stored::Outside, _))) => {
                        world.threads[index].log.clear();
                        world.threads[index].doing = Doing::Fetching(from);
                        Ok(true)
                    }
                    Ran::Ended(Some(_)) => {
                        let value = out[0];
                        if out[1] != !value
                            || value < u64::from(from)
                            || value > u64::from(world.committed)
                        {
                            return Err(format!("a torn or stale snapshot: {out:?}"));
                        }
                        world.threads[index].log.clear();
                        world.threads[index].doing = Doing::Done;
                        Ok(true)
                    }
                }
            }
            other => unreachable!("{other:?} is no function"),
        }
    }

    fn killed(&self, mut world: World, process: u8) -> World {
        world.kills -= 1;
        world.processes[usize::from(process)].alive = false;
        for index in 0..world.threads.len() {
            if self.process_of(index) == process {
                let held = matches!(
                    world.threads[index].doing,
                    Doing::Holding(_)
                        | Doing::Adding { .. }
                        | Doing::RollingBack(_)
                        | Doing::Leaving(_)
                );
                world.mark_due |= held;
            }
        }
        world
    }

    fn process_steps(
        &self,
        world: &World,
        number: usize,
        must: &mut Vec<Next>,
        may: &mut Vec<Next>,
    ) {
        let process = &world.processes[number];
        if !process.alive {
            return;
        }
        if process.stopped {
            let mut next = world.clone();
            next.processes[number].stopped = false;
            may.push((next, "goes on"));
        } else if world.stops > 0 {
            let mut next = world.clone();
            next.stops -= 1;
            next.processes[number].stopped = true;
            may.push((next, "stands still"));
        }
        if let Some((ticket, version)) = process.mail.first().copied().filter(|_| !process.stopped)
        {
            let mut next = world.clone();
            next.processes[number].mail.remove(0);
            for (index, thread) in next.threads.iter_mut().enumerate() {
                // One that looks at an earlier grant looks at this one next.
                if usize::from(self.process_of(index)) == number
                    && matches!(thread.doing, Doing::Parked(own) | Doing::Accepting(own, _) if own == ticket)
                {
                    let refused = || if thread.rounds > 1 { Doing::Trying } else { Doing::Done };
                    thread.doing =
                        version.map_or_else(refused, |version| Doing::Accepting(ticket, version));
                    thread.rounds -= u8::from(version.is_none());
                    thread.log.clear();
                }
            }
            must.push((next, "mail"));
        }
        if world.kills > 0 {
            may.push((self.killed(world.clone(), number as u8), "dies"));
        }
    }

    fn manager_steps(
        &self,
        world: &World,
        must: &mut Vec<Next>,
        may: &mut Vec<Next>,
    ) -> Result<(), String> {
        if world.managing.is_some() {
            must.push((self.manage(world)?, "manager"));
            return Ok(());
        }
        let begin = |managing| {
            let mut next = world.clone();
            next.managing = Some((managing, Vec::new()));
            next
        };
        for (number, process) in world.processes.iter().enumerate() {
            if let Some(message) = process.channel.first().copied() {
                let mut next = begin(Managing::Message(message));
                next.processes[number].channel.remove(0);
                must.push((next, "manager reads"));
                if let ToManager::Commit { process, .. } = message
                    && world.fulls > 0
                {
                    let mut next = begin(Managing::Message(ToManager::Full(process)));
                    next.processes[number].channel.remove(0);
                    next.fulls -= 1;
                    may.push((next, "manager is full"));
                }
            }
            let read = process.channel.is_empty() || self.bug == Some(Bug::DeathFirst);
            if read && !process.alive && !process.buried {
                // What it had written has been read.
                let mut next = begin(Managing::Death(number as u8));
                next.processes[number].buried = true;
                must.push((next, "manager hears of an end"));
            }
        }
        let stopped = |owner: Owner| {
            (0..)
                .zip(&world.processes)
                .any(|(number, process)| process.stopped && owner == self::owner(number))
        };
        if !world.waiters.is_line_empty()
            && let Some(ticket) = world.waiters.granted()
        {
            if stopped(ticket.owner()) && look(world).is_granted() {
                must.push((
                    begin(Managing::Revoking),
                    "manager takes back from one that stands still",
                ));
            } else if world.revokes > 0 {
                let mut next = begin(Managing::Revoking);
                next.revokes -= 1;
                may.push((next, "manager takes back"));
            }
        }
        if world.processes.iter().any(|process| process.stopped) && look(world).is_managers() {
            must.push((begin(Managing::Message(ToManager::Rang)), "manager looks"));
        }
        if world.limits > 0 {
            for thread in &world.threads {
                if let Doing::Parked(ticket) | Doing::Accepting(ticket, _) = thread.doing {
                    let mut next = begin(Managing::TimedOut(ticket));
                    next.limits -= 1;
                    may.push((next, "time is up"));
                }
            }
        }
        Ok(())
    }

    /// One step of what the manager is doing.
    fn manage(&self, world: &World) -> Result<World, String> {
        let mut next = world.clone();
        let Some((managing, log)) = next.managing.take() else {
            unreachable!("asked only if there is something")
        };
        // Run again from the beginning, also what it changes of its own.
        let mut waiters = world.waiters.clone();
        let mark = next.words[0];
        let buffer = Cell::new(None);
        let refused = Cell::new(None);
        let ran = self.run(&mut next.words, &log, usize::MAX, |memory| match managing {
            Managing::Message(ToManager::Park(ticket)) => waiters.park(memory, ticket),
            Managing::Message(ToManager::Back(ticket))
                if self.bug == Some(Bug::AlwaysBack) && !waiters.has(ticket) =>
            {
                waiters.park(memory, ticket)
            }
            Managing::Message(ToManager::Back(ticket)) => waiters.back(memory, ticket),
            Managing::Message(ToManager::Cancel(ticket))
                if self.bug == Some(Bug::KeptGrant) && waiters.granted() == Some(ticket) =>
            {
                Ok(Ok(None))
            }
            Managing::Message(ToManager::Cancel(ticket)) => waiters.cancel(memory, ticket),
            Managing::Message(ToManager::Rang) => waiters.pump(memory),
            Managing::Message(ToManager::Commit { process, value, large }) => {
                let value = [u64::from(value), !u64::from(value)].map(u64::to_le_bytes);
                let here = (!large).then_some(value.as_flattened());
                waiters.commit(memory, owner(process), Some(false), here, |at| buffer.set(Some(at)))
            }
            Managing::Message(ToManager::Full(process)) => {
                waiters.roll_back(memory, owner(process))
            }
            Managing::Death(process) if self.bug == Some(Bug::OwnOnly) => {
                waiters.drop_tickets(|ticket| ticket.process == process);
                if word::look(memory)?.owner() != owner(process) {
                    return Ok(Ok(None));
                }
                waiters.died(memory, owner(process))
            }
            Managing::Death(process) => waiters.died(memory, owner(process)),
            Managing::Revoking => waiters.revoke(memory),
            Managing::TimedOut(ticket) => {
                // As `served.rs` does it.
                let waits = waiters.has(ticket)
                    || waiters.granted() == Some(ticket) && waiters.is_pending(memory)?;
                if !waits {
                    return Ok(Ok(None));
                }
                refused.set(Some(ticket));
                waiters.cancel(memory, ticket)
            }
        });
        let unmarked = match managing {
            Managing::Death(_) => self.bug == Some(Bug::NoMark),
            Managing::Message(ToManager::Full(_)) => self.bug == Some(Bug::FullUnmarked),
            _ => false,
        };
        if unmarked {
            const MARK: u64 = 1 << 22;
            next.words[0] = next.words[0] & !MARK | mark & MARK;
        }
        if buffer.get().is_some() && !next.counted {
            // The word names it, also if there is more to do.
            next.counted = true;
            next.committed += 1;
            next.mark_due = false;
        }
        match ran {
            Ran::Stopped(log) => next.managing = Some((managing, log)),
            Ran::Ended(Err(Broken)) => return Err("the manager finds the word changed".to_owned()),
            Ran::Ended(Ok(grant)) => {
                next.waiters = waiters;
                next.counted = false;
                if let (Managing::Message(ToManager::Commit { value, large, .. }), Some(at)) =
                    (managing, buffer.get())
                {
                    let at = if self.bug == Some(Bug::OtherBuffer) { 1 - at } else { at };
                    next.kept.committed(at, value, !large);
                }
                next.mark_due |= matches!(managing, Managing::Message(ToManager::Full(_)));
                if let Some(ticket) = refused.get() {
                    next.processes[usize::from(ticket.process)].mail.push((ticket, None));
                }
                if let Some(Grant { to, version }) = grant {
                    next.processes[usize::from(to.process)].mail.push((to, Some(version)));
                }
            }
        }
        Ok(next)
    }

    fn check(&self, world: &World, stuck: bool) -> Result<(), String> {
        let word = look(world);
        let living =
            || {
                world.threads.iter().enumerate().filter(|(index, _)| {
                    world.processes[usize::from(self.process_of(*index))].alive
                })
            };
        let mut holders = living().filter(|(_, thread)| {
            matches!(thread.doing, Doing::Holding(_) | Doing::Adding { .. } | Doing::RollingBack(_) | Doing::Leaving(_))
                // With a late write it has been released within.
                && self.bug != Some(Bug::LateWrite)
        });
        if let Some((index, _)) = holders.next() {
            if holders.next().is_some() {
                return Err("two holders".into());
            }
            if word.owner() != owner(self.process_of(index)) || word.is_granted() {
                return Err("a holder that does not own the word".into());
            }
        }
        let outside = stored(world, word) == Stored::Outside;
        if world.managing.is_none() && world.kept.values().count() != usize::from(outside) {
            return Err("the manager keeps what it need not, or not what it must".into());
        }
        if !stuck {
            return Ok(());
        }
        let stopped = |index: usize| world.processes[usize::from(self.process_of(index))].stopped;
        let held_by_stopped = living().any(|(index, thread)| {
            stopped(index)
                && matches!(
                    thread.doing,
                    Doing::Holding(_)
                        | Doing::Adding { .. }
                        | Doing::RollingBack(_)
                        | Doing::Leaving(_)
                )
        });
        if !held_by_stopped
            && living().any(|(index, thread)| !stopped(index) && thread.doing != Doing::Done)
        {
            return Err("somebody waits for ever".into());
        }
        if world.processes.iter().any(|process| process.stopped) {
            return Ok(()); // it may go on
        }
        if !word.is_nobodys()
            || word.is_managers()
            || word.has_waiters()
            || world.waiters.count() > 0
        {
            return Err("it is not free at the end".into());
        }
        let mut out = Vec::new();
        let mut words = world.words;
        let last = self.run(&mut words, &[], usize::MAX, |memory| {
            loop {
                out.clear();
                if word::snapshot(memory, |word| out.push(word))?.is_some() {
                    break Ok(());
                }
            }
        });
        if let Some(value) = world.kept.of(word) {
            out.extend([u64::from(*value), !u64::from(*value)]);
        }
        // (The whole of it is more than one step where words are seen.)
        if matches!(last, Ran::Ended(()))
            && out != [u64::from(world.committed), !u64::from(world.committed)]
        {
            return Err("another value than was committed last".into());
        }
        if word.is_recovered() != world.mark_due {
            return Err("a mark that is not due, or none where one is".into());
        }
        Ok(())
    }

    /// Visits every state. Gives how many there are, or what is wrong and the way there.
    fn search(&self) -> Result<usize, String> {
        let fingerprint = |world: &World| {
            let (mut a, mut b) = (DefaultHasher::new(), DefaultHasher::new());
            world.hash(&mut a);
            (1u8, world).hash(&mut b);
            u128::from(a.finish()) << 64 | u128::from(b.finish())
        };
        let start = self.start();
        let mut seen = HashSet::from([fingerprint(&start)]);
        let mut worlds = vec![(start, 0, "start")];
        let (mut must, mut may) = (Vec::new(), Vec::new());
        let mut at = 0;
        let wrong = |worlds: &[(World, usize, &'static str)], mut at: usize, why: String| {
            let mut path = Vec::new();
            let count = worlds.len();
            loop {
                let (world, from, how) = &worlds[at];
                path.push(format!(
                    "{how}: {:x} {:?}",
                    world.words[0],
                    world.threads.iter().map(|t| t.doing).collect::<Vec<_>>()
                ));
                if at == 0 {
                    break;
                }
                at = *from;
            }
            path.reverse();
            format!("{why}, after {count} states:\n{}", path.join("\n"))
        };
        while at < worlds.len() {
            if let Err(why) = self.steps(&worlds[at].0, &mut must, &mut may) {
                return Err(wrong(&worlds, at, why));
            }
            if let Err(why) = self.check(&worlds[at].0, must.is_empty()) {
                return Err(wrong(&worlds, at, why));
            }
            for (world, how) in must.drain(..).chain(may.drain(..)) {
                if seen.insert(fingerprint(&world)) {
                    worlds.push((world, at, how));
                }
            }
            at += 1;
        }
        Ok(worlds.len())
    }
}

/// Fails also when there are suspiciously few states: then something was not searched.
fn clean(setup: &Setup) -> usize {
    let states = setup.search().unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(states > 4000, "only {states} states");
    states
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn three_processes_that_die_give_up_are_late_and_roll_back() {
    let one_of_each = [
        Setup { threads: &[0, 1, 2], kills: 1, ..CALM },
        Setup { threads: &[0, 1, 2], cancels: 1, ..CALM },
        Setup { threads: &[0, 1, 2], revokes: 1, ..CALM },
        Setup { threads: &[0, 1, 2], rollbacks: 1, looks: 1, ..CALM },
    ];
    for setup in one_of_each {
        clean(&setup);
    }
}

#[test]
fn two_that_are_late_or_stand_still_hold_up_nobody_and_are_not_forgotten() {
    // Behind each of the two there is one who waits.
    clean(&Setup { threads: &[0, 1, 2, 3], stops: 2, in_line: true, ..CALM });
    clean(&Setup { threads: &[0, 1, 2, 3], revokes: 2, kills: 1, in_line: true, ..CALM });
    clean(&Setup { threads: &[0, 1, 2, 3], revokes: 2, limits: 1, in_line: true, ..CALM });
}

#[test]
#[ignore = "long: the gate runs it, optimised"]
fn two_waiters_in_one_process_are_not_mistaken_for_each_other() {
    clean(&Setup { threads: &[0, 0, 1], cancels: 1, revokes: 1, ..CALM });
}

#[test]
fn whoever_reads_without_the_lock_never_sees_half_a_value() {
    clean(&Setup { threads: &[0, 1], rounds: 1, reader: true, kills: 1, ..CALM });
}

#[test]
fn values_that_the_manager_commits_are_whole_and_kept_as_long_as_they_are_the_locks() {
    clean(&Setup { rounds: 2, kills: 1, larges: 1, ..CALM });
    clean(&Setup { kills: 1, fulls: 1, larges: 1, ..CALM });
    clean(&Setup { threads: &[0, 1, 2], larges: 1, ..CALM });
    clean(&Setup { reader: true, larges: 1, ..CALM });
    clean(&Setup { rounds: 2, rollbacks: 1, looks: 1, larges: 2, ..CALM });
}

#[test]
fn every_bug_that_is_planted_is_found() {
    let waits = "somebody waits for ever";
    let value = "a holder finds another value than was committed last";
    let mark = "a holder is not told that another did not end well";
    let planted = [
        (
            Bug::NoVersion,
            "it is not free at the end",
            Setup { threads: &[0, 0, 1], revokes: 1, cancels: 1, ..CALM },
        ),
        (Bug::OwnOnly, waits, Setup { threads: &[0, 1], kills: 1, ..CALM }),
        (Bug::NoBell, waits, Setup { threads: &[0, 1], ..CALM }),
        (Bug::BlindRelease, waits, Setup { threads: &[0, 1], ..CALM }),
        (Bug::OneBuffer, value, Setup { threads: &[0, 1], kills: 1, ..CALM }),
        (
            Bug::LateWrite,
            "a torn or stale snapshot",
            Setup { threads: &[0, 1], reader: true, ..CALM },
        ),
        (Bug::NoMark, mark, Setup { threads: &[0, 1], kills: 1, ..CALM }),
        (Bug::KeptGrant, waits, Setup { threads: &[0, 1, 2], cancels: 1, ..CALM }),
        (Bug::NotAsked, "the manager keeps what it need not", Setup { larges: 1, ..CALM }),
        (Bug::OtherBuffer, value, Setup { larges: 1, ..CALM }),
        (
            Bug::DeathFirst,
            "the manager finds the word changed",
            Setup { larges: 1, kills: 1, ..CALM },
        ),
        (Bug::FullUnmarked, mark, Setup { larges: 1, fulls: 1, ..CALM }),
        (Bug::NotBack, waits, Setup { threads: &[0, 1, 2], stops: 1, in_line: true, ..CALM }),
        (
            Bug::AlwaysBack,
            "it is not free at the end",
            Setup { threads: &[0, 1, 2], revokes: 1, limits: 1, in_line: true, ..CALM },
        ),
    ];
    for (bug, how, setup) in planted {
        let found = Setup { bug: Some(bug), ..setup }.search().expect_err("it is there");
        assert!(found.starts_with(how), "{bug:?}: {found}");
    }
}

#[test]
#[ignore = "some minutes, and some gigabytes"]
#[expect(clippy::print_stdout, reason = "it is run by hand, and is to say how many there are")]
fn three_processes_with_two_things_that_go_wrong() {
    let two_of_them = [
        Setup { threads: &[0, 1, 2], kills: 1, cancels: 1, ..CALM },
        Setup { threads: &[0, 1, 2], kills: 1, revokes: 1, ..CALM },
        Setup { threads: &[0, 1, 2], cancels: 1, revokes: 1, ..CALM },
        Setup { threads: &[0, 1, 2], kills: 1, rollbacks: 1, ..CALM },
        Setup { threads: &[0, 0, 1], kills: 1, cancels: 1, revokes: 1, ..CALM },
        Setup {
            threads: &[0, 1],
            rounds: 2,
            kills: 1,
            cancels: 1,
            revokes: 1,
            rollbacks: 1,
            ..CALM
        },
        Setup { threads: &[0, 1], rounds: 2, reader: true, kills: 1, ..CALM },
        Setup { threads: &[0, 1, 2], kills: 1, larges: 1, fulls: 1, ..CALM },
        Setup { threads: &[0, 1], rounds: 2, larges: 2, kills: 1, revokes: 1, ..CALM },
        Setup { threads: &[0, 1], reader: true, larges: 1, kills: 1, rollbacks: 1, ..CALM },
        Setup { threads: &[0, 1, 2, 3], revokes: 2, ..CALM },
        Setup { threads: &[0, 1, 2], stops: 2, ..CALM },
        Setup { threads: &[0, 1, 2], stops: 1, kills: 1, ..CALM },
        Setup { threads: &[0, 0, 1], stops: 2, limits: 1, ..CALM },
        Setup { threads: &[0, 1, 1], rounds: 2, revokes: 2, in_line: true, ..CALM },
    ];
    for setup in two_of_them {
        println!("{} states", clean(&setup));
    }
}
