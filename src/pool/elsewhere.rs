//! The engine where there are no workers: a pool cannot be built, and so nothing else is ever
//! asked.

use super::core::{Mode, TaskKey};
use super::events::Events;
use super::reply::{Inlet, Reply};
use super::shutdown::ShutdownReport;
use super::spec::{Config, Room, TaskSpec, Ticket};
use super::started::Started;
use super::stats::Stats;
use super::yielded::Wake;
use crate::error::{Error, What, Why};
use crate::template::Template;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// There is none.
#[derive(Debug)]
pub(crate) enum Engine {}

impl Engine {
    pub(crate) fn new(_: Config, _: Option<Template>) -> Result<Arc<Self>, Error> {
        Err(Why::Unsupported.into())
    }

    pub(crate) fn config(&self) -> &Config {
        match *self {}
    }

    pub(crate) fn is_forked_copy() -> bool {
        false
    }

    pub(crate) fn submit(
        &self,
        _: &TaskSpec,
        _: impl FnOnce(&mut Vec<u8>, usize) -> Result<(), What>,
        _: Reply,
        _: Room,
    ) -> Ticket {
        match *self {}
    }

    pub(crate) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        match *self {}
    }

    pub(crate) fn abort(&self, _: TaskKey) {
        match *self {}
    }

    pub(crate) fn abort_all_of(&self, _: &Arc<Inlet>) {
        match *self {}
    }

    pub(crate) fn watch_start(&self, _: TaskKey) -> Option<watch::Receiver<Option<Started>>> {
        match *self {}
    }

    pub(crate) fn wake_sender(&self, _: Option<TaskKey>, _: &Wake) {
        match *self {}
    }

    pub(crate) fn is_open(&self, _: TaskKey) -> bool {
        match *self {}
    }

    pub(crate) fn worker_pid(&self, _: TaskKey) -> Option<u32> {
        match *self {}
    }

    pub(crate) fn appetite(&self, _: Mode) -> usize {
        match *self {}
    }

    pub(crate) fn run_length(&self, _: &TaskSpec, _: usize, _: usize) -> usize {
        match *self {}
    }

    pub(crate) fn run_bytes(&self) -> usize {
        match *self {}
    }

    pub(crate) fn submit_run(&self, _: &TaskSpec, _: &[u8], _: u32, _: &Arc<Inlet>, _: u64) {
        match *self {}
    }

    pub(crate) async fn ready(&self) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) async fn recycled(&self, _: Result<u64, Error>) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn recycle(&self) -> Result<u64, Error> {
        match *self {}
    }

    pub(crate) fn resize(&self, _: usize, _: usize) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn workers(&self) -> usize {
        match *self {}
    }

    pub(crate) fn drain(&self, _: Option<Duration>) {
        match *self {}
    }

    pub(crate) fn abort_unbegun(&self) -> usize {
        match *self {}
    }

    pub(crate) fn takes_nothing(&self) -> bool {
        match *self {}
    }

    pub(crate) fn closing(&self) -> WaitForCancellationFutureOwned {
        match *self {}
    }

    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        match *self {}
    }

    pub(crate) fn stats(&self) -> Stats {
        match *self {}
    }

    pub(crate) fn events(&self) -> Events {
        match *self {}
    }

    pub(crate) fn cut_off(&self) -> ShutdownReport {
        match *self {}
    }

    pub(crate) fn kill(&self) {
        match *self {}
    }

    pub(crate) fn attend(&self) {
        match *self {}
    }

    pub(crate) fn attend_blocking(&self) {
        match *self {}
    }
}
