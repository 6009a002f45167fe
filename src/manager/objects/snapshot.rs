//! Snapshots, which are answered in pieces.
//!
//! **Pieces.** A snapshot is what an object contains at one moment. Taking it copies no value,
//! since values are shared. Each request then takes one piece, so no answer exceeds the limit of a
//! frame, and the manager serves other clients between two pieces. What is not yet fetched is kept
//! under the request id (*ticket*) of the first request, until it is fetched or cancelled, or until
//! the client ends.
//!
//! **Memory.** Snapshots keep values alive that the object has dropped meanwhile, so these are
//! counted here ([`Snapshots::dropped`]).

use super::code::Pack;
use super::line::of_client;
use crate::manager::held::{self, join};
use crate::manager::object::{Caller, Client, Held};
use crate::wire::packet::Packet;
use std::collections::BTreeMap;

/// Bytes of one piece, at most, unless it has a single entry.
const PIECE_BYTES: usize = 512 << 10;
/// References that the values of one piece name, at most, unless it has a single entry.
const PIECE_NAMES: usize = 1 << 12;
/// What an entry costs that is not yet fetched, in bytes.
const WAITING_BYTES: usize = size_of::<Item>();
/// Snapshots of one object that one client has not yet fetched to the end, at most.
const OPEN_MAX: usize = 256;

/// What stands together in one piece: a value, or a key with its value.
pub(super) struct Item {
    pub(super) key: Option<Packet>,
    pub(super) value: Option<Packet>,
    pub(super) held: Held,
}

impl Item {
    fn parts(&self) -> impl Iterator<Item = &Packet> {
        self.key.iter().chain(&self.value)
    }
}

/// A part of a snapshot, packed.
pub(super) struct Piece {
    pub(super) tail: Packet,
    pub(super) held: Held,
    /// There is more to fetch.
    pub(super) more: bool,
}

/// The snapshots of one object that are not yet fetched to the end.
#[derive(Default)]
pub(super) struct Snapshots {
    open: BTreeMap<Caller, std::vec::IntoIter<Item>>,
    waiting: usize,
    /// Bytes of values that the object has dropped since the first of them was taken.
    dropped: usize,
}

impl Snapshots {
    pub(super) fn contains(&self, caller: Caller) -> bool {
        self.open.contains_key(&caller)
    }

    /// Returns whether a client may take no further snapshot now, of so many entries, while the
    /// manager has so many bytes left. One at a time may always be taken: an object that has filled
    /// the manager can be looked at.
    pub(super) fn is_full(&self, client: Client, entries: usize, left: usize) -> bool {
        of_client(&self.open, client).count() >= OPEN_MAX
            || !self.open.is_empty() && entries * WAITING_BYTES > left
    }

    /// Takes a snapshot, and returns its first piece.
    pub(super) fn take(&mut self, caller: Caller, items: Vec<Item>) -> Piece {
        let mut items = items.into_iter();
        let piece = piece(&mut items);
        if piece.more {
            self.waiting += items.len();
            self.open.insert(caller, items);
        }
        piece
    }

    /// Returns the next piece; `None` if there is no such snapshot.
    pub(super) fn next(&mut self, caller: Caller) -> Option<Piece> {
        let items = self.open.get_mut(&caller)?;
        let before = items.len();
        let piece = piece(items);
        self.waiting -= before - items.len();
        if !piece.more {
            self.forget(caller);
        }
        Some(piece)
    }

    /// The rest of a snapshot is not wanted any more.
    pub(super) fn forget(&mut self, caller: Caller) {
        if let Some(items) = self.open.remove(&caller) {
            self.waiting -= items.len();
        }
        if self.open.is_empty() {
            self.dropped = 0;
        }
    }

    /// A client has ended, or has dropped its last reference.
    pub(super) fn forget_client(&mut self, client: Client) {
        for caller in of_client(&self.open, client).collect::<Vec<_>>() {
            self.forget(caller);
        }
    }

