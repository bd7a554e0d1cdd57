"""evaluate.py as a user runs it: every measurement, interruptions, and what it refuses."""

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from contextdiff_jax import evaluate
from contextdiff_jax.evaluation.evaluation import Settings
from contextdiff_jax.evaluation.statistics import FeatureIdentity, FeatureStatistics
from contextdiff_jax.tasks.task_config import registered
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

COUNT = 20
DRAWN = [f"--count={COUNT}", "--batch_size=4", "--stage=base"]


@pytest.fixture(scope="module")
def measured(quickstart, run, tmp_path_factory):
    """The output folder of all measurements of the finished toy pipeline."""
    workdir, _ = quickstart
    output = tmp_path_factory.mktemp("measured")
    done = run(
        "evaluate",
        *(f"--export={workdir / 'export'}", f"--output={output}", *DRAWN),
        "--what=scenes,fid,sweep,bits_per_dim,curves,cost,heatmaps",
        *("--guidance=2,3", "--terms=3", "--turns=2"),
        *(f"--run=base={workdir / 'base'}", f"--run=sr={workdir / 'sr'}"),
        *("--prompt=a red circle", "--prompt=a blue square left of a red cross", "--word=red"),
    )
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} of {COUNT} pictures" in done.stderr and "a second" in done.stderr
    return output


def results(output):
    return json.loads((output / "results.json").read_text())["results"]


def features(folder, layer):
    parts = [np.load(path)[layer] for path in sorted(folder.glob("*.npz"))]
    return np.concatenate(parts)


def test_exactly_one_picture_per_caption(measured):
    for folder in ("scenes", "fid", "sweep/2", "sweep/3"):
        files = sorted(path.name for path in (measured / folder / "base").iterdir())
        assert files == [f"{place:06d}.png" for place in range(COUNT)]
        assert len((measured / folder / "requests.jsonl").read_text().splitlines()) == COUNT
    assert not (measured / "fid/sr").exists()


def test_the_distance_is_scipys_of_the_stored_features(measured):
    drawn = features(measured / "fid/features/clip", "image_embedding").astype(np.float64)
    (folder,) = measured.glob("reference_*")
    real = features(folder / "features", "image_embedding").astype(np.float64)
    assert drawn.shape == real.shape == (COUNT, 64)
    covariances = np.cov(drawn.T), np.cov(real.T)
    # Both are singular: an offset as pytorch-fid's makes the root exist.
    offset = np.eye(64) * 1e-7
    root = linalg.sqrtm((covariances[0] + offset) @ (covariances[1] + offset)).real
    shift = drawn.mean(0) - real.mean(0)
    expected = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    found = results(measured)["fid"]["values"]["Frechet distance on CLIP features"]
    assert found == pytest.approx(expected, rel=1e-2)


def test_the_clip_score_is_that_of_transformers(quickstart, measured):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = quickstart[0] / "clip/encoder"
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    lines = (measured / "fid/requests.jsonl").read_text().splitlines()
    captions = [json.loads(line)["text"] for line in lines]
    files = [measured / f"fid/base/{place:06d}.png" for place in range(COUNT)]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255.0
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    images = torch.tensor((pixels - mean) / deviation).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=images).pooler_output
        ours = model.visual_projection(pooled)
        texts = []
        for caption in captions:
            tokens = tokenizer(caption, return_tensors="pt")
            pooled = model.text_model(input_ids=tokens["input_ids"]).pooler_output
            texts.append(model.text_projection(pooled)[0])
        cosine = torch.cosine_similarity(ours, torch.stack(texts)).mean().item()
    found = results(measured)["fid"]["values"]["CLIP cosine"]
    assert found == pytest.approx(cosine, abs=1e-5)


def test_results_record_what_they_depend_on(measured):
    protocol = results(measured)["fid"]["protocol"]
    assert protocol["sample count"] == COUNT
    assert protocol["features"]["network"] == "clip" and protocol["features"]["protocol"] == "clip"
    assert protocol["features"]["weights"].startswith("sha256:")
    assert protocol["reference"]["data"] == f"scenes test, first {COUNT}"
    assert protocol["sampler"]["base"].startswith("ddim, 2 steps, guidance 2")
    warnings = " ".join(results(measured)["fid"]["warnings"])
    assert "Fewer samples than features" in warnings and "64 features" in warnings
    assert results(measured)["fid"]["values"]["scores"]["distance"]["rank_deficient"] is True


def test_a_sweep_has_a_row_per_scale_and_its_own_scale_is_the_plain_one(measured):
    found = results(measured)
    rows = list(csv.DictReader((measured / "sweep.csv").open()))
    assert [row["guidance"] for row in rows] == ["2.0", "3.0"]
    name = "Frechet distance on CLIP features"
    assert float(rows[0][name]) == found["fid"]["values"][name]
    assert float(rows[1][name]) != float(rows[0][name])


