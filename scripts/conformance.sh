#!/usr/bin/env bash
# Runs the cases of clients/conformance in all languages, one after the other, against one server:
#
#   scripts/conformance.sh [LANGUAGE ...]
#
# Prints a line for each language, and writes docs/conformance.md when all languages have run. A language whose
# toolchain is missing is left out; in CI it counts as failed, and so does a table that is not the committed one.
set -euo pipefail

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"
cd "$root"

all=(python typescript go java rust)
table=docs/conformance.md

# The program without which there is nothing to run a language's client with.
declare -A needs=([python]=python3 [typescript]=node [go]=go [java]=java [rust]=cargo)

for language in "$@"; do
  [[ -n ${needs[$language]:-} ]] || die "there is no language '$language'; there are: ${all[*]}"
done

if [[ -z ${PGMQ_GRPC_TARGET:-} ]]; then
  exec scripts/with-server.sh "$root/scripts/conformance.sh" "$@"
fi

languages=("$@")
[[ ${#languages[@]} -gt 0 ]] || languages=("${all[@]}")
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
failed=0
sums=()

for language in "${languages[@]}"; do
  if [[ ! -x clients/$language/run.sh ]] || ! has "${needs[$language]}"; then
    skip "$language, because ${needs[$language]} or clients/$language/run.sh is missing" || failed=1
    continue
  fi
  say "$language"
  : >"$results/$language"
  status=0
  CONFORMANCE_RESULTS="$results/$language" "clients/$language/run.sh" conformance 2>&1 | tee "$results/output" ||
    status=1
  sum=$(grep -Eo '^[0-9]+ passed, [0-9]+ failed$' "$results/output" | tail -n 1 || true)
  sums+=("$language: ${sum:-0 passed, 1 failed}")
  [[ $status == 0 && $sum == *", 0 failed" ]] || failed=1
done

# The table of all cases by language, from the results of all languages. A case that a language does not tell of is "-".
write_table() {
  cat <<'TEXT'
# Conformance

Every client runs the cases of [`clients/conformance`](../clients/conformance/README.md) against a real server, through what applications call themselves.
`make conformance` does so and writes this table.

TEXT
  (cd "$results" && awk -F '\t' -v languages="${all[*]}" '
    BEGIN {
      count = split(languages, language, " ")
      head = "| case |"; line = "|---|"; blank = " |"
      for (i = 1; i <= count; i++) { head = head " " language[i] " |"; line = line "---|"; blank = blank " |" }
      print head; print line
    }
    FILENAME !~ /[.]yaml$/ { verdict[FILENAME, $2] = $1 == "pass" ? "yes" : "no"; next }
    FNR == 1 { subject = FILENAME; gsub(/.*\/|[.]yaml$/, "", subject); gsub(/_/, " ", subject); print "| **" subject "**" blank }
    sub(/^- name: /, "") {
      row = "| " $0 " |"
      for (i = 1; i <= count; i++) row = row " " ((language[i], $0) in verdict ? verdict[language[i], $0] : "-") " |"
      print row
    }' "${all[@]}" "$root"/clients/conformance/cases/*.yaml)
}

cases=$(cat clients/conformance/cases/*.yaml | grep -c '^- name: ')
for language in "${languages[@]}"; do
  [[ -e $results/$language ]] || continue
  passed=$(grep -c '^pass' "$results/$language" || true)
  [[ $passed == "$cases" || -n ${CONFORMANCE_ONLY:-} ]] ||
    { warn "$language has passed $passed of $cases cases"; failed=1; }
done

if [[ ${#sums[@]} == "${#all[@]}" && -z ${CONFORMANCE_ONLY:-} ]]; then
  write_table >"$results/table"
  if in_ci && ! cmp -s "$results/table" "$table"; then
    warn "$table is not what the cases give: run make conformance and commit it"
    failed=1
  fi
  cp "$results/table" "$table"
fi

[[ ${#sums[@]} -gt 0 ]] || die "there is no language to run"
printf '%s\n' "${sums[@]}"
exit "$failed"
