//! Why Secrets are not published, and what to do next.

use std::io;
use std::path::PathBuf;

use mesh_daemon::tls::TlsError;

/// Why not everything could be published; the text is for people, and says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A variable that every container has is missing.
    #[error(
        "this is not in a pod of Kubernetes: {variable} is not set. Run it in the Job mesh-bootstrap of deploy/k8s; elsewhere services read the files of 'coordinator bootstrap' by --token-file"
    )]
    NotInPod {
        /// Which.
        variable: &'static str,
    },
    /// The variables hold no address.
    #[error("KUBERNETES_SERVICE_HOST={host:?} and KUBERNETES_SERVICE_PORT={port:?} lead to no API")]
    Address {
        /// As it is set.
        host: String,
        /// As it is set.
        port: String,
    },
    /// A file of the pod's account cannot be read.
    #[error(
        "{} cannot be read: the container must mount it there, as deploy/k8s does with a projected volume (serviceAccountToken, kube-root-ca.crt, namespace); --account-dir names another directory", path.display()
    )]
    Account {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The token cannot stand in a header.
    #[error("the token of the pod's account holds characters that no token has: is it that file?")]
    Token,
    /// The authority is none.
    #[error("{} holds no authority to trust Kubernetes' API by", path.display())]
    Authority {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        source: TlsError,
    },
    /// rustls refused the settings.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// A namespace cannot be one.
    #[error("{0:?} cannot be the name of a namespace")]
    Namespace(String),
    /// A file of the bootstrap cannot be read.
    #[error("{} cannot be read: 'coordinator bootstrap --tokens-dir' writes it, and --from must name the same directory", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The API does not show that it is the cluster's.
    #[error(
        "Kubernetes' API at {server} cannot be trusted: its certificate must be for that host, of the authority in {}; nothing was sent", authority.display()
    )]
    Untrusted {
        /// Where.
        server: String,
        /// The authority that the pod was given.
        authority: PathBuf,
        /// What is wrong with the certificate.
        source: rustls::Error,
    },
    /// The account is not known.
    #[error(
        "Kubernetes does not know this pod's account ({told}): its token is expired, or of an account that was deleted; delete the pod, and its Job makes another one"
    )]
    Unauthorized {
        /// Status and what the API says.
        told: String,
    },
    /// The account lacks a right.
    #[error(
        "Kubernetes does not let this pod's account apply Secret {namespace}/{name} ({told}): a Role in the namespace {namespace}, which must be there, must give the verb {verb} on the resource secrets for resourceNames [{name}], and a RoleBinding give it to the account (mesh-bootstrap in deploy/k8s)"
    )]
    Forbidden {
        /// What it lacks.
        verb: &'static str,
        /// Of the Secret.
        namespace: String,
        /// Of the Secret.
        name: &'static str,
        /// Status and what the API says.
        told: String,
    },
    /// The namespace is being deleted.
    #[error(
        "Secret {name} cannot be made while the namespace {namespace} is being deleted ({told}): wait for its end ('kubectl get namespace {namespace}'), and make it again"
    )]
    Ending {
        /// Which.
        namespace: String,
        /// Of the Secret.
        name: &'static str,
        /// Status and what the API says.
        told: String,
    },
    /// There is no such namespace.
    #[error(
        "there is no namespace {namespace} for Secret {name}: make it, or name another one by --namespace (--nodes-namespace for the workers' token)"
    )]
    NoNamespace {
        /// Which.
        namespace: String,
        /// Of the Secret.
        name: &'static str,
    },
    /// Any other refusal.
    #[error(
        "Kubernetes' API at {server} refuses Secret {namespace}/{name} ({told}): look for an admission policy or a quota of that namespace, and whether {server} is the API"
    )]
    Refused {
        /// Where.
        server: String,
        /// Of the Secret.
        namespace: String,
        /// Of the Secret.
        name: &'static str,
        /// Status and what the API says.
        told: String,
    },
    /// Nobody took it in time.
    #[error(
        "Kubernetes' API at {server} took nothing for {seconds} s ({said}): does it run, and does a NetworkPolicy let this pod connect to it? The next run publishes everything"
    )]
    Away {
        /// Where.
        server: String,
        /// What came of the last try.
        said: String,
        /// How long it was tried.
        seconds: u64,
    },
}

impl PublishError {
    /// Whether the pod is made wrongly, so that trying again is of no use before that is changed.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::NotInPod { .. }
                | Self::Address { .. }
                | Self::Account { .. }
                | Self::Token
                | Self::Authority { .. }
                | Self::Namespace(_)
        )
    }
}
