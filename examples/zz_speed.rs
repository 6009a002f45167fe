use procpool::{Manager, Mutex, Pool, Value};
use std::time::Instant;
fn spin(total: Mutex<u64>, go: Value<u32>, times: u64) -> (u64, u64) {
    go.fetch_add(1).unwrap();
    while go.load().unwrap() < 2 { std::hint::spin_loop(); }
    let begun = Instant::now();
    for _ in 0..times { *total.blocking_lock().unwrap() += 1; }
    (begun.elapsed().as_nanos() as u64, times)
}
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let manager = Manager::new().unwrap();
    let total = manager.mutex(0u64).unwrap();
    for _ in 0..3 {
        const N: u64 = 2_000_000;
        let begun = Instant::now();
        for _ in 0..N { *total.try_lock().unwrap().unwrap() += 1; }
        let a = begun.elapsed().as_nanos() as u64 / N;
        let begun = Instant::now();
        for _ in 0..N { *total.lock().await.unwrap() += 1; }
        let b = begun.elapsed().as_nanos() as u64 / N;
        let begun = Instant::now();
        for _ in 0..N { drop(total.lock().await.unwrap()); }
        let c = begun.elapsed().as_nanos() as u64 / N;
        let v = manager.value(0u64).unwrap();
        let begun = Instant::now();
        for _ in 0..N { v.fetch_add(1).unwrap(); }
        let d = begun.elapsed().as_nanos() as u64 / N;
        println!("try_lock+write {a} ns, lock.await+write {b} ns, lock.await read {c} ns, value {d} ns");
    }
    let pool = Pool::builder().workers(2).build().unwrap();
    for _ in 0..3 {
        let go = manager.value(0u32).unwrap();
        let begun = Instant::now();
        let x = pool.spawn(spin, (total.clone(), go.clone(), 300_000));
        let y = pool.spawn(spin, (total.clone(), go, 300_000));
        let (x, y) = (x.await.unwrap(), y.await.unwrap());
        println!("contended: {:?} {:?} -> {} acquisitions/s", x, y, 600_000.0 / begun.elapsed().as_secs_f64());
    }
}
