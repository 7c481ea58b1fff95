#!/usr/bin/env bash
# Builds and starts the server, with the arguments given.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"

need_cc
need_rust
exec cargo run --manifest-path "$root/Cargo.toml" --release --locked -- "$@"
