//! The example `checksums` agrees with `sha256sum`, on names and files of every kind.

use crate::support::examples::example;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Names that somebody, somewhere, takes for something else.
const NAMES: &[&[u8]] = &[
    b"plain",
    b" two  spaces ",
    b"\ttab",
    b"new\nline",
    b"\n",
    b"back\\slash",
    b"no\\newline\\n",
    b"\\",
    b"carriage\rreturn\r",
    b"all\\\r\n\\",
    b"-",
    b"-leading",
    b"--check",
    b"*binary",
    b"# {} 'quoted' \"$HOME\" `x`",
    b"\xff\xfe not UTF-8 \x80",
    b"\x01\x1b[31mcontrol\x7f",
    "grüße-✓".as_bytes(),
];

/// Sizes around those of hash blocks and of read buffers.
const SIZES: &[usize] = &[
    0,
    1,
    55,
    56,
    63,
    64,
    65,
    4095,
    4096,
    4097,
    100_000,
    (256 << 10) - 1,
    256 << 10,
    (256 << 10) + 1,
    3_000_000,
];

fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn content(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed) as u8).collect()
}

/// All there may be in a tree, except what cannot be read.
fn make_tree(root: &Path) {
    fs::create_dir(root).expect("the root");
    for (seed, each) in NAMES.iter().enumerate() {
        fs::write(root.join(name(each)), content(seed * 10, seed)).expect("a file");
        // The same as a directory, with the same in it.
        let directory = root.join("nested").join(name(each)).join(name(each));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(name(each)), content(seed, seed)).expect("a file in it");
    }
    fs::create_dir_all(root.join("sizes/of/files")).expect("a directory");
    for size in SIZES {
        fs::write(root.join(format!("sizes/of/files/{size}")), content(*size, 7)).expect("a file");
    }
    fs::create_dir(root.join("empty")).expect("an empty directory");
    fs::create_dir(root.join("many")).expect("a directory");
    for i in 0..2000 {
        fs::write(root.join(format!("many/{i}")), i.to_string()).expect("a file");
    }
    symlink("plain", root.join("link")).expect("a link");
    symlink("nested", root.join("link to directory")).expect("a link");
    symlink(".", root.join("loop")).expect("a link");
    symlink("nowhere", root.join("dangling")).expect("a link");
    nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).expect("a fifo");
    // Fails where the directory's own path is longer than a socket's may be.
    let _ = std::os::unix::net::UnixListener::bind(root.join("socket"));
}

fn command(program: impl AsRef<OsStr>, args: &[&OsStr], directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn checksums(args: &[&OsStr], directory: &Path) -> Output {
    command(example("checksums"), args, directory).output().expect("the example starts")
}

/// What the shell does about it.
fn sha256sum(root: &OsStr, directory: &Path) -> Vec<u8> {
    let script = OsStr::new(
        r#"find "$1" -type f -print0 2>/dev/null | xargs -0r sha256sum 2>/dev/null | sort"#,
    );
    command("sh", &["-c".as_ref(), script, "sh".as_ref(), root], directory)
        .output()
        .expect("a shell")
        .stdout
}

fn sorted(lines: &[u8]) -> Vec<u8> {
    let mut lines: Vec<_> = lines.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines.concat()
}

#[track_caller]
fn assert_same(ours: &[u8], theirs: &[u8]) {
    let ours = sorted(ours);
    if ours != theirs {
        let (ours, theirs) = (String::from_utf8_lossy(&ours), String::from_utf8_lossy(theirs));
        let differ = ours.lines().zip(theirs.lines()).find(|(a, b)| a != b);
        panic!(
            "{} lines, sha256sum has {}; the first that differ: {differ:?}",
            ours.lines().count(),
            theirs.lines().count()
        );
    }
}

#[test]
fn equals_sha256sum_and_passes_its_check() {
    let directory = tempfile::tempdir().expect("a directory");
    make_tree(&directory.path().join("tree"));

    // As `find` prints them: a root stays as it was given.
    for root in [
        "tree",
        "tree/",
        "tree//",
        "./tree",
        "tree/../tree",
        "tree/plain",
        "tree/link",
        "tree/loop",
        "tree/loop/",
        "tree/fifo",
        "tree/empty",
    ] {
        let root = OsStr::new(root);
        let output = checksums(&[root], directory.path());
        assert!(output.status.success(), "{root:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_same(&output.stdout, &sha256sum(root, directory.path()));
    }

    // Absolute, and none at all.
    let tree = directory.path().join("tree");
    let output = checksums(&[tree.as_os_str()], Path::new("/"));
    assert_same(&output.stdout, &sha256sum(tree.as_os_str(), Path::new("/")));
    let output = checksums(&[], &tree);
    assert_same(&output.stdout, &sha256sum(".".as_ref(), &tree));

    let count = NAMES.len() * 2 + SIZES.len() + 2000;
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), count);
    let summary = String::from_utf8(output.stderr).expect("no file is complained about");
    assert!(
        summary.starts_with(&format!("{count} files, ")) && summary.lines().count() == 1,
        "{summary}"
    );

    let mut check =
        command("sha256sum", &["--check".as_ref(), "--quiet".as_ref(), "--strict".as_ref()], &tree)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sha256sum");
    check.stdin.take().expect("piped").write_all(&output.stdout).expect("it reads");
    let checked = check.wait_with_output().expect("it ends");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    assert!(checked.stdout.is_empty() && checked.stderr.is_empty(), "{checked:?}");
}

#[test]
fn tells_what_cannot_be_read_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    make_tree(&tree);
    let (file, folder) = (tree.join("secret\nfile"), tree.join("secret folder"));
    fs::write(&file, "secret").expect("a file");
    fs::create_dir(&folder).expect("a directory");
    fs::write(folder.join("inside"), "secret").expect("a file");
    fs::set_permissions(&file, Permissions::from_mode(0o000)).expect("its mode");
    fs::set_permissions(&folder, Permissions::from_mode(0o000)).expect("its mode");

    // Root reads everything.
    let root = fs::read(&file).is_ok();
    let output = checksums(&[], &tree);
    let theirs = sha256sum(".".as_ref(), &tree);
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).expect("its mode, to be removed");

    assert_same(&output.stdout, &theirs);
    let told = String::from_utf8(output.stderr).expect("names are told in ASCII");
    if root {
        assert!(output.status.success(), "{told}");
    } else {
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(r#"checksums: "./secret\nfile": Permission denied"#), "{told}");
        assert!(told.contains(r#"checksums: "./secret folder": Permission denied"#), "{told}");
        assert!(told.trim_end().ends_with("; 2 could not be read"), "{told}");
    }
}

#[test]
fn a_root_that_is_not_there_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = checksums(&["missing".as_ref()], directory.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .starts_with(r#"checksums: "missing": No such file"#)
    );
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    make_tree(&tree);
    let mut child = command(example("checksums"), &[], &tree)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
