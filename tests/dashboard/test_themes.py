"""Contrasts of every theme, in true colour and in the palette of 256 colours."""

import itertools

import pytest
from rich.color import Color, ColorSystem

from tfx_cli.dashboard.themes import THEMES, n_series_colours, series_colour


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
def test_texts_and_marks_have_contrast_and_curves_differ(theme, drawn):
    grounds = [drawn(one) for one in (theme.background, theme.surface, theme.panel)]
    for ground in grounds:
        assert max(ground) - min(ground) < 10  # no navy bars
    roles = ["primary", "secondary", "accent", "foreground", "success", "warning", "error"]
    for role, ground in itertools.product(roles, grounds):
        assert contrast(drawn(getattr(theme, role)), ground) >= 4.5, role
    curves = [series_colour(theme.name, n) for n in range(n_series_colours(theme.name))]
    for curve, ground in itertools.product(curves, grounds):
        assert contrast(drawn(curve), ground) >= 3.0, curve
    assert len({drawn(curve) for curve in curves}) == len(curves)
