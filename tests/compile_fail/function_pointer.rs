fn double(x: u64) -> u64 {
    x * 2
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let function: fn(u64) -> u64 = double;
    let _ = pool.spawn(function, 1);
}
