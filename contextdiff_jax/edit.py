"""Edits a clip, by a prompt that says what it shows and prompts that say what it should show.

  python -m contextdiff_jax.edit --config=configs/video_editing.py:fatezero --model=FOLDER \
      --clip=clips/rabbit --source_prompt="a rabbit is eating a watermelon" \
      --prompt="a cat is eating a watermelon" --output=edits

--model is a folder of Stable Diffusion in diffusers' layout (docs/stable_diffusion.md), --clip a
folder of frames, or a video file where PyAV is installed; or with --tgve a video of that benchmark.
Any key of the config can be overridden: --config.clip.count=16. Several --prompt share one
inversion, and the same command goes on where it was stopped. What is written:
generation/video_editing.py. Exit codes: see contextdiff_jax/entry.py.
"""

from absl import flags, logging

from contextdiff_jax import command_line, entry
from contextdiff_jax.arguments import existing, existing_folder
from contextdiff_jax.data.clips import read_clip
from contextdiff_jax.data.tgve import KINDS, TgveVideo, named_video, read_tgve
from contextdiff_jax.generation.editing_config import EditingConfig, read_editing_config
from contextdiff_jax.generation.editor import Beside, open_editor
from contextdiff_jax.generation.tgve_submission import write_submission
from contextdiff_jax.generation.video_editing import Wanted, check_prompts, edit_clip
from contextdiff_jax.parallel import distributed
from contextdiff_jax.system import notices
from contextdiff_jax.system.interruption import Watch

_CONFIG = command_line.define_config(
    "Config file, with a method after a colon: configs/video_editing.py:fatezero."
)
_MODEL = flags.DEFINE_string("model", None, "Folder of Stable Diffusion 1.x or 2.x.")
_TUNED = flags.DEFINE_string(
    "tuned", None, "Folder of a U-Net that was tuned on the clip, used instead of --model's."
)
_IMAGE = flags.DEFINE_string(
    "image_encoder", None, "Folder of CLIP, which a config with an adapter needs."
)
_CONTROLNET = flags.DEFINE_string(
    "controlnet", None, "A ControlNet, which a config with a control_scale needs: folder or file."
)
_CONTROL = flags.DEFINE_string(
    "control", None, "The clip that edits follow: edges, depth or poses; a folder or a video file."
)
_CLIP = flags.DEFINE_string("clip", None, "Folder of frames, or a video file.")
_SOURCE = flags.DEFINE_string("source_prompt", None, "What the clip shows.")
_PROMPT = flags.DEFINE_multi_string("prompt", None, "What an edit should show; may be given again.")
_TGVE = flags.DEFINE_string(
    "tgve",
    None,
    "Folder of LOVEU-TGVE-2023: --clip names one of its videos, which gives the prompts.",
)
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "Folder to write the edits to in the layout of a submission to --tgve."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the edits.")
_SEED = entry.define_seed("seed", 0, "Seed of tuning and of all noise.")
_PROCESSES = entry.define_process_flags()
flags.mark_flags_as_required(["config", "model", "clip", "output"])


def main() -> None:
    config = read_editing_config(_CONFIG.value)
    existing_folder(_MODEL.value, "model")
    beside = _beside(config)
    video = _of_benchmark()
    wanted = _wanted(config, video, 8, 8)  # the clip's mistakes come before the weights
    check_prompts(_MODEL.value, config, wanted)
    entry.join(_PROCESSES())
    entry.check_writable(_OUTPUT.value, "output")
    if _SUBMISSION.value is not None:
        entry.check_writable(_SUBMISSION.value, "submission")
    notices.doing("loading the model")
    editor = open_editor(_MODEL.value, config, beside, _SEED.value)
    height, width, _ = editor.stage.task.space.image_shape
    wanted = _wanted(config, video, height, width)
    notices.doing("editing")
    with Watch() as watch:
        places = edit_clip(editor, wanted, _OUTPUT.value, _SEED.value, watch)
    if _SUBMISSION.value is not None:
        if distributed.is_main():
            write_submission(_SUBMISSION.value, video, places, wanted.clip.native)
        distributed.wait_for_all("submission")
    if distributed.is_main():
        logging.info("edits are in %s", ", ".join(map(str, places)))


def _beside(config: EditingConfig) -> Beside:
    """Returns what the flags name beside the model; checks that it is there and is read."""
    for flag, folder in (("tuned", _TUNED.value), ("image_encoder", _IMAGE.value)):
        if folder is not None:
            existing_folder(folder, flag)
    if _CONTROLNET.value is not None:
        existing(_CONTROLNET.value, "controlnet")
    beside = Beside(_TUNED.value or "", _IMAGE.value or "", _CONTROLNET.value or "")
    beside.check(config)
    if _CONTROL.value is not None and not config.control_scale:
        raise ValueError(f"--control={_CONTROL.value}: only together with config.control_scale")
    if _CONTROL.value is None and config.control_scale:
        raise ValueError("--control is missing: config.control_scale needs a clip to follow")
    return beside


def _of_benchmark() -> TgveVideo | None:
    """Returns the video of --tgve that --clip names; checks which flags go together."""
    prompts = {"source_prompt": _SOURCE.value, "prompt": next(iter(_PROMPT.value or ()), None)}
    if _TGVE.value is None:
        if _SUBMISSION.value is not None:
            raise ValueError(f"--submission={_SUBMISSION.value}: only together with --tgve")
        for flag, value in prompts.items():
            if value is None:
                raise ValueError(f"--{flag} is missing")
        return None
    for flag, value in prompts.items():
        if value is not None:
            raise ValueError(f"--{flag}={value}: not with --tgve, which gives the prompts")
    existing_folder(_TGVE.value, "tgve")
    return named_video(read_tgve(_TGVE.value), _CLIP.value)


def _wanted(config: EditingConfig, video: TgveVideo | None, height: int, width: int) -> Wanted:
    source, prompts, path = _SOURCE.value, _PROMPT.value, _CLIP.value
    if video is not None:
        source, prompts = video.caption, [video.prompts[kind] for kind in KINDS]
        path = str(video.frames)
    control = None
    if _CONTROL.value is not None:
        control = read_clip(_CONTROL.value, config.clip, height, width)
    clip = read_clip(path, config.clip, height, width)
    return Wanted(clip, source, tuple(prompts), control)


if __name__ == "__main__":
    entry.run(main)
