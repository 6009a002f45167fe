//! Searches files in worker processes: each match is shown as soon as it is found, and when there
//! are enough, the search stops.
//!
//!     cargo run --example log_search -- WORD FILE…
//!
//! Without arguments it searches its own source for `stream`.

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use futures::StreamExt;
use procpool::{Failure, Pool, Yielder};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Matches that are enough.
const ENOUGH: usize = 3;
/// Files that are searched at once.
const AT_ONCE: usize = 4;

#[derive(Serialize, Deserialize)]
struct Found {
    file: PathBuf,
    number: usize,
    line: String,
}

/// In a worker: yields the lines that contain the word, or why the file cannot be read.
fn search(word: String, file: PathBuf, out: Yielder<Result<Found, Failure>>) {
    if let Err(failure) = lines(&word, &file, &out) {
        let failure = Failure::msg(format!("{}: {failure:#}", file.display()));
        let _ = out.blocking_send(Err(failure)); // nobody may want it any more
    }
}

/// It waits while nobody takes the matches, and ends when nobody wants any more.
fn lines(word: &str, file: &Path, out: &Yielder<Result<Found, Failure>>) -> Result<(), Failure> {
    for (number, line) in (1..).zip(BufReader::new(File::open(file)?).lines()) {
        let line = line?;
        if line.contains(word) {
            out.blocking_send(Ok(Found { file: file.to_owned(), number, line }))?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let word = args.next().unwrap_or_else(|| "stream".into());
    let mut files: Vec<PathBuf> = args.map(PathBuf::from).collect();
    if files.is_empty() {
        files.push(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/log_search.rs").into());
    }
    let pool = Pool::new()?;
    let searches = futures::stream::iter(files).map(|file| {
        // A search that is not wanted any more ends by itself, and its worker stays.
        let task = pool.task(search).grace(Duration::from_secs(1));
        task.stream((word.clone(), file))
    });
    let mut matches = searches.flatten_unordered(AT_ONCE).take(ENOUGH);
    let mut count = 0;
    while let Some(found) = matches.next().await {
        match found? {
            Ok(Found { file, number, line }) => {
                println!("{}:{number}: {}", file.display(), line.trim());
                count += 1;
            }
            Err(failure) => eprintln!("{failure:#}"),
        }
    }
    println!("{count} matches{}", if count == ENOUGH { ", and perhaps more" } else { "" });
    Ok(())
}
