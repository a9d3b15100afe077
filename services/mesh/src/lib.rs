//! The operator's command line, and the whole mesh in one process.
