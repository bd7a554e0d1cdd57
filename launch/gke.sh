#!/usr/bin/env bash
# Trains on GKE with TPUs by a JobSet (launch/jobset.yaml); launch/xpk.sh does the same with XPK.
#
#   launch/gke.sh cluster  --name=cd --zone=ZONE --topology=16x16 --spot   cluster and node pools
#   launch/gke.sh image    --image=REGISTRY/contextdiff:TAG                build from HEAD, push
#   launch/gke.sh start    --name=cd --zone=ZONE --image=... -- --config=... --workdir=gs://...
#   launch/gke.sh manifest ...same as start...             prints the JobSet, needs no cluster
#   launch/gke.sh status|logs|stop --name=cd --zone=ZONE   stop deletes the JobSet, not the nodes
#   launch/gke.sh delete   --name=cd --zone=ZONE           the node pools and the cluster
#
# Resume: stop, then the same start. For another slice size: another cluster or node pool.
#
#   --name=NAME            of the cluster, its node pools (NAME-tpu-I) and the JobSet
#   --zone=ZONE --project=PROJECT      gcloud's own default project if not given
#   --topology=16x16       chips of the slice; v5e-256 is 16x16
#   --slices=N             default 1: this many in one training, joined by mesh.data; each is
#                          a node pool. Give it to cluster, start, manifest and delete
#   --machine-type=TYPE    default ct5lp-hightpu-4t: v5e, 4 chips to a host (multi-host slices)
#   --tpu=LABEL            default tpu-v5-lite-podslice, the node label of v5e
#   --chips-per-host=N     default 4
#   --spot                 spot nodes
#   --image=IMAGE --service-account=NAME     the Kubernetes account that may use the bucket
#   --restarts=N           default 50
#   --module=, --weights=  see launch/train.sh
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([name]="" [zone]="" [project]="" [topology]=16x16 [slices]=1 [image]="" [spot]=false
  [machine-type]=ct5lp-hightpu-4t [tpu]=tpu-v5-lite-podslice [chips-per-host]=4 [restarts]=50
  [service-account]=default [weights]="" [module]=contextdiff_jax.main)
JOBSET=https://github.com/kubernetes-sigs/jobset/releases/download/v0.8.0/manifests.yaml
ACTIONS="cluster image start manifest status logs stop delete"
parse "$@"
whole 1 64 chips-per-host
whole 0 1000000 restarts
whole 1 1000 slices
plain zone project image machine-type tpu service-account module
slices=${OPTION[slices]}
[[ ${OPTION[topology]} =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] || die "--topology=${OPTION[topology]}: must be like 16x16"
chips=$((${OPTION[topology]//x/*}))
hosts=$((chips / OPTION[chips-per-host]))
((hosts * OPTION[chips-per-host] == chips)) || die "--topology=${OPTION[topology]}: $chips chips are no whole \
number of hosts with ${OPTION[chips-per-host]}"
name=${OPTION[name]}
[[ $ACTION == image ]] || required name
[[ $ACTION == image || $name =~ ^[a-z][a-z0-9-]{0,38}$ ]] || die "--name=$name: must be lower-case letters, digits and -"
[[ $ACTION != image && $ACTION != start && $ACTION != manifest ]] || required image

where=("--location=${OPTION[zone]}")
[[ -z ${OPTION[project]} ]] || where+=("--project=${OPTION[project]}")

# connect: kubectl's credentials for the cluster.
connect() {
  required zone
  need gcloud "see cloud.google.com/sdk/docs/install"
  need kubectl "gcloud components install kubectl gke-gcloud-auth-plugin"
  run gcloud container clusters get-credentials "$name" "${where[@]}"
}

do_cluster() {
  local spot=() project=${OPTION[project]} number
  required zone project # names the pool of workload identities
  need gcloud "see cloud.google.com/sdk/docs/install"
  [[ ${OPTION[spot]} != true ]] || spot=(--spot)
  run gcloud container clusters create "$name" "${where[@]}" --machine-type=e2-standard-4 \
    --num-nodes=1 "--workload-pool=$project.svc.id.goog"
  for ((number = 0; number < slices; number++)); do
    run gcloud container node-pools create "$name-tpu-$number" "--cluster=$name" "${where[@]}" \
      "--machine-type=${OPTION[machine-type]}" "--tpu-topology=${OPTION[topology]}" \
      "--num-nodes=$hosts" "${spot[@]}"
  done
  connect
  run kubectl apply --server-side -f "$JOBSET"
}

do_image() {
  local archive="${TMPDIR:-/tmp}/contextdiff-image.tar.gz"
  need docker "see docs.docker.com/engine/install"
  run git -C "$ROOT" archive --format=tar.gz "--output=$archive" HEAD
  # The archive is the build context: only what is committed gets into the image.
  run bash -c "$(quote docker build --file=launch/Dockerfile "--tag=${OPTION[image]}" -) < $(quote "$archive")"
  run docker push "${OPTION[image]}"
}

# json WORD...: a JSON list of strings, which is YAML too.
json() {
  local word list=""
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list:2}]"
}

do_manifest() {
  local text key
  training_arguments bucket
  train_command launch/train.sh
  # Numbers are bare. Words are quoted, that YAML takes none for something else (yes, 1e3, a: b).
  local -A values=([HOSTS]=$hosts [SLICES]=$slices [RESTARTS]=${OPTION[restarts]}
    [CHIPS_PER_HOST]=${OPTION[chips-per-host]} [NAME]="\"$name\""
    [TOPOLOGY]="\"${OPTION[topology]}\"" [TPU]="\"${OPTION[tpu]}\""
    [IMAGE]="\"${OPTION[image]}\"" [SERVICE_ACCOUNT]="\"${OPTION[service-account]}\"")
  text=$(<"$ROOT/launch/jobset.yaml")
  for key in "${!values[@]}"; do
    # The quoted replacement is literal; bash 5.2 would expand & in a bare one.
    text=${text//"\${$key}"/"${values[$key]}"}
  done
  echo "${text/"\${COMMAND}"/"$(json "${TRAIN[@]}")"}"
}

do_start() {
  local file="${TMPDIR:-/tmp}/$name-jobset.yaml" text
  text=$(do_manifest)
  $DRY_RUN || echo "$text" >"$file"
  connect
  run kubectl apply -f "$file"
}

do_status() {
  connect
  run kubectl get jobset "$name"
  run kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name"
}

do_logs() {
  connect
  run kubectl logs --follow --tail=100 --container=train \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

do_stop() {
  connect
  echo "deleting the JobSet $name; its nodes stay and still cost money: see delete" >&2
  run kubectl delete jobset "$name"
}

do_delete() {
  required zone
  need gcloud "see cloud.google.com/sdk/docs/install"
  local number
  echo "deleting $slices node pool(s) $name-tpu-I and the cluster $name in ${OPTION[zone]}; buckets stay" >&2
  for ((number = 0; number < slices; number++)); do
    run gcloud container node-pools delete "$name-tpu-$number" "--cluster=$name" "${where[@]}"
  done
  run gcloud container clusters delete "$name" "${where[@]}"
}

"do_$ACTION"
