//! From what was typed to nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesh_ssh::PublicKey;
use mesh_types::{Labels, NodeId, OverlayAddrs, Selector};

/// A node as far as this program needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its overlay addresses.
    pub addrs: OverlayAddrs,
    /// Whether it is a worker: what "all" means.
    pub is_worker: bool,
    /// Its pinned SSH host keys.
    pub host_keys: Vec<PublicKey>,
    /// The user it wants to be logged in as; empty when it did not say.
    pub user: String,
    /// Path prefix of its console at the gateway.
    pub console_prefix: String,
    /// What operators labelled it with.
    pub labels: Labels,
}

/// A target: what was typed, and the node it means, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// As it is shown in results.
    pub label: String,
    /// Which node.
    pub node: Option<Node>,
}

/// Finds the nodes for `patterns` in `network`'s `nodes`, and after them the workers that `selector`
/// chooses, by name; each node at most once, in the order given. Fails only when "all" or the
/// selector finds nothing.
pub fn choose(
    patterns: &[String],
    selector: Option<&Selector>,
    nodes: &[Node],
    network: &str,
) -> anyhow::Result<Vec<Chosen>> {
    let mut chosen = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |label: &str, node: Option<&Node>| {
        let key = node.map_or(label, |node| &node.name);
        if seen.insert(key.to_owned()) {
            chosen.push(Chosen {
                label: label.to_owned(),
                node: node.cloned(),
            });
        }
    };
    let mut workers: Vec<&Node> = nodes.iter().filter(|node| node.is_worker).collect();
    workers.sort_by(|a, b| a.name.cmp(&b.name));
    for pattern in patterns {
        if pattern != "all" {
            add(pattern, find(pattern, nodes, network));
            continue;
        }
        anyhow::ensure!(
            !workers.is_empty(),
            "network {network} has no workers yet; make a token with: \
             mesh token create --role worker --network {network}"
        );
        for node in &workers {
            add(&node.name, Some(node));
        }
    }
    if let Some(selector) = selector {
        let mut any = false;
        for node in workers.iter().filter(|node| selector.matches(&node.labels)) {
            add(&node.name, Some(node));
            any = true;
        }
        anyhow::ensure!(
            any,
            "no worker of network {network} has labels that match {selector}; see what they have \
             with: mesh node list, and label one with: mesh node set NODE --label KEY=VALUE"
        );
    }
    Ok(chosen)
}

/// The node of this name or address; names may carry the network and `.mesh.local`.
pub fn find<'a>(pattern: &str, nodes: &'a [Node], network: &str) -> Option<&'a Node> {
    if let Ok(ip) = pattern.parse::<IpAddr>() {
        return nodes.iter().find(|node| node.addrs.contains(ip));
    }
    let pattern = pattern.trim_end_matches('.').to_ascii_lowercase();
    let pattern = pattern.strip_suffix(".mesh.local").unwrap_or(&pattern);
    let name = match pattern.split_once('.') {
        None => pattern,
        Some((name, of)) if of == network => name,
        Some(_) => return None,
    };
    nodes.iter().find(|node| node.name == name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn node(n: u8, name: &str, is_worker: bool) -> Node {
        Node {
            id: NodeId::from_bytes([n; 16]),
            name: name.to_owned(),
            addrs: OverlayAddrs {
                v4: [100, 64, 0, n].into(),
                v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)].into(),
            },
            is_worker,
            host_keys: Vec::new(),
            user: "deploy".to_owned(),
            console_prefix: format!("/{name}/"),
            labels: Labels::default(),
        }
    }

    fn fleet() -> Vec<Node> {
        vec![
            node(2, "web-2", true),
            node(1, "web-1", true),
            node(3, "gateway", false),
        ]
    }

    fn labels(patterns: &[&str]) -> Vec<(String, Option<String>)> {
        let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
        choose(&patterns, None, &fleet(), "default")
            .unwrap()
            .into_iter()
            .map(|chosen| (chosen.label, chosen.node.map(|node| node.name)))
            .collect()
    }

    #[test]
    fn targets_are_found_by_name_and_address_in_the_order_given() {
        for (pattern, name) in [
            ("web-1", Some("web-1")),
            ("WEB-1.", Some("web-1")),
            ("web-1.default", Some("web-1")),
            ("web-1.default.mesh.local", Some("web-1")),
            ("web-1.mesh.local", Some("web-1")),
            ("web-1.other", None),
            ("100.64.0.2", Some("web-2")),
            ("fd7a:115c:a1e0::2", Some("web-2")),
            ("100.64.0.9", None),
            ("gateway", Some("gateway")),
            ("nobody", None),
        ] {
            assert_eq!(
                labels(&[pattern]),
                [(pattern.to_owned(), name.map(str::to_owned))]
            );
        }
        let order: Vec<String> = labels(&["web-2", "nobody", "web-1"])
            .into_iter()
            .map(|(l, _)| l)
            .collect();
        assert_eq!(order, ["web-2", "nobody", "web-1"]);
    }

    #[test]
    fn all_means_the_workers_by_name_and_nobody_comes_twice() {
        let names: Vec<String> = labels(&["100.64.0.2", "all", "web-1"])
            .into_iter()
            .map(|(l, _)| l)
            .collect();
        assert_eq!(names, ["100.64.0.2", "web-1"]);
        let error = choose(&["all".to_owned()], None, &[], "default").unwrap_err();
        assert!(error.to_string().contains("mesh token create"), "{error}");
    }

    #[test]
    fn a_selector_adds_the_workers_that_match_after_those_named() {
        let mut fleet = fleet();
        for node in &mut fleet {
            node.labels.set("env=prod".parse().unwrap()).unwrap();
        }
        let prod: Selector = "env=prod".parse().unwrap();
        let names = |patterns: &[String], selector: &Selector| -> Vec<String> {
            choose(patterns, Some(selector), &fleet, "default")
                .unwrap()
                .into_iter()
                .map(|chosen| chosen.label)
                .collect()
        };
        assert_eq!(names(&[], &prod), ["web-1", "web-2"]);
        assert_eq!(names(&["web-2".to_owned()], &prod), ["web-2", "web-1"]);
        let none = "env=test".parse().unwrap();
        let error = choose(&["web-1".to_owned()], Some(&none), &fleet, "default").unwrap_err();
        assert!(error.to_string().contains("match env=test"), "{error}");
    }
}
