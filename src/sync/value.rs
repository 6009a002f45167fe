//! Numbers and flags in shared memory, changed by single atomic operations.

use super::handle::{Handle, handle_travels, kinds};
use super::manager::Manager;
use super::wait;
use crate::error::sync::{Error, Why};
use crate::manager::object::Part;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

mod sealed {
    /// How a value stands in a word, and how it is changed there.
    pub trait Word: Copy + PartialEq {
        /// A word's own addition is this type's.
        const WIDE: bool = false;
        fn to_word(self) -> u64;
        fn from_word(word: u64) -> Self;
    }

    pub trait Number: Word + PartialOrd {
        fn add(self, other: Self) -> Self;
        fn sub(self, other: Self) -> Self;
    }

    pub trait Bits: Word {
        fn and(self, other: Self) -> Self;
        fn or(self, other: Self) -> Self;
        fn xor(self, other: Self) -> Self;
    }
}
use sealed::{Bits, Number, Word};

/// What a [`Value`] or an [`Array`] can hold: the integers of up to 64 bits, `f32`, `f64`, and
/// `bool`. Sealed.
pub trait Atomic: Word {}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Atomic for $int {}
        impl Word for $int {
            const WIDE: bool = size_of::<$int>() == 8;
            fn to_word(self) -> u64 {
                self as u64
            }
            fn from_word(word: u64) -> Self {
                word as Self
            }
        }
        impl Number for $int {
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
        impl Bits for $int {
            fn and(self, other: Self) -> Self {
                self & other
            }
            fn or(self, other: Self) -> Self {
                self | other
            }
            fn xor(self, other: Self) -> Self {
                self ^ other
            }
        }
    )*};
}
integers!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize);

macro_rules! floats {
    ($($float:ty: $bits:ty),*) => {$(
        impl Atomic for $float {}
        impl Word for $float {
            fn to_word(self) -> u64 {
                self.to_bits().into()
            }
            fn from_word(word: u64) -> Self {
                Self::from_bits(word as $bits)
            }
        }
        impl Number for $float {
            fn add(self, other: Self) -> Self {
                self + other
            }
            fn sub(self, other: Self) -> Self {
                self - other
            }
        }
    )*};
}
floats!(f32: u32, f64: u64);

impl Atomic for bool {}
impl Word for bool {
    fn to_word(self) -> u64 {
        self.into()
    }
    fn from_word(word: u64) -> Self {
        word != 0
    }
}
impl Bits for bool {
    fn and(self, other: Self) -> Self {
        self & other
    }
    fn or(self, other: Self) -> Self {
        self | other
    }
    fn xor(self, other: Self) -> Self {
        self ^ other
    }
}

/// A number or a flag in shared memory.
///
/// Made by [`Manager::value`]. It is a cheap handle: clones, and what arrives elsewhere as an
/// argument or a result, are the same value. Each call is one atomic operation, sequentially
/// consistent, without a lock and without a system call, so a process that dies in its midst has
/// either done it or not. **Two calls are two operations**: between a [`load`](Self::load) and a
/// [`store`](Self::store) others may change the value, and their change is lost. Use
/// [`fetch_add`](Self::fetch_add), [`fetch_update`](Self::fetch_update) or
/// [`compare_exchange`](Self::compare_exchange); or a [`Mutex`](crate::sync::Mutex) for what takes more.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let manager = procpool::Manager::new()?;
/// let hits = manager.value(0u64)?;
/// hits.fetch_add(3)?;
/// assert_eq!(hits.load()?, 3);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Every call may fail: the manager is closed; in a forked copy of the process; in another process,
/// the first call asks the manager for the memory (and waits for it, some tens of microseconds),
/// which may not be had.
pub struct Value<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

/// Numbers or flags in shared memory: as many as it was made with.
///
/// Made by [`Manager::array`]. It is a cheap handle, as a [`Value`] is; [`at`](Self::at) gives one
/// of its elements, each of which is as a `Value` of its own.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), procpool::sync::Error> {
/// let manager = procpool::Manager::new()?;
/// let histogram = manager.array(&[0u64; 256])?;
/// histogram.at(65).expect("in range").fetch_add(1)?;
/// assert_eq!(histogram.to_vec()?[65], 1);
/// # Ok(())
/// # }
/// ```
pub struct Array<T> {
    handle: Handle,
    marker: PhantomData<fn() -> T>,
}

