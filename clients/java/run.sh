#!/usr/bin/env bash
# Builds, checks, tests and shows the Java client: clients/java/run.sh proto|format|lint|test|conformance|example|bench
#
# Needs a JDK 17 or newer and Maven 3.8 or newer; everything else comes from Maven Central into target/maven, where the
# client is installed too, so that nothing outside of this clone is changed.
set -euo pipefail

# shellcheck source=../../scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/tools.sh"
here="$root/clients/java"
example="$root/examples/java"
built="$here/target/built"

need_java() {
  has javac || debian openjdk-17-jdk-headless || die "a JDK 17 or newer is needed"
  has mvn || debian maven || die "Maven 3.8 or newer is needed"
}

# Runs Maven on everything; without the network once the goals $1 have been reached with these versions of everything.
maven() {
  local goals=$1 versions marker
  shift
  versions=$(cat "$here"/pom.xml "$here"/*/pom.xml "$example/pom.xml" | cksum | tr -d ' ')
  marker="$root/target/maven/complete-$versions-$goals"
  local options=(--batch-mode --quiet -Dstyle.color=never "-Dmaven.repo.local=$root/target/maven" -Dmaven.artifact.threads=16)
  [[ ! -e $marker ]] || options+=(--offline)
  # Where a caller asks for its status, nothing ends by itself at a failure.
  mvn "${options[@]}" -f "$here/checks/pom.xml" "$@" >&2 || return
  touch "$marker"
}

# Installs the client, and compiles what uses it as it is installed, if anything has changed.
build() {
  need_java
  [[ ! -e $built || -n $(find "$root/proto" "$here" "$example" -path '*/target' -prune -o -type f \
    \( -name '*.java' -o -name '*.proto' -o -name '*.properties' -o -name pom.xml -o -name run.sh \) -newer "$built" \
    -print -quit) ]] || return 0
  maven install install || return
  touch "$built"
}

# Runs the main class $2 of the project $1, whose jar names all others.
run_java() {
  local project=$1
  shift
  java "${java_options[@]}" -cp "$project/target/program.jar:$project/target/test-classes" "$@"
}

# What runs for seconds is faster when it is compiled only lightly.
java_options=(-XX:TieredStopAtLevel=1 -XX:+UseSerialGC)

run_tests() {
  local output status=0 passed failed
  output=$(mktemp)
  java_options+=("-Dcontract=$root/proto")
  run_java "$here/tests" org.junit.platform.console.ConsoleLauncher execute --disable-banner --details=tree \
    --disable-ansi-colors --scan-class-path="$here/tests/target/test-classes" >"$output" 2>&1 || status=$?
  cat "$output"
  passed=$(sed -n 's/^\[ *\([0-9]*\) tests successful *\]$/\1/p' "$output")
  failed=$(sed -n 's/^\[ *\([0-9]*\) tests failed *\]$/\1/p' "$output")
  rm -f "$output"
  echo "${passed:-0} passed, ${failed:-1} failed"
  return "$status"
}

# Goes on beside a server of its own where none is named.
with_server() {
  [[ -z ${PGMQ_GRPC_TARGET:-} ]] || return 0
  exec "$root/scripts/with-server.sh" "$here/run.sh" "$word"
}

built_or_failed() {
  build || { echo "0 passed, 1 failed"; exit 1; }
}

word=${1:-}
case $word in
  proto) need_java; maven generate -pl :pgmq-grpc generate-sources ;;
  format) need_java; maven format spotless:apply ;;
  lint) build; maven lint --threads 2 spotless:check javadoc:javadoc ;;
  test) built_or_failed; with_server; run_tests ;;
  conformance)
    built_or_failed
    with_server
    run_java "$here/conformance" io.github.pgmqgrpc.conformance.Runner "$root/clients/conformance/cases"
    ;;
  example) build; with_server; run_java "$example" io.github.pgmqgrpc.examples.Orders ;;
  bench) build; with_server; java_options=(); run_java "$here/bench" io.github.pgmqgrpc.bench.Bench ;;
  *) die "usage: clients/java/run.sh proto|format|lint|test|conformance|example|bench" ;;
esac
