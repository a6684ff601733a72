"""From sources to one checked preset: merging, precedence, and every error in one message.

Later wins: defaults < preset < `--config` files < `TFX_*` environment < options < `--set`. A preset that
``extends`` another is later than that. Tables merge by key, lists replace. The result remembers where each value came from, and is
written with the run in that form.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from core.errors import ConfigurationError
from core.presets.catalogue import find_preset
from core.presets.complaints import Complaint, complaints_of
from core.presets.fields import all_fields, section_at
from core.presets.schema import ALTERNATIVES, STANDARD_PHENOTYPES, Preset, phenotype_of
from core.presets.sources import (
    EXTENDS,
    Leaf,
    Source,
    read_assignments,
    read_environment,
    read_file,
    read_options,
    read_text,
)
from core.presets.toml_lines import KeyPath
from core.presets.toml_text import dotted, write_key, write_value

__all__ = ["ResolvedPreset", "resolve_preset", "resolve_text"]

logger = logging.getLogger(__name__)

_DEFAULT_ORIGIN = "default"
_NAME_ORIGIN = "name of the file"
_PHENOTYPES = ("data", "phenotypes")
_NAMELESS = "run"  # no file and no name were given


@dataclass(frozen=True)
class ResolvedPreset:
    """A preset whose every value is settled.

    Attributes
    ----------
    preset
        The checked values; ``preset.name`` is never None.
    origins
        Dotted key -> where its value came from: ``default``, ``base.toml:3``,
        ``TFX_TRAIN__SEED``, ``--batch-size``, ``--set``.
    name
        The preset's name, else the file's.
    """

    preset: Preset
    origins: dict[str, str]
    name: str

    def to_toml(self) -> str:
        """Write every value, each followed by a comment that names its origin."""
        lines = ["# Resolved preset: every value, and where it came from."]
        tables: dict[tuple[str, ...], list[str]] = {}
        for field in all_fields():
            value = _value_at(self.preset, field.path)
            if field.is_table:
                table = tables.setdefault(field.path, [])
                for name, item in value.items():
                    table.append(self._line((*field.path, name), item))
            else:
                tables.setdefault(field.path[:-1], []).append(self._line(field.path, value))
        lines += tables.pop((), [])
        for path, entries in tables.items():
            if not entries:
                continue  # no phenotype was named
            lines += ["", f"[{'.'.join(map(write_key, path))}]", *entries]
        return "\n".join(lines) + "\n"

    def _line(self, path: tuple[str, ...], value: object) -> str:
        origin = self.origins[dotted(path)]
        if value is None:
            return f"# {write_key(path[-1])} is not set"
        return f"{write_key(path[-1])} = {write_value(value)}  # {origin}"

    @classmethod
    def from_toml(cls, text: str, *, where: str = "config.toml") -> Self:
        """Read what `to_toml` wrote; ``where`` names the text in error messages.

        Raises
        ------
        ConfigurationError
            The text is not a complete and valid preset.
        """
        return cls._from_written(read_text(text, name=where, level=0), [])

    def changed(
        self,
        *,
        overlays: Sequence[Path] = (),
        options: Mapping[str, object] | None = None,
        option_names: Mapping[str, str] | None = None,
        assignments: Sequence[str] = (),
    ) -> Self:
        """Return this preset with some keys changed; sources as in `resolve_preset`.

        Raises
        ------
        ConfigurationError
            One line per error of all sources: ``file:line: key: message``.
        """
        written = read_text(self.to_toml(), name=f"{self.name}'s preset", level=0)
        sources = _read_overlays(overlays, first_level=1)
        sources += read_options(options or {}, option_names or {})
        sources += read_assignments(assignments)
        return self._from_written(written, sources)

    @classmethod
    def _from_written(cls, written: Source, others: Sequence[Source]) -> Self:
        sources = [written, *others]
        _warn(others)  # what tfx wrote itself, nobody can mend
        leaves = _merge(sources)
        preset = _validate(leaves, sources)
        origins = _all_origins(preset)
        for path, leaf in leaves.items():
            if leaf.value is None:
                continue
            comment = written.comment_after(path) if leaf.source is written else ""
            origins[dotted(path)] = comment or leaf.source.origin_of(path)
            if comment == _DEFAULT_ORIGIN:
                # Who asked for a value matters to some (data.split.by): a default stays unasked.
                _value_at(preset, path[:-1]).model_fields_set.discard(path[-1])
        return cls(preset, origins, preset.name or _name_from([Path(written.name)]))


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

    Parameters
    ----------
    path
        The preset: a file, or the name of a bundled one. None: options and files say it all.
    overlays
        Files that change some keys (`--config`), the later the stronger.
    environment
        `os.environ`, of which `TFX_SECTION__KEY` are used.
    options
        Dotted key -> value of the command's own options; None is "not given".
    option_names
        Dotted key -> the option's name in error messages, where it is not ``--`` and the last
        part of the key.
    assignments
        ``a.b=c`` of `--set`.

    Raises
    ------
    ConfigurationError
        One line per error of all sources: ``file:line: key: message``.
    """
    files = list(overlays)
    sources: list[Source] = []
    if path is not None:
        path = find_preset(str(path))
        files.insert(0, path)
        sources = _read_chain(path)
    sources += _read_overlays(overlays, first_level=len(sources))
    sources += read_environment(environment or {})
    sources += read_options(options or {}, option_names or {})
    sources += read_assignments(assignments)
    return _resolved(_merge(sources), sources, files)


