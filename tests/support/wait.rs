//! Tests wait for facts, with one long limit that only a hang reaches.

use std::fmt::Display;
use std::panic::Location;
use std::time::{Duration, Instant};

/// The longest that a test waits for anything.
pub(crate) const FUSE: Duration = Duration::from_secs(30);

/// Awaits something that must come.
#[track_caller]
pub(crate) fn soon<F: IntoFuture>(future: F) -> impl Future<Output = F::Output> {
    within(Location::caller(), future)
}

/// Awaits something that must come; `what` names it if it does not.
pub(crate) async fn within<F: IntoFuture>(what: impl Display, future: F) -> F::Output {
    tokio::time::timeout(FUSE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Waits for a fact on this thread.
pub(crate) fn wait_until(what: impl Display, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a fact within a runtime.
pub(crate) async fn until(what: impl Display, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < FUSE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Polls once: it is not ready.
pub(crate) async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
    })
    .await
}
