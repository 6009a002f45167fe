//! Starts this very program afresh (or another one).
//!
//! `/proc/self/exe` and not a path: it is the running program even after its file was replaced or
//! removed (proc(5)). Nothing here needs code between fork and exec, so `std` takes `posix_spawn`,
//! which neither copies page tables nor runs anything in a half-made process; with a current
//! directory too, where the C library can do that (`posix_spawn_file_actions_addchdir_np`, glibc
//! 2.29).

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::libc;

use super::child::{AdoptError, Child};
use super::fork;

/// The program that is running (proc(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How often a program that is being written (`ETXTBSY`, execve(2)) is tried, with 1, 2, 3, … ms
/// between: some 50 ms in all. It happens when another thread forks while it has a program open for
/// writing, and passes with its exec.
const BUSY_TRIES: u64 = 10;

/// How a worker is started: what its environment is, where it stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spawn {
    /// Another program instead of this one, looked for as a shell does, and its arguments.
    pub(crate) program: Option<(OsString, Vec<OsString>)>,
    /// Variables to set, or to remove (`None`); of several for one name, the last counts.
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    /// Whether it starts with an empty environment rather than with ours.
    pub(crate) env_clear: bool,
    /// Its current directory; ours if `None`. A relative one is looked up in ours at the time of
    /// the start. (The program itself has an absolute path, so what `std` warns of, a relative
    /// program in another directory, cannot come up.)
    pub(crate) current_dir: Option<PathBuf>,
    /// Whether it leads a process group of its own: the terminal's Ctrl-C does not reach it, and
    /// to kill it kills all that it started.
    pub(crate) group: bool,
}

/// Why a process could not be started. It is the inner error of an [`io::Error`] of the same kind.
#[derive(Debug)]
pub(crate) struct SpawnError {
    /// What failed.
    pub(crate) step: SpawnStep,
    /// The program that was to be started, as far as it is known.
    pub(crate) program: PathBuf,
    source: Box<dyn Error + Send + Sync>,
}

/// The step of a start that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpawnStep {
    /// This process is a forked copy, which starts nothing.
    ForkedCopy,
    /// A variable cannot have this name, or its value has a NUL in it.
    Environment(OsString),
    /// There is no `/proc/self/exe`: the `/proc` file system is not mounted here.
    NoProc,
    /// The current directory does not exist or cannot be entered.
    CurrentDir(PathBuf),
    /// The kernel would not start it.
    Start,
    /// It was started, and could not be watched.
    Adopt,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start {}", self.program.display())?;
        match &self.step {
            SpawnStep::ForkedCopy | SpawnStep::Start | SpawnStep::Adopt => {}
            SpawnStep::Environment(name) => {
                write!(f, ": environment variable {name:?} cannot be set")?;
            }
            SpawnStep::NoProc => f.write_str(": /proc is not mounted")?,
            SpawnStep::CurrentDir(path) => {
                write!(f, ": cannot use {} as current directory", path.display())?;
            }
        }
        write!(f, ": {}", self.source)
    }
}

impl Error for SpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Starts this program afresh, with the same name (`argv[0]`), no other argument, and the standard
/// output of ours. See [`spawn_with_stdout`].
#[cfg(test)]
fn spawn(
    spawn: &Spawn,
    stdin: OwnedFd,
    stderr: OwnedFd,
    marker: (&str, &OsStr),
) -> io::Result<Child> {
    spawn_with_stdout(spawn, stdin, None, stderr, marker)
}

/// Starts this program afresh, with the same name (`argv[0]`) and no other argument, or the program
/// that is asked for; `stdout` is ours if `None`.
///
/// `stdin` is the worker's end of the socket pair; `marker` a variable that tells it what it is.
/// The marker is set last, so `env` can neither change nor remove it.
///
/// # Errors
///
/// An [`io::Error`] of the kernel's kind with a [`SpawnError`] in it. No process is left then.
///
/// # Blocking
///
/// For the exec: some 2 ms, and at most 50 ms more while the program is being written; but without
/// an end while the child is held up before it. So it is called on a launcher's thread.
pub(crate) fn spawn_with_stdout(
    spawn: &Spawn,
    stdin: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: OwnedFd,
    marker: (&str, &OsStr),
) -> io::Result<Child> {
    let program =
        spawn.program.as_ref().map_or(Path::new(THIS_PROGRAM), |(program, _)| Path::new(program));
    start(program, spawn, stdin, stdout, stderr, marker).map_err(|(kind, error)| {
        if spawn.program.is_some() {
            return io::Error::new(kind, error);
        }
        // Rather by its own name, where that can be found out.
        let program = std::fs::read_link(THIS_PROGRAM).unwrap_or_else(|_| THIS_PROGRAM.into());
        io::Error::new(kind, SpawnError { program, ..error })
    })
}

