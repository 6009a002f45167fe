//! The two textbook programs about fork, written with `Process`.
//!
//!     cargo run --example fork_tree
//!
//! In C, the first one is
//!
//! ```c
//! for (int turn = 0; turn < 3; turn++)
//!     if (fork() == 0)
//!         printf("hello\n");          /* and the child goes on with the loop */
//! ```
//!
//! Each process forks once in each turn that is left to it: 1 + 2 + 4 children, seven hellos. In the
//! second one, each child exits after its hello: three hellos. A `Process` does not go on where its
//! parent was, so what is left of the loop is an argument.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procpool::{Error, Process};

const TURNS: u32 = 3;

fn hello(turn: u32) {
    let parent = std::os::unix::process::parent_id();
    // One call writes the whole line, so lines of several processes do not mix.
    println!("turn {turn}: hello from process {}, child of {parent}", std::process::id());
}

/// What is left of the loop: in each turn a child is started by `start`. Waits for all of them.
fn turns(first: u32, start: fn(u32) -> Result<Process, Error>) {
    let children: Vec<_> = (first..TURNS).map(start).collect();
    for child in children {
        child.and_then(|child| child.blocking_wait()).expect("a child");
    }
}

/// A child of the first program: it says hello, and goes on with the loop.
fn goes_on(turn: u32) {
    hello(turn);
    turns(turn + 1, |turn| Process::spawn(goes_on, turn));
}

fn main() {
    println!("every process goes on with the loop:");
    turns(0, |turn| Process::spawn(goes_on, turn));

    println!("each child exits after its hello:");
    turns(0, |turn| Process::spawn(hello, turn));
}
