fn nine(_: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8) {}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(nine, (1, 2, 3, 4, 5, 6, 7, 8, 9));
}
