"""`tfx generate`: from control tokens to cells, or real cells with phenotypes set to other values."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ConfigurationError
from core.presets.schema import GenerateSettings
from core.wording import duration, listed
from tfx_cli.arguments import (
    FIGURES,
    SIMULATED,
    check_output,
    genes_or_file,
    load_model,
    model_folder,
    name_of_model,
    name_of_option,
    naming_run,
    phenotype_request,
    save_figure,
)
from tfx_cli.command_line import option
from tfx_cli.formatting import count_of
from tfx_cli.options import JSON_OUTPUT, MARKERS, MODEL, OVERWRITE, MatrixOptions, as_sentence
from tfx_cli.output import (
    Paragraph,
    formatted,
    make_table,
    narrate,
    print_result,
    record_table,
    warn,
)
from tfx_cli.progress import progress_of_run, show_progress

if TYPE_CHECKING:
    from core.generation.cell_generator import CellGenerator

#: The standard phenotypes, each with a value.
_PHENOTYPES = {
    "sex": "female",
    "tissue": "lung",
    "cell_type": "'B cell'",
    "age": "60-69",
    "disease": "normal",
}
#: Sampling settings that apply to changed cells (--from), too.
_EDITING = ("steps", "schedule", "decode")
#: Genes in the report on changed cells.
_SHOWN_GENES = 10
#: Measures of agreement in the report.
_MEASURES = {
    "gene_mean_r": "gene means, r",
    "detection_mae": "detection rates, mean difference",
    "correlation_r": "gene-gene correlations, r",
}
#: Cells that are generated to learn how long a request takes.
_TRIAL_CELLS = 32


def _group(panel: str, options: Mapping[str, tuple[Any, str, str]]) -> Any:  # noqa: ANN401 - a class
    """Make a group of options of their names, types, metavars and help; their values are checked later."""
    made = []
    for name, (kind, metavar, text) in options.items():
        declared = option(f"{name_of_option(name)} {metavar}", text, rich_help_panel=panel)
        made.append((name, kind | None, declared))
    return make_dataclass(panel, made)


if TYPE_CHECKING:

    class PhenotypeOptions:
        """A value of each standard phenotype."""

    class SamplingOptions:
        """The sampling settings of the preset schema."""
else:
    PhenotypeOptions = _group(
        "Phenotypes",
        {name: (str, "VALUE", f"As in {example}.") for name, example in _PHENOTYPES.items()},
    )
    SamplingOptions = _group(
        "Sampling",
        {
            name: (field.annotation, "", f"{as_sentence(field.description)}.")
            for name, field in GenerateSettings.model_fields.items()
        },
    )


def generate(
    *,
    standard: PhenotypeOptions,
    phenotype: list[str] | None = option(
        "--phenotype NAME=VALUE",
        "Any phenotype of the model, as in treatment=control; can be repeated.",
        rich_help_panel="Phenotypes",
    ),
    n_cells: int | None = option(
        "-n --cells", "Number of cells; default 200, or what --balance needs."
    ),
    balance: str | None = option(
        "--balance PHENOTYPE", "Fill up the rare values of a phenotype, as in cell_type."
    ),
    output: Path = option(
        "--output -o FILE.h5ad", "File to write.", default=Path("generated.h5ad")
    ),
    plot: Path | None = option(
        "--plot FILE.png|.pdf|.svg",
        "Draw the cells beside real ones of the same kind; with --from, before and after the change.",
    ),
    markers: str | None = MARKERS,
    from_file: str | None = option(
        "--from FILE", "Change these real cells; --set names the change."
    ),
    set_values: list[str] | None = option(
        "--set NAME=VALUE",
        "Set this in every cell and leave all else equal, as in disease=normal; can be repeated.",
    ),
    labels: list[str] | None = option(
        "--label NAME=COLUMN",
        "With --from: the obs column of a phenotype, as in tissue=organ; default: the column that "
        "the model was trained on.",
    ),
    how: MatrixOptions,
    run: str | None = MODEL,
    unspecified: Literal["sample", "none"] = option(
        "--unspecified",
        "Phenotypes that you do not name: sample draws them from matching training cells, none "
        "writes [NO_*].",
        default="sample",
    ),
    seed: int = option(
        "--seed", "The same seed gives the same cells.", min=0, max=2**63 - 1, default=0
    ),
    library_size: float | None = option(
        "--library-size COUNTS",
        "Total counts of every cell; default: drawn from training cells.",
        rich_help_panel="Sampling",
    ),
    overwrite: bool = OVERWRITE,
    serve: bool = option(
        "--serve", "Serve another program: JSON lines on stdin and stdout.", default=False
    ),
    as_json: bool = JSON_OUTPUT,
    sampling: SamplingOptions,
) -> None:
    """Generate synthetic cells of the requested phenotypes, as an .h5ad file.

    Values are log1p of counts per 10,000, or counts with --decode counts. Every cell is marked
    obs["synthetic"], and uns["tfx_generation"] records the model, the request and the seed. The
    cells are compared with real cells if the training store is still in its place.

    Examples
    --------
    tfx generate --sex female --tissue lung -n 500 -o lung.h5ad --plot lung.png
    tfx generate --run runs/pbmc68k --cell-type "CD14+ Monocyte" --steps 64
    tfx generate --balance cell_type -o rare.h5ad
    tfx generate --sex female --set sex=male -o flipped.h5ad
    tfx generate --from patients.h5ad --set disease=normal -o healed.h5ad --plot healed.pdf
    """
    phenotypes = phenotype_request(phenotype=phenotype, **vars(standard))
    changes = {name: value for name, value in vars(sampling).items() if value is not None}
    if serve:
        if phenotypes or plot is not None or as_json:
            raise ConfigurationError(
                "--serve takes its requests from stdin: give no other option than --run"
            )
        from tfx_cli.generate_service import serve_stdin

        serve_stdin(model_folder(run))
        return
    check_output(output, (".h5ad",), what="cells", overwrite=overwrite)
    if plot is not None:
        check_output(plot, FIGURES, what="pictures", overwrite=True, option="--plot")
    wanted = phenotype_request(phenotype=set_values, pair_option="--set")
    if from_file is not None:
        unfit = {
            "-n": n_cells,
            "--balance": balance,
            "--markers": markers,
            "--library-size": library_size,
            "a phenotype": phenotypes or None,
        }
        unfit |= {f"--{name}": value for name, value in changes.items() if name not in _EDITING}
        if others := [name for name, value in unfit.items() if value is not None]:
            raise ConfigurationError(
                f"--from changes real cells and does not take {others[0]}; use --set"
            )
        if not wanted:
            raise ConfigurationError("--from needs what to change, as in --set disease=normal")
        folder = model_folder(run)
        with naming_run(folder):
            _edit_file(
                from_file,
                wanted,
                labels or (),
                output,
                folder,
                seed,
                changes,
                how,
                plot,
                as_json=as_json,
            )
        return
    how.check_unused(labels, "belongs to cells of a file; name it by --from")
    genes = [] if markers is None else genes_or_file(markers, "--markers")
    folder = model_folder(run)
    # torch and transformers, 3 s: not before the options are checked.
    from core.evaluation.fidelity.measures import compare_cells
    from core.generation.cell_generator import BIN_NUMBERS, CellGenerator
    from core.generation.comparison import (
        MAX_COMPARED,
        agreement_beside_real,
        check_markers,
        open_training_store,
        read_real_cells,
        shown_genes,
    )
    from core.generation.generated_file import read_first_cells, write_generated
    from core.generation.pictures import comparison_figure
    from core.generation.request import GenerationRequest, cells_to_generate, changed_settings

    with naming_run(folder):
        model = load_model(folder)
        panel_genes = shown_genes(model.panel, genes)
        request = GenerationRequest(
            phenotypes,
            cells_to_generate(model, phenotypes, n_cells, balance),
            settings=changed_settings(model.generate, changes),
            unspecified=unspecified,
            seed=seed,
            library_size=library_size,
            balance=balance,
            changes=wanted,
        )
        source = CellGenerator(model, request)
    for note in source.notes:
        warn(note)
    if balance is not None:
        _narrate_balance(source, balance)
    with progress_of_run(folder.parent, "generating") as listener:
        write_generated(source, output, restart=overwrite, on_progress=listener)
    narrate(f"{output}: {request.n_cells:,} synthetic cells x {model.config.n_genes:,} genes")
    generated = read_first_cells(output, MAX_COMPARED)
    codes = source.phenotypes.wanted
    checks, real, summary, agreement = [], None, None, None
    if source.values == BIN_NUMBERS:
        warn("bin numbers are not compared with real cells")
    else:
        store = open_training_store(model)
        checks = check_markers(model, generated, codes, store=store, genes=panel_genes)
        real = None if store is None else read_real_cells(model, store, codes)
    if real is not None:
        summary = compare_cells(real[0], generated, model.panel)
        agreement = agreement_beside_real(real[0], generated, model.panel)
    if plot is not None and real is None:
        is_bins = source.values == BIN_NUMBERS
        why = "these are bins" if is_bins else "there are no real cells to compare with"
        warn(f"no picture is drawn: {why}")
    elif plot is not None and real is not None:
        title = ", ".join(f"{name} {value}" for name, value in phenotypes.items()) or "all cells"
        figure = comparison_figure(real[0], generated, model.panel.symbols, title=title)
        n_real = real[0].shape[0]
        save_figure(plot, figure, f"generated cells beside {n_real:,} real ones ({real[1]})")
    record = {
        "output": output,
        "cells": request.n_cells,
        "request": phenotypes,
        "set": wanted,
        "training_cells": source.phenotypes.n_training,
        "model": folder,
        "run": name_of_model(folder),
        "simulated": bool(model.provenance.get("simulated")),
        "marker_genes": genes,
        "markers": [vars(marker) for marker in checks],
        "fidelity": None if summary is None else summary.to_dict(),
        "agreement": None if agreement is None else vars(agreement),
        "compared_with": None if real is None else real[1],
        "notes": source.notes,
    }
    print_result("generate", record, as_json=as_json, text=lambda: _generated_text(record))


def _narrate_balance(source: "CellGenerator", balance: str) -> None:
    """Say how many cells fill up a phenotype, of which values, and how long that takes."""
    from core.generation.cell_generator import CellGenerator
    from core.generation.request import lacking_cells

    request, model = source.request, source.model
    lacking = lacking_cells(model, request.phenotypes, balance)
    rare = sorted((value for value, n in lacking.items() if n), key=lambda one: -lacking[one])
    shown = listed([f"{value} {lacking[value]:,}" for value in rare])
    n_trial = min(request.n_cells, _TRIAL_CELLS)
    began = time.monotonic()
    for _ in CellGenerator(model, replace(request, n_cells=n_trial)).blocks():
        pass
    seconds = (time.monotonic() - began) / n_trial * request.n_cells
    narrate(
        f"--balance {balance}: {count_of(request.n_cells, 'cell')} of {count_of(len(rare), 'value')} ({shown}), "
        f"which takes up to {duration(seconds)}"
    )


def _generated_text(record: Mapping[str, Any]) -> Iterator[Paragraph]:
    n_training = record["training_cells"]
    head = f"{record['run']}: {record['cells']:,} synthetic cells; {n_training:,} training cells match the request"
    yield [SIMULATED, head] if record["simulated"] else head
    if markers := record["markers"]:
        columns = {
            "request": "{phenotype} = {value}" if markers[0]["phenotype"] else "{value}",
            "gene": "{gene}",
            "training": "{matching_mean:.2f}",
            "beside": "{beside_mean:.2f}",
            "generated": "{generated_mean:.2f}",
            "cells with it": "{generated_detection:.0%}",
            "beside are": "{beside}",
        }
        title = "genes that set the request apart" if not record["marker_genes"] else "your genes"
        title += (
            ": mean log1p per 10k of training cells, of others beside them, and of generated cells"
        )
        yield [title, record_table(columns, markers, right=range(2, 6))]
    if (fidelity := record["fidelity"]) is not None:
        which, agreement = record["compared_with"], record["agreement"]
        lines = [
            f"compared with {fidelity['n_real']:,} real cells ({which}) of the same phenotypes"
        ]
        of_real, of_generated = dict.fromkeys(_MEASURES), fidelity
        if agreement is None:
            lines.append("These are too few to show what other real cells would score.")
        else:
            of_real, of_generated = agreement["real"], agreement["generated"]
            lines.append(
                f"Agreement with {agreement['n_cells']:,} of them: of as many other real cells, the best possible, and "
                "of as many generated cells"
            )
        n_genes = "{genes_per_cell_%s_mean:.1f} (sd {genes_per_cell_%s_sd:.1f})"
        sides = [formatted(n_genes % (one, one), fidelity) for one in ("real", "generated")]
        rows = [["genes per cell", *sides]]
        for name, label in _MEASURES.items():
            scores = [formatted(f"{{{name}:.3f}}", one) for one in (of_real, of_generated)]
            rows.append([label, *scores])
        yield [*lines, make_table(["", "real", "generated"], rows, right=(1, 2))]


# -- changed cells
def _edit_file(
    file: str,
    values: Mapping[str, str],
    labels: Sequence[str],
    output: Path,
    folder: Path,
    seed: int,
    changes: Mapping[str, Any],
    how: MatrixOptions,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    """Change the cells of a file, write and draw them, and print the result."""
    if (decode := changes.get("decode")) in ("bins", "counts"):
        raise ConfigurationError(
            f"--decode {decode}: genes that do not move keep their values, so the others need values "
            f"too; use sample or mean"
        )
    # torch and transformers, 3 s: not before the options are checked.
    from core.generation.pictures import edited_figure
    from core.generation.request import changed_settings
    from core.inference.edited_cells import beside_real_change, edit_cells, write_edited
    from core.inference.query_cells import open_query_cells

    model = load_model(folder)
    settings = changed_settings(model.generate, {"decode": "sample", **changes})
    with open_query_cells(file, model.panel, **vars(how)) as query, show_progress() as listener:
        edited = edit_cells(
            model, query, values, labels=labels, settings=settings, seed=seed, on_progress=listener
        )
    for note in edited.notes:
        warn(note)
    write_edited(edited.cells, output)
    narrate(f"{output}: {edited.cells.n_obs:,} cells x {edited.cells.n_vars:,} genes")
    real = beside_real_change(edited)
    if plot is not None:
        cells, is_changed = edited.cells, edited.is_changed
        figure = edited_figure(
            cells.layers["before"][is_changed],
            cells.X[is_changed],
            None if real is None else cells.layers["before"][real.rows],
            None if real is None else (real.real, real.model),
            list(cells.var["gene_symbol"]),
            title=", ".join(f"{name} = {value}" for name, value in values.items()),
        )
        save_figure(plot, figure, "cells before and after the change")
    record = {
        "output": output,
        "run": name_of_model(folder),
        "beside_real": None if real is None else {"cells": real.n_cells, "change_r": real.r},
        "from": file,
        "set": values,
        "cells": edited.cells.n_obs,
        "changed_cells": edited.n_changed,
        "moved_genes_per_cell": edited.moved_per_cell,
        "model": folder,
        "simulated": bool(model.provenance.get("simulated")),
        "genes": [vars(change) for change in edited.changes],
        "notes": edited.notes,
    }
    print_result("generate.edit", record, as_json=as_json, text=lambda: _edited_text(record))


def _edited_text(record: Mapping[str, Any]) -> Iterator[Paragraph]:
    wanted = ", ".join(f"{name} = {value}" for name, value in record["set"].items())
    head = (
        f"{record['run']}: {wanted}: {record['changed_cells']:,} of {record['cells']:,} cells changed, "
        f"{record['moved_genes_per_cell']:.1f} of {len(record['genes']):,} genes each"
    )
    yield [SIMULATED, head] if record["simulated"] else head
    columns = {
        "gene": "{gene}",
        "before": "{before:.2f}",
        "after": "{after:.2f}",
        "change": "{change:+.2f}",
        "cells it moved in": "{moved:.0%}",
    }
    table = record_table(columns, record["genes"][:_SHOWN_GENES])
    yield ["genes with the largest change of the mean (log1p per 10k)", table]
    if (real := record["beside_real"]) is not None:
        yield (
            f"Beside {count_of(real['cells'], 'cell')} of the file that have the value already: their gene means differ "
            f"from those of the cells before the change, matched by cell type, as the model changes them with r = "
            f"{real['change_r']:.2f}."
        )