/// Looks whether there is the program that [`spawn_with_stdout`] would start.
///
/// # Errors
///
/// As `spawn`'s: without `/proc` no process can be started.
pub(crate) fn find_program() -> io::Result<()> {
    std::fs::symlink_metadata(THIS_PROGRAM).map(drop).map_err(|error| {
        let (kind, source) = (error.kind(), error.into());
        io::Error::new(
            kind,
            SpawnError { step: SpawnStep::NoProc, program: THIS_PROGRAM.into(), source },
        )
    })
}

fn start(
    program: &Path,
    spawn: &Spawn,
    stdin: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: OwnedFd,
    marker: (&str, &OsStr),
) -> Result<Child, (io::ErrorKind, SpawnError)> {
    let failed = |step, source: io::Error| {
        let program = program.to_owned();
        let kind = source.kind();
        let source = source.into();
        (kind, SpawnError { step, program, source })
    };
    fork::refuse_in_copy().map_err(|error| failed(SpawnStep::ForkedCopy, error))?;
    let marker = (OsStr::new(marker.0), Some(marker.1));
    let changes = spawn.env.iter().map(|(name, value)| (name.as_os_str(), value.as_deref()));
    let mut command = Command::new(program);
    if spawn.env_clear {
        command.env_clear();
    }
    for (name, value) in changes.chain([marker]) {
        check_variable(name, value)
            .map_err(|error| failed(SpawnStep::Environment(name.to_owned()), error))?;
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    match &spawn.program {
        Some((_, args)) => drop(command.args(args)),
        None => drop(std::env::args_os().next().map(|name| command.arg0(name))),
    }
    if let Some(path) = &spawn.current_dir {
        command.current_dir(path);
    }
    if spawn.group {
        command.process_group(0);
    }
    command.stdin(Stdio::from(stdin)).stderr(Stdio::from(stderr));
    if let Some(stdout) = stdout {
        command.stdout(stdout);
    }

    let mut tries = 0;
    let started = loop {
        tries += 1;
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) && tries < BUSY_TRIES => {
                thread::sleep(Duration::from_millis(tries));
            }
            result => break result,
        }
    };
    let pid = match started {
        // std's handle knows the process by its number only; it signals and reaps nothing when it
        // is dropped.
        Ok(child) => child.id(),
        Err(error) => return Err(failed(why_not_started(program, spawn), error)),
    };
    Child::adopt(pid, spawn.group).map_err(|error| {
        let kind = match &error {
            AdoptError::Gone { .. } => io::ErrorKind::Other,
            AdoptError::Unowned { error, .. } => error.kind(),
        };
        failed(SpawnStep::Adopt, io::Error::new(kind, error))
    })
}

/// What the kernel's error number alone does not say: `ENOENT` is the program or the directory.
fn why_not_started(program: &Path, spawn: &Spawn) -> SpawnStep {
    if program.symlink_metadata().is_err() && program == Path::new(THIS_PROGRAM) {
        return SpawnStep::NoProc;
    }
    match &spawn.current_dir {
        Some(path) if path.join(".").metadata().is_err() => SpawnStep::CurrentDir(path.clone()),
        _ => SpawnStep::Start,
    }
}

