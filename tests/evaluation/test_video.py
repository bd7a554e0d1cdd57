"""`evaluate --what=video`: figures by transformers and NumPy, layouts, the report, refusals."""

import base64
import csv
import dataclasses
import io
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data.tgve import KINDS
from contextdiff_jax.evaluation import video
from contextdiff_jax.evaluation.evaluation import Settings, evaluate
from contextdiff_jax.evaluation.feature_networks import FeatureNetwork
from contextdiff_jax.evaluation.results import read_results
from contextdiff_jax.generation.tgve_submission import write_submission
from contextdiff_jax.spaces.clips import write_frames
from tests.fixtures.tgve import STUNT, write

FRAMES, SIDE = 3, 32
CAPTION, PROMPT = "a red circle left of a blue square", "two cats asleep on a sofa"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP's folder, transformers' model of it and its processor."""
    pytest.importorskip("torch", reason="the oracle is transformers' torch model")
    pytest.importorskip("transformers")
    from tests.oracles.torch_clip import save_random_clip

    folder = tmp_path_factory.mktemp("clip")
    return str(folder), *save_random_clip(folder)


def drawn(seed):
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)


def write_edit(folder, source, edited, prompt=PROMPT, **record):
    """As `edit` leaves it, as far as it is measured."""
    write_frames(folder / "source/frames", source)
    write_frames(folder / "00/frames", edited)
    record = {"clip": "clips/park", "source_prompt": CAPTION, "prompt": prompt} | record
    (folder / "00/edit.json").write_text(json.dumps(record))
    (folder / "manifest.json").write_text("{}")
    return str(folder)


@pytest.fixture(scope="module")
def measured(clip, tmp_path_factory):
    """An evaluation of two methods with masks, by CLIP and by PickScore of the same weights."""
    made = tmp_path_factory.mktemp("video")
    source, ours, theirs = drawn(0), drawn(1), drawn(2)
    mask = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
    mask[:, 8:16, 8:16] = 255
    write_frames(made / "masks/park", mask)
    settings = Settings(
        output=str(made / "check"),
        edits=(
            ("ours", write_edit(made / "ours", source, ours)),
            ("theirs", write_edit(made / "theirs", source, theirs)),
        ),
        clip=clip[0],
        pick_score=clip[0],
        masks=str(made / "masks"),
        batch_size=4,
    )
    evaluate(settings, {"video": video.plan_video})
    return settings, (source, ours, theirs)


def of_transformers(clip, frames):
    """What the benchmark's own script and FateZero compute of frames: rows by their names."""
    _, model, processor = clip
    images = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    ids = processor(text=[PROMPT, CAPTION], return_tensors="pt", padding=True)
    texts = model.get_text_features(ids["input_ids"], ids["attention_mask"]).numpy()
    features = model.get_image_features(images).numpy().astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    texts = texts.astype(np.float64) / np.linalg.norm(texts, axis=1, keepdims=True)
    between = features @ features.T
    np.fill_diagonal(between, 0)
    to_texts = features @ texts.T
    return {
        video.TEXT: to_texts[:, 0].mean(),
        video.CONSISTENCY: between.sum() / (FRAMES * (FRAMES - 1)),
        video.TEM_CON: np.mean([features[i] @ features[i + 1] for i in range(FRAMES - 1)]),
        video.FRAME_ACC: np.mean(to_texts[:, 0] > to_texts[:, 1]),
        video.PICK: model.model.logit_scale.exp().item() * to_texts[:, 0].mean(),
    }


def test_figures_are_those_of_transformers_and_numpy(clip, measured):
    settings, (source, *edits) = measured
    methods = read_results(settings.output)["video"].values["methods"]
    assert list(methods) == ["source", "ours", "theirs"]
    for label, frames in zip(methods, (source, *edits), strict=True):
        for name, value in of_transformers(clip, frames).items():
            assert methods[label][name] == pytest.approx(value, rel=2e-4), (label, name)
    # 7..16 is the mask and the pixel around it that it grows by.
    outside = np.ones((FRAMES, SIDE, SIDE), bool)
    outside[:, 7:17, 7:17] = False
    error = (edits[0].astype(float) - source)[outside]
    psnr = 10 * np.log10(255**2 / np.mean(error**2))
    assert methods["ours"][video.PSNR] == pytest.approx(psnr)
    changes = np.diff(edits[0].astype(float) - source, axis=0)[outside[1:]]
    assert methods["ours"][video.FLICKER] == pytest.approx(np.sqrt(np.mean(changes**2)))
    assert methods["source"][video.PSNR] is None


def test_the_report_shows_clips_beside_each_other(measured):
    settings, _ = measured
    output = pathlib.Path(settings.output)
    page = (output / "report.html").read_text()
    [shown] = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    film = Image.open(io.BytesIO(base64.b64decode(shown)))
    assert film.n_frames == FRAMES and film.size == (3 * SIDE + 2 * 4, SIDE)
    assert f"{PROMPT}: source, ours, theirs" in page
    rows = list(csv.DictReader((output / "video_edits.csv").open()))
    assert [row["method"] for row in rows] == ["source", "ours", "theirs"]
    assert rows[1]["clip"] == "park"


def test_what_was_embedded_is_not_embedded_again(measured, monkeypatch):
    settings, _ = measured
    before = read_results(settings.output)["video"].values
    monkeypatch.setattr(FeatureNetwork, "extract", None)
    evaluate(settings, {"video": video.plan_video})
    assert read_results(settings.output)["video"].values == before
    other = dataclasses.replace(settings, edits=(("ours", settings.edits[1][1]),))
    with pytest.raises(ValueError, match="holds features of something else: features.frames"):
        evaluate(other, {"video": video.plan_video})


