//! A finished run of bytes on its way: a frame to a worker, or a task's encoded result.

use bytes::Bytes;
use std::ops::Deref;

/// So many bytes are kept in place: the call or the result of a small task costs no allocation.
const SMALL: usize = 38;

/// Immutable bytes. Cloning never copies a long one.
#[derive(Clone)]
pub(crate) enum Packet {
    Small(u8, [u8; SMALL]),
    Large(Bytes),
}

impl Packet {
    /// Copies.
    pub(crate) fn copy_from(bytes: &[u8]) -> Self {
        if bytes.len() > SMALL {
            return Self::Large(Bytes::copy_from_slice(bytes));
        }
        let mut small = [0; SMALL];
        small[..bytes.len()].copy_from_slice(bytes);
        Self::Small(bytes.len() as u8, small)
    }
}

/// No bytes.
impl Default for Packet {
    fn default() -> Self {
        Self::Small(0, [0; SMALL])
    }
}

/// Keeps the allocation of a long one, and leaves a short one's to be used again.
impl From<&mut Vec<u8>> for Packet {
    fn from(bytes: &mut Vec<u8>) -> Self {
        // A small packet in a large buffer is copied out, so that the buffer need not live with it.
        if bytes.len() <= SMALL || bytes.len() < bytes.capacity() / 2 {
            let packet = Self::copy_from(bytes);
            bytes.clear();
            return packet;
        }
        Self::Large(std::mem::take(bytes).into())
    }
}

impl Deref for Packet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Small(len, bytes) => &bytes[..usize::from(*len)],
            Self::Large(bytes) => bytes,
        }
    }
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Packet {}

impl std::hash::Hash for Packet {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in_at_every_length() {
        for len in [0, 1, SMALL - 1, SMALL, SMALL + 1, 1000] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            assert_eq!(&*Packet::copy_from(&bytes), &bytes);
            assert_eq!(&*Packet::from(&mut bytes.clone()), &bytes);
        }
    }
}
