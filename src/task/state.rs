//! What the pool's `init` function left in this worker.

use std::any::Any;
use std::sync::OnceLock;

static STATE: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();
/// What the preload function of the template left, of which this process is a fork.
static PRELOADED: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();

/// What the pool's `init` function returned in this worker process, or else what the preload
/// function of its [`Template`](crate::Template) did: the one that is a `T`.
///
/// `None` outside a worker, in a worker of a pool without either, and when they returned other types
/// than `T`. It never changes once a task runs.
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
    [&STATE, &PRELOADED].into_iter().find_map(|kept| kept.get()?.downcast_ref())
}

/// Keeps what `init` returned. Called once, before the first task.
pub(crate) fn keep(state: Box<dyn Any + Send + Sync>) {
    let _ = STATE.set(state);
}

/// Keeps what the preload function returned. Called once, in the template.
pub(crate) fn keep_preloaded(state: Box<dyn Any + Send + Sync>) {
    let _ = PRELOADED.set(state);
}
