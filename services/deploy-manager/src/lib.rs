//! A mesh node without a TUN device: SOCKS5 and the SSH runner.
