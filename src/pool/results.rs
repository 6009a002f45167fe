//! The results of one `map`: a stream.

use super::engine::Engine;
use super::reply::{Block, Came, Inlet, Outcome, Reply};
use super::run::ITEMS_MAX;
use super::spec::{Room, TaskSpec};
use crate::coop::BudgetUnit;
use crate::error::{TaskError, What};
use crate::task::{ArgsFor, encode_args};
use crate::wire::value::names;
use crate::wire::{message, value};
use futures::Stream;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// With so many items in flight, none waits for one more to be pulled.
const MANY: usize = 64;
/// So many items are handed in before those that wait for them get a turn; or as many as go
/// together, if those are more.
const BURST: usize = 256;

/// The results of [`Pool::map`](crate::Pool::map) and its relatives: a stream.
///
/// Each item is a `Result<R, TaskError>` of its own: a failing item neither ends the stream nor
/// hides the later ones. They come in the order of the input, or with
/// [`unordered`](Self::unordered) as they finish.
///
/// Nothing is pulled from the source before the first poll, and then only by polling. At most
/// [`buffered`](Self::buffered) items are in flight, that is pulled and not yet taken as results,
/// so the input may be endless.
///
/// A source that panics, or an item whose encoding does: the results of the items before it come
/// first, then the panic goes on. (Use [`Pool::try_map_stream`](crate::Pool::try_map_stream) for a
/// source that can fail.)
///
/// After the pool was closed nothing more is pulled: the results of what had been pulled come
/// first, then one error that is [`is_pool_closed`](TaskError::is_pool_closed), unless the source
/// had ended by then or such an error was given already, then the stream ends.
///
/// # Drop
///
/// Aborts what is left, as [`JoinHandle::abort`](crate::JoinHandle::abort) does: what waits never
/// runs, what runs is stopped.
///
/// # Cancel safety
///
/// `next()` loses nothing when it is dropped.
#[must_use = "streams do nothing unless polled"]
pub struct Results<S, Args, R> {
    flow: Flow<S, R>,
    args: PhantomData<fn() -> Args>,
}

/// The results of a map, each with the place of its item in the input:
/// [`Results::enumerate_items`].
///
/// # Cancel safety
///
/// `next()` loses nothing when it is dropped.
#[must_use = "streams do nothing unless polled"]
pub struct ItemResults<S, Args, R>(Results<S, Args, R>);

/// The results of [`Pool::try_map_stream`](crate::Pool::try_map_stream): as [`Results`], over a
/// source that can fail.
///
/// Each item is `Ok` with the outcome of a task, or `Err` with the source's own error. That comes
/// once, after the results of all items before it, and is the end.
#[must_use = "streams do nothing unless polled"]
pub struct TryResults<S, E, Args, R> {
    flow: Flow<S, R>,
    error: Option<E>,
    args: PhantomData<fn() -> Args>,
}

/// What both streams are: items go from a source into the pool, and results come out.
struct Flow<S, R> {
    source: Source<S>,
    sink: Sink<R>,
    unit: BudgetUnit,
}

/// What has been handed in, and what has come back.
struct Sink<R> {
    engine: Arc<Engine>,
    task: TaskSpec,
    inlet: Arc<Inlet>,
    buffered: Option<usize>,
    unordered: bool,
    /// How many items may be in flight; 0 when it is to be asked for again.
    appetite: usize,
    /// Items handed in and not yet given out as results.
    in_flight: usize,
    /// The place of the next item that is pulled.
    next_in: u64,
    /// Results that are being given out.
    current: Option<Block>,
    /// Ordered: the place of the next result that is given out, and what waits for its turn, by the
    /// place of its first result.
    next_out: u64,
    waiting: BTreeMap<u64, Came>,
    arrived: VecDeque<Came>,
    gathered: Gathered,
    /// The place of the item whose result was given out last.
    given: u64,
    /// Items that have come back so far.
    came: usize,
    /// An item's outcome was that the pool is closed.
    told_closed: bool,
    /// Wakes the stream when the pool is closed, while no item is in flight. Made on first use.
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    result: PhantomData<fn() -> R>,
}

