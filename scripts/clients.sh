#!/usr/bin/env bash
# Has the clients do one of their words, one language after the other: scripts/clients.sh WORD [LANGUAGE ...].
#
# The words are those of clients/LANGUAGE/run.sh: proto, lint, test, bench. A language whose toolchain is not here is
# left out aloud, and fails in CI. The last line is the sum: `N passed, N failed`, of tests or else of languages.
set -euo pipefail

# shellcheck source=scripts/clients-list.sh
source "$(dirname "${BASH_SOURCE[0]}")/clients-list.sh"
cd "$root"

word=${1:-}
case "$word" in
  proto | lint | test | bench) shift ;;
  *) die "usage: scripts/clients.sh proto|lint|test|bench [LANGUAGE ...]" ;;
esac

passed=0 failed=0 skipped=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT

choose_languages "$@"
for language in "${here[@]}"; do
  started=$SECONDS ok=1 bad=0
  say "$language: clients/$language/run.sh $word"
  "clients/$language/run.sh" "$word" 2>&1 | tee "$output" || ok=0 bad=1
  if [[ $word == test ]]; then
    count_sum "$output" "$bad"
  else
    passed=$((passed + ok)) failed=$((failed + bad))
  fi
  say "$language: $word: $ok passed, $bad failed, in $((SECONDS - started)) s"
done
say_sum
