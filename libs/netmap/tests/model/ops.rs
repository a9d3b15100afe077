//! What may happen, in any order.

use mesh_types::Role;
use proptest::prelude::*;

use super::world::NETWORKS;

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Join {
        network: u8,
        role: Role,
        owner: u8,
        name: u8,
    },
    Leave(usize),
    Rename(usize, u8),
    Owner(usize, u8),
    Services(usize, u8),
    Rekey(usize),
    Report(usize, u16, bool),
    Beat(usize),
    Advance(u64),
    Authority(u8, u8),
    RelayMoves(u8),
    Open {
        node: usize,
        fresh: bool,
    },
    Close(usize),
    Read {
        node: usize,
        parts: usize,
    },
    Settle,
    Restart,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let role = prop_oneof![
        4 => Just(Role::Worker),
        1 => Just(Role::Gateway),
        1 => Just(Role::Deployer),
        1 => Just(Role::Client),
    ];
    let node = 0usize..8;
    prop_oneof![
        6 => (0..NETWORKS, role, 0u8..3, 0u8..3)
            .prop_map(|(network, role, owner, name)| Op::Join { network, role, owner, name }),
        3 => node.clone().prop_map(Op::Leave),
        1 => (node.clone(), 0u8..6).prop_map(|(n, name)| Op::Rename(n, name)),
        3 => (node.clone(), 0u8..3).prop_map(|(n, owner)| Op::Owner(n, owner)),
        2 => (node.clone(), 0u8..16).prop_map(|(n, set)| Op::Services(n, set)),
        1 => node.clone().prop_map(Op::Rekey),
        4 => (node.clone(), 1u16..4, any::<bool>()).prop_map(|(n, p, r)| Op::Report(n, p, r)),
        4 => node.clone().prop_map(Op::Beat),
        2 => (1u64..80).prop_map(Op::Advance),
        1 => (0..NETWORKS, 0u8..3).prop_map(|(n, ca)| Op::Authority(n, ca)),
        1 => (0u8..3).prop_map(Op::RelayMoves),
        6 => (node.clone(), prop::bool::weighted(0.2))
            .prop_map(|(node, fresh)| Op::Open { node, fresh }),
        2 => node.clone().prop_map(Op::Close),
        6 => (node, 1usize..4).prop_map(|(node, parts)| Op::Read { node, parts }),
        2 => Just(Op::Settle),
        1 => Just(Op::Restart),
    ]
}
