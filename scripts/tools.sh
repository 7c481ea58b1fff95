#!/usr/bin/env bash
# Finds the tools that the other scripts need, and installs what is missing, saying so.
#
# Sourced, it gives functions; run, it prepares everything at once. Debian's packages are installed only for root.
# Everything else goes into target/tools, but for Rust, which goes where rustup puts it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools="$root/target/tools"
export PATH="$tools/bin:$tools/node_modules/.bin:$PATH"

buf_version=1.75.0
grpcurl_version=v1.9.3
cargo_deny_version=0.20.2

say() { printf '==> %s\n' "$*"; }
warn() { printf '!!! %s\n' "$*" >&2; }
die() { warn "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
in_ci() { [[ "${CI:-}" == true ]]; }

# Tells that something cannot be checked here. Fails in CI, where everything has to be.
skip() {
  if in_ci; then
    warn "missing in CI: $*"
  else
    warn "skipped: $*"
  fi
  ! in_ci
}

# Whether the version $1 is $2 or newer.
at_least() { [[ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" == "$2" ]]; }

fresh_package_lists() {
  [[ -z "${package_lists_are_fresh:-}" ]] || return 0
  apt-get update -qq || warn "apt-get update failed; going on with the package lists that are here"
  package_lists_are_fresh=yes
}

# Installs packages of Debian. Fails where that is not possible.
debian() {
  [[ "$(id -u)" == 0 ]] && has apt-get || return 1
  say "installing Debian's package(s): $*"
  fresh_package_lists
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends --no-upgrade "$@" >&2
}

need_cc() {
  has cc || debian gcc libc6-dev ||
    die "a C compiler is needed: install one (Debian: apt-get install gcc libc6-dev; macOS: xcode-select --install)"
}

# The oldest Rust that builds the project, from Cargo.toml.
oldest_rust() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml"; }

# Whether the cargo in use runs and is new enough.
rust_is_usable() {
  local version
  version=$(cd "$root" && cargo --version 2>/dev/null | awk '{print $2}') || return 1
  [[ -n "$version" ]] && at_least "$version" "$(oldest_rust)"
}

need_rust() {
  local cargo_bin="${CARGO_HOME:-$HOME/.cargo}/bin"
  [[ -x "$cargo_bin/cargo" ]] && export PATH="$cargo_bin:$PATH"
  rust_is_usable && return
  # rustup is here, but cannot download the pinned version: another installed one that is new enough will do.
  if has rustup && RUSTUP_TOOLCHAIN=stable rust_is_usable; then
    warn "the pinned Rust cannot be had; going on with the installed stable one"
    export RUSTUP_TOOLCHAIN=stable
    return
  fi
  has cargo && say "the Rust found here is older than $(oldest_rust), or does not run"
  rust_from_rustup || rust_from_debian ||
    die "Rust $(oldest_rust) or newer is needed: install it from https://rustup.rs and run this again"
}

rust_from_rustup() {
  has curl || debian curl ca-certificates || return 1
  local installer address
  installer=$(mktemp)
  for address in https://sh.rustup.rs https://static.rust-lang.org/rustup/rustup-init.sh; do
    curl --proto '=https' --tlsv1.2 -fsS --connect-timeout 10 -o "$installer" "$address" || continue
    say "installing Rust by rustup from $address, into ${CARGO_HOME:-$HOME/.cargo}; shell profiles stay as they are"
    sh "$installer" -y -q --profile minimal --default-toolchain "$(pinned_rust)" --no-modify-path >&2 || continue
    rm -f "$installer"
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    hash -r
    rust_is_usable && return
  done
  rm -f "$installer"
  warn "rustup cannot be reached"
  return 1
}

pinned_rust() { sed -n 's/^channel = "\(.*\)"$/\1/p' "$root/rust-toolchain.toml"; }

# Debian's own Rust, or the newer one that it carries for browsers.
rust_from_debian() {
  [[ "$(id -u)" == 0 ]] && has apt-get || return 1
  fresh_package_lists
  local suffix offered
  for suffix in "" -web; do
    offered=$(apt-cache policy "rustc$suffix" | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    at_least "${offered:-0}" "$(oldest_rust)" || continue
    debian "cargo$suffix" "rustc$suffix" || continue
    hash -r
    rust_is_usable && return
  done
  return 1
}

# For lints: not everybody's cargo has both.
need_rust_components() {
  if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
    return
  fi
  if has rustup; then
    say "adding clippy and rustfmt by rustup"
    rustup component add clippy rustfmt >&2 && return
  fi
  debian rust-web-clippy rustfmt-web || die "cargo fmt and cargo clippy are needed: rustup component add clippy rustfmt"
}

# The suite makes certificates with it. Fails where it cannot be had.
need_openssl() {
  has openssl || debian openssl
}

# Runs the commands of the README. Fails where it cannot be had.
need_grpcurl() {
  has grpcurl && return
  has go || return 1
  say "installing grpcurl $grpcurl_version by go into target/tools"
  GOBIN="$tools/bin" go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version" >&2
}

# Checks the contract. Fails where it cannot be had.
need_buf() {
  has buf && return
  has npm || return 1
  say "installing buf $buf_version by npm into target/tools"
  mkdir -p "$tools"
  npm install --prefix "$tools" --silent --no-audit --no-fund --no-save "@bufbuild/buf@$buf_version" >&2
}

# Checks licences and sources. Fails where it cannot be had.
need_cargo_deny() {
  has cargo-deny && return
  say "building cargo-deny $cargo_deny_version into target/tools (some minutes, once)"
  cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" "cargo-deny@$cargo_deny_version" >&2 ||
    return 1
  rm -rf "$tools/build"
}

# The bin directory of an installed Postgres that has pg_partman, if there is one.
postgres_with_partman() {
  local control
  for control in /usr/share/postgresql/*/extension/pg_partman.control; do
    [[ -f "$control" ]] || continue
    control=${control#/usr/share/postgresql/}
    [[ -x "/usr/lib/postgresql/${control%%/*}/bin/postgres" ]] && echo "/usr/lib/postgresql/${control%%/*}/bin"
  done | sort -V | tail -n 1
}

# A Postgres with pg_partman, which downloaded ones lack. Fails where it cannot be had.
need_partman() {
  [[ -n "$(postgres_with_partman)" ]] && return
  [[ "$(id -u)" == 0 ]] && has apt-get || return 1
  debian postgresql-common || return 1
  local newest
  newest=$(apt-cache search --names-only '^postgresql-[0-9]+-partman$' | awk '{print $1}' | sort -V | tail -n 1)
  [[ -n "$newest" ]] || return 1
  # The packages are wanted, and not a server that starts with the machine.
  local no_cluster=/etc/postgresql-common/createcluster.d/pgmq-grpc-tests.conf
  mkdir -p "${no_cluster%/*}"
  echo 'create_main_cluster = false' >"$no_cluster"
  debian "${newest%-partman}" "$newest" || { rm -f "$no_cluster"; return 1; }
  rm -f "$no_cluster"
  [[ -n "$(postgres_with_partman)" ]]
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
  need_cc
  need_rust
  need_rust_components
  need_openssl || skip "openssl is missing" || exit 1
  need_grpcurl || skip "grpcurl is missing (it needs go)" || exit 1
  need_buf || skip "buf is missing (it needs npm)" || exit 1
  need_partman || skip "no Postgres with pg_partman" || exit 1
  say "the tools are ready; those in target/tools are found by the scripts"
fi
