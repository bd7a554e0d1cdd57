"""What the measurements of one evaluation share: the export, its captions, what is real, output."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

import contextdiff_jax
from contextdiff_jax.conditions.requests import Request, check_requests, of_captions
from contextdiff_jax.config import Config
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import SkipReport, Source
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation.captions import choose, data_settings, draw_captions, read_captions
from contextdiff_jax.evaluation.report import write_report
from contextdiff_jax.evaluation.results import Result, read_results, write_results
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.generate import Noise, Pictures, describe, generate
from contextdiff_jax.generation.sampler_flags import asked_samplers
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs.build import Locate, asked_conditions
from contextdiff_jax.runs.description import Export
from contextdiff_jax.runs.export import read_export
from contextdiff_jax.system.interruption import Interrupted, Watch
from contextdiff_jax.system.seeds import check_seed
from contextdiff_jax.system.suggestions import nearest

COCO = {"source": "tfds", "path": "coco_captions", "split": "restval+val+test"}
"""COCO val2014, as the splits of TFDS have it (Karpathy & Fei-Fei 2015)."""

MOST_BY_DEFAULT = 10_000  # samples of a data source


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for; the flags of evaluate.py, under their names."""

    output: str
    export: str = ""
    stage: str = ""
    sampler: tuple[str, ...] = ()
    dtype: str | None = None
    count: int | None = None
    seed: int = 0
    caption_seed: int = 0
    batch_size: int = 64
    augmentation: float | None = None
    captions: str = ""
    data: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    features: str = "clip"
    clip: str = ""
    lpips: str = ""
    resize: str = "torch-fidelity"
    guidance: tuple[float, ...] = ()
    runs: tuple[tuple[str, str], ...] = ()
    metrics: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    turns: int = 5
    terms: int = 0
    ode_steps: int = 0
    probes: int = 0
    npz: str = ""
    edits: tuple[tuple[str, str], ...] = ()
    tgve: str = ""
    masks: str = ""
    pick_score: str = ""