/// Items that are to go together, as a run: many tiny ones cost less so.
#[derive(Debug, Default)]
struct Gathered {
    /// How many are enough, and how many bytes of them. With 1, each goes alone.
    enough: usize,
    limit: usize,
    /// As a run has them, and as far as they are whole.
    bytes: Vec<u8>,
    whole: usize,
    items: u32,
    /// There was one that cannot go with others, so there may be many: all go alone.
    all_singly: bool,
}

/// Where the items come from.
struct Source<S> {
    /// `None` when it has ended.
    stream: Option<Pin<Box<S>>>,
    panic: Option<Box<dyn Any + Send>>,
}

macro_rules! options {
    () => {
        /// Gives the results as they finish, not in the order of the input.
        #[doc(alias = "imap_unordered")]
        pub fn unordered(mut self) -> Self {
            self.flow.sink.unordered = true;
            self
        }

        /// At most `items` are in flight: pulled from the source and not yet taken as results.
        ///
        /// Default: three times what each worker should have in hand. That follows how long the
        /// tasks take: of sync ones it is some 3 ms of work per worker (0.3 ms with
        /// [`low_latency`](crate::Builder::low_latency)), at least one task; of async ones
        /// [`concurrency`](crate::Builder::concurrency).
        ///
        /// # Panics
        ///
        /// If `items` is zero: nothing would ever be done.
        pub fn buffered(mut self, items: usize) -> Self {
            assert!(items > 0, "`buffered(0)` would never begin");
            self.flow.sink.buffered = Some(items);
            self
        }
    };
}

impl<S, Args, R> Results<S, Args, R> {
    pub(super) fn new(engine: &Arc<Engine>, task: TaskSpec, source: S) -> Self {
        Self { flow: Flow::new(engine, task, source), args: PhantomData }
    }

    options!();

    /// Gives each result together with the place of its item in the input, counted from 0. So
    /// [`unordered`](Self::unordered) results can be told apart.
    ///
    /// ```
    /// # use futures::StreamExt;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), procpool::TaskError> {
    /// # let pool = procpool::Pool::builder().workers(2).build().unwrap();
    /// let words = ["a", "bcd"];
    /// let mut lengths = pool.map(|s: String| s.len(), words).unordered().enumerate_items();
    /// while let Some((item, length)) = lengths.next().await {
    ///     assert_eq!(length?, words[item as usize].len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "enumerate")]
    pub fn enumerate_items(self) -> ItemResults<S, Args, R> {
        ItemResults(self)
    }
}

impl<S, E, Args, R> TryResults<S, E, Args, R> {
    pub(super) fn new(engine: &Arc<Engine>, task: TaskSpec, source: S) -> Self {
        Self { flow: Flow::new(engine, task, source), error: None, args: PhantomData }
    }

    options!();
}

impl<S, Args, R> Stream for Results<S, Args, R>
where
    S: Stream,
    S::Item: ArgsFor<Args>,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.flow.poll_next(cx, |sink, item| {
            sink.hand_in(&item);
            true
        })
    }
}

impl<S, Args, R> Stream for ItemResults<S, Args, R>
where
    S: Stream,
    S::Item: ArgsFor<Args>,
    R: DeserializeOwned,
{
    type Item = (u64, Result<R, TaskError>);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.0).poll_next(cx);
        polled.map(|result| result.map(|result| (self.0.flow.sink.given, result)))
    }
}

impl<S, P, E, Args, R> Stream for TryResults<S, E, Args, R>
where
    S: Stream<Item = Result<P, E>>,
    P: ArgsFor<Args>,
    R: DeserializeOwned,
{
    type Item = Result<Result<R, TaskError>, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { flow, error, .. } = &mut *self;
        let polled = flow.poll_next(cx, |sink, item| match item {
            Ok(item) => {
                sink.hand_in(&item);
                true
            }
            Err(own) => {
                *error = Some(own);
                false
            }
        });
        Poll::Ready(match ready!(polled) {
            Some(outcome) => Some(Ok(outcome)),
            None => error.take().map(Err),
        })
    }
}