def _resolved(
    leaves: Mapping[tuple[str, ...], Leaf], sources: Sequence[Source], files: Sequence[Path]
) -> ResolvedPreset:
    _warn(sources)
    preset = _validate(leaves, sources)
    origins = _all_origins(preset)
    for leaf in leaves.values():
        if leaf.value is not None:
            origins[dotted(leaf.path)] = leaf.source.origin_of(leaf.path)
    if preset.name is None:
        preset = preset.model_copy(update={"name": _name_from(files)})
        origins["name"] = _NAME_ORIGIN if files else _DEFAULT_ORIGIN
    return ResolvedPreset(preset, origins, str(preset.name))


def _warn(sources: Iterable[Source]) -> None:
    for source in sources:
        for warning in source.warnings:
            logger.warning(warning)


def _read_chain(path: Path, first: Source | None = None) -> list[Source]:
    """Read a preset and those that it extends, the weakest first; their names stay their own.

    ``first`` is what the preset says, where it is known already.
    """
    chain: list[Source] = []
    seen: list[Path] = []
    while True:
        source = first if first is not None and not chain else read_file(path, level=0)
        if chain:
            source.leaves = [leaf for leaf in source.leaves if leaf.path != ("name",)]
        chain.insert(0, source)
        seen.append(path.resolve())
        if source.extends is None:
            break
        beside = path.parent / source.extends  # a file is looked for beside the one that names it
        try:
            path = beside if beside.is_file() else find_preset(source.extends)
        except ConfigurationError as error:
            source.complain((EXTENDS,), str(error))
            source.is_broken = True
            break
        if path.resolve() in seen:
            source.complain((EXTENDS,), f"{source.extends!r} extends this one in turn")
            break
    for level, source in enumerate(chain):
        source.level = level
    return chain


def _read_overlays(files: Sequence[Path], *, first_level: int) -> list[Source]:
    sources = [read_file(file, level=level) for level, file in enumerate(files, start=first_level)]
    for source in sources:
        if source.extends is not None:
            source.complain((EXTENDS,), "only a preset extends another; give several --config")
    return sources


def resolve_text(text: str, *, where: Path) -> ResolvedPreset:
    """Check a preset that is not yet a file.

    Parameters
    ----------
    text
        TOML; it may extend another preset.
    where
        The file that it is to be: its name in messages, and where files it extends are looked for.

    Raises
    ------
    ConfigurationError
        One line per error: ``file:line: key: message``.
    """
    sources = _read_chain(where, read_text(text, name=str(where), level=0))
    return _resolved(_merge(sources), sources, [where])


def _name_from(files: Sequence[Path]) -> str:
    """Make a name fit for a folder out of the preset's file."""
    stem = files[0].stem if files else ""
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-") or _NAMELESS


def _merge(sources: Iterable[Source]) -> dict[tuple[str, ...], Leaf]:
    """Let later sources overrule earlier ones, key by key."""
    others: dict[tuple[str, ...], tuple[str, ...]] = {}
    for one, other in ALTERNATIVES:
        pair = tuple(one.split(".")), tuple(other.split("."))
        others |= {pair[0]: pair[1], pair[1]: pair[0]}
    leaves: dict[tuple[str, ...], Leaf] = {}
    for source in sources:
        for leaf in source.leaves:
            rival = leaves.get(others.get(leaf.path, ()))
            if rival and rival.source.level < source.level and leaf.value is not None:
                del leaves[rival.path]
            leaves[leaf.path] = leaf
    _add_classified_column(leaves)
    return leaves


