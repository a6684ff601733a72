"""What the screens share on which phenotypes are chosen: a row for each phenotype of the model of a run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from textual import work

from core.errors import TfxError
from core.model.reference import ControlTokens
from tfx_cli.dashboard.base_screen import DashboardScreen
from tfx_cli.dashboard.dialogs import ChoiceDialog
from tfx_cli.dashboard.token_row import TokenRow


class PickerScreen(DashboardScreen):
    """A screen with rows of phenotypes; without a model there are none, and ``problem`` says why."""

    #: The class of the rows.
    ROW: ClassVar[type[TokenRow]] = TokenRow

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_path = run
        self.tokens: ControlTokens | None = None
        self.problem = ""
        try:
            self.tokens = ControlTokens.read(Path(run) / "model")
        except TfxError as error:
            self.problem = str(error)

    def make_rows(self) -> Iterator[TokenRow]:
        names = {} if self.tokens is None else self.tokens.phenotypes
        longest = min(max(map(len, names), default=0), 16)
        for name, values in names.items():
            yield self.ROW(name, values, label_width=longest)

    def enter_label(self) -> str:
        return "Values" if isinstance(self.focused, TokenRow) else ""

    def rows(self) -> list[TokenRow]:
        return list(self.query(TokenRow))

    def focus_rows(self) -> None:
        for row in self.rows()[:1]:
            row.focus()

    def values(self) -> dict[str, str]:
        """Return the chosen value of each phenotype that has one."""
        return {row.phenotype: row.value for row in self.rows() if row.value is not None}

    def show_counts(self, tokens: ControlTokens, values: Mapping[str, str]) -> None:
        """Count in each row the training cells of its values, among those that have the other values."""
        for row in self.rows():
            others = {name: value for name, value in values.items() if name != row.phenotype}
            row.counts = tokens.counts_of(row.phenotype, others)

    @work
    async def on_token_row_list_requested(self, event: TokenRow.ListRequested) -> None:
        row = event.row
        dialog = ChoiceDialog(row.phenotype, row.options(), chosen=row.choice)
        if (choice := await self.app.push_screen_wait(dialog)) is not None:
            row.choice = choice
