"""Files that an evaluation is given or reads back: whatever is wrong, one sentence names them."""

import copy
import json
import os
import zipfile

import numpy as np
import pytest

from contextdiff_jax.data.embedding_shards import METADATA, Metadata, StoredEncoder, read_metadata
from contextdiff_jax.data.example import DataError
from contextdiff_jax.evaluation.bound_rows import Rows, read_rows, write_rows
from contextdiff_jax.evaluation.curves import read_metrics
from contextdiff_jax.evaluation.results import read_results
from contextdiff_jax.evaluation.statistics import FeatureIdentity, FeatureStatistics
from contextdiff_jax.system.array_files import read_arrays

RECORD = {
    **{"network": "n", "layer": "3", "weights": "sha256:0", "protocol": "p"},
    **{"source": "s", "count": 5, "dimension": 3},
}


def refused(read, path, cause, kind=ValueError):
    with pytest.raises(kind) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and cause in text
    assert "\n" not in text and len(text) < 1500


# ---- statistics.npz of --reference


def stored(path, record=RECORD, **arrays):
    arrays = {"mu": np.zeros(3), "sigma": np.eye(3)} | arrays
    np.savez(path, record=np.array(json.dumps(record)), **arrays)


def test_statistics_that_are_whole_are_read(tmp_path):
    stored(tmp_path / "x.npz")
    read = FeatureStatistics.load(tmp_path / "x.npz")
    assert read.identity == FeatureIdentity("n", "3", "sha256:0", "p") and read.count == 5
    np.testing.assert_array_equal(read.covariance, np.eye(3))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"mu": np.zeros((3, 1))}, "mean has shape (3, 1), covariance (3, 3)"),
        ({"sigma": np.eye(4)}, "mean has shape (3,), covariance (4, 4)"),
        ({"sigma": np.zeros(3)}, "covariance (3,); must be (D,), (D, D)"),
        ({"mu": np.array([0, np.nan, 0])}, "are NaN or infinite"),
        ({"sigma": np.diag([1, np.inf, 1])}, "are NaN or infinite"),
        ({"sigma": -np.eye(3)}, "sigma has negative variances"),
        ({"mu": np.zeros(3, int)}, "mu is int64; must be float"),
        ({"mu": np.array(["a", "b", "c"])}, "mu is <U1; must be float"),
        ({"mu": np.array([{}, [], 3], object)}, "Object arrays cannot be loaded"),
        ({"record": []}, "its record is no JSON object"),
        ({"record": "x"}, "its record is no JSON object"),
        ({"record": RECORD | {"count": -1}}, "count = -1: must be from 0"),
        ({"record": RECORD | {"count": 10**18}}, "must be from 0 to 1,000,000,000,000"),
        ({"record": RECORD | {"count": "5"}}, "count = '5': must be int, is str"),
        ({"record": RECORD | {"count": float("nan")}}, "count = nan: must be int"),
        ({"record": RECORD | {"layer": [3]}}, "layer = [3]: must be str, is list"),
        (
            {"record": {"network": "n"}},
            "it does not record layer, weights, protocol, count, source",
        ),
    ],
)
def test_malformed_statistics_are_refused(change, cause, tmp_path):
    stored(tmp_path / "x.npz", **change)
    refused(FeatureStatistics.load, tmp_path / "x.npz", cause)


