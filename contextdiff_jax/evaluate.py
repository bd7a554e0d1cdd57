"""Measures an export of the quickstart: do its pictures show what held-out prompts say?

  python -m contextdiff_jax.evaluate --export=runs/quickstart/export --output=runs/quickstart/check

Draws one picture for each held-out prompt, reads colour, shape and position back from it, and
does the same with the prompts shuffled, which is the chance level. Writes agreement.json and the
pictures. Only for models trained on rendered scenes. Exit codes: see contextdiff_jax/entry.py.
"""

import json

from absl import flags
from etils import epath

from contextdiff_jax import entry
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.evaluation import prompt_following
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.pipeline.cascade import Cascade, write_pictures
from contextdiff_jax.pipeline.export import read_export

_EXPORT = flags.DEFINE_string("export", None, "Folder written by contextdiff_jax.export or main.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for agreement.json and the pictures.")
_COUNT = flags.DEFINE_integer("count", 256, "Held-out prompts.", lower_bound=2)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "compositional"], "Unseen scenes, or unseen combinations."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all noise.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Pictures drawn at a time.", lower_bound=1)
_SAMPLER = flags.DEFINE_multi_string("sampler", [], "Sampler settings, as in sample.py.")
flags.mark_flags_as_required(["export", "output"])


def main() -> None:
    config = from_config_dict(read_export(_EXPORT.value)[0]["config"])
    data = config.runs[config.pipeline[-1]].data
    if data.source != "scenes":
        raise ValueError(f"the export was trained on {data.source!r}: only 'scenes' can be checked")
    prompts = prompt_following.held_out_prompts(data.scenes, _COUNT.value, _SPLIT.value)
    cascade = Cascade.load(_EXPORT.value, sampler=_SAMPLER.value)
    drawn = cascade.draw(prompts, seed=_SEED.value, batch_size=_BATCH.value)
    output = epath.Path(_OUTPUT.value)
    results = {}
    for stage, images in drawn.items():
        write_pictures(output / stage, images, prompts)
        pictures = to_uint8(images)
        results[stage] = {
            "prompts": prompt_following.agreement(pictures, prompts).to_json(),
            "shuffled": prompt_following.agreement(
                pictures, prompt_following.shuffled(prompts)
            ).to_json(),
        }
        for name, shares in results[stage].items():
            print(stage, name, " ".join(f"{k} {v:.3f}" for k, v in shares.items() if k != "count"))
    (output / "agreement.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    entry.run(main)
