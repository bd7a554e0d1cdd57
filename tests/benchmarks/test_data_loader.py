"""Both sides of the loader's benchmark make the same pictures, and the command runs."""

import json

import numpy as np
import pytest

from benchmarks import data_loader
from contextdiff_jax.data.sources import open_source


def settings(path, *flags):
    return data_loader.parse(["--config=emoji", f"--data_path={path}", "--resolution=16", *flags])


def test_bare_decoding_makes_the_loader_s_pictures(tiny_shards):  # noqa: F811
    data = data_loader.data_config(settings(tiny_shards))
    files = data_loader.image_files(data, 100)
    source = open_source(data)
    assert len(files) == len(source) == 9
    for index, content in enumerate(files):
        np.testing.assert_array_equal(data_loader.decode(content, data), source[index].image)


def test_the_command(tiny_shards, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "result.json"
    flags = ["--images=20", "--batch_size=10", "--turns=1", "--seconds=0", "--copies=3"]
    args = [f"--data_path={tiny_shards}", "--resolution=16", "--threads=2", f"--json={file}"]
    data_loader.main(flags + args)
    result = json.loads(file.read_text())
    assert result["ratio_of_medians"] == result["loader_median"] / result["bare_median"] > 0
    busy = result["cpu_seconds_per_image"]
    assert result["ratio_of_cpu"] == busy["bare"] / busy["loader"] > 0
    assert "27 samples" in capsys.readouterr().out


def test_sources_without_image_files_are_refused():
    with pytest.raises(ValueError, match="must be shards or folder"):
        data_loader.data_config(data_loader.parse(["--config=quickstart"]))
    with pytest.raises(ValueError, match="--run=x: must be one of clip, base, sr"):
        data_loader.data_config(data_loader.parse(["--run=x"]))
