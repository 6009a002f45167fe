fn load(path: String) -> usize {
    path.len()
}

fn main() {
    let _ = procpool::Pool::builder().on_worker_start(load, "file").build();
}
