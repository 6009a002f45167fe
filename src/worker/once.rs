//! The one call of a process of its own: read, run, answered; then the process ends, with the exit
//! code that says how.

use super::inbox::Inbox;
use super::lifeline::{self, Lifeline};
use super::limits::TaskClock;
use super::panics;
use super::serve::{self, Async, Call, Encoded, Outcome, in_frame, lost};
use crate::sync::remote::{self, driven};
use crate::task::{Run, RunSync};
use crate::wire::message::{self, Failed, Single};
use crate::wire::value::names::Thing;
use futures::future::AbortHandle;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The function returned, and its result is on its way.
const EXIT_RETURNED: c_int = 0;
/// It panicked: what std gives a program whose `main` panics.
const EXIT_PANICKED: c_int = 101;
/// Its arguments could not be decoded, its result not encoded, or no runtime made for it.
const EXIT_UNSPEAKABLE: c_int = 1;

/// The head of an answer, at most, in bytes.
const HEAD: usize = 16;

/// Says that it is ready, runs the call that comes, and answers; gives the exit code.
pub(super) fn serve(
    mut inbox: Inbox,
    limit: usize,
    lifeline: Lifeline,
    single: &Single,
    is_detached: bool,
    mut clock: TaskClock,
) -> Result<c_int, String> {
    if let Some(mask) = single.umask {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    }
    // Before we say that we are ready: from then on whoever started us may end.
    let lifeline = if single.tied {
        Some(lifeline)
    } else {
        lifeline::let_go(lifeline).map_err(|e| format!("letting go of the lifeline: {e}"))?;
        remote::outlives_the_application();
        None
    };
    let ready = in_frame(|out| {
        if is_detached { message::detached(out, std::process::id()) } else { message::ready(out) }
    });
    inbox.send(&ready).map_err(lost)?;
    let range = loop {
        let range = inbox
            .wait()
            .map_err(lost)?
            .ok_or("whoever started it has gone, without a word of what to run")?;
        if !serve::attached(&mut inbox, &range)? {
            break range;
        }
    };
    let mut call = serve::read_call(inbox.bytes(range.clone()))?;
    // Dropped when the answer has been sent, which what it drops must not hold up.
    let mut left = None;
    let args = range.start + call.args..range.end;
    let (inbox, outcome) = if is_detached {
        // A daemon holds nothing of whoever started it, and answers nobody.
        let args = inbox.bytes(args).to_vec();
        drop(inbox);
        clock.start();
        (None, run(&mut call, &args, limit, &mut left)?)
    } else {
        clock.start();
        let outcome = run(&mut call, inbox.bytes(args), limit, &mut left)?;
        (Some(inbox), outcome)
    };
    clock.stop();
    let code = match &outcome {
        Ok(_) => EXIT_RETURNED,
        Err(Failed::Panicked { .. }) => EXIT_PANICKED,
        Err(_) => EXIT_UNSPEAKABLE,
    };
    if let Some(inbox) = inbox {
        let answer = in_frame(|out| serve::write_outcome(out, call.claim.id, outcome, limit));
        // If nobody is there any more to read it, so be it: this is how a process ends that
        // outlives its parent.
        let _ = inbox.send(&answer);
    }
    // Armed to the end.
    std::mem::forget(lifeline);
    Ok(code)
}

/// Runs the function. What it has left running is put into `left`.
fn run(
    call: &mut Call,
    args: &[u8],
    limit: usize,
    left: &mut Option<Async>,
) -> Result<Outcome, String> {
    let things = call.receive();
    match call.run {
        Run::Sync(function) => Ok(run_sync(call, function, args, limit, things)),
        Run::Async(function) => {
            let Async { runtime, local } = match Async::new() {
                Ok(made) => left.insert(made),
                Err(reason) => return Ok(Err(Failed::NoRuntime { reason })),
            };
            let (_, registration) = AbortHandle::new_pair();
            let (_, outcome) = driven(|| {
                local.block_on(runtime, async {
                    serve::begin(call, function, args, limit, registration, things, None).await
                })
            });
            Ok(outcome)
        }
        Run::InitSync(_) | Run::InitAsync(_) => Err("a call of an init function".into()),
    }
}

fn run_sync(
    call: &Call,
    function: RunSync,
    args: &[u8],
    limit: usize,
    things: Result<Vec<Thing>, Failed>,
) -> Outcome {
    panics::want_backtrace(call.backtrace);
    let mut out = Vec::new();
    let run =
        || catch_unwind(AssertUnwindSafe(|| function(args, &mut out, limit.saturating_sub(HEAD))));
    let (result, named) = serve::with_names(things?, run);
    serve::guard_against_fork();
    match result {
        Ok(Ok(verdict)) => Ok(Encoded { value: out, named, verdict }),
        Ok(Err(error)) => Err(serve::why(error)),
        Err(payload) => Err(serve::caught(payload)),
    }
}
