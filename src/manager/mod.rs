//! The owner of shared objects, in the application.
//!
//! * `object.rs`: the seam between the objects' rules (`objects/`) and the plumbing that serves
//!   them;
//! * `state.rs`: who has references to what, pure; `held.rs`: references within kept values;
//! * `server.rs`: the rules under their lock, and the sockets of clients;
//! * `post.rs`: who turns it while the application waits;
//! * `rings.rs`: threads that wait for each other's locks;
//! * `segments.rs`: the memory that it shares with its clients; `lock/`: the lock that lives in
//!   shared memory;
//! * `lane.rs`: memory through which a client and a queue pass items; `reads.rs`: what a client
//!   keeps that it has read of a map;
//! * `message.rs`: what clients and manager say to each other; `outgoing.rs`: what is to be written
//!   to a socket;
//! * `mail.rs`: where a client's answers arrive;
//! * `fuzz.rs`: random and mutated messages, for tests.
//!
//! The handles stand in `sync/`.

#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod held;
pub(crate) mod lane;
pub(crate) mod lock;
pub(crate) mod mail;
pub(crate) mod message;
pub(crate) mod object;
pub(crate) mod objects;
pub(crate) mod outgoing;
pub(crate) mod post;
pub(crate) mod reads;
pub(crate) mod rings;
pub(crate) mod segments;
pub(crate) mod server;
pub(crate) mod state;
