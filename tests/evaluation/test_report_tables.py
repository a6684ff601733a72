"""Tables of a report: what is there is shown, what is not is a dash."""

from core.evaluation.report_tables import gene_tables, phenotype_tables, score_pair, show


def figures(accuracy, **others):
    return {
        "accuracy": accuracy,
        "balanced_accuracy": 0.5,
        "macro_f1": 0.25,
        "n_cells": 9,
        **others,
    }


def test_every_method_has_a_row_with_its_intervals():
    report = {
        "phenotypes": {
            "sex": {
                "model": figures(0.75, intervals={"accuracy": [0.7, 0.8]}),
                "majority": figures(0.5),
            },
            "age": {"model": figures(0.125, top3_accuracy=0.5)},
        }
    }
    (table,) = phenotype_tables(report)
    assert [list(row) for row in table.rows] == [
        ["sex", "model", "0.750 [0.700, 0.800]", "0.500", "0.250", "-", "9"],
        ["sex", "majority", "0.500", "0.500", "0.250", "-", "9"],
        ["age", "model", "0.125", "0.500", "0.250", "0.500", "9"],
    ]
    assert all(len(row) == len(table.header) for row in table.rows)


def test_conditions_stand_side_by_side_and_may_lack_one():
    each = {
        "sex": {"hidden": figures(0.5), "masked_0.15": figures(0.25)},
        "age": {"hidden": figures(0.5), "given": figures(1.0), "masked_0.15": figures(0.25)},
    }
    report = {
        "phenotypes": {"sex": {"model": figures(0.5)}}, "conditions": {"cells": 9, "phenotypes": each},
    }  # fmt: skip
    table = list(phenotype_tables(report))[-1]
    assert table.header == ["phenotype", "all genes", "15 % masked", "others given"]
    assert table.rows[0] == ["sex", "0.500 / 0.250", "0.250 / 0.250", "-"]
    assert table.rows[1][-1] == "1.000 / 0.250"


def test_an_empty_report_has_no_tables():
    assert list(phenotype_tables({})) == list(gene_tables({})) == []


def test_numbers_as_text():
    assert show(-0.0001) == "0.000"
    assert show(12.345, digits=1) == "12.3"
    assert show(None) == score_pair(None) == "-"
    assert show([1, 0.5, "a"]) == "1, 0.500, a"
