#!/usr/bin/env bash
# Records histories of disturbed servers for so many minutes, and checks them: `scripts/soak.sh 10`.
#
# One server, two servers, two servers on a Postgres that crashes, and two whose primary is lost take turns, two at a time,
# each for the whole time; so it all takes twice as long. The last line of each says how many calls of each kind there were,
# what was done to the servers, and how many violations were found.
# PGMQ_GRPC_TEST_SEED repeats a run's random decisions.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

minutes=${1:-10}
[[ $minutes =~ ^[1-9][0-9]*$ ]] || die "MINUTES must be a whole number from 1 on, and not '$minutes'"

need_cc
need_rust
say "histories for $minutes min"
status=0
PGMQ_GRPC_TEST_SECONDS=$((minutes * 60)) cargo test --locked --test it -- history::live --nocapture || status=$?
if [[ $status == 0 ]]; then
  say "no promise was broken"
else
  say "a promise was broken, or a run did not end; whole histories are in target/history"
fi
exit "$status"
