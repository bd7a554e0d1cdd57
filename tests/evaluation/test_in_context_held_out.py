"""Styles and directions of in-context pictures: exact where the pictures drawn are known ones."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from etils import epath
from PIL import Image

from contextdiff_jax.data.config import DataConfig, StylesConfig
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.styled_folder import StyledFolderSource
from contextdiff_jax.evaluation import in_context_held_out, in_context_styles, style_classifier
from contextdiff_jax.evaluation.evaluation import Evaluation, Settings
from contextdiff_jax.evaluation.in_context_directions import plan_directions, rmse
from contextdiff_jax.evaluation.in_context_examples import written_examples
from contextdiff_jax.evaluation.in_context_styles import plan_styles
from contextdiff_jax.evaluation.style_classifier import train_classifier
from contextdiff_jax.generation.generate import Pictures
from contextdiff_jax.system.interruption import Watch

STYLES = ("red", "green", "photo")
SIDE, ITEMS = 20, 24


def picture(style, item):
    """Noise in one channel, or in all."""
    rng = np.random.default_rng([STYLES.index(style), item])
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    if style != "photo":
        pixels[..., [c for c in range(3) if c != STYLES.index(style)]] = 0
    return pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("styled"), []
    for item in range(ITEMS):
        for style in STYLES:
            name = f"{style}_{item}.png"
            Image.fromarray(picture(style, item)).save(folder / name)
            row = {"file_name": name, "id": f"thing {item}", "style": style, "caption": "a thing"}
            rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    styles = StylesConfig(context=2, held_out=2)
    return DataConfig(source="folder", path=str(folder), resolution=SIDE, styles=styles, threads=1)


class Known(Evaluation):
    """An evaluation that draws the files that `answer` says of an example's request."""

    stage = "base"
    config = locate = None

    def __init__(self, settings, data, answer):
        super().__init__(settings, Watch())
        self._data, self._answer, self.asked = data, answer, {}
        task = types.SimpleNamespace(protocol=dict)
        self.cascade = types.SimpleNamespace(stages=[types.SimpleNamespace(task=task)])

    def data(self, defaults=None):
        return dataclasses.replace(self._data, **(defaults or {}))

    def data_warnings(self, data):
        return ()

    def protocol(self):
        return {"export": "none"}

    def draw_requests(self, requests, folder, cascade=None):
        self.asked[folder] = requests
        (self.output / folder / "base").mkdir(parents=True, exist_ok=True)
        for number, request in enumerate(requests):
            pixels = epath.Path(self._answer(request)).read_bytes()
            (self.output / folder / f"base/{number:06d}.png").write_bytes(pixels)
        return Pictures(self.output / folder, tuple(requests), ("base",))


@pytest.fixture
def known(data, clip_folder, tmp_path):
    def make(answer, **settings):
        asked = Settings(
            output=str(tmp_path), clip=str(clip_folder), count=20, batch_size=8, **settings
        )
        return Known(asked, data, answer)

    return make


def target(request):
    return request["query"].replace("query", "target")


@pytest.mark.slow
def test_true_pictures_and_queries_are_known_for_what_they_are(known, shared_data, monkeypatch):
    """Half of the sets draw the true picture, the other half the query."""

    def answer(request):
        return target(request) if request["text"] is None else request["query"]

    monkeypatch.setattr(style_classifier, "_STEPS", 60)
    evaluation = known(answer, lpips=str(shared_data("weights/lpips")))
    found = plan_styles(evaluation)()
    values = found.values
    for title in ("context of 1", "context of 2"):
        assert values[title] == values["the true picture"]
    for title in ("prompt", "prompt and context"):
        assert values[title] == values["the query itself"]
    assert values["the true picture"]["style"] >= 0.95 and values["the query itself"]["style"] == 0
    for name in ("LPIPS", "CLIP distance"):
        assert values["the true picture"][name] == pytest.approx(0, abs=1e-5)
        assert values["the query itself"][name] > 1e-3
    shown = {folder: {len(r["context"] or ()) for r in evaluation.asked[folder]} for folder in (
        "held_out_context_1", "held_out_context", "held_out_prompt", "held_out_prompt_and_context"
    )}  # fmt: skip
    assert list(shown.values()) == [{1}, {2}, {0}, {2}]
    assert all(r["query"] for requests in evaluation.asked.values() for r in requests)
    assert found.protocol["count"] == 20 and "SqueezeNet" in found.protocol["LPIPS"]


