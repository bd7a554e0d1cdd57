#!/usr/bin/env bash
# Trains on Cloud TPU VMs: a queued resource with one slice or several, the same commands on all hosts.
#
#   launch/tpu_vm.sh create --name=cd --zone=ZONE --accelerator=v5litepod-256 --spot
#   launch/tpu_vm.sh wait   --name=cd --zone=ZONE       until the slice is there
#   launch/tpu_vm.sh setup  --name=cd --zone=ZONE       copies HEAD, installs the environment
#   launch/tpu_vm.sh start  --name=cd --zone=ZONE -- --config=configs/laion.py --workdir=gs://...
#   launch/tpu_vm.sh status|logs|stop --name=cd --zone=ZONE
#   launch/tpu_vm.sh delete --name=cd --zone=ZONE       the slice and its queued resource
#   launch/tpu_vm.sh watch  ...                         all of create, setup, start, and again
#                                                       after each preemption, until it is done;
#                                                       the slice stays and costs money: then delete
#
# Resume: the same start. It also goes on from the checkpoints on a slice of another size.
#
#   --name=NAME            of the TPU VM and of its queued resource
#   --zone=ZONE --project=PROJECT    gcloud's own default project if not given
#   --accelerator=TYPE     default v5litepod-256
#   --slices=N             default 1: this many in one training, joined by mesh.data; give it
#                          to every action
#   --runtime=VERSION      default v2-alpha-tpuv5-lite, for v5e (v6e: v2-alpha-tpuv6e)
#   --spot, --reserved     how the capacity is paid
#   --direct               no queue: create now or fail (give it to delete as well)
#   --retries=N            restarts of a process on a host that stays up, default 3
#   --output=DIR           logs: collect the logs of all hosts there instead of following host 0
#   --poll-s=S             for wait and watch, default 60
#   --module=, --weights=  see launch/train.sh
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([name]="" [zone]="" [project]="" [accelerator]=v5litepod-256 [spot]=false
  [runtime]=v2-alpha-tpuv5-lite [reserved]=false [direct]=false [retries]=3 [output]="" [poll-s]=60
  [slices]=1 [weights]="" [module]=contextdiff_jax.main)
ACTIONS="create wait setup start status logs stop delete watch"
parse "$@"
required name zone
whole 0 1000000 retries
whole 0 86400 poll-s
whole 1 1000 slices
plain zone project accelerator runtime module
slices=${OPTION[slices]}
[[ $slices == 1 || ${OPTION[direct]} == false ]] || die "--slices=$slices: needs a queued resource, not --direct"
name=${OPTION[name]}
[[ $name =~ ^[a-z][a-z0-9-]{0,61}$ ]] || die "--name=$name: must be lower-case letters, digits and -"
[[ ${OPTION[spot]} != true || ${OPTION[reserved]} != true ]] || die "--spot and --reserved exclude each other"
need gcloud "see cloud.google.com/sdk/docs/install"

where=("--zone=${OPTION[zone]}")
[[ -z ${OPTION[project]} ]] || where+=("--project=${OPTION[project]}")
log=logs/train.log
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)

# remote: the commands that reach its hosts, and all of them or the first.
remote=("${vm[@]}") all=(--worker=all) first=(--worker=0)
if ((slices > 1)); then
  remote=("${queue[@]}") all=(--node=all --worker=all) first=(--node=0 --worker=0)
fi

# on_all COMMAND: runs a shell command in the copied repository on every host.
on_all() { run "${remote[@]}" ssh "$name" "${where[@]}" "${all[@]}" "--command=cd contextdiff_jax && $1"; }

do_create() {
  local how=() nodes=("--node-id=$name")
  [[ ${OPTION[spot]} != true ]] || how+=(--spot)
  [[ ${OPTION[reserved]} != true ]] || how+=(--reserved)
  if [[ ${OPTION[direct]} == true ]]; then
    run "${vm[@]}" create "$name" "${where[@]}" "--accelerator-type=${OPTION[accelerator]}" \
      "--version=${OPTION[runtime]}" "${how[@]}"
  else
    ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
    run "${queue[@]}" create "$name" "${nodes[@]}" "${where[@]}" \
      "--accelerator-type=${OPTION[accelerator]}" "--runtime-version=${OPTION[runtime]}" "${how[@]}"
  fi
}

