//! A `recv` that waits, for one item.
//!
//! If its handle has a lane, the item comes there, and is taken as any that is there: without a
//! word to the manager. One at a time waits so; others of the same handle wait by message
//! meanwhile, and take nothing out of the lane, for what comes there is his.

use super::handle::{Asking, Handle};
use super::queue::reply;
use super::wait;
use crate::error::sync::Error;
use crate::manager::object::Body;
use crate::manager::objects::code::{Message, Wait};
use crate::manager::objects::queue::{Ask, Reply};
use crate::process::fork;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// See the module.
pub(super) struct Receiving {
    handle: Handle,
    wait: Wait,
    asking: Option<Asking>,
    at_lane: bool,
}

impl Receiving {
    pub(super) fn new(handle: &Handle, wait: Wait) -> Self {
        let lane = handle.wait_at_lane();
        let mut this = Self { handle: handle.clone(), wait, asking: None, at_lane: lane.is_some() };
        this.ask(lane);
        this
    }

    fn ask(&mut self, lane: Option<u64>) {
        let wait = self.wait;
        let ask = lane.map_or(Ask::Recv { wait, max: 1 }, |lane| Ask::RecvByLane { wait, lane });
        self.asking = Some(self.handle.ask(ask.body()));
    }

    /// As [`Asking::wait`].
    #[track_caller]
    pub(super) fn wait(self) -> Result<Body, Error> {
        wait::block_on(self)
    }
}

impl Future for Receiving {
    type Output = Result<Body, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            let asking = this.asking.as_mut().expect("polled after it was ready");
            let answer = ready!(Pin::new(asking).poll(cx));
            this.asking = None;
            if !std::mem::take(&mut this.at_lane) || fork::is_forked_copy() {
                return Poll::Ready(answer);
            }
            let is_there = answer
                .as_ref()
                .is_ok_and(|body| reply(body).is_ok_and(|reply| reply == Reply::InLane));
            let item = this.handle.leave_lane(is_there);
            if !is_there {
                return Poll::Ready(answer);
            }
            match item {
                Some(item) => return Poll::Ready(Ok(item)),
                // Only if the lane was closed, for it made no sense.
                None => this.ask(None),
            }
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // First: from then on nothing is taken out of the lane until the manager has heard that
        // this one waits no longer.
        self.asking = None;
        if self.at_lane && !fork::is_forked_copy() {
            self.handle.leave_lane(false);
        }
    }
}
