//! Black-box journeys with the real binaries.
