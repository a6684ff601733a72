"""Cells of any file as a model takes them: by name, normalised, missing genes known as such."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from core.cells import stored_source
from core.cells.genes import GenePanel
from core.errors import DataError
from core.generation.cell_generator import GENERATION_KEY, generate_cells
from core.generation.request import GenerationRequest
from core.inference.evaluate_generated import read_generated
from core.inference.query_cells import open_query_cells
from tests.generation.examples import with_reference
from tests.model.examples import make_cell_model

PANEL = GenePanel(
    tuple(f"ENSG0000000000{n}" for n in range(6)), ("CD4", "CD8A", "MS4A1", "NKG7", "LYZ", "PPBP")
)


def write(folder, *, names=PANEL.symbols, extra=3, n_cells=9, change=lambda x: x, name="new.h5ad"):
    """Write counts of the named genes, and of others; return path and counts."""
    rng = np.random.default_rng(0)
    names = [*names, *(f"OTHER{n}" for n in range(extra))]
    counts = rng.poisson(2.0, (n_cells, len(names))).astype(np.float32)
    order = rng.permutation(len(names))
    cells = ad.AnnData(
        sparse.csr_matrix(change(counts[:, order])),
        var=pd.DataFrame(index=[names[i] for i in order]),
        obs=pd.DataFrame(index=[f"cell{n}" for n in range(n_cells)]),
    )
    cells.write_h5ad(folder / name)
    return folder / name, counts


def read(path, panel=PANEL, *, n_cells=4, **options):
    with open_query_cells(path, panel, **options) as cells:
        blocks = list(cells.blocks(n_cells))
        assert [first for first, _, _ in blocks] == list(range(0, cells.n_cells, n_cells))
        return cells, np.concatenate([block.toarray() for _, block, _ in blocks])


def log_normalised(counts):
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


@pytest.mark.parametrize("names", [PANEL.ids, PANEL.symbols, [f"{i}.7" for i in PANEL.ids]])
def test_genes_are_joined_by_whichever_name_they_have(tmp_path, names):
    path, counts = write(tmp_path, names=names)
    cells, found = read(path)
    np.testing.assert_allclose(found, log_normalised(counts)[:, :6], rtol=1e-5)
    assert not cells.missing.any()
    assert cells.genes.joined_by == ("symbols" if names is PANEL.symbols else "ids")


#: Real genes, whose names the table of gene names knows.
REAL = GenePanel(
    ("ENSG00000010610", "ENSG00000168385", "ENSG00000145416", "ENSG00000204287", "ENSG00000284770"),
    ("CD4", "SEPTIN2", "MARCHF1", "HLA-DRA", "TBCE"),
)
OF_SYMBOLS = GenePanel(REAL.symbols, REAL.symbols)


@pytest.mark.parametrize(
    ("panel", "names"),
    [
        (OF_SYMBOLS, REAL.ids),
        (OF_SYMBOLS, [f"{gene}.3" for gene in REAL.ids]),
        (OF_SYMBOLS, ["CD4", "SEPT2", "MARCH1", "HLA.DRA", "ENSG00000116957"]),
        (OF_SYMBOLS, ["GRCh38_CD4", "GRCh38_SEPTIN2", "GRCh38_MARCH1", "GRCh38_HLA-DRA", "GRCh38_TBCE"]),
        (GenePanel(REAL.ids, REAL.ids), REAL.symbols),
        (GenePanel(REAL.ids, REAL.ids), ["hg19-CD4", "2-Sep", "Mar-01", "HLA-DRA", "TBCE"]),
        (GenePanel(("CD4", "SEPT2", "MARCH1", "HLA-DRA", "TBCE"), REAL.symbols), REAL.ids),
    ],
)  # fmt: skip
def test_genes_of_two_kinds_of_names_meet(tmp_path, panel, names):
    path, counts = write(tmp_path, names=names)
    cells, found = read(path, panel)
    np.testing.assert_allclose(found, log_normalised(counts)[:, :5], rtol=1e-5)
    assert not cells.missing.any()


@pytest.mark.parametrize(
    ("wanted", "names", "words"),
    [
        ("SEPTIN6", ["SEP2"], "1 name fits"),  # an alias of SEPTIN6 and SEPTIN8
        ("MTARC1", ["1-Mar", "1-Mar-1"], "1 name fits"),  # MARCH1 and MARC1, in either order
        ("TNMD", ["myodulin", "tendin"], "2 names fit"),  # two names of one gene
    ],
)
def test_an_ambiguous_name_joins_no_gene_and_is_reported(tmp_path, caplog, wanted, names, words):
    panel = GenePanel((*REAL.symbols, wanted), (*REAL.symbols, wanted))
    path, _ = write(tmp_path, names=[*REAL.symbols, *names])
    with caplog.at_level(logging.WARNING, logger="core"):
        cells, _ = read(path, panel)
    assert cells.missing.tolist() == [False] * 5 + [True]
    assert f"{words} several genes" in caplog.text
    assert names[0] in caplog.text


def test_a_date_is_the_gene_that_the_file_has_under_no_other_name(tmp_path, caplog):
    panel = GenePanel((*REAL.symbols, "MTARC1"), (*REAL.symbols, "MTARC1"))
    path, counts = write(tmp_path, names=[*REAL.symbols, "1-Mar"])
    with caplog.at_level(logging.WARNING, logger="core"):
        _, found = read(path, panel)
    np.testing.assert_allclose(found, log_normalised(counts)[:, :6], rtol=1e-5)
    assert "a spreadsheet turned into dates are read as genes (1-Mar as MTARC1)" in caplog.text


def test_what_was_translated_is_said_in_one_line(tmp_path, caplog):
    path, _ = write(tmp_path, names=REAL.ids)
    with caplog.at_level(logging.INFO, logger="core"):
        read(path, OF_SYMBOLS)
    (line,) = caplog.messages
    assert "5 genes have other names here" in line
    assert "ENSG00000010610 is CD4" in line


def test_fewer_than_half_of_the_genes_need_an_explicit_option(tmp_path, caplog):
    path, counts = write(tmp_path, names=PANEL.symbols[:1])
    with pytest.raises(DataError, match=r"only 1 of the model's 6 genes.*add --few-genes"):
        read(path)
    with caplog.at_level(logging.WARNING, logger="core"):
        cells, found = read(path, few_genes=True)
    assert cells.missing.sum() == 5
    np.testing.assert_allclose(found[:, 0], log_normalised(counts)[:, 0], rtol=1e-5)
    assert "fewer than half" in caplog.text


def test_blocks_of_a_large_file_by_columns_start_at_multiples_of_their_size(tmp_path, monkeypatch):
    path, counts = write(tmp_path)
    cells = ad.read_h5ad(path)
    cells.X = cells.X.tocsc()
    cells.write_h5ad(path)
    monkeypatch.setattr(stored_source, "BY_COLUMNS_VALUES", 25)  # 3 of 9 cells at once
    _, found = read(path, n_cells=2)
    np.testing.assert_allclose(found, log_normalised(counts)[:, :6], rtol=1e-5)


@pytest.mark.parametrize("total", [1e4, 1e6])
def test_log_values_of_any_total_are_brought_to_the_models(tmp_path, total):
    path, counts = write(
        tmp_path, change=lambda x: np.log1p(x / x.sum(axis=1, keepdims=True) * total)
    )
    _, found = read(path)
    np.testing.assert_allclose(found, log_normalised(counts)[:, :6], rtol=1e-4)


def test_genes_that_the_file_lacks_are_missing_not_zero(tmp_path, caplog):
    path, counts = write(tmp_path, names=PANEL.symbols[:4])
    with caplog.at_level(logging.WARNING, logger="core"):
        cells, found = read(path)
    assert cells.missing.tolist() == [False] * 4 + [True] * 2
    assert (found[:, 4:] == 0).all()
    np.testing.assert_allclose(found[:, :4], log_normalised(counts)[:, :4], rtol=1e-5)
    assert "lacks 2 of the model's 6 genes, which are masked: LYZ, PPBP" in caplog.text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("GENE1", "GENE2", "GENE3"), "only 0 of the model's 6 genes"),
        (("CD4", "CD8A"), "only 2 of the model's 6 genes"),
        ([f"ENSMUSG0000000000{n}" for n in range(6)], r"ENSMUSG... and ENSG... are of two species"),
        (("Cd4", "Cd8a", "Ms4a1", "Nkg7", "Lyz", "Ppbp"), "as between human and mouse"),
    ],
)
def test_a_file_of_other_genes_is_refused(tmp_path, names, words):
    path, _ = write(tmp_path, names=names)
    with pytest.raises(DataError, match=words):
        read(path)


def test_scaled_values_are_refused(tmp_path):
    path, _ = write(tmp_path, change=lambda x: x - x.mean())
    with pytest.raises(DataError, match="scaled"):
        read(path)


def test_a_value_that_breaks_the_promise_is_refused_where_it_stands(tmp_path):
    def spoil(counts):
        counts[600, 2] = 1.5
        return counts

    path, _ = write(tmp_path, n_cells=700, change=spoil)
    with pytest.raises(
        DataError, match=r"1\.5 is not a whole number, others are\), first at cell cell600"
    ):
        read(path, n_cells=100)


def test_a_file_of_tfx_0_1_0_is_read(tmp_path):
    """Its provenance has the keys depth, order and remask, and not genes_per_cell."""
    model = with_reference(make_cell_model())
    cells, _ = generate_cells(model, GenerationRequest({"sex": "female"}, 6))
    facts = cells.uns[GENERATION_KEY]
    facts |= {"depth": facts.pop("genes_per_cell"), "order": "random", "remask": 0.0}
    cells.write_h5ad(tmp_path / "old.h5ad")
    found = read_generated(model, [str(tmp_path / "old.h5ad")])
    assert found.requests == [{0: 0}]
    assert (found.codes[:, 0] == 0).all()
    np.testing.assert_array_equal(found.expression.toarray(), cells.X.toarray())
