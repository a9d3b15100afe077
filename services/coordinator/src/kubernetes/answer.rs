//! What an answer of the API means.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::PublishError;
use super::api::Server;
use super::secret::Secret;

/// How much of what the API says is told, in characters.
const TOLD: usize = 300;

/// What an apply did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// There was no such Secret.
    Made,
    /// There was one, and it is now as it should be.
    Applied,
}

/// Why an apply did nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again changes nothing.
    Final(Box<PublishError>),
    /// The API is away, or has too much to do.
    Passing {
        /// For people.
        said: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
}

impl Failure {
    pub(super) fn passing(said: String) -> Self {
        Self::Passing { said, wait: None }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Self::Final(Box::new(error))
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) status: StatusCode,
    pub(super) wait: Option<Duration>,
    pub(super) body: &'a [u8],
}

/// What the API says of a failure (`meta/v1` Status).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    message: String,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    kind: String,
}

/// The seconds in `Retry-After` (RFC 9110, section 10.2.3); the API gives no dates.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What came of applying a Secret.
pub(super) fn judge(
    secret: &Secret,
    server: &Server,
    answer: &Answer<'_>,
) -> Result<Done, Failure> {
    match answer.status {
        StatusCode::OK => return Ok(Done::Applied),
        StatusCode::CREATED => return Ok(Done::Made),
        _ => {}
    }
    let status: Status = serde_json::from_slice(answer.body).unwrap_or_default();
    let said: String = secret
        .masked(&status.message)
        .chars()
        .take(TOLD)
        .collect::<String>()
        .trim()
        .to_owned();
    let told = if said.is_empty() {
        answer.status.to_string()
    } else {
        format!("{}: {said}", answer.status.as_u16())
    };
    let (namespace, name) = (secret.namespace.clone(), secret.name);
    let is_of_namespace = status.details.is_some_and(|it| it.kind == "namespaces");
    Err(match answer.status {
        StatusCode::UNAUTHORIZED => PublishError::Unauthorized { told }.into(),
        StatusCode::FORBIDDEN if said.contains("being terminated") => PublishError::Ending {
            namespace,
            name,
            told,
        }
        .into(),
        StatusCode::FORBIDDEN => PublishError::Forbidden {
            verb: missing_verb(&said),
            namespace,
            name,
            told,
        }
        .into(),
        StatusCode::NOT_FOUND if is_of_namespace => {
            PublishError::NoNamespace { namespace, name }.into()
        }
        status if passes(status) => Failure::Passing {
            said: told,
            wait: answer.wait,
        },
        _ => PublishError::Refused {
            server: server.to_string(),
            namespace,
            name,
            told,
        }
        .into(),
    })
}

/// Whether the same may be taken later.
fn passes(status: StatusCode) -> bool {
    status.is_server_error()
        || [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::CONFLICT,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&status)
}

/// The verb that the account lacks. Who may not patch is told so in these words; for a Secret that
/// is not there yet the API asks for `create` besides, and says less.
fn missing_verb(said: &str) -> &'static str {
    if said.contains("cannot patch resource") {
        "patch"
    } else {
        "create (and patch)"
    }
}
