"""Generated cells beside real ones: rows, points and text of a profile.

A profile is what `tfx generate --serve` sends (docs/generate-serve.md); missing parts are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual.content import Content

from core.runlog.json_lines import finite_number, number_in
from tfx_cli.dashboard.generated_sets import GeneratedSet
from tfx_cli.dashboard.picture import Series
from tfx_cli.formatting import shortened

_N_SHOWN = 200
#: Columns of the terminal: of either half of a bar, of names.
_SHORTEST_BAR, _LONGEST_BAR, _LONGEST_HEAD, _LONGEST_GENE = 3, 16, 12, 16
FEW_CELLS = 20
#: Places in the colours of curves.
_COLOURS = {"real": 1, "generated": 0}
#: Lines of the fidelity text and the numbers that each needs.
_FIDELITY = (
    (
        "genes per cell: real {:.1f} (sd {:.1f}), generated {:.1f} (sd {:.1f})",
        "genes_per_cell_real_mean genes_per_cell_real_sd "
        "genes_per_cell_generated_mean genes_per_cell_generated_sd",
    ),
    ("gene means r {:.3f}, detection rates differ by {:.3f}", "gene_mean_r detection_mae"),
    ("gene-gene correlations r {:.3f}", "correlation_r"),
)


class GeneMeans:
    """Mean expression per gene, log1p of counts per 10,000: (genes,), NaN without real cells."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        genes = _part(profile, "genes")
        self.names = [str(name) for name in genes.get("names") or ()]
        means = [_numbers(genes.get(name)) for name in ("real_mean", "generated_mean")]
        unknown = np.full(len(self.names), np.nan)
        self.real, self.generated = (
            one if len(one) == len(self.names) else unknown for one in means
        )

    @property
    def r(self) -> float | None:
        """Pearson correlation of real and generated means."""
        known = np.isfinite(self.real) & np.isfinite(self.generated)
        if known.sum() < 3 or np.ptp(self.real[known]) == 0 or np.ptp(self.generated[known]) == 0:
            return None
        return float(np.corrcoef(self.real[known], self.generated[known])[0, 1])


