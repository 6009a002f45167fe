/// A proof of no size, which only [`init`](proof::init) gives.
mod proof {
    #[derive(Clone, Copy)]
    pub struct Ready(());
    pub fn init() -> Ready {
        Ready(())
    }
    impl Ready {
        pub fn get(self) -> usize {
            1
        }
    }
}

fn main() {
    let ready = proof::init();
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(procpool::task!(move |x: usize| x + ready.get()), 1);
}
