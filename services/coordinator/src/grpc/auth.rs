//! Who may call what: one table, checked before any service sees a request.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use mesh_daemon::{GrpcCalls, GrpcMethod, Handles};
use mesh_types::Role;
use tonic::Status;

use crate::app::Core;
use crate::caller::{Caller, Kind};
use crate::error::Error;
use crate::known::Shown;
use crate::metrics::Call;
use crate::serve::PeerInfo;

/// A gRPC method and the callers it is for.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/<package>.<service>/<method>`.
    pub(crate) path: &'static str,
    pub(crate) allow: &'static [Kind],
}

const ANYONE: &[Kind] = &[Kind::Anonymous];
const MEMBERS: &[Kind] = &[
    Kind::Node(Role::Worker),
    Kind::Node(Role::Gateway),
    Kind::Node(Role::Router),
    Kind::Node(Role::Deployer),
    Kind::Node(Role::Client),
    Kind::Relay,
];
const RELAYS: &[Kind] = &[Kind::Relay];
const GATEWAYS: &[Kind] = &[Kind::Node(Role::Gateway)];
const OPERATORS: &[Kind] = &[Kind::Operator];
const OPERATORS_AND_DEPLOYERS: &[Kind] = &[Kind::Operator, Kind::Node(Role::Deployer)];

/// The single source of truth. What is not in it is refused. `ANYONE` needs no certificate;
/// everything else needs one whose subject is enrolled at the time of the call. What a caller may
/// see of other networks is narrowed further where the method is served.
pub(crate) const METHODS: &[Method] = &[
    Method {
        path: "/mesh.v1.ControlService/Challenge",
        allow: ANYONE,
    },
    Method {
        path: "/mesh.v1.ControlService/Enrol",
        allow: ANYONE,
    },
    Method {
        path: "/mesh.v1.ControlService/Renew",
        allow: ANYONE,
    },
    Method {
        path: "/mesh.v1.ControlService/Sync",
        allow: MEMBERS,
    },
    Method {
        path: "/mesh.v1.ControlService/Leave",
        allow: MEMBERS,
    },
    Method {
        path: "/mesh.v1.RelayService/WatchClients",
        allow: RELAYS,
    },
    Method {
        path: "/mesh.v1.SshService/IssueCertificate",
        allow: OPERATORS_AND_DEPLOYERS,
    },
    Method {
        path: "/mesh.v1.GatewayService/WatchRoutes",
        allow: GATEWAYS,
    },
    Method {
        path: "/mesh.v1.AdminService/Status",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/CreateNetwork",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/ListNetworks",
        allow: OPERATORS_AND_DEPLOYERS,
    },
    Method {
        path: "/mesh.v1.AdminService/DeleteNetwork",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/CreateToken",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/ListTokens",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/RevokeToken",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/ListNodes",
        allow: OPERATORS_AND_DEPLOYERS,
    },
    Method {
        path: "/mesh.v1.AdminService/ShowNode",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/RenameNode",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/SetNode",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/RemoveNode",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/AcceptHostKey",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/PermitRejoin",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/AddOperator",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/ListOperators",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/RevokeOperator",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/ListAudit",
        allow: OPERATORS,
    },
    Method {
        path: "/mesh.v1.AdminService/WatchEvents",
        allow: OPERATORS,
    },
];

/// Counts, times and traces every method of the table. A `traceparent` counts from members of the
/// mesh only.
pub(crate) fn count_calls(handles: &Handles) -> GrpcCalls {
    let methods = METHODS.iter().map(|method| GrpcMethod {
        path: method.path,
        endless: method.is_endless(),
    });
    GrpcCalls::register(handles, "mesh_coordinator", methods, |extensions| {
        let peer = extensions.get::<PeerInfo>();
        peer.is_some_and(|peer| peer.shown.is_some())
    })
}

impl Method {
    /// The row of this path.
    pub(crate) fn find(path: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.path == path)
    }

    /// Whether a call lasts as long as its caller.
    fn is_endless(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name == "Sync" || name.starts_with("Watch")
    }

    /// Whether this method needs no certificate.
    fn is_open(&self) -> bool {
        self.allow.contains(&Kind::Anonymous)
    }

    /// Whether this kind of caller may call this method.
    pub(crate) fn allows(&self, kind: Kind) -> bool {
        self.is_open() || self.allow.contains(&kind)
    }
}

fn check(core: &Core, method: &Method, peer: &PeerInfo) -> Result<Caller, Error> {
    if method.is_open() {
        // How often is up to the methods, which see whom the caller names.
        return Ok(Caller::Anonymous);
    }
    let certificate = peer.shown.as_ref().map(|shown| &shown.certificate);
    let caller = Caller::identify(&core.members, certificate, core.now())?;
    if !matches!(caller, Caller::Anonymous) {
        peer.turn.settle();
    }
    if method.allows(caller.kind()) {
        Ok(caller)
    } else if matches!(caller, Caller::Anonymous) {
        Err(Error::Unauthenticated)
    } else {
        Err(Error::NotAllowed(caller.kind().as_str()))
    }
}