    /// The object has dropped a value of so many bytes.
    pub(super) fn dropped(&mut self, bytes: usize) {
        if !self.open.is_empty() {
            self.dropped += bytes;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.waiting * WAITING_BYTES + self.dropped
    }
}

fn piece(items: &mut std::vec::IntoIter<Item>) -> Piece {
    let (mut pack, mut held, mut names) = (Pack::default(), Vec::new(), 0);
    while let Some(item) = items.as_slice().first() {
        let bytes: usize = item.parts().map(|part| part.len()).sum();
        let named = held::names(&item.held).len();
        let first = pack.len() == 0;
        if !first && (pack.len() + bytes > PIECE_BYTES || names + named > PIECE_NAMES) {
            break;
        }
        names += named;
        item.parts().for_each(|part| pack.push(part));
        held.extend(items.next().map(|item| item.held));
    }
    Piece { tail: pack.finish(), held: join(held), more: !items.as_slice().is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client = Client { seat: 3, generation: 0 };
    const OTHER: Client = Client { seat: 4, generation: 0 };

    fn items(count: u8, bytes: usize) -> Vec<Item> {
        let value = |n| Some(Packet::copy_from(&vec![n; bytes]));
        (0..count).map(|n| Item { key: None, value: value(n), held: None }).collect()
    }

    fn caller(client: Client, ticket: u64) -> Caller {
        Caller { client, ticket }
    }

    #[test]
    fn pieces_are_bounded_and_together_they_are_all() {
        let mut snapshots = Snapshots::default();
        let mut piece = snapshots.take(caller(CLIENT, 1), items(20, 200 << 10));
        let (mut values, mut pieces) = (Vec::new(), 1);
        loop {
            assert!(piece.tail.len() <= PIECE_BYTES + 64);
            let unpacked = super::super::code::unpack(&piece.tail).unwrap_or_default();
            values.extend(unpacked.iter().map(|value| value[0]));
            if !piece.more {
                break;
            }
            assert!(snapshots.next(caller(OTHER, 1)).is_none(), "it is another client's");
            piece = snapshots.next(caller(CLIENT, 1)).expect("there is more");
            pieces += 1;
        }
        assert_eq!((values, pieces), ((0..20).collect(), 10));
        assert!(snapshots.next(caller(CLIENT, 1)).is_none() && snapshots.bytes() == 0);
    }

    #[test]
    fn an_entry_that_exceeds_a_piece_is_one_by_itself() {
        let mut snapshots = Snapshots::default();
        let first = snapshots.take(caller(CLIENT, 1), items(2, 3 * PIECE_BYTES));
        assert!(first.more && first.tail.len() < 4 * PIECE_BYTES);
        let second = snapshots.next(caller(CLIENT, 1)).expect("there is more");
        assert!(!second.more && second.tail.len() == first.tail.len());
        assert!(!snapshots.take(caller(CLIENT, 2), Vec::new()).more);
    }

    #[test]
    fn what_a_snapshot_keeps_is_counted_until_it_goes() {
        let mut snapshots = Snapshots::default();
        snapshots.dropped(7);
        assert_eq!(snapshots.bytes(), 0, "there is no snapshot");
        for ticket in 1..=OPEN_MAX as u64 {
            assert!(!snapshots.is_full(CLIENT, 2, 1000));
            for client in [CLIENT, OTHER] {
                assert!(snapshots.take(caller(client, ticket), items(2, PIECE_BYTES)).more);
            }
        }
        assert!(snapshots.is_full(CLIENT, 0, 0) && snapshots.is_full(OTHER, 2, 0));
        assert!(snapshots.contains(caller(CLIENT, 2)));
        snapshots.dropped(1000);
        assert_eq!(snapshots.bytes(), 2 * OPEN_MAX * WAITING_BYTES + 1000);
        snapshots.forget(caller(CLIENT, 2));
        snapshots.forget_client(OTHER);
        assert_eq!(snapshots.bytes(), (OPEN_MAX - 1) * WAITING_BYTES + 1000);
        snapshots.forget_client(CLIENT);
        assert_eq!(snapshots.bytes(), 0);
        assert!(!snapshots.is_full(CLIENT, 1 << 20, 0), "one may always be taken");
    }
}