def test_the_other_measurements_left_what_they_promise(measured):
    found = results(measured)
    assert found["scenes"]["values"]["base"]["prompts"]["count"] == COUNT
    assert 0 <= found["scenes"]["values"]["base"]["shuffled"]["colour_and_shape"] <= 1
    assert found["bits_per_dim"]["values"]["images"] == COUNT
    assert len(list(csv.reader((measured / "bits_per_dim_terms.csv").open()))) == 4
    without, with_adapter = found["cost"]["values"]["stages"]
    assert with_adapter["parameters"].keys() - without["parameters"].keys() == {
        "adapter",
        "clip_image",
    }
    for kind in ("training_flops", "sampling_flops"):
        assert with_adapter[kind] > without[kind] > 1e7
    assert found["cost"]["values"]["training_seconds"].keys() == {"base", "sr"}
    maps = found["heatmaps"]["values"]["maps"]
    assert [(row["picture"], row["word"]) for row in maps] == [(0, "red"), (1, "red")]
    assert all(0 < row["least"] <= row["mean share"] <= row["largest"] < 1 for row in maps)
    for file in ("curves.png", "sweep.png", "bits_per_dim.png", "heatmaps/0001.png"):
        assert Image.open(measured / file).size[0] > 200
    page = (measured / "report.html").read_text()
    assert page.count("<section") == 7 and "http" not in page


def arguments(export, output):
    module = [sys.executable, "-m", "contextdiff_jax.evaluate", "--what=fid", *DRAWN]
    return [*module, f"--export={export}", f"--output={output}"]


def stopped_by(number, command, pictures):
    """Runs the command until there are new pictures, then sends the signal."""
    before = len(list(pictures.glob("*.png")))
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list(pictures.glob("*.png"))) <= before and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate()
    return process.returncode, errors, len(list(pictures.glob("*.png")))


def test_killed_and_stopped_the_same_command_ends_in_the_same_results(
    quickstart, measured, tmp_path
):
    command = arguments(quickstart[0] / "export", tmp_path)
    pictures = tmp_path / "fid/base"
    code, errors, first = stopped_by(signal.SIGKILL, command, pictures)
    assert code == -signal.SIGKILL, errors
    code, errors, second = stopped_by(signal.SIGTERM, command, pictures)
    if first < second < COUNT:  # a fast machine may have drawn the rest
        assert code == 75 and "saved; the same command resumes" in errors, errors
    last = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    for place in range(COUNT):
        file = f"fid/base/{place:06d}.png"
        assert (tmp_path / file).read_bytes() == (measured / file).read_bytes()
    ours, expected = results(tmp_path)["fid"], results(measured)["fid"]
    assert ours["values"] == expected["values"]
    assert ours["protocol"]["sampler"] == expected["protocol"]["sampler"]


@pytest.fixture
def settings(quickstart, tmp_path):
    """Returns the settings of a small evaluation, some of them changed."""
    base = Settings(
        output=str(tmp_path / "out"),
        export=str(quickstart[0] / "export"),
        stage="base",
        count=COUNT,
        batch_size=4,
        guidance=(3.0, 2.0),
    )
    return lambda **changes: dataclasses.replace(base, **changes)


