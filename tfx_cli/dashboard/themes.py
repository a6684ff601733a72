"""Colours: dark, light, and one that people of any colour vision can distinguish.

Colour is never the only sign: curves are named at their ends, states are words.
"""

from textual.theme import Theme

DEFAULT_THEME = "tfx-dark"


def _theme(name: str, *, base: str, text: str, states: str, dark: bool) -> Theme:
    background, surface, panel = base.split()
    primary, secondary, accent, foreground = text.split()
    success, warning, error = states.split()
    return Theme(
        name=name,
        primary=primary,
        secondary=secondary,
        accent=accent,
        foreground=foreground,
        background=background,
        surface=surface,
        panel=panel,
        success=success,
        warning=warning,
        error=error,
        dark=dark,
    )


THEMES = (
    _theme(
        "tfx-dark",
        base="#11131a #171a23 #222633",
        text="#7aa2f7 #9aa5ce #e0af68 #d5d9e8",
        states="#9ece6a #e0af68 #f7768e",
        dark=True,
    ),
    _theme(
        "tfx-light",
        base="#fbfbfd #f1f2f6 #e2e5ee",
        text="#2457b8 #45507a #8a5a00 #1c2030",
        states="#2f7d32 #8a5a00 #b3261e",
        dark=False,
    ),
    _theme(
        "tfx-colour-blind",
        base="#101214 #181b1f #252a30",
        text="#56b4e9 #a9b4c2 #f0e442 #e6e6e6",
        states="#56b4e9 #f0e442 #d55e00",
        dark=True,
    ),
)
#: Colours of curves; the last row is that of Okabe & Ito (2008).
_SERIES = {
    "tfx-dark": "#7aa2f7 #e0af68 #9ece6a #f7768e #bb9af7 #7dcfff #ff9e64 #c0caf5",
    "tfx-light": "#2457b8 #b06000 #2f7d32 #b3261e #7b3fb5 #00727a #8c4a2f #454b66",
    "tfx-colour-blind": "#56b4e9 #e69f00 #009e73 #cc79a7 #f0e442 #0072b2 #d55e00 #bbbbbb",
}


def series_colours(theme: str) -> list[str]:
    """Return the colours of curves, in the order to use them; of an unknown theme the dark ones."""
    return _SERIES.get(theme, _SERIES[DEFAULT_THEME]).split()
