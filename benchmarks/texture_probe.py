"""What do CLIP's tokens of context pictures tell of texture and colour? A linear probe on scenes.

  python -m benchmarks.texture_probe --encoder=runs/in_context/clip/encoder

Ridge regression of one-hot classes on the tokens as the denoiser gets them, normalized pictures
summed over one and over three; fitted on scenes of split train, right answers counted on test. The
same of pixels, and of the tower with random weights. It prints JSON.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from contextdiff_jax.conditions.context_images import ContextImages
from contextdiff_jax.conditions.image_normalization import FLOOR
from contextdiff_jax.data.config import COLOURS, DataConfig, ScenesConfig
from contextdiff_jax.data.context_scenes import TEXTURES, ContextScenesSource
from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.frozen import load_image_encoder

MOST, SIDE = 3, 16
_PENALTY = 300.0
_AT_A_TIME = 200

Labels = dict[str, np.ndarray]


def scenes(split: str, count: int) -> tuple[np.ndarray, Labels]:
    """Returns contexts (count, SIDE, SIDE, MOST, 4) uint8, and what they show by class numbers."""
    data = DataConfig(resolution=SIDE, split=split, scenes=ScenesConfig(pairs=0.0, context=MOST))
    source = ContextScenesSource(data)
    shown = [source.shown(index) for index in range(count)]
    labels = {
        "texture": np.array([TEXTURES.index(each.texture) for each in shown]),
        "colour": np.array([COLOURS.index(each.scene.things[0].colour) for each in shown]),
    }
    return np.stack([source[index].maps["context"] for index in range(count)]), labels


def share_right(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray
) -> float:
    """Returns the share of test features (M, D) whose class ridge regression on train finds."""
    mean, spread = train.mean(0), train.std(0) + 1e-6
    x, other = (
        np.concatenate([(part - mean) / spread, np.ones((len(part), 1))], axis=1)
        for part in (train.astype(np.float64), test.astype(np.float64))
    )
    targets = np.eye(labels.max() + 1)[labels]
    weights = np.linalg.solve(x.T @ x + _PENALTY * np.eye(x.shape[1]), x.T @ targets)
    return float(((other @ weights).argmax(axis=1) == wanted).mean())


def features(condition: ContextImages, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from contexts to the tokens of a tower, each example's in one row."""
    tokens = jax.jit(lambda batch: condition.tokens({condition.encoder.identity: params}, batch))

    def rows(contexts: np.ndarray) -> np.ndarray:
        starts = range(0, len(contexts), _AT_A_TIME)
        parts = [np.asarray(tokens(contexts[start : start + _AT_A_TIME])) for start in starts]
        return np.concatenate(parts).reshape(len(contexts), -1)

    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints and returns {what is read: {what it tells: share that is right}}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.texture_probe", description=__doc__)
    parser.add_argument("--encoder", required=True, help="folder of the CLIP that a run trained")
    parser.add_argument("--train", type=int, default=3000, help="scenes it is fitted on")
    parser.add_argument("--test", type=int, default=800, help="scenes it is asked about")
    args = parser.parse_args(argv)
    encoder = load_image_encoder(args.encoder)
    condition = ContextImages(MOST, SIDE, floor=FLOOR, encoder=encoder)
    side = encoder.module.config.image_size
    init = jax.jit(lambda key, image: encoder.module.init(key, image, method=CLIP.encode_image))
    fresh = nn.unbox(init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"])
    read = {
        "pixels": lambda contexts: contexts[..., :3].reshape(len(contexts), -1),
        "tokens": features(condition, encoder.params),
        "tokens, random tower": features(condition, fresh),
    }
    (train, labels), (test, wanted) = scenes("train", args.train), scenes("test", args.test)
    found: dict[str, dict[str, float]] = {}
    for name, rows in read.items():
        for count in (1, MOST):
            pair = [each.copy() for each in (train, test)]
            for each in pair:
                each[:, :, :, count:] = 0
            fitted, asked = map(rows, pair)
            found[f"{name} of {count}"] = {
                what: share_right(fitted, labels[what], asked, wanted[what]) for what in labels
            }
    print(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
