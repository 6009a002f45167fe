//! The linker's table: one record for every task and init function that the program mentions.
//!
//! A function that mentions a task instantiates [`platform::record`] for it. The `asm!` block there
//! puts a record into the section `procpool_tasks` of its object file, and the linker joins these
//! sections into one array between `__start_procpool_tasks` and `__stop_procpool_tasks`. So a
//! worker, which is the same program, has the same array, and a task travels as an index into it.
//! Nothing runs at startup, and the records need no relocation by the loader.
//!
//! 1. A record is two words of 32 bits, each the distance from itself to a few instructions in the
//!    same object file, so the array is the same wherever the program is loaded:
//!
//!    ```text
//!    entry   jumps to a function that returns the Entry, in Rust's calling convention
//!    owner   returns the address of OWNER, a static of this very crate, in C's
//!    ```
//!
//! 2. The instructions are there because what they lead to may be a symbol that the object exports,
//!    or imports from another: a distance to such a symbol does not link into a `dylib`, a jump and
//!    a look-up do. They stand in a text section of their own, where nothing falls into them.
//! 3. Two versions of this crate in one program share the section. A record whose owner is not our
//!    `OWNER` is one of the other crate: its index counts, its entry is never called.
//! 4. So whoever changes what rule 1 says changes the section's name.
//! 5. The section has alignment 4 and holds whole records only, so the linker puts no padding
//!    between two of them.
//! 6. Flag `R` (SHF_GNU_RETAIN) keeps lld's garbage collection away from records, which nothing
//!    refers to.
//! 7. The same task may have several records, where several crates or codegen units mention it. Any
//!    of them will do.
//! 8. What the array holds is what the linker found in the program: an index from elsewhere is
//!    checked against its length, and cannot lead to anything but one of these functions.

#![expect(
    unsafe_code,
    reason = "the linker's table can only be written by assembly and read through its bounds; and a task's value is \
              made of nothing"
)]

use std::marker::PhantomData;
use std::mem;
use std::sync::OnceLock;

use super::entry::{Contented, Entry, Judge};
use super::function::CapturesNothing;
use super::{Init, Task};

/// Where a task or an init function stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TaskIndex(pub(crate) u32);

impl TaskIndex {
    /// The function's record is not in the table that this crate reads; [`entry`] has nothing for
    /// it. This happens where [`in_main_executable`] fails as well, and on platforms without a
    /// table.
    pub(crate) const NOWHERE: Self = Self(u32::MAX);
}

/// The place of a task in the table. Mentioning this function for a task is what puts the task
/// there.
pub(crate) fn index_of<F, Args, M>() -> TaskIndex
where
    F: Task<Args, M>,
{
    index_of_judged::<F, Args, M, Contented>()
}

/// The same, of a task whose results `J` judges: a record of its own.
pub(crate) fn index_of_judged<F, Args, M, J>() -> TaskIndex
where
    F: Task<Args, M>,
    J: Judge<F::Output>,
{
    let () = ZeroSized::<F>::PROVEN;
    index_of_record(platform::record::<TaskRecord<F, Args, M, J>>())
}

/// The place of an init function in the table.
pub(crate) fn index_of_init<F, Args, M>() -> TaskIndex
where
    F: Init<Args, M>,
{
    let () = ZeroSized::<F>::PROVEN;
    index_of_record(platform::record::<InitRecord<F, Args, M>>())
}

/// What stands in the table at `index`; `None` if that is beyond its end or belongs to another
/// version of this crate.
pub(crate) fn entry(index: u32) -> Option<Entry> {
    let record = table().get(usize::try_from(index).ok()?)?;
    (record.owner() == &raw const OWNER).then(|| record.entry())
}

/// How many records there are, those of other versions of this crate included.
#[cfg(test)]
pub(crate) fn len() -> usize {
    table().len()
}

/// A number that tells two programs' tables apart: FNV-1a, 64 bits, over the bytes of the section
/// and the names.
///
/// The bytes alone would not do: where records and instructions lie side by side, all distances are
/// alike, and two programs with as many tasks have the same section.
pub(crate) fn fingerprint() -> u64 {
    static FINGERPRINT: OnceLock<u64> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| {
        let words = table().iter().flat_map(|record| [record.entry, record.owner]);
        let names = (0..=u32::MAX)
            .take(table().len())
            .map(|index| entry(index).map_or("", |entry| (entry.name)()));
        words
            .flat_map(i32::to_ne_bytes)
            // No name contains a zero byte, so it tells where one ends.
            .chain(names.flat_map(|name| name.bytes().chain([0])))
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    })
}

