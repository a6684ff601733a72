"""The page of HTML: whole, closed, and in need of nothing else."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from core.evaluation.metrics import score_methods
from core.evaluation.report.pictures import (
    confusion_figure,
    donor_accuracy_png,
    gene_likelihood_png,
    png_bytes,
    reliability_png,
)
from core.evaluation.report.records import (
    BinAccuracy,
    Conditions,
    DonorAccuracy,
    EvaluationFacts,
    EvaluationReport,
    GeneMeans,
    GeneRates,
    GeneRow,
    MaskedGenes,
    PhenotypeScores,
    RateScores,
    ReliabilityBin,
)
from core.evaluation.report.writing import evaluation_sections, render_page, write_evaluation

ROWS = [
    GeneRow("id1", "XIST", 0.5, 30, 0.5, 0.7, 0.2, 0.8, 0.4),
    GeneRow("id2", "<b>&", 0.5, 30, 0.9, 0.8, -0.1, 0.6, 0.9),
]


def report():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    probabilities = rng.dirichlet([1, 1, 1], 90)
    probabilities[np.arange(90), truth] += 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    methods = score_methods(
        "tissue",
        ["lung", "<script>alert(1)</script>", "c & d"],
        truth,
        {"model": probabilities, "majority": np.full((90, 3), 1 / 3)},
        donors=np.arange(90) % 3,
        donor_names=["p", "q", "r"],
        seed=0,
    )
    kept = PhenotypeScores(methods["model"].accuracy, macro_f1=methods["model"].macro_f1)
    rate = RateScores(
        0.7, 0.7, 0.6, mask_rate=0.5, n_masked=60, marginal=GeneMeans(0.75, 0.65, 0.7),
        bins=(BinAccuracy(0, 40, 0.9), BinAccuracy(1, 0, float("nan"))),
    )  # fmt: skip
    return EvaluationReport(
        title="tiny <1> on test cells",
        facts=EvaluationFacts(n_cells=90, model="a&b"),
        phenotypes={"tissue": methods},
        conditions=Conditions(90, {"tissue": {"hidden": kept, "given": kept, "masked_0.5": kept}}),
        genes=MaskedGenes(10, 0.5, 0.4, 1.5),
        gene_rates=GeneRates(90, (rate,), best=(ROWS[0],)),
        notes=("tissue: <b>bold</b> claim",),
    )


def page_of(report, confusions=None, rows=()):
    return render_page(report, list(evaluation_sections(report, confusions or {}, rows)))


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
    picture = png_bytes(confusion_figure([[3, 1], [0, 2]], ["a", "b"], title="tissue"))
    text = page_of(report(), {"tissue": picture}, ROWS)
    page = read(text)
    assert "http" not in text
    assert "url(" not in text
    assert "script" not in page.seen
    assert page.seen.count("img") == 4  # reliability, donors, confusion, genes
    assert page.seen.count("table") == 7
    for data in re.findall(r"base64,([^\"]+)", text):
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_labels_are_text_whatever_they_hold():
    page = read(page_of(report()))
    text = " ".join(page.text)
    assert "tiny <1> on test cells" in text
    assert "tissue: <b>bold</b> claim" in text
    assert "b" not in page.seen


def test_an_empty_report_is_a_heading_and_facts():
    page = read(page_of(EvaluationReport()))
    assert page.seen[:8] == ["html", "head", "meta", "title", "meta", "style", "body", "h1"]
    assert set(page.seen[8:]) == {"dl", "dt", "dd"}


def test_the_same_report_is_the_same_page(tmp_path):
    pages = []
    for name in ("one", "two"):
        write_evaluation(tmp_path / name, report(), ROWS)
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]
    table = (tmp_path / "one" / "genes.csv").read_text().splitlines()
    assert table[2] == "id2,<b>&,0.5,30,0.9,0.8,-0.1,0.6,0.9"


@pytest.mark.parametrize("n_panels", [1, 4, 5, 9])
def test_a_panel_per_phenotype_four_in_a_row(n_panels):
    curve = [ReliabilityBin(0.6, 0.7, 5, confidence=0.7, accuracy=0.5)]
    width, height = Image.open(
        io.BytesIO(reliability_png({f"p$_{i}": curve for i in range(n_panels)}))
    ).size
    assert width == pytest.approx(286 * min(n_panels, 4), abs=2)
    assert height == pytest.approx(297 * -(-n_panels // 4), abs=2)


def test_pictures_of_little_are_drawn():
    assert donor_accuracy_png({"a_$b^{$": [DonorAccuracy("d", 9, 0.5)]}).startswith(b"\x89PNG")
    rate = RateScores(0.5, 0.8, 0.4, mask_rate=0.5)
    without = [GeneRow("id1", "XIST", 0.5, 30, 0.5)]
    assert gene_likelihood_png([rate], without).startswith(b"\x89PNG")