impl<S: Stream, R: DeserializeOwned> Flow<S, R> {
    /// The next result. `hand_in` says whether to go on with the source.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        hand_in: impl FnMut(&mut Sink<R>, S::Item) -> bool,
    ) -> Poll<Option<Result<R, TaskError>>> {
        ready!(self.unit.poll_unit(cx));
        let polled = self.poll_result(cx, hand_in);
        self.unit.per_item(polled)
    }

    fn poll_result(
        &mut self,
        cx: &mut Context<'_>,
        mut hand_in: impl FnMut(&mut Sink<R>, S::Item) -> bool,
    ) -> Poll<Option<Result<R, TaskError>>> {
        self.feed(cx, &mut hand_in);
        let mut taken = self.sink.poll_take(cx, self.source.stream.is_none());
        if taken.is_pending() && self.feed(cx, &mut hand_in) {
            // Room that was withheld while results were at hand has been used before the stream
            // waits. What has been handed in is what it waits for now.
            taken = self.sink.poll_take(cx, self.source.stream.is_none());
        }
        if taken.is_pending() && self.sink.in_flight == 0 && self.sink.poll_closed(cx) {
            return self.finish(cx, &mut hand_in);
        }
        if let Poll::Ready(None) = taken
            && let Some(panic) = self.source.panic.take()
        {
            resume_unwind(panic);
        }
        taken
    }

    /// Pulls what there is room for. `false`: nothing has changed.
    fn feed(
        &mut self,
        cx: &mut Context<'_>,
        hand_in: &mut impl FnMut(&mut Sink<R>, S::Item) -> bool,
    ) -> bool {
        let Self { source, sink, .. } = self;
        let before = (sink.next_in, source.stream.is_none());
        let room = sink.room();
        if room > 0 {
            source.pull(room, sink.gathered.enough.max(BURST), cx, |item| hand_in(sink, item));
            sink.send();
        }
        before != (sink.next_in, source.stream.is_none())
    }

    /// The last result after the pool was closed, when all that was handed in has come back.
    fn finish(
        &mut self,
        cx: &mut Context<'_>,
        hand_in: &mut impl FnMut(&mut Sink<R>, S::Item) -> bool,
    ) -> Poll<Option<Result<R, TaskError>>> {
        let Self { source, sink, .. } = self;
        if !sink.told_closed {
            // The source may just have ended, or failed; then the stream ends as ever. An item
            // that comes is refused, which is the error to be given.
            source.pull(1, BURST, cx, |item| hand_in(sink, item));
            sink.send();
        }
        let is_cut_off = source.stream.take().is_some();
        let mut taken = sink.poll_take(cx, true);
        if matches!(taken, Poll::Ready(None)) && is_cut_off && !sink.told_closed {
            taken = Poll::Ready(Some(sink.refused()));
        }
        if let Poll::Ready(None) = taken
            && let Some(panic) = source.panic.take()
        {
            resume_unwind(panic);
        }
        taken
    }
}

/// The source is boxed, and an error that waits for its turn is never pinned.
impl<S, E, Args, R> Unpin for TryResults<S, E, Args, R> {}

impl<R> Drop for Sink<R> {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            self.engine.abort_all_of(&self.inlet);
        }
    }
}

impl<S, Args, R> fmt::Debug for Results<S, Args, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results")
            .field("in_flight", &self.flow.sink.in_flight)
            .finish_non_exhaustive()
    }
}

impl<S, Args, R> fmt::Debug for ItemResults<S, Args, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ItemResults").field(&self.0).finish()
    }
}

impl<S, E, Args, R> fmt::Debug for TryResults<S, E, Args, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryResults")
            .field("in_flight", &self.flow.sink.in_flight)
            .finish_non_exhaustive()
    }
}

impl<S, R> Flow<S, R> {
    fn new(engine: &Arc<Engine>, task: TaskSpec, source: S) -> Self {
        Self {
            source: Source::new(source),
            sink: Sink::new(engine, task),
            unit: BudgetUnit::default(),
        }
    }
}

impl<S> Source<S> {
    fn new(stream: S) -> Self {
        Self { stream: Some(Box::pin(stream)), panic: None }
    }

