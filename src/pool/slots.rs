//! A table whose keys are never mistaken: each holds the number of its place and how often that
//! place was used, so a key of what has gone finds nothing.

/// A key: place in the low half, generation in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(u64);

impl Key {
    fn new(index: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | index as u64)
    }

    /// As a number for the wire or for an event's token.
    pub(crate) fn to_u64(self) -> u64 {
        self.0
    }

    /// From a number; it need not be a key that was ever given out.
    pub(crate) fn from_u64(number: u64) -> Self {
        Self(number)
    }

    fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Slots<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().map_or(self.places.len(), |index| index as usize);
        if index == self.places.len() {
            assert!(u32::try_from(index).is_ok(), "four thousand million entries");
            self.places.push((0, None));
        }
        let (generation, place) = &mut self.places[index];
        *place = Some(value);
        Key::new(index, *generation)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let (generation, place) = self.places.get(key.index())?;
        place.as_ref().filter(|_| *generation == key.generation())
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, place) = self.places.get_mut(key.index())?;
        place.as_mut().filter(|_| *generation == key.generation())
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, place) = self.places.get_mut(key.index())?;
        if *generation != key.generation() {
            return None;
        }
        let value = place.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(key.index() as u32);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(index, (generation, place))| {
            Some((Key::new(index, *generation), place.as_ref()?))
        })
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_what_has_gone_finds_nothing() {
        let mut slots = Slots::new();
        let a = slots.insert('a');
        assert_eq!(slots.remove(a), Some('a'));
        let b = slots.insert('b');
        assert_eq!(slots.remove(a), None);
        assert_eq!((slots.get(a), slots.get(b)), (None, Some(&'b')));
        assert_eq!(slots.get(Key::from_u64(u64::MAX)), None);
        assert_eq!((slots.len(), slots.keys()), (1, vec![b]));
    }
}
