fn run(pool: &procpool::Pool, f: impl Fn(u64) -> u64) {
    let _ = pool.spawn(f, 1);
}

fn main() {
    run(&procpool::Pool::new().unwrap(), |x: u64| x);
}
