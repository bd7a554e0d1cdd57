"""Measures an export, or training runs: tables, plots, pictures and one HTML report.

  python -m contextdiff_jax.evaluate --export=runs/quickstart/export --output=runs/quickstart/check
  python -m contextdiff_jax.evaluate --export=EXPORT --output=DIR --what=fid30k,sweep \
      --features=inception.safetensors --data=tfds_dir=PREPARED

What can be measured, by --what (several are separated by commas):
  scenes        whether pictures of rendered scenes show what held-out prompts say, with the chance
                level (the default for exports trained on scenes)
  boxes         whether every box of held-out layouts of scenes holds its object, with the chance
                level (the default for exports of layouts of scenes)
  scene_fid     SceneFID: the Frechet distance of what is in boxes, for layouts of --data
  fid           Frechet distance to real images, CLIP score, precision and recall: one picture for
                each of --count captions of --captions or --data
  fid30k        the same for 30,000 random captions of COCO val2014, prepared by TFDS
  adm           FID, sFID, Inception Score, precision and recall as ADM's evaluator takes them, of
                50,000 pictures, the same number of each class; --reference may be its batch
  sweep         fid at several --guidance scales of the first stage: FID against CLIP score
  bits_per_dim  the exact discrete bound of held-out images and its terms over time; of flows
                the density by the exact ODE
  curves        metrics of training runs, --run=LABEL=FOLDER each
  cost          parameters, operations, training and sampling time, with and without the adapter
  in_context    whether pictures of in-context exports take colours and texture from the context,
                shape and place from the query, with the chance level (the default for those trained
                on scenes)
  styles        of in-context exports of a folder in several styles: the share of pictures in the
                style asked for, LPIPS (--lpips) and CLIP distance to the true ones
  directions    of the same exports: RMSE and Frechet distance for each pair of styles
  video         edited clips, --edits=LABEL=FOLDER each: CLIP text alignment and frame consistency,
                FateZero's two, PickScore, what changes outside masks, flicker
  heatmaps      the adapter's cross-attention over pictures of --prompt, drawn or given (--image)

OUTPUT gets results.json, a CSV file per table, plots, pictures and report.html. Results that are
already there stay. The same command goes on after an interruption; no picture is drawn or counted
twice, and pictures of another export, sampler or caption are refused. Exit codes: see
contextdiff_jax/entry.py.
"""

import math

from absl import flags
from etils import epath

from contextdiff_jax import entry
from contextdiff_jax.arguments import existing_folder
from contextdiff_jax.evaluation import (
    adm,
    attention_maps,
    bits_per_dim,
    box_accuracy,
    cost_of_stages,
    curves,
    in_context_directions,
    in_context_scenes,
    in_context_styles,
    prompt_following,
    scene_fid,
    scores,
    video,
)
from contextdiff_jax.evaluation.evaluation import Evaluation, Settings, evaluate
from contextdiff_jax.evaluation.resizing import PROTOCOLS
from contextdiff_jax.system.interruption import Watch
from contextdiff_jax.system.suggestions import nearest

PLANS = {
    "scenes": prompt_following.plan_scenes,
    "boxes": box_accuracy.plan_boxes,
    "scene_fid": scene_fid.plan_scene_fid,
    "fid": scores.plan_fid,
    "fid30k": scores.plan_fid30k,
    "adm": adm.plan_adm,
    "sweep": scores.plan_sweep,
    "bits_per_dim": bits_per_dim.plan_bits_per_dim,
    "curves": curves.plan_curves,
    "cost": cost_of_stages.plan_cost,
    "heatmaps": attention_maps.plan_heatmaps,
    "in_context": in_context_scenes.plan_in_context,
    "styles": in_context_styles.plan_styles,
    "directions": in_context_directions.plan_directions,
    "video": video.plan_video,
}