# state: ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED (preempted), FAILED, ...
state() { ask ACTIVE "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'; }

do_wait() {
  local now
  while true; do
    now=$(state)
    echo "$(date -u +%T) $name: $now" >&2
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPEND*) echo "$name will not come: delete it and create it again" >&2 && exit 1 ;;
    esac
    sleep "${OPTION[poll-s]}"
  done
}

do_setup() {
  local archive="${TMPDIR:-/tmp}/$name-code.tar.gz"
  git -C "$ROOT" diff --quiet HEAD || echo "note: changes that are not committed are not copied" >&2
  # Joined by &&, because bash ignores set -e inside "do_setup && ...".
  run git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD &&
    run "${remote[@]}" scp "$archive" "$name:code.tar.gz" "${where[@]}" "${all[@]}" &&
    run "${remote[@]}" ssh "$name" "${where[@]}" "${all[@]}" "--command=mkdir -p contextdiff_jax && \
tar -xzf code.tar.gz -C contextdiff_jax && bash contextdiff_jax/launch/setup_env.sh --platform=tpu"
}

do_start() {
  train_command launch/train.sh
  on_all "$(quote bash launch/background.sh start "--log=$log" "--retries=${OPTION[retries]}" -- "${TRAIN[@]}")"
}

do_status() { on_all "bash launch/background.sh status --log=$log"; }
do_stop() { on_all "bash launch/background.sh stop --log=$log"; }

do_logs() {
  local node=$name folder=${OPTION[output]} number
  if [[ -z $folder ]]; then
    run "${remote[@]}" ssh "$name" "${where[@]}" "${first[@]}" \
      "--command=cd contextdiff_jax && tail -n 100 -F $log"
    return
  fi
  for ((number = 0; number < slices; number++)); do
    ((slices == 1)) || node=$name-$number folder=${OPTION[output]}/$name-$number
    run mkdir -p "$folder"
    run "${vm[@]}" ssh "$node" "${where[@]}" --worker=all \
      "--command=cat contextdiff_jax/$log" "--output-directory=$folder"
  done
}

# delete [--quiet]: gcloud asks first, except with --quiet.
do_delete() {
  local what="the TPU VM $name"
  ((slices == 1)) || what="the $slices slices of $name"
  echo "deleting $what and its queued resource in ${OPTION[zone]}; buckets stay" >&2
  if [[ ${OPTION[direct]} == true ]]; then
    run "${vm[@]}" delete "$name" "${where[@]}" "$@"
  else
    run "${queue[@]}" delete "$name" --force "${where[@]}" "$@"
  fi
}

# progress: what background.sh says on host 0, when the slice is there; else its state.
progress() {
  local now
  now=$(state) || now=UNKNOWN
  [[ $now != ACTIVE ]] || now=$(ask SUSPENDED "${remote[@]}" ssh "$name" "${where[@]}" "${first[@]}" \
    "--command=bash contextdiff_jax/launch/background.sh status --log=contextdiff_jax/$log || echo new") || now=UNKNOWN
  echo "$now"
}

still_there() {
  echo "$name still exists and costs money until: launch/tpu_vm.sh delete --name=$name ${where[*]}" >&2
}

do_watch() {
  local now
  [[ ${OPTION[direct]} == false ]] || die "--direct: watch needs a queued resource"
  state >/dev/null || do_create
  while true; do
    now=$(progress)
    echo "$(date -u +%FT%TZ) $name: $now" >&2
    case $now in
      "ended 0") still_there && return ;;
      "ended 75" | died | "not started" | new) do_setup && do_start || true ;;
      "ended "*) still_there && exit "${now#ended }" ;;
      FAILED | SUSPENDED) do_delete --quiet && do_create ;;
    esac
    if $DRY_RUN; then do_setup && do_start && return; fi # a slice that has come again
    sleep "${OPTION[poll-s]}"
  done
}

[[ $ACTION != start && $ACTION != watch ]] || training_arguments bucket
"do_$ACTION"
