//! A library in C that corrupts memory (`thumbs.c`, beside this file), used as if it were harmless:
//! each of its crashes costs the one task that ran, and this program never has the library in its
//! memory.
//!
//!     cargo run --example ffi_crash
//!
//! A program of yours would have its build script compile and link the C part; an example cannot
//! have a build script of its own, so each worker loads the library in `init`. That is worth
//! knowing anyhow: then not even the library's constructors run in the application.
//!
//! One thing no process can do for you, and this program shows it: corruption that does *not* crash
//! stays in its worker and spoils what comes after. So tasks check, and a worker in doubt ends
//! itself.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]
#![expect(unsafe_code, reason = "it calls a library in C")]

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use procpool::{Failure, Pool, TaskError};
use std::error::Error;
use std::ffi::{CStr, CString, c_int, c_long, c_uchar, c_void};
use std::mem::transmute;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

// ---- in the workers

/// The library's functions, as its header would declare them.
struct Thumbs {
    sum: unsafe extern "C" fn(*const c_uchar) -> c_long,
    again: unsafe extern "C" fn() -> c_long,
    adjust: unsafe extern "C" fn(c_int, c_int),
}

/// The pool's `init`: what it returns, tasks find by `procpool::state`.
fn load(library: PathBuf) -> Result<Thumbs, Failure> {
    let path = CString::new(library.as_os_str().as_bytes())?;
    // SAFETY: dlopen(3). The library has no constructors, and is never closed.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        // SAFETY: after a failure it is a C string, which stays until the next call.
        let why = unsafe { CStr::from_ptr(libc::dlerror()) };
        return Err(Failure::msg(why.to_string_lossy()));
    }
    let symbol = |name: &CStr| {
        // SAFETY: dlsym(3), with a handle of dlopen.
        let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if symbol.is_null() { Err(Failure::msg(format!("it has no {name:?}"))) } else { Ok(symbol) }
    };
    // SAFETY: they are functions of these types; see `thumbs.c`.
    unsafe {
        Ok(Thumbs {
            sum: transmute::<*mut c_void, unsafe extern "C" fn(*const c_uchar) -> c_long>(symbol(
                c"thumbs_sum",
            )?),
            again: transmute::<*mut c_void, unsafe extern "C" fn() -> c_long>(symbol(
                c"thumbs_again",
            )?),
            adjust: transmute::<*mut c_void, unsafe extern "C" fn(c_int, c_int)>(symbol(
                c"thumbs_adjust",
            )?),
        })
    }
}

fn thumbs() -> &'static Thumbs {
    procpool::state().expect("init has loaded it")
}

// The tasks are wrappers as one finds them: safe to the eye. Their SAFETY arguments would have to
// rest on what the library promises, and it does not keep that.

fn sum(picture: Vec<u8>) -> i64 {
    // SAFETY: none, if the picture is larger than the library thinks: that is the point.
    unsafe { (thumbs().sum)(picture.as_ptr()) }
}

fn again() -> i64 {
    // SAFETY: none: it reads what it has given back.
    unsafe { (thumbs().again)() }
}

fn adjust(shade: i32, brightness: i32) {
    // SAFETY: none, if there is no such shade.
    unsafe { (thumbs().adjust)(shade, brightness) }
}

/// As `sum`, for those who do not trust the library: first a picture whose sum is known. If that is
/// wrong, nothing that this process says can be believed, so it ends itself, and the pool starts
/// another.
fn sum_checked(picture: Vec<u8>) -> i64 {
    if sum(good()) != GOOD_SUM {
        std::process::abort();
    }
    sum(picture)
}

// ---- in the application

/// Two by two pixels, and their sum.
fn good() -> Vec<u8> {
    vec![2, 2, 1, 2, 3, 4]
}
const GOOD_SUM: i64 = 10;

/// What a real program's build script does, once.
fn compile(directory: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let (source, library) = (directory.join("thumbs.c"), directory.join("libthumbs.so"));
    std::fs::write(&source, include_str!("thumbs.c"))?;
    // Whoever can link a Rust program has a C compiler.
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O0", "-o"])
        .args([&library, &source])
        .status()?;
    if !status.success() {
        return Err(format!("{compiler:?}: {status}").into());
    }
    Ok(library)
}

fn is_mapped(library: &Path) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.contains(&*library.to_string_lossy())
}

/// How a task ended, as one line; whether its worker was killed by a signal.
fn report(what: &str, outcome: Result<i64, TaskError>) -> bool {
    match outcome {
        Ok(value) => {
            println!("{what}: {value}");
            false
        }
        Err(error) => {
            let signal = error.exit_status().and_then(|status| status.signal());
            println!(
                "{what}: {:?}, signal {}",
                error.kind(),
                signal.map_or("unknown".into(), |signal| signal.to_string())
            );
            error.is_worker_died() && signal.is_some()
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?; // workers inherit it: these crashes need no core dumps
    let directory = tempfile::tempdir()?;
    let library = compile(directory.path())?;
    let pool = Pool::builder().workers(1).on_worker_start(load, &library).build()?;
    let mut right = true;

    right &= pool.spawn(sum, good()).await? == GOOD_SUM;
    println!("a good picture: {GOOD_SUM}");

    // The head says 255 × 255, and the pixels are there: the library writes behind its block.
    let large: Vec<u8> = [255, 255].into_iter().chain([7; 255 * 255]).collect();
    right &= report("a picture that is too large", pool.spawn(sum, large).await);
    right &= report("memory used after it was given back", pool.spawn(again, ()).await);
    right &= pool.spawn(sum, good()).await? == GOOD_SUM;
    println!("a good picture after both: {GOOD_SUM}, by a new worker");

    // Nothing crashes here, and that is worse: there is no shade 16, and something else has been
    // written to.
    pool.spawn(adjust, (16, 3)).await?;
    let spoilt = pool.spawn(sum, good()).await?;
    println!("a good picture after silent corruption: {spoilt}");
    right &= spoilt != GOOD_SUM;
    // Who checks, notices; the worker goes, with all that was wrong in it.
    right &= report("the same, checked", pool.spawn(sum_checked, good()).await);
    right &= pool.spawn(sum_checked, good()).await? == GOOD_SUM;
    println!("a good picture, checked, by a new worker: {GOOD_SUM}");

    println!("the library in this process: {}", is_mapped(&library));
    right &= !is_mapped(&library);
    pool.shutdown().await;
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
