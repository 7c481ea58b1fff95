#!/usr/bin/env bash
# Generates, checks, tests and shows the Go client: clients/go/run.sh proto|lint|test|conformance|example|bench
#
# Needs Go; everything else comes over Go's module proxy, the tools into target/tools.
set -euo pipefail

# shellcheck source=../../scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/tools.sh"
here="$root/clients/go"
cd "$here"
export GOFLAGS="${GOFLAGS:--buildvcs=false}" GOWORK=off

protoc_gen_go=google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
protoc_gen_go_grpc=google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.1
staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.1

# The directories that are modules of their own: what they need, nobody has to have who uses the client.
modules=(clients/go clients/go/tests clients/go/conformance clients/go/bench examples/go)

need_go() {
  has go || debian golang-go || die "Go 1.24 or newer is needed: https://go.dev/dl"
}

# Installs the tool of the module path and version $1 into target/tools.
need_tool() {
  local name=${1%@*}
  name=${name##*/}
  local made_of="$tools/bin/.$name"
  [[ -x $tools/bin/$name && -f $made_of && $(<"$made_of") == "$1" ]] && return
  say "installing $name ${1##*@} by go into target/tools" >&2
  mkdir -p "$tools/bin"
  (cd / && GOBIN="$tools/bin" go install "$1") >&2
  echo "$1" >"$made_of"
}

# Generates code from the contract into $1: messages and stubs by the plugins, and the constants of the reasons, each
# with the first paragraph of its comment.
generate() {
  need_buf || die "buf is missing: install npm, or buf $buf_version itself"
  need_tool "$protoc_gen_go"
  need_tool "$protoc_gen_go_grpc"
  buf generate --output "$1"
  reasons >"$1/reasons.gen.go"
}

reasons() {
  awk '
    BEGIN {
      print "// Code generated from proto/pgmq/v1/error.proto by run.sh proto. DO NOT EDIT.\n"
      print "package pgmq\n"
      print "// The reasons for which a call can fail; what each means in full stands in the contract, at ErrorReason."
      print "const ("
    }
    /^enum ErrorReason / { inside = 1; next }
    inside && /^}/ { exit }
    inside && /^  \/\/$/ { whole = 1 }
    inside && /^  \/\/ / && !whole { comment = comment "\t// " substr($0, 6) "\n" }
    inside && /^  ERROR_REASON_/ {
      sub("ERROR_REASON_", "", $1)
      count = split($1, words, "_")
      name = "Reason"
      for (i = 1; i <= count; i++) name = name (words[i] ~ /^(ID|JSON)$/ ? words[i] : substr(words[i], 1, 1) tolower(substr(words[i], 2)))
      if ($1 != "UNSPECIFIED") print comment "\t" name " Reason = \"" $1 "\""
      comment = whole = ""
    }
    END { print ")" }
  ' "$root/proto/pgmq/v1/error.proto" | gofmt
}

proto() {
  generate "$here"
}

# Whether what is committed is what the contract gives.
fresh() {
  local place
  place=$(mktemp -d)
  generate "$place"
  diff -r "$here/pgmqv1" "$place/pgmqv1" >&2 && diff "$here/reasons.gen.go" "$place/reasons.gen.go" >&2 ||
    { warn "the generated code is stale: clients/go/run.sh proto"; rm -rf "$place"; return 1; }
  rm -rf "$place"
}

# Formats, vets and lints one module, and looks whether its go.mod says what it needs.
lint_module() {
  local unformatted
  unformatted=$(gofmt -l .)
  [[ -z $unformatted ]] || { warn "not formatted by gofmt: $unformatted"; return 1; }
  go vet ./... && staticcheck ./... && go mod tidy -diff
}

# Puts the first program of the README where it is vetted with the rest.
readme_program() {
  mkdir -p target/readme
  awk '/^```go$/ { inside = 1; next } /^```$/ && inside { exit } inside' README.md >target/readme/main.go
}

lint() {
  need_tool "$staticcheck"
  readme_program
  local module failed=0
  fresh || failed=1
  for module in "${modules[@]}"; do
    (cd "$root/$module" && lint_module >&2) || { warn "$module has faults"; failed=1; }
  done
  return "$failed"
}

# Runs itself beside a server where there is none.
need_server() {
  [[ -n ${PGMQ_GRPC_TARGET:-} ]] || exec "$root/scripts/with-server.sh" "$here/run.sh" "$@"
}

# Copies the module to a new place, as the module proxy would publish it: without the modules in it.
publish() {
  rm -rf "$1"
  mkdir -p "$1"
  cp -R ./*.go go.mod go.sum LICENSE README.md CHANGELOG.md pgmqv1 "$1"
}

# Runs the tests in a new module that requires the published one, as a user's does.
run_tests() {
  local place="$here/target/installed"
  publish "$place/pgmq"
  rm -rf "$place/tests"
  cp -R tests "$place/tests"
  cd "$place/tests"
  go mod edit -replace "github.com/pgmq-grpc/pgmq-grpc/clients/go=$place/pgmq"
  local report="$place/report" status=0
  go test -race -count=1 -timeout 5m -v ./... >"$report" 2>&1 || status=$?
  local passed failed
  passed=$(grep -c '^--- PASS' "$report" || true)
  failed=$(grep -c '^--- FAIL' "$report" || true)
  if [[ $status != 0 ]]; then
    cat "$report"
    ((failed > 0)) || failed=1
  fi
  echo "$passed passed, $failed failed"
  return "$status"
}

conformance() {
  (cd conformance && go build -o "$here/target/conformance" .) || { echo "0 passed, 1 failed"; return 1; }
  target/conformance "$root/clients/conformance/cases"
}

example() {
  (cd "$root/examples/go" && go build -o "$here/target/orders" .)
  target/orders
}

bench() {
  # The server's own Postgres gets a port, for plain SQL to compare with; a server that is there already has none.
  if [[ -z ${BENCH_POSTGRES_PORT:-} ]]; then
    local port=$((20000 + RANDOM % 10000))
    unset PGMQ_GRPC_TARGET
    BENCH_POSTGRES_PORT=$port PGMQ_GRPC_POSTGRES_PORT=$port exec "$root/scripts/with-server.sh" "$here/run.sh" bench
  fi
  (cd bench && go build -o "$here/target/bench" .)
  local password
  password=$(<"${PGMQ_GRPC_SERVER_PID_FILE%/*}/data/password")
  DATABASE_URL="postgres://pgmq:$password@127.0.0.1:$BENCH_POSTGRES_PORT/pgmq" target/bench
}

case "${1:-}" in
  proto) need_go && proto ;;
  lint) need_go && lint ;;
  test) need_go && need_server "$@" && run_tests ;;
  conformance) need_go && need_server "$@" && conformance ;;
  example) need_go && need_server "$@" && example ;;
  bench) need_go && bench ;;
  *) die "usage: clients/go/run.sh proto|lint|test|conformance|example|bench" ;;
esac
