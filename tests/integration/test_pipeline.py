"""From one command to pictures: training, resuming, exporting, sampling, checking."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from contextdiff_jax.encoders.weights import load_clip
from tests.conftest import AS_USERS_COMPILE


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.slow
def test_one_command_leaves_what_it_promises(quickstart):
    workdir, output = quickstart
    for stage, side in (("base", 16), ("sr", 64)):
        assert pixels(workdir / "samples" / stage / "0002.png").shape == (side, side, 3)
        assert (workdir / "samples" / stage / "grid.png").exists()
        assert (workdir / stage / "preview/00000004.png").exists()
        assert "last_steps_kl" in (workdir / stage / "metrics.csv").read_text()
    prompts = (workdir / "samples/base/prompts.txt").read_text().splitlines()
    assert prompts == ["a red circle", "", "a blue square"]
    assert "consistency_rms" in (workdir / "sr/metrics.csv").read_text()
    assert "images_per_second" in output and "left" in output
    assert "0 samples skipped" in output
    assert not any("orbax" in line.lower() for line in output.splitlines())


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(quickstart, run, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(quickstart[0], workdir)
    before = (workdir / "base/metrics.csv").read_text()
    again = run("main", "--config=configs/quickstart.py:test", f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is finished already") == 3
    assert (workdir / "base/metrics.csv").read_text() == before


@pytest.mark.slow
def test_the_default_trains_a_flow_and_enlarges_by_the_papers_process(quickstart, run, tmp_path):
    """configs/quickstart.py itself, with the text encoder of its short form."""
    flags = ["--config=configs/quickstart.py", f"--workdir={tmp_path}"]
    flags += ["--config.pipeline=('base','sr')", "--config.samples.prompts=('a red circle','')"]
    encoder = quickstart[0] / "clip/encoder"
    flags += [f"--config.encoders.{name}.path={encoder}" for name in ("text", "clip")]
    short = ("steps=2", "batch_size=2", "log_every=1", "optimizer.warmup_steps=0")
    flags += [f"--config.runs.{name}.{key}" for name in ("base", "sr") for key in short]
    done = run("main", *flags)
    assert done.returncode == 0, done.stderr
    flow, enlarged = (metrics_of(tmp_path / name) for name in ("base", "sr"))
    assert "kinetic_energy" in flow and "kinetic_energy" not in enlarged
    assert "relation_rms" not in flow + enlarged  # neither has an adapter
    for stage, side in (("base", 16), ("sr", 64)):
        assert pixels(tmp_path / "samples" / stage / "0001.png").shape == (side, side, 3)
    flags = [f"--export={tmp_path / 'export'}", f"--output={tmp_path / 'check'}", "--count=2"]
    done = run("evaluate", "--what=scenes", *flags)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "check/results.json").read_text())["results"]
    assert set(results["scenes"]["values"]) == {"base", "sr"}


def metrics_of(folder):
    return (folder / "metrics.csv").read_text()


@pytest.mark.slow
def test_the_trained_encoder_is_a_hugging_face_folder(quickstart):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = quickstart[0] / "clip/encoder"
    model = transformers.CLIPModel.from_pretrained(folder)
    config, params = load_clip(folder)
    assert model.config.text_config.hidden_size == config.text_width
    theirs = model.text_model.embeddings.token_embedding.weight.detach()
    assert torch.equal(
        theirs, torch.from_numpy(np.asarray(params["text_model"]["token_embedding"]))
    )
    assert load_file(folder / "model.safetensors")["logit_scale"].shape == ()


@pytest.mark.slow
def test_a_picture_depends_on_seed_and_place_alone(quickstart, run, tmp_path):
    export = quickstart[0] / "export"
    flags = [f"--export={export}", "--prompt=a red circle", "--prompt=a green cross", "--repeat=2"]
    for name, size, seed in (("one", 1, 0), ("two", 2, 0), ("other", 2, 1)):
        more = [f"--output={tmp_path / name}", f"--batch_size={size}", f"--seed={seed}"]
        done = run("sample", *flags, *more)
        assert done.returncode == 0, done.stderr
    for index in range(4):
        file = f"sr/{index:04d}.png"
        same = np.abs(pixels(tmp_path / "one" / file) - pixels(tmp_path / "two" / file))
        assert same.max() <= 1
        assert np.abs(pixels(tmp_path / "other" / file) - pixels(tmp_path / "two" / file)).max() > 8
    assert (
        np.abs(pixels(tmp_path / "two/sr/0000.png") - pixels(tmp_path / "two/sr/0001.png")).max()
        > 8
    )


def changed(export, change):
    """Writes export.json anew, as by hand: without checksums, which would tell."""
    content = json.loads((export / "export.json").read_text())
    change(content["config"])
    (export / "export.json").write_text(json.dumps(content))
    (export / "checksums.json").unlink()


@pytest.mark.slow
def test_a_level_that_is_left_out_is_the_exports(quickstart, run, tmp_path):
    export = tmp_path / "export"
    shutil.copytree(quickstart[0] / "export", export)
    changed(export, lambda config: config["samples"].update(augmentation=0.1))
    asked = {"left_out": (export, []), "given": (quickstart[0] / "export", ["--augmentation=0.1"])}
    for name, (folder, extra) in asked.items():
        flags = [f"--export={folder}", "--prompt=a red circle"]
        done = run("sample", *flags, f"--output={tmp_path / name}", *extra)
        assert done.returncode == 0, done.stderr
    left_out, given = (pixels(tmp_path / name / "sr/0000.png") for name in asked)
    np.testing.assert_array_equal(left_out, given)


@pytest.mark.slow
def test_programs_as_users_compile_them_draw_the_same_pictures(quickstart, run, tmp_path):
    """The other tests compile with few optimizations, see tests/conftest.py."""
    export, where = quickstart[0] / "export", tmp_path / "out"
    flags = [f"--export={export}", f"--output={where}", "--prompt=a red circle", "--prompt="]
    flags += ["--prompt=a blue square", "--batch_size=2"]
    done = run("sample", *flags, **AS_USERS_COMPILE)
    assert done.returncode == 0, done.stderr
    for index, stage in itertools.product(range(3), ("base", "sr")):
        file = f"{stage}/{index:04d}.png"
        other = pixels(quickstart[0] / "samples" / file)
        assert np.abs(pixels(where / file) - other).max() <= 1


@pytest.mark.slow
def test_eight_devices_draw_the_same_pictures(quickstart, run, tmp_path):
    """With the weights split over fsdp and tensor, as they were in training."""
    export = tmp_path / "export"
    shutil.copytree(quickstart[0] / "export", export)
    changed(export, lambda config: config.update(mesh={"data": -1, "fsdp": 2, "tensor": 2}))
    flags = [f"--export={export}", "--prompt=a red circle", "--repeat=3"]
    flags.append("--augmentation=0.1")
    for count in (1, 8):
        done = run(
            "sample", *flags, f"--output={tmp_path / str(count)}", JAX_NUM_CPU_DEVICES=str(count)
        )
        assert done.returncode == 0, done.stderr
    for index in range(3):
        file = f"sr/{index:04d}.png"
        assert np.abs(pixels(tmp_path / "1" / file) - pixels(tmp_path / "8" / file)).max() <= 1


@pytest.mark.slow
def test_prompts_from_a_file_long_ones_cut_with_a_warning(quickstart, run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\n" + "a blue square " * 20 + "lastword\n")
    done = run(
        "sample",
        f"--export={quickstart[0] / 'export'}",
        f"--prompts={prompts}",
        f"--output={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    assert "prompt cut to 16 tokens; lost:" in done.stderr and "lastword" in done.stderr
    assert len(list((tmp_path / "out/base").glob("0*.png"))) == 3


@pytest.mark.slow
def test_requests_from_a_file_draw_what_prompts_do(quickstart, run, tmp_path):
    flags = [f"--export={quickstart[0] / 'export'}", "--seed=1"]
    done = run("sample", *flags, "--prompt=a red circle", "--prompt=", f"--output={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    written = tmp_path / "a/sr/requests.jsonl"
    assert written.read_text() == '{"text": "a red circle"}\n{"text": ""}\n'
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"text": "a red circle"}\n{"text": null}\n')
    done = run("sample", *flags, f"--requests={requests}", f"--output={tmp_path}/b")
    assert done.returncode == 0, done.stderr
    for name in ("base/0000.png", "sr/0000.png", "sr/0001.png", "sr/prompts.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_pictures_are_inverted_by_the_first_stage_and_edited(quickstart, run, tmp_path):
    given = [quickstart[0] / f"samples/base/000{n}.png" for n in (0, 2)]
    flags = [f"--invert={path}" for path in given] + ["--sampler=base.num_steps=50"]
    flags += ["--prompt=a red circle", "--prompt=a blue square"]
    flags += [f"--export={quickstart[0] / 'export'}", f"--output={tmp_path}"]
    done = run("sample", *flags)
    assert done.returncode == 0, done.stderr
    told = re.search(r"round trip of 2 pictures: RMS (\S+) of 255", done.stderr)
    redrawn = [pixels(tmp_path / f"base/000{n}.png") for n in (0, 1)]
    errors = np.stack(redrawn) - np.stack([pixels(path) for path in given])
    found = np.sqrt(np.mean(errors**2))
    assert found < 10 and float(told[1]) == pytest.approx(found, abs=0.01)
    assert not (tmp_path / "sr").exists()
    done = run("sample", *flags, "--edit=a green cross", "--edit=")
    assert done.returncode == 0, done.stderr
    rows = pixels(tmp_path / "base/inverted.png")  # with gaps of 2 pixels
    assert rows.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    shown = [rows[20:36, left : left + 16] for left in (2, 20, 38)]
    edited = pixels(tmp_path / "base/0001.png")
    for part, expected in zip(shown, (pixels(given[1]), redrawn[1], edited), strict=True):
        assert np.abs(part - expected).max() <= 1
    assert (tmp_path / "base/prompts.txt").read_text() == "a green cross\n\n"


@pytest.mark.slow
def test_a_bfloat16_export_draws_nearly_the_same(quickstart, run, tmp_path):
    export = tmp_path / "export"
    done = run("export", f"--workdir={quickstart[0]}", f"--output={export}", "--dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    content = json.loads((export / "export.json").read_text())
    assert content["dtype"] == "bfloat16" and content["stages"]["base"]["step"] == 4
    for folder in (quickstart[0] / "export", export):
        done = run(
            "sample",
            f"--export={folder}",
            f"--output={tmp_path / folder.parent.name}",
            "--prompt=a red circle",
        )
        assert done.returncode == 0, done.stderr
    pictures = [
        pixels(tmp_path / f.parent.name / "base/0000.png")
        for f in (quickstart[0] / "export", export)
    ]
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "flags", "code", "sentence"),
    [
        (
            "sample",
            ["--prompt=x", "--sampler=name=unipc"],
            2,
            "name = 'unipc': must be one of ddpm",
        ),
        ("sample", ["--prompt=x", "--sampler=stepz=3"], 2, "field must be one of"),
        ("sample", ["--prompt=x", "--sampler=top.eta=1"], 2, "stage must be one of base, sr"),
        ("sample", ["--prompt=x", "--augmentation=2"], 2, "--augmentation=2: must be a number"),
        (
            "sample",
            ["--label=rose"],
            2,
            "--label gives 'label', this export's pictures are of text",
        ),
        ("sample", ["--prompt=x", "--invert=no.png"], 2, "--invert=no.png: no such file"),
        ("sample", ["--prompt=x", "--invert=pyproject.toml"], 2, "toml: no usable image: unknown"),
        (
            "sample",
            ["--prompt=x", "--invert=docs/emoji.png", "--sampler=name=ddpm"],
            2,
            "stage 'base' cannot invert pictures by sampler ddpm with eta 0: must be ddim",
        ),
        ("sample", [], 2, "no requests: give --prompt=TEXT, --prompts=FILE, --label=NAME, --lay"),
    ],
)
def test_sampling_refuses_in_one_sentence(
    module, flags, code, sentence, quickstart, forks, tmp_path
):
    done = forks(module, f"--export={quickstart[0] / 'export'}", f"--output={tmp_path}", *flags)
    assert done.returncode == code
    assert sentence in done.stderr and "Traceback" not in done.stderr
