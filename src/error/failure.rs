//! An error that travels.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A serialisable error that `?` makes from any [`std::error::Error`].
///
/// A task's result must travel to another process, and `std::io::Error` or a boxed error cannot.
/// `Failure` carries what people read of an error: its text, its debug text, and the texts of its
/// sources, in order.
///
/// It deliberately is no [`std::error::Error`] itself, which is what allows the conversion from
/// every type that is (`anyhow::Error` does the same).
///
/// ```
/// use procpool::Failure;
///
/// fn size(path: String) -> Result<u64, Failure> {
///     Ok(std::fs::metadata(path)?.len())
/// }
/// # assert!(size("/no/such/file".into()).unwrap_err().message().contains("No such file"));
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    message: String,
    debug: String,
    sources: Vec<String>,
}

impl Failure {
    /// A failure of one's own words.
    pub fn msg(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { debug: message.clone(), message, sources: Vec::new() }
    }

    /// The error's `Display` text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The error's `Debug` text.
    pub fn debug(&self) -> &str {
        &self.debug
    }

    /// The `Display` texts of the error's sources, the nearest first.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(String::as_str)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let sources = std::iter::successors(error.source(), |e| e.source()).map(ToString::to_string).collect();
        Self { message: error.to_string(), debug: format!("{error:?}"), sources }
    }
}

/// The message; with `{:#}` also the sources, joined by `: `.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if f.alternate() {
            self.sources.iter().try_for_each(|source| write!(f, ": {source}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for source in &self.sources {
            write!(f, "\n  caused by: {source}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Link(&'static str, Option<Box<Link>>);

    impl fmt::Display for Link {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Link {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|e| e as _)
        }
    }

    #[test]
    fn keeps_the_whole_chain_of_sources() {
        let chain = Link("outer", Some(Box::new(Link("middle", Some(Box::new(Link("inner", None)))))));
        let failure = Failure::from(chain);
        assert_eq!(failure.message(), "outer");
        assert_eq!(failure.sources().collect::<Vec<_>>(), ["middle", "inner"]);
        assert_eq!(format!("{failure:#}"), "outer: middle: inner");
    }
}