def refused(settings, what="fid"):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        evaluate.evaluate(settings, {what: evaluate.PLANS[what]})
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "what", "sentence"),
    [
        ({"stage": "top"}, "fid", "--stage=top: must be one of base, sr"),
        ({"sampler": ("name=unipc",)}, "fid", "name = 'unipc': must be one of ddpm"),
        ({"captions": "nowhere.txt"}, "fid", "--captions=nowhere.txt: no such file"),
        ({"data": ("limit=10",)}, "fid", f"--count={COUNT}: scenes test, first 10 has 10 capt"),
        ({"data": ("source=folder", "path=nowhere")}, "fid", "nowhere does not exist"),
        ({"reference": ("nowhere.npz",)}, "fid", "'nowhere.npz' do not exist"),
        ({"features": "nowhere.safetensors"}, "fid", "'nowhere.safetensors' do not exist"),
        ({"clip": "nowhere"}, "fid", "'nowhere' does not exist"),
        ({}, "adm", "--features is missing: adm needs a safetensors file of Inception v3"),
        ({"features": "x", "resize": "clean-fid"}, "adm", "--resize=clean-fid: must be torch-fid"),
        ({"guidance": (3.0, 3.0)}, "sweep", "at least two different numbers"),
        ({"data": ("source=folder", "path=x")}, "scenes", "only rendered scenes can be checked"),
        ({"count": None}, "bits_per_dim", "scenes are endless, give --count"),
        ({}, "curves", "give --run=LABEL=FOLDER"),
        ({"runs": (("a", "nowhere"),)}, "cost", "no metrics.csv there"),
        ({"export": ""}, "cost", "--export is missing"),
        ({"prompts": ("a red circle",), "words": ("cat",)}, "heatmaps", "none of the words cat"),
        ({"prompts": ("x",), "images": ("a", "b")}, "heatmaps", "2 --image for 1 --prompt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(changes, what, sentence, settings):
    asked = settings(**changes)
    assert sentence in refused(asked, what)
    assert not list((ROOT / asked.output).rglob("*.png"))


def test_an_empty_caption_file_is_refused(settings, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    sentence = refused(settings(captions=str(tmp_path / "empty.txt")))
    assert "holds no caption" in sentence


@pytest.mark.parametrize("field", ["weights", "protocol"])
def test_statistics_of_other_features_are_refused(field, settings, measured, tmp_path):
    (path,) = measured.glob("reference_*/statistics.npz")
    known = FeatureStatistics.load(path)
    identity = FeatureIdentity(**known.identity.to_json() | {field: "another"})
    other = FeatureStatistics(identity, known.dimension, "others")
    other.merge(FeatureStatistics.of(np.eye(64), identity, "others"))
    other.save(tmp_path / "other.npz")
    sentence = refused(settings(reference=(str(tmp_path / "other.npz"),)))
    assert f"features differ in {field}: 'another' for 'others'" in sentence


def test_pictures_of_other_captions_in_the_same_folder_are_refused(settings, measured):
    before = (measured / "results.json").read_bytes()
    sentence = refused(settings(output=str(measured), caption_seed=5))
    assert "holds pictures of something else: pictures.requests.sha256" in sentence
    assert (measured / "results.json").read_bytes() == before


def test_flags_that_cannot_be_end_in_a_sentence_and_help_answers(forks, tmp_path):
    done = forks("evaluate", f"--output={tmp_path}", "--what=fidd")
    assert done.returncode == 2
    assert "--what=fidd: must be one of scenes, boxes, scene_fid, fid, fid30k" in done.stderr
    done = forks("evaluate", f"--output={tmp_path}", "--what=fid", "--npz=samples.npz")
    assert done.returncode == 2 and "only --what=adm writes it" in done.stderr
    answer = forks("evaluate", "--help").stdout
    assert "30,000 random captions of COCO" in answer and "--caption_seed" in answer


def test_partial_inception_weights_and_a_folder_of_photographs(
    settings, measured, shared_data, tmp_path
):
    """FID-768 of real weights, of images of all sizes; compared with the statistics it left."""
    pytest.importorskip("torch")
    weights = next(iter(sorted(shared_data("weights").rglob("*nception*.safetensors"))), None)
    if weights is None:
        pytest.skip("no Inception weights in the test data")
    photos = shared_data("photos")
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = (photos / "metadata.jsonl").read_text().splitlines()[:6]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for line in lines:
        name = json.loads(line)["file_name"]
        shutil.copy(photos / name, folder / name)
    asked = settings(
        features=str(weights),
        count=5,
        data=("source=folder", f"path={folder}"),
        resize="clean-fid",
    )
    evaluate.evaluate(asked, {"fid": evaluate.PLANS["fid"]})
    output = tmp_path / "out"
    first = results(output)["fid"]
    assert first["protocol"]["features"]["layer"] == "768"
    assert first["protocol"]["features"]["protocol"] == "clean-fid"
    assert first["protocol"]["reference"]["images"] == 6
    assert first["values"]["FID-768"] > 0
    (statistics,) = output.glob("reference_*/statistics.npz")
    again = dataclasses.replace(asked, reference=(str(statistics),))
    evaluate.evaluate(again, {"fid": evaluate.PLANS["fid"]})
    second = results(output)["fid"]
    assert second["values"]["FID-768"] == pytest.approx(first["values"]["FID-768"], rel=1e-9)
    assert "precision" in first["values"] and "precision" not in second["values"]
    sentence = refused(dataclasses.replace(again, resize="torch-fidelity", features=str(weights)))
    assert "features differ in protocol: 'clean-fid'" in sentence


def test_what_is_measured_by_default_of_scenes_can_be():
    found = {kind: task.scenes_measure for kind, task in registered().items()}
    assert set(found.values()) <= set(evaluate.PLANS)
    assert (found["layout_to_image"], found["in_context"]) == ("boxes", "in_context")
