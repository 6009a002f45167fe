//! Runs, before workers that are played by a thread of the test: what each item is told when its
//! worker ends midway, or says what it should not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::strange_workers::{HANG, Player, framed, played};
use crate::error::TaskErrorKind;
use crate::wire::claim::Claim;
use crate::wire::message::{self, Message, RunHead, kind};
use futures::StreamExt;
use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const ITEMS: u64 = 300;
/// So many items are a run.
const LENGTH: usize = 8;

fn echo(n: u64) -> u64 {
    n
}

/// Answers with the argument, by the outbox if there is room.
fn answer(player: &mut Player, id: u64, argument: &[u8]) {
    let frame = framed(|out| {
        message::done(out, id);
        out.extend(argument);
    });
    if !player.memory.ring().put(&frame) {
        let _ = player.socket.write_all(&frame);
    } else if player.memory.ring().wants_bell() {
        let _ = player.socket.write_all(&framed(message::bell));
    }
}

/// A run that has begun, in the hands of a player.
struct Begun<'a> {
    player: &'a mut Player,
    claim: Claim,
    arguments: Vec<Vec<u8>>,
    ran: &'a Mutex<Vec<u64>>,
}

impl Begun<'_> {
    /// Runs the next items that were not taken back, up to this one, and answers them but for the
    /// last, if it is not to.
    fn go_on(&mut self, items: std::ops::Range<usize>, and_answer_the_last: bool) {
        for item in items.clone() {
            if item > 0 && !self.player.memory.claims().next(self.claim, item as u32) {
                return;
            }
            self.ran.lock().unwrap().push(self.claim.id + item as u64);
            if and_answer_the_last || item + 1 < items.end {
                self.answer(item);
            }
        }
    }

    fn answer(&mut self, item: usize) {
        answer(self.player, self.claim.id + item as u64, &self.arguments[item]);
    }

    fn end(&mut self) {
        let _ = self.player.socket.shutdown(Shutdown::Both);
    }

    fn overwrite(&mut self, word: u64) {
        self.player.memory.claims().note_start(self.claim, word);
    }
}

