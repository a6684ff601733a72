"""Colours: dark, light, one that people of any colour vision can distinguish, and one without colours.

Backgrounds are of the palette of 256 colours, in which a terminal without true colour shows its nearest; texts
and marks have enough contrast in both (tests/dashboard/test_themes.py).
Colour is never the only sign: curves are named at their ends, states are words with a sign.
"""

from typing import Any

from rich.color import ColorSystem
from rich.style import Style
from textual.color import Color
from textual.content import Content
from textual.theme import Theme

from core.runlog.schema import WORK_STATES

DEFAULT_THEME = "tfx-dark"
_ROLES = "background surface panel primary secondary accent foreground success warning error"
_COLOURS = {
    "tfx-dark": "#121212 #1c1c1c #262626 #7aa2f7 #9aa5ce #e0af68 #d5d9e8 #9ece6a #e0af68 #f7768e",
    "tfx-light": "#ffffff #eeeeee #e4e4e4 #005faf #4e4e4e #5f5f00 #1c1c1c #005f00 #5f5f00 #af0000",
    "tfx-colour-blind": "#121212 #1c1c1c #262626 #56b4e9 #a9b4c2 #f0e442 #e6e6e6 #56b4e9 #f0e442 #ff8700",
    "tfx-mono": "#121212 #1c1c1c #262626 #ffffff #b2b2b2 #e4e4e4 #dadada #dadada #ffffff #ffffff",
}
#: Colours of curves and of their names; for colour-blind people those of Okabe & Ito (2008), four of them lighter.
_SERIES = {
    "tfx-dark": "#7aa2f7 #e0af68 #9ece6a #f7768e #bb9af7 #7dcfff #ff9e64 #c0caf5 #2ac3a2 #ff79c6 #d9d05b #af875f",
    "tfx-light": "#2457b8 #872d00 #005f00 #b3261e #8700af #006a7a #303030 #454b66 #a3145f #5f5f00 #5f00d7 #5f0000",
    "tfx-colour-blind": "#56b4e9 #e69f00 #00af87 #cc79a7 #f0e442 #5f87ff #ff5f00 #bbbbbb",
    "tfx-mono": "#ffffff #b2b2b2 #949494 #d0d0d0",
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


def heat_style(background: Color, colour: Color, fraction: float) -> str:
    """Return the style of a place of a heat map: a fraction of a colour, and a text that can be read on it.

    Where the nearest of 256 colours needs another text, that colour is the place's in true colour, too.
    """
    heat = background.blend(colour, 0.15 + 0.85 * fraction, alpha=1.0)
    nearest = Color(*heat.rich_color.downgrade(ColorSystem.EIGHT_BIT).get_truecolor())
    if _needs_white(heat) != _needs_white(nearest):
        heat = nearest
    return f"{'#ffffff' if _needs_white(heat) else '#000000'} on {heat.hex}"


def _needs_white(ground: Color) -> bool:
    """Return whether white has more contrast with a colour than black (WCAG 2: both have 4.58 at 0.179)."""
    linear = [
        one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4
        for one in ground.normalized
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179


def faint_style(background: Color, foreground: Color) -> Style:
    """Return the style of ticks and remarks of a picture."""
    return Style(color=background.blend(foreground, 0.75).rich_color)


def bar(fraction: float, width: int) -> Content:
    """Draw a fraction as a bar."""
    full = round(min(max(fraction, 0.0), 1.0) * width)
    return Content.assemble(("█" * full, "$primary"), ("░" * (width - full), "$secondary"))