def test_directions_have_their_own_error_and_distance(known):
    evaluation = known(lambda r: target(r) if r["text"] else r["query"])
    found = plan_directions(evaluation)()
    assert sum(each["count"] for each in found.values.values()) == 20
    for title, each in found.values.items():
        ours, theirs = title.split(" to ")
        assert ours != theirs and {ours, theirs} <= set(STYLES)
        for name in ("prompt", "prompt and context"):
            assert list(each[name].values()) == pytest.approx([0, 0], abs=1e-6)
        assert each["context"]["RMSE"] > 0.1
    # By hand, of what was written: a direction's pairs of query and true picture.
    source = StyledFolderSource(evaluation.data({"split": "test"}), SkipReport())
    errors = {}
    for request in evaluation.asked["held_out_context"]:
        place = int(epath.Path(request["query"]).name.split("_")[0])
        pair = [
            np.asarray(Image.open(f), np.float64) / 255 for f in (request["query"], target(request))
        ]
        errors.setdefault(" to ".join(source.styles(place)), []).append(
            ((pair[0] - pair[1]) ** 2).mean()
        )
    for title, each in errors.items():
        expected = np.sqrt(np.mean(each))
        assert found.values[title]["context"]["RMSE"] == pytest.approx(expected)
    assert found.warnings and "biased upwards" in found.warnings[0]


def test_a_direction_of_one_picture_is_left_out_and_named(known):
    evaluation = known(target)
    evaluation.settings = dataclasses.replace(evaluation.settings, count=7)  # of six directions
    found = plan_directions(evaluation)()
    counts = [each["count"] for each in found.values.values()]
    alone = [
        warning for warning in found.warnings if "has 1 picture, a distance needs 2" in warning
    ]
    assert min(counts) >= 2 and alone and sum(counts) + len(alone) == 7
    evaluation.settings = dataclasses.replace(evaluation.settings, count=1)
    with pytest.raises(ValueError, match="--what=directions: 1 examples, each of another"):
        plan_directions(evaluation)


def test_a_classifier_without_a_readable_picture_says_so(data, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(data.path, folder)
    for file in folder.glob("*.png"):
        file.write_bytes(file.read_bytes()[:30])
    source = StyledFolderSource(dataclasses.replace(data, path=str(folder)), SkipReport())
    with pytest.raises(ValueError, match="no usable sample in .*: "):
        in_context_styles._trained(source, 1)


def test_rmse_weighs_every_picture_alike():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    assert rmse([(black, black), (white, black[:1])]) == pytest.approx(np.sqrt(1 / 3))
    with pytest.raises(ValueError, match="0 pictures"):
        rmse([])


def test_what_is_drawn_was_never_trained_on(known, data):
    """Held-out things alone, in query, context and target; the classifier's are the others."""
    asked = in_context_held_out.held_out(known(target), "styles")
    train = StyledFolderSource(data, SkipReport())
    names = [
        {source._item(row) for i in range(len(source)) for row in rows(source, i)}
        for source in (train, asked.source)
    ]
    assert names[0] and names[1] and not names[0] & names[1]
    assert len(asked.places) == 20 and list(asked.places) == sorted(set(asked.places))


def rows(source, index):
    query, context = source.chosen(index)
    return [source.row(index), query, *context]


def test_damaged_examples_are_left_out_and_counted(data, tmp_path):
    source, report = StyledFolderSource(data, SkipReport()), SkipReport()
    broken = epath.Path(data.path) / source._folder.values[source.row(3)][2]
    content = broken.read_bytes()
    broken.write_bytes(content[:30])
    try:
        examples = written_examples(source, range(6), epath.Path(tmp_path), report)
    finally:
        broken.write_bytes(content)
    assert 3 not in examples.places and len(examples) == len(examples.targets) < 6
    assert report.summary()


@pytest.mark.parametrize(
    ("changes", "settings", "cause"),
    [
        ({"source": "scenes", "styles": StylesConfig()}, {}, "--what=styles: only exports"),
        ({"styles": StylesConfig()}, {}, "with styles.context above 0"),
        (
            {"resolution": 8},
            {"lpips": "somewhere"},
            "--lpips=somewhere: pictures of 8 pixels, must be at least 17",
        ),
        ({}, {"lpips": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_named(changes, settings, cause, known):
    evaluation = known(target, **settings)
    evaluation._data = dataclasses.replace(evaluation._data, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=cause):
        plan_styles(evaluation)


def test_a_classifier_needs_styles_to_tell():
    pictures = np.stack([picture("red", item) for item in range(3)])
    with pytest.raises(ValueError, match="styles of the training pictures: red: must be two"):
        train_classifier(pictures, ["red"] * 3)
