"""Ages: from what obs columns say ("73-year-old stage", 73, "eighth decade stage") to years.

Grouping serves human ages. A column that names no age in years (a mouse file in weeks) keeps its
labels.
"""

import math
import re
from collections.abc import Sequence

__all__ = ["age_sort_key", "group_ages", "parse_years"]

#: "73", "73.0", "73y", "73 years", "73-year-old stage", "80 year-old and over human stage".
_YEARS = re.compile(
    r"(\d+(?:\.\d+)?)[\s-]*(?:(?:years?|yrs?|yo|y)\b.*)?",
    re.IGNORECASE,
)
#: After birth only: "10th week post-fertilization" is a stage of its own.
_YOUNGER = re.compile(r"(\d+(?:\.\d+)?)[\s-]*(month|week|day)s?[\s-]*old\b.*", re.IGNORECASE)
_PER_YEAR = {"month": 12.0, "week": 365.25 / 7, "day": 365.25}
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip
#: CELLxGENE: "fifth decade human stage" is the years 40 to 49.
_DECADE = re.compile(rf"({'|'.join(_ORDINALS)}) decade\b.*", re.IGNORECASE)
_FIRST_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OLDEST = 130.0


def parse_years(label: str) -> float | None:
    """Age in years that a label states, or None.

    Months, weeks and days after birth are parts of a year; a decade stands for its first year.
    """
    text = label.strip().replace("_", " ")
    years: float | None = None
    if match := _YEARS.fullmatch(text):
        years = float(match[1])
    elif match := _YOUNGER.fullmatch(text):
        years = float(match[1]) / _PER_YEAR[match[2].lower()]
    elif match := _DECADE.fullmatch(text):
        years = 10.0 * _ORDINALS.index(match[1].lower())
    return years if years is not None and years <= _OLDEST else None


def group_ages(labels: Sequence[str]) -> list[str]:
    """Decade ("70-79") of each label that states an age; other labels stay as they are.

    If none of the labels states its age in years, all stay: weeks are not grouped by decade.
    """
    if not any(_YEARS.fullmatch(label.strip().replace("_", " ")) for label in labels):
        return list(labels)
    return [_decade(label) for label in labels]


def age_sort_key(label: str) -> tuple[float, str]:
    """Sort by age: stated years, else the first number ("30-39"), else last by name."""
    years = parse_years(label)
    if years is None:
        number = _FIRST_NUMBER.search(label)
        years = float(number[0]) if number else math.inf
    return years, label


def _decade(label: str) -> str:
    years = parse_years(label)
    if years is None:
        return label
    start = int(years // 10) * 10
    return f"{start}-{start + 9}"
