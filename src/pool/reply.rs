//! Where a task's outcome goes.

use super::core::Carried;
use super::run::Run;
use super::started::Start;
use super::yielded::Yielded;
use crate::error::TaskError;
use crate::panics::catch_user_panic;
use crate::reactor::mailbox::Mailbox;
use crate::wire::packet::Packet;
pub(crate) use crate::wire::value::names::{Encoded, Things};
use crate::wire::{frame, message};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Poll, Waker};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// The encoded result of a task, or why there is none.
pub(crate) type Outcome = Result<Encoded, TaskError>;

/// What the scheduler carries for each task.
#[derive(Debug)]
pub(crate) struct Cargo {
    /// The call, ready to be written.
    pub(crate) frame: Packet,
    pub(crate) reply: Reply,
    pub(crate) function: &'static str,
    /// What few tasks have.
    pub(crate) extra: Option<Box<Extra>>,
    /// A place in the bounded backlog, held until the task is sent.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// What few tasks have, apart, so that the many are small.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// How its earlier tries failed.
    earlier: Vec<TaskError>,
    /// Watches over the token that cancels it, as long as this lives.
    #[expect(dead_code, reason = "its drop is what it is for")]
    #[cfg(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    ))]
    token: Option<super::tokens::Registration>,
    /// The references to shared objects that its arguments name: kept until it has ended, to be
    /// sent again should it move.
    things: Things,
    /// It is a run, and these are its items.
    items: Option<Items>,
    /// Those who wait for it to begin.
    start: Option<Start>,
}

#[derive(Debug)]
struct Items {
    /// The number of the first one.
    id: u64,
    run: Run,
}

impl Extra {
    /// What a run has, whose first item has this number.
    pub(crate) fn of_run(id: u64, run: Run) -> Box<Self> {
        Box::new(Self { items: Some(Items { id, run }), ..Self::default() })
    }

    /// What a task has whose token is watched, or whose arguments name shared objects.
    #[cfg(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(procpool_elsewhere)
    ))]
    pub(crate) fn of(
        token: Option<super::tokens::Registration>,
        things: Things,
    ) -> Option<Box<Self>> {
        (token.is_some() || things.is_some())
            .then(|| Box::new(Self { token, things, ..Self::default() }))
    }
}

impl Carried for Cargo {
    fn run(&self) -> Option<&Run> {
        Some(&self.extra.as_ref()?.items.as_ref()?.run)
    }

    fn run_mut(&mut self) -> Option<&mut Run> {
        Some(&mut self.extra.as_mut()?.items.as_mut()?.run)
    }

    fn yields(&self) -> bool {
        matches!(self.reply, Reply::Yielded(_))
    }

    fn start_anew(&self) -> bool {
        match &self.reply {
            Reply::Yielded(items) => items.start_anew(),
            _ => true,
        }
    }

    fn part(&mut self, from: u32) -> Self {
        let items = self.extra.as_mut().and_then(|extra| extra.items.as_mut());
        let (Some(items), Reply::Stream(inlet, place)) = (items, &self.reply) else {
            unreachable!("only runs are parted")
        };
        let extra = Extra::of_run(items.id + u64::from(from), items.run.part(from));
        let reply = Reply::Stream(Arc::clone(inlet), place + u64::from(from));
        Self {
            frame: part_frame(&mut self.frame, from),
            reply,
            function: self.function,
            extra: Some(extra),
            room: None,
        }
    }
}

/// Takes the items from this one on out of the frame of a run; gives theirs.
fn part_frame(frame: &mut Packet, from: u32) -> Packet {
    let (mut front, mut rest) = (Vec::new(), Vec::new());
    let starts = [&mut front, &mut rest].map(frame::begin);
    let parted = message::part_run(&frame[frame::HEAD..], from as u16, &mut front, &mut rest);
    parted.expect("a run of ours has all its items");
    frame::finish(&mut front, starts[0]);
    frame::finish(&mut rest, starts[1]);
    *frame = Packet::from(&mut front);
    Packet::from(&mut rest)
}

impl Cargo {
    /// The references to shared objects that its arguments name.
    pub(crate) fn things(&self) -> Things {
        self.extra.as_ref().and_then(|extra| extra.things.clone())
    }

    /// Those who wait for it to begin, if there are any.
    pub(crate) fn start_mut(&mut self) -> Option<&mut Start> {
        self.extra.as_mut()?.start.as_mut()
    }

    /// The same; makes it.
    pub(crate) fn start(&mut self) -> &mut Start {
        self.extra.get_or_insert_default().start.get_or_insert_with(Start::new)
    }

