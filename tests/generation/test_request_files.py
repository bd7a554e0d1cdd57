"""Requests from files and flags: read back as written, or refused by line and flag."""

import json
import os

import pytest

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.low_resolution import LowResolution
from contextdiff_jax.conditions.text import Text
from contextdiff_jax.generation import request_files
from contextdiff_jax.generation.request_files import read_requests, write_requests
from contextdiff_jax.generation.request_flags import wanted
from contextdiff_jax.system.json_files import read_object_lines


class Label(Text):
    name = "label"


def written(folder, *lines, end="\n"):
    path = folder / "requests.jsonl"
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else line.encode()) + end.encode() for line in lines
        )
    )
    return path


def test_what_is_written_is_read_back(tmp_path):
    requests = [
        {"text": "a red circle", "boxes": [[0, 0.5, 1, 1]]},
        {"text": None, "boxes": None},
        {"text": "two\nlines, \u2028 and \x1b[31m, \U0001f600", "boxes": []},
    ]
    write_requests(tmp_path, requests)
    text = (tmp_path / "requests.jsonl").read_text()
    assert read_requests(tmp_path / "requests.jsonl", "requests") == requests
    assert len(text.splitlines()) == 3 and all(line.isprintable() for line in text.splitlines())
    assert [json.loads(line) for line in text.splitlines()] == requests
    assert not (tmp_path / "prompts.txt").exists()


def test_prompts_alone_are_a_text_file_too(tmp_path):
    write_requests(tmp_path, [{"text": "a"}, {"text": None}, {"text": " b"}])
    assert (tmp_path / "prompts.txt").read_bytes() == b"a\n\n b\n"
    write_requests(tmp_path, [{"text": "two\nlines"}])
    assert not (tmp_path / "prompts.txt").exists()


def test_line_ends_and_byte_order_marks_of_other_systems(tmp_path):
    path = written(tmp_path, b'\xef\xbb\xbf{"text": "a"}', '{"text": "b\\u2028"}', end="\r\n")
    assert read_requests(path, "requests") == [{"text": "a"}, {"text": "b\u2028"}]
    path.write_text('{"text": "no end"}')
    assert read_requests(path, "requests") == [{"text": "no end"}]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "line 2 of .* is blank"),
        ("a red circle", "line 2 of .* is not JSON that can be read: Expecting value"),
        ('["a red circle"]', "line 2 of .* holds a list: must hold a JSON object"),
        ('{"text": "a", "text": "b"}', "line 2 of .*: it names 'text' twice"),
        ('{"text": NaN}', "line 2 of .* must be finite"),
        ('{"text": 1e999}', "line 2 of .* must be finite"),
        (b'{"text": "\xff"}', "line 2 of .* is not JSON .*utf-8"),
        ("[" * 200_000, "line 2 of .* too deep"),
        ('{"text": ' + "[" * 17 + "]" * 17 + "}", "line 2: text is nested too deeply"),
        ('{"\\u001b": 1}', "line 2 of .* cannot be printed"),
        ('{"text": "\\ud800"}', "line 2: text = .*: must be text, it has a lone surrogate"),
        ('{"boxes": [{"of": "\\u0000"}]}', "line 2: boxes = .*no NUL"),
        (json.dumps({"text": "a" * 10_001}), "line 2: text = 'aaa.*at most 10000 characters"),
    ],
)
def test_hostile_lines_are_refused_by_their_number(line, sentence, tmp_path):
    path = written(tmp_path, '{"text": "a"}', line, '{"text": "c"}')
    with pytest.raises(ValueError, match=sentence):
        read_requests(path, "requests")


