#!/usr/bin/env bash
# Runs the examples of languages, or of all five, and then lets those share a queue: scripts/examples.sh [LANGUAGE ...]
#
# The server is the one at PGMQ_GRPC_TARGET, or one of their own. The last line is the sum: `N passed, N failed`.
set -euo pipefail

# shellcheck source=scripts/clients-list.sh
source "$(dirname "${BASH_SOURCE[0]}")/clients-list.sh"
cd "$root"

[[ -n ${PGMQ_GRPC_TARGET:-} ]] || exec scripts/with-server.sh "$0" "$@"

orders=20
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

call() { grpcurl -plaintext -d "$2" "$PGMQ_GRPC_TARGET" "pgmq.v1.$1"; }

length() { call QueueService/GetQueueMetrics "{\"queue\": \"$1\", \"include_archive\": true}" | sed -n "s/^ *\"$2\": \"\([0-9]*\)\".*/\1/p" | grep . || echo 0; }

# Runs the example of a language in a role.
run() { EXAMPLE_ROLE=$2 ORDERS_QUEUE=$3 "clients/$1/run.sh" example >"$logs/$1-$2" 2>&1; }

example() {
  say "$1: its example"
  local status=0
  run "$1" all "orders_of_$1" || status=1
  cat "$logs/$1-all"
  return "$status"
}

# Every language sends orders into one queue, and every language works on it at the same time.
together() {
  say "one queue for ${here[*]}"
  local language pid status=0 pids=()
  call QueueService/CreateQueue '{"queue": "orders_failed"}' >/dev/null
  call QueueService/CreateQueue \
    '{"queue": "orders", "policy": {"dead_letter": {"queue": "orders_failed", "max_receives": 5}, "retry_backoff": {"minimum": "0.1s", "maximum": "1s"}}}' >/dev/null
  for role in intake worker; do
    pids=()
    for language in "${here[@]}"; do
      run "$language" "$role" orders &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    for language in "${here[@]}"; do sed "s/^/$language $role: /" "$logs/$language-$role"; done
  done
  local sent=$((orders * ${#here[@]})) archived left dead
  archived=$(length orders archiveLength) left=$(length orders queueLength) dead=$(length orders_failed queueLength)
  say "$sent sent, $archived archived, $dead dead letters, $left left"
  [[ $status == 0 && $archived == $((sent - ${#here[@]})) && $dead == "${#here[@]}" && $left == 0 ]]
}

passed=0 failed=0 skipped=0
count() { if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && warn "failed: $*"; fi; }

choose_languages "$@"
for language in "${here[@]}"; do count example "$language"; done
if [[ ${#here[@]} -gt 1 ]]; then
  if need_grpcurl; then
    count together
  elif skip "the examples on one queue, because grpcurl is missing (it needs go)"; then
    skipped=$((skipped + 1))
  else
    failed=$((failed + 1))
  fi
fi
say_sum
