fn sum(numbers: &[u32]) -> u32 {
    numbers.iter().sum()
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(sum, [1, 2].as_slice());
}
