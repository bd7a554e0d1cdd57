"""The hooks of the site: the generated reference, and links of pages from elsewhere."""

import dataclasses
import importlib.util
import re
from typing import Literal

import pytest

from contextdiff_jax.config import Config
from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed (requirements-docs.txt)")


def hook(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Circle:
    """A kind. radius, centre: in pixels; at least 1. Not a key: though it looks like one.

    kind: the tag.
    """

    kind: Literal["circle"] = "circle"
    radius: int = 3
    centre: int | None = None


@dataclasses.dataclass(frozen=True)
class Square:
    side: float


@dataclasses.dataclass(frozen=True)
class Root:
    """Shapes.

    shape: one of | two.
    """

    shape: Circle | Square
    others: tuple[Circle, ...] = ()
    named: dict[str, Square] = dataclasses.field(default_factory=dict)


def test_the_reference_follows_unions_lists_and_mappings():
    reference = hook("config_reference")
    assert reference.sections(Root) == [Root, Circle, Square]
    page = reference.reference(Root)
    assert (
        "| `shape` | [Circle](#circle) or [Square](#square) | required | one of \\| two. |" in page
    )
    assert "| `others` | several [Circle](#circle) | `()` |  |" in page
    assert "| `named` | by name, [Square](#square) | `{}` |  |" in page
    assert "| `kind` | `'circle'` | `'circle'` | the tag. |" in page
    meaning = "in pixels; at least 1. Not a key: though it looks like one."
    assert f"| `radius` | `int` | `3` | {meaning} |" in page
    assert f"| `centre` | `int` or `None` | `None` | {meaning} |" in page
    assert "\n\nA kind.\n\n" in page


def test_the_reference_has_every_key_of_the_config():
    reference = hook("config_reference")
    page = reference.reference(Config)
    for section in reference.sections(Config):
        keys = page.split(f"## {section.__name__}\n")[1].split("\n## ")[0]
        for field in dataclasses.fields(section):
            assert re.search(rf"^\| `{field.name}` \|", keys, re.MULTILINE)


def test_links_lead_to_pages_of_the_site():
    rewrite = hook("repository_pages").rewrite
    known = {"index.md", "data.md", "launch.md", "reference/config.md", "evidence/toy.md"}
    cases = [
        ("README.md", "index.md", "[a](docs/data.md#x)", "[a](data.md#x)"),
        ("README.md", "index.md", "[a](launch/README.md) [b](LICENSE)", "[a](launch.md) b"),
        ("docs/data.md", "data.md", "[a](../launch/README.md)", "[a](launch.md)"),
        ("docs/data.md", "data.md", "[a](reference/config.md#y)", "[a](reference/config.md#y)"),
        ("docs/evidence/toy.md", "evidence/toy.md", "[a](../data.md)", "[a](../data.md)"),
        ("docs/data.md", "data.md", "[a](https://b.c) [d](#e)", "[a](https://b.c) [d](#e)"),
    ]
    for source, page, text, expected in cases:
        assert rewrite(text, source, page, known) == expected
    with pytest.raises(ValueError, match=r"README.md: link to docs/date.md: there is no docs/date"):
        rewrite("[a](docs/date.md)", "README.md", "index.md", known)


def test_the_reference_of_functions_has_every_module(tmp_path):
    for name in ("__init__", "config", "steps", "marginals"):
        (tmp_path / f"{name}.py").write_text(f'"""About {name}."""')
    folder = tmp_path.name
    assert hook("function_reference").page(tmp_path).split("\n\n") == [
        f"# {folder.capitalize()}",
        "About __init__.",
        f"::: contextdiff_jax.{folder}.marginals",
        f"::: contextdiff_jax.{folder}.steps\n",
    ]