_WHAT = flags.DEFINE_list("what", [], f"Measurements: {', '.join(PLANS)}.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the report, results and pictures.")
_EXPORT = flags.DEFINE_string("export", None, "Folder written by contextdiff_jax.export or main.")
_STAGE = flags.DEFINE_string("stage", None, "The stage to measure; by default the last one.")
_SAMPLER = flags.DEFINE_multi_string("sampler", [], "Sampler settings, as in sample.py.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["auto", "float32", "bfloat16"], "Compute dtype; the export's by default."
)
_SEED = entry.define_seed("seed", 0, "Seed of all noise.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images computed at a time.", lower_bound=1)
_AUGMENTATION = entry.define_augmentation()
_COUNT = flags.DEFINE_integer(
    "count",
    None,
    f"Samples, one per caption. By default {prompt_following.SCENES} for scenes and boxes, "
    "30,000 for fid30k, 50,000 for adm, else all captions of a file, or up to 10,000 of a data "
    "source.",
    lower_bound=1,
    upper_bound=10**7,
)
_CAPTIONS = flags.DEFINE_string("captions", None, "A text file with one caption per line.")
_CAPTION_SEED = entry.define_seed("caption_seed", 0, "Seed that chooses the captions.")
_DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "field=value of the captioned images (fields: see data/config.py), e.g. --data=source=folder "
    "--data=path=photos --data=split=val. By default the training data; for scenes, unseen ones.",
)
_REFERENCE = flags.DEFINE_multi_string(
    "reference",
    [],
    "The real images: statistics.npz of an earlier evaluation, a reference batch for adm, or "
    "field=value settings on top of --data.",
)
_NPZ = flags.DEFINE_string(
    "npz", None, "File to write adm's pictures to, as ADM's own evaluator reads them."
)
_FEATURES = flags.DEFINE_string(
    "features",
    "clip",
    "Network of the Frechet distance: clip, or a safetensors file of Inception v3 (2015). A file "
    "that ends at mixed_7 gives FID-768.",
)
_CLIP = flags.DEFINE_string(
    "clip", None, "Hugging Face CLIP folder to score with; by default the export's own."
)
_LPIPS = flags.DEFINE_string(
    "lpips", None, "Folder with LPIPS' weights: SqueezeNet 1.1 and its linear layers."
)
_RESIZE = flags.DEFINE_enum(
    "resize", "torch-fidelity", list(PROTOCOLS), "How images are resized for Inception."
)
_GUIDANCE = flags.DEFINE_list(
    "guidance", ["1.5", "3", "4.5", "6", "7.5", "9"], "Guidance scales of sweep."
)
_TERMS = flags.DEFINE_integer(
    "terms", 0, "Number of diffusion times for bits_per_dim; 0: all.", lower_bound=0
)
_ODE_STEPS = flags.DEFINE_integer(
    "ode_steps", 0, "Steps of the ODE for bits_per_dim of flows; 0: 40.", lower_bound=0
)
_PROBES = flags.DEFINE_integer(
    "probes", 0, "Estimates of the divergence for bits_per_dim of flows; 0: 2.", lower_bound=0
)
_RUN = flags.DEFINE_multi_string("run", [], "LABEL=FOLDER of a training run, for curves and cost.")
_METRIC = flags.DEFINE_multi_string("metric", [], "A metric for curves; by default all in common.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt for heatmaps.")
_IMAGE = flags.DEFINE_multi_string("image", [], "An image file for heatmaps, one per --prompt.")
_WORD = flags.DEFINE_multi_string("word", [], "A word for heatmaps; by default each prompt's own.")
_EDITS = flags.DEFINE_multi_string(
    "edits", [], "LABEL=FOLDER for video: what `edit` wrote, or with --tgve a submission."
)
_TGVE = flags.DEFINE_string("tgve", None, "LOVEU-TGVE-2023's folder, for video.")
_MASKS = flags.DEFINE_string(
    "masks", None, "Folder with CLIP/NNN.png for video: white is what an edit should change."
)
_PICK_SCORE = flags.DEFINE_string(
    "pick_score", None, "Folder of PickScore's CLIP for video; without it PickScore is left out."
)
_TURNS = flags.DEFINE_integer("turns", 5, "How many times cost measures each side.", lower_bound=1)
_PROCESSES = entry.define_process_flags()
flags.mark_flags_as_required(["output"])


