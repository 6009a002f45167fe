/// A function that can be called only after [`init`](proof::init).
mod proof {
    pub fn init() -> impl Fn(u64) -> u64 + Copy + Send + Sync + 'static {
        fn private(n: u64) -> u64 {
            n
        }
        private
    }
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(procpool::task!(proof::init()), 1);
}
