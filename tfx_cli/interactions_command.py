"""`tfx interactions`: what a model learnt of each pair of genes, in a context and between two contexts."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigurationError
from tfx_cli.arguments import (
    check_outputs,
    gene_file,
    keep_in_run,
    load_model,
    model_folder,
    names_in,
    run_and_files,
)
from tfx_cli.command_line import argument, option
from tfx_cli.options import DEVICE, JSON_OUTPUT, OVERWRITE, ContextOptions, Device, FileOptions
from tfx_cli.output import Paragraph, make_table, narrate, print_result, record_table
from tfx_cli.progress import progress_of_run

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Endings of files, the usual one first (`core.interactions.output.WRITERS`).
_ENDINGS = (".csv", ".parquet", ".h5ad", ".graphml", ".png", ".svg", ".pdf")
_SHOWN = 12


def interactions(
    targets: list[str] | None = argument(
        "RUN FILES",
        "A run, by name or folder (default: the newest), and files of cells: .h5ad, .zarr, .h5mu or "
        "soma://PATH (default: the cells of its store).",
        default=None,
    ),
    *,
    output: list[Path] = option(
        "--output -o FILE",
        "An edge table (.csv, .parquet), a matrix (.h5ad), a graph for Cytoscape (.graphml), or a picture "
        "(.png, .svg, .pdf); repeat for more than one.",
        default=...,
    ),
    context: ContextOptions,
    contrast: str | None = option(
        "--contrast NAME=A,B",
        "Two networks, of cells with the value A and with B of a phenotype, and their difference.",
    ),
    genes: str | None = option("--genes A,B", "Only edges among these genes, by id or symbol."),
    regulators: Path | None = option(
        "--regulators FILE", "Only edges from these genes: a text file with one name in a line."
    ),
    known: list[Path] | None = option(
        "--known EDGES.csv",
        "Known edges to compare every measure with: a table with the columns source and target, as of "
        "CollecTRI; repeat for a second one.",
    ),
    weight: Literal[
        "auto",
        "model",
        "model_directed",
        "pearson",
        "pearson_shrunken",
        "pearson_adjusted",
        "spearman",
        "partial_correlation",
        "mutual_information",
    ] = option(
        "--weight",
        "What the weight of an edge is; auto: the effect in a model with couplings, the shrunken correlation "
        "for a model without, or another measure if held-out donors hold more evidence for it.",
        default="auto",
    ),
    baselines: Literal["quick", "all"] = option(
        "--baselines",
        "Simple measures in the table; all: with gradient-boosted trees, which take minutes.",
        default="quick",
    ),
    error: float = option(
        "--error",
        "Relative error of the effects at which sampling ends.",
        min=0.005,
        max=1.0,
        default=0.1,
    ),
    top: int = option("--top", "Strongest edges in a graph or a picture.", min=1, default=200),
    seed: int = option("--seed", "Seed of the sampled cells and masks.", min=0, default=0),
    how: FileOptions,
    device: Device = DEVICE,
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Find interactions of genes in a context: the effect of each gene on the model's prediction of each other.

    Every ordered pair has a weight, p and q against two nulls, and simple measures of the same cells
    beside the model's effect. A line says which of them is the weight, and why ('--weight'). Weights are
    associations, not causes ('tfx docs interactions').

    Examples
    --------
    tfx interactions --where cell_type=macrophage -o edges.csv -o network.graphml
    tfx interactions runs/base --where tissue=lung --contrast sex=female,male -o sex.csv -o sex.png
    tfx interactions runs/base new.h5ad --regulators tf.txt -o edges.parquet
    tfx interactions runs/base --known collectri.csv --known omnipath.tsv -o edges.csv
    """  # fmt: skip
    check_outputs(output, _ENDINGS, what="interactions", overwrite=overwrite)
    if genes and regulators:
        raise ConfigurationError("--regulators: cannot be used with --genes; give one of them")
    run, files = run_and_files(targets or [])
    context.check_unused(files, how)
    chosen_genes = names_in([genes]) if genes else []
    if genes is not None and len(chosen_genes) < 2:
        raise ConfigurationError(
            f"--genes {genes}: give two genes at least, as in --genes SPI1,CD14"
        )
    requested: dict[str, Any] = {
        "contrast": _two_values(contrast) if contrast is not None else None,
        "genes": chosen_genes,
        "regulators": [] if regulators is None else gene_file(regulators, "--regulators"),
    }
    folder = model_folder(run)
    # torch and transformers, 3 s: only after the options are checked.
    from core.cells.cell_filter import CellFilter
    from core.interactions.baselines import ALL_MEASURES, QUICK_MEASURES
    from core.interactions.known_edges import read_known_edges
    from core.interactions.network import find_interactions
    from core.interactions.output import kept_record, summary, write_interactions
    from core.interactions.request import Request

    model = load_model(folder, device)
    request = Request(
        where=CellFilter.parse(context.where or [], where="--where"),
        weight=weight,
        measures=ALL_MEASURES if baselines == "all" else QUICK_MEASURES,
        error=error,
        seed=seed,
        known=[read_known_edges(path, model.panel, "--known") for path in known or []],
        **requested,
    )
    store, read = context.open(model, folder.parent, files, how, seed=seed)
    is_simulated = all(file.startswith("builtin:atlas") for file in files)
    if not files:
        is_simulated = store is not None and store.truth is not None
    with progress_of_run(folder.parent, "finding edges") as listener:
        found = find_interactions(
            model, read, request, store=store, simulated=is_simulated, on_progress=listener
        )
    for path in output:
        write_interactions(found, path, top=top)
    narrate(f"written: {', '.join(map(str, output))}")
    keep_in_run(folder, "interactions", output, kept_record(found))
    summaries = summary(found, _SHOWN)
    print_result(
        "interactions",
        {"output": output, "model": folder, "simulated": found.is_simulated, "networks": summaries},
        as_json=as_json,
        text=lambda: _text(summaries),
    )


