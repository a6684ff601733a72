"""Whether the arrays of a model folder have the shapes that its records promise.

Weights are judged by the header of their file, so that nothing is built or read that would not fit:
a header that promises terabytes costs nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import ConfigurationError, DataError
from core.model.cell_model import TfxModel
from core.model.configuration import TfxConfig
from core.model.reference import SIZE_QUANTILES
from core.renamed import current_tensors

__all__ = ["check_arrays", "check_weights"]

_COPY = "copy the model folder again"
#: As the format itself allows.
_LARGEST_HEADER = 10**8
_Array = NDArray[Any]


def check_weights(path: Path, config: TfxConfig) -> None:
    """Refuse weights that are not those of the configuration.

    Parameters
    ----------
    path
        ``model.safetensors``.
    config
        The configuration beside it.

    Raises
    ------
    DataError
        It is no safetensors file, or tensors are missing, unknown, or of another shape.
    """
    found = current_tensors(_read_shapes(path))
    # A layer has weights: building more of them than there are tensors would take for ever.
    expected = _promised_shapes(config, path) if config.layers <= len(found) else None
    if expected is None:
        message = (
            f"{path}: too few tensors for the {config.layers:,} layers of config.json; {_COPY}"
        )
        raise DataError(message)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            message = (
                f"{path}: '{name[:100]}' is {_shape(found.get(name))}, config.json makes it "
                f"{_shape(expected.get(name))}; {_COPY}"
            )
            raise DataError(message)


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the header names."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            message = f"{path}: not a safetensors file; {_COPY}"
            raise DataError(message)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        return {
            name: tuple(int(side) for side in entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        message = f"{path}: not a safetensors file; {_COPY}"
        raise DataError(message) from None


def _promised_shapes(config: TfxConfig, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):  # shapes without memory
            network = TfxModel(config)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    except ConfigurationError as error:
        message = f"{path.parent}: config.json describes no model ({error}); {_COPY}"
        raise DataError(message) from error
    except (RuntimeError, ValueError, OverflowError) as error:
        message = f"{path.parent}: config.json describes no model ({_first_line(error)}); {_COPY}"
        raise DataError(message) from error


def check_arrays(
    folder: Path,
    config: TfxConfig,
    *,
    n_genes: int,
    kind: str,
    encoding: Mapping[str, _Array],
    reference: Mapping[str, _Array],
) -> None:
    """Refuse arrays that do not fit the configuration.

    Parameters
    ----------
    folder
        For the message.
    config
        The network's.
    n_genes, kind
        Of ``genes.json`` and ``encoding.json``.
    encoding, reference
        Arrays of ``encoding.safetensors`` and ``reference.safetensors``, by name.

    Raises
    ------
    DataError
        The first thing that does not fit.
    """
    if n_genes != config.n_genes:
        _refuse(folder, f"genes.json has {n_genes:,} genes, config.json {config.n_genes:,}")
    if kind != config.kind:
        _refuse(folder, f"encoding.json says '{kind}', config.json '{config.kind}'")
    n_values, n_phenotypes = sum(config.phenotype_sizes), len(config.phenotype_sizes)
    n_combinations = len(reference["counts"]) if "counts" in reference else 0
    edges = encoding.get("edges", np.empty(0))
    per_gene = (n_genes,) if edges.ndim == 2 else ()
    of_bins, of_values = (n_genes, config.n_bins), (n_values, n_genes)
    n_quantiles = encoding["quantiles"].shape[-1] if "quantiles" in encoding else 0
    promised: dict[str, tuple[Mapping[str, _Array], tuple[int, ...], str]] = {
        "edges": (encoding, (*per_gene, config.n_bins - 1), "f"),
        "quantiles": (encoding, (*of_bins, max(n_quantiles, 1)), "f"),
        "means": (encoding, of_bins, "f"),
        "counts": (reference, (max(n_combinations, 1),), "i"),
        "combinations": (reference, (n_combinations, n_phenotypes), "i"),
        "bin_counts": (reference, of_bins, "i"),
        "detection": (reference, of_values, "f"),
    }
    for name, (arrays, shape, letter) in promised.items():
        _check_array(folder, name, arrays.get(name), shape, letter)
    _check_array(folder, "means", reference.get("means"), of_values, "f")
    for name in ("genes_per_cell", "library_size"):
        if {"genes_per_cell", "library_size"} & reference.keys():  # which older folders lack
            _check_array(folder, name, reference.get(name), (n_combinations, SIZE_QUANTILES), "f")
            if np.any(np.diff(reference[name], axis=-1) < 0):
                _refuse(folder, f"the quantiles of '{name}' decrease")
    if np.any(np.diff(edges, axis=-1) < 0):
        _refuse(folder, "the edges of the bins decrease")
    codes = reference["combinations"]
    if np.any(codes < -1) or np.any(codes >= np.array(config.phenotype_sizes, dtype=np.int64)):
        _refuse(folder, "a combination of phenotypes names a value that there is not")
    if np.any(reference["counts"] < 0) or np.any(reference["bin_counts"] < 0):
        _refuse(folder, "cells are counted below zero")


def _check_array(
    folder: Path, name: str, array: _Array | None, shape: tuple[int, ...], letter: str
) -> None:
    kind = {"f": "decimal", "i": "whole"}[letter]
    if array is None or array.shape != shape or array.dtype.kind != letter:
        found = None if array is None else array.shape
        _refuse(folder, f"'{name}' is {_shape(found)}, and must be {_shape(shape)} {kind} numbers")
    elif letter == "f" and not np.isfinite(array).all():
        _refuse(folder, f"'{name}' holds NaN or infinity")


def _refuse(folder: Path, complaint: str) -> None:
    message = f"{folder}: {complaint}; {_COPY}"
    raise DataError(message)


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "not there"
    return " x ".join(f"{side:,}" for side in shape) or "one number"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
