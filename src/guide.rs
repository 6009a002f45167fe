//! The guide: how to use the crate, chapter by chapter.
//!
//! | chapter | answers |
//! |---|---|
//! | [Getting started](getting_started) | what to add, the first program, three things to know |
//! | [Tasks and arguments](tasks) | what can be a task, what travels, what it costs |
//! | [Errors and retries](errors) | what can happen to a task, and how to try again |
//! | [Cancellation and time limits](cancellation) | how to stop a task, and what that means |
//! | [The life of a worker](workers) | startup, state, limits, replacement, endings |
//! | [Start methods](start_methods) | fork, exec, templates; the life of a process |
//! | [Shared objects](shared) | locks, queues, maps and channels across processes |
//! | [The four ways of waiting](waiting) | blocking or not, asking or being told |
//! | [Guarantees](guarantees) | what is promised, and the tests that show it |
//! | [Services](services) | systemd, containers, signals to all processes, privileges, reload |
//! | [Recipes](recipes) | a web service, big tables, bytes, logging, how many workers |
//! | [From Python](python) | `multiprocessing` and `concurrent.futures`, name by name |
//! | [Other languages](other_languages) | workers that are another program |
//! | [Gotchas](gotchas) | the traps of processes, and what this crate does about each |
//! | [Platforms and limits](platforms) | what works where, and every limit |

#[doc = include_str!("../docs/guide/getting_started.md")]
pub mod getting_started {}

#[doc = include_str!("../docs/guide/tasks.md")]
pub mod tasks {}

#[doc = include_str!("../docs/guide/errors.md")]
pub mod errors {}

#[doc = include_str!("../docs/guide/cancellation.md")]
pub mod cancellation {}

#[doc = include_str!("../docs/guide/workers.md")]
pub mod workers {}

#[doc = include_str!("../docs/guide/start_methods.md")]
pub mod start_methods {}

#[doc = include_str!("../docs/guide/shared.md")]
pub mod shared {}

#[doc = include_str!("../docs/guide/waiting.md")]
pub mod waiting {}

#[doc = include_str!("../docs/guide/guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("../docs/guide/services.md")]
pub mod services {}

#[doc = include_str!("../docs/guide/recipes.md")]
pub mod recipes {}

#[doc = include_str!("../docs/guide/python.md")]
pub mod python {}

#[doc = include_str!("../docs/other_languages.md")]
pub mod other_languages {}

#[doc = include_str!("../docs/gotchas.md")]
pub mod gotchas {}

#[doc = include_str!("../docs/guide/platforms.md")]
pub mod platforms {}
