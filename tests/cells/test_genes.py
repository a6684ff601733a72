import pandas as pd
import pytest

from core.cells.genes import GenePanel, choose_gene_ids, strip_version
from core.errors import DataError

from .examples import ensembl


def var(index, **columns):
    return pd.DataFrame(columns, index=[str(name) for name in index])


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("ENSG00000229807.13", "ENSG00000229807"),
        ("ENSMUSG00000024798.2", "ENSMUSG00000024798"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("RP11-34P13.7", "RP11-34P13.7"),
        ("XIST", "XIST"),
    ],
)
def test_only_ensembl_ids_lose_their_version(name, stripped):
    assert strip_version(name) == stripped


def test_a_gene_is_found_by_id_with_or_without_version_and_by_symbol():
    panel = GenePanel(("ENSG00000229807", "ENSG00000129824"), ("XIST", "RPS4Y1"))
    assert panel.index_of("ENSG00000129824") == panel.index_of("RPS4Y1") == 1
    assert panel.index_of("ENSG00000229807.13") == 0
    assert panel.index_of("DDX3Y") is None
    assert panel.nearest("RPS4Y2") == ["RPS4Y1"]


def test_the_hash_of_a_panel_depends_on_ids_and_order_alone():
    one = GenePanel(("a", "b"), ("A", "B"))
    assert one.hash == GenePanel(("a", "b"), ("x", "y")).hash
    assert one.hash != one.take([1, 0]).hash


def test_auto_takes_ensembl_ids_and_symbols_from_wherever_they_are():
    table = choose_gene_ids(var(ensembl(2), feature_name=["XIST", None]), "auto", "f")
    assert (table.ids, table.symbols) == (tuple(ensembl(2)), ("XIST", ensembl(2)[1]))
    assert table.source == "var_names"
    table = choose_gene_ids(var(["XIST", "RPS4Y1"], gene_ids=ensembl(2)), "auto", "f")
    assert (table.ids, table.symbols) == (tuple(ensembl(2)), ("XIST", "RPS4Y1"))
    assert table.source == "var column 'gene_ids'"
    table = choose_gene_ids(var(["XIST", "RPS4Y1"], n_cells=[3, 4]), "auto", "f")
    assert table.ids == table.symbols == ("XIST", "RPS4Y1")


def test_auto_looks_past_numbered_var_names():
    with_ids = var(["0", "1"], gene_name=["A1BG", "XIST"], ensembl_id=ensembl(2))
    assert choose_gene_ids(with_ids, "auto", "f").symbols == ("A1BG", "XIST")
    symbols_only = var(["0", "1"], gene_name=["A1BG", "XIST"])
    assert choose_gene_ids(symbols_only, "auto", "f").ids == ("A1BG", "XIST")


def test_a_named_column_is_used_and_a_wrong_one_answered_with_the_nearest():
    table = var(ensembl(2), symbol=["XIST", "RPS4Y1"])
    assert choose_gene_ids(table, "symbol", "f").ids == ("XIST", "RPS4Y1")
    assert choose_gene_ids(table, "var_names", "f").ids == tuple(ensembl(2))
    with pytest.raises(DataError, match=r"f: .*'symbols', which does not exist; did you mean 'sym"):
        choose_gene_ids(table, "symbols", "f")


def test_genes_that_are_equal_but_for_the_version_are_duplicates():
    with pytest.raises(DataError, match=r"f: 1 gene ids in var_names .*ENSG00000000001.*sum or"):
        choose_gene_ids(var(["ENSG00000000001.1", "ENSG00000000001.2"]), "auto", "f")


def test_genes_without_any_name_are_refused():
    with pytest.raises(DataError, match=r"f: var_names are numbers.*data\.gene_ids"):
        choose_gene_ids(var(["0", "1"], length=[1, 2]), "auto", "f")
    with pytest.raises(DataError, match="1 of 2 genes have no name in var column 'symbol'"):
        choose_gene_ids(var(["0", "1"], symbol=["A", None]), "symbol", "f")


def test_genes_without_a_name_or_with_a_repeated_one_have_that_of_another_column():
    a, b, c, d = ensembl(4)
    table = var(["XIST", "CD4", "CD8A", "TBCE"], gene_ids=[a, None, c, c])
    found = choose_gene_ids(table, "auto", "f")
    assert found.ids == (a, "CD4", "CD8A", "TBCE")
    assert found.note.startswith(
        "3 of 4 genes have no name or a repeated name in var column 'gene_"
    )
    assert "their names in var_names are used (CD4, CD8A, TBCE)" in found.note
    with pytest.raises(DataError, match="var_names occur more than once"):
        choose_gene_ids(var(["XIST", "CD4", "CD4"], gene_ids=[a, b, c]), "var_names", "f")
    numbered = var(["0", "1", "2"], gene_name=["A1BG", "nan", "XIST"], id=["x", d, "y"])
    assert choose_gene_ids(numbered, "auto", "f").ids == ("A1BG", d, "XIST")


@pytest.mark.parametrize("prefix", ["GRCh38_", "hg19_", "mm10___", "GRCh38-"])
def test_the_genome_before_a_name_is_dropped(prefix):
    names = [f"{prefix}{name}" for name in ("XIST", "CD4", "ENSG00000000001.2")]
    assert choose_gene_ids(var(names), "auto", "f").ids == ("XIST", "CD4", "ENSG00000000001")
    both = ["GRCh38_ACTB", "mm10_ACTB"]
    assert choose_gene_ids(var(both), "auto", "f").ids == tuple(both)
