//! A crate that is not part of the program, but of an object that the program loads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::support::fixtures;
use std::env;
use std::process::{Command, Stdio};

/// A fresh start of the program would be no worker, but the program: so nothing may be started.
#[test]
fn in_a_plugin_a_pool_is_refused_by_the_plugins_name_and_nothing_is_started() {
    let plugin = fixtures::build("plugin", "dev").join("libfixture_plugin.so");
    let host = fixtures::build("host", "dev").join("fixture-host");
    let printed = fixtures::run(&host, &[plugin.to_str().unwrap()]).printed();
    let lines: Vec<&str> = printed.lines().collect();
    let [main, refused, left, started] = lines[..] else { panic!("{printed}") };
    assert_eq!((main, started), ("main", "threads: 1, children: \"\""));
    assert_eq!(left, "a worker's end is left to its pool: true");
    assert!(
        refused.starts_with("NotInProgram: ") && refused.contains(plugin.to_str().unwrap()),
        "{refused}"
    );
}

/// It links, with tasks in the library and in the program; but the program that would be started
/// afresh is not where the table is.
#[test]
fn in_a_dylib_a_pool_is_refused_by_the_librarys_name_and_nothing_is_started() {
    let directory = fixtures::build("dylib", "dev");
    let mut compiler = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()));
    let libraries =
        fixtures::finish(compiler.args(["--print", "target-libdir"]).stdin(Stdio::null()))
            .printed();
    let mut program = Command::new(directory.join("fixture-dylib"));
    program.env(
        "LD_LIBRARY_PATH",
        env::join_paths([&*directory, libraries.trim_end().as_ref()]).unwrap(),
    );
    let printed = fixtures::finish(program.stdin(Stdio::null())).printed();
    let lines: Vec<&str> = printed.lines().collect();
    let [main, refused, threads] = lines[..] else { panic!("{printed}") };
    assert_eq!((main, threads), ("main", "threads: 1"));
    let library = directory.join("libfixture_library.so");
    assert!(
        refused.starts_with("NotInProgram: ") && refused.contains(library.to_str().unwrap()),
        "{refused}"
    );
}

/// A worker would be a fresh Python, which would wait for a program at its standard input.
#[test]
#[ignore = "needs Python"]
fn needs_python_in_a_module_of_python_a_pool_is_refused_by_the_modules_name() {
    let module = fixtures::build("plugin", "dev").join("libfixture_plugin.so");
    let script = "import ctypes, os, sys\n\
                  ctypes.CDLL(sys.argv[1]).build_a_pool()\n\
                  try: print(os.waitpid(-1, os.WNOHANG))\n\
                  except ChildProcessError: print('no child')";
    let mut python = Command::new("python3");
    let printed =
        fixtures::finish(python.args(["-c", script]).arg(&module).stdin(Stdio::null())).printed();
    let lines: Vec<&str> = printed.lines().collect();
    let [refused, children] = lines[..] else { panic!("{printed}") };
    assert!(
        refused.starts_with("NotInProgram: ") && refused.contains(module.to_str().unwrap()),
        "{refused}"
    );
    assert_eq!(children, "no child");
}
