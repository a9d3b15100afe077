//! Who is connected, and who may talk to whom. No IO and no clock: a plain table of decisions.
//!
//! `H` is whatever the shell uses to reach a connection.

use std::collections::HashMap;

use mesh_types::{NetworkId, WgPublicKey};

/// One connection; a client that connects again gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// The key is no client of this relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator has not named this key as a client")]
pub struct NotAllowed;

/// A change of who may use the relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientsUpdate {
    /// Every key that is not in `clients` is out.
    pub full: bool,
    /// Keys that may use the relay, and the network of each.
    pub clients: HashMap<WgPublicKey, NetworkId>,
    /// Keys that may no longer.
    pub removed: Vec<WgPublicKey>,
}

#[derive(Debug)]
struct Connected<H> {
    id: ConnectionId,
    network: NetworkId,
    handle: H,
}

/// The relay's clients.
#[derive(Debug)]
pub struct Registry<H> {
    allowed: HashMap<WgPublicKey, NetworkId>,
    connected: HashMap<WgPublicKey, Connected<H>>,
    next_id: u64,
}

impl<H> Default for Registry<H> {
    fn default() -> Self {
        Self {
            allowed: HashMap::new(),
            connected: HashMap::new(),
            next_id: 0,
        }
    }
}

impl<H> Registry<H> {
    /// A registry that lets nobody in.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over what the coordinator says. The connections that must end are given back:
    /// those of keys that are out, and of keys that are in another network now.
    pub fn update(&mut self, update: ClientsUpdate) -> Vec<H> {
        let ClientsUpdate {
            full,
            clients,
            removed,
        } = update;
        if full {
            self.allowed = clients;
        } else {
            for key in removed {
                self.allowed.remove(&key);
            }
            self.allowed.extend(clients);
        }
        let allowed = &self.allowed;
        self.connected
            .extract_if(|key, connected| allowed.get(key) != Some(&connected.network))
            .map(|(_, connected)| connected.handle)
            .collect()
    }

    /// Whether the key may use this relay.
    pub fn is_allowed(&self, key: &WgPublicKey) -> bool {
        self.allowed.contains_key(key)
    }

    /// Keys that may use this relay, with their networks, for the disk.
    pub fn allowed(&self) -> &HashMap<WgPublicKey, NetworkId> {
        &self.allowed
    }

    /// A client that proved its key takes its place. An older connection of the same key is given
    /// back: it must end.
    ///
    /// # Errors
    /// The key is no client of this relay.
    pub fn connect(
        &mut self,
        key: WgPublicKey,
        handle: H,
    ) -> Result<(ConnectionId, Option<H>), NotAllowed> {
        let network = *self.allowed.get(&key).ok_or(NotAllowed)?;
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        let older = self.connected.insert(
            key,
            Connected {
                id,
                network,
                handle,
            },
        );
        Ok((id, older.map(|connected| connected.handle)))
    }

    /// A connection ended. Says nothing about a newer one of the same key.
    pub fn disconnect(&mut self, key: &WgPublicKey, id: ConnectionId) {
        if self
            .connected
            .get(key)
            .is_some_and(|connected| connected.id == id)
        {
            self.connected.remove(key);
        }
    }

    /// The connection that a packet goes to; `None` when the receiver is not connected, in another
    /// network, or the sender's own connection is not the current one of its key.
    pub fn route(&self, from: &WgPublicKey, id: ConnectionId, to: &WgPublicKey) -> Option<&H> {
        let sender = self.connected.get(from).filter(|sender| sender.id == id)?;
        let receiver = self.connected.get(to)?;
        (sender.network == receiver.network).then_some(&receiver.handle)
    }

    /// How many clients are connected.
    pub fn len(&self) -> usize {
        self.connected.len()
    }

    /// Whether no client is connected.
    pub fn is_empty(&self) -> bool {
        self.connected.is_empty()
    }

    /// Every connection.
    pub fn handles(&self) -> impl Iterator<Item = &H> {
        self.connected.values().map(|connected| &connected.handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> WgPublicKey {
        WgPublicKey::from_bytes([n; 32])
    }

    fn network(n: u8) -> NetworkId {
        NetworkId::from_bytes([n; 16])
    }

    fn registry(clients: &[(u8, u8)]) -> Registry<&'static str> {
        let mut registry = Registry::new();
        let clients = clients.iter().map(|&(k, n)| (key(k), network(n))).collect();
        registry.update(ClientsUpdate {
            full: true,
            clients,
            removed: Vec::new(),
        });
        registry
    }

    #[test]
    fn packets_pass_within_one_network_only() {
        let mut registry = registry(&[(1, 1), (2, 1), (3, 2)]);
        let (one, _) = registry.connect(key(1), "one").expect("allowed");
        let (two, _) = registry.connect(key(2), "two").expect("allowed");
        let (three, _) = registry.connect(key(3), "three").expect("allowed");
        assert_eq!(registry.route(&key(1), one, &key(2)), Some(&"two"));
        assert_eq!(registry.route(&key(2), two, &key(1)), Some(&"one"));
        assert_eq!(registry.route(&key(1), one, &key(3)), None);
        assert_eq!(registry.route(&key(3), three, &key(1)), None);
        assert_eq!(registry.route(&key(1), one, &key(9)), None);
    }

    #[test]
    fn unknown_keys_are_not_let_in() {
        assert_eq!(
            registry(&[(1, 1)]).connect(key(2), "two").map(|_| ()),
            Err(NotAllowed)
        );
        assert_eq!(
            Registry::new().connect(key(1), "one").map(|_| ()),
            Err(NotAllowed)
        );
    }

    #[test]
    fn removed_keys_and_keys_that_changed_network_are_cut() {
        let mut registry = registry(&[(1, 1), (2, 1), (3, 1)]);
        for (n, name) in [(1, "one"), (2, "two"), (3, "three")] {
            registry.connect(key(n), name).expect("allowed");
        }
        let mut cut = registry.update(ClientsUpdate {
            full: false,
            clients: [(key(2), network(2))].into(),
            removed: vec![key(1)],
        });
        cut.sort_unstable();
        assert_eq!(cut, ["one", "two"]);
        assert_eq!(registry.len(), 1);
        let cut = registry.update(ClientsUpdate {
            full: true,
            ..ClientsUpdate::default()
        });
        assert_eq!(cut, ["three"]);
        assert!(!registry.is_allowed(&key(3)));
    }

    #[test]
    fn a_newer_connection_takes_the_place_and_the_older_one_can_do_no_more() {
        let mut registry = registry(&[(1, 1), (2, 1)]);
        registry.connect(key(2), "two").expect("allowed");
        let (old, _) = registry.connect(key(1), "old").expect("allowed");
        let (new, replaced) = registry.connect(key(1), "new").expect("allowed");
        assert_eq!(replaced, Some("old"));
        assert_eq!(registry.route(&key(1), old, &key(2)), None);
        assert_eq!(registry.route(&key(1), new, &key(2)), Some(&"two"));
        registry.disconnect(&key(1), old);
        assert_eq!(registry.route(&key(1), new, &key(2)), Some(&"two"));
        registry.disconnect(&key(1), new);
        assert_eq!(registry.len(), 1);
    }
}
