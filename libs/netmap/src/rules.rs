//! Who may open what on whom. The fixed rule set, behind a trait that a policy can take the place of.

use mesh_types::{Role, Service, ServiceKind};

/// A set of kinds of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceKinds(u8);

impl ServiceKinds {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything that is published.
    pub const ALL: Self = Self(0b1111);
    /// What a browser speaks: consoles and HTTP services.
    pub const WEB: Self = Self::of(ServiceKind::Console).union(Self::of(ServiceKind::Http));

    /// Exactly one kind.
    pub const fn of(kind: ServiceKind) -> Self {
        Self(match kind {
            ServiceKind::Console => 0b0001,
            ServiceKind::Ssh => 0b0010,
            ServiceKind::Http => 0b0100,
            ServiceKind::Tcp => 0b1000,
        })
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the kind is in the set.
    pub const fn contains(self, kind: ServiceKind) -> bool {
        self.0 & Self::of(kind).0 != 0
    }

    /// Whether all of `other` is in the set.
    pub const fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set holds the service's kind.
    pub const fn lets_reach(self, service: &Service) -> bool {
        self.contains(service.kind)
    }
}

/// One side of a question to the rules: what all nodes of a class have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party<'a> {
    /// The role.
    pub role: Role,
    /// The owner; empty for nobody.
    pub owner: &'a str,
}

/// Who may open what on whom, within one network. Answers must depend on the arguments only.
pub trait Rules: Send {
    /// Which kinds of services of `to` a node like `from` may open flows to.
    fn reach(&self, from: Party<'_>, to: Party<'_>) -> ServiceKinds;
}

/// What holds until a policy says otherwise. The role counts first, whoever owns the nodes:
/// gateways reach consoles and HTTP services, deployers reach every published service and SSH.
/// Workers, routers and clients of one owner reach all that each other publishes. Everything else
/// is denied.
#[derive(Debug, Clone, Copy, Default)]
pub struct FixedRules;

impl Rules for FixedRules {
    fn reach(&self, from: Party<'_>, to: Party<'_>) -> ServiceKinds {
        match (from.role, to.role) {
            (_, Role::Relay) | (Role::Relay, _) => ServiceKinds::NONE,
            (Role::Gateway, _) => ServiceKinds::WEB,
            (Role::Deployer, _) => ServiceKinds::ALL,
            // What a gateway or a deployer runs is not its owner's to browse.
            (_, Role::Gateway | Role::Deployer) => ServiceKinds::NONE,
            (
                Role::Worker | Role::Router | Role::Client,
                Role::Worker | Role::Router | Role::Client,
            ) => {
                if !from.owner.is_empty() && from.owner == to.owner {
                    ServiceKinds::ALL
                } else {
                    ServiceKinds::NONE
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(from: (Role, &str), to: (Role, &str)) -> ServiceKinds {
        let party = |(role, owner)| Party { role, owner };
        FixedRules.reach(party(from), party(to))
    }

    const ROLES: [Role; 6] = [
        Role::Worker,
        Role::Gateway,
        Role::Router,
        Role::Deployer,
        Role::Relay,
        Role::Client,
    ];

    #[test]
    fn one_owner_reaches_all_that_is_published() {
        let all = reach((Role::Client, "anna"), (Role::Worker, "anna"));
        assert_eq!(all, ServiceKinds::ALL);
    }

    #[test]
    fn an_owner_gives_services_of_the_mesh_no_more_and_opens_them_to_nobody() {
        for role in ROLES {
            for service in [Role::Gateway, Role::Deployer, Role::Relay] {
                let own = |from, to| reach((from, "anna"), (to, "anna"));
                let other = |from, to| reach((from, "anna"), (to, "ben"));
                assert_eq!(own(service, role), other(service, role), "{service} {role}");
                assert_eq!(own(role, service), other(role, service), "{role} {service}");
            }
        }
        let kinds = reach((Role::Gateway, "anna"), (Role::Worker, "anna"));
        assert_eq!(kinds, ServiceKinds::WEB);
        assert!(reach((Role::Worker, "anna"), (Role::Deployer, "anna")).is_empty());
    }

    #[test]
    fn strangers_and_nobodies_reach_nothing() {
        assert!(reach((Role::Client, "anna"), (Role::Worker, "ben")).is_empty());
        assert!(reach((Role::Worker, ""), (Role::Worker, "")).is_empty());
    }

    #[test]
    fn a_gateway_reaches_pages_but_no_ssh() {
        let kinds = reach((Role::Gateway, ""), (Role::Worker, "anna"));
        assert!(kinds.contains(ServiceKind::Console) && kinds.contains(ServiceKind::Http));
        assert!(!kinds.contains(ServiceKind::Ssh) && !kinds.contains(ServiceKind::Tcp));
        assert!(reach((Role::Worker, "anna"), (Role::Gateway, "")).is_empty());
    }

    #[test]
    fn a_deployer_reaches_everything_and_is_reached_by_nobody() {
        assert_eq!(
            reach((Role::Deployer, ""), (Role::Worker, "ben")),
            ServiceKinds::ALL
        );
        assert!(reach((Role::Worker, "ben"), (Role::Deployer, "")).is_empty());
    }

    #[test]
    fn a_relay_is_no_party_to_anything() {
        assert!(reach((Role::Relay, "anna"), (Role::Worker, "anna")).is_empty());
        assert!(reach((Role::Deployer, "anna"), (Role::Relay, "anna")).is_empty());
    }
}
