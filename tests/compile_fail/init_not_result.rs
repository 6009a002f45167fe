fn load(path: String) -> usize {
    path.len()
}

fn main() {
    let _ = procpool::Pool::builder().init(load, "file").build();
}
