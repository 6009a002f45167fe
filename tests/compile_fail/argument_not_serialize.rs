struct Image(Vec<u8>);

fn size(image: Image, scale: usize) -> usize {
    image.0.len() * scale
}

fn main() {
    let pool = procpool::Pool::new().unwrap();
    let _ = pool.spawn(size, (Image(Vec::new()), 2));
}
