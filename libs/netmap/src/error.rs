//! Why the engine refuses an input.

/// An input was refused; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is no such network.
    #[error("there is no such network")]
    UnknownNetwork,
    /// There is no such node.
    #[error("there is no such node")]
    UnknownNode,
    /// There is no such relay.
    #[error("there is no such relay")]
    UnknownRelay,
    /// Something with this id is there already.
    #[error("something with this id exists already")]
    Exists,
    /// Another node has one of these overlay addresses.
    #[error("another node has this overlay address")]
    AddressTaken,
    /// Another node has this WireGuard or disco key.
    #[error("another node has this key")]
    KeyTaken,
    /// Another node of the network, or another network, has this name.
    #[error("the name is taken")]
    NameTaken,
    /// A node cannot move to another network.
    #[error("the node belongs to another network")]
    OtherNetwork,
}

/// No name and addresses can be set aside for a new node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// There is no such network.
    #[error("there is no such network")]
    UnknownNetwork,
    /// Every overlay address is taken.
    #[error("every overlay address is taken: remove nodes, or configure a larger range")]
    AddressesExhausted,
}
