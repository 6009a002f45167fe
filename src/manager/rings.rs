//! Threads that wait for each other's locks, in whatever processes.
//!
//! A thread that blocks tells, when it comes to wait for a lock, which locks it holds. It can
//! release none of them before it has got that one, and no other thread of its process can
//! (`sync/holding.rs`). So if its lock is held by such a thread, which waits for a
//! lock that is held by such a thread, and so on, back to itself, none of them ever goes on. Each
//! lock has one holder, so there is one way to follow, and whoever closes a ring is told.

use super::lock::served::owner_of;
use super::lock::word::Owner;
use super::object::{Caller, Client};
use std::collections::HashMap;
use std::fmt::Write;

/// With what a thread waits. (Of whoever does not block it is not known: he holds nothing, as far
/// as this goes.)
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    /// Its process, as that says: for people.
    pub(crate) pid: u32,
    pub(crate) holds: Vec<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rings {
    /// Whether they are looked for.
    pub(crate) on: bool,
    /// Threads that wait: for which lock.
    waits: HashMap<Caller, (u64, Wait)>,
    /// Locks that such threads hold.
    held: HashMap<u64, Caller>,
}

impl Rings {
    pub(crate) fn new() -> Self {
        Self { on: cfg!(debug_assertions), waits: HashMap::new(), held: HashMap::new() }
    }

    /// A thread waits. Gives whether it may have closed a ring.
    pub(crate) fn wait(&mut self, caller: Caller, lock: u64, wait: Wait) -> bool {
        if !self.on || wait.holds.is_empty() {
            return false; // nobody can be waiting for it
        }
        self.held.extend(wait.holds.iter().map(|held| (*held, caller)));
        self.waits.insert(caller, (lock, wait));
        true
    }

    /// It waits no longer.
    pub(crate) fn over(&mut self, caller: Caller) {
        if let Some((_, wait)) = self.waits.remove(&caller) {
            for lock in wait.holds {
                if self.held.get(&lock) == Some(&caller) {
                    self.held.remove(&lock);
                }
            }
        }
    }

    /// A client has ended.
    pub(crate) fn gone(&mut self, client: Client) {
        let its_own: Vec<_> =
            self.waits.keys().filter(|caller| caller.client == client).copied().collect();
        its_own.into_iter().for_each(|caller| self.over(caller));
    }

    /// Describes the ring that this thread has closed, if it has. `holder` says whose process has a
    /// lock, by its word.
    pub(crate) fn find<'a>(
        &self,
        caller: Caller,
        holder: impl Fn(u64) -> Option<Owner>,
        name: impl Fn(u64) -> Option<&'a str>,
    ) -> Option<String> {
        let mut text = String::new();
        let (mut lock, wait) = self.waits.get(&caller).map(|(lock, wait)| (*lock, wait))?;
        let mut pid = wait.pid;
        // There are no more steps than threads, unless there is a ring without this one.
        for _ in 0..self.waits.len() {
            let next = *self.held.get(&lock)?;
            // What was told may be over: the lock itself says who has it.
            if holder(lock) != Some(owner_of(next.client)) {
                return None;
            }
            let (next_lock, next_wait) = self.waits.get(&next)?;
            let called = name(lock).map(|name| format!(" \"{name}\"")).unwrap_or_default();
            let between = if text.is_empty() { "" } else { "; " };
            let _ = write!(
                text,
                "{between}process {pid} waits for mutex {lock}{called}, which process {} holds",
                next_wait.pid
            );
            if next == caller {
                return Some(text);
            }
            (lock, pid) = (*next_lock, next_wait.pid);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(seat: u32) -> Caller {
        Caller { client: Client { seat, generation: 0 }, ticket: 1 }
    }

    fn wait(rings: &mut Rings, seat: u32, lock: u64, holds: &[u64]) -> Option<String> {
        rings.on = true;
        if !rings.wait(caller(seat), lock, Wait { pid: seat, holds: holds.to_vec() }) {
            return None;
        }
        let by_number = |lock: u64| Some(owner_of(caller(lock as u32 / 10).client));
        rings.find(caller(seat), by_number, |lock| (lock == 30).then_some("thirty"))
    }

    /// Lock 31 is one of process 3's.
    #[test]
    fn whoever_closes_a_ring_is_told_and_nobody_else() {
        let mut rings = Rings::new();
        assert_eq!(wait(&mut rings, 3, 40, &[30]), None);
        assert_eq!(wait(&mut rings, 4, 50, &[40, 41]), None);
        let ring = wait(&mut rings, 5, 30, &[50]).expect("a ring");
        assert_eq!(
            ring,
            "process 5 waits for mutex 30 \"thirty\", which process 3 holds; process 3 waits for mutex 40, which process 4 holds; \
             process 4 waits for mutex 50, which process 5 holds"
        );
        rings.over(caller(5));
        // One that comes to it is in no ring, though it waits for one who is.
        assert_eq!(wait(&mut rings, 6, 30, &[60]), None);
        rings.gone(caller(4).client);
        assert_eq!(wait(&mut rings, 5, 30, &[50]), None);
        assert!(wait(&mut rings, 7, 70, &[70]).is_some(), "one that waits for itself");
    }
}
