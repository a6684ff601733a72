"""`tfx perturb`: genes of real cells set to other values, what responds, and screens of all genes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from tfx_cli.arguments import (
    DEVICE,
    FEW_GENES,
    GENE_IDS,
    JSON_OUTPUT,
    MATRIX,
    OVERWRITE,
    VALUES,
    Device,
    Values,
    check_output,
    check_unused,
    load_model,
    model_folder,
    run_and_files,
    trained_on,
)
from tfx_cli.command_line import argument, option
from tfx_cli.output import Paragraph, make_table, narrate, print_result, show_progress, warn

_SHOWN = 12
_ASSOCIATION = "This is association, not causation: the model knows which values occur together, and no experiment."
_SIMULATED = "The model was trained on simulated cells: these say nothing about real biology."


def perturb(
    targets: list[str] | None = argument(
        "RUN FILE",
        "A run, by name or folder (default: the newest), and a file of cells: .h5ad, .zarr, .h5mu or "
        "soma://PATH (default: the cells of its store).",
        default=None,
    ),
    output: list[Path] = option(
        "--output -o FILE",
        "Cells before and after (.h5ad), or the table of responding genes (.csv); repeat for both. "
        "With --screen a table (.csv).",
        default=...,
    ),
    knock_out: list[str] | None = option(
        "--knock-out GENE",
        "Set a gene to not expressed; repeat, or separate by commas, to change several at once.",
        rich_help_panel="Change",
    ),
    over_express: list[str] | None = option(
        "--over-express GENE",
        "Set a gene to the highest bin that a twentieth of the training cells that express it reach.",
        rich_help_panel="Change",
    ),
    set_gene: list[str] | None = option(
        "--set-gene GENE=BIN",
        "Set a gene to a bin of the model, from 0 (not expressed) on: a dose.",
        rich_help_panel="Change",
    ),
    screen: str | None = option(
        "--screen NAME=VALUE",
        "Change every gene by itself and rank them by their effect on a phenotype, as in disease=normal. "
        "Genes are knocked out; with --over-express all they are over-expressed.",
        rich_help_panel="Change",
    ),
    where: list[str] | None = option(
        "--where NAME=VALUES",
        "Only matching cells, as in cell_type=macrophage; repeat to add conditions. Default: all cells.",
    ),
    n_cells: int = option(
        "-n --cells",
        "Cells to perturb at most, spread over donors; tests and output are of these.",
        min=20,
        default=500,
    ),
    steps: int = option("--steps", "Steps in which the other genes are redrawn.", min=1, default=8),
    seed: int = option("--seed", "The same seed gives the same result.", min=0, default=0),
    store: Path | None = option(
        "--store FOLDER", "The store the run was trained on, if it is in another place now."
    ),
    labels: list[str] | None = option(
        "--label NAME=COLUMN", "FILE: the obs column of a phenotype, as in tissue=organ."
    ),
    matrix: str = MATRIX,
    values: Values = VALUES,
    gene_ids: str = GENE_IDS,
    few_genes: bool = FEW_GENES,
    device: Device = DEVICE,
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON_OUTPUT,
) -> None:
    """Knock out, over-express or set genes of real cells, and find what responds in the model.

    The genes are set, all others are redrawn by the model, and the phenotypes are predicted again. Every gene has its
    shift, p over donors and beside matched genes, and q; simple predictions stand beside it. Cells before and after
    can be read by the package cell-eval. Responses are associations, not causes ('tfx docs perturb').

    Examples
    --------
    tfx perturb --knock-out IL1B --where cell_type=macrophage -o il1b.h5ad -o il1b.csv
    tfx perturb runs/base new.h5ad --knock-out FOS,JUN --over-express CD14 -o several.h5ad
    tfx perturb --screen disease=normal --where disease="systemic lupus erythematosus" -o screen.csv
    """  # fmt: skip
    endings = (".csv",) if screen is not None else (".h5ad", ".csv")
    for path in output:
        check_output(
            path, endings, what="screens" if screen else "perturbations", overwrite=overwrite
        )
    if len({path.resolve() for path in output}) < len(output):
        raise ConfigurationError("--output: two files have the same name; give each its own")
    run, files = run_and_files(targets or [])
    if len(files) > 1:
        raise ConfigurationError(
            f"'{files[1]}': give one file of cells, or write them into one file"
        )
    if not files:
        unused = {"--label": labels, "--matrix": matrix, "--values": values, "--gene-ids": gene_ids}
        check_unused(
            {**unused, "--few-genes": few_genes},
            "cells of a store have theirs there; name a file of cells",
        )
    knocked, expressed = _names(knock_out), _names(over_express)
    doses = _doses(set_gene or [])
    screened = None
    if screen is not None:
        if knocked or doses or (expressed and expressed != ["all"]):
            raise ConfigurationError(
                "--screen changes every gene by itself; leave --knock-out, --over-express GENE and "
                "--set-gene out"
            )
        screened = _target(screen)
    elif not (knocked or expressed or doses):
        raise ConfigurationError(
            "name what to change: --knock-out GENE, --over-express GENE, --set-gene GENE=BIN, or --screen "
            "NAME=VALUE for every gene"
        )
    folder = model_folder(run)
    # torch and transformers, 3 s: only after the options are checked.
    from core.cells.cell_filter import CellFilter
    from core.generation.comparison import find_training_store, open_training_store
    from core.inference.evaluate_files import Reading
    from core.interactions.cells import file_reader, store_reader
    from core.interactions.perturbation import Change, PerturbRequest
    from core.interactions.perturbation_output import (
        perturbed_anndata,
        response_records,
        response_table,
        screen_records,
        screen_table,
        source_labels,
        write_perturbed,
        write_table,
    )
    from core.interactions.responses import perturb_cells
    from core.interactions.screen import screen_genes

    model = load_model(folder, device)
    request = PerturbRequest(
        Change(knocked, expressed, doses),
        where=CellFilter.parse(where or [], where="--where"),
        n_cells=n_cells,
        steps=steps,
        seed=seed,
    )
    if files:
        cells = find_training_store(model, store) if store else open_training_store(model)
        donor_column, _ = trained_on(folder.parent)
        reading = Reading(labels or (), donor_column, matrix, values, gene_ids, few_genes)
        read = file_reader(model, files, reading=reading, seed=seed)
    else:
        cells = find_training_store(model, store)
        read = store_reader(model, cells, seed=seed)
    common = {
        "output": output,
        "from": files[0] if files else cells.path if cells is not None else None,
        "model": folder,
        "simulated": bool(model.provenance.get("simulated")),
        "meaning": "association, not causation",
    }
    if screened is not None:
        with show_progress() as listener:
            ranked = screen_genes(
                model, read, screened, request, over_express=bool(expressed), on_progress=listener
            )
        for path in output:
            write_table(screen_table(ranked, model), path)
        narrate(f"written: {', '.join(map(str, output))}")
        of_screen = {
            **common,
            "screen": f"{ranked.phenotype}={ranked.value}",
            "change": "knock-out" if ranked.is_knock_out else "over-expression",
            "context": ranked.cells.name,
            "cells": len(ranked.cells),
            "donors": ranked.cells.n_donors,
            "left_out": ranked.n_left_out,
            "found": ranked.n_found,
            "genes": screen_records(ranked, model),
        }
        print_result(
            "perturb.screen", of_screen, as_json=as_json, text=lambda: _screen_text(of_screen)
        )
        return
    with show_progress() as listener:
        found = perturb_cells(model, read, request, store=cells, on_progress=listener)
    for note in found.notes:
        warn(note)
    for path in output:
        if path.suffix == ".csv":
            write_table(response_table(found, model), path)
        else:
            obs = source_labels(files[0] if files else None, cells, found)
            write_perturbed(
                perturbed_anndata(found, model, request, obs, str(common["from"])), path
            )
    narrate(f"written: {', '.join(map(str, output))}")
    record = {
        **common,
        "perturbation": found.wanted.text,
        "label": found.wanted.label,
        "context": found.cells.name,
        "cells": len(found.at),
        "changed_cells": len(found.changed.at),
        "donors": found.n_donors,
        "controls": found.n_controls,
        "found": found.n_found,
        "genes": response_records(found, model),
        "phenotypes": [vars(one) for one in found.phenotypes],
        "held_out_agreement": [vars(one) for one in found.agreements],
        "notes": list(found.notes),
    }
    print_result("perturb", record, as_json=as_json, text=lambda: _text(record))


def _names(words: Sequence[str] | None) -> list[str]:
    return [name for word in words or () for part in word.split(",") if (name := part.strip())]


def _doses(pairs: Sequence[str]) -> dict[str, int]:
    doses: dict[str, int] = {}
    for pair in pairs:
        gene, equals, number = (part.strip() for part in pair.rpartition("="))
        if not (gene and equals and number.isdecimal() and len(number) < 6):
            raise ConfigurationError(
                f"--set-gene {pair}: must be GENE=BIN with a whole number, as in IL1B=3"
            )
        if gene in doses:
            raise ConfigurationError(f"--set-gene {pair}: {gene} has a bin already; name it once")
        doses[gene] = int(number)
    return doses


def _target(screen: str) -> tuple[str, str]:
    from core.cells.cell_filter import CellFilter

    conditions = CellFilter.parse(screen, where="--screen").conditions
    if len(conditions) != 1 or conditions[0].excluded or len(conditions[0].values) != 1:
        raise ConfigurationError(
            f"--screen {screen}: give one phenotype and one of its values, as in disease=normal"
        )
    return conditions[0].name, conditions[0].values[0]


# -- text
def _text(record: Mapping[str, Any]) -> Iterator[Paragraph]:
    tested = [row for row in record["genes"] if row["q"] == row["q"]]
    head = (
        f"{record['perturbation']}, {record['context']}: {record['changed_cells']:,} of {record['cells']:,} cells "
        f"changed, of {_donors(record)}; {record['found']:,} of {len(tested):,} genes respond (q < 0.05, {_null(record)})"
    )
    yield [_SIMULATED, head] if record["simulated"] else head
    rows = [
        [
            row["gene"], f"{row['before']:.2f}", f"{row['shift']:+.2f}", f"{row['moved']:.0%}", f"{row['q']:.2g}",
            f"{row['correlation']:+.2f}", f"{row['other_perturbations']:+.2f}",
        ]
        for row in tested[:_SHOWN]
    ]  # fmt: skip
    header = [
        "gene",
        "before",
        "shift",
        "cells it moved in",
        "q",
        "correlation",
        "other perturbations",
    ]
    title = "responding genes: mean change of log1p per 10k in the changed cells; beside it what simple methods expect"
    yield [title, make_table(header, rows, right=range(1, 7))]
    if record["phenotypes"]:
        rows = [
            [
                f"{row['phenotype']} = {row['value']}", f"{row['before']:.3f}", f"{row['after']:.3f}",
                f"{row['shift']:+.3f}", f"{row['controls']:+.3f}", f"{row['q']:.2g}",
            ]
            for row in record["phenotypes"][:_SHOWN]
        ]  # fmt: skip
        header = ["phenotype", "before", "after", "shift", "other perturbations", "q"]
        yield [
            "mean predicted probabilities of the changed cells",
            make_table(header, rows, right=range(1, 6)),
        ]
    if record["held_out_agreement"]:
        rows = [
            [row["prediction"], _number(row["correlation"]), f"{row['relative_error']:.2f}"]
            for row in record["held_out_agreement"]
        ]
        title = (
            "compared with cells of other donors that have and lack the set value in nature, over genes "
            "(error: 1 is that of no change)"
        )
        yield [
            title,
            make_table(["prediction", "correlation", "squared error"], rows, right=[1, 2]),
        ]
    yield f"{_ASSOCIATION} 'tfx docs perturb' explains each column."


def _donors(record: Mapping[str, Any]) -> str:
    return f"{record['donors']:,} donors" if record["donors"] else "unknown donors"


def _null(record: Mapping[str, Any]) -> str:
    matched = "beside genes of the same detection rate"
    return f"over donors and {matched}" if record["donors"] > 1 else matched


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else ""


def _screen_text(record: Mapping[str, Any]) -> Iterator[Paragraph]:
    head = (
        f"{record['change']} of {len(record['genes']):,} genes, {record['context']}: {record['found']:,} change the "
        f"predicted probability of {record['screen']} (q < 0.05, {_null(record)})"
    )
    if record["left_out"]:
        head += f"; {record['left_out']:,} genes are expressed in too few cells"
    yield [_SIMULATED, head] if record["simulated"] else head
    rows = [
        [
            row["gene"], row["cells"], f"{row['before']:.3f}", f"{row['shift']:+.3f}", f"{row['q']:.2g}",
            f"{row['alone']:+.3f}", _number(row["correlation"]),
        ]
        for row in record["genes"][:_SHOWN]
    ]  # fmt: skip
    header = ["gene", "cells", "before", "shift", "q", "gene alone", "correlation"]
    title = (
        "genes of strongest effect: shift of the mean probability, that without responses of other genes, and the "
        "correlation of the gene with the value over all cells"
    )
    yield [title, make_table(header, rows, right=range(1, 7))]
    yield f"{_ASSOCIATION} 'tfx docs perturb' explains each column."
