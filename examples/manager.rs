//! What Python's tutorial shows of its managers: a dict, a list and a queue that a child process
//! changes, and a class of one's own.
//!
//!     cargo run --example manager

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procpool::sync::{Actor, ActorRef, List, Map, Queue};
use procpool::{Manager, Process};
use serde::{Deserialize, Serialize};

/// Runs in the child, as everything that is given to [`Process::spawn`].
fn change(dict: Map<String, Option<i64>>, list: List<i64>) -> Result<(), procpool::Failure> {
    dict.blocking_insert("one".into(), Some(1))?;
    dict.blocking_insert("two".into(), Some(2))?;
    dict.blocking_insert("a quarter".into(), None)?;
    list.blocking_reverse()?;
    Ok(())
}

/// Python's queue takes a list of anything; here the kinds have names.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Item {
    Number(i64),
    Nothing,
    Text(String),
}

fn put(queue: Queue<Vec<Item>>) -> Result<(), procpool::Failure> {
    queue.blocking_send(vec![Item::Number(42), Item::Nothing, Item::Text("hello".into())])?;
    Ok(())
}

/// The class that Python's tutorial registers. It counts its calls, to show that it is one and the
/// same for everybody.
#[derive(Default)]
struct Maths {
    calls: u32,
}

#[derive(Serialize, Deserialize)]
enum Call {
    Add(i64, i64),
    Mul(i64, i64),
    Calls,
}

impl Actor for Maths {
    type Call = Call;
    type Reply = i64;

    async fn call(&mut self, call: Call) -> i64 {
        self.calls += 1;
        match call {
            Call::Add(x, y) => x + y,
            Call::Mul(x, y) => x * y,
            Call::Calls => self.calls.into(),
        }
    }
}

fn calculate(maths: ActorRef<Maths>) -> Result<(i64, i64), procpool::Failure> {
    Ok((maths.blocking_call(Call::Add(4, 3))?, maths.blocking_call(Call::Mul(7, 8))?))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manager = Manager::new()?;

    let dict = manager.map::<String, Option<i64>>()?;
    let list = manager.list::<i64>()?;
    list.extend(0..10).await?;
    Process::spawn(change, (dict.clone(), list.clone()))?.await??;
    let (entries, numbers) = (dict.entries().await?, list.snapshot().await?);
    println!("{entries:?}");
    println!("{numbers:?}");

    let queue = manager.queue(1)?;
    let child = Process::spawn(put, &queue)?;
    let items = queue.recv().await?.unwrap_or_default();
    child.await??;
    println!("{items:?}");

    let maths = manager.register(Maths::default())?;
    let (sum, product) = Process::spawn(calculate, &maths)?.await??;
    let calls = maths.call(Call::Calls).await?;
    println!("4 + 3 = {sum}, 7 * 8 = {product}, and this is call {calls}");

    // The proof: all is as in Python, and when the last handle goes, so does what it named.
    let right = entries
        == [("one".into(), Some(1)), ("two".into(), Some(2)), ("a quarter".into(), None)]
        && numbers.iter().rev().copied().eq(0..10)
        && items == [Item::Number(42), Item::Nothing, Item::Text("hello".into())]
        && (sum, product, calls) == (7, 56, 3);
    let before = manager.objects();
    drop((dict, list, queue));
    println!("right: {right}; objects: {before}, then {}", manager.objects());
    Ok(())
}
