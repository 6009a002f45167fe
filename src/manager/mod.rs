//! The owner of shared objects.
//!
//! [`object`] is the seam between the objects' rules (`objects/`) and the plumbing that serves them.
//!
//! What a handle needs of the plumbing on its side, in the application (where it may enter the object directly) as in
//! a worker, from any thread and in any runtime:
//!
//! * to ask: a [`Body`](object::Body) goes out, a future comes back that gives the answer's body or the error that the
//!   manager is closed; it can also be waited for by blocking the thread, and be looked at without waiting. It knows
//!   its ticket. An offer is `taken` just before the future is ready. Dropped before it was ready, it cancels;
//! * to cancel a ticket that was answered (that is how a permit, a lock or a lease is let go without a word more);
//! * to tell: a request whose answer nobody waits for, in order with the others.

pub(crate) mod object;
pub(crate) mod objects;