def _part(profile: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = profile.get(name)
    return part if isinstance(part, dict) else {}


def _numbers(values: object) -> NDArray[np.float64]:
    """Read a list of numbers, NaN where one is missing."""
    found = values if isinstance(values, list) else []
    return np.array([finite_number(value) for value in found], dtype=float)


@dataclass(frozen=True)
class GeneTable:
    """Means of genes in two sets of cells, and their difference: the rows of a table with bars."""

    #: Names of the two sets, and of the difference.
    heads: tuple[str, str, str]
    names: Sequence[str]
    #: (genes,), NaN where unknown.
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    #: (genes,): differences up to this are noise; None: not known.
    floor: NDArray[np.float64] | None = None
    unit: str = "log1p"

    @property
    def exceeds(self) -> NDArray[np.bool_]:
        """(genes,): whether the difference exceeds the noise floor."""
        if self.floor is None:
            return np.zeros(len(self.names), dtype=bool)
        return np.abs(self.second - self.first) > self.floor

    def columns(self) -> list[Text]:
        """Return the heads: names over units, aligned as the columns are."""
        heads = [*self.heads, *([] if self.floor is None else ["noise"])]
        shown = [f"{shortened(head, _LONGEST_HEAD)}\n{self.unit}" for head in heads]
        return [Text("gene"), *(Text(head, justify="right") for head in shown), Text("")]

    def rows(self, width: int, colours: tuple[str, str], part: str = "") -> list[list[Text]]:
        """Return the rows, first what exceeds the floor, then the largest difference (else mean).

        ``width`` is that of the table, ``colours`` are those of bars to the left and to the right;
        names hold ``part``, in small letters.
        """
        difference = self.second - self.first
        size = np.abs(difference)
        key = np.nan_to_num(size if np.isfinite(size).any() else self.second)
        ordered = np.lexsort((-key, ~self.exceeds))
        order = [gene for gene in ordered if part in self.names[gene].lower()][:_N_SHOWN]
        columns = [
            self.first,
            self.second,
            difference,
            *([] if self.floor is None else [self.floor]),
        ]
        widths = [max(map(len, head.plain.splitlines())) for head in self.columns()[1:-1]]
        names = [shortened(self.names[gene], _LONGEST_GENE) for gene in order]
        used = max(map(len, names), default=0) + sum(widths) + 2 * (len(widths) + 2) + 5
        half = min(max((width - used) // 2, _SHORTEST_BAR), _LONGEST_BAR)
        widest = float(np.nanmax(size, initial=0.0)) if np.isfinite(size).any() else 0.0
        rows = []
        for name, gene in zip(names, order, strict=True):
            is_clear = self.floor is None or bool(self.exceeds[gene])
            cells = [
                Text(
                    "-" if np.isnan(column[gene]) else f"{column[gene]:{sign}.2f}", justify="right"
                )
                for column, sign in zip(columns, ("", "", "+", ""), strict=False)
            ]
            if np.isnan(difference[gene]):
                cells[2].plain = ""
            mark = "" if self.floor is None else "* " if is_clear else "  "
            drawn = _bar(difference[gene], widest, half, colours, is_clear=is_clear)
            rows.append([Text(name), *cells, Text.assemble(mark, drawn)])
        return rows


def real_table(profile: Mapping[str, Any]) -> GeneTable:
    """Return the generated cells of a profile beside real ones."""
    means = GeneMeans(profile)
    heads = ("real", "generated", "difference")
    return GeneTable(heads, means.names, means.real, means.generated, unit=_unit(profile))


def change_table(
    shown: GeneratedSet, before: GeneratedSet | None
) -> tuple[Content, GeneTable | None]:
    """Return what a set changes, as sentences and as a table.

    Of a flip these are the pairs, all else equal; else the set is compared with the one ``before`` it.
    """
    pairs = _part(shown.profile, "pairs")
    if shown.change is not None and pairs:
        _, old, new = shown.change
        first, second, floor = (
            _numbers(pairs.get(name)) for name in ("before_mean", "after_mean", "floor")
        )
        names = [str(name) for name in pairs.get("names") or ()]
        if not len(names) == len(first) == len(second) == len(floor):
            return Content("the generating process sent no comparison"), None
        table = GeneTable((old, new, "change"), names, first, second, floor, _unit(shown.profile))
        text = (
            f"{pairs.get('cells')} cells twice: the same other phenotypes, sizes and random numbers. "
            f"* {table.exceeds.sum()} of {len(names)} genes exceed the noise floor, "
            "what two draws of the same request differ by."
        )
        title = f"{old} → {new}, all else equal"
        return Content("\n").join([Content.styled(title, "bold"), Content(text)]), table
    if before is None:
        return Content("f flips a token: the same cells, with one phenotype changed"), None
    old_means, new_means = GeneMeans(before.profile), GeneMeans(shown.profile)
    by_name = dict(zip(old_means.names, old_means.generated, strict=True))
    both = [place for place, name in enumerate(new_means.names) if name in by_name]
    names = [new_means.names[place] for place in both]
    first = np.array([by_name[name] for name in names])
    heads = (before.letter, shown.letter, "difference")
    table = GeneTable(heads, names, first, new_means.generated[both], unit=_unit(shown.profile))
    title = f"{before.letter} {before.label} against {shown.letter} {shown.label}"
    text = "Two sets drawn apart: all that the requests leave open differs too; f compares like with like."
    return Content("\n").join(
        [Content.styled(title, "bold"), Content.styled(text, "$warning")]
    ), table


def _unit(profile: Mapping[str, Any]) -> str:
    return "fraction" if str(profile.get("values", "")).startswith("expressed") else "log1p"


def _bar(
    value: float, widest: float, half: int, colours: tuple[str, str], *, is_clear: bool
) -> Text:
    """Draw a signed difference from a middle line; what is not clear of noise is shaded."""
    if np.isnan(value) or widest <= 0:
        return Text("")
    drawn = ("█" if is_clear else "▒") * round(half * min(abs(value) / widest, 1.0))
    left, right = (drawn, "") if value < 0 else ("", drawn)
    styles = colours if is_clear else ("", "")
    return Text.assemble((f"{left:>{half}}", styles[0]), "│", (f"{right:{half}}", styles[1]))


def embedding_points(profile: Mapping[str, Any], kind: str) -> Series:
    """Return the real or the generated cells as points."""
    points = _part(profile, "embedding").get(kind)
    pairs = [_numbers(pair) for pair in (points if isinstance(points, list) else ())]
    known = np.array([pair for pair in pairs if len(pair) == 2]).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    return Series(f"{len(known)} {kind}", known[:, 0], known[:, 1], _COLOURS[kind])


def gene_count_histograms(profile: Mapping[str, Any]) -> list[Series]:
    """Return genes per cell against the fraction of cells, of real and generated cells."""
    detected = _part(profile, "detected_genes")
    samples = {name: _numbers(detected.get(name)) for name in _COLOURS}
    samples = {name: values[np.isfinite(values)] for name, values in samples.items()}
    samples = {name: values for name, values in samples.items() if len(values)}
    if not samples:
        return []
    everything = np.concatenate(list(samples.values()))
    low, high = float(everything.min()), float(everything.max())
    # Not more bins than the values can fill.
    n_bins = int(np.clip(min(high - low, np.sqrt(everything.size)), 4, 24))
    edges = np.linspace(low - 0.5, high + 0.5, n_bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    return [
        Series(name, centres, np.histogram(values, edges)[0] / len(values), _COLOURS[name])
        for name, values in samples.items()
    ]


def fidelity_content(profile: Mapping[str, Any]) -> Content:
    """Write the fidelity metrics, the cells of the comparison, and the notes."""
    lines: list[Content] = []
    n_training, n_real = (number_in(profile, name) for name in ("training_cells", "real_cells"))
    if n_training is not None:
        style = "$warning" if n_training < FEW_CELLS else ""
        text = f"{n_training:,.0f} training cells match the request"
        lines.append(Content.styled(text, style))
    text = "0 real cells match: nothing to compare with"
    if n_real:
        text = f"beside {n_real:,.0f} real cells ({profile.get('compared_with')})"
    lines.append(Content(text))
    fidelity = _part(profile, "fidelity")
    for text, names in _FIDELITY:
        values = [number_in(fidelity, name) for name in names.split()]
        if None not in values:
            lines.append(Content(text.format(*values)))
    notes: Sequence[object] = profile.get("notes") or ()
    lines += [Content.styled(f"! {note}", "$warning") for note in notes]
    return Content("\n").join(lines)
