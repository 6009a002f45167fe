//! What becomes of calls when the system takes no descriptor of the application's, since too many
//! are on their way (`ETOOMANYREFS`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::Pool;
use crate::process::sys::TOO_MANY;
use crate::process::testing::{HANG, in_own_process, is_own_process};
use crate::sync::{Manager, Value};
use crate::{Process, TaskErrorKind};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn have(_: Value<u64>) {}

fn load(value: Value<u64>) -> Result<u64, String> {
    value.load().map_err(|error| error.to_string())
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(HANG, future).await.expect("it hangs")
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

#[test]
fn descriptors_that_are_not_taken_are_sent_again_later_and_then_an_error_says_so() {
    in_own_process("pool::held_descriptors::own_process_held_descriptors");
}

#[test]
#[ignore = "runs in a process of its own"]
fn own_process_held_descriptors() {
    if is_own_process() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(hold_descriptors());
    }
}

async fn hold_descriptors() {
    let pool = Pool::builder().workers(1).build().unwrap();
    soon(pool.spawn(|| (), ())).await.unwrap();
    let managers = [(); 4].map(|()| Manager::new().unwrap());
    let [announced, mapped, never, again] =
        [0, 1, 2, 3].map(|at| managers[at as usize].value(at).unwrap());
    // The socket of a manager, and a manager's memory.
    soon(pool.spawn(have, &mapped)).await.unwrap();
    for (value, holds) in [(announced, 0), (mapped, 1)] {
        TOO_MANY.store(true, Ordering::Relaxed);
        let mut call = pool.spawn(load, &value);
        let before = cpu_time();
        let early = tokio::time::timeout(Duration::from_millis(500), &mut call).await;
        assert!(early.is_err(), "nothing was held: {early:?}");
        let used = cpu_time() - before;
        assert!(used < Duration::from_millis(250), "it spins: {used:?}");
        TOO_MANY.store(false, Ordering::Relaxed);
        assert_eq!(soon(call).await.unwrap(), Ok(holds));
    }
    // It does not end.
    TOO_MANY.store(true, Ordering::Relaxed);
    let error = soon(pool.spawn(load, &never)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ArgumentDecode, "{error}");
    TOO_MANY.store(false, Ordering::Relaxed);
    soon(pool.spawn(have, &never)).await.unwrap();
    TOO_MANY.store(true, Ordering::Relaxed);
    soon(pool.spawn(load, &never)).await.unwrap().unwrap_err();
    TOO_MANY.store(false, Ordering::Relaxed);
    assert_eq!(soon(pool.spawn(|x: u64| x, 5)).await.unwrap(), 5);
    // A process for one function is sent no other call, and is told at once.
    let process = |value: &Value<u64>| Process::spawn(load, value.clone()).unwrap();
    assert_eq!(soon(process(&again)).await.unwrap(), Ok(3));
    TOO_MANY.store(true, Ordering::Relaxed);
    let error = soon(process(&again)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::ArgumentDecode, "{error}");
    TOO_MANY.store(false, Ordering::Relaxed);
}