class Evaluation:
    """One call of evaluate.py. What is costly is loaded when first asked for, and once."""

    def __init__(self, settings: Settings, watch: Watch):
        self.settings = settings
        self.watch = watch
        self.output = epath.Path(settings.output)

    @functools.cached_property
    def _export(self) -> tuple[Export, Locate]:
        if not self.settings.export:
            raise ValueError("--export is missing: this measurement draws or reads its networks")
        return read_export(self.settings.export)

    @property
    def locate(self) -> Locate:
        """Finds the export's encoders."""
        return self._export[1]

    @functools.cached_property
    def config(self) -> Config:
        """The config that the export was trained with."""
        return self._export[0].config

    @functools.cached_property
    def stage(self) -> str:
        """The stage to measure: the last one unless said otherwise."""
        stages = list(self._export[0].stages)
        stage = self.settings.stage or stages[-1]
        if stage not in stages:
            near = nearest(stage, stages)
            raise ValueError(f"--stage={stage}: must be one of {', '.join(stages)}{near}")
        return stage

    @property
    def trained_on(self) -> DataConfig:
        """The data of the measured stage's training run."""
        return self.config.runs[self.stage].data

    @property
    def augmentation(self) -> float:
        """The noise level of the low-resolution condition: as asked for, or the export's own."""
        asked = self.settings.augmentation
        return self.config.samples.augmentation if asked is None else asked

    def check(self) -> None:
        """Raises ValueError for a seed, a stage or a sampler setting that is not there."""
        check_seed(self.settings.seed, "--seed")
        check_seed(self.settings.caption_seed, "--caption_seed")
        if self.settings.export:
            self.check_samplers()
            self.stage  # noqa: B018

    def check_samplers(self, guidance: Sequence[float] = ()) -> None:
        """Raises ValueError for sampler settings that do not serve the export's stages.

        guidance: scales that the first of them is to be drawn at, too.
        """
        stages = list(self._export[0].stages)
        more = [[f"{stages[0]}.guidance_scale={scale}"] for scale in guidance]
        for settings in ([], *more):
            asked_samplers(self.config, stages, [*self.settings.sampler, *settings])

    @functools.cached_property
    def cascade(self) -> Cascade:
        """The stages up to the measured one, on the devices."""
        settings = self.settings
        cascade = Cascade.load(
            settings.export, dtype=settings.dtype, sampler=settings.sampler, opened=self._export
        )
        return cascade.until(self.stage)

    @functools.cached_property
    def networks(self) -> dict[str, Any]:
        """What the pictures depend on, by stage."""
        return describe(self.cascade)

    def data(self, defaults: Mapping[str, str] | None = None) -> DataConfig:
        """Returns the captioned data: --data on top of `defaults`, or of the training data.

        Scenes are the unseen ones by default.
        """
        base = self.trained_on
        if base.source == "scenes":
            base = dataclasses.replace(base, split="test")
        asked = [f"{key}={value}" for key, value in (defaults or {}).items()]
        return data_settings(base, [*asked, *self.settings.data], "data")

    def open_data(self, data: DataConfig, report: SkipReport | None = None) -> Source:
        """Opens data; what the measured stage's task cannot use are damaged samples."""
        return self.config.runs[self.stage].task.usable(open_source(data, report))

    def data_warnings(self, data: DataConfig) -> tuple[str, ...]:
        """Says so where the measured data are those that the stage was trained on."""
        trained = self.trained_on
        if (data.source, data.path, data.split) != (trained.source, trained.path, trained.split):
            return ()
        return (
            f"the data are those of training ({data.source} {data.path}, split {data.split}): "
            "nothing here shows that the model generalises",
        )

    def captions(self, data: DataConfig, count: int | None) -> tuple[str, ...]:
        """Returns one caption per sample: of --captions, or of `data`.

        count: how many, if --count does not say; None takes all, of data at most MOST_BY_DEFAULT.

        Raises ValueError for one that the export cannot draw.
        """
        found = self._found_captions(data, count)
        stages = list(self._export[0].stages)
        read = asked_conditions(self.config, stages[: stages.index(self.stage) + 1])
        if read is not None:
            check_requests(of_captions(found, read), read, "caption")
        return found

    def _found_captions(self, data: DataConfig, count: int | None) -> tuple[str, ...]:
        settings = self.settings
        asked = settings.count or count
        if settings.captions:
            found = read_captions(settings.captions)
            return tuple(choose(found, asked, settings.caption_seed) if asked else found)
        if data.endless:
            data = dataclasses.replace(data, limit=asked or MOST_BY_DEFAULT)
        source = self.open_data(data)
        asked = asked or min(len(source), MOST_BY_DEFAULT)
        return tuple(draw_captions(source, asked, settings.caption_seed))

    def draw(
        self, captions: tuple[str, ...], folder: str, cascade: Cascade | None = None
    ) -> Pictures:
        """Draws a picture per caption into OUTPUT/folder, or goes on with it."""
        cascade = cascade or self.cascade
        return self.draw_requests(of_captions(captions, cascade.conditions), folder, cascade)

    def draw_requests(
        self, requests: Sequence[Request], folder: str, cascade: Cascade | None = None
    ) -> Pictures:
        """Draws a picture per request into OUTPUT/folder, or goes on with it."""
        settings, cascade = self.settings, cascade or self.cascade
        noise = Noise(settings.seed, self.augmentation, settings.batch_size)
        return generate(cascade, self.networks, requests, self.output / folder, noise, self.watch)

    def protocol(self) -> dict[str, Any]:
        """Returns what every drawn picture depends on, for results to record."""
        settings = self.settings
        stages = self.cascade.stages
        return {
            "export": settings.export,
            "stage": self.stage,
            "resolution": stages[-1].task.resolution,
            "adapter": stages[-1].task.adapter is not None,
            "steps trained": {s.name: self._export[0].stages[s.name].step for s in stages},
            "weights": {s.name: self.networks[s.name]["weights"] for s in stages},
            "sampler": {
                s.name: f"{s.sampler.name}, {s.sampler.num_steps} steps, "
                f"guidance {s.sampler.guidance_scale:g}, threshold {s.sampler.threshold}"
                for s in stages
            },
            "augmentation": self.augmentation,
            "seed": settings.seed,
            "caption seed": settings.caption_seed,
            "device": jax.devices()[0].device_kind,
        }


Plan = Callable[[Evaluation], Callable[[], Result]]
"""Checks all that can be checked at once and returns the long work."""


def evaluate(settings: Settings, plans: Mapping[str, Plan]) -> None:
    """Makes the measurements in turn; each is stored and reported as soon as it is there.

    Results of the same folder that are not measured again stay.

    Raises ValueError before any long work where something asked for cannot be.
    """
    with Watch() as watch:
        evaluation = Evaluation(settings, watch)
        results = read_results(settings.output)
        evaluation.check()
        works = {name: plan(evaluation) for name, plan in plans.items()}
        for number, (name, work) in enumerate(works.items(), 1):
            results[name] = work()
            if distributed.is_main():
                _store(evaluation, results)
            if distributed.from_main(watch.triggered) and number < len(works):
                raise Interrupted(number, "measurement")
    logging.info("report: %s", evaluation.output / "report.html")


def _store(evaluation: Evaluation, results: Mapping[str, Result]) -> None:
    versions = {"contextdiff_jax": contextdiff_jax.__version__, "jax": jax.__version__}
    write_results(evaluation.output, results, versions)
    export = evaluation.settings.export
    title = f"Evaluation of {export}" if export else "Evaluation"
    subtitle = "contextdiff_jax: text-to-image diffusion with a context-aware adapter."
    write_report(evaluation.output, title, subtitle, results, versions)
