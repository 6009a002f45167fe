async fn size(path: String) -> std::io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(size, "file");
}