/// One element of an [`Array`].
pub struct Element<'a, T> {
    handle: &'a Handle,
    index: usize,
    marker: PhantomData<fn() -> T>,
}

handle_travels!(Value<T>, kinds::VALUE);
handle_travels!(Array<T>, kinds::ARRAY);

impl Manager {
    /// A new value in shared memory.
    ///
    /// # Errors
    ///
    /// When there is no memory; when the manager is closed.
    pub fn value<T: Atomic>(&self, value: T) -> Result<Value<T>, Error> {
        let handle = self.make_cells(kinds::VALUE, None, &[value])?;
        Ok(Value { handle, marker: PhantomData })
    }

    /// The value of this name; if there is none, one is made. It has its name as long as there is a
    /// handle to it. The type is not looked at.
    ///
    /// # Errors
    ///
    /// As [`value`](Self::value).
    pub fn value_named<T: Atomic>(&self, name: &str, value: T) -> Result<Value<T>, Error> {
        let handle = self.make_cells(kinds::VALUE, Some(name), &[value])?;
        Ok(Value { handle, marker: PhantomData })
    }

    /// A new array in shared memory, with these elements. Each takes eight bytes, whatever its
    /// type.
    ///
    /// # Errors
    ///
    /// As [`value`](Self::value); [`ManagerFull`](crate::sync::ErrorKind::ManagerFull) for more than 1
    /// GiB.
    pub fn array<T: Atomic>(&self, elements: &[T]) -> Result<Array<T>, Error> {
        let handle = self.make_cells(kinds::ARRAY, None, elements)?;
        Ok(Array { handle, marker: PhantomData })
    }

    /// The array of this name; if there is none, one is made. It has its name as long as there is a
    /// handle to it. Neither type nor length is looked at.
    ///
    /// # Errors
    ///
    /// As [`array`](Self::array).
    pub fn array_named<T: Atomic>(&self, name: &str, elements: &[T]) -> Result<Array<T>, Error> {
        let handle = self.make_cells(kinds::ARRAY, Some(name), elements)?;
        Ok(Array { handle, marker: PhantomData })
    }

    fn make_cells<T: Atomic>(
        &self,
        kind: crate::manager::message::Kind,
        name: Option<&str>,
        values: &[T],
    ) -> Result<Handle, Error> {
        let connection = self.connection();
        let server = connection.local()?;
        let made = match name.and_then(|name| server.find(kind, name, Part::WHOLE)) {
            Some(found) => found,
            None => server.create_cells(
                kind,
                values.iter().map(|value| value.to_word()),
                name.map(str::to_owned),
            )?,
        };
        Ok(Handle::of(connection, made))
    }
}

/// Runs an operation on one word.
#[inline]
fn with<R>(
    handle: &Handle,
    index: usize,
    operation: impl FnOnce(&AtomicU64) -> R,
) -> Result<R, Error> {
    let cell = match handle.cell_at_once()? {
        Some(cell) => cell,
        None => wait::park_on(handle.cell())?,
    };
    if handle.connection().mail().is_closed() {
        return Err(Why::ManagerClosed.into());
    }
    // Its length was told by another process.
    cell.words().get(index).map(operation).ok_or_else(|| Why::ObjectBroken.into())
}

/// Changes a word by a function of its value, until nobody has come between; gives the value
/// before.
fn update<T: Word>(word: &AtomicU64, mut change: impl FnMut(T) -> Option<T>) -> Result<T, T> {
    let mut old = word.load(Ordering::SeqCst);
    loop {
        let before = T::from_word(old);
        let Some(after) = change(before) else { return Err(before) };
        match word.compare_exchange_weak(old, after.to_word(), Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(before),
            Err(found) => old = found,
        }
    }
}

fn always<T: Word>(word: &AtomicU64, change: impl Fn(T) -> T) -> T {
    match update(word, |value| Some(change(value))) {
        Ok(before) | Err(before) => before,
    }
}

