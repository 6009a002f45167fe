/// A proof of no size, which only [`init`](proof::init) gives.
mod proof {
    #[derive(Clone, Copy)]
    pub struct Ready([u64; 0]);
    pub fn init() -> Ready {
        Ready([])
    }
    impl Ready {
        pub fn get(self) -> usize {
            self.0.len()
        }
    }
}

fn main() {
    let ready = proof::init();
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(move |x: usize| x + ready.get(), 1);
}
