//! The simulation of the rules: follows.
