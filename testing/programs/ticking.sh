# Says that a command still runs, for those who would otherwise think that it hangs. Needs a function `say`.
# shellcheck shell=bash

# Runs a program with its output in a file, and says every 20 seconds that it still runs:
# ticking WHAT FILE PROGRAM [ARGUMENT...]
ticking() {
  local what=$1 into=$2 status=0 ticker; shift 2
  # The program stays in the foreground, so that Ctrl-C ends it.
  tick "$what" "$$" > /dev/null < /dev/null &
  ticker=$!
  "$@" > "$into" 2>&1 || status=$?
  kill "$ticker" 2> /dev/null || true
  wait "$ticker" 2> /dev/null || true
  return "$status"
}

tick() { # tick WHAT PROCESS
  local began=$SECONDS nothing
  # Reading what never comes waits without a process that would outlive this one.
  exec {nothing}<> <(:) 9>&-
  while read -rt 20 -u "$nothing" || [ -d "/proc/$2" ]; do say "$1: $((SECONDS - began)) seconds so far"; done
}
