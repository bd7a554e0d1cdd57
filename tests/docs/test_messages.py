"""Every message that docs/troubleshooting.md lists is one that the code says."""

import ast
import re

from tests.docs.pages import ROOT

TEXT = (ROOT / "docs/troubleshooting.md").read_text()
# First column of the tables below the heading; ... stands for what a message fills in.
LISTED = re.findall(r"^\| `([^`]+)` \|", TEXT[TEXT.index("## By message") :], re.MULTILINE)


def said():
    """Returns every text in the code; \\0 where a value is filled in."""
    for path in (ROOT / "contextdiff_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            yield from _text(node)


def _text(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[sdr]", "\0", node.value)
    elif isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        yield "".join(parts)


def test_every_listed_message_is_said_somewhere():
    texts = list(said())
    missing = [
        message
        for message in LISTED
        if not any(re.search(_pattern(message), text, re.DOTALL) for text in texts)
    ]
    assert len(LISTED) > 25 and not missing


def _pattern(message):
    return "\0".join(re.escape(part) for part in message.split("..."))


def test_every_exit_code_is_listed():
    codes = set(re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE))
    entry = ast.get_docstring(ast.parse((ROOT / "contextdiff_jax/entry.py").read_text()))
    known = set(re.findall(r"(?:^|; )(\d+)\b", " ".join(entry.split("\n\n")[1].split())))
    assert codes == known and len(known) == 7
