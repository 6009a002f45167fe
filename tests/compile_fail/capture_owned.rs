fn main() {
    let name = String::from("x");
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(move |x: usize| x + name.len(), 1);
}
