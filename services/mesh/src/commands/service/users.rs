//! The users that roles run as: systemd-sysusers makes them, purging a role removes its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::run_quietly;
use super::units::{Places, Unit};

/// A role's user and the group of the same name, as its line for systemd-sysusers has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    user: &'static str,
    /// What it is for, by which it is told from somebody else's of the same name.
    title: &'static str,
    home: &'static str,
}

impl Account {
    /// The user in a file such as `deploy/systemd/sysusers.d/mesh-relay.conf`.
    pub(super) fn parse(sysusers: &'static str) -> Option<Self> {
        let line = sysusers.lines().find_map(|line| line.strip_prefix("u "))?;
        let (user, rest) = line.split_once(" - \"")?;
        let (title, home) = rest.split_once("\" ")?;
        Some(Self { user, title, home })
    }

    pub(super) fn user(self) -> &'static str {
        self.user
    }

    /// Whether this line of /etc/passwd is the user that systemd-sysusers made of ours.
    fn is_made_by(self, passwd: &str) -> bool {
        let fields: Vec<&str> = passwd.split(':').collect();
        matches!(
            fields[..],
            [user, _, _, _, title, home, _]
                if (user, title, home) == (self.user, self.title, self.home)
        )
    }
}

pub(super) fn make_user(places: &Places, unit: &Unit) -> Result<()> {
    let mut command = Command::new("systemd-sysusers");
    if !places.is_system() {
        command.arg("--root").arg(places.root());
    }
    command.arg(format!("mesh-{}.conf", unit.program));
    run_quietly(&mut command)
}

/// Removes the user that `make_user` made, and its group; not one that somebody else made, or uses.
pub(super) fn remove_user(places: &Places, unit: &Unit) -> Result<()> {
    let account = unit.account();
    let user = account.user;
    if let Some(line) = entry(&places.accounts("passwd"), user)? {
        if !account.is_made_by(&line) {
            eprintln!("kept the user {user}, which mesh service did not make");
            return Ok(());
        }
        if let Some(path) = unit_that_runs_as(places, user) {
            eprintln!(
                "kept the user {user}: {} runs as it; when it no longer does: userdel {user}",
                path.display()
            );
            return Ok(());
        }
        delete(places, "userdel", user).with_context(|| {
            format!(
                "the user {user} is left; end what runs as it (ps -u {user}), then run this again: \
                 mesh service uninstall {} --purge",
                unit.program
            )
        })?;
        eprintln!("removed the user {user}");
    }
    remove_group(places, user)
}

/// userdel takes the group along where /etc/login.defs says so, unless somebody else is in it.
fn remove_group(places: &Places, group: &str) -> Result<()> {
    let Some(line) = entry(&places.accounts("group"), group)? else {
        return Ok(());
    };
    let members = line.rsplit(':').next().unwrap_or_default();
    if !members.is_empty() {
        eprintln!("kept the group {group}, which has members: {members}");
        return Ok(());
    }
    delete(places, "groupdel", group)?;
    eprintln!("removed the group {group}");
    Ok(())
}

fn delete(places: &Places, program: &str, name: &str) -> Result<()> {
    let mut command = Command::new(program);
    if !places.is_system() {
        command.arg("--prefix").arg(places.root());
    }
    run_quietly(command.arg(name))
}

/// The line about `name` in a file such as /etc/passwd.
fn entry(path: &Path, name: &str) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(name));
    Ok(line.map(str::to_owned))
}

/// A unit, or a drop-in of one, that has this user: another role's, or the administrator's own.
fn unit_that_runs_as(places: &Places, user: &str) -> Option<PathBuf> {
    let wanted = format!("User={user}");
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in places.unit_directories().iter().flat_map(|dir| below(dir)) {
        let path = entry.path();
        // Directories of drop-ins are flat.
        paths.extend(below(&path).map(|drop_in| drop_in.path()));
        paths.push(path);
    }
    paths.into_iter().find(|path| {
        let is_read = path
            .extension()
            .is_some_and(|end| end == "service" || end == "conf");
        is_read
            && fs::read_to_string(path)
                .is_ok_and(|text| text.lines().any(|line| line.trim() == wanted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ServiceRole;

    const MADE: &str =
        "mesh-relay:x:998:998:Wonder Mesh relay:/var/lib/mesh/relay:/usr/sbin/nologin";

    #[test]
    fn only_the_user_that_was_made_is_taken_for_it() {
        let account = Unit::of(ServiceRole::Relay).account();
        assert_eq!(account.user(), "mesh-relay");
        assert!(account.is_made_by(MADE));
        for other in [
            MADE.replace("Wonder Mesh relay", "Mail relay"),
            MADE.replace("/var/lib/mesh/relay", "/home/mesh-relay"),
            MADE.replace("mesh-relay:x", "relay:x"),
            "mesh-relay".to_owned(),
        ] {
            assert!(!account.is_made_by(&other), "{other}");
        }
    }

    #[test]
    fn every_role_has_a_user_of_its_own() {
        let users: std::collections::BTreeSet<_> =
            Unit::all().iter().map(|unit| unit.account().user).collect();
        assert_eq!(users.len(), Unit::all().len());
    }
}
