#!/bin/bash
# A machine in a container: sshd, Cockpit and worker-agent, started in the order in which they
# depend on each other. When one of them ends, so does the container, and its restart policy
# starts all of them again.
#
#   MESH_HOSTNAME            the name to ask for; without it the name that the container's network
#                            gives it, without the project's, or else the host name
#   MESH_TOKEN_FILE          the join token, read when this machine has not joined yet
#   MESH_CONSOLE_PASSWORD_FILE
#                            the password of the user "mesh" for Cockpit; without it nobody can
#                            log in with a password
set -euo pipefail

state=/var/lib/mesh
agent_state=$state/worker-agent
export MESH_WORKER_AGENT__STATE_DIR=$agent_state
export MESH_WORKER_AGENT__CONSOLE__MODE=cockpit
export MESH_WORKER_AGENT__CONSOLE__RECHECK=1s
export MESH_WORKER_AGENT__SSH__MODE=sshd
export MESH_WORKER_AGENT__SSH__USER=mesh
export MESH_WORKER_AGENT__SSH__HOST_KEYS=$state/ssh/ssh_host_ed25519_key.pub

say() { echo "worker-node: $*" >&2; }

if [ "${1:-run}" = health ]; then
    worker-agent health >/dev/null || { say "the agent is not ready"; exit 1; }
    # The agent itself looks for Cockpit: it shows what people get at the gateway.
    worker-agent status | grep -q '^ *console *Cockpit (' || { say "Cockpit does not answer"; exit 1; }
    exit 0
fi
if [ "${1:-run}" != run ]; then
    exec "$@"
fi

node_name() {
    local name=${MESH_HOSTNAME:-} address
    if [ -z "$name" ]; then
        address=$(hostname -i | cut -d ' ' -f 1)
        if name=$(getent -s dns hosts "$address" | awk '{ print $2; exit }'); then
            name=${name%%.*}
            name=${name#"${COMPOSE_PROJECT_NAME:-}-"}
        else
            say "the network has no name for $address; this machine asks to be called $(hostname)"
            name=
        fi
    fi
    echo "${name:-$(hostname)}"
}

# --- what this machine keeps: its keys; passwords are set anew at each start
mkdir -p -m 0700 "$state/ssh"
if [ ! -s "$state/ssh/ssh_host_ed25519_key" ]; then
    ssh-keygen -q -t ed25519 -N '' -C '' -f "$state/ssh/ssh_host_ed25519_key"
fi
if [ -n "${MESH_CONSOLE_PASSWORD_FILE:-}" ]; then
    printf 'mesh:%s\n' "$(cat "$MESH_CONSOLE_PASSWORD_FILE")" | chpasswd
fi
rm -rf "/run/sshd.pid" && mkdir -p -m 0755 /run/sshd

name=$(node_name)

# --- the three programs
children=()
# Ends those that still run, and waits for all of them.
end_children() {
    local child
    trap '' TERM INT
    for child in "${children[@]}"; do
        kill -TERM "$child" 2>/dev/null || say "process $child has ended by itself"
    done
    wait
}
stop() {
    end_children
    exit 0
}
trap stop TERM INT

worker-agent run --hostname "$name" \
    --token-file "${MESH_TOKEN_FILE:?names the file with the join token}" &
children+=($!)
# The path at the gateway and the network's SSH authority come with the first netmap.
for _ in $(seq 300); do
    if worker-agent ssh trust >/dev/null 2>&1; then break; fi
    kill -0 "${children[0]}" 2>/dev/null || { wait "${children[0]}" || exit $?; exit 1; }
    sleep 0.2
done
worker-agent ssh trust >/dev/null
worker-agent console configure >/dev/null
/usr/sbin/sshd -D -e &
children+=($!)
/usr/lib/cockpit/cockpit-ws --no-tls --port 9090 --address 127.0.0.1 &
children+=($!)
say "$name is up: $(sed -n 's/^UrlRoot *= *//p' /etc/cockpit/cockpit.conf)/ at the gateway"

code=0
wait -n "${children[@]}" || code=$?
say "a program ended with $code; the machine goes down"
end_children
exit "$((code == 0 ? 1 : code))"
