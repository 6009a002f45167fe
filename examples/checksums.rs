//! SHA-256 of every file below a directory, on all cores: `find DIR -type f | xargs sha256sum` as
//! one program.
//!
//!     cargo run --release --example checksums -- DIR
//!
//! DIR is the current directory if it is left out. The lines on stdout are those of `sha256sum`, as
//! the files are done, so `sha256sum -c` checks them. What cannot be read is told on stderr and
//! makes the exit status 1, but stops nothing. Symbolic links are not followed.
//!
//! Three parties work side by side, and none of them ever holds the whole tree:
//!
//! * a thread walks the tree, and waits when it is too far ahead;
//! * the pool's workers, one process a core, each hash a file at a time;
//! * the main task writes the lines, in whatever order the files are done.

use futures::stream;
use futures::{Stream, StreamExt};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use nix::libc;
use procpool::{Failure, Pool};
use serde_bytes::{ByteArray, ByteBuf};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::future::ready;
use std::io::{self, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// So many files the walk may be ahead of the workers.
const AHEAD: usize = 1024;
/// So many lines are written at once, if so many are ready.
const BATCH: usize = 256;
/// Files are read in pieces of at least and at most so many bytes.
const PIECE: (u64, u64) = (4 << 10, 256 << 10);

// ---- in the workers

/// A file's checksum and its size.
type Hashed = Result<(ByteArray<32>, u64), Failure>;

/// The task. A path is any bytes on Unix, and serde's `PathBuf` is UTF-8 only: so it travels as
/// bytes. It comes back with the result, because that comes out of turn.
fn hash(path: ByteBuf) -> (ByteBuf, Hashed) {
    let hashed = sha256(Path::new(OsStr::from_bytes(&path)));
    // An `io::Error` cannot travel; a `Failure` carries its text.
    (path, hashed.map_err(Failure::from))
}

fn sha256(path: &Path) -> io::Result<(ByteArray<32>, u64)> {
    // The walk saw a regular file; something else may stand there by now. A link is not followed,
    // and a fifo that nobody writes to does not keep us waiting.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("no longer a regular file"));
    }
    // A byte more than the file has, as a rule: so a small one takes one read, and one that sees
    // the end.
    let mut piece = vec![0; (metadata.len() + 1).clamp(PIECE.0, PIECE.1) as usize];
    let (mut hasher, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok((ByteArray::new(hasher.finalize().into()), size)),
            Ok(n) => {
                hasher.update(&piece[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

// ---- the walk

enum Found {
    File(PathBuf),
    Unreadable(PathBuf, io::Error),
}

/// Finds all regular files at and below `root`, until `found` says to stop. In memory are only the
/// directories that are still to be entered.
fn walk(root: &Path, mut found: impl FnMut(Found) -> ControlFlow<()>) -> ControlFlow<()> {
    let mut directories = Vec::new();
    match fs::symlink_metadata(root) {
        Ok(metadata) if metadata.is_dir() => directories.push(root.to_owned()),
        Ok(metadata) if metadata.is_file() => found(Found::File(root.to_owned()))?,
        Ok(_) => {}
        Err(error) => found(Found::Unreadable(root.to_owned(), error))?,
    }
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                found(Found::Unreadable(directory, error))?;
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) if kind.is_dir() => directories.push(path),
                Ok((kind, path)) if kind.is_file() => found(Found::File(path))?,
                Ok(_) => {}
                Err(error) => found(Found::Unreadable(directory.clone(), error))?,
            }
        }
    }
    ControlFlow::Continue(())
}

/// The walk as a stream: on a thread of its own, since the file system blocks, and no more than
/// [`AHEAD`] files before those that are asked for.
fn walk_stream(root: PathBuf) -> impl Stream<Item = Found> {
    let (sender, mut receiver) = mpsc::channel(AHEAD);
    thread::spawn(move || {
        walk(&root, |found| match sender.blocking_send(found) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()), // nobody is listening any more
        })
    });
    stream::poll_fn(move |cx| receiver.poll_recv(cx))
}

// ---- what is told

