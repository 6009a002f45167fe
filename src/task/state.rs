//! What the pool's `init` function left in this worker.

use std::any::Any;
use std::sync::OnceLock;

static STATE: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();

/// What the pool's `init` function returned in this worker process.
///
/// `None` outside a worker, in a worker of a pool without `init`, and when `init` returned another
/// type than `T`. It never changes once a task runs.
///
/// ```
/// use procpool::Pool;
/// use std::convert::Infallible;
///
/// fn load(words: Vec<String>) -> Result<Vec<String>, Infallible> {
///     Ok(words) // a model, a dictionary, a connection …
/// }
///
/// fn word(at: usize) -> Option<String> {
///     procpool::state::<Vec<String>>()?.get(at).cloned()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let words = vec!["zero".to_string(), "one".to_string()];
/// let pool = Pool::builder().workers(1).on_worker_start(load, words).build()?;
/// assert_eq!(pool.spawn(word, 1).await?.as_deref(), Some("one"));
/// # Ok(())
/// # }
/// ```
pub fn state<T: Send + Sync + 'static>() -> Option<&'static T> {
    STATE.get()?.downcast_ref()
}

/// Keeps what `init` returned. Called once, before the first task.
pub(crate) fn keep(state: Box<dyn Any + Send + Sync>) {
    let _ = STATE.set(state);
}
