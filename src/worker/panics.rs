//! What is told of a panic: message, place, and a backtrace when asked for.

use crate::process::WorkerMemory;
use std::any::{Any, TypeId};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a panic was, as far as that is known.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) location: Option<String>,
    pub(super) backtrace: Option<String>,
}

/// The last panic of this thread that the hook was called for.
#[derive(Debug)]
struct Noted {
    payload: Identity,
    place: Place,
}

/// What tells the payload of one panic from that of another. A panic that is resumed calls no
/// hook, so the last one that was noted need not be the one that was caught.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// A text is moved into the box that is caught; its bytes stay where they are.
    Text(usize),
    /// Of other payloads only the type is known.
    Other(TypeId),
}

impl Identity {
    fn of(payload: &(dyn Any + Send)) -> Self {
        match text(payload) {
            Some(text) => Self::Text(text.as_ptr().addr()),
            None => Self::Other(payload.type_id()),
        }
    }
}

thread_local! {
    static LAST: RefCell<Option<Noted>> = const { RefCell::new(None) };
    /// There is something in `LAST`.
    static IS_NOTED: Cell<bool> = const { Cell::new(false) };
    static WANT_BACKTRACE: Cell<Option<bool>> = const { Cell::new(None) };
}

static MEMORY: OnceLock<&'static WorkerMemory> = OnceLock::new();

/// A hook of ours was dropped, because a task or another thread has replaced it.
static REPLACED: AtomicBool = AtomicBool::new(false);

/// Is dropped with the hook that owns it.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        REPLACED.store(true, Ordering::Relaxed);
    }
}

/// Puts our hook before the one that is there, which goes on to print. Called again after `init`,
/// which may have put its own before ours. A template has no memory to note a panic in.
pub(super) fn install(memory: Option<&'static WorkerMemory>) {
    if let Some(memory) = memory {
        let _ = MEMORY.set(memory);
    }
    put_first();
}

fn put_first() {
    let next = std::panic::take_hook();
    let installed = Installed;
    std::panic::set_hook(Box::new(move |info| {
        let _ = &installed; // owned by the hook
        note(info);
        next(info);
    }));
}

/// Prepares for what a task may panic with: `want` says whether it wants a backtrace; `None`: as
/// the environment says.
pub(super) fn want_backtrace(want: Option<bool>) {
    WANT_BACKTRACE.set(want);
    // What another task caught by itself is not this one's.
    if IS_NOTED.replace(false) {
        LAST.with(|last| last.try_borrow_mut().map(|mut last| *last = None)).ok();
    }
    // An earlier task may have set a hook of its own; that one is kept, behind ours.
    if REPLACED.load(Ordering::Relaxed) && REPLACED.swap(false, Ordering::Relaxed) {
        put_first();
    }
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
    let noted =
        Noted { payload: Identity::of(info.payload()), place: Place { location, backtrace } };
    // It fails only while it is being replaced, by a panic within.
    LAST.with(|last| last.try_borrow_mut().map(|mut last| *last = Some(noted))).ok();
    IS_NOTED.set(true);
}

/// The text of a panic's payload, as std's own hook has it.
pub(super) fn message(payload: &(dyn Any + Send)) -> &str {
    text(payload).unwrap_or("Box<dyn Any>")
}

fn text(payload: &(dyn Any + Send)) -> Option<&str> {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// What the hook noted of the panic that was just caught on this thread. Nothing, if that panic
/// was resumed and another one was noted. Takes it.
pub(super) fn place_of(payload: &(dyn Any + Send)) -> Place {
    let noted = LAST.with(|last| last.borrow_mut().take());
    noted
        .filter(|noted| noted.payload == Identity::of(payload))
        .map(|noted| noted.place)
        .unwrap_or_default()
}
