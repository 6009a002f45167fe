//! Values on the wire.

pub(crate) mod value;
