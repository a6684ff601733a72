"""What the report says of hidden genes: figures by mask rate, and the best and worst told genes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.cells.genes import GenePanel
from core.evaluation.gene_scores import GeneScores

__all__ = ["gene_table", "report_genes"]

#: Times a gene was hidden below which its mean says little.
LEAST_ASKED = 20
_N_LISTED = 10


def report_genes(scores: Sequence[GeneScores], panel: GenePanel, n_cells: int) -> dict[str, Any]:
    """Summarise the scores of several mask rates.

    Parameters
    ----------
    scores
        One per rate, ascending.
    panel
        Names the genes.
    n_cells
        Cells that were asked about.

    Returns
    -------
    Figures by rate, and at the middle rate the genes of which the model says most and least:
    by the gain over the gene's marginal, in nats, or by the likelihood where there is no marginal.
    """
    middle = scores[len(scores) // 2]
    nll = middle.each(middle.nll)
    figure = nll if middle.marginal is None else middle.each(middle.marginal_nll) - nll
    judged = np.flatnonzero(middle.n_asked >= LEAST_ASKED)
    sign = 1 if middle.marginal is None else -1
    order = judged[np.argsort(sign * figure[judged], kind="stable")]

    def describe(gene: int) -> dict[str, Any]:
        record: dict[str, Any] = {
            "gene": panel.ids[gene],
            "symbol": panel.symbols[gene],
            "times_hidden": int(middle.n_asked[gene]),
            "nll": float(nll[gene]),
            "accuracy": float(middle.each(middle.n_right)[gene]),
        }
        if middle.marginal is not None:
            record["gain"] = float(figure[gene])
        return record

    n_listed = min(_N_LISTED, len(order) // 2)
    return {
        "cells": n_cells,
        "rates": [one.to_dict() for one in scores],
        "listed_at_rate": middle.rate,
        "best": [describe(int(gene)) for gene in order[:n_listed]],
        "worst": [describe(int(gene)) for gene in order[::-1][:n_listed]],
    }


def gene_table(scores: Sequence[GeneScores], panel: GenePanel) -> list[list[Any]]:
    """Return a row per gene and rate, the names of the columns first."""
    rows: list[list[Any]] = [
        ["gene", "symbol", "rate", "times_hidden", "nll", "marginal_nll", "accuracy", "mean_off"]
    ]
    columns = [
        (
            one,
            one.each(one.nll),
            None if one.marginal is None else one.each(one.marginal_nll),
            one.each(one.n_right),
            one.each(one.off),
        )
        for one in scores
    ]
    for gene, (name, symbol) in enumerate(zip(panel.ids, panel.symbols, strict=True)):
        for one, nll, marginal, right, off in columns:
            if not one.n_asked[gene]:
                continue
            rows.append(
                [
                    name,
                    symbol,
                    one.rate,
                    int(one.n_asked[gene]),
                    round(float(nll[gene]), 5),
                    "" if marginal is None else round(float(marginal[gene]), 5),
                    round(float(right[gene]), 5),
                    round(float(off[gene]), 5),
                ]
            )
    return rows