/// Lets a call through to its service together with its [`Caller`], or answers why not.
pub(crate) async fn authorise(
    State(core): State<Arc<Core>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(method) = Method::find(request.uri().path()) else {
        return refuse(Status::unimplemented(
            "there is no such method; is the program newer than the coordinator?",
        ));
    };
    let checked = match request.extensions().get::<PeerInfo>() {
        Some(peer) => check(&core, method, peer),
        None => Err(Error::Unauthenticated),
    };
    match checked {
        Ok(caller) => {
            mesh_trace::note("mesh.caller", caller.kind().as_str());
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            let (_, reason) = error.kind();
            tracing::debug!(method = method.path, reason, "a call was refused");
            let call = Call {
                method: method.path,
                code: reason,
            };
            core.figures.calls_refused.get_or_create(&call).inc();
            refuse(error.into())
        }
    }
}

fn refuse(status: Status) -> Response {
    status.into_http::<Body>()
}

/// The caller that [`authorise`] found.
pub(crate) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    // INVARIANT: every route to a service passes `authorise`, which puts the caller in.
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Error::Unauthenticated.into())
}

/// What the caller has shown, for whatever lasts: it tells when the caller is a member no more.
pub(crate) fn shown<T>(request: &tonic::Request<T>) -> Result<Arc<Shown>, Status> {
    let peer = request.extensions().get::<PeerInfo>();
    let shown = peer.and_then(|peer| peer.shown.clone());
    shown.ok_or_else(|| Error::Unauthenticated.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const KINDS: [Kind; 8] = [
        Kind::Anonymous,
        Kind::Node(Role::Worker),
        Kind::Node(Role::Gateway),
        Kind::Node(Role::Router),
        Kind::Node(Role::Deployer),
        Kind::Node(Role::Client),
        Kind::Relay,
        Kind::Operator,
    ];

    /// Every method of the coordinator's services, read from the contract itself.
    fn methods_of_the_contract() -> BTreeSet<String> {
        let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/mesh/v1/");
        let mut methods = BTreeSet::new();
        for file in ["control.proto", "admin.proto", "gateway.proto"] {
            let text = std::fs::read_to_string(format!("{proto}{file}")).expect("the contract");
            let mut service = String::new();
            for line in text.lines().map(str::trim) {
                let word = |line: &str| line.split([' ', '(']).next().unwrap_or("").to_owned();
                if let Some(rest) = line.strip_prefix("service ") {
                    service = word(rest);
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    methods.insert(format!("/mesh.v1.{service}/{}", word(rest)));
                }
            }
        }
        methods
    }

    #[test]
    fn every_method_has_exactly_one_row_and_every_row_a_method() {
        let rows: Vec<_> = METHODS
            .iter()
            .map(|method| method.path.to_owned())
            .collect();
        let unique: BTreeSet<_> = rows.iter().cloned().collect();
        assert_eq!(unique.len(), rows.len(), "a method has two rows");
        assert_eq!(unique, methods_of_the_contract());
    }

    /// The rights written out once more, so that a slip in the table shows: for each caller, the
    /// methods beyond the three open ones.
    fn expected(kind: Kind) -> BTreeSet<&'static str> {
        let own = [
            "/mesh.v1.ControlService/Sync",
            "/mesh.v1.ControlService/Leave",
        ];
        let mut allowed: BTreeSet<&str> = match kind {
            Kind::Anonymous => BTreeSet::new(),
            Kind::Operator => METHODS
                .iter()
                .map(|method| method.path)
                .filter(|path| path.contains("AdminService"))
                .chain(["/mesh.v1.SshService/IssueCertificate"])
                .collect(),
            Kind::Node(_) | Kind::Relay => own.into(),
        };
        match kind {
            Kind::Relay => {
                allowed.insert("/mesh.v1.RelayService/WatchClients");
            }
            Kind::Node(Role::Gateway) => {
                allowed.insert("/mesh.v1.GatewayService/WatchRoutes");
            }
            Kind::Node(Role::Deployer) => allowed.extend([
                "/mesh.v1.SshService/IssueCertificate",
                "/mesh.v1.AdminService/ListNodes",
                "/mesh.v1.AdminService/ListNetworks",
            ]),
            _ => {}
        }
        for open in ["Challenge", "Enrol", "Renew"] {
            let path = METHODS
                .iter()
                .find(|method| method.path.ends_with(&format!("/{open}")));
            allowed.insert(path.expect("an open method").path);
        }
        allowed
    }

    #[test]
    fn each_kind_of_caller_may_do_exactly_what_is_written_here() {
        for kind in KINDS {
            let allowed: BTreeSet<_> = METHODS
                .iter()
                .filter(|method| method.allows(kind))
                .map(|method| method.path)
                .collect();
            assert_eq!(allowed, expected(kind), "{}", kind.as_str());
        }
    }

    #[test]
    fn only_joining_and_renewing_need_no_certificate() {
        let open = METHODS.iter().filter(|method| method.is_open()).count();
        assert_eq!(open, 3);
    }
}
