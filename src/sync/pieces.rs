//! Snapshots of maps and lists, which the manager hands out in pieces.

use super::handle::Handle;
use crate::error::sync::Error;
use crate::manager::object::Body;

/// Fetches a snapshot, piece by piece.
///
/// `more` makes the request for the next piece, of the ticket of the first request. `take` takes
/// what a piece contains, and returns whether there is another one.
///
/// Dropped before it is ready, it tells the manager that the rest is not wanted.
pub(super) async fn fetch(
    handle: &Handle,
    first: Body,
    more: impl Fn(u64) -> Body,
    mut take: impl FnMut(&Body) -> Result<bool, Error>,
) -> Result<(), Error> {
    let asking = handle.ask(first);
    let ticket = asking.ticket();
    let mut body = asking.await?;
    let Some(ticket) = ticket else { return take(&body).map(drop) };
    let mut rest = Rest { handle, ticket, wanted: true };
    while take(&body)? {
        body = handle.ask(more(ticket)).await?;
    }
    rest.wanted = false;
    Ok(())
}

/// What is not yet fetched. Dropped while it is still wanted, it is cancelled.
struct Rest<'a> {
    handle: &'a Handle,
    ticket: u64,
    wanted: bool,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if self.wanted {
            self.handle.cancel(self.ticket);
        }
    }
}
