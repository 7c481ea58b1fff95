#!/usr/bin/env bash
# Brings the contract into form, lints it, and generates code from it: the server's into cargo's directory, the clients'
# where it is committed.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

need_buf || die "buf is missing: install npm, or buf $buf_version itself"
buf format proto --write
buf lint proto
need_cc
need_rust
cargo check --locked
scripts/clients.sh proto
