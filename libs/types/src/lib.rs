//! The vocabulary of Wonder Mesh: ids, keys, addresses, nodes, netmaps.
