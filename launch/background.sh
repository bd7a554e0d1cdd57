#!/usr/bin/env bash
# Keeps a command running on this host after the login ends; tpu_vm.sh calls it on every worker.
#
#   launch/background.sh start --log=logs/train.log --retries=3 -- bash launch/train.sh ...
#   launch/background.sh status --log=logs/train.log    not started, running, died, or ended CODE
#   launch/background.sh stop --log=logs/train.log      SIGTERM once, then waits for the end
#
# A command that ends with 0 (done), 2 (refused), 3 (loss not finite) or 4 (checkpoint) is left
# ended. After any other code, 75 included, it is started again, unless it was told to stop.
#
#   --log=FILE        output; FILE.pid and FILE.exit lie beside it
#   --retries=N       default 0
#   --delay-s=S       before starting again, default 30
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([log]="" [retries]=0 [delay-s]=30)
ACTIONS="start status stop supervise" # supervise: what start leaves running
parse "$@"
required log
whole 0 1000000 retries
whole 0 86400 delay-s
log=${OPTION[log]}

alive() { [[ -s $log.pid ]] && kill -0 "$(<"$log.pid")" 2>/dev/null; }

status() {
  if alive; then
    echo running
  elif [[ -s $log.exit ]]; then
    echo "ended $(<"$log.exit")"
  elif [[ -s $log.pid ]]; then
    echo died
  else
    echo "not started"
  fi
}

start() {
  ((${#REST[@]})) || die "no command: it goes after --"
  ! alive || die "$log: already running as process $(<"$log.pid"); stop it first"
  local command=(bash "$ROOT/launch/background.sh" supervise "--log=$log"
    "--retries=${OPTION[retries]}" "--delay-s=${OPTION[delay-s]}" -- "${REST[@]}")
  quote "${command[@]}"
  $DRY_RUN && return
  mkdir -p "$(dirname "$log")"
  rm -f "$log.exit"
  nohup setsid "${command[@]}" >>"$log" 2>&1 </dev/null 3>&- &
  echo $! >"$log.pid"
}

stop() {
  alive || { status && return; }
  run kill -TERM "$(<"$log.pid")"
  while ! $DRY_RUN && alive; do sleep 0.5; done
  status
}

# wait_for PID: the exit code of a child, however many trapped signals arrive meanwhile.
SIGNALS=0
wait_for() {
  local before code
  while true; do
    before=$SIGNALS code=0
    wait "$1" || code=$?
    ((SIGNALS == before)) && return "$code"
  done
}

told=false child=""
# shellcheck disable=SC2329  # called by the trap
on_signal() {
  SIGNALS=$((SIGNALS + 1)) told=true
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

supervise() {
  local attempt code=0 began
  trap on_signal TERM
  for ((attempt = 0; ; attempt++)); do
    echo "$(date -u +%FT%TZ) start $attempt: $(quote "${REST[@]}")"
    began=$SECONDS
    "${REST[@]}" &
    child=$!
    code=0
    wait_for "$child" || code=$?
    child=""
    echo "$(date -u +%FT%TZ) exit code $code"
    [[ " 0 2 3 4 " != *" $code "* ]] || break
    # Hiccups of weeks are not counted together: an hour's work begins the count anew.
    ((SECONDS - began < 3600)) || attempt=0
    ((attempt < OPTION[retries])) || break
    # In the background, so that SIGTERM does not wait for the sleep.
    $told || { sleep "${OPTION[delay-s]}" & wait $! || true; }
    ! $told || break
  done
  echo "$code" >"$log.exit"
}

"$ACTION"
