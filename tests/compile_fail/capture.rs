fn main() {
    let offset = 1;
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(move |x: u64| x + offset, 1);
}
