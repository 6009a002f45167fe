//! The shared objects' rules, one kind a file: requests in, answers out (see [`object`](super::object)).
#![expect(dead_code, reason = "its users come with the next commits")]

pub(crate) mod code;
pub(crate) mod line;
pub(crate) mod queue;
#[cfg(test)]
pub(crate) mod testing;
