"""Figures without their content, for tests of what stands around them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine


@contextmanager
def blank_figures() -> Iterator[Callable[..., None]]:
    """Save figures empty: drawing takes most of the time of an evaluation. Give what saves them whole."""
    save = Figure.savefig

    def save_blank(figure, *arguments, **options):
        figure.clear()
        save(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_blank)
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda *_: None)
        yield save
