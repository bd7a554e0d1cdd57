"""Data in a bucket: what may only be read is read; what fails is said in a sentence, later too."""

from unittest import mock

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, SkipReport
from contextdiff_jax.data.folder import METADATA, FolderSource
from contextdiff_jax.data.shards import ShardSource
from contextdiff_jax.system import buckets
from contextdiff_jax.system.atomic_write import written_whole


class PermissionDeniedError(Exception):
    """TensorFlow's, which is no OSError."""

    __module__ = "tensorflow.python.framework.errors_impl"


DENIED = [OSError("Forbidden: https://storage/b/o\nno access"), PermissionDeniedError("403")]
MOMENT = OSError("Service Unavailable")
FAILURES = [(DENIED[0], ValueError), (DENIED[1], ValueError), (MOMENT, buckets.Unavailable)]
failures = pytest.mark.parametrize(("error", "kind"), FAILURES, ids=["gcsfs", "TensorFlow", "5xx"])


@pytest.fixture
def fail(monkeypatch):
    """Makes a method of the bucket raise, _open only where a file is opened in one of `modes`."""

    def put(method, error, modes=("rb", "wb")):
        real = getattr(MemoryFileSystem, method)

        def instead(self, path, *args, **kwargs):
            mode = kwargs.get("mode", args[0] if args else None)
            if method == "_open" and mode not in modes:
                return real(self, path, *args, **kwargs)
            raise error

        monkeypatch.setattr(MemoryFileSystem, method, instead)

    return put


@pytest.fixture
def shards(bucket, tiny_shards):
    """The path of tiny_shards in the bucket."""
    folder = epath.Path(bucket) / "shards"
    for path in tiny_shards.glob("*.tar"):
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def open_shards(path, **options) -> ShardSource:
    return ShardSource(DataConfig("shards", path, resolution=16, **options), SkipReport())


@pytest.mark.parametrize("error", [*DENIED, MOMENT], ids=["gcsfs", "TensorFlow", "5xx"])
@pytest.mark.parametrize("method", ["makedirs", "_open"])
def test_an_index_that_cannot_be_kept_is_done_without(method, error, shards, fail):
    fail(method, error, modes=("wb",))
    source = open_shards(shards)
    assert len(source) == 9 and source.captions(8) == ("sample 8",)


@failures
def test_a_cache_that_was_asked_for_is_named(error, kind, shards, bucket, fail):
    cache = f"{bucket}/cache"
    open_shards(shards, cache_dir=cache)
    with (
        mock.patch.object(MemoryFileSystem, "makedirs", side_effect=error),
        pytest.raises(kind, match=f"{cache} cannot be written"),
    ):
        open_shards(shards, cache_dir=cache)
    fail("_open", error, modes=("rb",))
    with pytest.raises(kind, match=f"{cache}/0000[01]-.*npz cannot be read"):
        open_shards(shards, cache_dir=cache)


@failures
def test_samples_in_use(error, kind, shards, bucket, tmp_path, picture_bytes, fail):
    folder = epath.Path(bucket) / "folder"
    (folder / METADATA).write_text('{"file_name": "0.png", "text": "zero"}\n' * 2)
    in_shards = open_shards(shards, cache_dir=str(tmp_path))
    config = DataConfig("folder", str(folder), resolution=16)
    in_folder = FolderSource(config, SkipReport())
    with pytest.raises(DamagedSample):
        in_folder[0]
    (folder / "0.png").write_bytes(picture_bytes(50))
    assert (in_folder[0].image == 50).all()
    fail("_open", error)
    with pytest.raises(kind, match=f"{shards}/00000.tar cannot be read"):
        in_shards[0]
    with pytest.raises(kind, match=f"{folder}/0.png cannot be read"):
        in_folder[1]  # the other is kept
    with pytest.raises(kind, match=f"{folder}/{METADATA} cannot be read"):
        FolderSource(config, SkipReport())


@failures
def test_uploads(error, kind, bucket, fail):
    path = epath.Path(bucket) / "report.json"
    fail("_open", error)
    with pytest.raises(kind, match=f"{path} cannot be written"), written_whole(path) as file:
        file.write_text("{}")
    with pytest.raises(OSError, match="of the writer"), written_whole(path) as file:
        raise OSError("an error of the writer")
