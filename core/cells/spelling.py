"""Spelling of labels: which texts mean "not known", and which mean the same label.

`match_labels` finds the values of a model that labels mean, for every command. `core.cells.phenotypes` decides, with
these, on the labels of files.
"""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from core.cells.ages import age_key, group_ages
from core.cells.ontology import term_id, term_name

#: What authors write for an unknown label, case folded, underscores as blanks.
_MISSING_LABEL = re.compile(
    r"|\.|-{1,3}|\?|<na>|n\.?a\.?|#?n/a|n/d|nan|missing|undetermined|undefined"
    r"|unlabell?ed|unannotated|no data"
    r"|[<(\[]?(?:unknown|unspecified|unassigned)[>)\]]?"
    r"|not (?:specified|available|applicable|collected|provided|reported|determined|known|recorded"
    r"|annotated|assigned)"
)
#: These may be a label ("none": no disease, untreated) or say that there is none.
_PERHAPS_MISSING = re.compile(r"none|null")
#: Properties that every cell has, so that "none" says that it is not known.
ALWAYS_PRESENT = {"sex", "tissue", "cell_type", "age", "donor"}
_SPACES = re.compile(r"[\s_]+")
#: Characters that no reader sees.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
#: Characters that look like another: dashes, apostrophes, the micro sign.
_LOOK_ALIKE = (
    dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
    | dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u00b4"), "'")
    | {ord("\u00b5"): "\u03bc"}
)
_SEXES = {
    **dict.fromkeys(("m", "male", "males", "man", "men"), "male"),
    **dict.fromkeys(("f", "female", "females", "woman", "women"), "female"),
}


def never_label(label: str) -> bool:
    """Whether a label always means "not known"."""
    return _MISSING_LABEL.fullmatch(folded(label)) is not None


def is_missing(label: str) -> bool:
    """Whether a label can mean "not known"; "none" may be a label all the same, see `join_labels`."""
    return never_label(label) or _PERHAPS_MISSING.fullmatch(folded(label)) is not None


def may_be_label(label: str, phenotype: str) -> bool:
    """Whether a label that was taken as not known may be one: "none", of what not every cell has."""
    return bool(_PERHAPS_MISSING.fullmatch(folded(label))) and phenotype not in ALWAYS_PRESENT


def label_token(label: str) -> str:
    """Spell a label as a control token: "T cell" -> "[T_cell]"."""
    return f"[{_SPACES.sub('_', label.strip())}]"


def match_labels(labels: Iterable[str], values: Iterable[str]) -> dict[str, str]:
    """Find the value that each label means; a label that means none, or several, is left out.

    The same text wins; else the same token ("[T_cell]", "T_cell", "T cell"); else the same token in any
    case; else the same sex ("M", "male") or ontology term ("CL:0000236", "B cell").
    """
    labels, values = list(dict.fromkeys(labels)), list(values)
    keys: tuple[Callable[[str], str], ...] = (str, bare, folded, term_or_sex)
    found: dict[str, str] = {}
    for key in keys:
        if len(found) == len(labels):
            break
        of_key: dict[str, list[str]] = defaultdict(list)
        for value in values:
            of_key[key(value)].append(value)
        for label in labels:
            same = of_key.get(key(label), [])
            if label not in found and len(same) == 1:
                found[label] = same[0]
    return found


def match_label(label: str, values: Iterable[str]) -> str | None:
    """Find the value that a label means, as `match_labels`; None if there is none."""
    return match_labels([label], values).get(label)


def match_ages(labels: Sequence[str], values: Iterable[str], *, unit: str = "y") -> dict[str, str]:
    """Find the value that each age means: as `match_labels`, else the same age or its decade.

    `unit` is that of plain numbers among the labels, see `core.cells.ages.column_unit`.
    """
    values = list(values)
    found = match_labels(labels, values)
    names = [term_name(label) or label for label in labels]
    of_age = {age_key(term_name(value) or value): value for value in reversed(values)}
    groups = group_ages(names, unit)
    of_group = match_labels(groups, values)
    for label, name, group in zip(labels, names, groups, strict=True):
        value = of_age.get(age_key(name, unit)) or of_group.get(group)
        if label not in found and value is not None:
            found[label] = value
    return found


def nearest(label: str, values: Iterable[str]) -> list[str]:
    """Up to three values that look most like a label, best first, for messages."""
    folded: dict[str, str] = {}
    for value in values:
        folded.setdefault(bare(value).casefold(), value)
    wanted = bare(label).casefold()
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    # A part of the name ("T cell" for "regulatory T cell") scores low by edit distance.
    parts = [name for name in folded if wanted and (wanted in name or name in wanted)]
    return [folded[name] for name in dict.fromkeys([*close, *parts])][:3]


def suggest(name: str, known: Iterable[str]) -> str:
    """End of a message about an unknown name: the nearest known, or all of them."""
    known = list(known)
    close = nearest(name, known)
    if close:
        return "did you mean " + " or ".join(repr(value) for value in close) + "?"
    return "it has " + (", ".join(known[:20]) or "none") + (", ..." if len(known) > 20 else "")


def tidy(label: str) -> str:
    """Write a label in composed characters, with single plain blanks."""
    return " ".join(unicodedata.normalize("NFC", label.translate(_INVISIBLE)).split())


def bare(label: str) -> str:
    """Strip the brackets of a label's token, and differences between signs that look alike."""
    text = tidy(label).translate(_LOOK_ALIKE)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return _SPACES.sub("_", text)


def folded(label: str) -> str:
    """Return a text that is equal for labels that differ in case, blanks, underscores or brackets."""
    return unicodedata.normalize("NFC", bare(label).casefold()).replace("_", " ").strip()


def term_or_sex(label: str) -> str:
    """Return a text that is equal for the id and the name of a term, and for "M" and "male"."""
    text = folded(term_name(label) or label)
    return _SEXES.get(text, text)


def spelling_rank(label: str) -> tuple[bool, bool]:
    """Rank spellings of one label: names before ids, "male" before "M"."""
    text = folded(label)
    return term_id(label) is None, _SEXES.get(text) == text
