"""LOVEU-TGVE-2023's table and folders, as its own scripts read them, and what is refused."""

import pathlib

import pytest

from contextdiff_jax.data.tgve import named_video, read_tgve
from tests.fixtures.tgve import COLUMNS, FISH, STUNT, write


def test_videos_and_prompts_of_the_table(tmp_path):
    stunt, fish = read_tgve(write(tmp_path))
    assert (stunt.group, stunt.name, stunt.caption) == ("DAVIS_480p", "stunt", "A man, jumping.")
    assert stunt.prompts["multiple"] == "A dog, oil."  # stripped, as the benchmark's script does
    assert list(fish.prompts.values()) == list(FISH[2:])
    assert fish.frames == tmp_path / "youtube_480p/480p_frames/gold-fish"
    place = fish.edit(pathlib.Path("mine"), "style")
    assert place == pathlib.Path("mine/youtube_480p/gold-fish/style")
    assert named_video((stunt, fish), "stunt") is stunt
    assert named_video((stunt, fish), "youtube_480p/gold-fish") is fish
    with pytest.raises(ValueError, match="--clip=stunts: .* one of its 2 videos.*stunt"):
        named_video((stunt, fish), "stunts")


@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        ((("../../etc", *STUNT[1:]),), COLUMNS, r"row 2: '../../etc' is no name of a folder"),
        ((("swim", *STUNT[1:]),), COLUMNS, r"row 2: swim is not in 480p_frames/ of DAVIS_480p"),
        (((*STUNT[:5], ""),), COLUMNS, r"row 2: stunt has no 'Multiple Changes Caption'"),
        ((), COLUMNS, r"names no video"),
        ((STUNT,), ("Video name", "Caption"), r"has no column 'Our GT caption': has Video name"),
    ],
)
def test_tables_that_are_none_are_refused(rows, columns, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        read_tgve(write(tmp_path, rows, columns))


def test_a_missing_or_binary_table_is_said(tmp_path):
    with pytest.raises(ValueError, match="has no LOVEU-TGVE_2023_data.csv: save .*xlsx"):
        read_tgve(str(tmp_path))
    (tmp_path / "LOVEU-TGVE_2023_data.csv").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match="is no table: .*utf-8"):
        read_tgve(str(tmp_path))
