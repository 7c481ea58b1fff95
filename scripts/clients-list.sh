# Which clients there are, and which of them can be built here. Sourced by the scripts that go through them.

# shellcheck source=scripts/tools.sh
source "$(dirname "${BASH_SOURCE[0]}")/tools.sh"

languages=(python typescript go java rust)

# What a language needs that its run.sh does not install by itself; nothing if it is all there.
missing_for() {
  case "$1" in
    python) has python3 || echo "Python 3.10 or newer" ;;
    typescript) { has node && has npm; } || echo "Node.js 20 or newer with npm" ;;
    go) has go || echo "Go" ;;
    java) { has javac && has mvn; } || echo "a JDK 17 or newer with Maven" ;;
    rust) (need_rust >/dev/null 2>&1) || echo "Rust" ;;
    *) die "there is no client '$1'; there are: ${languages[*]}" ;;
  esac
}

# Sets `here` to those of the languages given, or of all, whose toolchain is here. The others are left out aloud, and
# counted in `skipped`, or in CI in `failed`.
choose_languages() {
  local language missing
  here=()
  for language in "${@:-${languages[@]}}"; do
    missing=$(missing_for "$language") || exit 1
    if [[ -z $missing ]]; then
      here+=("$language")
    elif skip "the $language client, because $missing is missing"; then
      skipped=$((skipped + 1))
    else
      failed=$((failed + 1))
    fi
  done
}

# Adds the sum in the last such line of the file $1 to `passed` and `failed`, and sets `ok` and `bad` to it. $2 is 1 where what
# has written the file ended badly: then it did not only pass.
count_sum() {
  # Colours may stand before the line: some tools reset them late.
  read -r ok bad < <(sed 's/\x1b\[[0-9;]*m//g' "$1" | awk -v bad="$2" '
    /^[0-9]+ passed, [0-9]+ failed/ { ok = $1; found = $3; told = 1 }
    END { if (!told) bad = 1; print ok + 0, (found > 0 ? found : bad + 0) }')
  passed=$((passed + ok)) failed=$((failed + bad))
}

# The sum of `passed`, `failed` and `skipped`, as the last line; fails if anything has.
say_sum() {
  echo "$passed passed, $failed failed$([[ $skipped == 0 ]] || echo ", $skipped skipped")"
  [[ $failed == 0 ]]
}
