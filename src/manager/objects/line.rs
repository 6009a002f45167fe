//! A wait queue: callers in order of arrival, each with an optional time limit.

use crate::manager::object::{Caller, Client};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What one waiting caller costs, in bytes, roughly: its entries in the three trees.
pub(crate) const WAITER_BYTES: usize = 160;

/// Callers that wait for one object, or keep something of it under their tickets, at most.
pub(crate) const KEPT_MAX: usize = 1 << 17;

/// First come, first served. `T` is what each waits with.
#[derive(Debug)]
pub(crate) struct Line<T> {
    waiting: BTreeMap<u64, Waiter<T>>,
    places: BTreeMap<Caller, u64>,
    limits: BTreeSet<(Instant, u64)>,
    next: u64,
}

#[derive(Debug)]
struct Waiter<T> {
    caller: Caller,
    until: Option<Instant>,
    with: T,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Line<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: BTreeMap::new(), places: BTreeMap::new(), limits: BTreeSet::new(), next: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn contains(&self, caller: Caller) -> bool {
        self.places.contains_key(&caller)
    }

    /// To the end of the line. The caller must not stand in it already.
    pub(crate) fn push(&mut self, caller: Caller, until: Option<Instant>, with: T) {
        debug_assert!(!self.contains(caller), "nobody stands in line twice");
        let place = self.next;
        self.next += 1;
        self.places.insert(caller, place);
        if let Some(until) = until {
            self.limits.insert((until, place));
        }
        self.waiting.insert(place, Waiter { caller, until, with });
    }

    pub(crate) fn front(&self) -> Option<(Caller, &T)> {
        self.waiting.first_key_value().map(|(_, waiter)| (waiter.caller, &waiter.with))
    }

    pub(crate) fn front_mut(&mut self) -> Option<(Caller, &mut T)> {
        self.waiting.first_entry().map(|entry| {
            let waiter = entry.into_mut();
            (waiter.caller, &mut waiter.with)
        })
    }

    pub(crate) fn pop(&mut self) -> Option<(Caller, T)> {
        let place = *self.waiting.first_key_value()?.0;
        self.take(place)
    }

    pub(crate) fn remove(&mut self, caller: Caller) -> Option<T> {
        let place = *self.places.get(&caller)?;
        self.take(place).map(|(_, with)| with)
    }

    /// All of one client leave, in their order.
    pub(crate) fn remove_client(&mut self, client: Client) -> Vec<(Caller, T)> {
        let callers: Vec<Caller> = of_client(&self.places, client).collect();
        let mut places: Vec<u64> =
            callers.iter().filter_map(|caller| self.places.get(caller).copied()).collect();
        places.sort_unstable();
        places.into_iter().filter_map(|place| self.take(place)).collect()
    }

    /// All leave, in their order.
    pub(crate) fn drain(&mut self) -> Vec<(Caller, T)> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    /// Those whose time is up leave, the earliest first.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Caller, T)> {
        let mut left = Vec::new();
        while let Some((until, place)) = self.limits.first().copied()
            && until <= now
        {
            left.extend(self.take(place));
        }
        left
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.limits.first().map(|(until, _)| *until)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Caller, &T)> {
        self.waiting.values().map(|waiter| (waiter.caller, &waiter.with))
    }

    fn take(&mut self, place: u64) -> Option<(Caller, T)> {
        let waiter = self.waiting.remove(&place)?;
        self.places.remove(&waiter.caller);
        if let Some(until) = waiter.until {
            self.limits.remove(&(until, place));
        }
        Some((waiter.caller, waiter.with))
    }
}

/// The callers of one client among the keys of a map.
pub(crate) fn of_client<T>(
    map: &BTreeMap<Caller, T>,
    client: Client,
) -> impl Iterator<Item = Caller> {
    let (first, last) = (Caller { client, ticket: 0 }, Caller { client, ticket: u64::MAX });
    map.range(first..=last).map(|(caller, _)| *caller)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn caller(seat: u32, ticket: u64) -> Caller {
        Caller { client: Client { seat, generation: 0 }, ticket }
    }

    #[test]
    fn they_leave_in_their_order_or_when_their_time_is_up() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut line = Line::new();
        line.push(caller(1, 9), None, 'a');
        line.push(caller(2, 1), Some(later), 'b');
        line.push(caller(1, 3), Some(now), 'c');
        line.push(caller(3, 1), None, 'd');
        assert_eq!(line.next_deadline(), Some(now));
        assert_eq!(line.expire(now), [(caller(1, 3), 'c')]);
        assert_eq!(line.next_deadline(), Some(later));
        assert_eq!(line.front(), Some((caller(1, 9), &'a')));
        assert_eq!(line.remove(caller(2, 1)), Some('b'));
        assert_eq!(line.next_deadline(), None);
        line.push(caller(1, 1), Some(later), 'e');
        assert_eq!(
            line.remove_client(caller(1, 0).client),
            [(caller(1, 9), 'a'), (caller(1, 1), 'e')]
        );
        assert_eq!(line.pop(), Some((caller(3, 1), 'd')));
        assert!(line.is_empty() && line.places.is_empty() && line.limits.is_empty());
    }
}
