#!/bin/bash
# The first start of the stand-in: a cluster with one superuser, whose name, password and database
# come from the variables that the original image reads.
set -euo pipefail

if [ "${1:-}" != postgres ]; then
    exec "$@"
fi

from_file() {
    local twin="${1}_FILE"
    if [ -n "${!twin:-}" ]; then
        printf -v "$1" '%s' "$(cat "${!twin}")"
    fi
}
from_file POSTGRES_USER
from_file POSTGRES_PASSWORD
from_file POSTGRES_DB
user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo 'error: set POSTGRES_PASSWORD_FILE' >&2
        exit 1
    fi
    mkdir -p "$PGDATA"
    chmod 0700 "$PGDATA"
    initdb --username="$user" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") \
        --auth-local=trust --auth-host=trust >/dev/null
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    if [ "$database" != postgres ]; then
        # Only on the socket: nobody gets in before the database is there.
        pg_ctl --wait --silent -o "-c listen_addresses=''" start >/dev/null
        createdb --username="$user" "$database"
        pg_ctl --wait --silent --mode=fast stop
    fi
fi
unset POSTGRES_PASSWORD
exec "$@" -c 'listen_addresses=*'