def test_files_that_hold_none_or_too_many(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--requests=.*: holds no request"):
        read_requests(written(tmp_path), "requests")
    with pytest.raises(ValueError, match=r"--requests=.*requets.jsonl: no such file; did you mean"):
        read_requests(tmp_path / "requets.jsonl", "requests")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no regular file"):  # and does not wait for a writer
        read_requests(tmp_path / "pipe", "requests")
    path = written(tmp_path, *['{"text": "a"}'] * 4)
    assert len(read_object_lines(path, 4)) == 4
    monkeypatch.setattr(request_files, "MOST_ENTRIES", 3)
    with pytest.raises(ValueError, match="has 4 lines: must be at most 3"):
        read_requests(path, "requests")


@pytest.mark.parametrize(
    ("flags", "conditions", "sentence"),
    [
        ({"text": ["a"]}, (Label,), "--prompt gives 'text', this .* of label: give --label$"),
        ({"label": ["a"]}, (Text, LowResolution), "--label .* of text: give --prompt$"),
        ({"layout": [";"]}, (Text,), "--layout gives 'layout', this .* of text: give --prompt$"),
        ({"text": ["a"]}, (Text, Label), "of text and label: give --requests=FILE$"),
        ({"text": ["a"]}, (), "of no condition: give --requests=FILE$"),
        ({"file": True}, (Label,), r"^--requests=.*: line 1 names 'text': must name label"),
        (
            {"file": True},
            (Text, Label),
            r"^--requests=.*: line 1 lacks 'label': must name text and",
        ),
    ],
)
def test_flags_for_other_conditions_are_refused(flags, conditions, sentence, tmp_path):
    file = str(written(tmp_path, '{"text": "a"}')) if "file" in flags else None
    asked = wanted({} if file else flags, file)
    asked.check(None)  # not known yet
    with pytest.raises(ValueError, match=sentence):
        asked.check(conditions)


def test_flags_that_say_nothing_or_two_things(tmp_path):
    with pytest.raises(ValueError, match="no requests: give --prompt"):
        wanted({"text": [], "label": []}, None)
    with pytest.raises(ValueError, match="--prompt and --label are given: must be one of them"):
        wanted({"text": ["a"], "label": ["b"]}, None)
    file = str(written(tmp_path, '{"text": "a"}'))
    with pytest.raises(ValueError, match="--prompt and --requests are given"):
        wanted({"text": ["a"]}, file)


class Context(Condition):
    name = "context"
    captioned = False


class Query(Context):
    name = "query"


def test_flags_of_in_context_pictures_go_together():
    """The same context and query for every prompt; what is left out is None."""
    both = {"context": ["x", "y"], "query": "q"}
    asked = wanted({"text": ["a", "b"]}, None, (), both)
    assert asked.requests == [{"text": "a", **both}, {"text": "b", **both}]
    conditions = (Text, Context, Query)
    alone = wanted({}, None, (), {"context": [], "query": "q"})
    assert alone.completed(conditions) == [{"text": None, "context": None, "query": "q"}]
    prompts = wanted({"text": ["a"]}, None)
    assert prompts.completed(conditions) == [{"text": "a", "context": None, "query": None}]
    assert prompts.completed((Text,)) == [{"text": "a"}]
    edits = wanted({"text": ["a"]}, None, ["c"], {"query": "q"}).edited(conditions)
    assert edits == [{"text": "c", "context": None, "query": "q"}]
    # Of --query=, as of an unset variable, nothing must be drawn.
    assert wanted({"text": ["a"]}, None, (), {"query": ""}).requests == [{"text": "a", "query": ""}]
    with pytest.raises(ValueError, match="--label and --requests|--context and --label are given"):
        wanted({"label": ["a"]}, None, (), {"context": ["x"]})
    for conditions in ((Text,), (Label,)):
        with pytest.raises(ValueError, match="--context gives 'context', this export's pictures"):
            wanted({}, None, (), {"context": ["x"]}).check(conditions)


def test_edits_are_other_values_of_the_captioned_condition():
    asked = wanted({"label": ["a", "b"]}, None, ["c", "d"])
    asked.check((Label,))
    assert asked.edited((Label,)) == [{"label": "c"}, {"label": "d"}]
    assert wanted({"text": ["a"]}, None).edited((Text,)) == []
