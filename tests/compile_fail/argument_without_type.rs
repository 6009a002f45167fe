async fn run(pool: procpool::Pool) -> Result<(), procpool::TaskError> {
    pool.spawn(|x| x + 1, 1).await?;
    Ok(())
}

fn main() {
    drop(run(procpool::Pool::new().unwrap()));
}