/// A name with `=` in it would set another variable: perhaps the marker.
fn check_variable(name: &OsStr, value: Option<&OsStr>) -> io::Result<()> {
    let wrong = if name.is_empty() {
        "name is empty"
    } else if name.as_bytes().contains(&b'=') {
        "name contains '='"
    } else if name.as_bytes().contains(&0) {
        "name contains NUL"
    } else if value.is_some_and(|value| value.as_bytes().contains(&0)) {
        "value contains NUL"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
}

#[cfg(test)]
#[expect(unsafe_code, reason = "a constructor that ends a copy of the test program")]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use nix::libc::c_int;

    use super::*;
    use crate::process::child::Exit;
    use crate::process::testing::{forked, in_own_process, is_own_process, wait_until};

    const MARKER: &str = "PROCPOOL_TEST_MARKER";

    /// Runs before `main`, as a worker will: a copy of the test program that was started with the
    /// marker writes its arguments to its standard input and ends with 7. Without it, that copy
    /// would run all tests again.
    #[cfg(not(miri))]
    #[used]
    #[unsafe(link_section = ".init_array")]
    static BEFORE_MAIN: extern "C" fn(
        c_int,
        *const *const libc::c_char,
        *const *const libc::c_char,
    ) = {
        extern "C" fn before_main(
            argc: c_int,
            argv: *const *const libc::c_char,
            _: *const *const libc::c_char,
        ) {
            // SAFETY: a C string; nobody changes the environment before `main`.
            if unsafe { libc::getenv(c"PROCPOOL_TEST_MARKER".as_ptr()) }.is_null() {
                return;
            }
            for index in 0..argc {
                // SAFETY: the C library passes `argc` pointers to C strings, which are written with
                // their NUL.
                unsafe {
                    let argument = *argv.add(index as usize);
                    libc::write(0, argument.cast(), libc::strlen(argument) + 1);
                }
            }
            // SAFETY: ends this process.
            unsafe { libc::_exit(7) }
        }
        before_main
    };

    fn dev_null() -> OwnedFd {
        std::fs::File::create("/dev/null").expect("open").into()
    }

    fn wait(child: &Child) -> Exit {
        wait_until("the child's end", || child.try_reap().is_some());
        child.try_reap().expect("remembered")
    }

    fn shell(spawn: &Spawn, script: &str) -> String {
        let (mut ours, theirs) = UnixStream::pair().expect("socketpair");
        ours.write_all(format!("exec >&0\n{script}\n").as_bytes()).expect("write");
        ours.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let marker = (MARKER, OsStr::new("marked"));
        let child = start(Path::new("/bin/sh"), spawn, theirs.into(), None, dev_null(), marker)
            .expect("start");
        let mut output = String::new();
        ours.read_to_string(&mut output).expect("read");
        let status = wait(&child).status.expect("ours");
        assert!(status.success(), "{status}: {output}");
        output
    }

    fn refusal(result: io::Result<Child>) -> (io::ErrorKind, SpawnStep) {
        let error = result.expect_err("should fail");
        let inner: &SpawnError = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref())
            .unwrap_or_else(|| panic!("not a SpawnError: {error:?}"));
        let this = std::env::current_exe().expect("this program");
        assert!(error.to_string().contains(&*this.to_string_lossy()));
        assert!(inner.source().is_some());
        (error.kind(), inner.step.clone())
    }

    fn try_spawn(spawn_: &Spawn) -> io::Result<Child> {
        let marker = (MARKER, OsStr::new("1"));
        spawn(spawn_, dev_null(), dev_null(), marker)
    }

    #[test]
    fn this_program_starts_with_its_name_and_no_arguments() {
        for current_dir in [None, Some(PathBuf::from("/"))] {
            let (mut ours, theirs) = UnixStream::pair().expect("socketpair");
            let options = Spawn { group: true, current_dir, ..Spawn::default() };
            let marker = (MARKER, OsStr::new("1"));
            let child = spawn(&options, theirs.into(), dev_null(), marker).expect("spawn");
            let mut arguments = String::new();
            // The end comes: no end of theirs is left open here.
            ours.read_to_string(&mut arguments).expect("read");
            assert_eq!(wait(&child).status.and_then(|s| s.code()), Some(7));
            let own = std::env::args().next().expect("a name");
            assert_eq!(arguments, own + "\0");
        }
    }

    #[test]
    fn marker_cannot_be_overridden() {
        for value in [None, Some("other".into())] {
            let spawn =
                Spawn { env: vec![(MARKER.into(), value)], env_clear: true, ..Spawn::default() };
            assert_eq!(shell(&spawn, "echo $PROCPOOL_TEST_MARKER"), "marked\n");
        }
    }

    #[test]
    fn environment_is_changed_as_asked() {
        let mut spawn = Spawn {
            env: vec![
                ("ONE".into(), Some("1".into())),
                ("TWO".into(), Some("2".into())),
                ("TWO".into(), Some("3".into())),
            ],
            ..Spawn::default()
        };
        assert!(std::env::var_os("PATH").is_some(), "the test needs one");
        // A shell that has no PATH sets one, but does not export it.
        let script = "echo $ONE $TWO; /usr/bin/env | /bin/grep -c ^PATH=; true";
        assert_eq!(shell(&spawn, script), "1 3\n1\n");
        spawn.env.push(("PATH".into(), None));
        assert_eq!(shell(&spawn, script), "1 3\n0\n");
        spawn.env.pop();
        spawn.env_clear = true;
        assert_eq!(shell(&spawn, script), "1 3\n0\n");
    }

    #[test]
    fn names_that_would_set_another_variable_are_refused() {
        for (name, value) in [
            ("", Some("x")),
            ("PROCPOOL_TEST_MARKER=0", Some("x")),
            ("=x", None),
            ("A\0B", Some("x")),
            ("A", Some("x\0y")),
        ] {
            let spawn =
                Spawn { env: vec![(name.into(), value.map(OsString::from))], ..Spawn::default() };
            assert_eq!(
                refusal(try_spawn(&spawn)),
                (io::ErrorKind::InvalidInput, SpawnStep::Environment(name.into()))
            );
        }
    }

    #[test]
    fn group_is_led_if_asked_for() {
        let script = "set -- $(cat /proc/self/stat); test $5 = $$ && echo leads || echo follows";
        for (group, answer) in [(true, "leads\n"), (false, "follows\n")] {
            let spawn = Spawn { group, ..Spawn::default() };
            assert_eq!(shell(&spawn, script), answer);
        }
    }

    #[test]
    fn missing_directory_is_named() {
        let missing = PathBuf::from("/nowhere/at/all");
        let spawn = Spawn { current_dir: Some(missing.clone()), ..Spawn::default() };
        assert_eq!(
            refusal(try_spawn(&spawn)),
            (io::ErrorKind::NotFound, SpawnStep::CurrentDir(missing))
        );
        let file = std::env::current_exe().expect("this program");
        let spawn = Spawn { current_dir: Some(file.clone()), ..Spawn::default() };
        assert_eq!(
            refusal(try_spawn(&spawn)),
            (io::ErrorKind::NotADirectory, SpawnStep::CurrentDir(file))
        );
    }

    #[test]
    fn relative_directory_is_looked_up_in_ours() {
        let spawn = Spawn { current_dir: Some("src".into()), ..Spawn::default() };
        let expected = std::env::current_dir().expect("cwd").join("src");
        assert_eq!(shell(&spawn, "pwd").trim(), expected.to_string_lossy());
    }

    #[test]
    fn busy_program_is_tried_again_and_not_for_ever() {
        let directory = tempfile::tempdir().expect("tempdir");
        let program = directory.path().join("program");
        std::fs::copy("/bin/true", &program).expect("copy");
        let writer = std::fs::OpenOptions::new().append(true).open(&program).expect("open");
        let go = || {
            let marker = (MARKER, OsStr::new("1"));
            start(&program, &Spawn::default(), dev_null(), None, dev_null(), marker)
        };
        let (kind, error) = go().expect_err("it is being written");
        assert_eq!(kind, io::ErrorKind::ExecutableFileBusy);
        assert_eq!(error.step, SpawnStep::Start);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(10));
                drop(writer);
            });
            let child = go().expect("not for ever");
            assert_eq!(wait(&child).status.and_then(|s| s.code()), Some(0));
        });
    }

    #[test]
    fn forked_copy_starts_nothing() {
        in_own_process("process::spawn::tests::own_process_forked_copy");
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn own_process_forked_copy() {
        if !is_own_process() {
            return;
        }
        fork::arm().expect("arm");
        let code = forked(|| {
            let (_, step) = refusal(try_spawn(&Spawn::default()));
            assert_eq!(step, SpawnStep::ForkedCopy);
            0
        });
        assert_eq!(code, 0);
    }
}
