struct Shape(u64);

impl Shape {
    fn area(&self) -> u64 {
        self.0
    }
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(Shape::area, Shape(1));
}
