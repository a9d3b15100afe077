//! Joins a machine to a network.
