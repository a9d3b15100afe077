//! What happens on a machine when a package comes and goes.
//!
//! What fails is said with the next command to type. A script that cannot do what the package needs
//! ends with an error, so that dpkg stops and tells; a service that does not start is not such a
//! case, since its configuration may be wrong and the package is installed all the same.

use super::packages::Unit;

/// Stops dpkg when a command fails. It goes on with `dpkg --configure -a`, or with what was typed.
const MUST: &str = r#"must() {
    if "$@" >/dev/null; then return; fi
    echo "error: \"$*\" failed; see above what stands in its way, then run: dpkg --configure -a" >&2
    exit 1
}
"#;

/// Makes the user, enables the unit unless the administrator disabled it, and starts it where systemd
/// runs. A role without a join token starts nothing: its unit's conditions say so.
pub(super) fn postinst(unit: &Unit) -> String {
    let Unit { program, .. } = unit;
    format!(
        r#"#!/bin/sh
set -e

unit=mesh-{program}.service

{MUST}
case "$1" in
configure | abort-upgrade | abort-deconfigure | abort-remove)
    must systemd-sysusers mesh-{program}.conf
    # Where the unit looks for its join token; newer versions of systemd make it at boot.
    must install -d -m 0700 /etc/credstore
    must deb-systemd-helper unmask "$unit"
    if deb-systemd-helper --quiet was-enabled "$unit"; then
        must deb-systemd-helper enable "$unit"
    else
        must deb-systemd-helper update-state "$unit"
    fi
    if [ -d /run/systemd/system ]; then
        must systemctl --system daemon-reload
        # An upgrade starts the new program in place of the old one.
        verb=start
        if [ -n "$2" ]; then verb=restart; fi
        if ! deb-systemd-invoke "$verb" "$unit" >/dev/null; then
            echo "warning: $unit did not start: journalctl -u $unit says why;" \
                "then run: systemctl $verb $unit" >&2
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

unit=mesh-{program}.service

if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    if ! deb-systemd-invoke stop "$unit" >/dev/null; then
        echo "error: $unit does not stop; run: systemctl kill $unit, then remove it again" >&2
        exit 1
    fi
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

{MUST}
if [ -d /run/systemd/system ]; then
    must systemctl --system daemon-reload
fi
if [ "$1" = remove ]; then
    must deb-systemd-helper mask "$unit"
fi
if [ "$1" = purge ]; then
    must deb-systemd-helper purge "$unit"
    must deb-systemd-helper unmask "$unit"
    rm -rf /var/lib/mesh/{program}
    rm -f /etc/credstore/mesh-{program}.join-token
    for dir in /var/lib/mesh /etc/mesh /etc/credstore; do
        [ ! -d "$dir" ] || rmdir --ignore-fail-on-non-empty "$dir"
    done
    # Nothing is left that belongs to it.
    if getent passwd {user} >/dev/null && ! userdel {user}; then
        echo "warning: the user {user} is left; end what runs as it: ps -u {user}," \
            "then run: userdel {user}" >&2
    fi
fi

exit 0
"#
    )
}
