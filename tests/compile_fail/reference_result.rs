fn name(n: u32) -> &'static str {
    if n == 0 { "none" } else { "some" }
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(name, 1);
}
