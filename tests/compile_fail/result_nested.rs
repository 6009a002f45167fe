struct Out(u8);

fn wrapped(n: u32) -> Result<Out, String> {
    Ok(Out(n as u8))
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(wrapped, 1);
}
