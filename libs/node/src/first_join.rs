//! Joining at a service's first start, when token file and coordinator may not be there yet.
//!
//! In a compose project or a cluster everything starts at once, so what is not there yet is waited
//! for, within limits; what waiting does not mend (a used token, another authority) is told at
//! once.

use std::fmt::Display;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_api::tls;
use mesh_types::JoinToken;
use mesh_types::token::InvalidToken;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::random;
use crate::state_dir::StateDir;

/// How long a service waits for its token file and its coordinator unless told otherwise.
pub const JOIN_PATIENCE: Duration = Duration::from_secs(600);

/// The pause after the first try; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the log says what is waited for.
const TELL: Duration = Duration::from_secs(30);
/// No token is longer, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// A service has no usable join token, or waited for too long.
#[derive(Debug, thiserror::Error)]
pub enum FirstJoinError {
    /// The token file cannot be read.
    #[error("read the join token from {}", path.display())]
    Read {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It holds no token.
    #[error("{} holds no usable join token", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidToken,
    },
    /// What was waited for did not come.
    #[error("waited {} s to join, in vain: {last}", limit.as_secs())]
    Waited {
        /// For how long.
        limit: Duration,
        /// What was missing last.
        last: String,
    },
    /// It is of another installation than the identity that is there already.
    #[error(
        "the join token in {} is of the installation at {token}, but {} holds the identity of the \
         {of}. Nothing was changed, and the token was not used. To join the token's installation, \
         move {} away and start again; to stay in the other one, take the token away",
        path.display(),
        dir.display(),
        dir.display()
    )]
    OtherInstallation {
        /// The file.
        path: PathBuf,
        /// Addresses and authority in the token.
        token: String,
        /// Where the identity is.
        dir: PathBuf,
        /// Whose identity it is, of which installation.
        of: String,
    },
}