def test_a_source_is_embedded_once_for_all_of_its_edits(clip, tmp_path, monkeypatch):
    source, seen, extract = drawn(0), [], FeatureNetwork.extract

    def counted(network, frames):
        seen.append(np.asarray(frames))
        return extract(network, frames)

    monkeypatch.setattr(FeatureNetwork, "extract", counted)
    folder = write_edit(tmp_path / "ours", source, drawn(1))
    write_frames(tmp_path / "ours/01/frames", drawn(2))
    record = {"clip": "clips/park", "source_prompt": CAPTION, "prompt": "three cats"}
    (tmp_path / "ours/01/edit.json").write_text(json.dumps(record))
    settings = Settings(output=str(tmp_path / "check"), edits=(("ours", folder),), clip=clip[0])
    evaluate(settings, {"video": video.plan_video})
    assert sum(np.array_equal(frames, source) for frames in seen) == 1 and len(seen) == 3
    methods = read_results(settings.output)["video"].values["methods"]
    assert methods["source"]["edits"] == 2


def test_a_submission_is_written_and_scored(clip, tmp_path):
    """One video of two is there: scored, and it is said that the other is missing."""
    from contextdiff_jax.data.tgve import read_tgve

    dataset = write(tmp_path / "data")
    stunt = read_tgve(dataset)[0]
    places = [tmp_path / f"{number:02d}" for number in range(4)]
    blocks = [np.kron(drawn(n)[:, :2, :2], np.ones((1, 16, 16, 1), np.uint8)) for n in range(4)]
    for number, place in enumerate(places):
        write_frames(place / "frames", blocks[number])
    submission = tmp_path / "mine"
    write_submission(str(submission), stunt, places, (48, 48))
    files = sorted(str(p.relative_to(submission)) for p in submission.rglob("*.jpg"))
    assert files == sorted(
        f"DAVIS_480p/stunt/{kind}/{number:05d}.jpg" for kind in KINDS for number in range(FRAMES)
    )
    first = np.asarray(Image.open(submission / "DAVIS_480p/stunt/style/00000.jpg"))
    wanted = Image.fromarray(blocks[0][0]).resize((48, 48), Image.Resampling.LANCZOS)
    assert np.abs(first.astype(int) - np.asarray(wanted)).mean() < 8  # JPEG halves colours
    settings = Settings(
        output=str(tmp_path / "check"),
        edits=(("mine", str(submission)),),
        tgve=dataset,
        clip=clip[0],
    )
    evaluate(settings, {"video": video.plan_video})
    result = read_results(settings.output)["video"]
    assert result.values["methods"]["mine"]["edits"] == 4
    assert result.warnings == (
        "mine has 4 of 8 edits: its means are of other edits than the whole.",
    )
    [_, edits] = result.tables
    assert [row[2] for row in edits.rows[1::2]] == [text.strip() for text in STUNT[2:]]
    assert "PickScore" not in edits.columns and "PSNR outside" not in edits.columns


def test_what_cannot_be_measured_is_refused_before_any_work(clip, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "load_clip_networks", None)
    settings, (source, ours, _) = measured
    short = write_edit(tmp_path / "short", source, ours[:1])
    odd = write_edit(tmp_path / "odd", source, ours, clip=3)
    away = write_edit(tmp_path / "away", source, ours, clip="clips/..")
    gone = write_edit(tmp_path / "gone", source, ours)
    (tmp_path / "gone/00/frames").rename(tmp_path / "moved")
    (tmp_path / "gone/00/frames").write_text("a file")
    for seed in "01":
        write_edit(tmp_path / "seeds" / seed, source, ours)
    (tmp_path / "empty").mkdir()
    write_frames(tmp_path / "masks/park", source[:2])
    for change, sentence in (
        ({"edits": ()}, "--edits is missing: --what=video needs LABEL=FOLDER"),
        ({"edits": settings.edits[:1] * 2}, "--edits: labels must differ: ours, ours"),
        (
            {"edits": (("source", short),)},
            "the label must not be 'source'",
        ),
        ({"edits": (("a", str(tmp_path / "no")),)}, "--edits=.*/no: no such folder"),
        ({"edits": (("a", str(tmp_path / "empty")),)}, "holds no edits: must have NN/edit.json"),
        ({"edits": (("a", short),)}, "frames' has 1 frames: must be 2 to 3, as its source has"),
        ({"edits": (("a", odd),)}, "edit.json': clip = 3: must be a text"),
        ({"edits": (("a", away),)}, "edit.json': clip = .*: must be a clip's path"),
        ({"edits": (("a", gone),)}, "gone/00/frames: no such folder"),
        ({"edits": (("../a", short),)}, "--edits=../a=.*: the label must be the name of a folder"),
        (
            {"edits": (("a", str(tmp_path / "seeds")),)},
            "0/00/frames' and .*1/00/frames' are of the same clip and prompt: a label may have one",
        ),
        ({"clip": ""}, "--clip is missing: --what=video needs a CLIP folder"),
        ({"pick_score": "no/weights"}, "--pick_score=no/weights: no such folder"),
        ({"masks": str(tmp_path)}, "has no folder of a clip: must have some of park"),
        ({"masks": str(tmp_path / "masks")}, "has 2 masks: must be 3, one for each frame"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(
                dataclasses.replace(settings, output=str(tmp_path / "out"), **change),
                {"video": video.plan_video},
            )