    /// Pulls at most `room` items, and not more than `burst` at once; `hand_in` says whether to go
    /// on.
    fn pull(
        &mut self,
        room: usize,
        burst: usize,
        cx: &mut Context<'_>,
        mut hand_in: impl FnMut(S::Item) -> bool,
    ) where
        S: Stream,
    {
        for count in 0..room {
            let Some(stream) = &mut self.stream else { return };
            if count == burst {
                // Results may have come meanwhile: they are taken before more is made.
                return cx.waker().wake_by_ref();
            }
            // What a source leaves behind when it panics is its own business: it is not polled
            // again. To encode an item runs code of the source's as well.
            let pulled = catch_unwind(AssertUnwindSafe(|| {
                stream.as_mut().poll_next(cx).map(|item| item.map(&mut hand_in))
            }));
            match pulled {
                Ok(Poll::Pending) => return,
                Ok(Poll::Ready(Some(true))) => {}
                Ok(Poll::Ready(Some(false) | None)) => self.stream = None,
                Err(panic) => (self.stream, self.panic) = (None, Some(panic)),
            }
        }
    }
}

impl<R> Sink<R> {
    fn new(engine: &Arc<Engine>, task: TaskSpec) -> Self {
        Self {
            engine: Arc::clone(engine),
            task,
            inlet: Arc::default(),
            buffered: None,
            unordered: false,
            appetite: 0,
            in_flight: 0,
            next_in: 0,
            current: None,
            next_out: 0,
            waiting: BTreeMap::new(),
            arrived: VecDeque::new(),
            gathered: Gathered::default(),
            given: 0,
            came: 0,
            told_closed: false,
            closing: None,
            result: PhantomData,
        }
    }

    /// How many items may be pulled now.
    fn room(&mut self) -> usize {
        if self.appetite == 0 {
            self.appetite = self.buffered.unwrap_or_else(|| self.engine.appetite(self.task.mode));
            let enough = self.engine.run_length(&self.task, self.appetite, self.came);
            self.gathered.enough = enough.clamp(1, ITEMS_MAX as usize);
            self.gathered.limit = self.engine.run_bytes();
        }
        let room = self.appetite.saturating_sub(self.in_flight);
        // While results are at hand, many small items are pulled by the quarter, not one by one:
        // they travel together.
        let at_hand = self.current.is_some() || !self.arrived.is_empty();
        let room = if at_hand && self.appetite >= MANY {
            // Nor in addition to those that go together.
            let enough = self.gathered.enough;
            match room >= self.appetite / 4 {
                true if room >= enough => room - room % enough,
                true => room,
                false => 0,
            }
        } else {
            room
        };
        if room == 0 || self.engine.takes_nothing() { 0 } else { room }
    }
}

impl<R: DeserializeOwned> Sink<R> {
    fn hand_in<Args, P: ArgsFor<Args>>(&mut self, args: &P) {
        if self.gathered.enough > 1 && !self.gathered.all_singly && self.gather(args) {
            self.counted();
            if self.gathered.items as usize >= self.gathered.enough
                || self.gathered.whole >= self.gathered.limit
            {
                self.send();
            }
            return;
        }
        self.send(); // in order
        let reply = Reply::Stream(Arc::clone(&self.inlet), self.next_in);
        // Its own bound takes the place of the pool's backlog limit.
        self.engine.submit(
            &self.task,
            |out, limit| encode(args, out, limit),
            reply,
            Room::NotNeeded,
        );
        // Only now: an item whose encoding panics is not in flight.
        self.counted();
    }

    /// Puts an item to those that go together. `false`: it must go alone, and is to be encoded
    /// anew, which tells what is wrong with it.
    fn gather<Args, P: ArgsFor<Args>>(&mut self, args: &P) -> bool {
        let Gathered { limit, bytes, whole, items, all_singly, .. } = &mut self.gathered;
        bytes.truncate(*whole); // what a panic has left there
        let start = message::begin_item(bytes);
        let (encoded, things) = names::collecting(|| encode(args, bytes, *limit));
        let is_too_large = matches!(encoded, Err(What::ArgumentTooLarge { .. }));
        if encoded.is_err() || !things.is_empty() {
            *all_singly = is_too_large || !things.is_empty();
            return false;
        }
        message::finish_item(bytes, start);
        *whole = bytes.len();
        *items += 1;
        true
    }

