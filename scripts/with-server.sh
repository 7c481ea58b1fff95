#!/usr/bin/env bash
# Runs a command beside a server of its own, on a new embedded Postgres that is deleted at the end:
#
#   scripts/with-server.sh COMMAND ...
#
# PGMQ_GRPC_SERVER is the server's program; without it, the newest of this clone is built. The command finds the
# server's address in PGMQ_GRPC_TARGET and its process id in the file PGMQ_GRPC_SERVER_PID_FILE. A server that ends is
# started again at the same address, with the same data: a command that ends it by a signal sees a restart.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"

[[ $# -gt 0 ]] || die "usage: scripts/with-server.sh COMMAND ..."

if [[ -z ${PGMQ_GRPC_SERVER:-} ]]; then
  need_cc
  need_rust
  say "building the server" >&2
  (cd "$root" && env -u CARGO_TARGET_DIR cargo build --locked --quiet >&2)
  PGMQ_GRPC_SERVER="$root/target/debug/pgmq-grpc"
fi

place=$(mktemp -d)
# The embedded Postgres of root runs as another user.
chmod 755 "$place"
log="$place/server.log" pid_file="$place/server.pid" stopped="$place/stopped"
supervisor=

stop() {
  touch "$stopped"
  [[ ! -s $pid_file ]] || kill "$(<"$pid_file")" 2>/dev/null || true
  [[ -z $supervisor ]] || wait "$supervisor" 2>/dev/null || true
  rm -rf "$place"
}
trap stop EXIT
trap 'exit 130' INT TERM

# Starts servers, one after the other, until there is to be none. A port that was free a moment ago is free still.
supervise() {
  local server
  while [[ ! -e $stopped ]]; do
    "$PGMQ_GRPC_SERVER" --listen "$PGMQ_GRPC_TARGET" --data-dir "$place/data" --drain-timeout 5s \
      --log-format json >>"$log" 2>&1 &
    server=$!
    echo "$server" >"$pid_file"
    wait "$server" || true
  done
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null ||
    echo $((20000 + RANDOM % 10000))
}

export PGMQ_GRPC_SERVER PGMQ_GRPC_TARGET="127.0.0.1:$(free_port)" PGMQ_GRPC_SERVER_PID_FILE="$pid_file"
supervise &
supervisor=$!

for _ in {1..600}; do
  if "$PGMQ_GRPC_SERVER" health --target "$PGMQ_GRPC_TARGET" >/dev/null 2>&1; then
    status=0
    "$@" || status=$?
    exit "$status"
  fi
  kill -0 "$supervisor" 2>/dev/null || break
  sleep 0.2
done
tail -n 20 "$log" >&2
die "the server has not started within two minutes"
