fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(add(1, 2), ());
}
