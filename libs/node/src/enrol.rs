//! Joining: from a token to a certificate.
//!
//! TLS is pinned to the CA fingerprint in the token. The coordinator's challenge is answered with
//! proofs that this machine holds the private halves of its WireGuard and disco keys. All keys are
//! in the state directory before the first byte is sent, so a retry after a lost answer is the
//! same request again and gets the same answer.

use std::time::{Duration, SystemTime};

use mesh_api::client::{ALPN_H2, AttemptError, ConnectError, connect};
use mesh_api::tls::{self, COORDINATOR_NAME, Pin};
use mesh_types::heartbeat::MAX_SKEW_SECS;
use mesh_types::time::span;
use mesh_types::{JoinToken, NodeName, Role, Timestamp};
use tonic::Code;
use tonic::transport::Channel;

use crate::credential::validity_of;
use crate::grpc::{self, RpcError};
use crate::state_dir::{Enrolled, StateDir, StateDirError};

/// How often a lost answer is asked for again within the time limit.
const RETRIES: u32 = 3;

/// What a machine says of itself when it joins.
#[derive(Debug, Clone)]
pub struct EnrolOptions {
    /// Its host name; the nearest valid node name is asked for, and `name-1` given when it is taken.
    pub hostname: String,
    /// Of the program, for people.
    pub version: String,
    /// An operator's permit to join as a node that exists already; empty: none.
    pub permit: Vec<u8>,
    /// What this program can run: a token of another role is refused and not used up. Empty: any.
    pub roles: Vec<Role>,
    /// How long all of it may take.
    pub timeout: Duration,
}

impl EnrolOptions {
    /// With this host name and a limit of 30 s.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: hostname.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            permit: Vec::new(),
            roles: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// The kind of an [`EnrolError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EnrolErrorKind {
    /// No address of the coordinator answers.
    Unreachable,
    /// What answers belongs to another CA than the token names, or something reads along.
    WrongCa,
    /// This machine's clock and the coordinator's are too far apart.
    Clock,
    /// The token is expired, used, revoked or unknown.
    Token,
    /// The coordinator has too much to do just now.
    Busy,
    /// The coordinator refused for another reason.
    Refused,
    /// The state directory is in the way.
    State,
    /// The answer cannot be used.
    Protocol,
}

/// This machine could not join; the text is the whole sentence for people.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EnrolError {
    kind: EnrolErrorKind,
    message: String,
}

impl EnrolError {
    /// What kind of thing went wrong.
    pub fn kind(&self) -> EnrolErrorKind {
        self.kind
    }

    /// Whether the same call may succeed a little later, with nothing done by a person.
    pub fn may_pass(&self) -> bool {
        use EnrolErrorKind::{Busy, Clock, Protocol, Refused, State, Token, Unreachable, WrongCa};

        match self.kind {
            Unreachable | Busy | Clock => true,
            WrongCa | Token | Refused | State | Protocol => false,
        }
    }

