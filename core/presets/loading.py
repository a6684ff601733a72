"""From sources to one checked preset: merging, precedence, and every error in one message.

Later wins: defaults < a preset that the preset ``extends`` < preset < `--config` files < `TFX_*`
environment < options < `--set`. Tables merge by key, lists replace. The result knows the provenance
of each value, and is written with the run in that form.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from core.errors import ConfigurationError
from core.files import file_names
from core.presets.catalogue import find_preset
from core.presets.fields import EXTENDS, InvalidKey, all_fields, invalid_keys, section_at
from core.presets.phenotype_names import STANDARD_PHENOTYPES, phenotype_of, unfit_phenotype
from core.presets.schema import ALTERNATIVES, Preset
from core.presets.sources import (
    MOST_PROBLEMS,
    Leaf,
    Source,
    read_assignments,
    read_environment,
    read_file,
    read_options,
    read_text,
)
from core.presets.toml_text import KeyPath, dotted, write_key, write_value
from core.wording import cause

logger = logging.getLogger(__name__)

_DEFAULT = "default"
_PHENOTYPES = ("data", "phenotypes")
_NAMELESS = "run"  # neither a file nor a name was given


@dataclass(frozen=True)
class ResolvedPreset:
    """A checked preset, complete with a name, and the provenance of every value."""

    preset: Preset
    #: Dotted key -> ``default``, ``base.toml:3``, ``TFX_TRAIN__SEED``, ``--batch-size``, ``--set``.
    provenance: dict[str, str]

    @property
    def name(self) -> str:
        """The preset's name, else the file's."""
        return str(self.preset.name)

    def to_toml(self) -> str:
        """Write every value, each followed by a comment that names its provenance."""
        lines = ["# Resolved preset: every value, and where it came from."]
        tables: dict[tuple[str, ...], list[str]] = {}
        for field in all_fields():
            value = _value_at(self.preset, field.path)
            if field.is_table:
                table = tables.setdefault(field.path, [])
                table += [self._line((*field.path, name), item) for name, item in value.items()]
            else:
                tables.setdefault(field.path[:-1], []).append(self._line(field.path, value))
        lines += tables.pop((), [])
        for path, entries in tables.items():
            if entries:  # none if no phenotype was named
                lines += ["", f"[{'.'.join(map(write_key, path))}]", *entries]
        return "\n".join(lines) + "\n"

    def _line(self, path: tuple[str, ...], value: object) -> str:
        if value is None:
            return f"# {write_key(path[-1])} is not set"
        return f"{write_key(path[-1])} = {write_value(value)}  # {self.provenance[dotted(path)]}"

    @classmethod
    def from_toml(cls, text: str, *, where: str = "config.toml") -> Self:
        """Read the text of `to_toml`; ``where`` names the text in error messages."""
        source = read_text(text, name=where, level=0)
        return cls._resolved([source], [Path(where)], has_comments=True)

    def changed(
        self,
        *,
        overlays: Sequence[Path] = (),
        options: Mapping[str, object] | None = None,
        option_names: Mapping[str, str] | None = None,
        assignments: Sequence[str] = (),
    ) -> Self:
        """Return this preset with some keys changed; sources and errors as in `resolve_preset`."""
        sources = [read_text(self.to_toml(), name=f"{self.name}'s preset", level=0)]
        sources += _read_overlays(overlays, first_level=1)
        sources += read_options(options or {}, option_names or {})
        sources += read_assignments(assignments)
        return self._resolved(sources, [], has_comments=True)

    @classmethod
    def _resolved(
        cls, sources: Sequence[Source], files: Sequence[Path], *, has_comments: bool = False
    ) -> Self:
        """Merge and check; with ``has_comments`` the first source was written by `to_toml`."""
        for source in sources[has_comments:]:  # users cannot correct what tfx wrote
            for warning in source.warnings:
                logger.warning(warning)
        leaves = _merge(sources)
        if not has_comments:  # a run that was trained can still be evaluated
            _read_genes(leaves)
            _check_phenotype_names(leaves)
        preset = _validate(leaves, sources)
        provenance = _default_provenance(preset)
        for path, leaf in leaves.items():
            if leaf.value is None:
                continue
            is_written = has_comments and leaf.source is sources[0]
            comment = leaf.source.comment_after(path) if is_written else ""
            provenance[dotted(path)] = comment or leaf.source.provenance_of(path)
            if comment == _DEFAULT:
                # Some code asks whether a value was set (data.split.by): a default stays unset.
                _value_at(preset, path[:-1]).model_fields_set.discard(path[-1])
        if preset.name is None:
            preset = preset.model_copy(update={"name": _name_from(files)})
            provenance["name"] = "name of the file" if files else _DEFAULT
        return cls(preset, provenance)


def resolve_preset(
    path: Path | None,
    *,
    overlays: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
    option_names: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
) -> ResolvedPreset:
    """Merge all sources into one checked preset.

    ``path`` is a file or the name of a bundled preset; ``overlays`` are the files of `--config`, the
    later the stronger. ``options`` have dotted keys and None where not given; ``option_names`` are their
    names in messages, if not ``--`` and the last part of the key. ``assignments`` are ``a.b=c``.
    ConfigurationError has one line per error of all sources: ``file:line: key: message``.
    """
    files = list(overlays)
    sources: list[Source] = []
    if path is not None:
        path = find_preset(str(path))
        files.insert(0, path)
        sources = _read_chain(path, read_file(path, level=0))
    sources += _read_overlays(overlays, first_level=len(sources))
    sources += read_environment(environment or {})
    sources += read_options(options or {}, option_names or {})
    sources += read_assignments(assignments)
    return ResolvedPreset._resolved(sources, files)


def resolve_text(text: str, *, where: Path) -> ResolvedPreset:
    """Check the text of a preset that is to become the file ``where``.

    Messages name that file, and a preset that the text extends is searched for beside it. Errors as in
    `resolve_preset`.
    """
    sources = _read_chain(where, read_text(text, name=str(where), level=0))
    return ResolvedPreset._resolved(sources, [where])


def _read_chain(path: Path, source: Source) -> list[Source]:
    """Add to a preset those that it extends, the weakest first, without their names."""
    chain = [source]
    seen = [path.resolve()]
    while source.extends is not None:
        beside = path.parent / source.extends  # a file beside the one that names it comes first
        try:
            path = beside if beside.is_file() else find_preset(source.extends)
        except ConfigurationError as error:
            source.add_problem((EXTENDS,), str(error))
            source.is_broken = True
            break
        if path.resolve() in seen:
            source.add_problem((EXTENDS,), f"{source.extends!r} extends this one in turn")
            break
        seen.append(path.resolve())
        source = read_file(path, level=0)
        source.leaves = [leaf for leaf in source.leaves if leaf.path != ("name",)]
        chain.insert(0, source)
    for level, one in enumerate(chain):
        one.level = level
    return chain


def _read_overlays(files: Sequence[Path], *, first_level: int) -> list[Source]:
    sources = [read_file(file, level=level) for level, file in enumerate(files, start=first_level)]
    for source in sources:
        if source.extends is not None:
            source.add_problem((EXTENDS,), "only a preset extends another; give several --config")
    return sources


def _name_from(files: Sequence[Path]) -> str:
    """Make the name of a folder from the preset's file."""
    stem = files[0].stem if files else ""
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-") or _NAMELESS


