"""Measures of edited clips, a row for each: Table 2 of the paper, and what it leaves out."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.arguments import existing_folder
from contextdiff_jax.data.clips import fit
from contextdiff_jax.data.tgve import KINDS, read_tgve
from contextdiff_jax.evaluation.clips import flicker, masked_psnr, outside
from contextdiff_jax.evaluation.edited_clips import (
    SOURCE,
    EditedClip,
    Frames,
    check_masks,
    find_edits,
    read_edit,
    read_mask,
    same_edits,
)
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.features import extract_features
from contextdiff_jax.evaluation.pick_score import ClipNetworks, load_clip_networks, pick_score
from contextdiff_jax.evaluation.results import Gallery, Result, Table
from contextdiff_jax.evaluation.similarity import (
    fatezero_frame_accuracy,
    fatezero_temporal_consistency,
    frame_consistency,
    text_alignment,
)
from contextdiff_jax.parallel import distributed
from contextdiff_jax.spaces.clips import beside, write_preview

TEXT, CONSISTENCY = "text alignment", "frame consistency"
TEM_CON, FRAME_ACC = "Tem-Con", "Frame-Acc"
PICK, FLICKER, PSNR = "PickScore", "flicker", "PSNR outside"
COLUMNS = (TEXT, CONSISTENCY, TEM_CON, FRAME_ACC, PICK, FLICKER, PSNR)
_NOTE = (
    "Cosines of CLIP: of frames with the edit's prompt, of all pairs of frames, of frames in a row "
    "(Tem-Con); the share of frames nearer to the edit's prompt than to the source's (Frame-Acc). "
    "Flicker (grey levels) and PSNR (dB) against the source, outside the masks; without masks "
    "flicker is of the whole frames. 'source' is the clip itself, as if it were the edit."
)
_NEAR = 32  # a mask grows by the shorter side over this
_SHOWN = 24  # animations in the report
_SHOWN_HEIGHT = 224

Scores = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The figures of an edit, by COLUMNS; None where it has not what they need."""

    edit: EditedClip
    scores: Scores


