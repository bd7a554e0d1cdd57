#!/usr/bin/env bash
# Trains with N processes on this machine, joined through a coordinator on localhost.
#
#   launch/local.sh --processes=2 -- --config=configs/quickstart.py:test --workdir=runs/two
#
# On one machine a single process drives all GPUs, which is the simplest way to use eight H100s:
# --processes=1 --platform=gpu. With --processes=8 each process sees one GPU, and decodes its own
# share of the pictures. On the CPU several processes only rehearse a multi-host run.
#
# Process 0 writes to this terminal, process I to LOG_DIR/process-I.log. SIGTERM and Ctrl-C reach
# every process once. When one fails, the others are told to end and its exit code is returned;
# 75 means that the run was saved: the same command resumes.
#
#   --processes=N           default 2
#   --platform=cpu|gpu      default cpu
#   --port=PORT             of the coordinator, default 8476
#   --log-dir=DIR           default runs/logs (relative paths: from the repository's root)
#   --grace-s=SECONDS       from asking a process to end until it is killed, default 300
#   --python=, --module=    see launch/train.sh
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([processes]=2 [platform]=cpu [port]=8476 [log-dir]=runs/logs [grace-s]=300
  [python]="" [module]=contextdiff_jax.main)
parse "$@"
choice platform cpu gpu
whole 1 1024 processes
whole 1 65535 port
whole 0 86400 grace-s
plain module
training_arguments
cd "$ROOT"
count=${OPTION[processes]}

# command_of I: fills `command` with the command line of process I.
command_of() {
  command=()
  if ((count > 1)) && [[ ${OPTION[platform]} == gpu ]]; then
    command=(env "CUDA_VISIBLE_DEVICES=$1")
  fi
  command+=(bash launch/train.sh "--platform=${OPTION[platform]}"
    "--module=${OPTION[module]}" "--python=${OPTION[python]}" -- "${REST[@]}")
  if ((count > 1)); then
    command+=(--distributed=explicit "--coordinator=localhost:${OPTION[port]}"
      "--num_processes=$count" "--process_id=$1")
  elif [[ ${OPTION[module]} == contextdiff_jax.main ]]; then
    command+=(--distributed=none)
  fi
}

log_of() { echo "${OPTION[log-dir]}/process-$1.log"; }

# Each child gets a process group of its own: Ctrl-C then reaches it only through this script, and
# killing the group takes its data workers along.
set -m
declare -A pids=()
deadline=0 failure=0

# tell SIGNAL: to every process that still runs.
tell() {
  local i
  for i in "${!pids[@]}"; do
    kill "-$1" "${pids[$i]}" 2>/dev/null || true
  done
}

# end_soon: the others have the grace period left. Not put off by a second call.
end_soon() { ((deadline)) || deadline=$((SECONDS + OPTION[grace-s])); }

# shellcheck disable=SC2329  # called by the trap
on_signal() {
  ((deadline)) || tell TERM
  end_soon
}
trap on_signal TERM INT

# reap I: notes how process I ended.
reap() {
  local code=0
  wait "${pids[$1]}" || code=$?
  unset "pids[$1]"
  ((code)) || return 0
  echo "process $1 ended with exit code $code" >&2
  ((failure)) && return
  failure=$code
  (($1 == 0)) || tail -n 20 "$(log_of "$1")" >&2
  # 75: all processes save together and end by themselves.
  ((code == 75 || deadline)) || tell TERM
  end_soon
}

$DRY_RUN || mkdir -p "${OPTION[log-dir]}"
for ((i = 0; i < count; i++)); do
  command_of "$i"
  quote "${command[@]}"
  $DRY_RUN && continue
  if ((i == 0)); then
    "${command[@]}" </dev/null &
  else
    "${command[@]}" </dev/null >"$(log_of "$i")" 2>&1 &
  fi
  pids[$i]=$!
done

while ((${#pids[@]})); do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[$i]}" 2>/dev/null || reap "$i"
  done
  if ((deadline && SECONDS >= deadline && ${#pids[@]})); then
    echo "killing the processes that did not end in ${OPTION[grace-s]} s: ${!pids[*]}" >&2
    for i in "${!pids[@]}"; do kill -KILL -- "-${pids[$i]}" 2>/dev/null || true; done
  fi
  sleep 0.2
done
exit "$failure"
