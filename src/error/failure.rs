//! An error that travels.

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::ops::Deref;

/// A serialisable error that `?` makes from any [`std::error::Error`].
///
/// A task's result must travel to another process, and `std::io::Error` or a boxed error cannot.
/// `Failure` carries what people read of an error: its text, its debug text, and the texts of its
/// sources, in order.
///
/// It deliberately is no [`std::error::Error`] itself, which is what allows the conversion from
/// every type that is (`anyhow::Error` does the same). What is none itself, `Box<dyn Error>` or
/// `anyhow::Error`, becomes a failure by [`from_boxed`](Self::from_boxed), a text by
/// [`msg`](Self::msg).
///
/// At most 128 sources are kept. If an error has more (its chain may even be endless), the last one
/// that is kept is `more sources, which are not kept` instead.
///
/// Where it arrives, `?` makes a boxed error of it, and with the crate's feature `anyhow` an
/// `anyhow::Error`; for anything else that wants an error there is
/// [`into_error`](Self::into_error).
///
/// ```
/// use procpool::{Failure, Pool};
///
/// fn size(path: String) -> Result<u64, Failure> {
///     Ok(std::fs::metadata(path)?.len())
/// }
///
/// async fn size_elsewhere(pool: &Pool, path: &str) -> Result<u64, Box<dyn std::error::Error>> {
///     // The first `?` is for what befell the task, the second for its own error.
///     Ok(pool.spawn(size, path).await??)
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let pool = Pool::builder().workers(1).build().unwrap();
/// # assert!(size_elsewhere(&pool, "/no/such/file").await.unwrap_err().to_string().contains("No such file"));
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    message: String,
    debug: String,
    #[serde(deserialize_with = "bounded")]
    sources: Vec<String>,
}

/// Sources that a failure keeps. What formats an error recurses over its sources as a rule, so the
/// bound holds in the process that decodes a failure, whatever another process has encoded.
const SOURCES_MAX: usize = 128;

/// The last source of a failure that had more than [`SOURCES_MAX`].
const MORE_SOURCES: &str = "more sources, which are not kept";

/// Keeps at most [`SOURCES_MAX`] of the sources, and says so if there are more.
fn keep(sources: &mut dyn Iterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<_> = sources.take(SOURCES_MAX).collect();
    if sources.next().is_some()
        && let Some(last) = kept.last_mut()
    {
        *last = MORE_SOURCES.into();
    }
    kept
}

/// Decodes the sources, and passes over those that are not kept.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Sources;

    impl<'de> Visitor<'de> for Sources {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the texts of an error's sources")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Vec<String>, A::Error> {
            let mut error = None;
            let kept = keep(&mut std::iter::from_fn(|| {
                texts.next_element().unwrap_or_else(|e| {
                    error = Some(e);
                    None
                })
            }));
            if let Some(error) = error {
                return Err(error);
            }
            while texts.next_element::<IgnoredAny>()?.is_some() {}
            Ok(kept)
        }
    }

    deserializer.deserialize_seq(Sources)
}

impl Failure {
    /// A failure of one's own words.
    pub fn msg(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { debug: message.clone(), message, sources: Vec::new() }
    }

    /// A failure of an error that is kept behind a pointer, and so is none itself: `Box<dyn
    /// Error>`, with or without `Send` and `Sync`, `anyhow::Error`, `eyre::Report`.
    ///
    /// ```
    /// use procpool::Failure;
    ///
    /// fn parse(text: &str) -> Result<u8, Box<dyn std::error::Error>> { // or an `anyhow::Result<u8>`
    ///     Ok(text.trim().parse()?)
    /// }
    ///
    /// fn task(text: String) -> Result<u8, Failure> {
    ///     parse(&text).map_err(Failure::from_boxed)
    /// }
    ///
    /// assert_eq!(task("300".into()).unwrap_err().message(), "number too large to fit in target type");
    /// ```
    pub fn from_boxed<P>(error: P) -> Self
    where
        P: Deref,
        P::Target: std::error::Error,
    {
        Self::of(&*error)
    }

    fn of<E: std::error::Error + ?Sized>(error: &E) -> Self {
        let mut sources =
            std::iter::successors(error.source(), |e| e.source()).map(ToString::to_string);
        let sources = keep(&mut sources);
        Self { message: error.to_string(), debug: format!("{error:?}"), sources }
    }

    /// The same as a [`std::error::Error`]: with its texts, and its sources as
    /// [`source`](std::error::Error::source)s.
    #[must_use]
    pub fn into_error(self) -> impl std::error::Error + Send + Sync + 'static {
        Arrived::from(self)
    }

    /// The error's `Display` text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The error's `Debug` text.
    #[must_use]
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
        Self::of(&error)
    }
}

/// A failure where an error is wanted.
struct Arrived {
    message: String,
    source: Option<Box<Arrived>>,
}

/// Drops the chain in a loop: the stack on which an error is dropped may be nearly used up.
impl Drop for Arrived {
    fn drop(&mut self) {
        let mut next = self.source.take();
        while let Some(mut source) = next {
            next = source.source.take();
        }
    }
}

impl From<Failure> for Arrived {
    fn from(failure: Failure) -> Self {
        let source = failure
            .sources
            .into_iter()
            .rev()
            .fold(None, |source, message| Some(Box::new(Self { message, source })));
        Self { message: failure.message, source }
    }
}

impl std::error::Error for Arrived {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl fmt::Display for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What `main` prints of an error that it returns: as [`Failure`] has it.
impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut sources =
            std::iter::successors(self.source.as_deref(), |error| error.source.as_deref());
        sources.try_for_each(|source| write!(f, "\n  caused by: {}", source.message))
    }
}

