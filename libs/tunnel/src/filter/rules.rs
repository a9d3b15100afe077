//! The rules, compiled for the question "may this source open that port?".

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_types::{FilterRule, PacketFilter, PortRange, Protocol};

use crate::packet::Addr;

/// Asked once per new flow, so a walk over the rules is good enough; within a rule, single
/// addresses are found by binary search.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    hosts: Vec<Addr>,
    prefixes: Vec<IpNet>,
    protocols: Vec<Protocol>,
    ports: Vec<PortRange>,
}

impl Rules {
    pub(super) fn compile(filter: &PacketFilter) -> Self {
        Self(filter.rules.iter().map(Rule::compile).collect())
    }

    pub(super) fn allow(&self, source: Addr, protocol: Protocol, port: u16) -> bool {
        self.0.iter().any(|rule| {
            rule.protocols.contains(&protocol)
                && (protocol == Protocol::Icmp
                    || rule.ports.iter().any(|range| range.contains(port)))
                && rule.has_source(source)
        })
    }
}

impl Rule {
    fn compile(rule: &FilterRule) -> Self {
        let (hosts, prefixes): (Vec<IpNet>, Vec<IpNet>) = rule
            .sources
            .iter()
            .partition(|net| net.prefix_len() == net.max_prefix_len());
        let hosts: BTreeSet<Addr> = hosts.iter().map(|net| net.addr().into()).collect();
        Self {
            hosts: hosts.into_iter().collect(),
            prefixes,
            protocols: rule.protocols.clone(),
            ports: rule.ports.clone(),
        }
    }

    fn has_source(&self, source: Addr) -> bool {
        if self.hosts.binary_search(&source).is_ok() {
            return true;
        }
        let ip = IpAddr::from(source);
        self.prefixes.iter().any(|net| net.contains(&ip))
    }
}
