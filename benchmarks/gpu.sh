#!/usr/bin/env bash
# Everything that is measured on one NVIDIA GPU, in one command, from the root of a clone:
#
#   DATA=PATH/TO/emoji_shards OUT=runs/gpu bash benchmarks/gpu.sh
#
# or in parts, each meant to take less than ten minutes:
#
#   bash benchmarks/gpu.sh install      a virtual environment with what the machine's Python lacks
#   bash benchmarks/gpu.sh attention    cuDNN's kernel equals plain attention, and its speed
#   bash benchmarks/gpu.sh training     our base U-Net against diffusers', training (gpu_unet.py)
#   bash benchmarks/gpu.sh sampling     the same, guided sampling in 50 steps
#   bash benchmarks/gpu.sh latent_training   Stable Diffusion 1.5's U-Net, ours and diffusers'
#                                            (gpu_latent.py); with latent_sampling meant to
#                                            take 12 minutes
#   bash benchmarks/gpu.sh latent_sampling   the same, guided sampling in 25 steps
#   bash benchmarks/gpu.sh emoji        configs/emoji.py with and without adapter (needs DATA)
#   bash benchmarks/gpu.sh flow         configs/classes.py: the contextual flow and the paper's
#                                       process by numbers of network calls (needs CIFAR10)
#
# OUT gets PART.log, PART.json, and emoji.tar.gz with pictures and metrics. By environment:
#   VENV=.venv-gpu     the virtual environment; it sees the packages of PYTHON (default python3)
#   WHEELS=FOLDER      install from the wheels in there, without a network
#   MINUTES=2          of emoji's training with the adapter; CLIP_STEPS=600 before that
#   CIFAR10=FOLDER     train and test, with a metadata.jsonl each (docs/evidence/cifar10.md)
#   FLOW_STEPS=5000    of each training of flow; FLOW_SEEDS=0; FLOW_VARIANTS=flow_none,...
#   UNET_FLAGS, LATENT_FLAGS, EMOJI_FLAGS, FLOW_FLAGS   further flags of the parts' commands
#   LIMIT=570          seconds after which a part is stopped
#
# On an H100 with 16 cores, torch and XLA compile for three minutes each in `training`. What was
# measured is in docs/speed.md; all but `training` have run at toy size on a CPU only. `flow` that
# was stopped by LIMIT goes on where it was: give the part again.
set -euo pipefail

OUT=${OUT:-runs/gpu}
VENV=${VENV:-.venv-gpu}
if [ ! -f benchmarks/gpu.sh ]; then
    echo "gpu.sh: $PWD is not the root of a clone: start it from there" >&2
    exit 2
fi
mkdir -p "$OUT"
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
# Two frameworks share the device; compiled programs outlive a part.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$VENV/compiled}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$VENV/inductor}

install() {
    if [ ! -x "$VENV/bin/python" ]; then
        "${PYTHON:-python3}" -m venv "$VENV"
        # Not --system-site-packages: where PYTHON is itself a virtual environment's, that shows
        # the packages of the system's Python instead of its own.
        "${PYTHON:-python3}" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
            > "$(echo "$VENV"/lib/python3*/site-packages)/packages_of_python.pth"
    fi
    local source=()
    if [ -n "${WHEELS:-}" ]; then source=(--no-index --find-links "$WHEELS"); fi
    # pip leaves alone what is there in a fitting version.
    "$VENV/bin/python" -m pip install -q "${source[@]}" -r requirements.txt 'jax[cuda13]' torch \
        'diffusers>=0.35,<1'
    "$VENV/bin/python" -c 'import jax, torch, diffusers
print("jax", jax.__version__, jax.devices(), "torch", torch.__version__,
      "CUDA" if torch.cuda.is_available() else "without CUDA", "diffusers", diffusers.__version__)'
}

unet() {
    # shellcheck disable=SC2086  # flags are words
    timeout "${LIMIT:-570}" "$VENV/bin/python" -m benchmarks.gpu_unet --what="$1" \
        --json="$OUT/$1.json" ${UNET_FLAGS:-}
}

latent() {
    # shellcheck disable=SC2086
    timeout "${LIMIT:-570}" "$VENV/bin/python" -m benchmarks.gpu_latent --what="${1#latent_}" \
        --turns=3 --json="$OUT/$1.json" ${LATENT_FLAGS:-}
}

attention() {
    timeout "${LIMIT:-570}" "$VENV/bin/python" -m benchmarks.fused_attention \
        --json="$OUT/attention.json"
}

emoji() {
    local status=0
    # shellcheck disable=SC2086
    timeout "${LIMIT:-570}" "$VENV/bin/python" -m benchmarks.adapter_vs_plain \
        --data_path="${DATA:?DATA is not set: the folder of the emoji shards}" \
        --output="$OUT/emoji" --minutes="${MINUTES:-2}" --clip_steps="${CLIP_STEPS:-600}" \
        ${EMOJI_FLAGS:-} || status=$?
    # What there is, also when time ran out.
    if [ -f "$OUT/emoji/summary.json" ]; then cp "$OUT/emoji/summary.json" "$OUT/emoji.json"; fi
    tar -C "$OUT" --exclude=emoji/work -czf "$OUT/emoji.tar.gz" emoji
    return $status
}

flow_variants=flow_none_logit_normal,vp_none_logit_normal,vp_none,vp_paper,flow_none,flow_coupling
flow_variants+=,flow_coupling_logit_normal,flow_whitening_logit_normal,flow_mean_logit_normal

flow() {
    local status=0
    # shellcheck disable=SC2086
    timeout "${LIMIT:-570}" "$VENV/bin/python" -m benchmarks.paired_runs \
        --config=classes:folder --data_path="${CIFAR10:?CIFAR10 is not set: the folder of CIFAR-10}" \
        --output="$OUT/flow" --seeds="${FLOW_SEEDS:-0}" --steps="${FLOW_STEPS:-5000}" \
        --what=fid,bits_per_dim --data=split=test --count=1000 --calls=4,8,16,50 \
        --sampler=guidance_scale=1 --config.runs.base.optimizer.warmup_steps=500 \
        --variants="${FLOW_VARIANTS:-$flow_variants}" \
        ${FLOW_FLAGS:-} || status=$?
    tar -C "$OUT" --exclude=work --exclude=shared --exclude=reference --exclude=compiled \
        -czf "$OUT/flow.tar.gz" flow
    return $status
}

part() {
    case $1 in
        install | attention | emoji | flow) "$1" ;;
        training | sampling) unet "$1" ;;
        latent_training | latent_sampling) latent "$1" ;;
    esac
}

parts="install attention training sampling latent_training latent_sampling emoji flow"
# shellcheck disable=SC2086
if [ $# -eq 0 ]; then set -- $parts; fi
for name in "$@"; do
    case " $parts " in
        *" $name "*) ;;
        *)
            echo "gpu.sh: unknown part '$name': must be one of ${parts// /, }" >&2
            exit 2
            ;;
    esac
done
if [ $# -eq 1 ]; then
    part "$1" 2>&1 | tee "$OUT/$1.log"
    exit
fi
failed=()
for name in "$@"; do
    echo "== $name"
    bash benchmarks/gpu.sh "$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "gpu.sh: failed: ${failed[*]}; their logs are in $OUT" >&2
    exit 1
fi
