use std::sync::{Arc, Mutex};

fn add(total: Arc<Mutex<u64>>) {
    *total.lock().unwrap() += 1;
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(add, Arc::new(Mutex::new(0)));
}
