fn count(text: &str) -> usize {
    text.len()
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(count, "text");
}
