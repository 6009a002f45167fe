//! What travels between the pool and its workers.

pub(crate) mod value;
