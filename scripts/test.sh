#!/usr/bin/env bash
# Runs the tests: all runs, or those named, such as `scripts/test.sh unit 18`.
#
#   unit     unit tests, the tidy test, and the commands of the README
#   18       the integration suite on Postgres 18 and the newest pgmq
#   14       the same on Postgres 14, the oldest that is supported, with queues laid out as pgmq makes them
#   pgmq     the same on Postgres 18 and pgmq 1.11
#   partman  the tests of partitioned queues, on an installed Postgres that has pg_partman
#   clients  each client's own tests, the conformance suite through all of them, and the examples
#
# A failed run does not keep the others from running. The last line is the sum of all runs.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

runs=("$@")
[[ ${#runs[@]} -gt 0 ]] || runs=(unit 18 14 pgmq partman clients)
for run in "${runs[@]}"; do
  case "$run" in
    unit | 18 | 14 | pgmq | partman | clients) ;;
    *) die "there is no run '$run'; there are: unit 18 14 pgmq partman clients" ;;
  esac
done

passed=0 failed=0 skipped=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT

# Counts something that cannot run here as skipped, or in CI as failed.
left_out() {
  if skip "$1"; then skipped=$((skipped + 1)); else failed=$((failed + 1)); fi
}

# Runs cargo test and adds up its results. Tests that say SKIPPED have passed as far as cargo knows.
cargo_test() {
  local title=$1 started=$SECONDS status=0 ok bad ignored unable
  shift
  say "$title: cargo test $*"
  cargo test --locked "$@" 2>&1 | tee "$output" || status=1
  read -r ok bad ignored unable < <(awk '
    /^test result: / { ok += $4; bad += $6; ignored += $8 }
    /^SKIPPED /      { unable++ }
    END              { print ok + 0, bad + 0, ignored + 0, unable + 0 }' "$output")
  # Nothing bad was counted where the build failed, a test ended the process, or no test has the name.
  [[ $status == 0 && $((ok + ignored)) -gt 0 || $bad -gt 0 ]] || bad=1
  passed=$((passed + ok - unable)) failed=$((failed + bad)) skipped=$((skipped + ignored + unable))
  say "$title: $((ok - unable)) passed, $bad failed, $((ignored + unable)) skipped, in $((SECONDS - started)) s"
}

# The integration suite. The results of tests that passed are shown too: rates, and what was skipped.
suite() {
  local title=$1
  shift
  cargo_test "$title" --test it -- --show-output "$@"
}

run_unit() {
  local targets=(--lib --bins --test tidy)
  if has grpcurl; then targets+=(--test readme); fi
  cargo_test "unit tests" --no-fail-fast "${targets[@]}"
  cargo_test "unit tests of the benchmark" --manifest-path bench/Cargo.toml --target-dir target
}

run_partman() {
  if need_partman; then
    # The newest that has pg_partman, though a newer Postgres without it may be installed too.
    PATH="$(postgres_with_partman):$PATH" PGMQ_GRPC_TEST_POSTGRES=system suite "pg_partman" partition
  else
    left_out "the tests of partitioned queues, because no Postgres with pg_partman is installed"
  fi
}

# Runs a script of the clients, whose last line is its sum.
script() {
  local title=$1 started=$SECONDS status=0 ok bad unable
  shift
  say "$title: $*"
  "$@" 2>&1 | tee "$output" || status=1
  read -r ok bad unable < <(awk '
    /^[0-9]+ passed, [0-9]+ failed/ { ok = $1; bad = $3; unable = $5 }
    END                             { print ok + 0, bad + 0, unable + 0 }' "$output")
  [[ $status == 0 || $bad -gt 0 ]] || bad=1
  passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + unable))
  say "$title: $ok passed, $bad failed, $unable skipped, in $((SECONDS - started)) s"
}

run_clients() {
  cargo build --locked
  export PGMQ_GRPC_SERVER="$root/target/debug/pgmq-grpc"
  script "clients" scripts/clients.sh test
  script "conformance" scripts/conformance.sh
  script "examples" scripts/examples.sh
}

need_cc
need_rust
need_grpcurl || left_out "the commands of the README, because grpcurl is missing (it needs go)"
need_openssl || left_out "the tests of TLS to Postgres, because openssl is missing"
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-8}"
say "$(cargo --version), $(rustc --version); runs: ${runs[*]}"

for run in "${runs[@]}"; do
  case "$run" in
    unit) run_unit ;;
    # The downloaded Postgres has no pg_partman; the run partman is there for what needs it.
    18) PGMQ_GRPC_TEST_POSTGRES=18 suite "Postgres 18, tuned layout" --skip partitioned:: ;;
    # Histories are about the servers, and one Postgres is enough for that.
    14)
      PGMQ_GRPC_TEST_POSTGRES=14 PGMQ_GRPC_TEST_LAYOUT=pgmq \
        suite "Postgres 14, pgmq's layout" --skip partitioned:: --skip history::
      ;;
    pgmq) PGMQ_GRPC_TEST_POSTGRES=18 PGMQ_GRPC_TEST_PGMQ=1.11 suite "pgmq 1.11" --skip partitioned:: --skip history:: ;;
    partman) run_partman ;;
    clients) run_clients ;;
  esac
done

summary="$passed passed, $failed failed"
[[ $skipped == 0 ]] || summary+=", $skipped skipped"
echo "$summary"
[[ $failed == 0 ]]
