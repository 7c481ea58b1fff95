#!/usr/bin/env bash
# Runs the cases of clients/conformance in all languages, one after the other, against one server:
#
#   scripts/conformance.sh [LANGUAGE ...]
#
# Prints a line for each language and their sum, and writes docs/conformance.md when all languages have run. A language whose
# toolchain is missing is left out; in CI it counts as failed, and so does a table that is not the committed one.
set -euo pipefail

# shellcheck source=scripts/clients-list.sh
source "$(dirname "${BASH_SOURCE[0]}")/clients-list.sh"
cd "$root"

table=docs/conformance.md

if [[ -z ${PGMQ_GRPC_TARGET:-} ]]; then
  exec scripts/with-server.sh "$root/scripts/conformance.sh" "$@"
fi

passed=0 failed=0 skipped=0
choose_languages "$@"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
sums=()

for language in "${here[@]}"; do
  say "$language"
  : >"$results/$language"
  bad=0
  CONFORMANCE_RESULTS="$results/$language" "clients/$language/run.sh" conformance 2>&1 | tee "$results/output" || bad=1
  count_sum "$results/output" "$bad"
  sums+=("$language: $ok passed, $bad failed")
done

# The table of all cases by language, from the results of all languages. A case that a language does not tell of is "-".
write_table() {
  cat <<'TEXT'
# Conformance

Every client runs the cases of [`clients/conformance`](../clients/conformance/README.md) against a real server, through what applications call themselves.
`make conformance` does so and writes this table.

TEXT
  (cd "$results" && awk -F '\t' -v languages="${languages[*]}" '
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
    }' "${languages[@]}" "$root"/clients/conformance/cases/*.yaml)
}

cases=$(cat clients/conformance/cases/*.yaml | grep -c '^- name: ')
for language in "${here[@]}"; do
  told=$(grep -c . "$results/$language" || true)
  [[ $told == "$cases" || -n ${CONFORMANCE_ONLY:-} ]] ||
    { warn "$language has told of $told of $cases cases"; failed=$((failed + 1)); }
done

if [[ ${#sums[@]} == "${#languages[@]}" && -z ${CONFORMANCE_ONLY:-} ]]; then
  write_table >"$results/table"
  if in_ci && ! cmp -s "$results/table" "$table"; then
    warn "$table is not what the cases give: run make conformance and commit it"
    failed=$((failed + 1))
  fi
  cp "$results/table" "$table"
fi

[[ ${#sums[@]} -gt 0 ]] || die "there is no language to run"
printf '%s\n' "${sums[@]}"
say_sum
