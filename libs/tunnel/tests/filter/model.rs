//! What the filter should do, by a model that remembers everything and thinks slowly.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_types::{FilterRule, Protocol};

use crate::packets::{ACK, FIN, Proto, RST, SYN};

type Key = (IpAddr, u16, u16, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Theirs,
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    We,
    They,
}

#[derive(Debug)]
struct Flow {
    whose: Whose,
    used: u64,
    limit: u64,
    /// Who has sent a FIN.
    finished: Vec<Side>,
}

impl Flow {
    fn new(whose: Whose, side: Side, proto: Proto, now: u64) -> Self {
        let limit = match proto {
            Proto::Tcp(flags) if flags & SYN != 0 => 60,
            Proto::Tcp(_) => 7440,
            Proto::Udp => 180,
            Proto::EchoRequest | Proto::EchoReply => 60,
        };
        let mut flow = Self {
            whose,
            used: now,
            limit,
            finished: Vec::new(),
        };
        flow.touch(side, proto, now);
        flow
    }

    fn touch(&mut self, side: Side, proto: Proto, now: u64) {
        self.used = now;
        let Proto::Tcp(flags) = proto else { return };
        if self.whose == Whose::Cut {
            return;
        }
        if flags == SYN && self.whose == Whose::Theirs {
            self.finished.clear();
            self.limit = 60;
            return;
        }
        if flags & FIN != 0 && !self.finished.contains(&side) {
            self.finished.push(side);
        }
        if flags & (RST | FIN) != 0 {
            self.limit = 30;
        } else if flags & SYN == 0 && flags & ACK != 0 && self.finished.len() < 2 {
            self.limit = 7440;
        }
    }
}

/// Entries go away in the second in which they expire, and none is kept beyond `max` a direction.
#[derive(Debug)]
pub(crate) struct Model {
    rules: Vec<FilterRule>,
    flows: BTreeMap<Key, Flow>,
    max: usize,
    pub(crate) now: u64,
}

impl Model {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            rules: Vec::new(),
            flows: BTreeMap::new(),
            max,
            now: 0,
        }
    }

    fn allows(&self, remote: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.rules.iter().any(|rule| {
            rule.sources.iter().any(|net| net.contains(&remote))
                && rule.protocols.contains(&protocol)
                && (protocol == Protocol::Icmp || rule.ports.iter().any(|r| r.contains(port)))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        let now = self.now;
        self.flows.retain(|_, flow| now - flow.used <= flow.limit);
    }

    /// Adds an entry; when its direction is full, the one that would expire first goes, those
    /// that are cut after all others.
    fn add(&mut self, key: Key, flow: Flow) {
        let ours = flow.whose == Whose::Ours;
        let mut same: Vec<(bool, u64, u64, Key)> = self
            .flows
            .iter()
            .filter(|(_, flow)| (flow.whose == Whose::Ours) == ours)
            .map(|(key, flow)| {
                let cut = flow.whose == Whose::Cut;
                (cut, flow.used + flow.limit, flow.used, *key)
            })
            .collect();
        same.sort_unstable();
        if same.len() >= self.max {
            self.flows.remove(&same[0].3);
        }
        self.flows.insert(key, flow);
    }

    pub(crate) fn outgoing(&mut self, remote: IpAddr, proto: Proto, local: u16, port: u16) {
        let now = self.now;
        let key = match proto {
            Proto::Tcp(_) => (remote, local, port, 6),
            Proto::Udp => (remote, local, port, 17),
            Proto::EchoRequest => (remote, local, 0, 1),
            Proto::EchoReply => return,
        };
        if proto == Proto::Tcp(SYN) {
            self.flows.remove(&key);
        } else if let Some(flow) = self.flows.get_mut(&key) {
            flow.touch(Side::We, proto, now);
            return;
        }
        let whose = match proto {
            Proto::Tcp(SYN) | Proto::EchoRequest => Whose::Ours,
            Proto::Udp if self.allows(remote, Protocol::Udp, local) => Whose::Theirs,
            Proto::Udp => Whose::Ours,
            // An answer to nothing that is known.
            Proto::Tcp(_) | Proto::EchoReply => return,
        };
        self.add(key, Flow::new(whose, Side::We, proto, now));
    }

    pub(crate) fn incoming(&mut self, remote: IpAddr, proto: Proto, port: u16, local: u16) -> bool {
        let now = self.now;
        let (key, protocol) = match proto {
            Proto::Tcp(_) => ((remote, local, port, 6), Protocol::Tcp),
            Proto::Udp => ((remote, local, port, 17), Protocol::Udp),
            Proto::EchoRequest => return self.allows(remote, Protocol::Icmp, 0),
            Proto::EchoReply => ((remote, port, 0, 1), Protocol::Icmp),
        };
        if let Some(flow) = self.flows.get_mut(&key) {
            if flow.whose == Whose::Cut {
                return false;
            }
            flow.touch(Side::They, proto, now);
            return true;
        }
        if protocol == Protocol::Icmp || !self.allows(remote, protocol, local) {
            return false;
        }
        self.add(key, Flow::new(Whose::Theirs, Side::They, proto, now));
        true
    }

    pub(crate) fn set_rules(&mut self, rules: Vec<FilterRule>) {
        self.rules = rules;
        let mut flows = std::mem::take(&mut self.flows);
        for (&(remote, local, _, number), flow) in &mut flows {
            let (protocol, proto) = if number == 6 {
                (Protocol::Tcp, Proto::Tcp(ACK))
            } else {
                (Protocol::Udp, Proto::Udp)
            };
            match (flow.whose, self.allows(remote, protocol, local)) {
                (Whose::Theirs, false) => {
                    flow.whose = Whose::Cut;
                    flow.limit = 7440;
                }
                (Whose::Cut, true) => {
                    *flow = Flow::new(Whose::Theirs, Side::They, proto, flow.used);
                }
                _ => {}
            }
        }
        self.flows = flows;
        self.pass(0);
    }
}
