#!/usr/bin/env bash
# Trains on a SLURM cluster with GPUs; launch/train.sbatch is the job.
#
#   launch/slurm.sh submit --nodes=1 --gpus=8 -- --config=configs/laion.py --workdir=DIR
#   launch/slurm.sh status
#   launch/slurm.sh logs|cancel --job=ID
#
# WORKDIR, the repository and its .venv must be on a disk that all nodes share, or a bucket.
# Resume: the same submit. Preempted and timed-out jobs put themselves back into the queue.
#
#   --nodes=N --gpus=N      nodes, and GPUs on each; default 1 and 8
#   --per=gpu|node          one process per GPU (default: each decodes its share of the pictures)
#                           or per node (fewer, larger processes)
#   --cpus=N                CPU cores per GPU, default 8
#   --time=D-HH:MM:SS       default 1-00:00:00; 5 minutes before, the run saves and requeues
#   --mem=SIZE              memory per node, as for sbatch (0: all); the cluster's default if not given
#   --partition=, --account=, --name=
#   --job=ID                for logs and cancel
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([nodes]=1 [gpus]=8 [per]=gpu [cpus]=8 [time]=1-00:00:00 [partition]=""
  [account]="" [name]=contextdiff [job]="" [mem]="")
ACTIONS="submit status logs cancel"
parse "$@"
whole 1 100000 nodes
whole 1 1024 gpus cpus
plain partition account name job mem
[[ ${OPTION[name]} != */* ]] || die "--name=${OPTION[name]}: must not hold /"
[[ ${OPTION[time]} =~ ^[0-9:-]+$ ]] || die "--time=${OPTION[time]}: must be like 1-00:00:00"
choice per gpu node
need sbatch "it comes with SLURM; run this on a login node of the cluster"
logs=$ROOT/runs/logs

do_submit() {
  local tasks=${OPTION[gpus]} cpus=${OPTION[cpus]} more=() key
  training_arguments
  [[ ${OPTION[per]} == gpu ]] || tasks=1 cpus=$((OPTION[cpus] * OPTION[gpus]))
  for key in partition account mem; do
    [[ -z ${OPTION[$key]} ]] || more+=("--$key=${OPTION[$key]}")
  done
  run mkdir -p "$logs"
  run sbatch "--job-name=${OPTION[name]}" "${more[@]}" "--nodes=${OPTION[nodes]}" \
    "--ntasks-per-node=$tasks" "--gpus-per-node=${OPTION[gpus]}" "--cpus-per-task=$cpus" \
    "--time=${OPTION[time]}" "--chdir=$ROOT" "--output=$logs/%x-%j.log" \
    "$ROOT/launch/train.sbatch" "${REST[@]}"
}

do_status() { run squeue --me "--name=${OPTION[name]}"; }

do_logs() {
  required job
  run tail -n 100 -F "$logs/${OPTION[name]}-${OPTION[job]}.log"
}

do_cancel() {
  required job
  echo "cancelling job ${OPTION[job]}; its checkpoints stay" >&2
  run scancel "${OPTION[job]}"
}

"do_$ACTION"
