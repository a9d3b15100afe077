//! The users that roles run as: systemd-sysusers makes them, purging a role removes its own.

use std::ffi::OsStr;
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
    let of_users = users_with_group(&places.accounts("passwd"), id_of(&line))?;
    if !of_users.is_empty() {
        let users = of_users.join(",");
        eprintln!("kept the group {group}, which is the first group of: {users}");
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

/// The lines of a file such as /etc/passwd; an image may have none.
fn lines(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The line about `name` in a file such as /etc/passwd.
fn entry(path: &Path, name: &str) -> Result<Option<String>> {
    let mut lines = lines(path)?.into_iter();
    Ok(lines.find(|line| line.split(':').next() == Some(name)))
}

/// The number in a line of /etc/passwd or /etc/group; without one it is like nobody's.
fn id_of(line: &str) -> &str {
    line.split(':').nth(2).unwrap_or_default()
}

/// Who has this group as the first of theirs, which /etc/group does not tell.
fn users_with_group(passwd: &Path, group_id: &str) -> Result<Vec<String>> {
    let mut users = lines(passwd)?;
    users.retain(|line| line.split(':').nth(3) == Some(group_id));
    for user in &mut users {
        user.truncate(user.find(':').unwrap_or(user.len()));
    }
    Ok(users)
}

/// A unit, or a drop-in of one, that has the user or group of this role and is not this role's own:
/// another role's, or the administrator's.
pub(super) fn unit_that_uses(places: &Places, unit: &Unit) -> Result<Option<PathBuf>> {
    let name = unit.account().user;
    let user = entry(&places.accounts("passwd"), name)?.unwrap_or_default();
    let group = entry(&places.accounts("group"), name)?.unwrap_or_default();
    let own = fs::canonicalize(places.unit(unit)).ok();
    let own_drop_ins = format!("{}.d", unit.name());
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in places.unit_directories().iter().flat_map(|dir| below(dir)) {
        let path = entry.path();
        match path.extension().and_then(OsStr::to_str) {
            Some("service") => {
                // By another name, too; what is kept of a role has no unit of its own.
                let is_own = own.is_some() && fs::canonicalize(&path).ok() == own;
                paths.extend((!is_own).then_some(path));
            }
            // Directories of drop-ins are flat.
            Some("d") if entry.file_name() != own_drop_ins.as_str() => {
                let drop_ins = below(&path).map(|drop_in| drop_in.path());
                paths.extend(drop_ins.filter(|path| path.extension() == Some("conf".as_ref())));
            }
            _ => {}
        }
    }
    Ok(paths.into_iter().find(|path| {
        fs::read_to_string(path)
            .is_ok_and(|text| is_used_by(&text, name, id_of(&user), id_of(&group)))
    }))
}

/// Whether a unit has the user, or the group of the same name, by its name or number.
fn is_used_by(unit: &str, name: &str, user_id: &str, group_id: &str) -> bool {
    let unit = unit.replace("\\\n", " ");
    let mut settings = unit.lines().filter_map(|line| line.split_once('='));
    settings.any(|(key, value)| {
        let id = match key.trim() {
            "User" => user_id,
            "Group" | "SupplementaryGroups" => group_id,
            _ => return false,
        };
        value
            .split_whitespace()
            .any(|word| word == name || word == id)
    })
}

/// What runs as this user, such as `4711 (coordinator)`.
pub(super) fn processes_of_user(places: &Places, user: &str) -> Result<Vec<String>> {
    match entry(&places.accounts("passwd"), user)? {
        Some(line) => processes(&places.processes(), id_of(&line)),
        None => Ok(Vec::new()),
    }
}

/// By any of the four user ids that a process has.
fn processes(dir: &Path, user_id: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|id| id.parse::<u32>().ok())
        else {
            continue;
        };
        // One that ended meanwhile has none.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let value = |key: &str| {
            let found = status.lines().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_default().trim()
        };
        if value("Uid:").split_whitespace().any(|id| id == user_id) {
            found.push(format!("{id} ({})", value("Name:")));
        }
    }
    Ok(found)
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

    #[test]
    fn a_unit_uses_a_user_by_name_or_number_and_by_its_group() {
        let is_used = |unit: &str| is_used_by(unit, "mesh-relay", "997", "996");
        for unit in [
            "[Service]\nUser=mesh-relay\n",
            " User = mesh-relay ",
            "User=997",
            "Group=mesh-relay",
            "Group = 996",
            "SupplementaryGroups=adm mesh-relay",
            "SupplementaryGroups=adm \\\n  996 \\\n  www-data",
        ] {
            assert!(is_used(unit), "{unit}");
        }
        for unit in [
            "",
            "User=",
            "User=mesh-relay-2",
            "User=996",
            "Group=997",
            "# User=mesh-relay",
            "Description=User mesh-relay",
            "Environment=User=mesh-relay",
        ] {
            assert!(!is_used(unit), "{unit}");
        }
        // Where there is no such user, an empty setting is still nobody.
        assert!(!is_used_by("User=\nGroup=", "mesh-relay", "", ""));
    }

    #[test]
    fn processes_are_found_by_any_of_their_user_ids() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, status) in [
            ("17", "Name:\trelay\nUid:\t997\t997\t997\t997\n"),
            ("18", "Name:\tsu\nUid:\t0\t0\t997\t0\n"),
            ("19", "Name:\tinit\nUid:\t0\t0\t0\t0\nGid:\t997\n"),
            ("self", "Name:\trelay\nUid:\t997\t997\t997\t997\n"),
        ] {
            let process = dir.path().join(name);
            fs::create_dir(&process).expect("made");
            fs::write(process.join("status"), status).expect("written");
        }
        // It ended while one looked.
        fs::create_dir(dir.path().join("20")).expect("made");
        let mut found = processes(dir.path(), "997").expect("read");
        found.sort();
        assert_eq!(found, ["17 (relay)", "18 (su)"]);

        let this = nix::unistd::geteuid().to_string();
        let found = processes(Path::new("/proc"), &this).expect("read");
        let own = format!("{} (", std::process::id());
        assert!(found.iter().any(|one| one.starts_with(&own)), "{found:?}");
    }

    #[test]
    fn a_group_is_known_by_those_who_have_it_as_their_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let passwd = dir.path().join("passwd");
        let guest = "guest:x:1000:998::/:/bin/sh";
        fs::write(&passwd, format!("root:x:0:0:::\n{MADE}\n{guest}\n")).expect("written");
        let users = users_with_group(&passwd, "998").expect("read");
        assert_eq!(users, ["mesh-relay", "guest"]);
        assert!(users_with_group(&passwd, "1000").expect("read").is_empty());
    }
}
