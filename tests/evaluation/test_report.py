"""The stored results and the page made of them."""

import base64
import csv
import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.evaluation import report, results
from contextdiff_jax.evaluation.results import Figure, Gallery, Result, Table

VERSIONS = {"contextdiff_jax": "0"}


@pytest.fixture
def result(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Result(
        title="Distance",
        summary="What was measured & how.",
        values={"fid": 12.345678, "count": 1234, "nested": {"x": 1.0}},
        protocol={"resize": "clean-fid", "features": {"layer": "768"}},
        tables=(Table("distance", ("w", "FID"), ((1.5, 3.25), (3.0, None)), "a note"),),
        figures=(Figure("a.png", "a plot"),),
        galleries=(Gallery("Samples", (("a.png", "<script>alert('x')</script> & \"more\""),)),),
        warnings=("fewer samples than features",),
    )


def test_results_are_read_back_as_they_were(result, tmp_path):
    results.write_results(tmp_path, {"distance": result}, VERSIONS)
    assert results.read_results(tmp_path) == {"distance": result}
    rows = list(csv.reader((tmp_path / "distance.csv").open()))
    assert rows == [["w", "FID"], ["1.5", "3.25"], ["3.0", ""]]
    assert results.read_results(tmp_path / "empty") == {}


def test_results_of_another_format_are_refused(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"format": 99, "results": {}}))
    with pytest.raises(ValueError, match="format 99; this version reads 1"):
        results.read_results(tmp_path)


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text; unclosed tags are found by the stack."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.stack = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_in_itself_and_escapes_what_it_shows(result, tmp_path):
    path = report.write_report(tmp_path, "Evaluation of <x>", "today", {"d": result}, VERSIONS)
    text = path.read_text()
    page = Page(text)
    assert page.stack == []
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "link" not in tags
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    for attributes in images:
        head, _, data = attributes["src"].partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / "a.png").read_bytes()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "url(" not in text
    shown = " ".join(page.words)
    assert "<script>alert('x')</script> & \"more\"" in shown
    for word in ("12.35", "1,234", "fewer samples than features", "features, layer", "clean-fid"):
        assert word in shown
    assert images[1]["alt"].startswith("<script>")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000123456, "0.0001235"),
        (123456.7, "123,457"),
        (1234567, "1,234,567"),
        (float("nan"), "nan"),
        (None, "–"),
        (True, "yes"),
        ((1.5, 3), "1.5, 3"),
    ],
)
def test_numbers_as_people_read_them(value, text):
    assert report.shown(value) == text
