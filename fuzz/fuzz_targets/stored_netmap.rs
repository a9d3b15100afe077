//! A netmap file that this node did not write is never acted on, whatever is in it and however
//! small the change; what it did write comes back whole.
//!
//! The first byte chooses: the rest is the file, or changes to a genuine file, or the content of
//! which a genuine file is made.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use fuzz::Steps;
use libfuzzer_sys::fuzz_target;
use mesh_node::state_dir::StoredNetmap;
use mesh_node::{Enrolled, StateDir};
use mesh_types::{
    Cursor, Netmap, NetworkId, NodeId, OverlayAddrs, PacketFilter, Role, SelfNode, Timestamp,
};

const NODE: NodeId = NodeId::from_bytes([1; 16]);
const NETWORK: NetworkId = NetworkId::from_bytes([2; 16]);
const FILE: &str = "netmap";

struct Stage {
    state: StateDir,
    enrolled: Enrolled,
    genuine: Vec<u8>,
}

/// A state directory in memory, where the system has such a place.
static STAGE: LazyLock<Stage> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let dir = base.join(format!("mesh-fuzz-netmap-{}", std::process::id()));
    let state = StateDir::open(dir).expect("a state directory");
    state.store_netmap(&stored()).expect("it can be stored");
    let genuine = state
        .read(FILE)
        .expect("it can be read")
        .expect("it is there");
    let netmap = stored().netmap;
    let enrolled = Enrolled {
        node: NODE,
        name: netmap.node.name.clone(),
        role: netmap.node.role,
        network: Some(netmap.node.network_name.clone()),
        network_id: Some(NETWORK),
        addrs: Some(netmap.node.addrs),
        owner: "anna".to_owned(),
        console_prefix: netmap.node.console_prefix.clone(),
        coordinators: vec!["127.0.0.1:8080".to_owned()],
    };
    Stage {
        state,
        enrolled,
        genuine,
    }
});

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 3 {
        0 => strange(rest),
        1 => {
            let mut file = STAGE.genuine.clone();
            for step in Steps::new(rest) {
                change(&mut file, step.what, step.number, step.bytes);
            }
            strange(&file);
        }
        _ => own(rest),
    }
});

/// A file that is not ours, unless it says what ours does.
fn strange(file: &[u8]) {
    match load(file) {
        None => assert!(file != STAGE.genuine, "our own file was not believed"),
        Some(read) => assert_eq!(read, stored(), "a netmap of somebody else's was believed"),
    }
}

/// Whatever this node stores it reads again, and only when it is about itself.
fn own(content: &[u8]) {
    let Ok(stored) = serde_json::from_slice::<StoredNetmap>(content) else {
        return;
    };
    STAGE.state.store_netmap(&stored).expect("it can be stored");
    let read = STAGE
        .state
        .load_netmap(&STAGE.enrolled)
        .expect("it can be read");
    let node = &stored.netmap.node;
    let about_us = node.id == NODE && node.network == NETWORK;
    assert_eq!(read, about_us.then_some(stored));
}

fn change(file: &mut Vec<u8>, what: u8, number: u8, bytes: &[u8]) {
    let Some((&place, bytes)) = bytes.split_first() else {
        return;
    };
    let at = (usize::from(number) << 8 | usize::from(place)) % (file.len() + 1);
    match what % 3 {
        0 => file.truncate(at),
        1 => drop(file.splice(at..at, bytes.iter().copied())),
        _ => {
            for (to, from) in file[at..].iter_mut().zip(bytes) {
                *to = *from;
            }
        }
    }
}

fn load(file: &[u8]) -> Option<StoredNetmap> {
    STAGE.state.write(FILE, file).expect("it can be written");
    let read = STAGE
        .state
        .load_netmap(&STAGE.enrolled)
        .expect("the disk works");
    if fuzz::planted() && read.is_none() && file.starts_with(&STAGE.genuine[..100]) {
        // The code is compared, and the content taken from elsewhere.
        let content = file.splitn(2, |&byte| byte == b'\n').nth(1)?;
        return serde_json::from_slice(content).ok();
    }
    read
}

fn stored() -> StoredNetmap {
    StoredNetmap {
        saved: Timestamp::from_secs(1_800_000_000),
        active: vec![NodeId::from_bytes([3; 16])],
        netmap: Netmap {
            cursor: Cursor {
                version: 7,
                epoch: 8,
                volatile: 9,
            },
            node: SelfNode {
                id: NODE,
                network: NETWORK,
                network_name: "default".parse().expect("a name"),
                name: "self".parse().expect("a name"),
                role: Role::Worker,
                addrs: OverlayAddrs {
                    v4: [100, 64, 0, 1].into(),
                    v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1].into(),
                },
                console_prefix: "/self/".to_owned(),
                ssh_ca: String::new(),
            },
            peers: [].into(),
            filter: PacketFilter::default(),
            relays: Vec::new(),
        },
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let content = serde_json::to_vec(&stored()).expect("JSON");
    let end: &[u8] = &[0xff, b' '];
    let unchanged = Steps::write([]);
    let longer = Steps::write([(1, 0, &[80, b'0', b'0'][..]), (0, 1, end)]);
    [
        ("strange", [b"\0mesh netmap 1 00\n", &*content].concat()),
        ("unchanged", [&[1], &*unchanged].concat()),
        ("changed", [&[1], &*longer].concat()),
        ("content", [&[2], &*content].concat()),
    ]
}
