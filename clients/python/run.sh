#!/usr/bin/env bash
# Generates, checks, tests and shows the Python client: clients/python/run.sh proto|lint|test|conformance|example|bench
#
# Needs Python 3.10 or newer; everything else is installed from PyPI into clients/python/target.
set -euo pipefail

# shellcheck source=../../scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/tools.sh"
here="$root/clients/python"
cd "$here"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

services=(admin queue topic transaction)
tooling="$here/target/tools"
installed="$here/target/installed"

# Makes the virtual environment $1 with the requirements in the files after it, unless it is there and has them.
environment() {
  local place=$1 wanted
  shift
  has python3 || debian python3 || die "Python 3.10 or newer is needed"
  wanted=$(cat "$@" <(python3 --version) | cksum)
  [[ -f $place/made-of && $(<"$place/made-of") == "$wanted" ]] && return
  say "installing what ${*} list(s) into ${place#"$root/"}" >&2
  rm -rf "$place"
  python3 -m venv "$place" >/dev/null 2>&1 || { debian python3-venv && python3 -m venv "$place"; } ||
    die "python3 -m venv does not work: install it (Debian: apt-get install python3-venv)"
  local files=()
  for file in "$@"; do files+=(-r "$file"); done
  "$place/bin/pip" install --quiet "${files[@]}" >&2
  echo "$wanted" >"$place/made-of"
}

# Generates code from the contract into the directory $1, which is to be pgmq_grpc/v1.
#
# protoc's Python knows packages only by the path of the proto. A top-level package `pgmq` is somebody else's, so the
# imports are changed to where the code is; what the descriptors say, such as pgmq/v1/message.proto, stays.
generate() {
  local into=$1 place bin="$tooling/bin"
  place=$(mktemp -d)
  local protos=("$root"/proto/pgmq/v1/*.proto) calls=("${services[@]/#/$root/proto/pgmq/v1/}")
  local protoc=("$bin/python" -m grpc_tools.protoc "--proto_path=$root/proto"
    "--plugin=protoc-gen-mypy=$bin/protoc-gen-mypy" "--plugin=protoc-gen-mypy_grpc=$bin/protoc-gen-mypy_grpc")
  "${protoc[@]}" --python_out="$place" --mypy_out=quiet:"$place" "${protos[@]}"
  "${protoc[@]}" --grpc_python_out="$place" --mypy_grpc_out=quiet:"$place" "${calls[@]/%/_service.proto}"
  sed -i.before -e "s/^from pgmq\\.v1 import /from pgmq_grpc.v1 import /" \
    -e "/BuildTopDescriptors/s/'pgmq\\.v1\\./'pgmq_grpc.v1./" "$place"/pgmq/v1/*
  rm -f "$place"/pgmq/v1/*.before
  printf '"""Generated from the contract, proto/pgmq/v1: messages, enumerations and stubs."""\n' \
    >"$place/pgmq/v1/__init__.py"
  mkdir -p "$into"
  rm -f "$into"/*.py "$into"/*.pyi
  cp "$place"/pgmq/v1/* "$into"
  rm -rf "$place"
}

# Makes the client for threads of the one for asyncio, into the directory $1, which is to be pgmq_grpc/_sync.
make_sync() {
  "$tooling/bin/python" make_sync.py src/pgmq_grpc/_async "$1"
  "$tooling/bin/ruff" check --quiet --config pyproject.toml --select I --fix "$1"
  "$tooling/bin/ruff" format --quiet --config pyproject.toml "$1"
}

proto() {
  environment "$tooling" requirements-tools.txt
  generate src/pgmq_grpc/v1
  make_sync src/pgmq_grpc/_sync
}

is_fresh() {
  local place fresh=0
  place=$(mktemp -d)
  generate "$place/v1"
  mkdir "$place/_sync"
  make_sync "$place/_sync"
  cp src/pgmq_grpc/_sync/{__init__,io}.py "$place/_sync"
  diff -r --exclude __pycache__ "$place/v1" src/pgmq_grpc/v1 >&2 &&
    diff -r --exclude __pycache__ "$place/_sync" src/pgmq_grpc/_sync >&2 || fresh=1
  rm -rf "$place"
  return "$fresh"
}

version_of() { sed -n 's/^version = "\(.*\)"$/\1/p' "$1" | head -n 1; }

lint() {
  environment "$tooling" requirements-tools.txt
  local code=(src tests make_sync.py bench.py "$root/examples/python") failed=0
  [[ ! -d conformance ]] || code+=(conformance)
  "$tooling/bin/ruff" format --check --quiet --diff "${code[@]}" || failed=1
  "$tooling/bin/ruff" check --quiet "${code[@]}" || failed=1
  "$tooling/bin/mypy" --no-error-summary || failed=1
  "$tooling/bin/mypy" --no-error-summary "$root/examples/python/orders.py" || failed=1
  is_fresh || { warn "generated code is not what clients/python/run.sh proto gives"; failed=1; }
  cmp -s LICENSE "$root/LICENSE" || { warn "clients/python/LICENSE is not the project's"; failed=1; }
  [[ $(version_of pyproject.toml) == "$(version_of "$root/Cargo.toml")" ]] ||
    { warn "the client's version is not the server's"; failed=1; }
  return "$failed"
}

# Builds the package as it is published, and installs it where nothing else of this directory is found.
package() {
  environment "$tooling" requirements-tools.txt
  environment "$installed" requirements-tests.txt
  rm -rf target/dist
  "$tooling/bin/python" -m build --no-isolation --outdir target/dist . >target/build.log 2>&1 ||
    { cat target/build.log >&2; return 1; }
  # Where this is called, a command that fails does not end the script.
  "$installed/bin/pip" install --quiet target/dist/*.whl >&2 &&
    "$installed/bin/pip" install --quiet --no-deps --force-reinstall target/dist/*.whl >&2
}

# Starts a server of its own, whose Postgres pgmq-py reaches.
bench() {
  if [[ -z ${PGMQ_GRPC_SERVER:-} ]]; then
    need_cc
    need_rust
    (cd "$root" && cargo build --locked --quiet --release >&2)
    export PGMQ_GRPC_SERVER="$root/target/release/pgmq-grpc"
  fi
  environment target/bench requirements-bench.txt
  target/bench/bin/pip install --quiet --force-reinstall --no-deps target/dist/*.whl >&2
  target/bench/bin/pip install --quiet target/dist/*.whl >&2
  target/bench/bin/python bench.py
}

# Runs this script beside a server, where there is none yet.
beside_a_server() {
  [[ -n ${PGMQ_GRPC_TARGET:-} ]] || exec "$root/scripts/with-server.sh" "$here/run.sh" "$1"
}

case "${1:-}" in
  proto) proto ;;
  lint) lint ;;
  test | conformance | example) beside_a_server "$1" ;;&
  test | conformance) package || { echo "0 passed, 1 failed"; exit 1; } ;;&
  example | bench) package ;;&
  test) "$installed/bin/python" -m pytest -q tests ;;
  conformance) "$installed/bin/python" conformance ;;
  example) "$installed/bin/python" "$root/examples/python/orders.py" ;;
  bench) bench ;;
  *) die "usage: clients/python/run.sh proto|lint|test|conformance|example|bench" ;;
esac
