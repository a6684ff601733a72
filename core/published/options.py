"""The options of PolyGene and PerturbGene: the values of each, and the preset keys that it sets.

The table is options.csv, in the order of docs/published-models.md, which the tests compare with it.
"""

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Literal

System = Literal["PolyGene", "PerturbGene"]


@dataclass(frozen=True)
class PublishedOption:
    """One option, or key of a JSON configuration."""

    #: Without dashes, and older names of it.
    name: str
    aliases: tuple[str, ...]
    #: Values on a command line: "one", "many" or "nothing".
    takes: str
    #: Keys of a preset that it sets; none if tfx needs no such option.
    ours: tuple[str, ...]
    #: Why it sets nothing, or what differs; "" if it means the same.
    note: str


def _read_table() -> dict[System, list[PublishedOption]]:
    table: dict[System, list[PublishedOption]] = {"PolyGene": [], "PerturbGene": []}
    text = (resources.files("core.published") / "options.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        aliases, ours = tuple(row["aliases"].split()), tuple(row["ours"].split())
        system: System = "PolyGene" if row["system"] == "PolyGene" else "PerturbGene"
        option = PublishedOption(row["name"], aliases, row["takes"], ours, row["note"])
        table[system].append(option)
    return table


OPTIONS = _read_table()


def find_option(system: System, name: str) -> PublishedOption | None:
    """Return an option by its name, with or without dashes, or by an older one; None if unknown."""
    bare = name.lstrip("-").replace("-", "_")
    known = (option for option in OPTIONS[system] if bare in (option.name, *option.aliases))
    return next(known, None)
