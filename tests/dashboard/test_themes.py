"""Contrasts of every theme, in true colour and in the palette of 256 colours."""

import itertools
import re
from pathlib import Path

import pytest
from rich.color import Color, ColorSystem
from textual.color import Color as TextualColor

from tfx_cli.dashboard import themes
from tfx_cli.dashboard.themes import (
    THEMES,
    faint_style,
    heat_style,
    n_series_colours,
    series_colour,
)

ROLES = ("primary", "secondary", "accent", "foreground", "success", "warning", "error")


def in_true_colour(text):
    return tuple(Color.parse(text).get_truecolor())


def in_256_colours(text):
    """What a terminal of 256 colours draws."""
    return tuple(Color.parse(text).downgrade(ColorSystem.EIGHT_BIT).get_truecolor())


def contrast(one, other):
    """The contrast ratio of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("drawn", [in_true_colour, in_256_colours])
@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_text_has_contrast_on_every_ground_and_curves_differ(theme, drawn):
    """Marks and curves have that of a text: their names are drawn in their colours."""
    grounds = [theme.background, theme.surface, theme.panel]
    for ground in grounds:
        red_green_blue = drawn(ground)
        assert max(red_green_blue) - min(red_green_blue) < 10  # no navy bars
    roles = {name: getattr(theme, name) for name in ROLES}
    curves = [series_colour(theme.name, n) for n in range(n_series_colours(theme.name))]
    foreground = TextualColor.parse(theme.foreground)
    for ground in grounds:
        faint = faint_style(TextualColor.parse(ground), foreground).color.name
        for text in (*roles.values(), *curves, faint):
            assert contrast(drawn(text), drawn(ground)) >= 4.5, (text, ground)
        shaded = [(a + b) / 2 for a, b in zip(drawn(foreground.hex), drawn(ground), strict=True)]
        assert contrast(shaded, drawn(ground)) >= 3, ground  # "▒" covers half of its cell
    assert len({drawn(curve) for curve in curves}) == len(curves)
    for role, percent in itertools.product(("primary", "error"), range(101)):
        heat = TextualColor.parse(roles[role])
        style = heat_style(TextualColor.parse(theme.background), heat, percent / 100)
        text, ground = style.split(" on ")
        assert contrast(drawn(text), drawn(ground)) >= 4.5, style


def test_the_style_sheet_and_the_texts_use_colours_that_are_tested_and_none_is_dimmed():
    """A colour in the style sheet, or "$name" in a text, is a role; dimming would halve its contrast."""
    folder = Path(themes.__file__).parent
    sheet = re.sub(r"/\*.*?\*/", "", (folder / "styles.tcss").read_text(), flags=re.DOTALL)
    used = set(re.findall(r"[{;] *color: *([^;]+);", sheet))
    code = {path.name: path.read_text() for path in folder.glob("*.py")}
    used |= {name for text in code.values() for name in re.findall(r'"(\$[a-z-]+)"', text)}
    assert used <= {f"${role}" for role in ROLES}
    dimmed = {name for name, text in code.items() if re.search(r"\bdim\b", text)}
    assert dimmed <= {"curve_view.py", "picture.py"}  # bands of noisy curves