def main() -> None:
    settings = _settings()
    unknown = [name for name in _WHAT.value if name not in PLANS]
    if unknown:
        near = nearest(unknown[0], PLANS)
        raise ValueError(f"--what={unknown[0]}: must be one of {', '.join(PLANS)}{near}")
    _check_of_video()
    if settings.export:
        existing_folder(settings.export, "export")
    entry.check_writable(settings.output, "output")
    _check_npz(settings.npz)
    entry.join(_PROCESSES())
    entry.keep_compiled_programs(epath.Path(settings.output) / "compiled")
    evaluate(settings, {name: PLANS[name] for name in _WHAT.value or _default(settings)})


def _default(settings: Settings) -> list[str]:
    evaluation = Evaluation(settings, Watch())
    if evaluation.trained_on.source != "scenes":
        raise ValueError(f"--what is missing: give some of {', '.join(PLANS)}")
    return [evaluation.config.runs[evaluation.stage].task.scenes_measure]


def _check_npz(path: str) -> None:
    if not path:
        return
    if "adm" not in _WHAT.value:
        raise ValueError(f"--npz={path}: only --what=adm writes it")
    if not path.endswith(".npz") or epath.Path(path).is_dir():
        raise ValueError(f"--npz={path}: must be a file that ends with .npz")
    entry.check_writable(epath.Path(path).parent, "npz")


def _check_of_video() -> None:
    if "video" in _WHAT.value:
        return
    for flag in (_EDITS, _TGVE, _MASKS, _PICK_SCORE):
        if flag.value:
            shown = flag.value[0] if flag is _EDITS else flag.value
            raise ValueError(f"--{flag.name}={shown}: only --what=video reads it")


def _settings() -> Settings:
    return Settings(
        output=_OUTPUT.value,
        export=_EXPORT.value or "",
        stage=_STAGE.value or "",
        sampler=tuple(_SAMPLER.value),
        dtype=_DTYPE.value,
        count=_COUNT.value,
        seed=_SEED.value,
        caption_seed=_CAPTION_SEED.value,
        batch_size=_BATCH.value,
        augmentation=_AUGMENTATION.value,
        captions=_CAPTIONS.value or "",
        data=tuple(_DATA.value),
        reference=tuple(_REFERENCE.value),
        features=_FEATURES.value,
        clip=_CLIP.value or "",
        lpips=_LPIPS.value or "",
        resize=_RESIZE.value,
        guidance=tuple(map(_scale, _GUIDANCE.value)),
        runs=tuple(_labelled("run", text) for text in _RUN.value),
        metrics=tuple(_METRIC.value),
        prompts=tuple(_PROMPT.value),
        images=tuple(_IMAGE.value),
        words=tuple(_WORD.value),
        turns=_TURNS.value,
        terms=_TERMS.value,
        ode_steps=_ODE_STEPS.value,
        probes=_PROBES.value,
        npz=_NPZ.value or "",
        edits=tuple(_labelled("edits", text) for text in _EDITS.value),
        tgve=_TGVE.value or "",
        masks=_MASKS.value or "",
        pick_score=_PICK_SCORE.value or "",
    )


def _scale(text: str) -> float:
    try:
        scale = float(text)
        if math.isfinite(scale):
            return scale
    except ValueError:
        pass
    raise ValueError(f"--guidance={text}: must be numbers separated by commas")


def _labelled(flag: str, text: str) -> tuple[str, str]:
    label, equals, folder = text.partition("=")
    if not (label and equals and folder):
        raise ValueError(f"--{flag}={text}: must be LABEL=FOLDER")
    return label, folder


if __name__ == "__main__":
    entry.run(main)
