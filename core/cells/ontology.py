"""Ontology terms among labels: their ids and names, deprecated terms, and distances.

The ontologies (CL, UBERON, MONDO, HsapDv, MmusDv, PATO, HANCESTRO, EFO) come with the optional package
cellxgene-ontology-guide (extra `ontology`), which reads them from its own files. Without it no label is
a term: `term_id` still recognises the form of an id.
"""

import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ONTOLOGIES = ("CL", "UBERON", "MONDO", "HsapDv", "MmusDv", "PATO", "HANCESTRO", "EFO")
_ID = re.compile(rf"({'|'.join(_ONTOLOGIES)})[:_ ](\d{{4,}})", re.IGNORECASE)
#: Where the names of a phenotype's labels are looked up; ids name their ontology themselves.
_OF_PHENOTYPE = {
    "cell_type": ("CL",),
    "tissue": ("UBERON", "CL"),
    "disease": ("MONDO",),
    "age": ("HsapDv", "MmusDv"),
    "development_stage": ("HsapDv", "MmusDv"),
    "self_reported_ethnicity": ("HANCESTRO",),
}
_OBSOLETE = "obsolete "
#: The term of CELLxGENE for no disease; the other names of PATO are of qualities.
_NORMAL = {("disease", "normal"): "PATO:0000461"}
INSTALL = "pip install 'transformerics[ontology]' lets ids of ontology terms meet their names"


@dataclass(frozen=True)
class Deprecated:
    """A label that is a deprecated term, and the terms that replace it, as "name (id)"."""

    label: str
    term: str
    replacements: tuple[str, ...]


class TermDistances(NamedTuple):
    """How values are related in their ontology; rows and columns are the values."""

    #: (values,), whether each is a term.
    is_term: NDArray[np.bool_]
    #: (values, values), whether one is the other, its ancestor or its descendant.
    is_related: NDArray[np.bool_]
    #: (values, values), steps between them through their nearest common ancestor.
    steps: NDArray[np.float64]


def is_installed() -> bool:
    """Whether the extra `ontology` is installed."""
    return importlib.util.find_spec("cellxgene_ontology_guide") is not None


def install_hint(labels: Iterable[str]) -> str:
    """Return the end of a message about labels that do not meet; "" unless the extra would help."""
    return f"; {INSTALL}" if not is_installed() and any(map(term_id, labels)) else ""


def term_id(label: str) -> str | None:
    """Return the id that a label has the form of ("cl_0000236": "CL:0000236"), or None."""
    found = _ID.fullmatch(label.strip())
    if found is None:
        return None
    prefix = next(one for one in _ONTOLOGIES if one.casefold() == found[1].casefold())
    return f"{prefix}:{found[2]}"


def term_name(label: str) -> str | None:
    """Return the name of the term whose id a label is; None if it is no id, or not a known one."""
    identifier = term_id(label)
    term = None if identifier is None else _term(identifier)
    return (term["label"] or None) if term else None


def find_term(label: str, phenotype: str) -> str | None:
    """Return the id of the term that a label is by its id or name; None if it is none."""
    identifier = term_id(label)
    if identifier is not None:
        return identifier if _term(identifier) else None
    name = " ".join(label.replace("_", " ").casefold().split())
    if (phenotype, name) in _NORMAL and is_installed():
        return _NORMAL[phenotype, name]
    of_names = (_ids_of_names(one) for one in _OF_PHENOTYPE.get(phenotype, ()))
    return next((ids[name] for ids in of_names if name in ids), None)


def find_deprecated(labels: Sequence[str], phenotype: str) -> list[Deprecated]:
    """Find the labels that are deprecated terms, by id or name."""
    found = []
    for label in labels:
        identifier = find_term(label, phenotype) or find_term(_OBSOLETE + label, phenotype)
        term = None if identifier is None else _term(identifier)
        if identifier is None or not term or not term.get("deprecated"):
            continue
        others = list(term.get("consider") or ())
        while replaced_by := (term or {}).get("replaced_by"):  # itself replaced, perhaps
            others, term = [replaced_by], _term(replaced_by)
        replacements = tuple(
            f"{name} ({other})" if (name := term_name(other)) else other
            for other in others
            if not (_term(other) or {}).get("deprecated")
        )
        found.append(Deprecated(label, identifier, replacements))
    return found


def measure_terms(values: Sequence[str], phenotype: str) -> TermDistances | None:
    """Measure how the values of a phenotype are related; None unless most of them are terms.

    Terms of two ontologies, and values that are no term, meet at a root above all ontologies.
    """
    ids = [find_term(value, phenotype) for value in values]
    is_term = np.array([one is not None for one in ids], dtype=bool)
    if 2 * is_term.sum() <= len(values):
        return None
    above = [_ancestors(one) for one in ids]
    depths = np.array([1 + max(one.values(), default=0) for one in above], dtype=np.float64)
    steps = depths[:, None] + depths[None, :]
    is_related = np.eye(len(values), dtype=bool)
    for row, first in enumerate(above):
        for column, second in enumerate(above[:row]):
            shared = first.keys() & second.keys()
            if shared:
                steps[row, column] = min(first[one] + second[one] for one in shared)
                is_related[row, column] = bool({ids[row], ids[column]} & shared)
            steps[column, row] = steps[row, column]
            is_related[column, row] = is_related[row, column]
    np.fill_diagonal(steps, 0.0)
    return TermDistances(is_term, is_related, steps)


def _ancestors(identifier: str | None) -> dict[str, int]:
    """Return each ancestor, the term itself included, and the steps to it."""
    term = None if identifier is None else _term(identifier)
    return {} if identifier is None or not term else {identifier: 0, **term["ancestors"]}


def _term(identifier: str) -> dict[str, Any] | None:
    return _terms(identifier.partition(":")[0]).get(identifier)


@functools.cache
def _terms(ontology: str) -> dict[str, dict[str, Any]]:
    """Return the terms of an ontology by id; reading takes 0.6 s at most (MONDO), so only when needed."""
    if ontology not in _ONTOLOGIES or not is_installed():
        return {}
    from cellxgene_ontology_guide.supported_versions import CXGSchema

    terms: dict[str, dict[str, Any]] = CXGSchema().ontology(ontology)
    return terms


@functools.cache
def _ids_of_names(ontology: str) -> dict[str, str]:
    """Return the ids by name in lower case; of two terms of one name, the one in use."""
    terms = sorted(_terms(ontology).items(), key=lambda item: not item[1].get("deprecated"))
    return {term["label"].casefold(): identifier for identifier, term in terms if term["label"]}