    fn new(kind: EnrolErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl From<StateDirError> for EnrolError {
    fn from(error: StateDirError) -> Self {
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message.push_str(&format!(": {source}"));
        }
        Self::new(EnrolErrorKind::State, message)
    }
}

/// Joins the token's network with the keys of `state`, and stores what came of it there.
///
/// Safe to repeat: the same token with the same state directory gives the same identity.
pub async fn enrol(
    token: &JoinToken,
    options: EnrolOptions,
    state: &StateDir,
) -> Result<Enrolled, EnrolError> {
    if let Some(enrolled) = state.enrolment()? {
        return Err(EnrolError::new(
            EnrolErrorKind::State,
            format!(
                "this state directory already belongs to node {} ({}): leave that network first, \
                 or choose another directory",
                enrolled.name, enrolled.node
            ),
        ));
    }
    let hostname =
        NodeName::from_hostname(&options.hostname).map_or_else(|| "node".to_owned(), String::from);
    let limit = options.timeout;
    let attempt = async {
        let mut last = None;
        for _ in 0..RETRIES {
            match join(token, &hostname, &options, state).await {
                Ok(enrolled) => return Ok(enrolled),
                Err((error, true)) => last = Some(error),
                Err((error, false)) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| unanswered(token, limit)))
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(unanswered(token, limit)),
    }
}

fn unanswered(token: &JoinToken, limit: Duration) -> EnrolError {
    EnrolError::new(
        EnrolErrorKind::Unreachable,
        format!(
            "the coordinator did not answer within {} s (tried {}); joining again with the same \
             token is safe",
            limit.as_secs(),
            token.coordinators.join(", ")
        ),
    )
}

/// One attempt; the flag says whether the answer was lost, so that trying again may help.
async fn join(
    token: &JoinToken,
    hostname: &str,
    options: &EnrolOptions,
    state: &StateDir,
) -> Result<Enrolled, (EnrolError, bool)> {
    let tls = tls::client_config(Pin::Fingerprint(token.ca_fingerprint), None, &[ALPN_H2])
        .map_err(|error| {
            (
                EnrolError::new(EnrolErrorKind::Protocol, error.to_string()),
                false,
            )
        })?;
    let channel: Channel = connect(&token.coordinators, COORDINATOR_NAME, tls)
        .await
        .map_err(|error| (connect_text(&error), false))?;
    let challenge = grpc::challenge(channel.clone())
        .await
        .map_err(|error| rpc_text(&error))?;
    let own = Timestamp::from(SystemTime::now());
    if let Some(error) = clock_text(own, challenge.server_time) {
        return Err((error, false));
    }
    let answer = grpc::enrol(channel, token, &challenge, hostname, options, state)
        .await
        .map_err(|error| rpc_text(&error))?;
    let fits = tls::fingerprint(&answer.ca) == Some(token.ca_fingerprint);
    if !fits || validity_of(&answer.certificate).is_none() {
        return Err((
            EnrolError::new(
                EnrolErrorKind::Protocol,
                "the coordinator's certificate authority is not the one in the join token: make a \
                 new token with 'mesh token create'",
            ),
            false,
        ));
    }
    state
        .store_enrolment(&answer.enrolled, &answer.certificate, &answer.ca)
        .map_err(|error| (error.into(), false))?;
    Ok(answer.enrolled)
}

fn connect_text(error: &ConnectError) -> EnrolError {
    let each = |(addr, reason): &(String, AttemptError)| match reason {
        AttemptError::Tcp(source) | AttemptError::Name(source) => {
            format!("{addr}: {reason} ({source})")
        }
        _ => format!("{addr}: {reason}"),
    };
    let tried: Vec<String> = error.attempts.iter().map(each).collect();
    let tried = tried.join("; ");
    let any = |test: fn(&AttemptError) -> bool| error.attempts.iter().any(|(_, e)| test(e));
    if any(|error| matches!(error, AttemptError::WrongCa(_))) {
        return EnrolError::new(
            EnrolErrorKind::WrongCa,
            format!(
                "what answers is not the coordinator that made this join token: its certificate \
                 comes from another authority. Either the token is of another installation, or a \
                 TLS-intercepting proxy is in between; nothing secret was sent ({tried})"
            ),
        );
    }
    if any(|error| matches!(error, AttemptError::Clock(_))) {
        return EnrolError::new(
            EnrolErrorKind::Clock,
            format!(
                "the coordinator's certificate is not valid at this machine's time ({}): set this \
                 machine's clock, then join again ({tried})",
                utc(Timestamp::from(SystemTime::now()))
            ),
        );
    }
    EnrolError::new(
        EnrolErrorKind::Unreachable,
        format!(
            "cannot reach the coordinator. Tried {tried}. Is it running, and may this machine \
             reach it?"
        ),
    )
}

fn clock_text(own: Timestamp, server: Timestamp) -> Option<EnrolError> {
    let off = own.since(server).max(server.since(own));
    // Heartbeats would be refused from the first one on.
    (off.as_secs() > MAX_SKEW_SECS).then(|| {
        let way = if own > server { "ahead of" } else { "behind" };
        EnrolError::new(
            EnrolErrorKind::Clock,
            format!(
                "this machine's clock ({}) is {} {way} the coordinator's ({}): set it, then join \
                 again; the token was not used",
                utc(own),
                span(off),
                utc(server)
            ),
        )
    })
}

fn rpc_text(error: &RpcError) -> (EnrolError, bool) {
    match error {
        RpcError::Status(status) => {
            let (kind, lost) = match (status.code(), grpc::word(status)) {
                // The challenge was too old: a new one is asked for.
                (_, "nonce-unknown") => (EnrolErrorKind::Refused, true),
                (Code::ResourceExhausted, _) => (EnrolErrorKind::Busy, false),
                (_, word) if word.starts_with("token-") => (EnrolErrorKind::Token, false),
                // No word: not the coordinator's own refusal, so the answer was lost on its way.
                (Code::Unavailable | Code::Unknown | Code::Cancelled, _) => {
                    (EnrolErrorKind::Unreachable, true)
                }
                _ => (EnrolErrorKind::Refused, false),
            };
            (EnrolError::new(kind, error.to_string()), lost)
        }
        RpcError::Protocol(source) => {
            let text = format!("{error}: {source}");
            (EnrolError::new(EnrolErrorKind::Protocol, text), false)
        }
        RpcError::Sign => (
            EnrolError::new(EnrolErrorKind::State, error.to_string()),
            false,
        ),
    }
}

/// A point in time as `2026-11-21 11:31 UTC` (proleptic Gregorian calendar).
pub(crate) fn utc(at: Timestamp) -> String {
    let secs = at.as_secs();
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years, so that the leap day ends a year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(utc(Timestamp::from_secs(0)), "1970-01-01 00:00 UTC");
        assert_eq!(
            utc(Timestamp::from_secs(951_782_400)),
            "2000-02-29 00:00 UTC"
        );
        assert_eq!(
            utc(Timestamp::from_secs(1_795_260_671)),
            "2026-11-21 11:31 UTC"
        );
    }

    #[test]
    fn a_clock_off_by_a_day_is_named_with_both_times() {
        let server = Timestamp::from_secs(1_795_260_671);
        let own = server.plus(Duration::from_secs(86_400));
        let error = clock_text(own, server).expect("too far");
        assert_eq!(error.kind(), EnrolErrorKind::Clock);
        let text = error.to_string();
        assert!(
            text.contains("24 h ahead of") && text.contains("2026-11-22"),
            "{text}"
        );
        assert!(clock_text(server.plus(Duration::from_secs(20)), server).is_none());
    }
}
