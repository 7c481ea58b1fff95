#!/usr/bin/env bash
# Measures the server against its peers: scripts/bench.sh [--quick] [--only WORD,WORD] [--rounds N] ...
#
# Installs the peers first: Debian's packages as root, everything else below target/bench. What cannot be installed is
# reported as missing, and the rest is measured all the same. SERVER=PATH measures a program that is built already.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

bench="$root/target/bench"
nats_version=v2.14.6
pgmq_py_version=1.1.4

# Debian's servers would start by themselves and take processor time and ports.
without_starting() {
  local policy=/usr/sbin/policy-rc.d made= status=0
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes
  fi
  "$@" || status=$?
  [[ -z $made ]] || rm -f "$policy"
  return "$status"
}

has_pgbench() { has pgbench || compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null; }

need_pgbench() {
  has_pgbench && return
  without_starting debian postgresql postgresql-contrib && has_pgbench
}

need_rabbitmq() {
  [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] && return
  without_starting debian rabbitmq-server
}

need_nats() {
  [[ -x $bench/bin/nats-server ]] && return
  has go || return 1
  say "installing the NATS server $nats_version by go into target/bench"
  GOBIN="$bench/bin" go install "github.com/nats-io/nats-server/v2@$nats_version" >&2
}

need_pgmq_py() {
  "$bench/venv/bin/python" -c 'import pgmq, asyncpg, psycopg' 2>/dev/null && return
  say "installing pgmq-py $pgmq_py_version from PyPI into target/bench"
  if ! python3 -m venv "$bench/venv"; then
    debian python3-venv && python3 -m venv "$bench/venv" || return 1
  fi
  "$bench/venv/bin/pip" install --quiet --disable-pip-version-check "pgmq[async]==$pgmq_py_version" >&2
}

need_cc
need_rust
mkdir -p "$bench"
need_pgbench || warn "pgbench is missing (Debian: apt-get install postgresql-contrib); going on without it"
need_rabbitmq || warn "RabbitMQ is missing (Debian: apt-get install rabbitmq-server); going on without it"
need_nats || warn "the NATS server is missing (it needs go); going on without it"
need_pgmq_py || warn "pgmq-py is missing (it needs python3 with venv and PyPI); going on without it"

if [[ -z ${SERVER:-} ]]; then
  say "building the server"
  cargo build --release --locked
  SERVER="$root/target/release/pgmq-grpc"
fi
say "building the harness with the peers' clients"
cargo build --release --locked --manifest-path bench/Cargo.toml --target-dir "$bench/build" --features peers
exec "$bench/build/release/pgmq-grpc-bench" run --server "$SERVER" --output "$bench" "$@"
