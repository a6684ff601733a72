"""Text of the interactions screen: networks, heat maps, perturbations. No widgets, no maths."""

from collections.abc import Mapping, Sequence

from rich.text import Text
from textual.color import Color
from textual.content import Content

from core.interactions.kept import HeatMap, KeptNetwork, KeptPerturbation, KeptResult
from tfx_cli.dashboard.themes import bar, heat_style
from tfx_cli.formatting import shortened

#: q below which an edge or a response counts as found (`core.interactions.result`).
_FOUND = 0.05
#: Columns of the terminal: a bar, a gene of a heat map, a name beside it; rows of a name above it.
_BAR, _CELL, _BESIDE, _ABOVE = 8, 2, 10, 8
_LONGEST_GENE = 12
_MOST_PHENOTYPES = 40
_ASSOCIATION = "Associations, not causes."
_SIMULATED = "Simulated cells: no real biology."
_Rows = tuple[Mapping[str, Text], dict[str, list[Text]]]


def about_network(network: KeptNetwork, result: KeptResult) -> Content:
    """Write the cells, the measure and the notes of a network."""
    weights = f"weights: {network.measure}"
    if network.is_baseline:
        weights += ", a simple measure, and not the model's effects"
    where = f": {network.cells:,} cells of {network.donors:,} donors; "
    found = f"{network.found:,} ordered pairs with q < {_FOUND}; the strongest edges are listed"
    style = "$warning" if network.is_baseline else ""
    lines = [Content.assemble((network.context, "bold"), where, (weights, style)), Content(found)]
    return _with_notes(lines, network.notes, result)


def about_perturbation(found: KeptPerturbation, result: KeptResult) -> Content:
    """Write the cells and the notes of a perturbation, or of a screen."""
    unit = "probability" if found.is_screen else "log1p of counts per 10,000"
    donors = f"{found.donors:,} donors" if found.donors else "unknown donors"
    where = f", {found.context}: {found.cells:,} cells of {donors}"
    what = f"{found.found:,} genes with q < {_FOUND}; shift of the {unit}"
    lines = [Content.assemble((found.perturbation, "bold"), where), Content(what)]
    return _with_notes(lines, found.notes, result)


def _with_notes(lines: list[Content], notes: Sequence[str], result: KeptResult) -> Content:
    ends = [_ASSOCIATION, *([_SIMULATED] if result.simulated else [])]
    lines += [Content(" ".join(ends)), *(Content(f"- {note}") for note in notes)]
    return Content("\n").join(
        [*lines, Content.styled(f"files: {', '.join(result.output)}", "$secondary")]
    )


def _table(heads: str, rows: Sequence[tuple[list[Text], float, float]]) -> _Rows:
    """Return heads and rows by key; of each row its cells, its size for a bar, and q."""
    most = max((abs(size) for _, size, _ in rows if size == size), default=0.0) or 1.0
    found: dict[str, list[Text]] = {}
    for place, (cells, size, q) in enumerate(rows):
        drawn = "█" * round(_BAR * abs(size) / most) if size == size else ""
        mark = "*" if q < _FOUND else " "
        found[str(place)] = [*cells, _number(q, ".2g"), Text(f"{mark} {drawn}")]
    names = [*heads.split(), "q", " * q < 0.05"]
    return {name: Text(name) for name in names}, found


def _number(value: float, form: str) -> Text:
    return Text(f"{value:{form}}" if value == value else "", justify="right")


def edge_rows(network: KeptNetwork) -> _Rows:
    """Return the heads and rows of the strongest edges."""
    rows = [
        (
            [
                Text(shortened(one.source, _LONGEST_GENE)),
                Text(shortened(one.target, _LONGEST_GENE)),
                _number(one.weight, "+.3f"),
                Text("positive" if one.weight > 0 else "negative"),
            ],
            one.weight,
            one.q,
        )
        for one in network.edges
    ]
    return _table("source target weight sign", rows)


def response_rows(found: KeptPerturbation) -> _Rows:
    """Return the heads and rows of the genes that respond, or that a screen changed."""
    rows = [
        ([Text(one.gene), _number(one.before, ".3f"), _number(one.shift, "+.3f")], one.shift, one.q)
        for one in found.genes
    ]
    return _table("gene before shift", rows)


def phenotypes_content(found: KeptPerturbation) -> Content:
    """Write the predicted probabilities before and after a perturbation."""
    if not found.phenotypes:
        return Content("A screen is of one probability: the genes that change it are in pane 1.")
    title = "mean predicted probability before and after, and its shift"
    names = [f"{one.phenotype} = {one.value}" for one in found.phenotypes[:_MOST_PHENOTYPES]]
    width = min(max(map(len, names)), 40)
    lines = [Content.styled(title, "bold")]
    for name, one in zip(names, found.phenotypes, strict=False):
        text = f"{shortened(name, width):{width}}  {one.before:.3f} → {one.after:.3f}  {one.after - one.before:+.3f}"
        q = f"  q {one.q:.2g}{' *' if one.q < _FOUND else ''}" if one.q == one.q else ""
        lines.append(Content.assemble(text + q + "  ", bar(one.after, _BAR)))
    return Content("\n").join(lines)


def heat_content(network: KeptNetwork, width: int, colours: Mapping[str, str]) -> Content:
    """Draw the weights among the genes of largest weight: sources down, targets across."""
    heat = network.heat_map
    if heat is None or not heat.weights:
        return Content("This result has no heat map.")
    rows, columns = _largest(heat, max((width - _BESIDE - 4) // _CELL, 2))
    weights = [[heat.weights[row][column] for column in columns] for row in rows]
    known = [abs(weight) for row in weights for weight in row if weight == weight]
    most = max(known, default=0.0) or 1.0
    legend = (
        f"sources down, targets across; + positive, - negative, ++ and -- from {most / 2:.2g} on"
    )
    lines = [Content.styled(network.context, "bold"), Content.styled(legend, "$secondary")]
    names = [f"{shortened(heat.targets[column], _ABOVE):>{_ABOVE}}" for column in columns]
    for place in range(_ABOVE):
        letters = "".join(f"{name[place]:<{_CELL}}" for name in names)
        lines.append(Content.styled(f"{'':{_BESIDE}} {letters}", "$secondary"))
    for row, values in zip(rows, weights, strict=True):
        cells: list[str | tuple[str, str]] = [f"{shortened(heat.sources[row], _BESIDE):{_BESIDE}} "]
        for weight in values:
            size = abs(weight) / most if weight == weight else 0.0
            sign = "+" if weight > 0 else "-"
            text = sign * 2 if size >= 0.5 else sign if size >= 0.1 else ""
            colour = colours["primary" if weight > 0 else "error"]
            style = heat_style(Color.parse(colours["background"]), Color.parse(colour), size)
            cells.append((f"{text:{_CELL}}", style if text else "$secondary"))
        lines.append(Content.assemble(*cells))
    return Content("\n").join(lines)


def _largest(heat: HeatMap, most: int) -> tuple[list[int], list[int]]:
    """Return the places of the sources and targets of largest weight, in their order."""
    by_row = [max((abs(one) for one in row if one == one), default=0.0) for row in heat.weights]
    by_column = [
        max((abs(one) for one in column if one == one), default=0.0)
        for column in zip(*heat.weights, strict=True)
    ]
    rows, columns = (
        sorted(sorted(range(len(sizes)), key=lambda place: -sizes[place])[:most])
        for sizes in (by_row, by_column)
    )
    return rows, columns
