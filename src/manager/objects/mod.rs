//! The shared objects' rules, one kind a file.
