"""Data sets prepared by TFDS as ArrayRecord, read without TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from contextdiff_jax.data import decode
from contextdiff_jax.data.boxes import Boxes, boxes_of_sample, in_square, names_of
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DataError, Example, sample_at_fault


class TfdsSource:
    """Captioned images of a TFDS data set.

    records: random access to dicts of features, the image still encoded.
    class_names: for features that are class labels, label to name; the name is the caption.
    box_name: label to name of an object in config.boxes_field; None where none are read.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        config: DataConfig,
        class_names: Mapping[str, Callable[[int], str]],
        box_name: Callable[[int], str] | None = None,
    ):
        self.name = f"tfds {config.path} ({config.split})"
        self._records = records
        self._config = config
        self._class_names = class_names
        self._box_name = box_name
        if not len(records):
            raise DataError(f"no sample in {self.name}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        config, key = self._config, self._key(index)
        record = self._records[index]
        with sample_at_fault(key):
            boxes = self._boxes(record, key)
            captions, repaired = self._captions(record, key, boxes)
            encoded = record[config.image_field]
            picture, notes = decode.decode_sample(encoded, key, config)
            if boxes is not None:
                boxes = in_square(boxes, *decode.upright_size(encoded), config.resize_mode)
            return Example(picture, captions, key, notes + repaired, boxes=boxes)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone (the record is read whole)."""
        record, key = self._records[index], self._key(index)
        with sample_at_fault(key):
            return self._captions(record, key, self._boxes(record, key))[0]

    def _key(self, index: int) -> str:
        return f"{self._config.path}/{self._config.split}/{index}"

    def _boxes(self, record: Mapping[str, Any], key: str) -> Boxes | None:
        """Returns the boxes; TFDS has corners as y0, x0, y1, x1 in sides."""
        if self._box_name is None:
            return None
        objects = record[self._config.boxes_field]
        corners = [[float(value) for value in box] for box in objects["bbox"]]
        # -1 as of captions; a box without a name is not usable.
        labels = [int(label) for label in objects["label"]]
        names = [self._box_name(label) if label >= 0 else "" for label in labels]
        rows = [
            {"name": name, "box": [x0, y0, x1, y1]}
            for name, (y0, x0, y1, x1) in zip(names, corners, strict=True)
        ]
        return boxes_of_sample(rows, key)

    def _captions(
        self, record: Mapping[str, Any], key: str, boxes: Boxes | None = None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        labels = {field: int(record[field]) for field in self._class_names}
        # -1 is TFDS's mark of a sample without a label, and as an index the last class.
        names = {
            field: self._class_names[field](label) if label >= 0 else None
            for field, label in labels.items()
        }
        values = decode.caption_values({**record, **names}, self._config.caption_fields)
        if boxes and not any(values):
            values = [names_of(boxes)]
        return decode.decode_captions(values, key)


def open_tfds(config: DataConfig) -> TfdsSource:
    """Opens a prepared TFDS data set; DataError says why where it cannot be used.

    config.path is a TFDS name, or the folder of one prepared version. Nothing is downloaded.
    Needs the tensorflow-datasets package, not TensorFlow.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f"source 'tfds' needs the tensorflow-datasets package: {error}") from error
    where = f"TFDS data set {config.path!r}"
    try:
        if "/" in config.path and (tfds.core.Path(config.path) / "features.json").exists():
            builder = tfds.builder_from_directory(config.path)
        else:
            builder = tfds.builder(config.path, data_dir=config.tfds_dir or None)
    except (ValueError, tfds.core.DatasetNotFoundError) as error:
        raise DataError(f"{where} cannot be opened: {_first_line(error)}") from error
    if not builder.info.splits:
        raise DataError(
            f"{where} is not prepared in {builder.data_path}: run "
            f"`tfds build {config.path} --file_format=array_record` first"
        )
    class_names = _check_features(where, dict(builder.info.features), config, tfds)
    try:
        records = builder.as_data_source(
            split=config.split, decoders={config.image_field: tfds.decode.SkipDecoding()}
        )
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{where} cannot be read: {_first_line(error)}") from error
    box_name = None
    if config.boxes_field:
        box_name = _box_names(where, dict(builder.info.features), config, tfds)
    return TfdsSource(records, config, class_names, box_name)


def _box_names(
    where: str, features: dict[str, Any], config: DataConfig, tfds: Any
) -> Callable[[int], str]:
    """Returns label-to-name of the objects; DataError unless they have boxes and labels."""
    inner: Any = getattr(features.get(config.boxes_field), "feature", None)
    objects = isinstance(inner, tfds.features.FeaturesDict)
    if not objects or not {"bbox", "label"} <= set(inner.keys()):
        raise DataError(
            f"data.boxes_field = {config.boxes_field!r}: must be a sequence of objects with bbox "
            f"and label of {where}, it has {', '.join(sorted(features))}"
        )
    return inner["label"].int2str


def _check_features(
    where: str, features: dict[str, Any], config: DataConfig, tfds: Any
) -> dict[str, Callable[[int], str]]:
    """Checks that image and captions are there; returns label-to-name of the class labels."""
    known = ", ".join(sorted(features))
    if not isinstance(features.get(config.image_field), tfds.features.Image):
        raise DataError(
            f"data.image_field = {config.image_field!r}: not an image of {where}, it has {known}"
        )
    fields = config.caption_fields or ("captions", "caption", "text")
    present = [field for field in fields if field.split("/")[0] in features]
    named = config.boxes_field and not config.caption_fields  # their names stand for captions
    if not (present or named) or (config.caption_fields and len(present) < len(fields)):
        raise DataError(
            f"data.caption_fields = {config.caption_fields!r}: not all in {where}, it has {known}"
        )
    return {
        field: features[field].int2str
        for field in present
        if isinstance(features.get(field), tfds.features.ClassLabel)
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
