"""Do in-context pictures have the style that was asked for, and are they near the true picture?

The style is what a small classifier says; LPIPS and the cosine of CLIP's embeddings say how far a
picture is from the true one. The query, the same thing in another style, stands beside.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.one_pass import one_pass
from contextdiff_jax.data.styled_folder import StyledFolderSource
from contextdiff_jax.encoders.lpips import LEAST, LPIPS, load_lpips
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.feature_networks import FeatureNetwork, clip_folder, load_networks
from contextdiff_jax.evaluation.galleries import sample_gallery
from contextdiff_jax.evaluation.in_context_examples import Examples
from contextdiff_jax.evaluation.in_context_held_out import (
    BOTH,
    CONTEXT,
    PROMPT,
    HeldOut,
    Images,
    drawn,
    held_out,
    images_of,
    parts,
)
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.evaluation.similarity import cosines
from contextdiff_jax.evaluation.style_classifier import StyleClassifier, train_classifier
from contextdiff_jax.generation.generate import Pictures

_TRAINED_ON = 5000  # pictures at most


@dataclasses.dataclass(frozen=True)
class _Networks:
    """What pictures are compared by. lpips: None where its weights are not given."""

    classifier: StyleClassifier
    clip: FeatureNetwork
    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    batch_size: int

    def compared(
        self, images: Images, examples: Examples, styles: Sequence[str]
    ) -> dict[str, float]:
        """Returns how near pictures are to what the examples truly are."""
        found: dict[str, list[np.ndarray]] = {"style": [], "CLIP distance": []}
        found |= {"LPIPS": []} if self.lpips else {}
        for chosen in parts(range(len(examples)), self.batch_size):
            ours, true = images(chosen), examples.true(chosen)
            wanted = [styles[number] for number in chosen]
            seen = self.classifier(ours)
            found["style"].append(np.array(seen) == np.array(wanted))
            embeddings = (self.clip.extract(each)[self.clip.layer] for each in (ours, true))
            found["CLIP distance"].append(1 - cosines(*embeddings))
            if self.lpips:
                found["LPIPS"].append(self.lpips(ours, true))
        return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


def plan_styles(evaluation: Evaluation) -> Callable[[], Result]:
    """Style and nearness of pictures of held-out things, for prompt, context and both."""
    settings = evaluation.settings
    asked = held_out(evaluation, "styles")
    train = StyledFolderSource(dataclasses.replace(asked.data, split="train"), SkipReport())
    folder = clip_folder(evaluation.config, evaluation.locate, settings.clip)
    clip = load_networks("clip", settings.resize, folder, settings.batch_size).clip
    lpips, identity = None, ""
    if settings.lpips:
        if asked.data.resolution < LEAST:
            raise ValueError(
                f"--lpips={settings.lpips}: pictures of {asked.data.resolution} pixels, must be at "
                f"least {LEAST}"
            )
        params, identity = load_lpips(settings.lpips)
        lpips = _distance(params)

    def work() -> Result:
        examples, directions = asked.written(evaluation)
        classifier = _trained(train, asked.data.reading_threads)
        networks = _Networks(classifier, clip, lpips, settings.batch_size)
        styles = [style for _, style in directions]
        sets: dict[str, tuple[str, Pictures]] = {}
        every = asked.data.context
        for most in range(1, every + 1):
            shown = None if most == every else most  # all of them other measures draw, too
            sets[f"context of {most}"] = drawn(evaluation, examples, CONTEXT, shown)
        sets[PROMPT] = drawn(evaluation, examples, PROMPT)
        sets[BOTH] = drawn(evaluation, examples, BOTH)
        values = {
            title: networks.compared(images_of(pictures, evaluation.stage), examples, styles)
            for title, (_, pictures) in sets.items()
        }
        values["the query itself"] = networks.compared(examples.queries, examples, styles)
        values["the true picture"] = networks.compared(examples.true, examples, styles)
        protocol = asked.protocol(evaluation, examples) | {
            "classifier": f"{classifier.protocol()}, of {', '.join(classifier.names)}",
            "CLIP": clip.identity.to_json(),
            "LPIPS": f"SqueezeNet, v0.1, {identity}" if lpips else "not measured: no --lpips",
        }
        return _result(evaluation, asked, sets, values, protocol)

    return work


def _distance(params: dict) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    @jax.jit
    def distance(first: jax.Array, second: jax.Array) -> jax.Array:
        pair = (each.astype(np.float32) / 127.5 - 1 for each in (first, second))
        return LPIPS().apply({"params": params}, *pair)

    return lambda first, second: np.asarray(distance(first, second))


def _trained(source: StyledFolderSource, threads: int) -> StyleClassifier:
    """Returns a classifier of the source's things, those that are not held out.

    Raises ValueError where none of their pictures can be read, or all are in one style.
    """
    report = SkipReport()
    order = np.random.default_rng(0).permutation(len(source))[:_TRAINED_ON].tolist()
    found = [
        (example.image, source.styles(place)[1])
        for batch in one_pass(source, order, 64, report, threads)
        for place, example in batch
    ]
    if not found:
        raise ValueError(f"no usable sample in {source.name}: {'; '.join(report.summary())}")
    pictures, styles = zip(*found, strict=True)
    return train_classifier(np.stack(pictures), styles)


def _result(
    evaluation: Evaluation,
    asked: HeldOut,
    sets: dict[str, tuple[str, Pictures]],
    values: dict[str, dict[str, float]],
    protocol: dict,
) -> Result:
    columns = tuple(next(iter(values.values())))
    rows = tuple((title, *(found[name] for name in columns)) for title, found in values.items())
    return Result(
        title="Do the pictures have the context's style, and show the query's thing?",
        summary="style: the share of pictures that the classifier finds in the style asked for. "
        "LPIPS and CLIP distance are to the true picture: lower is nearer. The query itself is the "
        "same thing in another style; of the true pictures style is how often the classifier is "
        "right.",
        values=values,
        protocol=protocol,
        tables=(Table("styles", ("given, beside the query", *columns), rows),),
        galleries=tuple(
            sample_gallery(pictures, evaluation.stage, folder, title)
            for title, (folder, pictures) in sets.items()
        ),
        warnings=evaluation.data_warnings(asked.data),
    )
