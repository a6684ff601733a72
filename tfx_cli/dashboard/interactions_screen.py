"""Interactions of genes in the model of a run: results of `tfx interactions` and `tfx perturb`, and a search of edges.

Both commands keep a record of each result in the run folder (`core.interactions.kept`); nothing is computed here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import DataTable, Static, TabPane

from core.cells.cell_filter import CellFilter, Condition
from core.interactions.kept import KeptNetwork, KeptPerturbation, KeptResult
from core.runlog.schema import AT_WORK, LIVE_STATES
from tfx_cli.dashboard.base_screen import FindEdges, Panes, current_key, fill_table
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
from tfx_cli.dashboard.picker_screen import PickerScreen
from tfx_cli.dashboard.run_texts import state_parts
from tfx_cli.dashboard.token_row import SAMPLED, ContextRow, TokenRow
from tfx_cli.dashboard.workspace import NOTHING_READ, WorkspaceView
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


class InteractionsScreen(PickerScreen):
    """Choose a context, find its edges, and look at the networks and perturbations of a run."""

    NAME = "interactions"
    BINDINGS = bindings_of("interactions")
    ROW = ContextRow

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self._view = NOTHING_READ
        #: By the key of its row.
        self._entries: dict[str, _Entry] = {}
        #: When the newest result was written; None before the first look.
        self._newest: float | None = None
        self._contrast: Condition | None = None

    def make_body(self) -> ComposeResult:
        with Container(classes="body"):
            with Vertical(id="picker"):
                with VerticalScroll(id="tokens", can_focus=False):
                    yield from self.make_rows()
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
        self.focus_rows()

    def current_run(self) -> str:
        return self.run_path

    def update_view(self, view: WorkspaceView) -> None:
        self._view = view
        run = view.open_runs.get(self.run_path)
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
        can_find = self.tokens is not None and (
            self._state not in AT_WORK or self._state in LIVE_STATES
        )
        conditions = {
            "interactions.go": can_find,
            "interactions.contrast": self.tokens is not None,
            "interactions.stop": self._state in AT_WORK,
        }
        return super().offers(key) and conditions.get(key.id, True)

    @property
    def _state(self) -> str:
        row = self._view.row_of(self.run_path)
        return "" if row is None else row.state

    # -- the context
    @property
    def _where(self) -> CellFilter:
        return CellFilter(tuple(Condition(name, (value,)) for name, value in self.values().items()))

    def on_token_row_changed(self) -> None:
        if self._contrast is not None and self._contrast.name in self.values():
            self._contrast = None
        self._show_known()

    def _show_known(self) -> None:
        """Show the newest network of the context and the contrast, if there is one."""
        sides = [self._where]
        if (contrast := self._contrast) is not None:
            each = [Condition(contrast.name, (value,)) for value in contrast.values]
            sides = [CellFilter((*self._where.conditions, one)) for one in each]
        wanted = " - ".join(str(one) or "all cells" for one in sides)
        same = [key for key, one in self._entries.items() if one.label == wanted]
        if same:
            self.query_one("#results", DataTable).move_cursor(row=int(same[0]))
        self._show()

    @work
    async def action_contrast(self) -> None:
        """Choose a phenotype, and two of its values."""
        rows = [row for row in self.rows() if len(row.values) > 1]
        names = [(place, row.phenotype, "") for place, row in enumerate(rows)]
        options = [(-1, "no contrast", "one network"), *names]
        dialog = ChoiceDialog("contrast between values of", options, chosen=-1)
        place = await self.app.push_screen_wait(dialog)
        if place == -1:
            self._contrast = None
        elif place is not None:
            values = await self._choose_values(rows[place])
            if len(values) < 2:
                return
            self._contrast = Condition(rows[place].phenotype, values)
            rows[place].choice = SAMPLED
        self._show_known()

    async def _choose_values(self, row: TokenRow) -> tuple[str, ...]:
        """Choose two values of a phenotype, one after the other; fewer if the user leaves."""
        chosen: tuple[str, ...] = row.values if len(row.values) == 2 else ()
        while len(chosen) < 2:
            left = [one for one in row.options() if one[0] >= 0 and one[1] not in chosen]
            which = f"{chosen[0]} and" if chosen else "first value"
            dialog = ChoiceDialog(f"{row.phenotype}: {which}", left, chosen=left[0][0])
            choice = await self.app.push_screen_wait(dialog)
            if choice is None:
                return chosen
            chosen = (*chosen, row.values[choice])
        return chosen

    def action_go(self) -> None:
        """Find the edges of the chosen context in a process of its own."""
        if self.tokens is None:
            self.notify(self.problem, severity="error")
            return
        contrast = "" if self._contrast is None else str(self._contrast)
        self.post_message(FindEdges(self.run_path, str(self._where), contrast))

    # -- drawing
    def _show(self) -> None:
        if not self.is_laid_out:
            return
        row = self._view.row_of(self.run_path)
        state = [(Path(self.run_path).name, "bold")] if row is None else state_parts(row)
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
        if self.tokens is None:
            return Content.styled(self.problem, "$warning")
        values = self.values()
        self.show_counts(self.tokens, values)
        sides, text = [values], str(self._where) or "all cells"
        if self._contrast is not None:
            sides = [{**values, self._contrast.name: value} for value in self._contrast.values]
            text += f", contrast {self._contrast}"
        counts = [self.tokens.count(side) for side in sides]
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
            content = Content(_NO_RESULTS.format(run=self.run_path))
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