def _merge(sources: Iterable[Source]) -> dict[tuple[str, ...], Leaf]:
    """Let later sources overrule earlier ones, key by key."""
    leaves: dict[tuple[str, ...], Leaf] = {}
    for source in sources:
        for leaf in source.leaves:
            rival = leaves.get(ALTERNATIVES.get(leaf.path, ()))
            if rival and rival.source.level < source.level and leaf.value is not None:
                del leaves[rival.path]
            leaves[leaf.path] = leaf
    _add_classified_column(leaves)
    return leaves


def _add_classified_column(leaves: dict[tuple[str, ...], Leaf]) -> None:
    """Make the obs column of a classification a phenotype, if it is none."""
    column = leaves.get(("classification", "column"))
    if column is None or not isinstance(column.value, str) or not column.value:
        return
    named = {path[2]: leaf.value for path, leaf in leaves.items() if path[:2] == _PHENOTYPES}
    name = phenotype_of(column.value, named)
    if name == column.value and name not in STANDARD_PHENOTYPES and name not in named:
        path = (*_PHENOTYPES, name)
        leaves[path] = replace(column, path=path)


def _read_genes(leaves: dict[tuple[str, ...], Leaf]) -> None:
    """Add the names in data.genes_file to data.include_genes."""
    file, path = leaves.get(("data", "genes_file")), ("data", "include_genes")
    if file is None or not isinstance(file.value, str):
        return
    try:
        names = file_names(Path(file.value).expanduser())
    except (OSError, ValueError) as error:
        file.source.add_problem(file.path, f"{file.value} cannot be read ({cause(error)})")
        return
    if not names:
        file.source.add_problem(file.path, f"{file.value} names no gene; give one name in a line")
    given = leaves[path].value if path in leaves else []
    if isinstance(given, list):  # else its own error says so
        leaves[path] = replace(file, path=path, value=list(dict.fromkeys([*given, *names])))


