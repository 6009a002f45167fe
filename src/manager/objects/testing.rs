//! What the simulations of shared objects have in common: chance, callers, seeds.

use crate::manager::object::{Caller, Client};
use std::time::Duration;

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Of `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len() as u64) as usize).copied()
    }

    pub(crate) fn millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}

/// The clients of a simulation: seats whose generation counts up when one has gone, and fresh
/// tickets.
pub(crate) struct Clients {
    generations: Vec<u32>,
    ticket: u64,
}

impl Clients {
    pub(crate) fn new(seats: usize) -> Self {
        Self { generations: vec![0; seats], ticket: 0 }
    }

    pub(crate) fn any(&self, rng: &mut Rng) -> Client {
        let seat = rng.below(self.generations.len() as u64) as u32;
        Client { seat, generation: self.generations[seat as usize] }
    }

    /// Who is in this seat.
    pub(crate) fn in_seat(&self, seat: u32) -> Client {
        Client { seat, generation: self.generations[seat as usize] }
    }

    /// A new request of any client.
    pub(crate) fn caller(&mut self, rng: &mut Rng) -> Caller {
        self.ticket += 1;
        Caller { client: self.any(rng), ticket: self.ticket }
    }

    /// A new request of this client.
    pub(crate) fn caller_of(&mut self, client: Client) -> Caller {
        self.ticket += 1;
        Caller { client, ticket: self.ticket }
    }

    pub(crate) fn replace(&mut self, client: Client) {
        self.generations[client.seat as usize] = client.generation + 1;
    }
}

/// Runs seeds; `PROCPOOL_SEED` runs one, `PROCPOOL_ROUNDS` so many.
pub(crate) fn rounds(default: u64, mut round: impl FnMut(u64) -> Result<(), String>) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("PROCPOOL_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("PROCPOOL_ROUNDS").unwrap_or(default)),
    };
    for seed in first..first + count {
        if let Err(wrong) = round(seed) {
            panic!("seed {seed}: {wrong}\nrun it again with PROCPOOL_SEED={seed}");
        }
    }
}
