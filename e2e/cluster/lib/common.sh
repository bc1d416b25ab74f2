# What the programs of this folder share: where they keep things, how they speak, how they install what is missing.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${JETWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/jetwright}
programs=$here/../../testing/programs
logs=$cache/log
mkdir -p "$logs"

say() { printf 'e2e/cluster: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Prints the comment at the top of the program that was called.
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | grep -v '^set ' >&2; exit 2; }

# shellcheck source-path=SCRIPTDIR/../../../testing/programs source=ticking.sh
. "$programs/ticking.sh"

# Runs a program that takes its time; its output goes into a log, whose end is shown if it fails:
# patiently WHAT PROGRAM [ARGUMENT...]
patiently() {
  local what=$1 began=$SECONDS log; shift
  # A name in a folder has at most 255 bytes.
  log=$logs/$(tr -cs 'a-z0-9\n' - <<< "${what,,}" | cut -c -200)
  ticking "$what" "$log" "$@" && return
  tail -n 20 "$log" >&2
  fail "$what failed after $((SECONDS - began)) seconds; its last lines are above, all of them in $log"
}

# Whether a process has ended, be it that nobody has collected it yet.
ended() { ! grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }

# Waits until a command succeeds, at most so many seconds: wait_for SECONDS COMMAND...
wait_for() {
  local until=$((SECONDS + $1)); shift
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.2
  done
}

# Lets one process at a time go on, per name; the lock ends with the process: alone NAME
alone() {
  exec 9> "$cache/.lock-$1"
  flock --nonblock 9 && return
  say "another process is busy with the same ($1); waiting for it"
  flock 9
}

# Makes sure of programs, or of files by their full paths, from Debian packages of given names: need PROGRAM=PACKAGE...
need() {
  local pair missing=()
  for pair in "$@"; do present "${pair%%=*}" || missing+=("${pair##*=}"); done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    fail "needs ${missing[*]} (these are Debian's names), and can install them only as root and with apt"
  fi
  patiently "installing ${missing[*]} with apt" "$here/lib/apt-install" "${missing[@]}"
}

present() { if [[ $1 == /* ]]; then [ -s "$1" ]; else command -v "$1" > /dev/null; fi; }
