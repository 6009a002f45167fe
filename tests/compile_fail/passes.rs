//! What the documentation promises to infer without annotations.

use std::path::{Path, PathBuf};

use procpool::{Pool, Process, TaskError};

fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

async fn fetch(host: String, port: u16) -> Result<Vec<u8>, String> {
    Err(format!("{host}:{port}"))
}

fn checksum(path: PathBuf) -> u32 {
    path.as_os_str().len() as u32
}

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn add_pair((a, b): (u64, u64)) -> u64 {
    a + b
}

fn work<T: Into<u64>>(n: T) -> u64 {
    n.into()
}

struct Model(Vec<u8>);

fn load_model(path: PathBuf) -> std::io::Result<Model> {
    std::fs::read(path).map(Model)
}

async fn connect() -> Result<(), String> {
    Ok(())
}

async fn front_page() -> Result<(), Box<dyn std::error::Error>> {
    let path = Path::new("model");
    let pool = Pool::builder().workers(8).on_worker_start(load_model, path).build()?;
    let _ = Pool::builder().on_worker_start(connect, ()).build()?;

    let one: u64 = pool.spawn(fib, 35).await?;
    let page: Vec<u8> = pool.spawn(fetch, ("host".into(), 80)).await??;
    let upper: String = pool.spawn(|s: String| s.to_uppercase(), "x").await?;
    let sum: u32 = pool.spawn(checksum, path).await?;
    let all: Result<u64, TaskError> = pool.spawn(work::<u32>, 1).await;

    let fetched = pool.task(fetch).retries(3).retry_if(|e| e.is_empty()).spawn(("host".into(), 80)).await?;
    let _: Result<Vec<u8>, String> = fetched;

    // The checked form, wherever a task, an init function or a predicate is taken.
    let checked = Pool::builder().on_worker_start(procpool::task!(load_model), path).build()?;
    let _: u64 = checked.spawn(procpool::task!(fib), 35).await?;
    let _: u64 = checked.spawn(procpool::task!(work::<u32>), 1).await?;
    let _: Result<Vec<u8>, String> = checked.spawn(procpool::task!(fetch), ("host".into(), 80)).await?;
    let _: String = checked.spawn(procpool::task!(|s: String| s.to_uppercase()), "x").await?;
    let _: u64 = checked.spawn(procpool::task!(async |n: u64| n + 1), 1).await?;
    let contented = procpool::task!(|e: &String| e.is_empty());
    let _ = checked.task(procpool::task!(fetch)).retries(3).retry_if(contented).spawn(("host".into(), 80)).await?;

    let pairs = vec![(1, 2), (3, 4)];
    let _ = pool.map(fib, 0..90);
    let _ = pool.map(add, pairs.iter());
    let _ = pool.map(add_pair, &pairs);
    let _ = pool.map(add, pairs);
    let _ = pool.spawn(add_pair, (1, 2));
    let _ = pool.spawn(async |x: u8| x, 1);
    let _ = pool.spawn(|x: u8| async move { x }, 1);

    let child = Process::spawn(fib, 35)?;
    child.terminate()?;
    let _: Result<u64, TaskError> = child.await;
    let _: Result<String, String> = Process::builder().daemon(false).spawn(fetch, ("host".into(), 80))?.await?.map(|_| String::new());
    let _: u32 = Process::builder().detach(checksum, path).await?.pid();

    println!("{one} {page:?} {upper} {sum} {all:?}");
    Ok(())
}

fn main() {
    drop(front_page());
    println!("{}", procpool::state::<Model>().map_or(0, |model| model.0.len()));
}
