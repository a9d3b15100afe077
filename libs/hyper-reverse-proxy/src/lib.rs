//! One request in, one upstream, streaming and upgrades, on hyper 1.
