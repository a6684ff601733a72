"""The control-token picker: choose phenotypes, generate cells, see them beside real ones."""

import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import DataTable, Input, Static, TabPane

from core.errors import TfxError
from core.model.reference import ControlTokens
from tfx_cli.dashboard.base_screen import DashboardScreen
from tfx_cli.dashboard.cells_texts import (
    GENE_COLUMNS,
    MOVED_COLUMNS,
    GeneMeans,
    depth_histograms,
    fidelity_content,
    gene_rows,
    moved_rows,
    points_of,
)
from tfx_cli.dashboard.choice_screen import ChoiceScreen
from tfx_cli.dashboard.curve import CurveSeries, CurveView
from tfx_cli.dashboard.keymap import bindings_of
from tfx_cli.dashboard.panes import Panes
from tfx_cli.dashboard.run_texts import bar
from tfx_cli.dashboard.save_screen import SaveScreen
from tfx_cli.dashboard.scatter import PointSet, ScatterView
from tfx_cli.dashboard.themes import series_colours
from tfx_cli.dashboard.token_row import NOT_SPECIFIED, SAMPLED, TokenRow, choice_text
from tfx_cli.options import phenotype_arguments

__all__ = ["GenerateScreen"]

#: Number fields: id, label, default, whether it is an integer.
_FIELDS = (
    ("cells", "cells", "200", True), ("steps", "steps", "", True),
    ("temperature", "temp.", "", False), ("guidance", "guidance", "", False),
    ("seed", "seed", "0", True),
)  # fmt: skip


