fn main() {
    let pool = procpool::Pool::new().unwrap();
    let limit = 3_u8;
    let fails = || Err::<(), u8>(1);
    drop(pool.task(fails).retries(1).retry_if(move |e: &u8| *e < limit).spawn(()));
}
