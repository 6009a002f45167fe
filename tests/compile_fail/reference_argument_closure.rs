fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(|text: &str| text.len(), "text");
}