/// Is there a table on this platform?
pub(crate) const fn supported() -> bool {
    cfg!(all(
        target_os = "linux",
        target_pointer_width = "64",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(miri)
    ))
}

/// Checks that the table lies in the main executable, since that is what a worker starts; fails
/// with the path of the object that holds it instead, a `dylib` or `cdylib`.
pub(crate) fn in_main_executable() -> Result<(), String> {
    platform::in_main_executable(table().as_ptr().addr())
}

/// One task in the table; see the module's rule 1.
#[repr(C)]
struct Record {
    entry: i32,
    owner: i32,
}

/// Its address stands for this crate.
static OWNER: u8 = 0;

impl Record {
    fn owner(&self) -> *const u8 {
        let function = target(&self.owner);
        // SAFETY: by rule 1 this word leads to such a function in the records of all versions (rule
        // 4).
        let function =
            unsafe { mem::transmute::<*const u8, extern "C" fn() -> *const u8>(function) };
        function()
    }

    /// The record must be one of ours.
    fn entry(&self) -> Entry {
        debug_assert_eq!(self.owner(), &raw const OWNER);
        let function = target(&self.entry);
        // SAFETY: only `platform` writes records with our OWNER, and there the word leads to a jump
        // to a `fn() -> Entry` of this crate. The jump touches no register that a call may
        // not touch (a linker's own stubs need the same), so it is called as the function
        // itself.
        let function = unsafe { mem::transmute::<*const u8, fn() -> Entry>(function) };
        function()
    }
}

/// What a word of a record names.
fn target(word: &i32) -> *const u8 {
    let distance = isize::try_from(*word).expect("supported platforms have 64-bit pointers");
    // The linker laid both out in one object, but to the language they are separate allocations.
    let address = (&raw const *word).addr().wrapping_add_signed(distance);
    std::ptr::with_exposed_provenance(address)
}

/// A function with a record.
trait Recorded {
    fn entry() -> Entry;
}

struct TaskRecord<F, Args, M, J>(PhantomData<(F, Args, M, J)>);

impl<F: Task<Args, M>, Args, M, J: Judge<F::Output>> Recorded for TaskRecord<F, Args, M, J> {
    fn entry() -> Entry {
        F::__entry::<J>()
    }
}

struct InitRecord<F, Args, M>(PhantomData<(F, Args, M)>);

impl<F: Init<Args, M>, Args, M> Recorded for InitRecord<F, Args, M> {
    fn entry() -> Entry {
        F::__entry()
    }
}

/// The one record that is always there, without which the bounds of the section would not be
/// defined.
struct BuiltIn;

impl Recorded for BuiltIn {
    fn entry() -> Entry {
        fn nothing() {}
        fn entry_of<F: Task<(), M>, M>(_: F) -> Entry {
            F::__entry::<Contented>()
        }
        entry_of(nothing)
    }
}

/// Proves that a task captures nothing that has bytes. Only its layout tells, and only where code is
/// generated for it.
///
/// The compiler reports the function that mentions this first, and the line that calls it. So each
/// public function that takes a task begins with `let () = ZeroSized::<F>::PROVEN;`, and the line
/// is the user's.
pub(crate) struct ZeroSized<F>(PhantomData<F>);

impl<F> ZeroSized<F> {
    pub(crate) const PROVEN: () = {
        assert!(
            size_of::<F>() == 0,
            "a task cannot capture variables: pass them as arguments (a function pointer is a variable, too: name the \
             function itself)"
        );
        assert!(
            align_of::<F>() == 1,
            "a task cannot capture variables, not even one of no size: pass it as an argument, or make it in the task"
        );
    };
    /// The same of what judges a task's results.
    pub(crate) const PROVEN_PREDICATE: () = assert!(
        size_of::<F>() == 0 && align_of::<F>() == 1,
        "a predicate cannot capture variables: it runs in the worker, as a part of its task"
    );
}

/// Creates the value of a task in a process to which no such value was passed.
pub(super) fn conjure<F: CapturesNothing>() -> F {
    let () = ZeroSized::<F>::PROVEN;
    // SAFETY: what the language asks of the bytes holds: F has none, `zeroed` takes care of the
    // alignment, and F needs no drop because it is Copy. An uninhabited capture (`!`) makes
    // `zeroed` panic.
    //
    // What a library may conclude from the existence of a value is another matter, and stable Rust
    // gives no way to check it:
    //
    // * A function item that the caller can name, and a closure without captures, prove nothing:
    //   every process of this program can evaluate the same expression.
    // * A captured value of no size can be a proof, for instance that a static has been initialized
    //   in this process. It passes the checks above, and the worker has not done what it proves.
    //   Crates with such tokens exist. `Copy + Send + Sync + 'static` excludes the proofs that are
    //   bound to a thread, to a lock that is held or to a lifetime, but not this kind.
    // * A private function item, returned as `impl Fn`, can prove that its maker was called.
    //
    // For the last two this function is unsound. The documentation of `Task` says so, and offers
    // `task!`, which accepts only values that the compiler has computed. A worker may have those,
    // because a constant is the same in each process that runs the program.
    unsafe { mem::zeroed::<F>() }
}