def claimed(path, shape):
    """Writes an .npz whose array claims a shape that its data do not have."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(24)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mu.npy", data)


def test_an_array_of_a_claimed_size_is_refused_before_it_is_reserved(tmp_path):
    claimed(tmp_path / "x.npz", (10**6, 10**6))
    refused(read_arrays, tmp_path / "x.npz", "mu claims to be float64 of (1000000, 1000000)")
    claimed(tmp_path / "x.npz", (2**62, 2**62))
    refused(read_arrays, tmp_path / "x.npz", "mu claims to be float64 of")


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."]
)
def test_what_holds_no_arrays_is_refused(data, tmp_path):
    (tmp_path / "x.npz").write_bytes(data)
    refused(read_arrays, tmp_path / "x.npz", "holds no readable arrays")


def test_every_flipped_byte_of_statistics_is_refused_or_harmless(tmp_path):
    stored(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    for place in range(0, len(whole), 7):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x55
        (tmp_path / "x.npz").write_bytes(spoilt)
        try:
            FeatureStatistics.load(tmp_path / "x.npz")
        except ValueError as error:
            assert "x.npz" in str(error)


def test_what_would_block_is_refused(tmp_path):
    for name in ("x.npz", "metrics.csv", "results.json", METADATA):
        os.mkfifo(tmp_path / name)
    for read, path in (
        (FeatureStatistics.load, tmp_path / "x.npz"),
        (read_metrics, tmp_path / "metrics.csv"),
    ):
        refused(read, path, "is no regular file")
    for read in (read_results, read_metadata):
        refused(read, tmp_path, "is no regular file")


# ---- rows of the bound


def test_malformed_rows_are_refused(tmp_path):
    write_rows(tmp_path, Rows(np.arange(3), np.zeros(3), np.zeros((3, 4)), np.zeros((3, 4))))
    assert len(read_rows(tmp_path)) == 3
    (file,) = tmp_path.iterdir()
    arrays = read_arrays(file)
    for name, value in (
        ("index", np.zeros(3)),
        ("prior", np.zeros(4, np.float32)),
        ("terms", np.zeros(3, np.float32)),
    ):
        np.savez(file, **arrays | {name: value})
        refused(lambda path: read_rows(path.parent), file, "must have 3 rows; remove it")


# ---- metrics.csv


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\xff\xfe\x00", "holds no metrics"),
        (b"a,b,c\n" + b'"' + b"x" * 200_000 + b"\n1,a,2\n", "holds no metrics"),
        (b"step,name,value\n%d,loss,1\n1,loss,2\n" % 2**70, "line 2: must be step, name, value"),
        (b"step,name,value\n-1,loss,1\n1,loss,2\n", "line 2: must be step, name, value"),
        (b"step,name,value\n\x1b[2J,loss,1\n1,loss,2\n", "value: ['\\x1b[2J', 'loss', '1']"),
    ],
)
def test_malformed_metrics_are_refused(data, cause, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(data)
    refused(read_metrics, tmp_path / "metrics.csv", cause)


# ---- results.json

RESULT = {
    "title": "t",
    "summary": "s",
    "values": {"fid": float("nan")},
    "protocol": {},
    "tables": [{"name": "x", "columns": ["a"], "rows": [[1.5]], "note": ""}],
    "figures": [{"file": "a.png", "caption": ""}],
    "galleries": [{"title": "g", "items": [["pictures/a.png", "c"]], "columns": 0}],
    "warnings": [],
}


def part(key, value):
    def change(content):
        result = content["results"]["x"]
        *path, last = key.split(".")
        for name in path:
            result = result[int(name) if name.isdigit() else name]
        result[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda c: c.update(results=[]), ""),
        (lambda c: c.update(results={"../x": RESULT}), "'../x.csv' is no name of a file"),
        (lambda c: c.update(results={"x": 3}), ""),
        (lambda c: c["results"]["x"].pop("title"), "title"),
        (part("more", 1), "more"),
        (part("title", 3), "3 is no text"),
        (part("values", []), "values = [] is no object"),
        (part("tables", {}), ""),
        (part("tables.0.name", "../../x"), "'../../x.csv' is no name of a file"),
        (part("tables.0.name", "/tmp/x"), "'/tmp/x.csv' is no name of a file"),
        (part("tables.0.rows", [[1, 2]]), "has another length than its columns"),
        (part("tables.0.rows", 7), ""),
        (part("figures.0.file", "/etc/passwd"), "'/etc/passwd' is no name of a file"),
        (part("galleries.0.items.0.0", "../secret.png"), "'../secret.png' is no name of a file"),
        (part("galleries.0.items", [[]]), ""),
        (part("warnings", [None]), "None is no text"),
    ],
)
def test_malformed_results_are_refused(change, cause, tmp_path):
    content = {"format": 1, "versions": {}, "results": {"x": copy.deepcopy(RESULT)}}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    assert list(read_results(tmp_path)) == ["x"]  # NaN is what a measurement may have found
    change(content)
    file.write_text(json.dumps(content))
    if cause or content["results"] != []:
        refused(lambda path: read_results(path.parent), file, cause)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"a":' * 99_999, b"null"])
def test_results_that_are_no_json_are_refused(data, tmp_path):
    (tmp_path / "results.json").write_bytes(data)
    refused(lambda path: read_results(path.parent), tmp_path / "results.json", "")


# ---- metadata.json of embeddings

ENCODER = StoredEncoder("sha256:0", 12, 16)
METADATA_OF = Metadata(
    source="list",
    samples=11,
    shard_size=5,
    dtype="float32",
    compute_dtype="float32",
    encoders={"text": ENCODER},
    finished=True,
)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"format": 2}, "its format is not 1"),
        ({"dtype": "int8"}, "dtype = 'int8': must be one of bfloat16, float32"),
        ({"dtype": ["x"]}, "dtype"),
        ({"samples": 0}, "samples = 0: must be from 1"),
        ({"samples": -5}, "samples = -5: must be from 1"),
        ({"samples": 10**18}, "must be from 1 to 1,000,000,000,000"),
        ({"samples": "11"}, "samples = '11': must be int, is str"),
        ({"shard_size": 0}, "shard_size = 0: must be from 1"),
        ({"shard_size": 2.5}, "shard_size = 2.5: must be int"),
        ({"finished": "yes"}, "finished = 'yes': must be bool"),
        ({"source": 3}, "source = 3: must be str"),
        ({"encoders": []}, ""),
        ({"encoders": {"text": 3}}, ""),
        ({"encoders": {"text": {"identity": 3, "max_length": 1, "width": 1}}}, "identity = 3"),
        ({"encoders": {"text": {"identity": "", "max_length": 2**40, "width": 1}}}, "max_length ="),
        (
            {"encoders": {"text": {"identity": "", "max_length": 1, "width": -1}}},
            "width = -1: must",
        ),
    ],
)
def test_malformed_metadata_of_embeddings_is_refused(change, cause, tmp_path):
    METADATA_OF.write(tmp_path)
    assert read_metadata(tmp_path) == METADATA_OF
    file = tmp_path / METADATA
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(lambda path: read_metadata(path.parent), file, cause, DataError)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"a":' * 99_999, b'{"format": 1e999}'])
def test_metadata_of_embeddings_that_is_no_json_is_refused(data, tmp_path):
    (tmp_path / METADATA).write_bytes(data)
    refused(lambda path: read_metadata(path.parent), tmp_path / METADATA, "", DataError)
