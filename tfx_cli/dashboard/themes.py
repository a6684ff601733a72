"""Colours: dark, light, and one that people of any colour vision can distinguish.

Colour is never the only sign: curves are named at their ends, states are words with a sign.
"""

from typing import Any

from textual.content import Content
from textual.theme import Theme

from core.runlog.schema import WORK_STATES

DEFAULT_THEME = "tfx-dark"
_ROLES = "background surface panel primary secondary accent foreground success warning error"
_COLOURS = {
    "tfx-dark": "#11131a #171a23 #222633 #7aa2f7 #9aa5ce #e0af68 #d5d9e8 #9ece6a #e0af68 #f7768e",
    "tfx-light": "#fbfbfd #f1f2f6 #e2e5ee #2457b8 #45507a #8a5a00 #1c2030 #2f7d32 #8a5a00 #b3261e",
    "tfx-colour-blind": "#101214 #181b1f #252a30 #56b4e9 #a9b4c2 #f0e442 #e6e6e6 #56b4e9 #f0e442 #d55e00",
}
#: Colours of curves; the last row is that of Okabe & Ito (2008).
_SERIES = {
    "tfx-dark": "#7aa2f7 #e0af68 #9ece6a #f7768e #bb9af7 #7dcfff #ff9e64 #c0caf5 #2ac3a2 #ff79c6 #d9d05b #a0785a",
    "tfx-light": "#2457b8 #b06000 #2f7d32 #b3261e #7b3fb5 #00727a #8c4a2f #454b66 #a3145f #5b6e00 #0091c2 #8c7a2b",
    "tfx-colour-blind": "#56b4e9 #e69f00 #009e73 #cc79a7 #f0e442 #0072b2 #d55e00 #bbbbbb",
}
#: Sign and style of each state.
_STATES = {
    "starting": ("◌", "$success"),
    "running": ("●", "$success"),
    **dict.fromkeys(WORK_STATES, ("◌", "$success")),
    "finished": ("✔", "$primary"),
    "stopped": ("■", "$warning"),
    "failed": ("✖", "$error"),
    "stale": ("?", "$warning"),
    "crashed": ("✖", "$error"),
    "unreadable": ("!", "$error"),
}


def _theme(name: str, colours: str) -> Theme:
    roles: dict[str, Any] = dict(zip(_ROLES.split(), colours.split(), strict=True))
    return Theme(name=name, dark=name != "tfx-light", **roles)


THEMES = tuple(_theme(name, colours) for name, colours in _COLOURS.items())


def n_series_colours(theme: str) -> int:
    """Return the number of colours of curves; of an unknown theme those of the dark one."""
    return len(_SERIES.get(theme, _SERIES[DEFAULT_THEME]).split())


def series_colour(theme: str, place: int) -> str:
    """Return the colour of the curve at a place; beyond the last colour they begin again."""
    colours = _SERIES.get(theme, _SERIES[DEFAULT_THEME]).split()
    return colours[place % len(colours)]


def state_sign(state: str) -> tuple[str, str]:
    """Return a state with its sign, and its style."""
    sign, style = _STATES.get(state, ("?", "$secondary"))
    return f"{sign} {state}", style


def bar(fraction: float, width: int) -> Content:
    """Draw a fraction as a bar."""
    full = round(min(max(fraction, 0.0), 1.0) * width)
    return Content.assemble(("█" * full, "$primary"), ("░" * (width - full), "$secondary"))
