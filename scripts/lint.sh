#!/usr/bin/env bash
# Checks form and lints of code, docs, contract, scripts and dependencies. A failed check does not hide the others.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

failures=()

check() {
  local title=$1 started=$SECONDS
  shift
  say "$title: $*"
  if "$@"; then
    say "$title: ok, in $((SECONDS - started)) s"
  else
    warn "$title: failed, in $((SECONDS - started)) s"
    failures+=("$title")
  fi
}

left_out() { skip "$1" || failures+=("$1"); }

# The docs of private items too: they are what contributors read.
docs() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items; }

contract() {
  check "contract lint" buf lint proto
  check "contract format" buf format proto --diff --exit-code
  local release
  release=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
  if [[ -n "$release" ]]; then
    check "contract compatibility" buf breaking proto --against ".git#tag=$release,subdir=proto"
  else
    say "contract compatibility: there is no release yet to compare with"
  fi
}

# A tool that was called by hand can leave its output where no line of .gitignore expects it.
nothing_built_is_kept() {
  local built
  built=$(git ls-files | grep -E '(^|/)(target|node_modules|__pycache__)/' | head -5)
  [[ -z $built ]] || { printf '%s\n' "$built"; return 1; }
}

# Bash reads one file at a time.
every_script_parses() {
  local script
  for script in scripts/*.sh clients/*/run.sh .ci/run; do bash -n "$script" || return 1; done
}

need_cc
need_rust
need_rust_components

check "format" cargo fmt --check
check "clippy" cargo clippy --locked --all-targets -- -D warnings
# The harness of the benchmark is a workspace of its own; the clients of its peers are not built for this.
bench=(--manifest-path bench/Cargo.toml)
check "format of the benchmark" cargo fmt "${bench[@]}" --check
check "clippy of the benchmark" cargo clippy --locked "${bench[@]}" --target-dir target --all-targets -- -D warnings
check "docs" docs
if need_buf; then contract; else left_out "the contract's lints, because buf is missing (it needs npm)"; fi
if need_cargo_deny; then
  check "dependencies" cargo deny --locked check bans licenses sources
else
  left_out "the dependencies' licences and sources, because cargo-deny is missing"
fi
check "clients" scripts/clients.sh lint
check "nothing that was built is in the repository" nothing_built_is_kept
check "scripts" every_script_parses

if [[ ${#failures[@]} -gt 0 ]]; then
  warn "failed: $(printf '%s; ' "${failures[@]}" | sed 's/; $//')"
  exit 1
fi
say "all checks passed"