class VideoScorer:
    """Networks and folders of one evaluation. pick: of PickScore, or None."""

    def __init__(self, evaluation: Evaluation, clip: ClipNetworks, pick: ClipNetworks | None):
        self.evaluation, self.clip, self.pick = evaluation, clip, pick
        self.output = evaluation.output / "video"

    def score(self, edit: EditedClip, place: str) -> Measured:
        """Returns the figures of an edit; embeddings are kept in OUTPUT/video/PLACE.

        Those of a source lie under its own digest: it is embedded once for all of its edits.
        """
        frames = read_edit(edit)
        if edit.label == SOURCE:
            place = f"{SOURCE}/{frames.digest}"
        scores = self._by_clip(edit, frames, place) | self._by_pixels(edit, frames)
        return Measured(edit, {name: scores.get(name) for name in COLUMNS})

    def _by_clip(self, edit: EditedClip, frames: Frames, place: str) -> dict[str, float]:
        embedded = self._embedded(self.clip, frames, f"{place}/clip")
        texts = self.clip.texts([edit.prompt, edit.source_prompt])
        found = {
            TEXT: text_alignment(embedded, texts[0]),
            CONSISTENCY: frame_consistency(embedded),
            TEM_CON: fatezero_temporal_consistency(embedded),
            FRAME_ACC: fatezero_frame_accuracy(embedded, *texts),
        }
        if self.pick is not None:
            embedded = self._embedded(self.pick, frames, f"{place}/pick_score")
            [text] = self.pick.texts([edit.prompt])
            found[PICK] = pick_score(embedded, text, self.pick.scale)
        return found

    def _by_pixels(self, edit: EditedClip, frames: Frames) -> dict[str, float | None]:
        edited, source = frames.edited, frames.source
        if source is None or edit.label == SOURCE:
            return {}
        mask = read_mask(self.evaluation.settings.masks, edit, edited)
        if mask is None:
            return {FLICKER: flicker(edited, source, np.ones(edited.shape[:3], bool))}
        free = outside(mask, max(1, min(edited.shape[1:3]) // _NEAR))
        if not free.any():
            return {}
        return {
            FLICKER: flicker(edited, source, free),
            PSNR: masked_psnr(edited, source, free),
        }

    def _embedded(self, networks: ClipNetworks, frames: Frames, place: str) -> np.ndarray:
        network = networks.frames
        files = extract_features(
            self.output / place,
            {"features": network.identity.to_json(), "frames": frames.digest},
            len(frames.edited),
            lambda places: frames.edited[places.start : places.stop],
            network.extract,
            self.evaluation.watch,
        )
        return files.all(network.layer)


def plan_video(evaluation: Evaluation) -> Callable[[], Result]:
    """What edited clips are measured by; nothing is drawn."""
    settings = evaluation.settings
    if not settings.edits:
        raise ValueError("--edits is missing: --what=video needs LABEL=FOLDER of each method")
    labels = [label for label, _ in settings.edits]
    if len(set(labels)) < len(labels):
        raise ValueError(f"--edits: labels must differ: {', '.join(labels)}")
    if not settings.clip:
        raise ValueError("--clip is missing: --what=video needs a CLIP folder to score with")
    for flag, folder in (
        ("tgve", settings.tgve),
        ("masks", settings.masks),
        ("clip", settings.clip),
        ("pick_score", settings.pick_score),
    ):
        if folder:
            existing_folder(folder, flag)
    videos = read_tgve(settings.tgve) if settings.tgve else ()
    edits = [edit for label, folder in settings.edits for edit in find_edits(label, folder, videos)]
    check_masks(settings.masks, edits)
    warnings = _incomplete(edits, labels, len(videos))
    clip = load_clip_networks(settings.clip, settings.batch_size)
    pick = None
    if settings.pick_score:
        pick = load_clip_networks(settings.pick_score, settings.batch_size)
    scorer = VideoScorer(evaluation, clip, pick)

    def work() -> Result:
        return measure(scorer, edits, warnings)

    return work


def _incomplete(edits: Sequence[EditedClip], labels: Sequence[str], videos: int) -> list[str]:
    """Returns what forbids comparing methods: one lacks edits that another or the table has."""
    asked = {label: {edit.asked for edit in edits if edit.label == label} for label in labels}
    whole = videos * len(KINDS) or len(set().union(*asked.values()))
    return [
        f"{label} has {len(own)} of {whole} edits: its means are of other edits than the whole."
        for label, own in asked.items()
        if len(own) < whole
    ]


def measure(scorer: VideoScorer, edits: Sequence[EditedClip], warnings: Sequence[str]) -> Result:
    """Returns a row for each edit, the means of each method, and the clips beside each other."""
    measured, items, warnings = [], [], list(warnings)
    for number, group in enumerate(same_edits(edits).values()):
        for edit in group:
            measured.append(scorer.score(edit, f"{number:04d}/{edit.label}"))
        if number < _SHOWN:
            items.append(_shown(scorer, group, number))
    short = sum(m.scores[FLICKER] is None for m in measured if m.edit.label != SOURCE)
    if short:
        warnings.append(
            f"{short} edits have fewer frames than their source, or a mask that covers all: "
            "flicker and PSNR leave them out."
        )
    labels = [SOURCE, *(label for label, _ in scorer.evaluation.settings.edits)]
    means = {label: _means([m for m in measured if m.edit.label == label]) for label in labels}
    used = [name for name in COLUMNS if any(row[name] is not None for row in means.values())]
    rows = tuple((label, *(row[name] for name in ("edits", *used))) for label, row in means.items())
    return Result(
        title="Edited clips",
        summary="The same clips and prompts by several methods: agreement with the prompt and of "
        "frames with each other by CLIP, and what changed that should not have.",
        values={"methods": means},
        protocol=_protocol(scorer),
        tables=(Table("video", ("method", "edits", *used), rows, _NOTE), _rows(measured, used)),
        galleries=(Gallery("The clips beside each other", tuple(items)),),
        warnings=tuple(warnings),
    )


def _means(rows: Sequence[Measured]) -> dict[str, Any]:
    found: dict[str, Any] = {"edits": len(rows)}
    for name in COLUMNS:
        values = [row.scores[name] for row in rows if row.scores[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found


def _rows(measured: Sequence[Measured], used: Sequence[str]) -> Table:
    rows = tuple(
        (m.edit.label, m.edit.clip, m.edit.prompt, *(m.scores[name] for name in used))
        for m in measured
    )
    return Table("edits", ("method", "clip", "prompt", *used), rows)


def _shown(scorer: VideoScorer, group: Sequence[EditedClip], number: int) -> tuple[str, str]:
    """Writes the source and its edits as one animation, and returns it with its caption."""
    clips = [read_edit(edit) for edit in group]
    count = min(len(each.edited) for each in clips)
    height, width = clips[-1].edited.shape[1:3]
    if height > _SHOWN_HEIGHT:
        height, width = _SHOWN_HEIGHT, round(width * _SHOWN_HEIGHT / height)
    small = [np.stack([fit(f, height, width) for f in each.edited[:count]]) for each in clips]
    file = f"video/{number:04d}.webp"
    if distributed.is_main():
        write_preview(scorer.evaluation.output / file, beside(*small), clips[0].fps)
    return file, f"{group[-1].prompt}: {', '.join(edit.label for edit in group)}"


def _protocol(scorer: VideoScorer) -> dict[str, Any]:
    settings, pick = scorer.evaluation.settings, scorer.pick
    return {
        "edits": {label: pathlib.PurePath(folder).name for label, folder in settings.edits},
        "benchmark": "LOVEU-TGVE-2023" if settings.tgve else None,
        "masks": settings.masks or None,
        "CLIP": scorer.clip.frames.identity.to_json(),
        PICK: None if pick is None else pick.frames.identity.to_json(),
    }
