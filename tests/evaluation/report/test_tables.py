"""Tables of a report: what is known is shown, what is not is a dash."""

import math

from core.evaluation.report.records import (
    BootstrapIntervals,
    Conditions,
    EvaluationReport,
    OntologyScores,
    PhenotypeScores,
    read_evaluation,
    report_record,
)
from core.evaluation.report.tables import gene_tables, phenotype_tables, score_pair, show


def scores(accuracy, **others):
    return PhenotypeScores(accuracy, 0.5, 0.25, 9, **others)


def test_every_method_has_a_row_with_its_intervals():
    intervals = BootstrapIntervals((0.7, 0.8), (0.4, 0.6), (0.2, 0.3))
    report = EvaluationReport(
        phenotypes={
            "sex": {"model": scores(0.75, intervals=intervals), "majority": scores(0.5)},
            "age": {"model": scores(0.125, top3_accuracy=0.5)},
        }
    )
    (table,) = phenotype_tables(report)
    assert [list(row) for row in table.rows] == [
        ["sex", "model", "0.750 [0.700, 0.800]", "0.500 [0.400, 0.600]", "0.250 [0.200, 0.300]", "-",
         "9"],
        ["sex", "majority", "0.500", "0.500", "0.250", "-", "9"],
        ["age", "model", "0.125", "0.500", "0.250", "0.500", "9"],
    ]  # fmt: skip
    assert all(len(row) == len(table.header) for row in table.rows)


def test_distances_in_the_ontology_have_a_table_where_labels_are_terms():
    near = OntologyScores(0.875, 1.5, 8)
    report = EvaluationReport(
        phenotypes={
            "sex": {"model": scores(0.5)},
            "cell_type": {"model": scores(0.5, ontology=near), "majority": scores(0.5)},
        }
    )
    (table,) = list(phenotype_tables(report))[1:]
    assert table.rows == [["cell_type", "model", "0.875", "1.500", "8"]]
    assert read_evaluation(report_record(report)) == report


def test_conditions_are_side_by_side_and_may_lack_one():
    each = {
        "sex": {"hidden": scores(0.5), "masked_0.15": scores(0.25)},
        "age": {"hidden": scores(0.5), "given": scores(1.0), "masked_0.15": scores(0.25)},
    }
    report = EvaluationReport(
        phenotypes={"sex": {"model": scores(0.5)}}, conditions=Conditions(9, each)
    )
    table = list(phenotype_tables(report))[-1]
    assert table.header == ["phenotype", "all genes", "15 % masked", "others given"]
    assert table.rows[0] == ["sex", "0.500 / 0.250", "0.250 / 0.250", "-"]
    assert table.rows[1][-1] == "1.000 / 0.250"


def test_an_empty_report_has_no_tables():
    assert list(phenotype_tables(EvaluationReport())) == []
    assert list(gene_tables(EvaluationReport())) == []


def test_numbers_as_text():
    assert show(-0.0001) == "0.000"
    assert show(12.345, digits=1) == "12.3"
    assert show(None) == show(math.nan) == score_pair(None) == "-"
