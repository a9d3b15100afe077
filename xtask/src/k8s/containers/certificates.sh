#!/bin/sh
# An authority, another one, and certificates for two databases: sound ones, and of each fault one.
#
#   certificates.sh POSTGRES_HOST REDIS_HOST
#
# Writes into the working directory; the keys are for the user 999 of the databases' images.
set -eu

new_key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"

authority() { # NAME
    # shellcheck disable=SC2086
    openssl req -x509 $new_key -days 2 -subj "/CN=$1" -keyout "$1.key" -out "$1.crt"
}

certificate() { # FILE AUTHORITY HOST
    # shellcheck disable=SC2086
    openssl req -new $new_key -subj "/CN=$3" -keyout "$1.key" -out request
    printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' \
        "$3" > extensions
    openssl x509 -req -in request -CA "$2.crt" -CAkey "$2.key" \
        -set_serial "0x$(openssl rand -hex 16)" -days 2 -extfile extensions -out "$1.crt"
    chown 999:999 "$1.key"
    chmod 0600 "$1.key"
}

authority known
authority stranger
for pair in "postgres $1" "redis $2"; do
    database=${pair%% *}
    host=${pair#* }
    certificate "$database-sound" known "$host"
    certificate "$database-stranger" stranger "$host"
    certificate "$database-other-name" known "other.$host"
done
rm -f known.key stranger.key request extensions
