"""What the adapter attends to: its cross-attention over pictures, for chosen words."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from etils import epath

from contextdiff_jax.arguments import read_images
from contextdiff_jax.conditions.requests import check_requests, of_captions
from contextdiff_jax.evaluation import heatmaps
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.results import Gallery, Result, Table
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.spaces.pictures import to_uint8

TIMES = (0.25, 0.5, 0.75)
"""Shares of the process's T at which the adapter is asked; the maps are means over them."""
_BATCH = 16


def choose_words(stage: Stage, prompts: Sequence[str], words: Sequence[str]) -> list[dict]:
    """Returns, for each prompt, {word: places of its tokens}; without words, its own.

    Where prompts are layouts, the words are their objects. Raises ValueError for a stage without an
    adapter, an empty prompt, or a word that no prompt has (or that is cut off).
    """
    if stage.task.adapter is None:
        raise ValueError(f"stage {stage.name!r} has no adapter, so it has no attention maps")
    tokenizer = stage.task.adapter_tokenizer
    if tokenizer is None:
        return _objects(stage, prompts, words)
    chosen = []
    for prompt in prompts:
        spans = tokenizer.spans(prompt)
        asked = list(words) or heatmaps.words_of(prompt)
        places = {word: heatmaps.word_tokens(prompt, word, spans) for word in asked}
        chosen.append({word: tokens for word, tokens in places.items() if tokens})
        if not chosen[-1]:
            raise ValueError(f"prompt {prompt!r} has none of the words {', '.join(asked) or '-'}")
    lost = [word for word in words if not any(word in places for places in chosen)]
    if lost:
        raise ValueError(
            f"word {lost[0]!r}: no prompt has it within its {tokenizer.max_length} tokens"
        )
    return chosen


def _objects(stage: Stage, prompts: Sequence[str], words: Sequence[str]) -> list[dict]:
    """Returns, for each layout, {object: places of its tokens}."""
    captioned = [each for each in stage.task.conditions if each.captioned]
    found = [each.adapter_places(prompt) for prompt in prompts for each in captioned[:1]] or [None]
    if None in found:
        raise ValueError(f"the adapter of stage {stage.name!r} reads no text: words have no maps")
    if words:
        raise ValueError(f"--word={words[0]}: not with layouts, whose objects are all shown")
    return found


def attention_maps(stage: Stage, pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Returns attention of image to text tokens, (N, rows, columns, L) float32, 1 over L.

    pictures: (N, H, W, 3) uint8, taken for x0. The mean over blocks, heads and TIMES.
    """
    task = stage.task
    patch, side = task.adapter.config.patch_size, pictures.shape[1:3]
    grid = tuple(length // patch for length in side)
    times = [round(share * task.schedule.num_steps) for share in TIMES]

    def maps(params, frozen, batch):
        batch = {**batch, **task.of_target(batch)}
        found = [task.attention_maps(params, frozen, batch, t) for t in times]
        return jnp.stack(found).mean((0, 2, 3))  # over times, blocks, heads

    program = jit_on_mesh(maps, stage.mesh)
    parts = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        batch = {**task.collate(prompts[part]), "image": pictures[part]}
        parts.append(np.asarray(program(stage.params, stage.frozen, batch)))
    whole = np.concatenate(parts)
    return whole.reshape(len(prompts), *grid, whole.shape[-1])


def measure(
    stage: Stage,
    pictures: np.ndarray,
    prompts: Sequence[str],
    words: Sequence[Mapping[str, Sequence[int]]],
    folder: epath.PathLike,
    protocol: Mapping[str, str],
) -> Result:
    """Writes FOLDER/heatmaps/NNNN.png per picture and tabulates how much attention words get.

    words: from `choose_words`. protocol: where the pictures are from.
    """
    maps = attention_maps(stage, pictures, prompts)
    rows, items = [], []
    for index, (prompt, chosen) in enumerate(zip(prompts, words, strict=True)):
        by_word = {word: heatmaps.word_map(maps[index], t) for word, t in chosen.items()}
        file = f"heatmaps/{index:04d}.png"
        heatmaps.draw(pictures[index], by_word, epath.Path(folder) / file)
        items.append((file, prompt))
        for word, shares in by_word.items():
            rows.append((index, word, *(float(f(shares)) for f in (np.mean, np.min, np.max))))
    config = stage.task.adapter.config
    columns = ("picture", "word", "mean share", "least", "largest")
    return Result(
        title="Cross-attention of the adapter",
        summary="How much of each image token's attention goes to a word: the adapter's "
        "cross-attention, mean over its blocks and heads, over the picture it was asked about.",
        values={"maps": [dict(zip(columns, row, strict=True)) for row in rows]},
        protocol={
            "stage": stage.name,
            "grid": f"{maps.shape[1]} x {maps.shape[2]} image tokens",
            "blocks": config.num_blocks,
            "heads": config.heads,
            "times": f"mean over {', '.join(map(str, TIMES))} of T",
            **protocol,
        },
        tables=(Table("heatmaps", columns, tuple(rows), "Shares of attention; all tokens: 1."),),
        galleries=(Gallery("Maps, each on its own scale (least – largest share)", tuple(items)),),
    )


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
    conditions = evaluation.cascade.conditions
    check_requests(of_captions(prompts, conditions), conditions, "prompt")
    stage = evaluation.cascade.stages[-1]
    words = choose_words(stage, prompts, settings.words)
    given = None
    if settings.images:
        given = read_images(settings.images, stage.task.resolution, "image")

    def work() -> Result:
        pictures = _drawn(evaluation, prompts) if given is None else given
        origin = {} if given is None else {"images": settings.images}
        protocol = {**evaluation.protocol(), **origin}
        return measure(stage, pictures, prompts, words, evaluation.output, protocol)

    return work


def _drawn(evaluation: Evaluation, prompts: tuple[str, ...]) -> np.ndarray:
    settings = evaluation.settings
    cascade = evaluation.cascade
    drawn = cascade.draw(
        of_captions(prompts, cascade.conditions),
        seed=settings.seed,
        batch_size=settings.batch_size,
        augmentation=evaluation.augmentation,
    )
    return to_uint8(drawn[evaluation.stage])
