"""Colours: dark, light, and one that people with any colour vision can tell apart.

Colour is never the only sign: curves are named at their ends, states are words.
"""

from textual.theme import Theme

__all__ = ["DEFAULT_THEME", "THEMES", "series_colours"]

DEFAULT_THEME = "tfx-dark"

THEMES = (
    Theme(
        name="tfx-dark",
        primary="#7aa2f7", secondary="#9aa5ce", accent="#e0af68", foreground="#d5d9e8",
        background="#11131a", surface="#171a23", panel="#222633",
        success="#9ece6a", warning="#e0af68", error="#f7768e", dark=True,
    ),
    Theme(
        name="tfx-light",
        primary="#2457b8", secondary="#45507a", accent="#8a5a00", foreground="#1c2030",
        background="#fbfbfd", surface="#f1f2f6", panel="#e2e5ee",
        success="#2f7d32", warning="#8a5a00", error="#b3261e", dark=False,
    ),
    # Series colours of Okabe & Ito (2008).
    Theme(
        name="tfx-colour-blind",
        primary="#56b4e9", secondary="#a9b4c2", accent="#f0e442", foreground="#e6e6e6",
        background="#101214", surface="#181b1f", panel="#252a30",
        success="#56b4e9", warning="#f0e442", error="#d55e00", dark=True,
    ),
)  # fmt: skip

_SERIES = {
    "tfx-dark": (
        "#7aa2f7", "#e0af68", "#9ece6a", "#f7768e", "#bb9af7", "#7dcfff", "#ff9e64", "#c0caf5",
    ),
    "tfx-light": (
        "#2457b8", "#b06000", "#2f7d32", "#b3261e", "#7b3fb5", "#00727a", "#8c4a2f", "#454b66",
    ),
    "tfx-colour-blind": (
        "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#bbbbbb",
    ),
}  # fmt: skip


def series_colours(theme: str) -> tuple[str, ...]:
    """Return the colours of curves, in the order to use them; of a foreign theme the dark ones."""
    return _SERIES.get(theme, _SERIES[DEFAULT_THEME])