impl From<Failure> for Box<dyn std::error::Error + Send + Sync> {
    fn from(failure: Failure) -> Self {
        Box::new(Arrived::from(failure))
    }
}

impl From<Failure> for Box<dyn std::error::Error + Send> {
    fn from(failure: Failure) -> Self {
        Box::new(Arrived::from(failure))
    }
}

impl From<Failure> for Box<dyn std::error::Error> {
    fn from(failure: Failure) -> Self {
        Box::new(Arrived::from(failure))
    }
}

/// With its texts, and its sources as sources: `{:#}` shows them.
#[cfg(feature = "anyhow")]
impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        Self::new(Arrived::from(failure))
    }
}

/// The message; with `{:#}` also the sources, joined by `: `. A source is left out if the text before
/// it ends in the source's own text, as that of many errors does.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let sources = if f.alternate() { &self.sources[..] } else { &[] };
        let mut before = &self.message;
        for source in sources {
            if !before.ends_with(source) {
                write!(f, ": {source}")?;
            }
            before = source;
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
        let chain =
            Link("outer", Some(Box::new(Link("middle", Some(Box::new(Link("inner", None)))))));
        let failure = Failure::from(chain);
        assert_eq!(failure.message(), "outer");
        assert_eq!(failure.sources().collect::<Vec<_>>(), ["middle", "inner"]);
        assert_eq!(format!("{failure:#}"), "outer: middle: inner");
    }

    #[test]
    fn says_no_text_twice() {
        let sources = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let failure = |message: &str, texts: &[&str]| Failure {
            sources: sources(texts),
            ..Failure::msg(message)
        };
        for (message, texts, all) in [
            ("reading: no such file", &["no such file"][..], "reading: no such file"),
            ("a: b: c", &["b: c", "c"], "a: b: c"),
            ("a: b", &["b", "c"], "a: b: c"),
            ("a", &["b", "b", "", "a"], "a: b: a"),
        ] {
            assert_eq!(format!("{:#}", failure(message, texts)), all);
        }
    }

    #[test]
    fn becomes_an_error_where_one_is_wanted() {
        let failure = || {
            Failure::from(Link(
                "outer",
                Some(Box::new(Link("middle", Some(Box::new(Link("inner", None)))))),
            ))
        };
        let boxed = || -> Result<(), Box<dyn std::error::Error>> { Err(failure())? };
        let threaded =
            || -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Err(failure())? };
        let errors: [Box<dyn std::error::Error>; 4] = [
            boxed().expect_err("a failure"),
            threaded().expect_err("a failure"),
            Box::<dyn std::error::Error + Send>::from(failure()),
            Box::new(failure().into_error()),
        ];
        for error in errors {
            let chain: Vec<_> = std::iter::successors(Some(&*error), |error| error.source())
                .map(ToString::to_string)
                .collect();
            assert_eq!(chain, ["outer", "middle", "inner"]);
            assert_eq!(format!("{error:?}"), "outer\n  caused by: middle\n  caused by: inner");
        }
        for failure in [
            Failure::from_boxed(boxed().expect_err("a failure")),
            Failure::from_boxed(threaded().expect_err("a failure")),
        ] {
            assert_eq!(
                (failure.message.as_str(), failure.sources),
                ("outer", vec!["middle".to_owned(), "inner".to_owned()])
            );
        }
        // And back: nothing is lost on the way.
        assert_eq!(Failure::from(failure().into_error()).sources, failure().sources);
    }

    /// Its sources have no end.
    #[derive(Debug)]
    struct Circular;

    impl fmt::Display for Circular {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("again")
        }
    }

    impl std::error::Error for Circular {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn keeps_a_bounded_number_of_sources_and_says_so() {
        let failure = Failure::from(Circular);
        let sources: Vec<_> = failure.sources().collect();
        assert_eq!(sources.len(), SOURCES_MAX);
        assert_eq!(sources[SOURCES_MAX - 2..], ["again", MORE_SOURCES]);

        let with = |count: usize| {
            let texts: Vec<_> = (0..count).map(|n| n.to_string()).collect();
            let sent = Failure { message: "m".into(), debug: "d".into(), sources: texts };
            let bytes = rmp_serde::to_vec_named(&sent).expect("a failure can be encoded");
            let arrived: Failure = rmp_serde::from_slice(&bytes).expect("and decoded");
            (sent, arrived)
        };
        for count in [0, 1, SOURCES_MAX] {
            let (sent, arrived) = with(count);
            assert_eq!(sent, arrived, "{count} sources");
        }
        let (_, arrived) = with(100_000);
        let sources: Vec<_> = arrived.sources().collect();
        assert_eq!(sources.len(), SOURCES_MAX);
        assert_eq!(sources[SOURCES_MAX - 2..], ["126", MORE_SOURCES]);
    }

    #[test]
    fn an_error_of_many_sources_is_dropped_on_a_small_stack() {
        let link = |source, n: u32| Some(Box::new(Arrived { message: n.to_string(), source }));
        let chain = (0..200_000).fold(None, link);
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || drop(chain)).expect("a thread").join().expect("it is dropped");
    }

    #[cfg(feature = "anyhow")]
    #[test]
    fn comes_from_anyhow_and_becomes_one_of_its_errors() {
        use anyhow::Context;
        let task = || -> Result<(), Failure> {
            let inner = || -> anyhow::Result<()> { Err(Link("inner", None)).context("outer") };
            inner().map_err(Failure::from_boxed)
        };
        let arrives = || -> anyhow::Result<()> { Ok(task()?) };
        assert_eq!(format!("{:#}", arrives().expect_err("a failure")), "outer: inner");
    }
}