fn index_of_record(record: *const Record) -> TaskIndex {
    let table = table().as_ptr_range();
    if !table.contains(&record) {
        return TaskIndex::NOWHERE;
    }
    let index = (record.addr() - table.start.addr()) / size_of::<Record>();
    u32::try_from(index).map_or(TaskIndex::NOWHERE, TaskIndex)
}

fn table() -> &'static [Record] {
    let (start, stop) = platform::bounds();
    if start.is_null() {
        return &[];
    }
    let len = (stop.addr() - start.addr()) / size_of::<Record>();
    // SAFETY: `bounds` are those of a section that is mapped, never written, and never unmapped
    // while the code of this crate can run (both are in one object). By rules 4 and 5 it holds
    // whole, aligned records, all bits of which are valid.
    unsafe { std::slice::from_raw_parts(start, len) }
}

#[cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(miri)
))]
mod platform {
    //! The assembly, and where the table lies.

    use std::arch::asm;
    use std::ffi::{CStr, c_int, c_void};
    use std::{mem, ptr};

    use nix::libc;

    use super::{BuiltIn, OWNER, Record, Recorded};

    /// Writes a record into the section, at label 20, for the operands `entry` and `owner`. Labels
    /// of digits are local, so it does no harm if the compiler emits the block twice (rule 7).
    #[cfg(target_arch = "x86_64")]
    macro_rules! asm_with_record {
        ($($argument:tt)*) => {
            asm!(
                ".pushsection .text.procpool_entry, \"ax\", @progbits",
                "22:",
                "jmp {entry}@PLT",
                "23:",
                "mov rax, qword ptr [rip + {owner}@GOTPCREL]",
                "ret",
                ".popsection",
                ".pushsection procpool_tasks, \"aR\", @progbits",
                ".balign 4",
                "20:",
                ".long 22b - .",
                ".long 23b - .",
                ".popsection",
                $($argument)*
            )
        };
    }

    #[cfg(target_arch = "aarch64")]
    macro_rules! asm_with_record {
        ($($argument:tt)*) => {
            asm!(
                ".pushsection .text.procpool_entry, \"ax\", %progbits",
                ".balign 4",
                "22:",
                "b {entry}",
                "23:",
                "adrp x0, :got:{owner}",
                "ldr x0, [x0, :got_lo12:{owner}]",
                "ret",
                ".popsection",
                ".pushsection procpool_tasks, \"aR\", %progbits",
                ".balign 4",
                "20:",
                ".long 22b - .",
                ".long 23b - .",
                ".popsection",
                $($argument)*
            )
        };
    }

    /// The record of one function.
    #[inline(never)]
    pub(super) fn record<T: Recorded>() -> *const Record {
        let record: *const Record;
        // SAFETY: what is executed loads an address into a register; the rest goes into other
        // sections, and each `.pushsection` has its `.popsection`. It is not `pure`, so
        // that the block stays where the function does.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm_with_record!(
                "lea {record}, [rip + 20b]",
                record = lateout(reg) record,
                entry = sym T::entry,
                owner = sym OWNER,
                options(nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm_with_record!(
                "adrp {record}, 20b",
                "add {record}, {record}, :lo12:20b",
                record = lateout(reg) record,
                entry = sym T::entry,
                owner = sym OWNER,
                options(nomem, nostack, preserves_flags)
            );
        }
        record
    }

