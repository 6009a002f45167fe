//! What is told of a panic: message, place, and a backtrace when asked for.

use crate::process::WorkerMemory;
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

/// The last panic of this thread.
#[derive(Debug, Default)]
pub(super) struct Panic {
    pub(super) location: Option<String>,
    pub(super) backtrace: Option<String>,
}

thread_local! {
    static LAST: RefCell<Option<Panic>> = const { RefCell::new(None) };
    static WANT_BACKTRACE: Cell<Option<bool>> = const { Cell::new(None) };
}

static MEMORY: OnceLock<&'static WorkerMemory> = OnceLock::new();

/// Puts our hook before the one that is there, which goes on to print. Called again after `init`,
/// which may have put its own before ours.
pub(super) fn install(memory: &'static WorkerMemory) {
    let _ = MEMORY.set(memory);
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        note(info);
        next(info);
    }));
}

/// Whether the task that runs now wants a backtrace with its panic; `None`: as the environment
/// says.
pub(super) fn want_backtrace(want: Option<bool>) {
    WANT_BACKTRACE.set(want);
    // What another task caught by itself is not this one's.
    LAST.with(|last| last.try_borrow_mut().map(|mut last| *last = None)).ok();
}

fn note(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string);
    if cfg!(panic = "abort") {
        // The process ends when the hook returns: what is not written down now is lost.
        if let Some(memory) = MEMORY.get() {
            memory
                .note()
                .write_panic(message(info.payload()), location.as_deref().unwrap_or_default());
        }
    }
    let backtrace = match WANT_BACKTRACE.get() {
        Some(true) => Backtrace::force_capture(),
        Some(false) => Backtrace::disabled(),
        None => Backtrace::capture(),
    };
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    // It fails only while it is being replaced, by a panic within.
    LAST.with(|last| {
        last.try_borrow_mut().map(|mut last| *last = Some(Panic { location, backtrace }))
    })
    .ok();
}

/// The text of a panic's payload, as std's own hook has it.
pub(super) fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "Box<dyn Any>"
    }
}

/// What the hook noted of the panic that was just caught on this thread. Takes it.
pub(super) fn last() -> Panic {
    LAST.with(|last| last.borrow_mut().take()).unwrap_or_default()
}