class GenerateScreen(DashboardScreen):
    """Pick control tokens of a model and generate.

    Parameters
    ----------
    run
        The run folder; its model is used.
    """

    NAME = "generate"
    AUTO_FOCUS = ""  # keys are for the screen until a token has the focus
    BINDINGS = bindings_of("generate")
    DEFAULT_CSS = """
    GenerateScreen .body { layout: vertical; }
    GenerateScreen.-normal .body, GenerateScreen.-wide .body { layout: horizontal; }
    GenerateScreen #picker { height: auto; width: 1fr; background: $surface; }
    GenerateScreen.-normal #picker, GenerateScreen.-wide #picker { height: 1fr; width: 52;
        margin-right: 1; padding-top: 1; }
    GenerateScreen.-wide #picker { width: 64; }
    GenerateScreen #tokens { height: auto; max-height: 8; }
    GenerateScreen.-tall #tokens { max-height: 20; }
    GenerateScreen .numbers { height: auto; padding: 0 1; layout: grid; grid-size: 5 1;
        grid-columns: 1fr; grid-gutter: 0 1; }
    GenerateScreen.-normal .numbers, GenerateScreen.-wide .numbers { margin-top: 1; }
    GenerateScreen .field { height: 2; }
    GenerateScreen .field Static { height: 1; color: $secondary; }
    GenerateScreen .field Input { height: 1; border: none; padding: 0; background: $panel; }
    GenerateScreen #match { padding: 0 1; height: auto; }
    GenerateScreen #progress { padding: 0 1; height: auto; min-height: 1; }
    GenerateScreen.-normal #match, GenerateScreen.-wide #match { margin-top: 1; }
    GenerateScreen #results { height: 1fr; width: 1fr; }
    GenerateScreen DataTable { height: 1fr; background: $background; }
    GenerateScreen .fidelity { height: auto; padding: 0 1; }
    GenerateScreen #side-fidelity { display: none; margin-top: 1; color: $secondary; }
    GenerateScreen.-normal #side-fidelity, GenerateScreen.-wide #side-fidelity { display: block; }
    GenerateScreen.-normal #fidelity, GenerateScreen.-wide #fidelity { display: none; }
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_path = run
        self._tokens: ControlTokens | None = None
        self._problem = ""
        self._number = 0
        self._state = ""  # "", "loading", "drawing", "failed"
        self._status = Content("")
        self._result: Mapping[str, Any] | None = None
        self._before: Mapping[str, Any] | None = None
        self._asked: Mapping[str, Any] = {}
        self._shows_moved = False
        self._folder = Path(tempfile.mkdtemp(prefix="tfx-cells-"))
        try:
            self._tokens = ControlTokens.read(Path(run) / "model")
        except TfxError as error:
            self._problem = str(error)

    def make_body(self) -> ComposeResult:
        """Lay out picker and results."""
        with Container(classes="body"):
            with Vertical(id="picker"):
                with Vertical(id="tokens"):
                    yield from self._token_rows()
                with Container(classes="numbers"):
                    for name, label, default, is_integer in _FIELDS:
                        with Vertical(classes="field"):
                            yield Static(label, markup=False)
                            value = self._default(name, default)
                            kind = "integer" if is_integer else "number"
                            yield Input(value, id=f"field-{name}", type=kind, compact=True)  # type: ignore[arg-type]
                yield Static("", id="match", markup=False)
                yield Static("", id="progress", markup=False)
                yield Static("", id="side-fidelity", classes="fidelity", markup=False)
            with Panes(initial="genes", id="results"):
                with TabPane("1 Genes", id="genes"):
                    yield DataTable(
                        id="gene-table", cursor_type="row", zebra_stripes=True,
                        cursor_foreground_priority="renderable",
                    )  # fmt: skip
                with TabPane("2 Means", id="means"):
                    yield ScatterView(
                        has_diagonal=True, id="mean-scatter", empty="press g to generate"
                    )
                with TabPane("3 Cells", id="cells"):
                    yield ScatterView(has_ticks=False, id="embedding", empty="press g to generate")
                with TabPane("4 Genes per cell", id="depth"), Vertical():
                    yield CurveView(
                        "", id="depth-curve", x_name="genes", empty="press g to generate",
                        tells_last=False,
                    )  # fmt: skip
                    yield Static("", id="fidelity", classes="fidelity", markup=False)
                with TabPane("5 Moved", id="moved"):
                    yield DataTable(
                        id="moved-table", cursor_type="row", zebra_stripes=True,
                        cursor_foreground_priority="renderable",
                    )  # fmt: skip

    def _token_rows(self) -> ComposeResult:
        if self._tokens is None:
            yield Static(f" {self._problem}", markup=False)
            return
        longest = min(max((len(name) for name in self._tokens.phenotypes), default=0), 16)
        for name, values in self._tokens.phenotypes.items():
            yield TokenRow(name, values, label_width=longest)

    def _default(self, name: str, default: str) -> str:
        known = self._tokens.generate.get(name) if self._tokens is not None else None
        return default if known is None or default else f"{known:g}"

    def on_mount(self) -> None:
        """Begin at the first token, with counts."""
        self._show_counts()
        self._show()
        rows = self._rows()
        if rows:
            rows[0].focus()

    def _rows(self) -> list[TokenRow]:
        return list(self.query(TokenRow))

    # -- the picker

    def _wanted(self) -> dict[str, str]:
        return {row.phenotype: row.value for row in self._rows() if row.value is not None}

    def _request(self) -> dict[str, str]:
        """Return what to ask for; what is left out is drawn from matching real cells."""
        wanted = self._wanted()
        for row in self._rows():
            if row.choice == NOT_SPECIFIED:
                wanted[row.phenotype] = f"[NO_{row.phenotype.upper()}]"
        return wanted

    def on_token_row_changed(self) -> None:
        """Count again."""
        self._show_counts()

    def _show_counts(self) -> None:
        if self._tokens is None or not self.is_laid_out:
            return
        wanted = self._wanted()
        for row in self._rows():
            others = {name: value for name, value in wanted.items() if name != row.phenotype}
            row.counts = self._tokens.counts_of(row.phenotype, others)
        count = self._tokens.count(wanted)
        described = ", ".join(f"{name} = {value}" for name, value in wanted.items()) or "any cell"
        lines: list[Content] = [
            Content.assemble(
                (f"{count:,}", "bold"), f" of {self._tokens.n_cells:,} training cells: {described}"
            )
        ]
        if wanted and count == 0:
            lines.append(Content.styled(
                "0 real cells match: the model composes what it learnt of each value, and there is "
                "nothing to compare with", "$warning",
            ))  # fmt: skip
        elif wanted and count < 20:
            lines.append(Content.styled("fewer than 20: expect guesswork", "$warning"))
        if self._tokens.is_simulated:
            lines.append(
                Content.styled("trained on simulated cells: no real biology", "$secondary")
            )
        self.query_one("#match", Static).update(Content("\n").join(lines))

    def on_token_row_asked(self, event: TokenRow.Asked) -> None:
        """List the values of a phenotype."""
        self._choose(event.row, f"{event.row.phenotype}")

    def _choose(self, row: TokenRow, title: str, *, then_generate: bool = False) -> None:
        options = [
            (choice, choice_text(row.phenotype, choice, row.values), "")
            for choice in (SAMPLED, NOT_SPECIFIED)
        ]
        options += [
            (code, value, f"{row.counts.get(value, 0):,} real cells")
            for code, value in enumerate(row.values)
        ]

        def take(choice: int | None) -> None:
            if choice is not None:
                row.choice = choice
                if then_generate:
                    self._shows_moved = True
                    self.action_go()

        self.app.push_screen(ChoiceScreen(title, options, chosen=row.choice), take)

    # -- generating

    @property
    def is_busy(self) -> bool:
        """Whether cells are being made."""
        return self._state in ("loading", "drawing")

    def _numbers(self) -> dict[str, float | int] | None:
        """Read the number fields; None where one is wrong, which is said."""
        found: dict[str, float | int] = {}
        for name, label, _, is_integer in _FIELDS:
            text = self.query_one(f"#field-{name}", Input).value.strip()
            if not text:
                continue
            try:
                found[name] = int(text) if is_integer else float(text)
            except ValueError:
                self.notify(f"{label}: '{text}' is not a number", severity="error", markup=False)
                return None
        return found

    def action_go(self) -> None:
        """Generate the cells that the picker says."""
        if self._tokens is None:
            self.notify(self._problem, severity="error", markup=False)
            return
        if self.is_busy:
            self.notify("cells are being generated; k cancels", markup=False)
            return
        numbers = self._numbers()
        if numbers is None:
            return
        self._number += 1
        self._asked = {
            "id": self._number,
            "request": self._request(),
            "unspecified": "sample",
            "output": str(self._folder / f"cells-{self._number}.h5ad"),
            **numbers,
        }
        self._state = "loading"
        self._status = Content("starting the generating process (a few seconds)...")
        self._show()
        self.dashboard.send_to_generator(self.run_path, self._asked)

    def action_cancel(self) -> None:
        """Stop generating."""
        if not self.is_busy:
            self.notify("nothing is being generated", markup=False)
            return
        self.dashboard.send_to_generator(self.run_path, {"cancel": self._number})
        self._status = Content("cancelling...")
        self._show()

    def action_flip(self) -> None:
        """Change one token, generate with the same seed, and see which genes move."""
        rows = self._rows()
        if self._result is None:
            self.notify(
                "generate first (g); f then changes one token of that request", markup=False
            )
            return
        chosen = next((row for row in rows if row.has_focus), None)
        if chosen is None or chosen.value is None:
            chosen = next((row for row in rows if row.value is not None), rows[0] if rows else None)
        if chosen is None:
            return
        if len(chosen.values) == 2 and chosen.value is not None:
            chosen.choice = 1 - chosen.choice
            self._shows_moved = True
            self.action_go()
        else:
            now = choice_text(chosen.phenotype, chosen.choice, chosen.values)
            self._choose(chosen, f"{chosen.phenotype}: from {now} to", then_generate=True)

    def take_event(self, event: Mapping[str, Any]) -> None:
        """Take an event of the generating process."""
        kind = event.get("event")
        if kind == "loading":
            self._status = Content("loading the model...")
        elif kind == "ready":
            self._status = Content("the model is loaded")
        elif kind == "exit":
            if self.is_busy:
                self._fail(str(event.get("message") or "the generating process ended"))
        elif event.get("id") not in (self._number, None):
            return
        elif kind == "progress":
            self._state = "drawing"
            done, total = int(event.get("done") or 0), int(event.get("total") or 1)
            share = done / max(total, 1)
            self._status = Content.assemble(
                bar(share, 24), f" {done:,} of {total:,} cells   k cancels"
            )
        elif kind == "cancelled":
            self._state, self._status = "", Content("cancelled")
        elif kind == "error":
            self._fail(str(event.get("message")))
        elif kind == "cells":
            self._take_cells(event)
        self._show()

    def _fail(self, message: str) -> None:
        self._state = "failed"
        self._status = Content.styled(message, "$error")

    def _take_cells(self, event: Mapping[str, Any]) -> None:
        self._before, self._result = self._result, {**event, "asked": self._asked}
        self._state = ""
        seconds = event.get("seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        self._status = Content.assemble(
            (f"✔ {event.get('cells')} cells{took}", "$success"), "   w saves, f flips a token"
        )
        profile = event.get("profile") or {}
        self._show_result(profile)
        if self._shows_moved:
            self.query_one("#results", Panes).choose("moved")
            self._shows_moved = False

    # -- drawing

    def _show(self) -> None:
        if not self.is_laid_out:
            return
        name = Path(self.run_path).name
        self.set_bar(Content.assemble(("generate", "bold"), f"  cells of the model of {name}"))
        self.query_one("#progress", Static).update(self._status)

    def _show_result(self, profile: Mapping[str, Any]) -> None:
        self._fill("#gene-table", GENE_COLUMNS, gene_rows(profile, self._bar_colours()))
        means = GeneMeans(profile)
        r = means.r
        self.query_one("#mean-scatter", ScatterView).show(
            [PointSet(f"{len(means.names)} genes", means.real, means.generated, 0)],
            title="generated over real mean, log1p per 10k"
            + ("" if r is None else f", r = {r:.3f}"),
            x_name="real",
        )
        embedding = profile.get("embedding")
        embedding = embedding if isinstance(embedding, dict) else {}
        real, generated = points_of(embedding.get("real")), points_of(embedding.get("generated"))
        self.query_one("#embedding", ScatterView).show(
            [
                PointSet(f"{len(real[0])} real", *real, 1),
                PointSet(f"{len(generated[0])} generated", *generated, 0),
            ],
            title="principal components of real cells",
        )
        self.query_one("#depth-curve", CurveView).show(
            [
                CurveSeries(name, x, y, 1 if name == "real" else 0)
                for name, x, y in depth_histograms(profile)
            ],
            title="share of cells by detected genes",
        )
        for text in self.query(".fidelity").results(Static):
            text.update(fidelity_content(profile))
        before = (self._before or {}).get("profile")
        if before is not None:
            rows = moved_rows(before, profile, self._bar_colours())
            self._fill("#moved-table", MOVED_COLUMNS, rows)

    def _fill(self, name: str, columns: tuple[str, ...], rows: list[list[Text]]) -> None:
        """Fill a table, without its bars where they do not fit."""
        table = self.query_one(name, DataTable)
        shown = len(columns) if self.query_one("#results").size.width >= 72 else len(columns) - 1
        table.clear(columns=True)
        table.add_columns(*columns[:shown])
        for row in rows:
            table.add_row(*row[:shown])

    def _bar_colours(self) -> tuple[str, str]:
        colours = series_colours(self.app.theme)
        return colours[1], colours[0]

    def action_pane(self, name: str) -> None:
        """Switch to a pane of results."""
        self.query_one("#results", Panes).choose(name)

    # -- keeping

    def command(self, asked: Mapping[str, Any], output: str) -> str:
        """Return the command line that makes the cells of a request."""
        request = asked.get("request") or {}
        arguments = ["tfx", "generate", "--run", self.run_path, *phenotype_arguments(request)]
        arguments += ["-n", str(asked.get("cells", 200))]
        for name in ("steps", "temperature", "guidance", "seed"):
            if name in asked:
                arguments += [f"--{name}", f"{asked[name]:g}"]
        return shlex.join([*arguments, "-o", output])

    def _file_name(self, asked: Mapping[str, Any]) -> str:
        request = asked.get("request") or {}
        words = [value for value in request.values() if not value.startswith("[NO_")]
        name = "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words)
        return f"{name or 'generated'}.h5ad"

    def action_copy(self) -> None:
        """Copy the command line of the last request."""
        if not self._asked:
            self.notify("generate first (g)", markup=False)
            return
        command = self.command(self._asked, self._file_name(self._asked))
        self.app.copy_to_clipboard(command)
        self.notify(command, title="copied", markup=False)

    def action_save(self) -> None:
        """Save the cells as an .h5ad file."""
        output = (self._result or {}).get("output")
        if not isinstance(output, str) or not Path(output).is_file():
            self.notify("generate first (g)", markup=False)
            return

        def take(path: str | None) -> None:
            if path:
                self._save(Path(output), Path(path).expanduser())

        # Named by what these cells were asked for: another request may be under way.
        name = self._file_name((self._result or {}).get("asked") or {})
        self.app.push_screen(SaveScreen("save the generated cells as", name), take)

    def _save(self, source: Path, target: Path) -> None:
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.copyfile(source, partial)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self.notify(f"{target}: {error.strerror}", severity="error", markup=False)
            return
        self.notify(f"saved {target}", markup=False)

    def action_back(self) -> None:
        """Back to where one came from."""
        if isinstance(self.focused, Input):
            rows = self._rows()
            if rows:
                rows[0].focus()
            return
        self.dashboard.close_generate()

    def on_unmount(self) -> None:
        """Remove cells that were not saved."""
        shutil.rmtree(self._folder, ignore_errors=True)
