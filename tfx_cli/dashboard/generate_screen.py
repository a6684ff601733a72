"""The control-token picker: choose phenotypes, generate cells, compare them with real ones."""

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import DataTable, Input, Static, TabPane

from core.errors import TfxError
from core.files import replacing
from core.model.reference import ControlTokens
from tfx_cli.arguments import phenotype_arguments
from tfx_cli.dashboard.base_screen import DashboardScreen, Generate, Panes
from tfx_cli.dashboard.cells_texts import (
    FEW_CELLS,
    GENE_COLUMNS,
    MOVED_COLUMNS,
    GeneMeans,
    embedding_points,
    fidelity_content,
    gene_count_histograms,
    gene_rows,
    moved_rows,
)
from tfx_cli.dashboard.dialogs import ChoiceDialog, SaveDialog
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.plots import CurveView, ScatterView, Series
from tfx_cli.dashboard.themes import bar, series_colour
from tfx_cli.formatting import count_of, shortened

#: Number fields: id, label, default (else the model's own), type.
_FIELDS: tuple[tuple[str, str, str, Literal["integer", "number"]], ...] = (
    ("cells", "cells", "200", "integer"),
    ("steps", "steps", "", "integer"),
    ("temperature", "temp.", "", "number"),
    ("guidance", "guidance", "", "number"),
    ("seed", "seed", "0", "integer"),
)
#: Choices beside the values: drawn from real cells, and the token [NO_*].
SAMPLED, UNSPECIFIED = -1, -2
_EMPTY = "press g to generate"
_NO_CELLS = "0 real cells match: the model combines what it learnt of each value, and there is nothing to compare with"
_SIMULATED = Content.styled("trained on simulated cells: no real biology", "$secondary")


