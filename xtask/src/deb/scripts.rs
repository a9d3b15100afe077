//! What happens on a machine when a package comes and goes.

use super::packages::Unit;

/// Makes the user, enables the unit unless the administrator disabled it, and starts it where systemd
/// runs. A role without a join token starts nothing: its unit's conditions say so.
pub(super) fn postinst(unit: &Unit) -> String {
    let Unit { program, .. } = unit;
    format!(
        r#"#!/bin/sh
set -e

unit=mesh-{program}.service

case "$1" in
configure | abort-upgrade | abort-deconfigure | abort-remove)
    systemd-sysusers mesh-{program}.conf
    deb-systemd-helper unmask "$unit" >/dev/null || true
    if deb-systemd-helper --quiet was-enabled "$unit"; then
        deb-systemd-helper enable "$unit" >/dev/null || true
    else
        deb-systemd-helper update-state "$unit" >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        if [ -n "$2" ]; then
            deb-systemd-invoke restart "$unit" >/dev/null || true
        else
            deb-systemd-invoke start "$unit" >/dev/null || true
        fi
    fi
    ;;
esac

exit 0
"#
    )
}

/// Stops the unit before its program goes away.
pub(super) fn prerm(unit: &Unit) -> String {
    let Unit { program, .. } = unit;
    format!(
        r#"#!/bin/sh
set -e

if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop mesh-{program}.service >/dev/null || true
fi

exit 0
"#
    )
}

/// Removal keeps configuration, keys and state; purging leaves nothing.
pub(super) fn postrm(unit: &Unit) -> String {
    let Unit { program, user } = unit;
    format!(
        r#"#!/bin/sh
set -e

unit=mesh-{program}.service

if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = remove ]; then
    deb-systemd-helper mask "$unit" >/dev/null || true
fi
if [ "$1" = purge ]; then
    deb-systemd-helper purge "$unit" >/dev/null || true
    deb-systemd-helper unmask "$unit" >/dev/null || true
    rm -rf /var/lib/mesh/{program}
    rm -f /etc/credstore/mesh-{program}.join-token
    for dir in /var/lib/mesh /etc/mesh; do
        [ ! -d "$dir" ] || rmdir --ignore-fail-on-non-empty "$dir"
    done
    # Nothing is left that belongs to it.
    if getent passwd {user} >/dev/null; then
        userdel {user} || true
    fi
fi

exit 0
"#
    )
}
