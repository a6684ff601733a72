"""Interactions of genes in the model of a run: results of `tfx interactions` and `tfx perturb`, and a search of edges.

Both commands keep a record of each result in the run folder (`core.interactions.kept`); nothing is computed here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static, TabPane

from core.cells.cell_filter import CellFilter, Condition
from core.errors import TfxError
from core.interactions.kept import KeptNetwork, KeptPerturbation, KeptResult
from core.model.reference import ControlTokens
from core.runlog.schema import AT_WORK, LIVE_STATES
from tfx_cli.dashboard.base_screen import DashboardScreen, FindEdges, Panes, current_key, fill_table
from tfx_cli.dashboard.dialogs import ChoiceDialog
from tfx_cli.dashboard.interactions_texts import (
    about_network,
    about_perturbation,
    edge_rows,
    heat_content,
    phenotypes_content,
    response_rows,
)
from tfx_cli.dashboard.keymap import Key, bindings_of
from tfx_cli.dashboard.run_texts import state_parts
from tfx_cli.dashboard.token_row import SAMPLED, ContextRow, TokenRow
from tfx_cli.dashboard.workspace import WorkspaceView
from tfx_cli.formatting import shortened_middle

#: Fewer cells have no network (`core.interactions.cells`).
_FEWEST_CELLS = 20
_NO_RESULTS = (
    "No results yet. Choose a context with ← → (enter lists the values) and press i: tfx interactions finds the edges among "
    "the genes of the model, in a minute or so. What you write with 'tfx interactions {run} ...' or with "
    "'tfx perturb {run} --knock-out GENE -o FILE' is listed here, too."
)


class _Entry(NamedTuple):
    """A row of the list: a network or a perturbation, and the result that holds it."""

    label: str
    result: KeptResult
    network: KeptNetwork | None
    perturbation: KeptPerturbation | None

    @property
    def n_found(self) -> int:
        one = self.network or self.perturbation
        return 0 if one is None else one.found


def _entries(results: Sequence[KeptResult]) -> Iterator[_Entry]:
    for result in results:
        for network in result.networks:
            yield _Entry(network.context, result, network, None)
        found = result.perturbation
        if found is not None:
            yield _Entry(f"{found.perturbation}; {found.context}", result, None, found)


class InteractionsScreen(DashboardScreen):
    """Choose a context, find its edges, and look at the networks and perturbations of a run."""

    NAME = "interactions"
    BINDINGS = bindings_of("interactions")

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._view: WorkspaceView | None = None
        #: By the key of its row.
        self._entries: dict[str, _Entry] = {}
        #: When the newest result was written; None before the first look.
        self._newest: float | None = None
        self._contrast: Condition | None = None
        self._tokens: ControlTokens | None = None
        self._problem = ""
        try:
            self._tokens = ControlTokens.read(Path(path) / "model")
        except TfxError as error:
            self._problem = str(error)

    def make_body(self) -> ComposeResult:
        with Container(classes="body"):
            with Vertical(id="picker"):
                with VerticalScroll(id="tokens", can_focus=False):
                    names = {} if self._tokens is None else self._tokens.phenotypes
                    longest = min(max(map(len, names), default=0), 16)
                    for name, values in names.items():
                        yield ContextRow(name, values, label_width=longest)
                yield Static("", id="match")
                yield DataTable(id="results", cursor_type="row", zebra_stripes=True)
            with Panes(initial="edges", id="result-panes"):
                with TabPane("1 Edges, genes", id="edges"), Vertical():
                    yield Static("", id="about")
                    yield DataTable(id="edge-table", cursor_type="row", zebra_stripes=True)
                with TabPane("2 Heat map, phenotypes", id="heat"), VerticalScroll(id="heat-scroll"):
                    yield Static("", id="heat-map")

    def on_mount(self) -> None:
        self._show()
        for row in self._rows()[:1]:
            row.focus()

    def current_run(self) -> str:
        return self.path

    def update_view(self, view: WorkspaceView) -> None:
        self._view = view
        run = view.open_runs.get(self.path)
        if run is None or not self.is_laid_out:
            self._show()
            return
        self._entries = {str(place): one for place, one in enumerate(_entries(run.results))}
        newest = max((one.t for one in run.results), default=0.0)
        is_new = self._newest is not None and newest > self._newest
        self._newest = newest
        self._show()
        if is_new:
            self.query_one("#results", DataTable).move_cursor(row=0)
            self._show_result()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    # -- keys
    def offers(self, key: Key) -> bool:
        can_find = self._tokens is not None and (
            self._state not in AT_WORK or self._state in LIVE_STATES
        )
        conditions = {
            "interactions.go": can_find,
            "interactions.contrast": self._tokens is not None,
            "interactions.stop": self._state in AT_WORK,
        }
        return super().offers(key) and conditions.get(key.id, True)

    def enter_label(self) -> str:
        return "Values" if isinstance(self.focused, TokenRow) else ""

    @property
    def _state(self) -> str:
        rows = () if self._view is None else self._view.rows
        return next((row.state for row in rows if row.path == self.path), "")

    def _rows(self) -> list[ContextRow]:
        return list(self.query(ContextRow))

    # -- the context
    @property
    def _where(self) -> CellFilter:
        values = [(row.phenotype, row.value) for row in self._rows()]
        return CellFilter(
            tuple(Condition(name, (value,)) for name, value in values if value is not None)
        )

    def on_token_row_changed(self) -> None:
        """Show the newest network of the context, if there is one."""
        where = self._where
        if self._contrast is not None and self._contrast.name in {
            one.name for one in where.conditions
        }:
            self._contrast = None
        wanted = str(where) or "all cells"
        same = [key for key, one in self._entries.items() if one.label == wanted]
        if same:
            self.query_one("#results", DataTable).move_cursor(row=int(same[0]))
        self._show()

    def on_token_row_list_requested(self, event: TokenRow.ListRequested) -> None:
        row = event.row

        def take(choice: int | None) -> None:
            if choice is not None:
                row.choice = choice

        self.app.push_screen(ChoiceDialog(row.phenotype, row.options(), chosen=row.choice), take)

    def action_contrast(self) -> None:
        """Choose a phenotype, and two of its values."""
        rows = [row for row in self._rows() if len(row.values) > 1]
        names = [(place, row.phenotype, "") for place, row in enumerate(rows)]

        def take(place: int | None) -> None:
            if place == -1:
                self._take_contrast(None)
            elif place is not None:
                self._choose_values(rows[place], ())

        options = [(-1, "no contrast", "one network"), *names]
        self.app.push_screen(ChoiceDialog("contrast between values of", options, chosen=-1), take)

    def _choose_values(self, row: ContextRow, chosen: tuple[str, ...]) -> None:
        """Choose the two values of a contrast, one after the other."""
        if len(row.values) == 2:
            chosen = row.values
        if len(chosen) == 2:
            self._take_contrast(Condition(row.phenotype, chosen))
            return
        left = [one for one in row.options() if one[0] >= 0 and one[1] not in chosen]

        def take(choice: int | None) -> None:
            if choice is not None:
                self._choose_values(row, (*chosen, row.values[choice]))

        title = f"{row.phenotype}: {chosen[0]} and" if chosen else f"{row.phenotype}: first value"
        self.app.push_screen(ChoiceDialog(title, left, chosen=left[0][0]), take)

    def _take_contrast(self, contrast: Condition | None) -> None:
        self._contrast = contrast
        for row in self._rows():
            if contrast is not None and row.phenotype == contrast.name:
                row.choice = SAMPLED
        self._show()

    def action_go(self) -> None:
        """Find the edges of the chosen context in a process of its own."""
        if self._tokens is None:
            self.notify(self._problem, severity="error")
            return
        contrast = "" if self._contrast is None else str(self._contrast)
        self.post_message(FindEdges(self.path, str(self._where), contrast))

    # -- drawing
    def _show(self) -> None:
        if not self.is_laid_out:
            return
        rows = () if self._view is None else self._view.rows
        row = next((row for row in rows if row.path == self.path), None)
        state = [(Path(self.path).name, "bold")] if row is None else state_parts(row)
        self.set_bar(("interactions", "bold"), "  ", *state)
        self.write("match", self._match_content())
        table = self.query_one("#results", DataTable)
        table.display = bool(self._entries)
        room = max(self.query_one("#picker").size.width - 12, 20)
        listed = {
            key: [
                Text(shortened_middle(one.label, room)),
                Text(f"{one.n_found:,}", justify="right"),
            ]
            for key, one in self._entries.items()
        }
        fill_table(table, {"result": Text("result"), "found": Text("found")}, listed)
        self._show_result()

    def _match_content(self) -> Content:
        if self._tokens is None:
            return Content.styled(self._problem, "$warning")
        values = {one.name: one.values[0] for one in self._where.conditions}
        for row in self._rows():
            others = {name: value for name, value in values.items() if name != row.phenotype}
            row.counts = self._tokens.counts_of(row.phenotype, others)
        sides, text = [values], str(self._where) or "all cells"
        if self._contrast is not None:
            sides = [{**values, self._contrast.name: value} for value in self._contrast.values]
            text += f", contrast {self._contrast}"
        counts = [self._tokens.count(side) for side in sides]
        lines = [Content(f"{text}: {' and '.join(f'{one:,}' for one in counts)} training cells")]
        if min(counts) < _FEWEST_CELLS:
            few = f"too few: a network needs {_FEWEST_CELLS} cells of several donors"
            lines.append(Content.styled(few, "$warning"))
        return Content("\n").join(lines)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.id == "results":
            self._show_result()

    def _show_result(self) -> None:
        one = self._entries.get(current_key(self.query_one("#results", DataTable)) or "")
        table = self.query_one("#edge-table", DataTable)
        table.display = one is not None
        if one is None:
            content = Content(_NO_RESULTS.format(run=self.path))
            self.write("about", content)
            self.write("heat-map", content)
        elif one.network is not None:
            self.write("about", about_network(one.network, one.result))
            width = self.query_one("#result-panes").size.width
            heat = heat_content(one.network, width, self.app.theme_variables)
            self.write("heat-map", heat)
            fill_table(table, *edge_rows(one.network))
        elif one.perturbation is not None:
            self.write("about", about_perturbation(one.perturbation, one.result))
            self.write("heat-map", phenotypes_content(one.perturbation))
            fill_table(table, *response_rows(one.perturbation))
