#[derive(Clone, Copy)]
struct Token;

fn main() {
    let token = Token;
    let pool = procpool::Pool::new().unwrap();
    let fails = || Err::<(), u8>(1);
    let predicate = procpool::task!(move |e: &u8| {
        let _ = token;
        *e == 1
    });
    drop(pool.task(fails).retries(1).retry_if(predicate).spawn(()));
}
