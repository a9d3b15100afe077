//! A mesh node as a library: dial, listen, control stream, userspace TCP/IP.
