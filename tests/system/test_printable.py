"""What a terminal would obey, against str.isprintable, and where it must not get through."""

import json
import logging as std_logging

import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st

from contextdiff_jax import entry
from contextdiff_jax.evaluation import report
from contextdiff_jax.system.printable import printable, printable_json, printable_lines

HOSTILE = (
    "caf\u00e9 \u738b \x1b]0;pwned\x07\x1b[2J\x9b31m\u202e\u2066\u200b\u2028\x7f\r\ud800\U000e0041"
)
ANY_TEXT = st.text(st.characters(codec=None), max_size=300)


@given(ANY_TEXT, st.integers(10, 400))
def test_one_line_of_printable_characters(text, most):
    shown = printable(text, most)
    assert shown.isprintable() and len(shown) <= most
    assert printable(shown, most) == shown
    if text.isprintable() and len(text) <= most:
        assert shown == text


def test_what_is_shown_says_what_it_stands_for():
    assert printable("a\x1b[31mb\n\u202e") == "a\\x1b[31mb\\n\\u202e"
    assert printable("x" * 300) == "x" * 197 + "..."
    assert printable(ValueError("a\tb")) == "a\\tb"


@given(ANY_TEXT)
def test_lines_keep_their_ends_and_tabs_alone(text):
    shown = printable_lines(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert shown.count("\n") == text.count("\n") and shown.count("\t") == text.count("\t")


@given(ANY_TEXT)
def test_json_is_read_back_exactly(text):
    written = printable_json({"caption": [text]}, indent=1)
    assert json.loads(written) == {"caption": [text]}
    assert written.replace("\n", "").isprintable()


def test_json_leaves_other_scripts_readable():
    assert printable_json(["caf\u00e9 \u738b"], indent=0) == '[\n"caf\u00e9 \u738b"\n]'


def test_a_refusal_cannot_command_the_terminal(capsys):
    with pytest.raises(SystemExit):
        entry._end(ValueError(f"shard {HOSTILE} cannot be read\nits second line"), 2)
    shown = capsys.readouterr().err
    assert shown.replace("\n", "").isprintable() and shown.count("\n") == 2
    assert "\\x1b]0;pwned\\x07" in shown and "caf\u00e9 \u738b" in shown


def test_neither_can_a_log_line_or_a_traceback():
    try:
        raise KeyError(HOSTILE)
    except KeyError as error:
        found = (KeyError, error, error.__traceback__)
    record = logging.get_absl_logger().makeRecord(
        "absl", std_logging.WARNING, "f.py", 1, "%s", (HOSTILE,), found
    )
    shown = entry._Printable().format(record)
    assert shown.replace("\n", "").isprintable() and "Traceback" in shown
    assert "\\x1b]0;pwned" in shown


def test_nor_a_report():
    page = report._escape(f"<b>{HOSTILE}")
    assert page.startswith("&lt;b&gt;caf\u00e9 \u738b \\x1b]0;") and page.isprintable()
