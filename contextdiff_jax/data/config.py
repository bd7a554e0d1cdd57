"""What a run reads: the data section of the configuration."""

import dataclasses
import os
from typing import Literal

from contextdiff_jax.system.buckets import in_bucket
from contextdiff_jax.system.limits import most
from contextdiff_jax.system.resumed import FREE

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "pink", "black")
MOST_CONTEXT = 8  # pictures that show how, beside one
SCENE_SPLITS = ("train", "test", "compositional")
_MOST_PIXELS = 178_956_970  # PIL opens no larger picture
_MOST_THREADS = 8  # what is done in Python itself keeps more from working at once


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Rendered scenes (source "scenes"): coloured shapes with captions, no download.

    pairs: share of scenes with two objects and a relation between them; the others have one.
    bare: share of one-object captions that name neither place nor size ("a red circle").
    shapes, colours: the ones to draw from; at least two colours if pairs > 0.
    context: 0 for plain scenes. Else each comes with so many pictures of its colour and texture
        and a query that shows its layout, for in-context generation (data/context_scenes.py).
    """

    pairs: float = 0.5
    bare: float = 0.25
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    context: int = dataclasses.field(default=0, metadata=most(MOST_CONTEXT))

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key whose value cannot work."""
        for key in ("pairs", "bare"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be in [0, 1]")
        for key, known in (("shapes", SHAPES), ("colours", COLOURS)):
            values = getattr(self, key)
            unknown = [value for value in values if value not in known]
            if unknown or not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{where}.{key} = {values!r}: must be different names from {', '.join(known)}"
                )
        if not 0 <= self.context <= MOST_CONTEXT:
            raise ValueError(
                f"{where}.context = {self.context}: must be in 0..{MOST_CONTEXT}, 0 for none"
            )
        if self.context and self.pairs:
            raise ValueError(
                f"{where}.pairs = {self.pairs}: must be 0 with {where}.context = {self.context}, "
                "which shows one object's colour"
            )
        if self.pairs > 0 and len(self.colours) < 2:
            raise ValueError(
                f"{where}.colours = {self.colours!r}: must be at least two with {where}.pairs = "
                f"{self.pairs}, as the two objects of a pair differ in colour"
            )


