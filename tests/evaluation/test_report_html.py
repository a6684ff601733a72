"""The page of HTML: whole, closed, and in need of nothing else."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from core.evaluation.phenotype_report import report_answers
from core.evaluation.report_html import evaluation_html
from core.evaluation.report_pictures import (
    confusion_png,
    donor_spread_png,
    gene_likelihood_png,
    reliability_png,
)
from core.evaluation.reports import write_evaluation_report
from core.files import plain_json

TABLE = [
    ["gene", "symbol", "rate", "times_hidden", "nll", "marginal_nll", "accuracy", "mean_off"],
    ["id1", "XIST", 0.5, 30, 0.5, 0.7, 0.8, 0.4],
    ["id2", "<b>&", 0.5, 30, 0.9, 0.8, 0.6, 0.9],
]


def report():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    told = rng.dirichlet([1, 1, 1], 90)
    told[np.arange(90), truth] += 0.5
    told /= told.sum(axis=1, keepdims=True)
    methods = report_answers(
        "tissue", ["lung", "<script>alert(1)</script>", "c & d"], truth,
        {"model": told, "majority": np.full((90, 3), 1 / 3)},
        donors=np.arange(90) % 3, donor_names=["p", "q", "r"], seed=0,
    )  # fmt: skip
    kept = {key: methods["model"][key] for key in ("accuracy", "macro_f1")}
    rate = {
        "rate": 0.5, "hidden_genes": 60, "nll": 0.7, "accuracy": 0.7, "mean_off": 0.6,
        "marginal": {"nll": 0.75, "accuracy": 0.65, "mean_off": 0.7},
        "bins": [{"bin": 0, "genes": 40, "accuracy": 0.9}, {"bin": 1, "genes": 0, "accuracy": None}],
    }  # fmt: skip
    gene = {
        "gene": "id1",
        "symbol": "XIST",
        "times_hidden": 30,
        "nll": 0.5,
        "accuracy": 0.8,
        "gain": 0.2,
    }
    return {
        "title": "tiny <1> on test cells",
        "facts": {"cells": 90, "model": "a&b"},
        "phenotypes": {"tissue": methods},
        "conditions": {
            "cells": 90, "phenotypes": {"tissue": {"hidden": kept, "given": kept, "masked_0.5": kept}},
        },
        "genes": {"masked genes": 10},
        "gene_rates": {
            "cells": 90, "rates": [rate], "listed_at_rate": 0.5, "best": [gene], "worst": [],
        },
        "notes": ["tissue: <b>bold</b> claim"],
    }  # fmt: skip


class Page(HTMLParser):
    """Collects tags, refuses what is not closed, and what comes from elsewhere."""

    EMPTY = frozenset({"meta", "img", "br", "!doctype"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("href", "onload"), value
            if name == "src":
                assert value.startswith("data:image/png;base64,")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    page = Page()
    page.feed(text)
    assert page.open == []
    return page


def test_the_page_is_closed_and_carries_everything_in_itself():
    picture = confusion_png([[3, 1], [0, 2]], ["a", "b"], title="tissue")
    text = evaluation_html(plain_json(report()), confusions={"tissue": picture}, gene_table=TABLE)
    page = read(text)
    assert "http" not in text
    assert "url(" not in text
    assert "script" not in page.seen
    assert page.seen.count("img") == 4  # reliability, donors, confusion, genes
    assert page.seen.count("table") == 7
    for data in re.findall(r"base64,([^\"]+)", text):
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_labels_are_text_whatever_they_hold():
    page = read(evaluation_html(plain_json(report())))
    text = " ".join(page.text)
    assert "tiny <1> on test cells" in text
    assert "tissue: <b>bold</b> claim" in text
    assert "b" not in page.seen


def test_a_report_without_anything_is_a_heading():
    page = read(evaluation_html({}))
    assert page.seen == ["html", "head", "meta", "title", "meta", "style", "body", "h1"]


def test_the_same_report_is_the_same_page(tmp_path):
    pages = []
    for name in ("one", "two"):
        write_evaluation_report(tmp_path / name, report() | {"gene_table": TABLE})
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert (
        (tmp_path / "one" / "genes.csv").read_text().splitlines()[2].startswith("id2,<b>&,0.5,30")
    )


@pytest.mark.parametrize("n_panels", [1, 4, 5, 9])
def test_a_panel_per_phenotype_four_in_a_row(n_panels):
    curve = [{"cells": 5, "confidence": 0.7, "accuracy": 0.5}]
    width, height = Image.open(
        io.BytesIO(reliability_png({f"p$_{i}": curve for i in range(n_panels)}))
    ).size
    assert width == pytest.approx(286 * min(n_panels, 4), abs=2)
    assert height == pytest.approx(297 * -(-n_panels // 4), abs=2)


def test_pictures_of_little_are_drawn():
    assert donor_spread_png({"a_$b^{$": [{"accuracy": 0.5}]}).startswith(b"\x89PNG")
    without = [TABLE[0], ["id1", "XIST", 0.5, 30, 0.5, "", 0.8, 0.4]]
    assert gene_likelihood_png([{"rate": 0.5, "nll": 0.5}], without).startswith(b"\x89PNG")
