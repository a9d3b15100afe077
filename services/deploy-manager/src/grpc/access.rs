//! Credentials for a run: certificates from the coordinator, which also says whether the operator
//! is still one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::pb;
use mesh_api::pb::ssh_auth::Method;
use mesh_api::pb::ssh_service_client::SshServiceClient;
use mesh_ssh::{Credential, PrivateKey};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::Admitted;
use crate::runner::{Credentials, Target};

/// How long the coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How to log in to each of `targets`.
///
/// With a key or a password of the caller's own no certificate is needed; one is asked for all the
/// same, since asking is how the coordinator is asked about the operator. When it cannot be
/// reached, only an operator counts for whom it vouched a short while ago ([`super::vouched`]).
pub(super) async fn credentials(
    admitted: &Admitted,
    auth: Option<pb::SshAuth>,
    targets: &[Target],
) -> Result<Credentials, Status> {
    let method = auth.and_then(|auth| auth.method);
    let given = match method {
        None | Some(Method::Certificate(_)) => None,
        Some(Method::PrivateKey(text)) => {
            let key = PrivateKey::from_openssh(&text, None)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            Some(Credential::Key(key))
        }
        Some(Method::Password(password)) => Some(Credential::Password(password.into())),
    };
    let users = users(targets);
    match given {
        None => {
            let mut made = BTreeMap::new();
            for (user, nodes) in users {
                let credential = issue(admitted, &user, nodes).await?;
                made.insert(user, credential);
            }
            Ok(Credentials::PerUser(Arc::new(made)))
        }
        Some(credential) => {
            let asked = match users.into_iter().next() {
                Some((user, nodes)) => issue(admitted, &user, nodes).await.map(drop),
                // Nobody is logged in to: each target's own fault says why.
                None => Ok(()),
            };
            match asked {
                Ok(()) => {}
                Err(status) if status.code() == Code::Unavailable => stale(admitted, &status)?,
                Err(status) => return Err(status),
            }
            Ok(Credentials::Same(credential))
        }
    }
}

/// Lets an operator through whom the coordinator cannot be asked about now, if it vouched for them
/// a short while ago.
fn stale(admitted: &Admitted, why: &Status) -> Result<(), Status> {
    if admitted.vouched.holds(admitted.operator, Instant::now()) {
        tracing::info!(operator = %admitted.operator, "the coordinator cannot be asked; it vouched for the operator a short while ago");
        return Ok(());
    }
    Err(Status::unavailable(format!(
        "the coordinator cannot be asked whether you still are an operator ({}); \
         'deploy-cli --via socks' needs no coordinator",
        why.message()
    )))
}

/// The users that are logged in as, each with his nodes.
fn users(targets: &[Target]) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut users: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for target in targets {
        if let Some(peer) = &target.peer
            && !target.user.is_empty()
        {
            let nodes = users.entry(target.user.clone()).or_default();
            nodes.push(peer.id.as_bytes().to_vec());
        }
    }
    users
}

async fn issue(
    admitted: &Admitted,
    user: &str,
    targets: Vec<Vec<u8>>,
) -> Result<Credential, Status> {
    let member = &admitted.member;
    let request = pb::IssueCertificateRequest {
        public_key: member.ssh_key.public_key().to_string(),
        network: String::new(),
        principal: user.to_owned(),
        targets,
        operator: admitted.operator.as_bytes().to_vec(),
    };
    let mut client =
        SshServiceClient::with_interceptor(member.node.channel(), mesh_trace::propagate);
    let asked = timeout(ANSWER, client.issue_certificate(request)).await;
    let answer = asked.unwrap_or_else(|_| Err(Status::unavailable("it does not answer")));
    let now = Instant::now();
    match &answer {
        Ok(_) => admitted.vouched.renew(admitted.operator, now),
        Err(status) if status.code() == Code::Unavailable => {}
        Err(_) => admitted.vouched.end(admitted.operator),
    }
    let answer = answer.map_err(|status| {
        let text = format!(
            "no SSH certificate from the coordinator: {}",
            status.message()
        );
        Status::new(status.code(), text)
    })?;
    let certificate = answer
        .into_inner()
        .certificate
        .parse()
        .map_err(|_| Status::internal("the coordinator's SSH certificate cannot be read"))?;
    Ok(Credential::Certificate {
        key: member.ssh_key.clone(),
        certificate,
    })
}
