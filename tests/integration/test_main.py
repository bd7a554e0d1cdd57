"""What `main` refuses, and what it does on data as crawls hold it."""

import json

import pytest

QUICK = "--config=configs/quickstart.py:test"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            [QUICK, "--config.runs.base.task.sampler.name=unipc"],
            "sampler.name = 'unipc': must be one of",
        ),
        ([QUICK, "--run=bsae"], "--run=bsae: must be one of clip, base, sr"),
        ([QUICK, "--workdir=/dev/null/runs"], "--workdir=/dev/null/runs: cannot be written to"),
        ([QUICK, "--config.encoders.clip.path=nowhere"], "no folder there"),
        (["--config=configs/emoji.py:cpu", "--config.data_path=nowhere"], "nowhere"),
        (["--config=configs/emoji.py:cpu"], "data.path is empty"),
        (["--config=configs/laion.py:huge"], "preset 'huge': must be one of"),
        ([QUICK, "--config.runs.base.stepz=3"], "stepz"),
        ([QUICK, "--config.runs.base.steps=many"], "steps"),
    ],
)
def test_refuses_before_any_long_work(flags, sentence, forks, tmp_path):
    refused(forks("main", f"--workdir={tmp_path}", *flags), sentence, tmp_path)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.mesh.data=3", "does not fill the 2 devices: mesh.data = 2 would fit"),
        # The last run, before the first begins.
        ("--config.runs.sr.batch_size=9", "runs.sr.batch_size = 9: must be divisible by 2 devices"),
    ],
)
def test_refuses_what_two_devices_cannot_do(flag, sentence, run, tmp_path):
    done = run("main", f"--workdir={tmp_path}", QUICK, flag, JAX_NUM_CPU_DEVICES="2")
    refused(done, sentence, tmp_path)


def refused(done, sentence, workdir):
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not any(workdir.rglob("checkpoints"))


def test_help_answers(forks):
    done = forks("main", "--help")
    assert done.returncode == 0
    for text in ("the same command resumes", "--workdir", "--config", "--coordinator"):
        assert text in done.stdout


@pytest.mark.slow
def test_missing_and_mis_shaped_weights_are_named(quickstart, forks, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "encoder"
    shutil.copytree(quickstart[0] / "clip/encoder", folder)
    tensors = load_file(folder / "model.safetensors")
    lost = tensors.pop("text_model.final_layer_norm.bias")
    tensors["surplus.weight"] = lost
    tensors["text_model.final_layer_norm.weight"] = lost[:3]
    save_file(tensors, folder / "model.safetensors")
    done = forks(
        "main",
        QUICK,
        f"--workdir={tmp_path}",
        "--run=base",
        f"--config.encoders.clip.path={folder}",
        f"--config.encoders.text.path={folder}",
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in (
        "text_model.final_layer_norm.bias",
        "surplus.weight",
        "text_model.final_layer_norm.weight",
    ):
        assert word in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_config_names_the_keys(quickstart, forks):
    done = forks(
        "main",
        QUICK,
        f"--workdir={quickstart[0]}",
        "--run=base",
        "--config.runs.base.steps=6",
        "--config.runs.base.task.diffusion.prediction=v",
    )
    assert done.returncode == 2
    assert "config.runs.base.task.diffusion.prediction: 'x0' there, 'v' here" in done.stderr


@pytest.mark.slow
def test_damaged_shards_are_skipped_counted_and_named(shared_data, run, tmp_path):
    good, damaged = shared_data("emoji_shards"), shared_data("damaged_shards")
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "00000.tar").symlink_to(good / "00000.tar")
    for tar in damaged.glob("*.tar"):
        (folder / f"1{tar.name}").symlink_to(tar)
    done = run(
        "main",
        "--config=configs/laion.py:tiny",
        f"--workdir={tmp_path / 'w'}",
        f"--config.data_path={folder}",
        *short_runs(),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "w/base/data_report.json").read_text())
    text = json.dumps(report)
    for word in (
        "00003_empty",
        "00004_not_a_tar",
        "00002_truncated",
        "no usable caption",
    ):
        assert word in text, report
    assert (tmp_path / "w/samples/sr/grid.png").exists()


def short_runs():
    for name in ("clip", "base", "sr"):
        yield f"--config.runs.{name}.steps=2"
        for key in ("log_every", "save_every"):
            yield f"--config.runs.{name}.{key}=2"
    for name in ("base", "sr"):
        yield f"--config.runs.{name}.task.diagnose_every=0"
        yield f"--config.runs.{name}.task.preview.every=0"
        yield f"--config.runs.{name}.task.sampler.num_steps=2"