@dataclasses.dataclass(frozen=True)
class StylesConfig:
    """Columns of a folder's metadata.jsonl that tell the same thing in several styles.

    Each picture then comes with a query, the same thing in another style, and with context, other
    things in its own style (data/styled_folder.py).

    item, style: the columns. context: pictures of context; 0 for a plain folder.
    held_out: every so many items, by the digest of their names, are split "test" and not "train".
    """

    item: str = "id"
    style: str = "style"
    context: int = dataclasses.field(default=0, metadata=most(MOST_CONTEXT))
    held_out: int = dataclasses.field(default=10, metadata=most(10**6))

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key whose value cannot work."""
        if not 0 <= self.context <= MOST_CONTEXT:
            raise ValueError(
                f"{where}.context = {self.context}: must be in 0..{MOST_CONTEXT}, 0 for none"
            )
        if self.held_out < 2:
            raise ValueError(f"{where}.held_out = {self.held_out}: must be at least 2")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where captioned images come from and how they become square uint8 pictures.

    source: "scenes" renders them; "folder" reads metadata.jsonl beside image files; "shards"
        reads img2dataset tar shards in place; "tfds" reads a prepared TFDS data set. Pictures are
        JPEG, PNG, WebP, GIF, BMP or TIFF; others are skipped, and counted. The names in a
        metadata.jsonl, and links too, lead to files inside its folder (data/folder.py).
    path: folder; or shards as a folder, a wildcard ("gs://bucket/laion/*.tar") or a range
        ("laion/{00000..41454}.tar"); or a TFDS name ("coco_captions", "cifar10:3.0.2").
    split: scenes: "train", "test" (unseen scenes) or "compositional" (combinations of colour,
        shape and place that training never shows). folder: the subfolder, or the value of the
        column `split`, where there is one. tfds: the split. shards have none: use `path`.
    resolution: side of the pictures handed out.
    resize_mode: how other shapes become square: "border" pads with white, "center_crop" cuts
        the longer side, "stretch" ignores the aspect ratio. A border is of whole pixels, so that
        the resolutions of a cascade place a picture up to half a pixel apart; the others agree.
    min_side: images with a shorter side are skipped, and counted.
    max_pixels: images of more pixels are skipped before they are decoded, and counted. Decoding
        takes at most 20 bytes of memory for each pixel (1.3 GB at the default) and the file's own
        size, in each of the threads.
    min_original_side: shards only: samples whose json gives an original_width or
        original_height below it are skipped, and counted; 0 does not read the json.
    caption_fields: columns (folder), json keys (shards) or features (tfds, "captions/text" for
        nested ones) that hold captions, a string or a list. Empty: the .txt member of shards,
        else the first of captions, caption, text that is there. A TFDS class label gives the
        name of its class.
    caption_template: what is made of every caption, which takes the place of "{}" in it
        ("a photo of a {}" for class names); empty leaves captions as they are.
    boxes_field: the column of a folder, or the feature of a TFDS data set ("objects"), that holds
        boxes with names (docs/layout.md); empty reads none. Scenes always have theirs. A sample
        whose boxes are not usable is skipped, and counted. Where one has boxes and no caption,
        their names are its caption ("boat, dog").
    mask_field: the column of a folder that names the file of a segmentation map, a PNG of numbers
        of classes as large as the upright picture; empty reads none. One that is not usable costs
        its sample, which is counted.
    image_field: the image feature of a TFDS data set.
    shuffle: a new order every epoch; False keeps the source's order.
    flip: mirror every second picture at random. Not for captions with left and right in them.
    limit: use only the first so many samples; 0 uses all.
    threads: threads that read and decode, ahead of need; 0 does it when asked. -1: 8 from a
        bucket, whose answers are waited for; else as many as cores, at most 8 (beyond that they
        wait for each other: benchmarks/data_loader), and 1 for scenes, whose drawing holds
        Python's lock.
    processes: processes that read batches in turns, each with `threads` threads (-1: 8 from a
        bucket, else 1). For machines with many cores and small files, where one process's lock is
        the limit. Each takes memory for the source's index and starts in seconds. 0: none.
    keep_mib: folder only: decoded squares are kept in memory, each after it is first read, if all
        of the split take at most so many MiB; 0 reads and decodes every time. Each of `processes`
        keeps its own.
    cache_dir: where the index of tar shards is kept; empty: beside the shards, if writable.
    tfds_dir: folder of the prepared TFDS data sets; empty: TFDS's own default.
    styles: source "folder" only: the same things in several styles, for in-context generation.
    embeddings: folder of text tokens that contextdiff_jax.prepare made of this very data, with the
        config's text encoders; empty: captions are encoded in the training loop.
    latents: folder of latents that contextdiff_jax.prepare --what=latents made of this very data,
        with the run's first stage; empty: pictures are encoded in the training loop. With them no
        picture is decoded.
    """

    source: Literal["scenes", "folder", "shards", "tfds"] = "scenes"
    path: str = ""
    split: str = "train"
    resolution: int = 64
    resize_mode: Literal["border", "center_crop", "stretch"] = "center_crop"
    min_side: int = 1
    max_pixels: int = 64_000_000
    min_original_side: int = 0
    caption_fields: tuple[str, ...] = ()
    caption_template: str = ""
    boxes_field: str = ""
    mask_field: str = ""
    image_field: str = "image"
    shuffle: bool = True
    flip: bool = False
    limit: int = 0
    threads: int = dataclasses.field(default=-1, metadata=FREE)
    processes: int = dataclasses.field(default=0, metadata=FREE)
    keep_mib: int = dataclasses.field(default=256, metadata=FREE)
    cache_dir: str = dataclasses.field(default="", metadata=FREE)
    tfds_dir: str = ""
    embeddings: str = dataclasses.field(default="", metadata=FREE)
    latents: str = dataclasses.field(default="", metadata=FREE)
    scenes: ScenesConfig = ScenesConfig()
    styles: StylesConfig = StylesConfig()

    @property
    def reading_threads(self) -> int:
        """`threads`, or what -1 stands for on this machine; of each process where there are any."""
        if self.threads >= 0:
            return self.threads
        if in_bucket(self.path):
            return _MOST_THREADS
        alone = self.source == "scenes" or self.processes
        return 1 if alone else min(_cores(), _MOST_THREADS)

    @property
    def endless(self) -> bool:
        """Whether samples never end: rendered scenes without a limit."""
        return self.source == "scenes" and not self.limit

    @property
    def context(self) -> int:
        """The pictures of context that every sample comes with, beside a query; 0 for neither."""
        given = {"scenes": self.scenes.context, "folder": self.styles.context}
        return given.get(self.source, 0)

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key whose value cannot work."""
        lowest = {"resolution": 8, "min_side": 1, "min_original_side": 0, "limit": 0}
        lowest |= {"threads": -1, "processes": 0, "keep_mib": 0}
        for key, bound in lowest.items():
            if getattr(self, key) < bound:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least {bound}")
        if not 1 <= self.max_pixels <= _MOST_PIXELS:
            raise ValueError(
                f"{where}.max_pixels = {self.max_pixels}: must be 1 to {_MOST_PIXELS}, the most "
                "that PIL opens"
            )
        if self.source != "scenes" and not self.path:
            raise ValueError(f"{where}.path is empty: source {self.source!r} needs one")
        if "**" in self.path:
            raise ValueError(f"{where}.path = {self.path!r}: must not hold **; * is one folder")
        if self.source == "scenes":
            if self.split not in SCENE_SPLITS:
                raise ValueError(
                    f"{where}.split = {self.split!r}: must be one of {', '.join(SCENE_SPLITS)}"
                )
            if self.flip:
                raise ValueError(
                    f"{where}.flip = True: must be False, captions of scenes say left and right"
                )
            self.scenes.validate(f"{where}.scenes")
        self.styles.validate(f"{where}.styles")
        if self.source != "folder" and self.styles.context:
            raise ValueError(
                f"{where}.styles.context = {self.styles.context}: must be 0, the source is "
                f"{self.source!r} and not 'folder'"
            )
        if self.source == "shards" and self.split != DataConfig.split:
            raise ValueError(
                f"{where}.split = {self.split!r}: must be {DataConfig.split!r}, shards have no "
                "splits; give the shards by path"
            )
        self._check_columns(where)
        if self.caption_template and self.caption_template.count("{}") != 1:
            raise ValueError(
                f"{where}.caption_template = {self.caption_template!r}: must hold {{}} once, where "
                "the caption goes"
            )
        if self.min_original_side and self.source != "shards":
            raise ValueError(
                f"{where}.min_original_side = {self.min_original_side}: "
                f"must be 0, source {self.source!r} does not record the original size"
            )

    def _check_columns(self, where: str) -> None:
        if self.boxes_field and self.source not in ("folder", "tfds"):
            raise ValueError(
                f"{where}.boxes_field = {self.boxes_field!r}: must be empty, source "
                f"{self.source!r} reads no column of boxes"
            )
        if self.mask_field and self.source != "folder":
            raise ValueError(
                f"{where}.mask_field = {self.mask_field!r}: must be empty, source {self.source!r} "
                "reads no column of masks"
            )
        if self.mask_field and self.styles.context:
            raise ValueError(
                f"{where}.mask_field = {self.mask_field!r}: must be empty with "
                f"{where}.styles.context = {self.styles.context}, whose samples hold no masks"
            )


def _cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
