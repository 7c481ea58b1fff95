#!/usr/bin/env bash
# Builds, checks and runs the TypeScript client: see ../README.md for the words.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=../../scripts/tools.sh
source ../../scripts/tools.sh
here=$PWD
# Where the package is installed as its users install it, and what is compiled against it.
installed="$here/target/installed"
out="$installed/out/clients/typescript"

need_node() {
  local version
  version=$(node --version 2>/dev/null) || die "Node.js 20.3 or newer is needed"
  at_least "${version#v}" 20.3.0 || die "Node.js 20.3 or newer is needed, and this is $version"
}

need_modules() {
  need_node
  [[ node_modules/.package-lock.json -nt package-lock.json ]] && return
  say "installing what the client is built with, by npm into node_modules"
  npm ci --silent --no-audit --no-fund
}

compile() {
  need_modules
  # What was built of a source that is gone would be published, too.
  local built
  for built in dist/*.js; do
    [[ -e src/$(basename "$built" .js).ts ]] || rm -rf dist target/build.tsbuildinfo
  done
  node_modules/.bin/tsc -p tsconfig.build.json --incremental --tsBuildInfoFile target/build.tsbuildinfo
}

# Packs the client as it is published, and installs the package in a new place, unless that one is there already.
install_package() {
  compile
  rm -rf target/pack && mkdir -p target/pack
  npm pack --silent --ignore-scripts --pack-destination target/pack >/dev/null
  local package
  package=$(echo target/pack/*.tgz)
  if ! cmp -s "$package" "$installed/package.tgz"; then
    rm -rf "$installed" && mkdir -p "$installed"
    cp "$package" "$installed/package.tgz"
    node -e '
      const { devDependencies: { yaml, pg } } = require("./package.json");
      const dependencies = { "pgmq-grpc": "file:package.tgz", yaml, pg };
      console.log(JSON.stringify({ name: "user-of-pgmq-grpc", private: true, type: "module", dependencies }));
    ' >"$installed/package.json"
    (cd "$installed" && npm install --silent --no-audit --no-fund --prefer-offline)
  fi
  # Its declarations have to hold for users who check libraries, too.
  node_modules/.bin/tsc -p tsconfig.user.json --incremental --tsBuildInfoFile "$installed/user.tsbuildinfo"
  node_modules/.bin/tsc -p tsconfig.tests.json --incremental --tsBuildInfoFile "$installed/out/tests.tsbuildinfo"
}

proto() {
  need_modules
  need_buf || die "buf is missing: it needs npm"
  buf generate
}

# The generated code must be what the contract and the pinned tools give.
generated_code_is_fresh() {
  local before after
  before=$(find src/gen -type f -exec sha256sum {} + | sort)
  proto
  after=$(find src/gen -type f -exec sha256sum {} + | sort)
  [[ "$before" == "$after" ]] || { warn "src/gen was stale: commit what \`run.sh proto\` gives"; return 1; }
}

lint() {
  compile
  generated_code_is_fresh
  node_modules/.bin/prettier --check --log-level warn . ../../examples/typescript
  node_modules/.bin/tsc -p tsconfig.json
  node_modules/.bin/eslint --max-warnings 0 --cache --cache-location target/eslint .
  (cd ../../examples/typescript && "$here/node_modules/.bin/eslint" --max-warnings 0 --ignore-pattern eslint.config.js .)
  ! grep -n '"resolved"' package-lock.json || { warn "the lock file names hosts: npm config omit-lockfile-registry-resolved"; return 1; }
  cmp -s LICENSE ../../LICENSE || { warn "LICENSE differs from the root's"; return 1; }
  [[ "$(node -p 'require("./package.json").version')" == "$(sed -n 's/^version = "\(.*\)"$/\1/p' ../../Cargo.toml | head -n 1)" ]] ||
    { warn "the version differs from the server's"; return 1; }
}

# Runs the command beside a server, unless there is one.
with_server() {
  [[ -z "${PGMQ_GRPC_TARGET:-}" ]] || return 0
  exec ../../scripts/with-server.sh "$here/run.sh" "$@"
}

case "${1:-}" in
  proto) proto ;;
  lint) lint ;;
  package) install_package ;;
  test)
    with_server "$@"
    "$here/run.sh" package >&2 || { echo "0 passed, 1 failed"; exit 1; }
    report=$(mktemp)
    status=0
    SERVICE_CONFIG="$root/proto/pgmq/v1/service_config.json" CALLS_MODULE="$installed/node_modules/pgmq-grpc/dist/calls.js" \
      node --test --test-reporter spec --test-reporter-destination stdout \
        --test-reporter tap --test-reporter-destination "$report" "$out"/test/*.test.js || status=$?
    passed=$(sed -n 's/^# pass //p' "$report") failed=$(sed -n 's/^# fail //p' "$report")
    rm -f "$report"
    [[ "${passed:-0}" -gt 0 ]] || status=1
    [[ $status == 0 || "${failed:-0}" -gt 0 ]] || failed=1
    echo "${passed:-0} passed, ${failed:-0} failed"
    exit "$status"
    ;;
  conformance)
    with_server "$@"
    "$here/run.sh" package >&2 || { echo "0 passed, 1 failed"; exit 1; }
    exec node "$out/conformance/run.js" "$here/../conformance/cases"
    ;;
  example)
    with_server "$@"
    install_package >&2
    exec node "$installed/out/examples/typescript/orders.js"
    ;;
  bench)
    install_package >&2
    exec node "$out/bench/bench.js"
    ;;
  *) die "usage: run.sh proto | lint | package | test | conformance | example | bench" ;;
esac
