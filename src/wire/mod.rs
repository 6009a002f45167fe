//! Bytes, frames, messages and values: what pool and worker say to each other; and the words and
//! the ring of the memory that they share.
//!
//! Every byte is specified in `docs/protocol.md`. Knows no process, no pool and no socket: whoever
//! has a socket fills a [`FrameBuffer`](frame::FrameBuffer) from it and empties a packet into it.

pub(crate) mod claim;
#[cfg(test)]
pub(crate) mod counting;
pub(crate) mod credit;
pub(crate) mod frame;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod message;
pub(crate) mod outbox;
pub(crate) mod packet;
pub(crate) mod value;
