fn main() {
    let offset = 1;
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(|x: u64| x + offset, 1);
}