/// The operations of a value and of an element.
macro_rules! operations {
    ($name:ident $(<$life:lifetime>)?) => {
        impl<$($life,)? T: Atomic> $name<$($life,)? T> {
            /// The value.
            ///
            /// # Errors
            ///
            /// [`ErrorKind`](crate::sync::ErrorKind) `ManagerClosed` when its manager has gone; `ObjectBroken` when its memory was corrupted.
            pub fn load(&self) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| T::from_word(word.load(Ordering::SeqCst)))
            }

            /// Puts a value in its place.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn store(&self, value: T) -> Result<(), Error> {
                with(self.handle(), self.index(), |word| word.store(value.to_word(), Ordering::SeqCst))
            }

            /// Puts a value in its place; gives the one that was there.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn swap(&self, value: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| T::from_word(word.swap(value.to_word(), Ordering::SeqCst)))
            }

            /// Puts `new` in its place if `current` is there, and gives what was there: in an `Ok` if it was `current`, else
            /// in an `Err`, and nothing was changed. (A NaN is nowhere.)
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn compare_exchange(&self, current: T, new: T) -> Result<Result<T, T>, Error> {
                with(self.handle(), self.index(), |word| update(word, |value: T| (value == current).then_some(new)))
            }

            /// Changes the value by a function, which may be called several times, when others change it meanwhile; gives
            /// the value before. If the function gives `None`, nothing is changed, and the value is in an `Err`.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_update(&self, change: impl FnMut(T) -> Option<T>) -> Result<Result<T, T>, Error> {
                with(self.handle(), self.index(), |word| update(word, change))
            }
        }

        impl<$($life,)? T: Atomic + Number> $name<$($life,)? T> {
            /// Adds (integers wrap around); gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_add(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| {
                    if T::WIDE {
                        T::from_word(word.fetch_add(other.to_word(), Ordering::SeqCst))
                    } else {
                        always(word, |value: T| value.add(other))
                    }
                })
            }

            /// Subtracts (integers wrap around); gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_sub(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| always(word, |value: T| value.sub(other)))
            }

            /// Puts `other` in its place if that is greater; gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_max(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| always(word, |value: T| if other > value { other } else { value }))
            }

            /// Puts `other` in its place if that is less; gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_min(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| always(word, |value: T| if other < value { other } else { value }))
            }
        }

        impl<$($life,)? T: Atomic + Bits> $name<$($life,)? T> {
            /// Bitwise, or logical, and; gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_and(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| always(word, |value: T| value.and(other)))
            }

            /// Bitwise, or logical, or; gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_or(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| always(word, |value: T| value.or(other)))
            }

            /// Bitwise, or logical, exclusive or; gives the value before.
            ///
            /// # Errors
            ///
            /// As [`load`](Self::load).
            pub fn fetch_xor(&self, other: T) -> Result<T, Error> {
                with(self.handle(), self.index(), |word| always(word, |value: T| value.xor(other)))
            }
        }
    };
}

operations!(Value);
operations!(Element<'a>);

impl<T> Value<T> {
    fn handle(&self) -> &Handle {
        &self.handle
    }

    fn index(&self) -> usize {
        0
    }
}

impl<T> Element<'_, T> {
    fn handle(&self) -> &Handle {
        self.handle
    }

    fn index(&self) -> usize {
        self.index
    }
}

#[cfg(test)]
impl<T> Array<T> {
    pub(super) fn of(handle: Handle) -> Self {
        Self { handle, marker: PhantomData }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
impl<T> Value<T> {
    pub(super) fn of(handle: Handle) -> Self {
        Self { handle, marker: PhantomData }
    }

    pub(super) fn handle_of(&self) -> &Handle {
        &self.handle
    }
}

impl<T: Atomic> Array<T> {
    /// How many elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handle.name().place.map_or(0, |place| place.len as usize)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of the elements; `None` beyond the last.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<Element<'_, T>> {
        (index < self.len()).then_some(Element { handle: &self.handle, index, marker: PhantomData })
    }

    /// All elements, each as it is when its turn comes: others may change some meanwhile.
    ///
    /// # Errors
    ///
    /// As those of a [`Value`].
    pub fn to_vec(&self) -> Result<Vec<T>, Error> {
        (0..self.len())
            .map(|index| {
                with(&self.handle, index, |word| T::from_word(word.load(Ordering::SeqCst)))
            })
            .collect()
    }
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), marker: PhantomData }
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), marker: PhantomData }
    }
}

impl<T> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value").field("object", &self.handle.name().object).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("object", &self.handle.name().object).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Element<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Element").field("index", &self.index).finish_non_exhaustive()
    }
}
