"""Labels that are probably one label, written in two ways.

Names of cells are short and alike on purpose ("CD4 T cell", "CD8 T cell"; "stage 1", "stage 2";
"alpha cell", "beta cell"), so an edit distance alone would flag half of an ontology. Two rules
remain: names that differ only in form (case, blanks, underscores, hyphens, a plural), and a rare
name one typing error away from a frequent one, within a word of five letters or more.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_GAPS = re.compile(r"(?:[\s_]|(?<=\w)-(?=\w))+")
#: "cells", not "mass", "virus" or "pelvis".
_PLURAL = re.compile(r"\b([^\W\d_]{2,}[^\W\d_sui])s\b")
#: Typing errors are searched in words of at least this many letters ...
_SHORTEST = 5
#: ... and in labels with at most this fraction of the cells of the label that they resemble.
_RARE = 0.05
#: More labels than this are identifiers, not groups: comparing all pairs takes seconds.
_MOST_LABELS = 2_000
#: One letter apart, and yet two things.
_DIFFERENT = (
    *(("micro", "macro"), ("inferior", "interior"), ("ileum", "ilium"), ("ileal", "ilial")),
    *(("perineal", "peroneal"), ("mucous", "mucus"), ("colonic", "clonic"), ("adduct", "abduct")),
)


@dataclass(frozen=True)
class Variant:
    """Two spellings of one label, and whether they differ in form or by a typing error."""

    rare: str
    common: str
    kind: Literal["form", "slip"]


def find_variants(counts: Mapping[str, int]) -> list[Variant]:
    """Find pairs of labels (label -> cells) that are probably one, in the order of the labels."""
    variants: list[Variant] = []
    same: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        same[_form(label)].append(label)
    for spellings in same.values():
        common = max(spellings, key=lambda label: (counts[label], label))
        variants += [Variant(label, common, "form") for label in spellings if label != common]
    if len(counts) <= _MOST_LABELS:
        variants += _slips(counts, [max(group, key=counts.__getitem__) for group in same.values()])
    return sorted(variants, key=lambda variant: variant.rare)


def _slips(counts: Mapping[str, int], labels: list[str]) -> list[Variant]:
    by_words: dict[int, list[tuple[str, list[str]]]] = defaultdict(list)
    for label in labels:
        words = _words(label)
        by_words[len(words)].append((label, words))
    found: list[Variant] = []
    for group in by_words.values():
        for rare, rare_words in group:
            alike = [
                common
                for common, words in group
                if counts[rare] <= _RARE * counts[common] and _one_word_slips(rare_words, words)
            ]
            if alike:
                found.append(Variant(rare, max(alike, key=counts.__getitem__), "slip"))
    return found


def _one_word_slips(first: list[str], second: list[str]) -> bool:
    """Whether all words are equal except for one typing error in one of them."""
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return len(different) == 1 and is_one_slip(*different[0])


def is_one_slip(first: str, second: str) -> bool:
    """Whether two words are one typing error apart: a letter lost, added or changed, or two swapped.

    Digits, words of fewer than five letters, a changed first letter, a changed index letter
    ("groupA", "groupB") and known pairs ("microglia", "macroglia") do not count.
    """
    a, b = first.casefold(), second.casefold()
    if a == b or not (a.isalpha() and b.isalpha()):
        return False
    if max(len(a), len(b)) < _SHORTEST or abs(len(a) - len(b)) > 1 or a[0] != b[0]:
        return False
    if len(a) == len(b) and a[:-1] == b[:-1] and (first[-1].isupper() or second[-1].isupper()):
        return False
    if any(_swaps(a, b, *pair) or _swaps(b, a, *pair) for pair in _DIFFERENT):
        return False
    start = next(i for i in range(len(a) + 1) if a[i : i + 1] != b[i : i + 1])
    if len(a) == len(b):
        swapped = a[start : start + 2] == b[start : start + 2][::-1]
        return a[start + 1 :] == b[start + 1 :] or (swapped and a[start + 2 :] == b[start + 2 :])
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    return longer[start + 1 :] == shorter[start:]


def _swaps(first: str, second: str, old: str, new: str) -> bool:
    return old in first and first.replace(old, new) == second


def _words(label: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", _PLURAL.sub(r"\1", label)) if word]


def _form(label: str) -> str:
    """Remove differences that do not change the meaning."""
    spaced = _GAPS.sub(" ", label.strip()).casefold()
    return _PLURAL.sub(r"\1", spaced)
