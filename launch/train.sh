#!/usr/bin/env bash
# Runs one process of a training run on this host: environment, compiler flags, then Python.
#
#   launch/train.sh --platform=tpu -- --config=configs/laion.py --workdir=gs://BUCKET/laion
#
# The other scripts call this on every host. It ends by exec, so a signal to it reaches Python.
#
#   --platform=tpu|gpu|cpu  compiler flags (launch/xla_flags.sh) and the required JAX backend
#   --python=PATH           interpreter; by default .venv/bin/python, if it is there, else python3
#   --module=NAME           what to run instead of contextdiff_jax.main, e.g. contextdiff_jax.prepare
#   --weights=URL           folder of encoder weights in a bucket, copied to weights/ here, unless it
#                           is there: encoders are read from a disk. One process per host only.
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh"

declare -A OPTION=([platform]="" [python]="" [module]=contextdiff_jax.main [weights]="")
parse "$@"
required platform
choice platform tpu gpu cpu
plain module

python=${OPTION[python]}
if [[ -z $python ]]; then
  python=python3
  [[ ! -x $ROOT/.venv/bin/python ]] || python=$ROOT/.venv/bin/python
fi
mapfile -t environment < <(xla_environment "${OPTION[platform]}")
command=(env "${environment[@]}" "$python" -m "${OPTION[module]}" "${REST[@]}")

need "$python" "run launch/setup_env.sh --platform=${OPTION[platform]} first"
cd "$ROOT"
if [[ -n ${OPTION[weights]} && ! -e weights ]]; then
  copy='import sys, fsspec; fs, path = fsspec.url_to_fs(sys.argv[1]); fs.get(path, sys.argv[2], recursive=True)'
  run rm -rf weights.part # of a copy that was cut off
  run "$python" -c "$copy" "${OPTION[weights]%/}" weights.part
  run mv weights.part weights
fi
quote "${command[@]}"
$DRY_RUN || exec "${command[@]}"
