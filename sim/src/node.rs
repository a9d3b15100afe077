//! A node: its disk, and the process over it. The control session, the tunnel device and the DERP
//! clients are the product's; what the product's shells do around them is done here in short.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::identity::Identity;
use mesh_api::model::netmap::Assembler;
use mesh_api::model::node::NodeReport;
use mesh_node::control::machine::{Machine, Now, Validity};
use mesh_node::state_dir::StoredNetmap;
use mesh_tunnel::{Device, DeviceConfig, derp};
use mesh_types::key::SecretKey;
use mesh_types::{
    Endpoint, NetworkId, NodeId, OverlayAddrs, PacketFilter, Relay, RelayId, Service, Timestamp,
};

use crate::coordinator::wall;
use crate::dice::Dice;
use crate::pipe::ConnId;
use crate::underlay::Access;

/// What was enrolled, and what survives the process.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) network: NetworkId,
    pub(crate) addrs: OverlayAddrs,
    pub(crate) wg: SecretKey,
    pub(crate) disco: SecretKey,
    pub(crate) identity: Arc<Identity>,
    pub(crate) access: Access,
    /// What it publishes.
    pub(crate) services: Vec<Service>,
    /// The stored netmap's file.
    pub(crate) disk: Option<Vec<u8>>,
    pub(crate) validity: Validity,
    /// How far its clock is off, in seconds.
    pub(crate) clock_off: i64,
    /// Since when its machine sleeps: nothing of it happens.
    pub(crate) asleep: Option<Duration>,
    /// For how long its clock for intervals has stood still so far.
    pub(crate) slept: Duration,
    pub(crate) process: Option<Box<Process>>,
    /// It knows that it is none of the network any more.
    pub(crate) removed: bool,
}

/// A running node.
pub(crate) struct Process {
    /// Another number for every process.
    pub(crate) life: u64,
    pub(crate) machine: Machine,
    pub(crate) assembler: Assembler,
    /// Its control stream.
    pub(crate) conn: Option<ConnId>,
    pub(crate) device: Device,
    pub(crate) links: BTreeMap<RelayId, Link>,
    pub(crate) home: Option<RelayId>,
    pub(crate) relays: Vec<Relay>,
    /// Peers there was traffic with before the restart: greeted once there is a netmap.
    pub(crate) greet: Vec<NodeId>,
    /// The version of the netmap that the device works by.
    pub(crate) version: Option<u64>,
    pub(crate) store_at: Option<Duration>,
    pub(crate) stored_version: Option<u64>,
    pub(crate) house_at: Duration,
    /// Flows that this process opened, and when last: whom to, own port, the other's port.
    pub(crate) opened: BTreeMap<(IpAddr, u16, u16), Duration>,
    /// Those of them that were answered, by own port.
    pub(crate) answered: BTreeSet<u16>,
    /// Where its peers were by its last netmap.
    pub(crate) whereabouts: BTreeMap<NodeId, Vec<Endpoint>>,
    /// For planted faults: what the device got first, what came last.
    pub(crate) first_filter: Option<PacketFilter>,
    pub(crate) last_message: Option<Vec<u8>>,
    pub(crate) names: BTreeMap<NodeId, mesh_types::NodeName>,
    /// Segments that its tunnels were given.
    pub(crate) sealed: usize,
    /// Those whose initiations it did not take, and until when it does nothing about that.
    pub(crate) deaf: BTreeMap<usize, Duration>,
}

