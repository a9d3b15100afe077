#!/bin/sh
# Makes what nobody should have to invent: passwords, the coordinator's master key, and
# certificates for Postgres and Redis. Runs once, before everything else, in a container without
# a network; each directory below is a volume that only its reader gets to see.
set -eu
umask 077
cd /run/mesh

# The volumes that bootstrap fills, for the user of our images.
chmod 0700 tokens/*
chown 65532:65532 tokens/*

readers="postgres redis coordinator socks console"
there=0
for reader in $readers; do
    if [ -e "$reader/complete" ]; then there=$((there + 1)); fi
done
if [ "$there" -eq 5 ]; then
    echo "secrets: all there"
    exit 0
fi
if [ "$there" -ne 0 ]; then
    echo "error: some volumes with secrets are gone, and the others do not fit new ones." >&2
    echo "Restore them, or start anew with: docker compose down -v" >&2
    exit 1
fi

# 256 random bits as text; no line end, since some readers take the file as it is.
password() { head -c 32 /dev/urandom | base64 | tr -d '\n=' | tr '+/' '-_'; }

password > coordinator/postgres-password
password > coordinator/redis-password
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > coordinator/master.key
cp coordinator/postgres-password postgres/password
password > console/password
password > socks/password
printf 'mesh:%s' "$(cat socks/password)" > socks/auth

# A certificate authority that signs two certificates; then its key is thrown away.
mkdir /tmp/ca
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
    -subj '/CN=Wonder Mesh, databases of this compose project' \
    -keyout /tmp/ca/key -out coordinator/databases-ca.crt 2>/dev/null
for host in postgres redis; do
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -subj "/CN=$host" -keyout "$host/server.key" -out /tmp/ca/request 2>/dev/null
    printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' \
        "$host" > /tmp/ca/extensions
    openssl x509 -req -in /tmp/ca/request -CA coordinator/databases-ca.crt -CAkey /tmp/ca/key \
        -set_serial "0x$(openssl rand -hex 16)" -days 3650 -extfile /tmp/ca/extensions \
        -out "$host/server.crt" 2>/dev/null
done
cp coordinator/databases-ca.crt redis/ca.crt
rm -rf /tmp/ca

cat > redis/redis.conf <<CONF
port 0
tls-port 6379
tls-cert-file /run/mesh/redis/server.crt
tls-key-file /run/mesh/redis/server.key
tls-ca-cert-file /run/mesh/redis/ca.crt
tls-auth-clients no
requirepass $(cat coordinator/redis-password)
dir /data
save ""
appendonly no
maxmemory 64mb
CONF
cp coordinator/redis-password redis/password

# The owners: the users of the official images, and that of ours.
owner() { : > "$1/complete"; chmod 0700 "$1"; chown -R "$2" "$1"; }
owner postgres 999:999
owner redis 999:999
owner socks 65532:65532
owner console 0:0
owner coordinator 65532:65532
echo "secrets: made"
