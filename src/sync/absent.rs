//! What pools and workers need of shared objects where these are left out (the feature `sync`):
//! nothing can be named, so nothing travels.
//!
//! Only an error of [`Named::read`](named::Named::read) remains: names that come all the same, from
//! a worker that breaks the protocol, are refused.

#[cfg(not(feature = "sync"))]
pub(crate) use std::convert::Infallible as Manager;

/// References that travel beside a call or a result: none do.
pub(crate) mod named {
    use crate::wire::value::names::Thing;
    use crate::wire::value::{self, DecodeError, EncodeError};
    use std::convert::Infallible;
    #[cfg(unix)]
    use std::os::fd::{BorrowedFd, OwnedFd};

    /// A MessagePack array without elements.
    const EMPTY_LIST: u8 = 0x90;

    pub(crate) fn write_names(
        things: &[Thing],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), EncodeError> {
        debug_assert!(things.is_empty(), "there are no handles");
        value::encode(&[(); 0], out, limit)
    }

    pub(crate) fn for_call(things: Vec<Thing>) -> Vec<Thing> {
        things
    }

    /// Names that came with a call or a result: an empty list.
    #[derive(Debug)]
    pub(crate) struct Named(());

    impl Named {
        /// # Errors
        ///
        /// Anything but an empty list.
        pub(crate) fn read(bytes: &[u8]) -> Result<(Self, usize), DecodeError> {
            if bytes.first() == Some(&EMPTY_LIST) {
                return Ok((Self(()), 1));
            }
            let text = "this program was built without shared objects".into();
            Err(DecodeError::Message { at: Some(0), text })
        }
    }

    /// What one worker was lent: nothing.
    #[derive(Debug, Default)]
    pub(crate) struct Leases(());

    impl Leases {
        #[cfg(unix)]
        pub(crate) fn lend(
            &self,
            _: &[Thing],
            _: Option<BorrowedFd<'_>>,
        ) -> std::io::Result<Vec<(u64, OwnedFd)>> {
            Ok(Vec::new())
        }

        pub(crate) fn not_attached(&self, _: u64) {}

        pub(crate) fn waits(&self) -> Vec<(u64, u64, Infallible, Option<String>)> {
            Vec::new()
        }

        pub(crate) fn take(&self, _: &Named) -> Result<Vec<Thing>, String> {
            Ok(Vec::new())
        }
    }

    /// A socket to a manager came, from a pool that breaks the protocol: it is closed.
    #[cfg(unix)]
    pub(crate) fn given(_: u64, _: Option<OwnedFd>) {}

    pub(crate) fn tell_unattached(_: u64) -> bool {
        false
    }

    #[derive(Debug)]
    pub(crate) struct Unknown {
        pub(crate) manager: u64,
        pub(crate) reason: String,
    }

    pub(crate) fn received(_: Named) -> Result<Vec<Thing>, Unknown> {
        Ok(Vec::new())
    }

    pub(crate) fn parcel(_: &[Thing]) -> Result<(), Infallible> {
        Ok(())
    }
}

pub(crate) mod handle {
    pub(crate) mod kinds {
        use std::convert::Infallible;

        pub(crate) fn type_name(kind: Infallible) -> &'static str {
            match kind {}
        }
    }
}

#[cfg(unix)]
pub(crate) mod readiness {
    use std::io;
    use std::os::fd::AsRawFd;
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// Watches for something to read. `inner` must own its descriptor, or share in it, and keep it.
    ///
    /// # Panics
    ///
    /// In a runtime without I/O, as tokio's own types do.
    #[expect(
        deprecated,
        reason = "the successor is unsafe and younger than the tokio we ask for; what we give in owns its descriptor, which is all it wants"
    )]
    pub(crate) fn watch_readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
        AsyncFd::with_interest(inner, Interest::READABLE)
    }
}

pub(crate) mod remote {
    pub(crate) fn driven<R>(run: impl FnOnce() -> R) -> R {
        run()
    }

    pub(crate) fn outlives_the_application() {}
}

pub(crate) mod wait {
    use std::sync::atomic::AtomicU64;

    pub(crate) fn count_waits(_: &'static AtomicU64) {}
}

pub(crate) mod stopping {
    pub(crate) fn drop_stopped<T>(task: T) {
        drop(task);
    }
}
