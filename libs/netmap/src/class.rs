//! Classes of nodes that the rules cannot tell apart: same role, same owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_types::{
    FilterRule, NodeId, OverlayAddrs, PacketFilter, PortRange, Protocol, Role, Service,
};

use crate::rules::{Party, Rules, ServiceKinds};
use crate::sources;
use crate::update::SessionId;

/// Index of a class in its network; never used for another class.
pub(crate) type ClassIx = u32;

/// Nodes of one role and owner, and what they have in common.
#[derive(Debug)]
pub(crate) struct Class {
    role: Role,
    owner: String,
    pub(crate) members: BTreeMap<NodeId, OverlayAddrs>,
    /// Sessions of members.
    pub(crate) sessions: BTreeSet<SessionId>,
    /// Classes whose members see those of this one, and are seen by them. INVARIANT: symmetric,
    /// rising, and only ever appended to, so that a position in it stays good.
    pub(crate) neighbours: Vec<ClassIx>,
    /// Who is let in to what; the members' filters are made of it.
    grants: Vec<Grant>,
}

/// Sources that are let in to these kinds of services.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    kinds: ServiceKinds,
    sources: Arc<[IpNet]>,
}

/// All classes of a network.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    list: Vec<Class>,
    index: BTreeMap<(Role, String), ClassIx>,
}

impl Class {
    pub(crate) fn party(&self) -> Party<'_> {
        Party {
            role: self.role,
            owner: &self.owner,
        }
    }

    pub(crate) fn sees(&self, other: ClassIx) -> bool {
        self.neighbours.binary_search(&other).is_ok()
    }

    /// What a member that publishes these services lets in.
    pub(crate) fn filter(&self, services: &[Service]) -> PacketFilter {
        let rules = self.grants.iter().filter_map(|grant| {
            let ports: BTreeSet<u16> = services
                .iter()
                .filter(|service| grant.kinds.lets_reach(service))
                .map(|service| service.port)
                .collect();
            (!ports.is_empty()).then(|| FilterRule {
                sources: grant.sources.to_vec(),
                // Who may open a port may ask whether anybody is there.
                protocols: vec![Protocol::Tcp, Protocol::Icmp],
                ports: ports.into_iter().map(PortRange::single).collect(),
            })
        });
        PacketFilter {
            rules: rules.collect(),
        }
    }
}

impl Classes {
    pub(crate) fn at(&self, ix: ClassIx) -> &Class {
        // INVARIANT: indices come from `of`, and classes are never taken away.
        &self.list[ix as usize]
    }

    pub(crate) fn at_mut(&mut self, ix: ClassIx) -> &mut Class {
        &mut self.list[ix as usize]
    }

    /// The class of this role and owner, made when it is new.
    pub(crate) fn of(&mut self, role: Role, owner: &str, rules: &dyn Rules) -> ClassIx {
        if let Some(ix) = self.index.get(&(role, owner.to_owned())) {
            return *ix;
        }
        let ix =
            ClassIx::try_from(self.list.len()).expect("fewer classes than nodes, which fit memory");
        let me = Party { role, owner };
        let sees = |other: Party<'_>| {
            !rules.reach(me, other).is_empty() || !rules.reach(other, me).is_empty()
        };
        let mut neighbours = Vec::new();
        for (other_ix, other) in (0..).zip(self.list.iter_mut()) {
            if sees(other.party()) {
                neighbours.push(other_ix);
                other.neighbours.push(ix);
            }
        }
        if sees(me) {
            neighbours.push(ix);
        }
        self.list.push(Class {
            role,
            owner: owner.to_owned(),
            members: BTreeMap::new(),
            sessions: BTreeSet::new(),
            neighbours,
            grants: Vec::new(),
        });
        self.index.insert((role, owner.to_owned()), ix);
        ix
    }

    /// Computes anew who is let in by the members of a class; whether that changed.
    pub(crate) fn compile(&mut self, ix: ClassIx, rules: &dyn Rules) -> bool {
        let class = self.at(ix);
        let reaches: Vec<(&Class, ServiceKinds)> = class
            .neighbours
            .iter()
            .map(|other| self.at(*other))
            .map(|other| (other, rules.reach(other.party(), class.party())))
            .collect();
        let kinds: BTreeSet<ServiceKinds> = reaches.iter().map(|(_, kinds)| *kinds).collect();
        let grants: Vec<Grant> = kinds
            .into_iter()
            .filter(|kinds| !kinds.is_empty())
            .filter_map(|kinds| {
                let allowed: Vec<OverlayAddrs> = reaches
                    .iter()
                    .filter(|(_, reach)| *reach == kinds)
                    .flat_map(|(other, _)| other.members.values().copied())
                    .collect();
                let denied = reaches
                    .iter()
                    .filter(|(_, reach)| !reach.covers(kinds))
                    .flat_map(|(other, _)| other.members.values().copied());
                let sources: Arc<[IpNet]> = sources::compile(&allowed, denied).into();
                (!sources.is_empty()).then_some(Grant { kinds, sources })
            })
            .collect();
        let class = self.at_mut(ix);
        let changed = class.grants != grants;
        class.grants = grants;
        changed
    }
}
