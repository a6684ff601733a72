"""`tfx perturb`: genes of real cells set to other values, what responds, and screens of all genes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from tfx_cli.arguments import (
    SIMULATED,
    check_outputs,
    keep_in_run,
    load_model,
    model_folder,
    names_in,
    run_and_files,
)
from tfx_cli.command_line import argument, option
from tfx_cli.options import DEVICE, JSON_OUTPUT, OVERWRITE, ContextOptions, Device, FileOptions
from tfx_cli.output import Paragraph, narrate, print_result, record_table, warn
from tfx_cli.progress import progress_of_run

_SHOWN = 12
_ASSOCIATION = "This is association, not causation: the model knows which values occur together, and no experiment."


def perturb(
    targets: list[str] | None = argument(
        "RUN FILE",
        "A run, by name or folder (default: the newest), and a file of cells: .h5ad, .zarr, .h5mu or "
        "soma://PATH (default: the cells of its store).",
        default=None,
    ),
    *,
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
    context: ContextOptions,
    n_cells: int = option(
        "-n --cells",
        "Cells to perturb at most, spread over donors; tests and output are of these.",
        min=20,
        default=500,
    ),
    steps: int = option("--steps", "Steps in which the other genes are redrawn.", min=1, default=8),
    seed: int = option("--seed", "The same seed gives the same result.", min=0, default=0),
    how: FileOptions,
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
    what = "screens" if screen else "perturbations"
    check_outputs(output, endings, what=what, overwrite=overwrite)
    run, files = run_and_files(targets or [])
    if len(files) > 1:
        raise ConfigurationError(
            f"'{files[1]}': give one file of cells, or write them into one file"
        )
    context.check_unused(files, how)
    knocked, expressed = names_in(knock_out), names_in(over_express)
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
    from core.inference.edited_cells import write_edited
    from core.interactions.output import write_csv
    from core.interactions.perturbation import Change, PerturbRequest
    from core.interactions.perturbation_output import (
        perturbed_anndata,
        response_table,
        screen_table,
        source_labels,
        table_records,
    )
    from core.interactions.responses import perturb_cells
    from core.interactions.screen import screen_genes

    model = load_model(folder, device)
    request = PerturbRequest(
        Change(knocked, expressed, doses),
        where=CellFilter.parse(context.where or [], where="--where"),
        n_cells=n_cells,
        steps=steps,
        seed=seed,
    )
    store, read = context.open(model, folder.parent, files, how, seed=seed)
    common = {
        "output": output,
        "from": files[0] if files else store and store.path,
        "model": folder,
        "simulated": bool(model.provenance.get("simulated")),
        "meaning": "association, not causation",
    }
    if screened is not None:
        with progress_of_run(folder.parent, "perturbing") as listener:
            ranked = screen_genes(
                model, read, screened, request, over_express=bool(expressed), on_progress=listener
            )
        table = screen_table(ranked, model)
        for path in output:
            write_csv(table, path)
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
            "genes": table_records(table),
        }
        keep_in_run(folder, "perturb", output, _kept(of_screen))
        print_result(
            "perturb.screen", of_screen, as_json=as_json, text=lambda: _screen_text(of_screen)
        )
        return
    with progress_of_run(folder.parent, "perturbing") as listener:
        found = perturb_cells(model, read, request, store=store, on_progress=listener)
    for note in found.notes:
        warn(note)
    table = response_table(found, model)
    for path in output:
        if path.suffix == ".csv":
            write_csv(table, path)
        else:
            obs = source_labels(files[0] if files else None, store, found)
            cells = perturbed_anndata(found, model, request, obs, str(common["from"]))
            write_edited(cells, path)
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
        "genes": table_records(table),
        "phenotypes": [vars(one) for one in found.phenotypes],
        "held_out_agreement": [vars(one) for one in found.agreements],
        "notes": list(found.notes),
    }
    keep_in_run(folder, "perturb", output, _kept(record))
    print_result("perturb", record, as_json=as_json, text=lambda: _text(record))


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `core.interactions.kept` keeps of a printed record."""
    from core.interactions.kept import KEPT_RESPONSES

    screen = record.get("screen")
    what = (
        record["perturbation"] if screen is None else f"{record['change']} of every gene: {screen}"
    )
    tested = [row for row in record["genes"] if row["q"] == row["q"]]
    kept = {
        **record,
        "perturbation": what,
        "is_screen": screen is not None,
        "genes": tested[:KEPT_RESPONSES],
    }
    return {"simulated": record["simulated"], "perturbation": kept}


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
    yield [SIMULATED, head] if record["simulated"] else head
    columns = {
        "gene": "{gene}",
        "before": "{before:.2f}",
        "shift": "{shift:+.2f}",
        "cells it moved in": "{moved:.0%}",
        "q": "{q:.2g}",
        "correlation": "{correlation:+.2f}",
        "other perturbations": "{other_perturbations:+.2f}",
    }
    title = "responding genes: mean change of log1p per 10k in the changed cells; beside it what simple methods expect"
    yield [title, record_table(columns, tested[:_SHOWN])]
    if record["phenotypes"]:
        columns = {
            "phenotype": "{phenotype} = {value}",
            "before": "{before:.3f}",
            "after": "{after:.3f}",
            "shift": "{shift:+.3f}",
            "other perturbations": "{controls:+.3f}",
            "q": "{q:.2g}",
        }
        title = "mean predicted probabilities of the changed cells"
        yield [title, record_table(columns, record["phenotypes"][:_SHOWN])]
    if record["held_out_agreement"]:
        columns = {
            "prediction": "{prediction}",
            "correlation": "{correlation:.2f}",
            "squared error": "{relative_error:.2f}",
        }
        title = (
            "compared with cells of other donors that have and lack the set value in nature, over genes "
            "(error: 1 is that of no change)"
        )
        yield [title, record_table(columns, record["held_out_agreement"])]
    yield f"{_ASSOCIATION} 'tfx docs perturb' explains each column."


def _donors(record: Mapping[str, Any]) -> str:
    return f"{record['donors']:,} donors" if record["donors"] else "unknown donors"


def _null(record: Mapping[str, Any]) -> str:
    matched = "beside genes of the same detection rate"
    return f"over donors and {matched}" if record["donors"] > 1 else matched


def _screen_text(record: Mapping[str, Any]) -> Iterator[Paragraph]:
    head = (
        f"{record['change']} of {len(record['genes']):,} genes, {record['context']}: {record['found']:,} change the "
        f"predicted probability of {record['screen']} (q < 0.05, {_null(record)})"
    )
    if record["left_out"]:
        head += f"; {record['left_out']:,} genes are expressed in too few cells"
    yield [SIMULATED, head] if record["simulated"] else head
    columns = {
        "gene": "{gene}",
        "cells": "{cells:,}",
        "before": "{before:.3f}",
        "shift": "{shift:+.3f}",
        "q": "{q:.2g}",
        "gene alone": "{alone:+.3f}",
        "correlation": "{correlation:.2f}",
    }
    title = (
        "genes of strongest effect: shift of the mean probability, that without responses of other genes, and the "
        "correlation of the gene with the value over all cells"
    )
    yield [title, record_table(columns, record["genes"][:_SHOWN])]
    yield f"{_ASSOCIATION} 'tfx docs perturb' explains each column."
