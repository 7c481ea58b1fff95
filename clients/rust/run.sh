#!/usr/bin/env bash
# What the Rust client needs; clients/README.md says what each word does.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/tools.sh"

here="$root/clients/rust"
self="$here/run.sh"
built="$root/target/clients-rust"
installed="$built/installed"

# Runs the same word beside a server of its own, where there is none.
with_server() {
  [[ -n ${PGMQ_GRPC_TARGET:-} ]] || exec "$root/scripts/with-server.sh" "$self" "$@"
}

need() {
  need_cc
  need_rust
  # Not before a server is there: with-server.sh may have to build that, elsewhere.
  export CARGO_TARGET_DIR="$built"
  cd "$here"
}

# The package as it is published, unpacked, beside the tests that use it.
install_package() {
  cargo package --locked --package pgmq-grpc-client --no-verify --allow-dirty --quiet
  rm -rf "$installed"
  mkdir -p "$installed"
  tar -xzf "$built"/package/pgmq-grpc-client-[0-9]*.crate -C "$installed"
  mv "$installed"/pgmq-grpc-client-* "$installed/client"
  cp -r suite "$installed/suite"
  sed -i.bak 's|path = "\.\."|path = "../client"|' "$installed/suite/Cargo.toml"
  sed -i.bak 's|"\.\./\.\./README\.md"|"../../client/README.md"|' "$installed/suite/src/lib.rs"
  # The dependencies as they are locked here, so that nothing is built twice.
  cp Cargo.lock "$installed/Cargo.lock"
  printf '[workspace]\nresolver = "3"\nmembers = ["suite"]\n\n[profile.dev]\ndebug = "line-tables-only"\n' >"$installed/Cargo.toml"
}

# The sum of what cargo test has printed.
sum_up() {
  awk '
    { print }
    /^test result:/ { passed += $4; failed += $6 }
    END {
      if (passed + failed == 0) failed = 1
      printf "%d passed, %d failed\n", passed, failed
      exit failed > 0
    }'
}

case "${1:-}" in
  proto)
    say "the build of the Rust client makes its code from proto/, which is a link to the contract"
    [[ $(readlink "$here/proto") == ../../proto ]] || ln -sfn ../../proto "$here/proto"
    ;;
  lint)
    need
    need_rust_components
    [[ $(readlink proto) == ../../proto ]] || die "clients/rust/proto is no link to the contract: run clients/rust/run.sh proto"
    cmp LICENSE "$root/LICENSE" || die "clients/rust/LICENSE is not the project's"
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets --features tls -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --package pgmq-grpc-client --no-deps --features tls
    ;;
  test)
    with_server "$@"
    need
    install_package
    cd "$installed"
    cargo test --quiet --package suite --no-fail-fast 2>&1 | sum_up
    ;;
  conformance)
    with_server "$@"
    need
    cargo build --locked --quiet --package conformance || { echo "0 passed, 1 failed"; exit 1; }
    exec "$built/debug/conformance"
    ;;
  example)
    with_server "$@"
    need
    exec cargo run --locked --quiet --package order-worker
    ;;
  bench)
    with_server "$@"
    need
    exec cargo run --locked --quiet --release --package suite --bin bench
    ;;
  *)
    die "usage: clients/rust/run.sh proto | lint | test | conformance | example | bench"
    ;;
esac