/// A connection to a relay, or the wish for one.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) conn: Option<ConnId>,
    pub(crate) client: Option<derp::Client>,
    pub(crate) up: bool,
    pub(crate) failures: u32,
    pub(crate) retry_at: Duration,
    /// When it was begun, and then when something last came.
    pub(crate) heard: Duration,
    /// When the relay is asked next how far away it is.
    pub(crate) ask_at: Duration,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("running", &self.process.is_some())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Both clocks as the node reads them.
    pub(crate) fn now(&self, start: Instant, now: Duration) -> Now {
        Now {
            at: self.at(start, now),
            wall: self.wall(now),
        }
    }

    /// Its clock for intervals, which stands still while its machine sleeps.
    pub(crate) fn at(&self, start: Instant, now: Duration) -> Instant {
        start + now.saturating_sub(self.slept)
    }

    /// When something of it is due; never while it sleeps.
    pub(crate) fn due(&self, start: Instant) -> Option<Duration> {
        Some(self.awake()?.due(start, self.slept))
    }

    /// Its process, unless its machine sleeps.
    pub(crate) fn awake(&self) -> Option<&Process> {
        self.process.as_deref().filter(|_| self.asleep.is_none())
    }

    pub(crate) fn wall(&self, now: Duration) -> Timestamp {
        let off = Duration::from_secs(self.clock_off.unsigned_abs());
        match self.clock_off < 0 {
            true => wall(now).minus(off),
            false => wall(now).plus(off),
        }
    }

    /// Starts it from what is on its disk.
    pub(crate) fn start(&mut self, life: u64, dice: &mut Dice, start: Instant, now: Duration) {
        let stored = self
            .disk
            .as_deref()
            .and_then(|bytes| StoredNetmap::open(bytes, &self.identity))
            .filter(|stored| stored.is_of(self.id, Some(self.network)));
        let config = DeviceConfig {
            wg_key: self.wg.clone(),
            disco_key: self.disco.clone(),
            mtu: mesh_tunnel::DEFAULT_MTU,
            seed: dice.bytes(),
        };
        let (netmap, greet) = match stored {
            Some(stored) => (Some(stored.netmap), stored.active),
            None => (None, Vec::new()),
        };
        let machine = Machine::new(netmap, self.validity, dice.bytes(), self.now(start, now));
        let at = self.at(start, now);
        let mut device = Device::new(config, at);
        device.set_local_endpoints(&[self.access.local()], at);
        self.process = Some(Box::new(Process {
            life,
            machine,
            assembler: Assembler::default(),
            conn: None,
            device,
            links: BTreeMap::new(),
            home: None,
            relays: Vec::new(),
            greet,
            version: None,
            store_at: None,
            stored_version: None,
            house_at: now + Duration::from_secs(1),
            opened: BTreeMap::new(),
            answered: BTreeSet::new(),
            whereabouts: BTreeMap::new(),
            first_filter: None,
            last_message: None,
            names: BTreeMap::new(),
            deaf: BTreeMap::new(),
            sealed: 0,
        }));
    }

    /// What it says of itself.
    pub(crate) fn report(&self) -> Option<NodeReport> {
        let process = self.process.as_ref()?;
        Some(NodeReport {
            endpoints: process.device.endpoints(),
            home_relay: process.home,
            services: self.services.clone(),
            ..NodeReport::default()
        })
    }

    /// Writes the netmap at hand to the disk.
    pub(crate) fn store(&mut self, now: Duration) {
        let saved = self.wall(now);
        let Some(process) = &mut self.process else {
            return;
        };
        process.store_at = None;
        let Some(netmap) = process.machine.netmap() else {
            return;
        };
        process.stored_version = Some(netmap.cursor.version);
        let active = process.device.stats().filter(|stats| stats.active);
        let stored = StoredNetmap {
            saved,
            active: active.map(|stats| stats.node).collect(),
            netmap: netmap.clone(),
        };
        self.disk = Some(stored.seal(&self.identity).expect("JSON holds a netmap"));
    }
}

impl Process {
    /// When something of it is due.
    fn due(&self, start: Instant, slept: Duration) -> Duration {
        let since = |at: Instant| at.saturating_duration_since(start) + slept;
        [
            self.machine.poll_timeout().map(since),
            self.device.poll_timeout().map(since),
            self.store_at,
            Some(self.house_at),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.house_at)
    }
}
