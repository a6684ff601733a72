"""The control-token picker: choose phenotypes, generate cells, compare them with real ones."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import DataTable, Input, Static, TabPane

from core.files import replacing
from tfx_cli.arguments import generating_command
from tfx_cli.dashboard.base_screen import FilterBox, Generate, OfferCopy, Panes
from tfx_cli.dashboard.cells_texts import (
    FEW_CELLS,
    GeneMeans,
    GeneTable,
    change_table,
    embedding_points,
    fidelity_content,
    gene_count_histograms,
    real_table,
)
from tfx_cli.dashboard.curve_view import CurveView
from tfx_cli.dashboard.dialogs import ChoiceDialog, TextDialog, h5ad_fault
from tfx_cli.dashboard.generated_sets import GeneratedSet
from tfx_cli.dashboard.keymap import Key, bindings_of
from tfx_cli.dashboard.picker_screen import PickerScreen
from tfx_cli.dashboard.picture import Series
from tfx_cli.dashboard.scatter_view import ScatterView
from tfx_cli.dashboard.themes import bar, series_colour
from tfx_cli.dashboard.token_row import SAMPLED, UNSPECIFIED, TokenRow

#: Number fields: id, label, default (else the model's own), type.
_FIELDS: tuple[tuple[str, str, str, Literal["integer", "number"]], ...] = (
    ("cells", "cells", "200", "integer"),
    ("steps", "steps", "", "integer"),
    ("temperature", "temp.", "", "number"),
    ("guidance", "guidance", "", "number"),
    ("seed", "seed", "0", "integer"),
)
_EMPTY = "press c to generate"
_NO_GENES = "c generates cells; this list then compares each gene's mean with that of real cells"
_NO_FLIP = "c generates; then f flips a token: the same cells, with one phenotype changed"
_NO_CELLS = "0 real cells match: the model combines what it learnt of each value, and there is nothing to compare with"
_SIMULATED = Content.styled("trained on simulated cells: no real biology", "$secondary")


class GenerateScreen(PickerScreen):
    """Pick control tokens of the model of a run folder and generate."""

    NAME = "generate"
    AUTO_FOCUS = ""  # keys are for the screen until a token has the focus
    BINDINGS = bindings_of("generate")

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self._number = 0
        self._status = Content("")
        self._request: Mapping[str, Any] = {}
        #: All that were generated here, and the place of the one that is shown.
        self.sets: list[GeneratedSet] = []
        self._place = -1
        self._folder: Path | None = None

    def make_body(self) -> ComposeResult:
        with Container(classes="body"):
            with Vertical(id="picker"):
                with Vertical(id="tokens"):
                    if self.tokens is None:
                        yield Static(f" {self.problem}", markup=False)
                    yield from self.make_rows()
                with Container(classes="numbers"):
                    for name, label, default, kind in _FIELDS:
                        with Vertical(classes="field"):
                            yield Static(label, markup=False)
                            value = default or self._model_default(name)
                            yield Input(value, id=f"field-{name}", type=kind, compact=True)
                yield Static("", id="match", markup=False)
                yield Static("", id="progress", markup=False)
                yield Static("", id="sets", markup=False)
                yield Static("", id="side-fidelity", classes="fidelity", markup=False)
                yield FilterBox("genes whose names hold ...")
            with Panes(initial="genes", id="results"):
                with TabPane("1 Genes", id="genes"), Vertical():
                    yield Static(_NO_GENES, id="genes-text", markup=False)
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
                with TabPane("5 Moved", id="moved"), Vertical():
                    yield Static(_NO_FLIP, id="moved-text", markup=False)
                    yield _gene_table("moved-table")

    def _model_default(self, name: str) -> str:
        known = None if self.tokens is None else self.tokens.generate.get(name)
        return "" if known is None else f"{known:g}"

    def on_mount(self) -> None:
        self._show_match()
        self._show()
        self.focus_rows()

    # -- keys
    def offers(self, key: Key) -> bool:
        conditions = {
            "generate.go": self.tokens is not None and not self.is_busy,
            "generate.cancel": self.is_busy,
            "generate.flip": bool(self.sets and self.rows()) and not self.is_busy,
            "generate.next-set": len(self.sets) > 1,
            "generate.save": bool(self.sets),
            "generate.filter": bool(self.sets) and self.pane in ("genes", "moved"),
        }
        return super().offers(key) and conditions.get(key.id, True)

    async def action_move(self, to: str) -> None:
        if isinstance(self.focused, TokenRow) and to in ("home", "end"):
            self.rows()[0 if to == "home" else -1].focus()
        else:
            await super().action_move(to)

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input is self.filter and self.sets:
            self._show_result()

    def on_input_submitted(self) -> None:
        self.focus_rows()

    # -- the picker
    def on_token_row_changed(self) -> None:
        self._show_match()

    def _show_match(self) -> None:
        if self.tokens is None or not self.is_laid_out:
            return
        values = self.values()
        self.show_counts(self.tokens, values)
        count = self.tokens.count(values)
        described = ", ".join(f"{name} = {value}" for name, value in values.items()) or "any cell"
        matching = f" of {self.tokens.n_cells:,} training cells: {described}"
        lines = [Content.assemble((f"{count:,}", "bold"), matching)]
        if values and count == 0:
            lines.append(Content.styled(_NO_CELLS, "$warning"))
        elif values and count < FEW_CELLS:
            lines.append(Content.styled(f"fewer than {FEW_CELLS}: expect guesswork", "$warning"))
        if self.tokens.is_simulated:
            lines.append(_SIMULATED)
        self.write("match", Content("\n").join(lines))

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
                self.notify(f"{label}: '{text}' is not a number", severity="error")
                return None
        return found

    def action_go(self) -> None:
        if self.tokens is None:
            self.notify(self.problem, severity="error")
            return
        numbers = self._numbers()
        if numbers is None:
            return
        unspecified = [row for row in self.rows() if row.choice == UNSPECIFIED]
        # Phenotypes that are absent here are sampled from matching real cells.
        values = self.values() | {row.phenotype: row.no_token for row in unspecified}
        self._send({"request": values, "unspecified": "sample", **numbers})

    def _send(self, request: Mapping[str, Any]) -> None:
        if self.is_busy:
            self.notify("cells are being generated; x cancels")
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="tfx-cells-"))
        self._number += 1
        output = str(self._folder / f"cells-{self._number}.h5ad")
        self._request = {**request, "id": self._number, "output": output}
        self.is_busy = True
        self._status = Content("starting the generating process (a few seconds)...")
        self._show()
        self.post_message(Generate(self.run_path, self._request))

    def action_cancel(self) -> None:
        if not self.is_busy:
            self.notify("nothing is being generated")
            return
        self.post_message(Generate(self.run_path, {"cancel": self._number}))
        self._status = Content("cancelling...")
        self._show()

    @work
    async def action_flip(self) -> None:
        """Generate the shown cells again with one token changed, and show the genes that move."""
        rows = self.rows()
        if not self.sets or not rows:
            self.notify("generate first (c); f then flips one token of the cells")
            return
        # A flip starts from the cells before another flip: one token changes.
        base = {name: value for name, value in self._shown.request.items() if name != "set"}
        values: Mapping[str, str] = base["request"]
        # The focused row if the request names it, else the first that it names, else the first row.
        rows.sort(key=lambda row: -(row.phenotype in values) * (1 + row.has_focus))
        row = rows[0]
        before = values.get(row.phenotype, f"any {row.phenotype}")
        others = [one for one in row.options() if one[0] != SAMPLED and one[1] != before]
        choice: int | None = None
        if len(row.values) == 2 and before in row.values:
            choice = 1 - row.values.index(before)
        elif others:
            title = f"{row.phenotype}: flip from {before} to"
            dialog = ChoiceDialog(title, others, chosen=others[-1][0])
            choice = await self.app.push_screen_wait(dialog)
        if choice is not None:
            value = row.no_token if choice == UNSPECIFIED else row.values[choice]
            self._send({**base, "set": {row.phenotype: value}})

    @property
    def _shown(self) -> GeneratedSet:
        return self.sets[self._place]

    def action_next_set(self) -> None:
        """Show the next of the generated sets."""
        if self.sets:
            self._place = (self._place + 1) % len(self.sets)
            self._show()
            self._show_result()

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
            text = f" {done:,} of {total:,} cells   x cancels"
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
        output, profile = event.get("output"), event.get("profile")
        self.sets.append(
            GeneratedSet(
                request=self._request,
                n_cells=int(event.get("cells") or 0),
                profile=profile if isinstance(profile, dict) else {},
                number=len(self.sets),
                output=Path(output) if isinstance(output, str) else None,
            )
        )
        self._place, self.is_busy = len(self.sets) - 1, False
        seconds = event.get("seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        self._status = Content.assemble(
            (f"✔ {event.get('cells')} cells{took}", "$success"), "   w saves, f flips a token"
        )
        self._show_result()
        if self._shown.change is not None:
            self.action_pane("moved")

    # -- drawing
    def _show(self) -> None:
        if not self.is_laid_out:
            return
        name = Path(self.run_path).name
        shown = f"  {self._shown.letter}: {self._shown.label}" if self.sets else ""
        self.set_bar(("generate", "bold"), f"  cells of the model of {name}{shown}")
        self.write("progress", self._status)
        self.write("sets", self._list_of_sets())

    def _list_of_sets(self) -> Content:
        lines = []
        for place, one in enumerate(self.sets):
            mark, style = ("▸", "bold") if place == self._place else (" ", "")
            state = f"saved {one.saved}" if one.saved else "not saved"
            text = f"{mark} {one.letter} {one.label}  {one.n_cells:,} cells, {state}"
            lines.append(Content.styled(text, style))
        if len(lines) > 1:
            lines.insert(0, Content.styled("generated here (b: next)", "$secondary"))
        is_short = self.size.width < 100  # rows are few: the shown set is in the bar
        return Content("") if is_short else Content("\n").join(lines)

    def on_resize(self) -> None:
        self.call_after_refresh(self._resized)

    def _resized(self) -> None:
        if self.is_laid_out and self.sets:
            self._show()
            self._show_result()

    def _show_result(self) -> None:
        profile = self._shown.profile
        self.query_one("#genes-text").display = False
        self._fill("gene-table", real_table(profile))
        before = self.sets[self._place - 1] if self._place > 0 else None
        sentences, changes = change_table(self._shown, before)
        self.write("moved-text", sentences)
        self._fill("moved-table", changes)
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

    def _fill(self, name: str, genes: GeneTable | None) -> None:
        """Fill a table, with bars of the room that is left."""
        table = self.query_one(f"#{name}", DataTable)
        table.clear(columns=True)
        if genes is not None:
            colours = series_colour(self.app.theme, 1), series_colour(self.app.theme, 0)
            width = self.query_one("#results").size.width
            table.add_columns(*genes.columns())
            table.add_rows(genes.rows(width, colours, self.filter.part))

    # -- saving
    def action_copy(self) -> None:
        if not self._request:
            self.notify("generate first (c)")
            return
        request = self._shown.request if self.sets else self._request
        name = self._shown.file_name() if self.sets else "generated.h5ad"
        command = generating_command(self.run_path, request, name)
        self.post_message(OfferCopy("the command that makes these cells", command))

    @work
    async def action_save(self) -> None:
        """Save the shown cells as an .h5ad file."""
        shown = self._shown if self.sets else None
        if shown is None or shown.output is None or not shown.output.is_file():
            self.notify("generate first (c)")
            return
        title = f"save {shown.letter} ({shown.label}) as"
        if shown.saved:
            title = f"{shown.letter} is saved as {shown.saved}; save a copy as"
        dialog = TextDialog(title, shown.file_name(), h5ad_fault)
        path = await self.app.push_screen_wait(dialog)
        if path and self._save(shown.output, Path(path).expanduser()):
            shown.saved = path
            self._show()

    def _save(self, source: Path, target: Path) -> bool:
        try:
            with replacing(target) as partial:
                shutil.copyfile(source, partial)
        except OSError as error:
            self.notify(f"{target}: {error.strerror}", severity="error")
            return False
        self.notify(f"saved {target}")
        return True

    @property
    def n_unsaved(self) -> int:
        """Number of generated sets that leaving the dashboard would discard."""
        return sum(not one.saved and one.output is not None for one in self.sets)

    def action_back(self) -> None:
        """Leave a field, show all genes, or leave the screen."""
        box = self.filter
        if isinstance(self.focused, Input) or box.value:
            if self.focused is box or not isinstance(self.focused, Input):
                box.close()
            self.focus_rows()
        else:
            super().action_back()

    def on_unmount(self) -> None:
        """Remove cells that were not saved."""
        self.discard()

    def discard(self) -> None:
        """Remove the files of this screen."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _gene_table(name: str) -> DataTable[Text]:
    return DataTable(
        id=name,
        cursor_type="row",
        header_height=2,
        zebra_stripes=True,
        cursor_foreground_priority="renderable",
    )