def _add_classified_column(leaves: dict[tuple[str, ...], Leaf]) -> None:
    """Make the obs column that a classification asks for a phenotype, where it is none."""
    asked = leaves.get(("classification", "column"))
    if asked is None or not isinstance(asked.value, str) or not asked.value:
        return
    named = {path[2]: leaf.value for path, leaf in leaves.items() if path[:2] == _PHENOTYPES}
    name = phenotype_of(asked.value, named)
    if name == asked.value and name not in STANDARD_PHENOTYPES and name not in named:
        path = (*_PHENOTYPES, name)
        leaves[path] = replace(asked, path=path)


def _validate(leaves: Mapping[tuple[str, ...], Leaf], sources: Sequence[Source]) -> Preset:
    """Check the merged values; raise all problems of all sources together."""
    found = [(order, problem) for order, s in enumerate(sources) for problem in s.problems]
    preset, complaints = _check(leaves)
    if complaints:
        # A table's own rules are not asked while one of its values is wrong: ask them without it.
        wrong = {complaint.path for complaint in complaints}
        rest = {path: leaf for path, leaf in leaves.items() if not _is_within(path, wrong)}
        for complaint in _check(rest)[1]:
            is_sound = not wrong.intersection(_keys_in_message(complaint))
            if complaint.is_about_section and complaint not in complaints and is_sound:
                complaints.append(complaint)
    for complaint in complaints:
        source, path = _blame(complaint, leaves, sources)
        if "is missing" in complaint.message and any(s.is_broken for s in sources):
            continue
        problem = source.problem(path, complaint.message)
        if complaint.is_about_section:
            problem = replace(problem, key=dotted(complaint.path))
        found.append((sources.index(source) if source in sources else -1, problem))
    if preset is None or found:
        found.sort(key=lambda item: (item[0], item[1].line))
        message = "\n".join(dict.fromkeys(str(problem) for _, problem in found))
        raise ConfigurationError(message)
    return preset


def _check(leaves: Mapping[tuple[str, ...], Leaf]) -> tuple[Preset | None, list[Complaint]]:
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
        return None, complaints_of(error.errors(include_url=False))


def _is_within(path: tuple[str, ...], wrong: Iterable[KeyPath]) -> bool:
    return any(bad[: len(path)] == path for bad in wrong)


def _keys_in_message(complaint: Complaint) -> list[KeyPath]:
    """Find the keys that a rule between keys speaks of."""
    section = section_at(tuple(str(part) for part in complaint.path))
    words = set(re.findall(r"\w+", complaint.message))
    known = section.model_fields if section else {}
    return [(*complaint.path, name) for name in known if name in words]


def _blame(
    complaint: Complaint, leaves: Mapping[tuple[str, ...], Leaf], sources: Sequence[Source]
) -> tuple[Source, KeyPath]:
    """Find the source, and the key in it, to which a complaint points."""
    if complaint.is_about_section:
        given = [
            leaves[key] for key in map(_names_only, _keys_in_message(complaint)) if key in leaves
        ]
        if given:
            strongest = max(
                given, key=lambda leaf: (leaf.source.level, leaf.source.line_of(leaf.path))
            )
            return strongest.source, strongest.path
    leaf = leaves.get(_names_only(complaint.path))
    if leaf is not None:
        return leaf.source, complaint.path
    # Missing: name the preset, or whatever there is.
    return (sources[0] if sources else Source("preset", 0)), complaint.path


def _names_only(path: KeyPath) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


def _value_at(preset: Preset, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - any preset value
    value: object = preset
    for part in path:
        value = getattr(value, part)
    return value


def _all_origins(preset: Preset) -> dict[str, str]:
    """Give every key, and every key of a user's table, the origin of a default."""
    origins = {}
    for field in all_fields():
        origins[dotted(field.path)] = _DEFAULT_ORIGIN
        if field.is_table:
            for name in _value_at(preset, field.path):
                origins[dotted((*field.path, name))] = _DEFAULT_ORIGIN
    return origins
