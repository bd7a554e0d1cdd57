#!/usr/bin/env bash
# Trains on GKE with TPUs through XPK, which sets up cluster, queue (Kueue) and JobSet by itself.
#
#   launch/xpk.sh cluster --cluster=cd --zone=ZONE --accelerator=v5litepod-256 --spot
#   launch/xpk.sh start   --cluster=cd --zone=ZONE --name=base --image=IMAGE \
#       -- --config=configs/laion.py --workdir=gs://...
#   launch/xpk.sh status|logs|stop --cluster=cd --zone=ZONE --name=base
#   launch/xpk.sh delete  --cluster=cd --zone=ZONE        the cluster with all its node pools
#
# The image is built and pushed by `launch/gke.sh image`. Resume: stop, then the same start.
#
#   --cluster=NAME --name=NAME       of the cluster, of the workload
#   --zone=ZONE --project=PROJECT    gcloud's own default project if not given
#   --accelerator=TYPE     default v5litepod-256
#   --slices=N             default 1: this many in one training, joined by mesh.data
#   --spot, --reservation=NAME       how the capacity is paid; on demand if neither is given
#   --restarts=N           default 50
#   --module=, --weights=  see launch/train.sh
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([cluster]="" [name]="" [zone]="" [project]="" [accelerator]=v5litepod-256
  [slices]=1 [spot]=false [reservation]="" [image]="" [restarts]=50 [weights]="" [module]=contextdiff_jax.main)
ACTIONS="cluster start status logs stop delete"
parse "$@"
required cluster zone
whole 0 1000000 restarts
whole 1 1000 slices
plain cluster name zone project accelerator reservation image module
cluster=${OPTION[cluster]} name=${OPTION[name]}
[[ " start logs stop " != *" $ACTION "* ]] || required name
need xpk "pip install xpk"

where=("--zone=${OPTION[zone]}")
[[ -z ${OPTION[project]} ]] || where+=("--project=${OPTION[project]}")

do_cluster() {
  local capacity=--on-demand
  [[ ${OPTION[spot]} != true ]] || capacity=--spot
  [[ -z ${OPTION[reservation]} ]] || capacity=--reservation=${OPTION[reservation]}
  run xpk cluster create "--cluster=$cluster" "${where[@]}" "--tpu-type=${OPTION[accelerator]}" \
    "--num-slices=${OPTION[slices]}" "$capacity"
}

do_start() {
  required image
  training_arguments bucket
  # exec: XPK sends SIGTERM to its own child, which must become Python and not stay a shell.
  train_command /contextdiff_jax/launch/train.sh
  # 75 (interrupted, saved) is added to the codes after which XPK starts again: 42 and 127-255.
  run xpk workload create "--cluster=$cluster" "--workload=$name" "${where[@]}" \
    "--tpu-type=${OPTION[accelerator]}" "--num-slices=${OPTION[slices]}" \
    "--docker-image=${OPTION[image]}" \
    "--max-restarts=${OPTION[restarts]}" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=300 "--command=$(quote exec "${TRAIN[@]}")"
}

do_status() { run xpk workload list "--cluster=$cluster" "${where[@]}"; }

do_logs() {
  need kubectl "gcloud components install kubectl gke-gcloud-auth-plugin"
  run kubectl logs --follow --tail=100 --container=jax-tpu \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

do_stop() {
  echo "deleting the workload $name; the cluster stays and still costs money: see delete" >&2
  run xpk workload delete "--cluster=$cluster" "--workload=$name" "${where[@]}"
}

do_delete() {
  echo "deleting the cluster $cluster with all its node pools in ${OPTION[zone]}; buckets stay" >&2
  run xpk cluster delete "--cluster=$cluster" "${where[@]}"
}

"do_$ACTION"