    /// The section's bounds: aligned, a whole number of records apart, and not null.
    ///
    /// The block writes the built-in record as well, so that wherever the bounds are asked for
    /// there is a section; it is not inlined, or there would be many. They are hidden: each
    /// object that the loader brings has its own.
    #[inline(never)]
    pub(super) fn bounds() -> (*const Record, *const Record) {
        let (start, stop): (*const Record, *const Record);
        // SAFETY: what is executed loads addresses into registers; for the rest see `record`.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm_with_record!(
                ".hidden __start_procpool_tasks",
                ".hidden __stop_procpool_tasks",
                "lea {start}, [rip + __start_procpool_tasks]",
                "lea {stop}, [rip + __stop_procpool_tasks]",
                start = out(reg) start,
                stop = lateout(reg) stop,
                entry = sym BuiltIn::entry,
                owner = sym OWNER,
                options(nomem, nostack, preserves_flags)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm_with_record!(
                ".hidden __start_procpool_tasks",
                ".hidden __stop_procpool_tasks",
                "adrp {start}, __start_procpool_tasks",
                "add {start}, {start}, :lo12:__start_procpool_tasks",
                "adrp {stop}, __stop_procpool_tasks",
                "add {stop}, {stop}, :lo12:__stop_procpool_tasks",
                start = out(reg) start,
                stop = lateout(reg) stop,
                entry = sym BuiltIn::entry,
                owner = sym OWNER,
                options(nomem, nostack, preserves_flags)
            );
        }
        (start, stop)
    }

    pub(super) fn in_main_executable(address: usize) -> Result<(), String> {
        let mut search = Search { address, found: false };
        // SAFETY: the callback has the signature that is asked for, does not unwind, and gets
        // `search`, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(look_at_first), (&raw mut search).cast()) };
        if search.found {
            return Ok(());
        }
        // SAFETY: all zeroes is a Dl_info: it holds pointers only.
        let mut info = unsafe { mem::zeroed::<libc::Dl_info>() };
        // SAFETY: dladdr takes any address, and writes to `info` alone.
        let known = unsafe { libc::dladdr(ptr::without_provenance(address), &raw mut info) } != 0;
        if !known || info.dli_fname.is_null() {
            return Err("an unknown object".to_owned());
        }
        // SAFETY: dladdr succeeded, so this is the C string of the object's path. It stays while
        // the object is loaded, and the object is the one that holds this code.
        let path = unsafe { CStr::from_ptr(info.dli_fname) };
        Err(path.to_string_lossy().into_owned())
    }

    /// Is `address` in the first object that the loader names?
    struct Search {
        address: usize,
        found: bool,
    }

    /// The first object is the main program (dl_iterate_phdr(3)), in a static program the only one.
    /// Its segments are named by address where it is linked to a fixed one, else (PIE) relative
    /// to `dlpi_addr`, which is 0 in the first case.
    unsafe extern "C" fn look_at_first(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: `in_main_executable` passes its `Search`, and nobody else uses it during the
        // call.
        let search = unsafe { &mut *search.cast::<Search>() };
        // SAFETY: the loader passes a description that is valid during the call.
        let info = unsafe { &*info };
        for at in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: there are `dlpi_phnum` headers at `dlpi_phdr`.
            let header = unsafe { &*info.dlpi_phdr.add(at) };
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
            let offset = (search.address as u64).wrapping_sub(start);
            if header.p_type == libc::PT_LOAD && offset < header.p_memsz {
                search.found = true;
            }
        }
        1 // not 0: the first one only
    }
}

#[cfg(not(all(
    target_os = "linux",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    not(miri)
)))]
mod platform {
    //! No table: it is empty, and nothing is in it.

    use std::ptr;

    use super::{BuiltIn, Record, Recorded};

    pub(super) fn record<T: Recorded>() -> *const Record {
        // Mentioned so that what may be a task is the same on all platforms.
        let _: fn() -> super::Entry = T::entry;
        ptr::null()
    }

    pub(super) fn bounds() -> (*const Record, *const Record) {
        (record::<BuiltIn>(), ptr::null())
    }

    pub(super) fn in_main_executable(_: usize) -> Result<(), String> {
        Err("this platform has no table of tasks".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::entry::Run;

    /// Runs a task as a worker does that has found its entry. It needs no table, so Miri can run
    /// it, which looks at the value that is made from nothing.
    fn run<F: Task<Args, M>, Args, M>(_: F, arguments: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match F::__entry::<Contented>().run {
            Run::Sync(run) => drop(run(arguments, &mut out, 100).expect("it runs")),
            other => panic!("not a sync function: {other:?}"),
        }
        out
    }

    #[test]
    fn functions_and_closures_run_from_their_type_alone() {
        fn add(a: u8, b: u8) -> u8 {
            a + b
        }
        assert_eq!(run(add, &[1, 2]), [3]);
        assert_eq!(run(u8::saturating_sub, &[1, 2]), [0]);
        assert_eq!(run(|a: u8| a + 1, &[1]), [2]);
        assert_eq!(run(crate::task!(|a: u8| a + 1), &[2]), [3]);
        assert_eq!(run(|| (), &[]), [0xc0]);
    }
}