def _check_phenotype_names(leaves: Mapping[tuple[str, ...], Leaf]) -> None:
    for path, leaf in leaves.items():
        if path[:2] == _PHENOTYPES and (reason := unfit_phenotype(path[2])) is not None:
            leaf.source.add_problem(path, reason)


def _validate(leaves: Mapping[tuple[str, ...], Leaf], sources: Sequence[Source]) -> Preset:
    """Check the merged values; raise all problems of all sources together."""
    found = [(order, problem) for order, s in enumerate(sources) for problem in s.problems]
    preset, invalid = _check(leaves)
    n_unlisted = max(len(invalid) - MOST_PROBLEMS, 0)
    del invalid[MOST_PROBLEMS:]
    if invalid:
        # pydantic skips a table's own rules while one of its values is wrong: check without it.
        wrong = {one.path for one in invalid}
        rest = {
            path: leaf
            for path, leaf in leaves.items()
            if not any(bad[: len(path)] == path for bad in wrong)
        }
        for one in _check(rest)[1]:
            is_sound = not wrong.intersection(_keys_in_message(one))
            if one.is_about_section and one not in invalid and is_sound:
                invalid.append(one)
    for one in invalid:
        source, path = _blame(one, leaves, sources)
        if "is missing" in one.message and any(s.is_broken for s in sources):
            continue
        problem = source.problem(path, one.message)
        if one.is_about_section:
            problem = replace(problem, key=dotted(one.path))
        found.append((sources.index(source) if source in sources else -1, problem))
    if preset is None or found:
        found.sort(key=lambda item: (item[0], item[1].line))
        sentences = list(dict.fromkeys(str(problem) for _, problem in found))
        if more := n_unlisted + sum(source.n_unlisted for source in sources):
            sentences.append(f"and {more:,} more errors")
        raise ConfigurationError(*sentences)
    return preset


def _check(leaves: Mapping[tuple[str, ...], Leaf]) -> tuple[Preset | None, list[InvalidKey]]:
    nested: dict[str, Any] = {"data": {}}  # so that a missing data.files is named as such
    for path, leaf in leaves.items():
        table = nested
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = leaf.value
    try:
        # Strict: "8" is not 8 and true is not 1; whole numbers still pass for floats.
        return Preset.model_validate(nested, strict=True), []
    except ValidationError as error:
        return None, invalid_keys(error.errors(include_url=False))


def _keys_in_message(invalid: InvalidKey) -> list[KeyPath]:
    """Find the keys that the message of a rule between keys names."""
    section = section_at(tuple(str(part) for part in invalid.path))
    words = set(re.findall(r"\w+", invalid.message))
    known = section.model_fields if section else {}
    return [(*invalid.path, name) for name in known if name in words]


def _blame(
    invalid: InvalidKey, leaves: Mapping[tuple[str, ...], Leaf], sources: Sequence[Source]
) -> tuple[Source, KeyPath]:
    """Find the source, and the key in it, that an error is about."""
    if invalid.is_about_section:
        keys = map(_names_only, _keys_in_message(invalid))
        given = [leaves[key] for key in keys if key in leaves]
        if given:
            strongest = max(given, key=lambda one: (one.source.level, one.source.line_of(one.path)))
            return strongest.source, strongest.path
    leaf = leaves.get(_names_only(invalid.path))
    if leaf is not None:
        return leaf.source, invalid.path
    # Missing: name the preset, or the strongest other source.
    return (sources[0] if sources else Source("preset", 0)), invalid.path


def _names_only(path: KeyPath) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


def _value_at(preset: Preset, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - any preset value
    value: object = preset
    for part in path:
        value = getattr(value, part)
    return value


def _default_provenance(preset: Preset) -> dict[str, str]:
    """Mark every key, and every key of a user's table, as a default."""
    provenance = {}
    for field in all_fields():
        provenance[dotted(field.path)] = _DEFAULT
        if field.is_table:
            for name in _value_at(preset, field.path):
                provenance[dotted((*field.path, name))] = _DEFAULT
    return provenance