def _two_values(contrast: str) -> tuple[str, str, str]:
    from core.cells.cell_filter import CellFilter

    conditions = CellFilter.parse(contrast, where="--contrast").conditions
    if len(conditions) != 1 or conditions[0].excluded or len(conditions[0].values) != 2:
        raise ConfigurationError(
            f"--contrast {contrast}: give one phenotype and two of its values, as in sex=female,male"
        )
    first, second = conditions[0].values
    return conditions[0].name, first, second


# -- text
def _text(summaries: list[dict[str, Any]]) -> Iterator[Paragraph]:
    from core.interactions.baselines import MEASURE_NAMES

    for one in summaries:
        yield _network_text(one)
        if one["held_out_evidence"]:
            order = sorted(one["held_out_evidence"].items(), key=lambda item: -item[1])
            rows = [[MEASURE_NAMES.get(name, name), f"{value:.2f}"] for name, value in order]
            yield [
                "evidence of held-out donors for the strongest 1 % of pairs (mean z^2 - 1; 0: none):",
                make_table(["measure", "evidence"], rows, right=[1]),
            ]
        if one["truth"]:
            yield _truth_text(one["truth"])
        for reference in one["known"]:
            yield _known_text(reference)
        if one["notes"]:
            yield [f"- {note}" for note in one["notes"]]
    yield "Weights are associations, not causes; 'tfx docs interactions' explains each column."


def _network_text(one: dict[str, Any]) -> "list[RenderableType]":
    from core.interactions.baselines import MEASURE_NAMES

    what = MEASURE_NAMES[one["weight"]]
    n_pairs = one["sources"] * one["targets"]
    lines: list[RenderableType] = [
        f"{one['context']}: {one['cells']:,} cells of {one['donors']:,} donors, {one['sources']:,} sources, "
        f"{one['targets']:,} targets; weights are {what}",
        f"{one['found']:,} of {n_pairs:,} pairs have q < 0.05, against cells that exchange targets within donor "
        f"and class, and beside targets of the same detection rate and mean",
        f"sampling error {one['relative_error']:.0%} of the effects ({one['passes']:,} passes per gene)"
        + (
            f"; {one['stability']:.2f} of the strongest {one['stability_pairs']} pairs agree between halves of the donors (Jaccard)"
            if one["stability"] == one["stability"]
            else ""
        ),
    ]
    columns = {
        "source": "{source}",
        "target": "{target}",
        "weight": "{weight:+.3f}",
        "q": "{q:.2g}",
    }
    return [*lines, record_table(columns, one["edges"], right=(2, 3))]


def _truth_text(scores: list[dict[str, Any]]) -> "list[RenderableType]":
    from core.interactions.baselines import MEASURE_NAMES

    of_measure: dict[str, dict[str, dict[str, Any]]] = {}
    for score in scores:
        of_measure.setdefault(score["measure"], {})[score["kind"]] = score
    n_edges = {score["kind"]: score["n_edges"] for score in scores}
    rows = []
    for name, kinds in of_measure.items():
        every = kinds["all"]
        precisions = [f"{kinds[kind]['average_precision']:.3f}" for kind in n_edges]
        sign = "" if every["sign"] != every["sign"] else f"{every['sign']:.0%}"
        rest = [f"{every['early_precision']:.2f}", f"{every['auroc']:.3f}", sign]
        rows.append([MEASURE_NAMES[name], *precisions, *rest])
    header = ["measure", *(f"{kind} ({n:,})" for kind, n in n_edges.items())]
    header += ["early precision", "AUROC", "sign right"]
    return [
        "these cells are simulated; average precision for the edges of the simulation (ordered pairs), by kind:",
        make_table(header, rows, right=range(1, len(header))),
    ]


def _known_text(reference: dict[str, Any]) -> "list[RenderableType]":
    from core.interactions.baselines import MEASURE_NAMES

    one = reference
    rows = [
        [
            MEASURE_NAMES[score["measure"]],
            f"{score['over_chance']:.2f}",
            f"{score['odds_ratio']:.2f}",
            f"{score['auroc']:.3f}",
            f"{score['p']:.2g}",
        ]
        for score in sorted(one["measures"], key=lambda score: -score["average_precision"])
    ]
    head = (
        f"known edges of {one['file']}: {one['edges_within']:,} of {one['edges']:,} join genes of this network, from "
        f"{one['regulators_within']:,} of {one['regulators']:,} regulators; compared are {one['pairs']:,} pairs from these"
    )
    if not rows:
        return [head]
    header = ["measure", "precision / chance", "odds ratio of the top 1 %", "AUROC", "p"]
    return [head, make_table(header, rows, right=range(1, len(header)))]