/// Joins with the token in `token_file` (`-`: standard input), by `join`. A file that is not there
/// yet, and faults of which `passes` says that they pass, are tried again for as long as
/// `patience`; the file is read anew each time, since it may be replaced meanwhile.
///
/// # Errors
/// [`FirstJoinError`], or what `join` says.
pub async fn first_join<T, E>(
    token_file: &Path,
    patience: Duration,
    mut join: impl AsyncFnMut(JoinToken) -> Result<T, E>,
    passes: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    E: From<FirstJoinError> + Display,
{
    let given = if token_file == Path::new("-") {
        Some(read_stdin(token_file)?)
    } else {
        None
    };
    let end = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    let mut told: Option<Instant> = None;
    loop {
        let token = match &given {
            Some(token) => Some(token.clone()),
            None => read(token_file)?,
        };
        let missing = match token {
            Some(token) => match join(token).await {
                Ok(joined) => return Ok(joined),
                Err(error) if passes(&error) => error.to_string(),
                Err(error) => return Err(error),
            },
            None => format!("{} is not there yet", token_file.display()),
        };
        let now = Instant::now();
        if now + pause >= end {
            let limit = patience;
            return Err(FirstJoinError::Waited {
                limit,
                last: missing,
            }
            .into());
        }
        if told.is_none_or(|at| now >= at + TELL) {
            told = Some(now);
            tracing::info!(reason = missing, "not joined yet: trying again");
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the token in `token_file` may stay unused beside the identities in `dirs`: at each start
/// but the first it is the token that one of them was made with, or one of the same installation. A
/// file that is gone, or holds no token any more, says nothing; neither does standard input (`-`),
/// which may be a terminal. Damaged identities are told of by whoever uses them.
///
/// # Errors
/// [`FirstJoinError::OtherInstallation`].
pub fn fits_identities(token_file: &Path, dirs: &[PathBuf]) -> Result<(), FirstJoinError> {
    if token_file == Path::new("-") {
        return Ok(());
    }
    let Ok(Some(token)) = read(token_file) else {
        return Ok(());
    };
    let mut other = None;
    for dir in dirs {
        let Ok(Some((enrolled, ca))) = StateDir::enrolment_at(dir) else {
            continue;
        };
        match tls::fingerprint(&ca) {
            Some(found) if found == token.ca_fingerprint => return Ok(()),
            Some(found) => other = other.or(Some((dir, enrolled, found))),
            None => {}
        }
    }
    let Some((dir, enrolled, found)) = other else {
        return Ok(());
    };
    Err(FirstJoinError::OtherInstallation {
        path: token_file.to_owned(),
        token: installation(&token.coordinators, &token.ca_fingerprint),
        dir: dir.clone(),
        of: format!(
            "{} {} of the one at {}",
            enrolled.role,
            enrolled.name,
            installation(&enrolled.coordinators, &found)
        ),
    })
}

/// Its addresses, which may be the same as another's, and the start of its CA's fingerprint.
fn installation(coordinators: &[String], authority: &[u8; 32]) -> String {
    let start: String = authority[..4].iter().map(|b| format!("{b:02x}")).collect();
    format!("{} (authority {start}…)", coordinators.join(", "))
}

/// Half of it to all of it, so that a fleet does not come all at once.
fn jittered(pause: Duration) -> Duration {
    let part = random::word().map_or(1000, |word| 500 + word % 501);
    pause * u32::try_from(part).unwrap_or(1000) / 1000
}

fn read_stdin(path: &Path) -> Result<JoinToken, FirstJoinError> {
    let mut text = Zeroizing::new(String::new());
    io::stdin()
        .take(MAX_TOKEN)
        .read_to_string(&mut text)
        .map_err(|source| FirstJoinError::Read {
            path: path.to_owned(),
            source,
        })?;
    parse(path, &text)
}

/// The token in the file; `None` while there is none.
fn read(path: &Path) -> Result<Option<JoinToken>, FirstJoinError> {
    let failed = |source| FirstJoinError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_TOKEN)
        .read_to_string(&mut text)
        .map_err(failed)?;
    parse(path, &text).map(Some)
}

fn parse(path: &Path, text: &str) -> Result<JoinToken, FirstJoinError> {
    text.trim().parse().map_err(|source| FirstJoinError::Token {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use mesh_types::{NodeId, Role, TokenId};

    use super::*;
    use crate::state_dir::Enrolled;

    #[derive(Debug, PartialEq)]
    enum Fault {
        Passing,
        Lasting,
        First(String),
    }

    impl Display for Fault {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{self:?}")
        }
    }

    impl From<FirstJoinError> for Fault {
        fn from(error: FirstJoinError) -> Self {
            Self::First(error.to_string())
        }
    }

    fn token(id: u8) -> JoinToken {
        JoinToken {
            ca_fingerprint: [1; 32],
            id: TokenId::from_bytes([id; 16]),
            secret: [3; 32],
            coordinators: vec!["127.0.0.1:9".into()],
        }
    }

    fn write(path: &Path, id: u8) {
        std::fs::write(path, format!("{}\n", token(id).reveal())).expect("written");
    }

    fn passes(fault: &Fault) -> bool {
        *fault == Fault::Passing
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_yet_is_waited_for_and_the_file_is_read_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let (late, tries) = (path.clone(), Cell::new(0));
        let join = async |given: JoinToken| {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => {
                    assert_eq!(given, token(1));
                    write(&path, 2);
                    Err(Fault::Passing)
                }
                _ => Ok(given),
            }
        };
        let writer = async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            write(&late, 1);
        };
        let joined = first_join(&path, JOIN_PATIENCE, join, passes);
        let (joined, ()) = tokio::join!(joined, writer);
        assert_eq!(joined.expect("joins"), token(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lasting_fault_is_told_at_once_and_waiting_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        write(&path, 1);
        let started = Instant::now();
        let join = async |_| Err::<(), _>(Fault::Lasting);
        let failed = first_join(&path, JOIN_PATIENCE, join, passes).await;
        assert_eq!(failed, Err(Fault::Lasting));
        assert_eq!(started.elapsed(), Duration::ZERO);

        let join = async |_| Err::<(), _>(Fault::Passing);
        let failed = first_join(&path, JOIN_PATIENCE, join, passes).await;
        let Err(Fault::First(text)) = failed else {
            panic!("{failed:?}")
        };
        assert!(text.contains("600 s") && text.contains("Passing"), "{text}");
        assert!(started.elapsed() <= JOIN_PATIENCE);
        assert!(started.elapsed() > JOIN_PATIENCE - 2 * LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn a_damaged_token_is_named_with_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "mesh1.AAAA").expect("written");
        let join = async |_| -> Result<(), Fault> { panic!("there is no token") };
        let Err(Fault::First(text)) = first_join(&path, JOIN_PATIENCE, join, passes).await else {
            panic!("refused");
        };
        assert!(text.contains("token"), "{text}");
    }

    /// A directory with the identity of a relay, and its authority's fingerprint.
    fn identity(dir: &Path) -> [u8; 32] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let made = rcgen::CertificateParams::default().self_signed(&key);
        let ca = made.expect("a certificate").der().to_vec();
        let enrolled = Enrolled {
            node: NodeId::from_bytes([7; 16]),
            name: "relay".parse().expect("a name"),
            role: Role::Relay,
            network: None,
            network_id: None,
            addrs: None,
            console_prefix: String::new(),
            owner: "owner".into(),
            coordinators: vec!["old.example:8080".into()],
        };
        let state = StateDir::open(dir).expect("opens");
        state.store_enrolment(&enrolled, &ca, &ca).expect("stores");
        tls::fingerprint(&ca).expect("a certificate")
    }

    #[test]
    fn a_token_beside_an_identity_of_another_installation_is_told_with_both() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let dirs = [dir.path().join("one"), dir.path().join("two")];
        let other = identity(&dirs[0]);
        write(&path, 1);
        let fault = fits_identities(&path, &dirs).expect_err("refused");
        let text = fault.to_string();
        let old = format!(
            "relay relay of the one at old.example:8080 (authority {:02x}",
            other[0]
        );
        for part in [
            &old,
            "127.0.0.1:9 (authority 01010101…)",
            &path.display().to_string(),
            &format!("move {} away", dirs[0].display()),
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        // Nothing was lost, and one identity of its own installation is enough.
        assert!(StateDir::is_enrolled_at(&dirs[0]).expect("looks"));
        let mut own = token(1);
        own.ca_fingerprint = identity(&dirs[1]);
        std::fs::write(&path, own.reveal()).expect("written");
        fits_identities(&path, &dirs).expect("its own");
        fits_identities(&path, &dirs[..1]).expect_err("not without it");
    }

    #[test]
    fn without_a_token_or_an_identity_nothing_is_compared() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let dirs = [dir.path().join("one")];
        write(&path, 1);
        fits_identities(&path, &dirs).expect("no identity");
        identity(&dirs[0]);
        std::fs::write(&path, "emptied\n").expect("written");
        fits_identities(&path, &dirs).expect("no token");
        std::fs::remove_file(&path).expect("removed");
        fits_identities(&path, &dirs).expect("no file");
        fits_identities(Path::new("-"), &dirs).expect("not read");
    }
}
