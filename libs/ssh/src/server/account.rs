//! Local users: who may be logged in as, and what their processes start with.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{Uid, User, geteuid, getgrouplist};

use super::platform::Identity;

/// As whom commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// As the principal, whoever that is: this process is root and drops to the user.
    AnyUser,
    /// As this process's own user only; every other principal is refused.
    OwnUser,
}

impl RunAs {
    /// [`Self::AnyUser`] for root, [`Self::OwnUser`] for everybody else.
    pub fn detect() -> Self {
        if geteuid().is_root() {
            Self::AnyUser
        } else {
            Self::OwnUser
        }
    }
}

/// A local user, resolved.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
    pub(super) path: String,
    /// Whose rights to take on; `None` keeps this process's.
    pub(super) identity: Option<Identity>,
    /// Owner of its terminals.
    pub(super) uid: Uid,
}

const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";

impl Account {
    /// The user this process runs as; also when the machine has no entry for it.
    pub(super) fn own() -> Self {
        let uid = geteuid();
        let path = std::env::var("PATH").unwrap_or_else(|_| USER_PATH.to_owned());
        match User::from_uid(uid) {
            Ok(Some(user)) => Self {
                name: user.name,
                home: user.dir,
                shell: shell_or_default(user.shell),
                path,
                identity: None,
                uid,
            },
            Ok(None) | Err(_) => Self {
                name: format!("uid-{uid}"),
                home: std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from),
                shell: "/bin/sh".into(),
                path,
                identity: None,
                uid,
            },
        }
    }

    /// The user of this name; `None` when there is none, or it may not be run as.
    pub(super) fn resolve(name: &str, run_as: RunAs) -> Option<Self> {
        match run_as {
            RunAs::OwnUser => Some(Self::own()).filter(|own| own.name == name),
            RunAs::AnyUser => {
                let user = User::from_name(name).ok().flatten()?;
                let c_name = CString::new(user.name.as_str()).ok()?;
                let groups = getgrouplist(&c_name, user.gid).ok()?;
                Some(Self {
                    path: if user.uid.is_root() {
                        ROOT_PATH
                    } else {
                        USER_PATH
                    }
                    .to_owned(),
                    name: user.name,
                    home: user.dir,
                    shell: shell_or_default(user.shell),
                    identity: Some(Identity {
                        uid: user.uid,
                        gid: user.gid,
                        groups,
                    }),
                    uid: user.uid,
                })
            }
        }
    }
}

/// An empty shell field means `/bin/sh` (passwd(5)).
fn shell_or_default(shell: PathBuf) -> PathBuf {
    if shell.as_os_str().is_empty() {
        "/bin/sh".into()
    } else {
        shell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_agent_runs_nothing_as_anybody_else() {
        let own = Account::own();
        assert!(Account::resolve(&own.name, RunAs::OwnUser).is_some());
        assert!(Account::resolve("nobody", RunAs::OwnUser).is_none_or(|a| a.name == own.name));
    }

    #[test]
    fn a_name_the_machine_does_not_know_resolves_to_nobody() {
        assert!(Account::resolve("no-such-user-here", RunAs::AnyUser).is_none());
        assert!(Account::resolve("a\0b", RunAs::AnyUser).is_none());
    }
}
