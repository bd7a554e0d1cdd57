"""A folder of results says what it holds: gone on with, cleaned of remains, or refused."""

import pytest

from contextdiff_jax.runs import manifest

MANIFEST = {"seed": 1, "stages": {"base": {"steps": 4}}}


def test_a_begun_folder_is_gone_on_with_and_rid_of_half_files(tmp_path):
    folder = tmp_path / "deep" / "pictures"
    call = {"subfolders": ("base",), "texts": {"requests.jsonl": "[]"}}
    manifest.begin(folder, MANIFEST, "pictures", **call)
    whole, half = folder / "base" / "0.png", folder / "base" / "1.png.abc.tmp"
    whole.write_bytes(b"whole")
    half.write_bytes(b"half")
    (folder / "requests.jsonl").write_text("kept")
    manifest.begin(folder, MANIFEST, "pictures", **call)
    assert whole.exists() and not half.exists()
    assert (folder / "requests.jsonl").read_text() == "kept"


def test_a_folder_of_something_else_is_refused_untouched(tmp_path):
    manifest.begin(tmp_path, MANIFEST, "pictures")
    half = tmp_path / "0.png.abc.tmp"
    half.write_bytes(b"half")
    other = {"seed": 1, "stages": {"base": {"steps": 8}}}
    with pytest.raises(ValueError, match="holds pictures of something else: .*steps"):
        manifest.begin(tmp_path, other, "pictures")
    assert half.exists()
    manifest.begin(tmp_path, MANIFEST, "pictures")  # what it holds is still the first