/// Serves as a worker does. The first run of four items or more is played otherwise, if there is a
/// play.
fn serve(player: &mut Player, ran: &Mutex<Vec<u64>>, mut play: Option<impl FnOnce(Begun<'_>)>) {
    player.become_ready();
    loop {
        let body = player.hear();
        let Ok(mut call) = Message::new(&body) else { return };
        if call.kind == kind::CALL {
            let (slot, _attempt) = (call.uint().unwrap(), call.uint::<u8>().unwrap());
            let claim = Claim { slot, id: call.uint().unwrap() };
            let (_flags, _task) = (call.uint::<u8>().unwrap(), call.uint::<u32>().unwrap());
            if player.memory.claims().begin(claim) {
                ran.lock().unwrap().push(claim.id);
                answer(player, claim.id, &body[call.rest().1..]);
                player.memory.claims().finish(claim);
            }
            continue;
        }
        let RunHead { slot, id, items, mut at, .. } = message::read_run(&body).unwrap();
        let arguments = (0..items).map(|_| {
            let range = message::read_item(&body, at).unwrap();
            at = range.end;
            body[range].to_vec()
        });
        let (claim, arguments) = (Claim { slot, id }, arguments.collect::<Vec<_>>());
        player.memory.claims().set_up(claim, u32::from(items));
        if !player.memory.claims().begin(claim) {
            continue;
        }
        let mut begun = Begun { player, claim, arguments, ran };
        match play.take_if(|_| items >= 4) {
            Some(play) => return play(begun), // and begins nothing more
            None => {
                begun.go_on(0..usize::from(items), true);
                begun.player.memory.claims().finish(claim);
            }
        }
    }
}

type Play = fn(Begun<'_>);

/// What the first worker of a pool does with a run; what that costs: these of its items, and all
/// from the last one on.
const PLAYS: [(&str, Play, TaskErrorKind, &[u64], u64); 9] = [
    (
        "it ends in the fourth item",
        |mut run| {
            run.go_on(0..4, false);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[3],
        u64::MAX,
    ),
    (
        "it ends between two items",
        |mut run| {
            run.go_on(0..3, true);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[],
        u64::MAX,
    ),
    (
        "an answer that is given twice",
        |mut run| {
            run.go_on(0..2, true);
            run.answer(0);
        },
        TaskErrorKind::ProtocolViolation,
        &[],
        u64::MAX,
    ),
    (
        "an answer to an item that there is not",
        |mut run| {
            run.go_on(0..2, false);
            let id = run.claim.id + run.arguments.len() as u64 + 100_000;
            answer(run.player, id, &[1]);
        },
        TaskErrorKind::ProtocolViolation,
        &[1],
        u64::MAX,
    ),
    (
        "an answer to an item that it has not begun",
        |mut run| {
            run.go_on(0..1, false);
            run.answer(2);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[0, 1],
        3,
    ),
    (
        "a word that goes back",
        |mut run| {
            run.go_on(0..3, true);
            run.overwrite((run.arguments.len() as u64) << 32 | 2);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[],
        3,
    ),
    (
        "answers, and a word that says that it has not begun",
        |mut run| {
            run.go_on(0..2, true);
            run.player.memory.claims().offer(run.claim);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[],
        2,
    ),
    (
        "a word of nothing",
        |mut run| {
            run.go_on(0..2, false);
            run.overwrite(u64::MAX);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[],
        1,
    ),
    (
        "done, without answers",
        |mut run| {
            run.go_on(0..2, false);
            run.player.memory.claims().finish(run.claim);
            run.end();
        },
        TaskErrorKind::ProtocolViolation,
        &[],
        1,
    ),
];

#[tokio::test]
async fn what_a_worker_does_wrong_in_a_run_costs_what_it_had_begun_or_may_have() {
    let plays = PLAYS.map(|(what, play, kind, lost, from)| async move {
        let (ran, played_run) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let (theirs, its) = (Arc::clone(&ran), Arc::clone(&played_run));
        let first = AtomicBool::new(true);
        let mut pool = played(move |_, player| {
            let is_first = first.swap(false, Ordering::Relaxed);
            let play = is_first.then_some(|run: Begun<'_>| {
                *its.lock().unwrap() = Some((run.claim.id, run.arguments.len() as u64));
                play(run);
            });
            serve(player, &theirs, play);
        });
        pool.run_length = Some(LENGTH);
        let pool = pool.build().unwrap();
        let results = pool.map(echo, 0..ITEMS).buffered(ITEMS as usize);
        let outcomes: Vec<_> = tokio::time::timeout(HANG, results.collect()).await.expect(what);
        assert_eq!(outcomes.len() as u64, ITEMS, "{what}");
        let (id, items) = played_run.lock().unwrap().expect("there was a run");
        assert_eq!((id, items), (1, LENGTH as u64), "{what}");
        // Items have numbers from 1, in the order of the input: there is nothing else in this pool.
        let expected: Vec<u64> =
            lost.iter().copied().chain(from.min(items)..items).map(|item| id + item - 1).collect();
        let mut told = Vec::new();
        for (n, outcome) in (0..).zip(outcomes) {
            match outcome {
                Ok(value) => assert_eq!(value, n, "{what}"),
                Err(error) => {
                    assert_eq!((error.kind(), error.item()), (kind, Some(n)), "{what}: {error}");
                    told.push(n);
                }
            }
        }
        assert_eq!(told, expected, "{what}");
        let mut ran = std::mem::take(&mut *ran.lock().unwrap());
        let count = ran.len();
        ran.sort_unstable();
        ran.dedup();
        assert_eq!(ran.len(), count, "{what}: an item has run twice");
        tokio::time::timeout(HANG, pool.shutdown()).await.expect(what);
    });
    futures::future::join_all(plays).await;
}
