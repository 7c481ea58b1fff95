#!/usr/bin/env bash
# Checks the dependencies in all that cargo-deny knows. Its database of vulnerabilities comes from the network, which is
# why scripts/lint.sh leaves that part out.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

need_cc
need_rust
need_cargo_deny || die "cargo-deny cannot be built"
cargo deny --locked check
