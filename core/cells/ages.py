"""Ages as people write them: numbers, the stage names of HsapDv and MmusDv, decades, ranges, days after birth.

`parse_age` reads the age, or range of ages, that a label gives. `group_ages` puts labels into decades;
a label without an age after birth, or with a range of several decades, keeps its own group.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_PER_YEAR = {"y": 1.0, "m": 12.0, "w": 365.25 / 7, "d": 365.25}
_OLDEST = 130.0
#: From this age on "and over" means the decade: few people are older.
_OPEN_FROM = 80.0
#: The middle of a longer range says little.
_LONGEST_RANGE = 30

_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth"]
_ORDINALS += ["seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"]
_N = r"(\d+(?:\.\d+)?)"
#: Its first letter is the key of `_PER_YEAR`.
_UNIT = r"(y(?:ears?|rs?|o|\.o\.?)?|m(?:(?:(?:on)?th|o)s?)?|w(?:eeks?|ks?)?|d(?:ays?)?)(?![a-z])"
_AFTER = r"[\s-]*(?:olds?\b.*|\(.*\)|(?:of age|human|mouse|stage|child|mature|adult)\b.*)?"
_AGE = re.compile(rf"{_N}(?:[\s-]*{_UNIT}\.?{_AFTER})?")
#: "41 years and 3 months", "73-year-old male": any words may follow a number of years.
_YEARS = re.compile(rf"{_N}[\s-]*(?:years?|yrs?|yo|y)\b.*")
_RANGE = re.compile(
    rf"([\[(]?)\s*{_N}\s*(?:{_UNIT})?\s*(?:-|to|(?<=\d),(?=\s))\s*{_N}\s*([\])]?)(?:[\s-]*{_UNIT}\.?{_AFTER})?"
)
_OVER = re.compile(
    rf"(?:(?:>=?|≥|over|above|older than|at least)[\s-]*{_N}(?:[\s-]*{_UNIT}.*)?"
    rf"|{_N}[\s-]*(?:{_UNIT})?[\s-]*(?:old)?\s*(?:stage)?\s*"
    rf"(?:\+|plus\b|(?:and|or) (?:over|above|older|more)\b).*)"
)
_UNDER = re.compile(
    rf"(?:<=?|≤|under|below|less than|younger than|up to)[\s-]*{_N}(?:[\s-]*{_UNIT}.*)?"
)
_DECADE = re.compile(rf"({'|'.join(_ORDINALS)}|\d+(?:st|nd|rd|th)) decade\b.*")
_TENS = re.compile(r"(?:in (?:the|their) )?(?:(?:early|mid|late)[\s-]+)?(\d{1,2}0)'?s(?: \D*)?")
_UNIT_FIRST = re.compile(rf"(day|week|month|year)s? {_N}")
#: "P7" and "PND 7" are days after birth.
_POSTNATAL = re.compile(rf"(?:p|pn|pnd|pd|postnatal day)[\s-]*{_N}")
_ABOUT = re.compile(r"^(?:~|ca?\.|circa|about|approx(?:\.|imately)?|aged?|age:)\s*(?=[\d<>≥≤])")
_NEWBORN = re.compile(r"(?:newborn|neonat\w*|infan\w*)\b.*")
_BRACKETS = re.compile(r".*\((.+)\).*")
_PRENATAL = re.compile(
    r"(?:.*(?:post[\s-]?fertili[sz]ation|post[\s-]?conception|post[\s-]?coitum|gestation|prenatal"
    r"|carnegie|theiler|\bcs\s?\d|trimester|(?<!post-)(?<!post )embryo|f[oe]+tal\b|f[oe]+tus|blastula"
    r"|gastrula|neurula|morula|cleavage|organogenesis|zygote|\blmp\b|\bpc[wd]\b|\bwpc\b|\bdp[cf]\b"
    r"|\bgw\b|\d(?:pc[wd]|wpc|dp[cf]|gw)\b|\b(?:pcw|gw)\d).*|e[\s-]?\d+(?:\.\d+)?)"
)
#: Older CELLxGENE names have "human", newer ones do not.
_FILLERS = re.compile(r"\b(?:human|mouse|stage)\b")
_COLUMN_UNIT = re.compile(r"(?:^|[^a-z]|age)(year|yr|month|mo|week|wk|day)s?(?![a-z])")
_IS_AGE = re.compile(r"(?:^|_)ages?(?:_|$)|(?:^|_)development_stage$")


@dataclass(frozen=True)
class Age:
    """A range of ages in years, `low` to `high`; equal for a single age, `high` infinite for "and over"."""

    low: float
    high: float
    #: "y", "m", "w" or "d": the unit of the label.
    unit: str = "y"

    @property
    def decade(self) -> int | None:
        """First year of the decade that holds the range; None if several do."""
        start = int(self.low // 10) * 10
        if math.isinf(self.high):
            return start if self.low >= _OPEN_FROM else None
        return start if self.high < start + 10 else None

    @property
    def middle(self) -> float | None:
        """Age in years: of "70-79" 75, of "80 and over" 80; None for a range of more than 30 years."""
        if self.low == self.high or math.isinf(self.high):
            return self.low
        if self.high - self.low > _LONGEST_RANGE:
            return None
        end = math.floor(self.high) + 1 if self.unit == "y" else self.high  # "79" lasts a year
        return (self.low + end) / 2


def is_age_name(phenotype: str) -> bool:
    """Whether a phenotype of this name holds ages."""
    return _IS_AGE.search(phenotype) is not None


def column_unit(column: str) -> str:
    """Return the unit of plain numbers in an obs column: "w" for "age_weeks", "y" if its name has none."""
    found = _COLUMN_UNIT.search(column.casefold())
    return found[1][0] if found else "y"


def parse_age(label: str, unit: str = "y") -> Age | None:
    """Read the age after birth that a label gives; None if it gives none, or one above 130 years.

    `unit` is that of plain numbers, as `column_unit` returns it.
    """
    text = _plain(label)
    if is_prenatal(text):
        return None
    text = _ABOUT.sub("", text)
    age = _parse(text, unit)
    if age is None and (inside := _BRACKETS.fullmatch(text)):
        age = _parse(inside[1].strip(), unit)  # "child stage (1-4 yo)"
    if age is None and _NEWBORN.fullmatch(text):
        return Age(0.0, 0.0, "d")
    if age is None or age.low > _OLDEST or (age.high > _OLDEST and not math.isinf(age.high)):
        return None
    return age


def _parse(text: str, default: str) -> Age | None:
    if found := _POSTNATAL.fullmatch(text):
        return _age(found[1], found[1], "d")
    if found := _UNIT_FIRST.fullmatch(text):
        return _age(found[2], found[2], found[1])
    if found := _DECADE.fullmatch(text):
        word = found[1]
        number = _ORDINALS.index(word) + 1 if word in _ORDINALS else int(word[:-2])
        return Age(10.0 * number - 10, 10.0 * number - 1) if number else None
    if found := _TENS.fullmatch(text):
        return Age(float(found[1]), float(found[1]) + 9)
    if found := _OVER.fullmatch(text):
        return _age(found[1] or found[3], None, found[2] or found[4] or default)
    if found := _UNDER.fullmatch(text):
        return _age("0", found[1], found[2] or default, below=True)
    if found := _RANGE.fullmatch(text):
        opening, low, unit, high, closing, last_unit = found.groups()
        first = _age(low, low, unit or last_unit or default)
        is_below = closing == ")" and opening != "("
        last = _age(high, high, last_unit or unit or default, below=is_below)
        return Age(first.low, last.high, last.unit) if first.low <= last.high else None
    if (found := _AGE.fullmatch(text)) or (found := _YEARS.fullmatch(text)):
        unit = (found[2] or default) if found.re is _AGE else "y"
        return _age(found[1], found[1], unit)
    return None


def _age(low: str, high: str | None, unit: str, *, below: bool = False) -> Age:
    """Return the range in years; `below`: the upper end is not part of it."""
    unit = unit[0]
    first = float(low) / _PER_YEAR[unit]
    last = math.inf if high is None else float(high) / _PER_YEAR[unit]
    return Age(first, max(last - 1e-6, 0.0) if below else last, unit)


def is_prenatal(label: str) -> bool:
    """Whether a label names a stage before birth."""
    return _PRENATAL.fullmatch(_plain(label)) is not None


def gives_years(labels: Sequence[str], unit: str = "y") -> bool:
    """Whether any of the labels gives an age in years, so that `group_ages` makes decades."""
    return any((age := parse_age(label, unit)) is not None and age.unit == "y" for label in labels)


def group_ages(labels: Sequence[str], unit: str = "y") -> list[str]:
    """Decade ("70-79") of each label whose ages are within one; other labels stay as they are.

    If no label gives its age in years (a mouse file in weeks), all stay.
    """
    if not gives_years(labels, unit):
        return list(labels)
    ages = [parse_age(label, unit) for label in labels]
    decades = [None if age is None else age.decade for age in ages]
    return [
        label if start is None else f"{start}-{start + 9}"
        for label, start in zip(labels, decades, strict=True)
    ]


def age_key(label: str, unit: str = "y") -> str:
    """Return a text that is equal for the spellings of one age: "8 weeks", "8-week-old mouse stage"."""
    if (age := parse_age(label, unit)) is not None:
        return f"{age.low:.4f} {age.high:.4f} {age.unit}"
    return " ".join(_FILLERS.sub(" ", _plain(label)).split())


def age_sort_key(label: str) -> tuple[float, str]:
    """Sort by age: years given, else the first number, else last by name."""
    age = parse_age(label)
    if age is not None:
        return age.low, label
    number = re.search(_N, label)
    return (float(number[0]) if number else math.inf), label


def _plain(label: str) -> str:
    """Lower case, plain hyphens, single blanks."""
    text = unicodedata.normalize("NFKC", label).casefold().replace("_", " ").replace("’", "'")
    return " ".join(re.sub(r"[\u2010-\u2015\u2212]", "-", text).split())
