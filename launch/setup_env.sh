#!/usr/bin/env bash
# Installs what a host needs: a virtual environment with requirements.txt and the platform's jax.
#
#   launch/setup_env.sh --platform=tpu
#
# Takes the first Python 3.11 or newer it finds. A host without one (TPU VMs come with 3.10) gets
# Python 3.12 through uv. Running it again brings an existing environment up to date.
#
#   --platform=tpu|gpu|cpu  jax[tpu], jax[cuda13], or plain jax
#   --venv=DIR              default .venv in the repository
#   --help, --dry-run
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

declare -A OPTION=([platform]="" [venv]=.venv)
parse "$@"
required platform
choice platform tpu gpu cpu
cd "$ROOT"
venv=${OPTION[venv]}

# Debian and Ubuntu ship python3 without ensurepip, which venv needs.
fits() {
  "$1" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if fits "$python"; then
      run "$python" -m venv "$venv"
      return
    fi
  done
  run python3 -m pip install --user --quiet uv
  run python3 -m uv venv --seed --python=3.12 "$venv"
}

[[ -x $venv/bin/python ]] || make_venv
case ${OPTION[platform]} in
  tpu) extra='jax[tpu]' ;;
  gpu) extra='jax[cuda13]' ;;
  cpu) extra=jax ;;
esac
# One call, so that pip finds versions that agree. epath-gcs: reading and writing gs://.
run "$venv/bin/python" -m pip install --quiet -r requirements.txt "$extra" 'etils[epath-gcs]'
# No jax.devices() here: on a slice it waits for all hosts.
run "$venv/bin/python" -c 'import jax, jaxlib; print("jax", jax.__version__, "jaxlib", jaxlib.__version__)'