    /// Hands in what has been gathered.
    fn send(&mut self) {
        let Gathered { bytes, whole, items, .. } = &mut self.gathered;
        let (len, count) = (std::mem::take(whole), std::mem::take(items));
        if count > 0 {
            self.engine.submit_run(
                &self.task,
                &bytes[..len],
                count,
                &self.inlet,
                self.next_in - u64::from(count),
            );
        }
        bytes.clear();
    }

    fn counted(&mut self) {
        self.next_in += 1;
        self.in_flight += 1;
    }

    /// Whether the pool is closed; if not, the stream is woken when it is.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> bool {
        // A forked copy is refused everything, as if the pool were closed, and is not told of it.
        self.engine.takes_nothing()
            || self
                .closing
                .get_or_insert_with(|| Box::pin(self.engine.closing()))
                .as_mut()
                .poll(cx)
                .is_ready()
    }

    /// What becomes of the items that the source would still have given.
    fn refused(&mut self) -> Result<R, TaskError> {
        let what = if Engine::is_forked_copy() { What::Forked } else { What::PoolClosed };
        self.told_closed = true;
        self.given = self.next_in;
        Err(TaskError::new(what, self.task.function).of_item(self.next_in))
    }

    /// The next result, in the order that was asked for.
    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        source_ended: bool,
    ) -> Poll<Option<Result<R, TaskError>>> {
        loop {
            if let Some(result) = self.take_of_block() {
                return Poll::Ready(Some(result));
            }
            let next = match self.waiting.first_entry() {
                Some(first) if self.unordered || *first.key() == self.next_out => {
                    Some(first.remove())
                }
                _ => self.arrived.pop_front(),
            };
            match next {
                Some(came) if !self.unordered && came.place() != self.next_out => {
                    self.waiting.insert(came.place(), came);
                    continue;
                }
                Some(Came::Block(block)) => {
                    self.current = Some(block);
                    continue;
                }
                Some(Came::One(place, outcome)) => {
                    return Poll::Ready(Some(self.give(place, outcome)));
                }
                None => {}
            }
            if self.in_flight == 0 {
                // The source has ended, or has none now and will wake us.
                return if source_ended { Poll::Ready(None) } else { Poll::Pending };
            }
            if Engine::is_forked_copy() {
                // Their results come to the original process.
                self.given(self.next_out);
                self.told_closed = true;
                return Poll::Ready(Some(Err(TaskError::new(What::Forked, self.task.function))));
            }
            self.appetite = 0;
            if self.inlet.poll_take(&mut self.arrived, cx.waker()).is_pending() {
                self.engine.attend();
                return Poll::Pending;
            }
        }
    }

    /// The next of the results that are being given out.
    #[inline]
    fn take_of_block(&mut self) -> Option<Result<R, TaskError>> {
        let block = self.current.as_mut()?;
        let place = block.place;
        let Some(value) = block.next() else {
            self.current = None;
            return None;
        };
        let decoded = value::decode(value);
        self.given(place);
        Some(decoded.map_err(|error| self.not_decoded(&error).of_item(place)))
    }

    fn give(&mut self, place: u64, outcome: Outcome) -> Result<R, TaskError> {
        self.given(place);
        self.told_closed |= outcome.as_ref().is_err_and(|e| e.is_pool_closed() || e.is_forked());
        outcome
            .and_then(|encoded| encoded.decode().map_err(|error| self.not_decoded(&error)))
            .map_err(|error| error.of_item(place))
    }

    /// The result of the item in this place is given out.
    #[inline]
    fn given(&mut self, place: u64) {
        self.in_flight -= 1;
        self.came += 1;
        self.given = place;
        self.next_out = place + 1;
    }

    #[cold]
    fn not_decoded(&self, error: &value::DecodeError) -> TaskError {
        TaskError::new(What::ResultDecode(error.to_string()), self.task.function)
    }
}

pub(super) fn encode<Args, P: ArgsFor<Args>>(
    args: &P,
    out: &mut Vec<u8>,
    limit: usize,
) -> Result<(), What> {
    encode_args(args, out, limit).map_err(|error| match error {
        value::EncodeError::TooLarge { limit } => What::ArgumentTooLarge { limit },
        error => What::ArgumentEncode(error.to_string()),
    })
}
