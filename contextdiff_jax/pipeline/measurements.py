"""Measurements that need no reference images: scenes, curves, cost, attention."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation import cost, curves, likelihood_plot, prompt_following
from contextdiff_jax.evaluation.results import Gallery, Result
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.pipeline import attention_maps
from contextdiff_jax.pipeline.cost import measure_costs
from contextdiff_jax.pipeline.evaluation import Evaluation
from contextdiff_jax.pipeline.generate import Pictures
from contextdiff_jax.pipeline.likelihood import LikelihoodSettings, bits_per_dim

SCENES = 256  # prompts by default
_SHOWN = 24  # pictures of a sample grid


def plan_scenes(evaluation: Evaluation) -> Callable[[], Result]:
    """Do pictures of rendered scenes show what held-out prompts say? Read back exactly."""
    data = evaluation.data()
    if data.source != "scenes" or evaluation.settings.captions:
        trained = evaluation.trained_on.source
        raise ValueError(f"--what=scenes: only rendered scenes can be checked, this is {trained!r}")
    count = evaluation.settings.count or SCENES
    if count < 2:
        raise ValueError(f"--count={count}: must be at least 2, prompts are shuffled")
    prompts = tuple(prompt_following.held_out_prompts(data.scenes, count, data.split))

    def work() -> Result:
        pictures = evaluation.draw(prompts, "scenes")
        read = {stage: pictures.read(stage, range(count)) for stage in pictures.stages}
        shown = sample_gallery(pictures, evaluation.stage, "scenes")
        protocol = {**evaluation.protocol(), "split": data.split, "count": count}
        return prompt_following.measure(read, prompts, protocol, (shown,))

    return work


def sample_gallery(pictures: Pictures, stage: str, folder: str, title: str = "Samples") -> Gallery:
    """Returns the first pictures with their captions; folder: theirs, in the output folder."""
    return chosen_gallery(pictures, stage, folder, range(min(_SHOWN, len(pictures))), title)


def chosen_gallery(
    pictures: Pictures,
    stage: str,
    folder: str,
    places: Sequence[int],
    title: str,
    agreement: np.ndarray | None = None,
) -> Gallery:
    """Returns the pictures at these places with their captions, and agreement (N,) if given."""
    items = []
    for place in places:
        caption = pictures.captions[place]
        if agreement is not None:
            caption = f"{agreement[place]:.3f}  {caption}"
        items.append((f"{folder}/{stage}/{pictures.path(stage, place).name}", caption))
    return Gallery(title, tuple(items))


def plan_bits_per_dim(evaluation: Evaluation) -> Callable[[], Result]:
    """The exact discrete bound of held-out images, term by term."""
    settings, data = evaluation.settings, evaluation.data()
    if data.source == "scenes" and not (settings.count or data.limit):
        raise ValueError("--what=bits_per_dim: scenes are endless, give --count")
    open_source(data)
    asked = LikelihoodSettings(
        count=settings.count or 0,
        seed=settings.seed,
        num_terms=settings.terms,
        batch_size=settings.batch_size,
    )

    def work() -> Result:
        folder = evaluation.output / "bits_per_dim"
        stage = evaluation.cascade.stages[-1]
        result = bits_per_dim(stage, data, folder, asked, evaluation.watch)
        figure = likelihood_plot.draw(result.tables[0], evaluation.output)
        return dataclasses.replace(
            result,
            protocol={"export": settings.export, **result.protocol},
            figures=(*result.figures, figure),
            warnings=(*result.warnings, *evaluation.data_warnings(data)),
        )

    return work


def plan_curves(evaluation: Evaluation) -> Callable[[], Result]:
    """Metrics of training runs over their steps."""
    runs = _read_runs(evaluation)
    if not runs:
        raise ValueError("--what=curves: give --run=LABEL=FOLDER of each run to plot")
    curves.common_metrics(runs, evaluation.settings.metrics)
    return lambda: curves.measure(runs, evaluation.settings.metrics, evaluation.output)


def plan_cost(evaluation: Evaluation) -> Callable[[], Result]:
    """Parameters, operations, training and sampling time, with the adapter and without."""
    training = cost.training_seconds(_read_runs(evaluation))
    settings = evaluation.settings
    if not settings.export:
        raise ValueError("--export is missing: cost is of its networks")

    def work() -> Result:
        measured = measure_costs(evaluation.cascade, settings.batch_size, settings.turns)
        protocol = {
            **evaluation.protocol(),
            "batch size": settings.batch_size,
            "turns": f"{settings.turns} of each side, alternating, after one to warm up; medians",
            "devices": jax.device_count(),
            "operations": "multiplications and additions of matrix products and convolutions, "
            "text encoding included, nothing computed twice",
        }
        return cost.measure(measured, training, protocol)

    return work


def _read_runs(evaluation: Evaluation) -> dict[str, dict[str, curves.Curve]]:
    return {label: curves.read_metrics(path) for label, path in evaluation.settings.runs}


def plan_heatmaps(evaluation: Evaluation) -> Callable[[], Result]:
    """The adapter's cross-attention over pictures, given or drawn."""
    settings = evaluation.settings
    prompts = settings.prompts or tuple(p for p in evaluation.config.samples.prompts if p.strip())
    if not prompts:
        raise ValueError("--what=heatmaps: give --prompt=TEXT")
    if settings.images and len(settings.images) != len(prompts):
        raise ValueError(
            f"{len(settings.images)} --image for {len(prompts)} --prompt: must be as many"
        )
    stage = evaluation.cascade.stages[-1]
    words = attention_maps.choose_words(stage, prompts, settings.words)
    given = None
    if settings.images:
        given = attention_maps.read_images(settings.images, stage.task.resolution)

    def work() -> Result:
        pictures = _drawn(evaluation, prompts) if given is None else given
        origin = {} if given is None else {"images": settings.images}
        protocol = {**evaluation.protocol(), **origin}
        return attention_maps.measure(stage, pictures, prompts, words, evaluation.output, protocol)

    return work


def _drawn(evaluation: Evaluation, prompts: tuple[str, ...]) -> np.ndarray:
    settings = evaluation.settings
    drawn = evaluation.cascade.draw(
        prompts,
        seed=settings.seed,
        batch_size=settings.batch_size,
        augmentation=evaluation.augmentation,
    )
    return to_uint8(drawn[evaluation.stage])