/// Appends the line that `sha256sum` (coreutils 9) has for a file: in a name, backslash, newline
/// and carriage return are escaped, and then the line begins with a backslash.
fn line(out: &mut Vec<u8>, digest: &[u8], path: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if path.iter().any(|byte| b"\\\n\r".contains(byte)) {
        out.push(b'\\');
    }
    for byte in digest {
        out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    out.extend(b"  ");
    for byte in path {
        match byte {
            b'\\' => out.extend(b"\\\\"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            byte => out.push(*byte),
        }
    }
    out.push(b'\n');
}

/// What goes to stderr: the progress bar, and the complaints, which must not run into each other.
struct Console {
    bar: ProgressBar,
    complaints: Cell<u64>,
}

impl Console {
    fn new(root: &Path) -> Self {
        let bar =
            if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if !bar.is_hidden() {
            let style = ProgressStyle::with_template(
                "{elapsed_precise} {wide_bar} {human_pos}/{human_len} files, {msg}",
            );
            bar.set_style(style.expect("the template is right"));
            bar.enable_steady_tick(Duration::from_millis(200));
            // The walk that feeds the workers is never far ahead of them, so how many files there
            // are only a second one can tell: it just counts, and holds nothing either.
            let (bar, root) = (bar.clone(), root.to_owned());
            thread::spawn(move || {
                walk(&root, |found| {
                    if matches!(found, Found::File(_)) {
                        bar.inc_length(1);
                    }
                    ControlFlow::Continue(())
                })
            });
        }
        Self { bar, complaints: Cell::new(0) }
    }

    /// `path` is shown quoted: a file name may hold anything, control sequences included.
    fn complain(&self, path: &Path, why: impl fmt::Display) {
        self.complaints.set(self.complaints.get() + 1);
        self.say(format_args!("checksums: {path:?}: {why}"));
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        // Not `eprintln!`, which panics when stderr is a pipe that nobody reads any more.
        let _ = self.bar.suspend(|| writeln!(io::stderr(), "{what}"));
    }
}

// ---- the program

async fn run(root: PathBuf) -> Result<ExitCode, Box<dyn Error>> {
    let begin = Instant::now();
    let workers = available_parallelism().map_or(1, NonZeroUsize::get);
    let pool = Pool::builder().workers(workers).name("checksums").build()?;
    let console = Console::new(&root);

    // Paths that are with the workers. Should a worker die, its file does not come back: it is one
    // that remains in here.
    let unfinished = RefCell::new(HashSet::new());
    let paths = walk_stream(root).filter_map(|found| {
        ready(match found {
            Found::File(path) => {
                let path = ByteBuf::from(path.into_os_string().into_vec());
                unfinished.borrow_mut().insert(path.clone());
                Some(path)
            }
            Found::Unreadable(path, error) => {
                console.complain(&path, error);
                None
            }
        })
    });

    // This is the whole use of the pool. It takes from the walk only what keeps the workers busy.
    // All results that are there are taken at once, so that many small files cost few writes.
    let mut results = pool.map_stream(hash, paths).unordered().ready_chunks(BATCH);

    let mut stdout = io::stdout().lock();
    // If the lines go to the terminal, the bar must step aside for them.
    let shared = if stdout.is_terminal() { console.bar.clone() } else { ProgressBar::hidden() };
    let (mut lines, mut files, mut bytes) = (Vec::new(), 0_u64, 0_u64);
    while let Some(batch) = results.next().await {
        console.bar.inc(batch.len() as u64);
        for result in batch {
            let (path, hashed) = match result {
                Ok(done) => done,
                // Without workers there is no use in going on.
                Err(error) if error.is_start_failed() => return Err(error.into()),
                Err(error) => {
                    console.say(format_args!("checksums: {error}"));
                    continue;
                }
            };
            unfinished.borrow_mut().remove(&path);
            match hashed {
                Ok((digest, size)) => {
                    line(&mut lines, &*digest, &path);
                    files += 1;
                    bytes += size;
                }
                Err(failure) => console.complain(Path::new(OsStr::from_bytes(&path)), failure),
            }
        }
        // This blocks while nobody reads. So be it: there is nothing else to do then.
        match shared.suspend(|| stdout.write_all(&lines).and_then(|()| stdout.flush())) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            } // as in `| head`
            written => written?,
        }
        lines.clear();
        console.bar.set_message(HumanBytes(bytes).to_string());
    }
    pool.shutdown().await;
    console.bar.finish_and_clear();

    for path in unfinished.borrow().iter() {
        console.complain(Path::new(OsStr::from_bytes(path)), "its worker was lost");
    }
    let complaints = console.complaints.get();
    let unread =
        if complaints > 0 { format!("; {complaints} could not be read") } else { String::new() };
    let seconds = begin.elapsed().as_secs_f64();
    console.say(format_args!(
        "{files} files, {bytes} bytes in {seconds:.2} s by {workers} workers{unread}"
    ));
    Ok(if complaints > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let root = args.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    if args.next().is_some() {
        eprintln!("usage: checksums [DIR]");
        return ExitCode::from(2);
    }
    run(root).await.unwrap_or_else(|error| {
        eprintln!("checksums: {error}");
        ExitCode::FAILURE
    })
}
