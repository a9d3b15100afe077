//! The wire border: generated gRPC code, conversions, typed clients.
