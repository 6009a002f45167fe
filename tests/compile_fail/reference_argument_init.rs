fn load(path: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
}

fn main() {
    let _ = procpool::Pool::builder().on_worker_start(load, "file").build();
}