class TokenRow(Widget, can_focus=True):
    """A control token: left and right step through the values, enter or a click lists them.

    ``label_width`` is the width of the names in all rows.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Value before", show=False),
        Binding("right", "step(1)", "Next value", show=False),
        Binding("enter", "choose", "List the values", show=False),
        Binding("up", "app.focus_previous", "Row above", show=False),
        Binding("down", "app.focus_next", "Row below", show=False),
    ]
    choice: reactive[int] = reactive(SAMPLED)
    counts: reactive[Mapping[str, int]] = reactive(dict)

    class Changed(Message):
        """Another value was chosen."""

    @dataclass
    class ListRequested(Message):
        """The user wants the list of values."""

        row: "TokenRow"

    def __init__(self, name: str, values: Sequence[str], *, label_width: int) -> None:
        super().__init__(classes="token")
        self.phenotype = name
        self.values = tuple(values)
        self.label_width = label_width

    @property
    def value(self) -> str | None:
        """The chosen value; None where cells are sampled or the phenotype is unspecified."""
        return self.values[self.choice] if self.choice >= 0 else None

    @property
    def no_token(self) -> str:
        """The control token of an unspecified phenotype."""
        return f"[NO_{self.phenotype.upper()}]"

    def text_of(self, choice: int) -> str:
        """Write a choice in words."""
        if choice == SAMPLED:
            return "sample from real cells"
        return f"unspecified {self.no_token}" if choice == UNSPECIFIED else self.values[choice]

    def choices(self) -> list[int]:
        """Return all choices, in the order to list them."""
        return [SAMPLED, UNSPECIFIED, *range(len(self.values))]

    def options(self) -> list[tuple[int, str, str]]:
        """Return all choices: number, text, and how many real cells have the value."""
        counts = [f"{self.counts.get(value, 0):,} real cells" for value in self.values]
        return [
            (choice, self.text_of(choice), counts[choice] if choice >= 0 else "")
            for choice in self.choices()
        ]

    def render(self) -> Content:
        """Write name, choice and how many real cells have it."""
        note = ""
        if self.value is not None:
            note = count_of(self.counts.get(self.value, 0), "real cell")
        room = max(self.size.width - self.label_width - len(note) - 7, 8)
        shown = shortened(self.text_of(self.choice), room)
        style = "$primary" if self.choice >= 0 else "$secondary"
        label = f"{shortened(self.phenotype, self.label_width):{self.label_width}}  "
        content = Content.assemble((label, "$secondary"), "‹ ", (shown, style), " ›")
        gap = max(self.size.width - content.cell_length - len(note), 1)
        return Content.assemble(
            content, " " * gap, (note, "$warning" if note.startswith("0 ") else "$secondary")
        )

    def watch_choice(self) -> None:
        self.post_message(self.Changed())

    def action_step(self, by: int) -> None:
        order = self.choices()
        self.choice = order[(order.index(self.choice) + by) % len(order)]

    def action_choose(self) -> None:
        self.post_message(self.ListRequested(self))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.focus()
        self.action_choose()


class GenerateScreen(DashboardScreen):
    """Pick control tokens of the model of a run folder and generate."""

    NAME = "generate"
    AUTO_FOCUS = ""  # keys are for the screen until a token has the focus
    BINDINGS = bindings_of("generate")

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_path = run
        self._tokens: ControlTokens | None = None
        self._problem = ""
        self._number = 0
        self._status = Content("")
        self._request: Mapping[str, Any] = {}
        self._result: Mapping[str, Any] | None = None
        self._before: Mapping[str, Any] | None = None
        self._shows_moved = False
        self._folder = Path(tempfile.mkdtemp(prefix="tfx-cells-"))
        try:
            self._tokens = ControlTokens.read(Path(run) / "model")
        except TfxError as error:
            self._problem = str(error)

    def make_body(self) -> ComposeResult:
        with Container(classes="body"):
            with Vertical(id="picker"):
                with Vertical(id="tokens"):
                    if self._tokens is None:
                        yield Static(f" {self._problem}", markup=False)
                    else:
                        names = self._tokens.phenotypes
                        longest = min(max(map(len, names), default=0), 16)
                        for name, values in names.items():
                            yield TokenRow(name, values, label_width=longest)
                with Container(classes="numbers"):
                    for name, label, default, kind in _FIELDS:
                        with Vertical(classes="field"):
                            yield Static(label, markup=False)
                            value = default or self._model_default(name)
                            yield Input(value, id=f"field-{name}", type=kind, compact=True)
                yield Static("", id="match", markup=False)
                yield Static("", id="progress", markup=False)
                yield Static("", id="side-fidelity", classes="fidelity", markup=False)
            with Panes(initial="genes", id="results"):
                with TabPane("1 Genes", id="genes"):
                    yield _gene_table("gene-table")
                with TabPane("2 Means", id="means"):
                    yield ScatterView(has_diagonal=True, id="mean-scatter", empty=_EMPTY)
                with TabPane("3 Cells", id="cells"):
                    yield ScatterView(has_ticks=False, id="embedding", empty=_EMPTY)
                with TabPane("4 Genes per cell", id="gene-counts"), Vertical():
                    yield CurveView(
                        "", id="histogram", x_name="genes", empty=_EMPTY, has_values=False
                    )
                    yield Static("", id="fidelity", classes="fidelity", markup=False)
                with TabPane("5 Moved", id="moved"):
                    yield _gene_table("moved-table")

    def _model_default(self, name: str) -> str:
        known = None if self._tokens is None else self._tokens.generate.get(name)
        return "" if known is None else f"{known:g}"

    def on_mount(self) -> None:
        self._show_counts()
        self._show()
        self._focus_tokens()

    def _rows(self) -> list[TokenRow]:
        return list(self.query(TokenRow))

    def _focus_tokens(self) -> None:
        for row in self._rows()[:1]:
            row.focus()

    # -- the picker
    def _chosen_values(self) -> dict[str, str]:
        return {row.phenotype: row.value for row in self._rows() if row.value is not None}

    def on_token_row_changed(self) -> None:
        self._show_counts()

    def _show_counts(self) -> None:
        if self._tokens is None or not self.is_laid_out:
            return
        values = self._chosen_values()
        for row in self._rows():
            others = {name: value for name, value in values.items() if name != row.phenotype}
            row.counts = self._tokens.counts_of(row.phenotype, others)
        count = self._tokens.count(values)
        described = ", ".join(f"{name} = {value}" for name, value in values.items()) or "any cell"
        matching = f" of {self._tokens.n_cells:,} training cells: {described}"
        lines = [Content.assemble((f"{count:,}", "bold"), matching)]
        if values and count == 0:
            lines.append(Content.styled(_NO_CELLS, "$warning"))
        elif values and count < FEW_CELLS:
            lines.append(Content.styled(f"fewer than {FEW_CELLS}: expect guesswork", "$warning"))
        if self._tokens.is_simulated:
            lines.append(_SIMULATED)
        self.write("match", Content("\n").join(lines))

    def on_token_row_list_requested(self, event: TokenRow.ListRequested) -> None:
        self._choose(event.row, event.row.phenotype)

    def _choose(self, row: TokenRow, title: str, *, then_generate: bool = False) -> None:
        def take(choice: int | None) -> None:
            if choice is not None:
                row.choice = choice
                if then_generate:
                    self._shows_moved = True
                    self.action_go()

        self.app.push_screen(ChoiceDialog(title, row.options(), chosen=row.choice), take)

    # -- generating
    def _numbers(self) -> dict[str, float | int] | None:
        """Read the number fields; None where one is wrong, with a notification."""
        found: dict[str, float | int] = {}
        for name, label, _, kind in _FIELDS:
            text = self.query_one(f"#field-{name}", Input).value.strip()
            if not text:
                continue
            try:
                found[name] = int(text) if kind == "integer" else float(text)
            except ValueError:
                self.notify(f"{label}: '{text}' is not a number", severity="error", markup=False)
                return None
        return found

    def action_go(self) -> None:
        if self._tokens is None:
            self.notify(self._problem, severity="error", markup=False)
            return
        if self.is_busy:
            self.notify("cells are being generated; k cancels", markup=False)
            return
        numbers = self._numbers()
        if numbers is None:
            return
        unspecified = [row for row in self._rows() if row.choice == UNSPECIFIED]
        self._number += 1
        self._request = {
            "id": self._number,
            # Phenotypes that are absent here are sampled from matching real cells.
            "request": self._chosen_values() | {row.phenotype: row.no_token for row in unspecified},
            "unspecified": "sample",
            "output": str(self._folder / f"cells-{self._number}.h5ad"),
            **numbers,
        }
        self.is_busy = True
        self._status = Content("starting the generating process (a few seconds)...")
        self._show()
        self.post_message(Generate(self.run_path, self._request))

    def action_cancel(self) -> None:
        if not self.is_busy:
            self.notify("nothing is being generated", markup=False)
            return
        self.post_message(Generate(self.run_path, {"cancel": self._number}))
        self._status = Content("cancelling...")
        self._show()

    def action_flip(self) -> None:
        """Change one token, generate with the same seed, and show the genes that move."""
        if self._result is None:
            self.notify(
                "generate first (g); f then changes one token of that request", markup=False
            )
            return
        # The focused row if it has a value, else the first that has one, else the first row.
        rows = sorted(self._rows(), key=lambda row: -(row.value is not None) * (1 + row.has_focus))
        if not rows:
            return
        chosen = rows[0]
        if len(chosen.values) == 2 and chosen.value is not None:
            chosen.choice = 1 - chosen.choice
            self._shows_moved = True
            self.action_go()
        else:
            now = chosen.text_of(chosen.choice)
            self._choose(chosen, f"{chosen.phenotype}: from {now} to", then_generate=True)

    def take_event(self, run: str, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if run != self.run_path:
            return
        if kind == "loading":
            self._status = Content("loading the model...")
        elif kind == "ready":
            self._status = Content("the model is loaded")
        elif kind == "exit":
            if self.is_busy:
                self._fail(event.get("message") or "the generating process ended")
        elif event.get("id") not in (self._number, None):
            return
        elif kind == "progress":
            done, total = int(event.get("done") or 0), int(event.get("total") or 1)
            text = f" {done:,} of {total:,} cells   k cancels"
            self._status = Content.assemble(bar(done / max(total, 1), 24), text)
        elif kind == "cancelled":
            self.is_busy, self._status = False, Content("cancelled")
        elif kind == "error":
            self._fail(event.get("message"))
        elif kind == "cells":
            self._take_cells(event)
        self._show()

    def _fail(self, message: object) -> None:
        self.is_busy, self._status = False, Content.styled(str(message), "$error")

    def _take_cells(self, event: Mapping[str, Any]) -> None:
        self._before, self._result = self._result, {**event, "request": self._request}
        self.is_busy = False
        seconds = event.get("seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        self._status = Content.assemble(
            (f"✔ {event.get('cells')} cells{took}", "$success"), "   w saves, f flips a token"
        )
        self._show_result(event.get("profile") or {})
        if self._shows_moved:
            self.action_pane("moved")
            self._shows_moved = False

    # -- drawing
    def _show(self) -> None:
        if self.is_laid_out:
            name = Path(self.run_path).name
            self.set_bar(("generate", "bold"), f"  cells of the model of {name}")
            self.write("progress", self._status)

    def _show_result(self, profile: Mapping[str, Any]) -> None:
        colours = series_colour(self.app.theme, 1), series_colour(self.app.theme, 0)
        self._fill("gene-table", GENE_COLUMNS, gene_rows(profile, colours))
        before = (self._before or {}).get("profile")
        if before is not None:
            self._fill("moved-table", MOVED_COLUMNS, moved_rows(before, profile, colours))
        means = GeneMeans(profile)
        r = "" if means.r is None else f", r = {means.r:.3f}"
        self.query_one("#mean-scatter", ScatterView).show(
            [Series(f"{len(means.names)} genes", means.real, means.generated)],
            title=f"generated over real mean, log1p per 10k{r}",
            x_name="real",
        )
        self.query_one("#embedding", ScatterView).show(
            [embedding_points(profile, kind) for kind in ("real", "generated")],
            title="principal components of real cells",
        )
        self.query_one("#histogram", CurveView).show(
            gene_count_histograms(profile), title="fraction of cells by expressed genes"
        )
        for text in self.query(".fidelity").results(Static):
            text.update(fidelity_content(profile))

    def _fill(self, name: str, columns: tuple[str, ...], rows: list[list[Text]]) -> None:
        """Fill a table, without its bars where they do not fit."""
        table = self.query_one(f"#{name}", DataTable)
        shown = len(columns) if self.query_one("#results").size.width >= 72 else len(columns) - 1
        table.clear(columns=True)
        table.add_columns(*columns[:shown])
        table.add_rows(row[:shown] for row in rows)

    # -- saving
    def _command(self, output: str) -> str:
        """Return the command line that makes the cells of the last request."""
        request = self._request
        arguments = ["tfx", "generate", "--run", self.run_path]
        arguments += phenotype_arguments(request["request"])
        arguments += ["-n", str(request.get("cells", 200))]
        for name in ("steps", "temperature", "guidance", "seed"):
            if name in request:
                arguments += [f"--{name}", f"{request[name]:g}"]
        return shlex.join([*arguments, "-o", output])

    def action_copy(self) -> None:
        if not self._request:
            self.notify("generate first (g)", markup=False)
            return
        command = self._command(_file_name(self._request))
        self.app.copy_to_clipboard(command)
        self.notify(command, title="copied", markup=False)

    def action_save(self) -> None:
        """Save the cells as an .h5ad file."""
        result = self._result or {}
        output = result.get("output")
        if not isinstance(output, str) or not Path(output).is_file():
            self.notify("generate first (g)", markup=False)
            return

        def take(path: str | None) -> None:
            if path:
                self._save(Path(output), Path(path).expanduser())

        # The name of the request of these cells: another request may be under way.
        name = _file_name(result["request"])
        self.app.push_screen(SaveDialog("save the generated cells as", name), take)

    def _save(self, source: Path, target: Path) -> None:
        try:
            with replacing(target) as partial:
                shutil.copyfile(source, partial)
        except OSError as error:
            self.notify(f"{target}: {error.strerror}", severity="error", markup=False)
        else:
            self.notify(f"saved {target}", markup=False)

    def action_back(self) -> None:
        """Leave a number field, or the screen."""
        if isinstance(self.focused, Input):
            self._focus_tokens()
        else:
            super().action_back()

    def on_unmount(self) -> None:
        """Remove cells that were not saved."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _gene_table(name: str) -> DataTable[Text]:
    return DataTable(
        id=name, cursor_type="row", zebra_stripes=True, cursor_foreground_priority="renderable"
    )


def _file_name(request: Mapping[str, Any]) -> str:
    words = [value for value in request["request"].values() if not value.startswith("[NO_")]
    name = "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words)
    return f"{name or 'generated'}.h5ad"
