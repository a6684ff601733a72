"""Names of phenotypes: the standard ones, which names can be, and what a name or an obs column means."""

from collections.abc import Mapping
from typing import Literal

#: The five phenotypes of PolyGene and PerturbGene, and their obs columns in the CELLxGENE schema.
STANDARD_PHENOTYPES: dict[str, str] = {
    "sex": "sex",
    "tissue": "tissue",
    "cell_type": "cell_type",
    "age": "development_stage",
    "disease": "disease",
}
#: Most characters of a phenotype's name, a label, a gene id or a symbol: what a model folder may hold.
LONGEST_NAME = 1_000
_LONGEST_PHENOTYPE = 100  # it becomes part of file names
#: Columns of obs that generated cells have beside their phenotypes.
_OBS_COLUMNS = frozenset({"synthetic", "library_size", "_index"})


def unfit_phenotype(name: str) -> str | None:
    """Say why a phenotype cannot have this name, in a model, a command line or a file; None if it can."""
    if not name or name != name.strip():
        return "a phenotype needs a name without blanks around it"
    if len(name) > _LONGEST_PHENOTYPE:
        return f"the name of a phenotype has at most {_LONGEST_PHENOTYPE} characters"
    if name in _OBS_COLUMNS:
        return (
            f"generated cells have a column '{name}' of their own; give the phenotype another name"
        )
    if name.endswith(("_probability", "_unsure", "_expected_years")):
        return "predicted cells have columns of this ending; give the phenotype another name"
    if name in (".", "..") or any(sign in name for sign in "/=,") or not name.isprintable():
        return "the name of a phenotype has no '/', '=', ',' or control character"
    return None


def phenotype_of(column: str, phenotypes: Mapping[str, str | Literal[False]]) -> str:
    """Return the phenotype that ``column`` names, itself or by its obs column in ``phenotypes``."""
    columns = {**STANDARD_PHENOTYPES, **phenotypes}
    if column in columns:
        return column
    return next((name for name, one in columns.items() if one == column), column)
