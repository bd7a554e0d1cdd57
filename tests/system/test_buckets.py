"""A bucket without rights is refused with a sentence; one with a bad moment may be tried again."""

import pytest
from absl import app

from contextdiff_jax import entry
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.system import buckets

BUCKET = "gs://nobody-s-bucket/shards"


def library_error(module, name, message, **attributes):
    """An exception as a library that need not be installed would raise."""
    error = type(name, (Exception,), {"__module__": module})(message)
    error.__dict__.update(attributes)
    return error


DENIED = {
    "gcsfs": OSError("Forbidden: https://storage/b/o\nno storage.objects.list access"),
    "s3fs": PermissionError("Access Denied"),
    "TensorFlow": library_error(
        "tensorflow.python.framework.errors_impl", "PermissionDeniedError", "403"
    ),
    "HTTP": library_error("gcsfs.retry", "HttpError", "no", code=403),
    "missing": FileNotFoundError("gs://nobody-s-bucket"),
}
MOMENTS = {
    "gcsfs": OSError("Bad Gateway"),
    "TensorFlow": library_error("tensorflow.errors", "UnavailableError", "try later"),
    "HTTP": library_error("aiohttp.client", "ServerDisconnectedError", "gone", code=503),
}
CASES = [
    pytest.param(e, ValueError, entry.EXIT_REFUSED, id=f"{k} denies") for k, e in DENIED.items()
]
CASES += [
    pytest.param(e, buckets.Unavailable, entry.EXIT_OTHER, id=f"{k} fails")
    for k, e in MOMENTS.items()
]


class Stub:
    """A path in a bucket whose every use raises."""

    error: Exception

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path

    __str__ = __fspath__

    def __truediv__(self, name):
        return self

    def __getattr__(self, name):
        raise self.error


@pytest.fixture
def stub(monkeypatch):
    def put(module, error):
        monkeypatch.setattr(Stub, "error", error, raising=False)
        monkeypatch.setattr(f"contextdiff_jax.{module}.epath.Path", Stub)

    return put


def exit_code(monkeypatch, capsys, error):
    """Runs a command that raises `error`; returns the exit code and what it printed."""

    def command():
        raise error

    monkeypatch.setattr(app, "run", lambda main, **_: main([""]))
    monkeypatch.setattr(entry, "keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as end:
        entry.run(command)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("error", "kind", "code"), CASES)
def test_data_and_workdir(error, kind, code, stub, monkeypatch, capsys):
    stub("data.shards", error)
    with pytest.raises(kind, match=f"{BUCKET} cannot be read: ") as data:
        open_source(DataConfig("shards", BUCKET))
    stub("data.embeddings", error)
    with pytest.raises(kind, match=f"{BUCKET} cannot be read: "):
        Embeddings(BUCKET)
    stub("data.folder", error)
    with pytest.raises(kind, match=f"{BUCKET} cannot be read: "):
        open_source(DataConfig("folder", BUCKET))
    stub("entry", error)
    with pytest.raises(kind, match=f"{BUCKET} cannot be written to .--workdir.: "):
        entry.check_writable(BUCKET, "workdir")
    assert "\n" not in str(data.value)
    assert exit_code(monkeypatch, capsys, data.value) == (code, f"contextdiff_jax: {data.value}\n")
    # The last resort, where nothing has named the path.
    assert exit_code(monkeypatch, capsys, error)[0] == code


def test_errors_of_other_kinds_stay(monkeypatch, capsys):
    for error in (KeyError("a mistake in this package"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)), buckets.explained(BUCKET, "be read"):
            raise error
        with pytest.raises(type(error)):
            exit_code(monkeypatch, capsys, error)
    with pytest.raises(OSError, match="Forbidden"), buckets.explained("a/local/path", "be read"):
        raise DENIED["gcsfs"]
