"""The data sets that need no file: ``builtin:pbmc68k`` and ``builtin:atlas``.

pbmc68k is real: 700 blood cells (Zheng et al. 2017) that ship with scanpy, scaled values in ``X``
and log-normalised ones in ``raw``. The atlas is simulated (see `core.cells.atlas`). Options follow a
question mark: ``builtin:atlas?cells=4000&seed=1``; ``version=2`` has directed regulation.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from core.cells.file_patterns import BUILTIN_PREFIX
from core.errors import ConfigurationError
from core.wording import did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

_MAX_DIGITS = 12

#: Data set -> option -> default.
_OPTIONS: dict[str, dict[str, int]] = {
    "pbmc68k": {},
    "atlas": {"cells": 12_000, "seed": 0, "version": 1},
}


def load_builtin(spec: str) -> "AnnData":
    """Load or simulate ``builtin:NAME`` or ``builtin:NAME?option=value&option=value``.

    pbmc68k has its ``bulk_labels`` also as ``cell_type``; nothing else is changed. ConfigurationError for
    an unknown data set or option, and for a value that is not a whole number in range.
    """
    name, _, query = spec.removeprefix(BUILTIN_PREFIX).partition("?")
    if not spec.startswith(BUILTIN_PREFIX) or name not in _OPTIONS:
        known = [BUILTIN_PREFIX + one for one in _OPTIONS]
        raise ConfigurationError(f"there is no built-in data set {spec!r}; {_nearest(spec, known)}")
    options = _parse_options(spec, name, query)
    if name == "pbmc68k":
        return _load_pbmc68k()
    from core.cells.atlas.simulation import simulate_atlas  # 30 ms: numpy and pandas

    return simulate_atlas(options["cells"], seed=options["seed"], version=options["version"])


def _parse_options(spec: str, name: str, query: str) -> dict[str, int]:
    options = dict(_OPTIONS[name])
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options:
            raise ConfigurationError(
                f"{spec}: unknown option {key!r}; {_nearest(key, list(options))}"
            )
        if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
            raise ConfigurationError(
                f"{spec}: {key} must be a whole number of 0 or more, not {value!r}; write "
                f"for example {BUILTIN_PREFIX}{name}?{key}={_OPTIONS[name][key]}"
            )
        options[key] = int(value)
    return options


def _load_pbmc68k() -> "AnnData":
    import scanpy  # 2 s

    with warnings.catch_warnings():
        # anndata's notices about the age of the bundled file are nothing a user can act on
        warnings.simplefilter("ignore")
        adata = scanpy.datasets.pbmc68k_reduced()
    adata.obs["cell_type"] = adata.obs["bulk_labels"].copy()
    return adata


def _nearest(name: str, known: Sequence[str]) -> str:
    others = f"choose {' or '.join(known)}" if known else "it takes no options"
    return did_you_mean(name, known, cutoff=0.5) or others
