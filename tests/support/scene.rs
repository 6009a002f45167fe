//! A pool whose workers are found among all processes, gates that tasks wait before, and marks that
//! they make.

use super::{Proc, gone, until, within};
use procpool::{Builder, Pool};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// A pool whose workers can be found among all processes.
pub(crate) struct Scene {
    pub(crate) pool: Pool,
    tag: String,
    pub(crate) dir: TempDir,
}

impl Scene {
    pub(crate) fn new(workers: usize) -> Self {
        Self::with(|builder| builder.workers(workers))
    }

    pub(crate) fn with(options: impl FnOnce(Builder) -> Builder) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let pool = options(Pool::builder())
            .env("PROCPOOL_TEST_SCENE", &tag)
            .build()
            .expect("build a pool");
        Self { pool, tag, dir: TempDir::new().expect("a directory") }
    }

    pub(crate) fn gate(&self, name: &str) -> Gate {
        Gate::new(self.dir.path().join(name))
    }

    pub(crate) fn marks(&self, name: &str) -> Marks {
        Marks(self.dir.path().join(name))
    }

    /// All processes that were started as workers of this pool and exist.
    pub(crate) fn workers(&self) -> Vec<Proc> {
        let needle = format!("PROCPOOL_TEST_SCENE={}\0", self.tag);
        let pids = fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &u32| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|env| env.windows(needle.len()).any(|part| part == needle.as_bytes()))
        };
        pids.filter(is_ours).filter_map(Proc::of).collect()
    }

    /// A trivial task is done.
    pub(crate) async fn serves(&self) {
        let answer = within("the pool serves", self.pool.spawn(|n: u32| n + 1, 41)).await;
        assert_eq!(answer.expect("the pool serves"), 42);
    }

    /// The end of each scene: the pool serves, closes, and leaves no process.
    pub(crate) async fn end(self) {
        self.serves().await;
        let workers = self.workers();
        within("shut down", self.pool.shutdown()).await;
        gone(&workers).await;
        assert_eq!(self.workers(), []);
    }
}

/// Tasks wait before it until it is opened, and then never again.
pub(crate) struct Gate {
    path: PathBuf,
    open: Option<File>,
}

impl Gate {
    fn new(path: PathBuf) -> Self {
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe");
        Self { path, open: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&mut self) {
        // As reader and writer, so that it does not wait, and is open for those who come later.
        let mut pipe =
            OpenOptions::new().read(true).write(true).open(&self.path).expect("open the gate");
        pipe.write_all(b"!").expect("open the gate");
        self.open = Some(pipe);
    }
}

/// Waits before a gate, in a sync task.
pub(crate) fn pass(gate: impl AsRef<Path>) {
    File::open(gate).expect("the gate");
}

/// Waits before a gate, in an async task.
pub(crate) async fn pass_async(gate: PathBuf) {
    let pipe = tokio::net::unix::pipe::OpenOptions::new().open_receiver(gate).expect("the gate");
    // What is in it is left there, for the others.
    pipe.readable().await.expect("the gate");
}

/// Lines that tasks append to one file.
pub(crate) struct Marks(PathBuf);

impl Marks {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The lines so far, whole ones only.
    pub(crate) fn lines(&self) -> Vec<String> {
        super::lines(&self.0)
    }

    pub(crate) async fn count(&self, lines: usize) {
        until(format!("{lines} lines in {}", self.0.display()), || self.lines().len() >= lines)
            .await;
    }
}

/// Appends a line.
pub(crate) fn mark(path: impl AsRef<Path>, line: impl std::fmt::Display) {
    super::note(path.as_ref(), line);
}

/// For code that measures a whole process: runs it in a worker, which nobody else uses, in a
/// runtime.
pub(crate) async fn alone<R, F, Marker>(body: F) -> R
where
    F: procpool::Task<(), Marker, Output = R>,
    R: serde::de::DeserializeOwned,
{
    let pool = Pool::builder().workers(1).build().expect("build a pool");
    within("a task in a process of its own", pool.spawn(body, ()))
        .await
        .expect("a task in a process of its own")
}
