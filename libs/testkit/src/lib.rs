//! Test harness: namespaces, child processes, real servers.