    /// A try has failed, and another follows.
    pub(crate) fn failed(&mut self, error: TaskError) {
        self.extra.get_or_insert_default().earlier.push(error);
    }

    /// Where the outcome of the item of a run goes that has this number, and its place there.
    pub(crate) fn item(&self, id: u64) -> Option<(&Arc<Inlet>, u64)> {
        let items = self.extra.as_ref()?.items.as_ref()?;
        match &self.reply {
            Reply::Stream(inlet, place) => Some((inlet, place + id.checked_sub(items.id)?)),
            Reply::Join(_) | Reply::Yielded(_) => None,
        }
    }

    /// Where its items go, if it yields.
    pub(crate) fn yielded(&self) -> Option<&Arc<Yielded>> {
        match &self.reply {
            Reply::Yielded(items) => Some(items),
            _ => None,
        }
    }

    /// Gives the task its outcome, or all items of a run that have none; an error brings along
    /// those of the earlier tries.
    pub(crate) fn settle(self, outcome: Outcome) {
        if let (Some(run), Reply::Stream(inlet, place)) = (self.run(), &self.reply) {
            let places = run.unanswered().map(|item| place + u64::from(item));
            return inlet.put(places.map(|place| Came::One(place, outcome.clone())));
        }
        let earlier =
            self.extra.map(|mut extra| std::mem::take(&mut extra.earlier)).unwrap_or_default();
        self.reply.settle(outcome.map_err(|error| error.after(earlier)));
    }
}

/// Who waits for a task.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A `JoinHandle`, or nobody any more.
    Join(oneshot::Sender<Outcome>),
    /// A `Results`; the number is the item's place in the input, or the first one's of a run.
    Stream(Arc<Inlet>, u64),
    /// A `TaskStream`.
    Yielded(Arc<Yielded>),
}

impl Reply {
    pub(crate) fn settle(self, outcome: Outcome) {
        catch_user_panic(|| match self {
            Self::Join(sender) => drop(sender.send(outcome)), // it may have been detached
            Self::Stream(inlet, place) => inlet.put([Came::One(place, outcome)]),
            Self::Yielded(items) => items.end(outcome).into_iter().for_each(Waker::wake),
        });
    }

    pub(crate) fn is_of(&self, inlet: &Arc<Inlet>) -> bool {
        matches!(self, Self::Stream(own, _) if Arc::ptr_eq(own, inlet))
    }
}

/// What comes back of a map's items.
#[derive(Debug)]
pub(crate) enum Came {
    /// The outcome of the item in this place.
    One(u64, Outcome),
    Block(Block),
}

impl Came {
    /// The place of its first item.
    pub(crate) fn place(&self) -> u64 {
        match self {
            Self::One(place, _) => *place,
            Self::Block(block) => block.place,
        }
    }
}

/// Plain results of items that follow each other, as they came: they are decoded one by one, when
/// the stream is polled.
#[derive(Debug)]
pub(crate) struct Block {
    /// The place of the item whose result is next.
    pub(crate) place: u64,
    /// Frames as they lay in an outbox, each with the result of one item.
    frames: Box<[u8]>,
    at: usize,
}

impl Block {
    /// `frames` are those of [`message::read_done`], each padded to a multiple of 8 bytes.
    pub(crate) fn new(place: u64, frames: &[u8]) -> Self {
        Self { place, frames: frames.into(), at: 0 }
    }

    /// The next encoded result.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let (body, next) = frame::boxed(&self.frames, self.at)?;
        let (_, value) = message::read_done(body)?;
        self.at = next;
        self.place += 1;
        Some(&body[value..])
    }
}

/// What has come of one `Results`, in the order in which it came.
#[derive(Debug, Default)]
pub(crate) struct Inlet {
    came: Mailbox<VecDeque<Came>>,
}

impl Inlet {
    /// Puts in what has come at once, and then wakes whoever waits for it.
    pub(crate) fn put(&self, came: impl IntoIterator<Item = Came>) {
        let mut came = came.into_iter().peekable();
        if came.peek().is_some() {
            self.came.change(|all| all.extend(came));
        }
    }

    /// Swaps what has come into the (empty) `into`; if nothing has, `waker` is told of the next.
    pub(crate) fn poll_take(&self, into: &mut VecDeque<Came>, waker: &Waker) -> Poll<()> {
        self.came.poll(waker, |came| {
            if came.is_empty() {
                return Poll::Pending;
            }
            std::mem::swap(came, into);
            Poll::Ready(())
        })
    }
}
