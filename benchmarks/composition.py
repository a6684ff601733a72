"""Do control tokens compose: combinations that training never had, against the simulator's truth.

    tfx train presets/base.toml && python benchmarks/composition.py runs/base
    python benchmarks/composition.py runs/base --cells 500 --json      last line one JSON object

The simulated atlas leaves combinations out on purpose (female + lung + systemic sclerosis, ...). Each is
generated, and so are combinations that differ from it in one value and that training had. The simulator
draws new cells of the same combination from new donors: what is generated is compared with those, beside
a second draw of the simulator (the floor) and beside cells that match all but one value, which is what
somebody without a model would take.

    shift r, slope   the combination's gene means minus those of all cells: generated on true
    AUC              of a random forest that separates generated from simulated cells (out of fold)
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from core.cells.atlas.biology import atlas_biology
from core.cells.atlas.simulation import simulate_cells
from core.errors import ConfigurationError
from core.evaluation.fidelity.measures import (
    correlation_agreement,
    probability_generated,
    weighted_auc,
)
from core.generation.cell_generator import generate_cells
from core.generation.request import GenerationRequest
from core.model.folder import CellModel

TREES = 100


def simulate(model: CellModel, request: dict[str, str], n: int, seed: int, **options) -> np.ndarray:
    """(cells, panel genes), log1p counts per 10,000 of new cells of new donors."""
    cells = simulate_cells(n, seed=seed, **request, **options)
    counts = cells[:, list(model.panel.ids)].X
    totals = np.maximum(np.asarray(cells.X.sum(axis=1)).ravel(), 1.0)
    return np.log1p(np.asarray(counts.multiply(1e4 / totals[:, None]).todense(), dtype=np.float32))


def seen_neighbours(left_out: dict[str, str], n: int) -> list[dict[str, str]]:
    """Combinations that differ in one value, exist and are not left out."""
    truth = atlas_biology()
    found = []
    for phenotype in left_out:
        for value in truth.values(phenotype):
            other = left_out | {phenotype: value}
            if other == left_out or truth.is_left_out(other):
                continue
            try:
                simulate_cells(1, seed=0, **other, include_left_out=False)
            except ConfigurationError:  # such cells do not exist in that tissue
                continue
            found.append(other)
    order = np.random.default_rng(0).permutation(len(found))
    return [found[place] for place in order[:n]]


def score(model: CellModel, request: dict[str, str], overall: np.ndarray, n: int) -> dict:
    """Compare each way to get cells of a combination with the simulator's."""
    real = simulate(model, request, n, 1)
    made, _ = generate_cells(model, GenerationRequest(request, n))
    sides = {"generated": made.X.toarray(), "floor": simulate(model, request, n, 2)}
    without = []
    for phenotype in request:
        rest = {name: value for name, value in request.items() if name != phenotype}
        without.append(simulate(model, rest, n, 3, include_left_out=False))
    found = {"request": request}
    for name, cells in [*sides.items(), *(("all but one value", one) for one in without)]:
        r, slope = correlation_agreement(real.mean(axis=0) - overall, cells.mean(axis=0) - overall)
        ones = np.ones((1, n))
        probability = probability_generated(real, cells, seed=0, n_trees=TREES)
        figures = {"r": r, "slope": slope, "auc": float(weighted_auc(*probability, ones, ones)[0])}
        # Of the cells that match all but one value, the best choice of that value counts.
        if name not in found or figures["auc"] < found[name]["auc"]:
            found[name] = figures
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run on the simulated atlas, as of presets/base.toml")
    parser.add_argument("--cells", type=int, default=400, help="of each combination and side")
    parser.add_argument("--seen", type=int, default=2, help="seen combinations beside each other")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    model = CellModel.load(Path(options.run) / "model")
    overall = simulate(model, {}, 4000, 0, include_left_out=False).mean(axis=0)
    left_out = [dict(one) for one in atlas_biology().left_out]
    seen = [other for one in left_out for other in seen_neighbours(one, options.seen)]
    seen = [one for place, one in enumerate(seen) if one not in seen[:place]]
    results: dict[str, list[dict]] = {"left out": [], "seen": []}
    for kind, requests in (("left out", left_out), ("seen", seen)):
        for request in requests:
            results[kind].append(score(model, request, overall, options.cells))
            text = " + ".join(request.values())
            print(f"{kind}: {text}: {results[kind][-1]['generated']}", flush=True)
    ways = ("generated", "floor", "all but one value")
    print(f"\n| | combination | {' | '.join(f'{way}: AUC, shift r, slope' for way in ways)} |")
    print("|---" * (len(ways) + 2) + "|")
    for kind, found in results.items():
        for one in found:
            texts = [
                f"{one[way]['auc']:.3f}, {one[way]['r']:.3f}, {one[way]['slope']:.2f}"
                for way in ways
            ]
            print(f"| {kind} | {' + '.join(one['request'].values())} | {' | '.join(texts)} |")
    means = {
        kind: {key: statistics.mean(one["generated"][key] for one in found) for key in ("auc", "r")}
        for kind, found in results.items()
    }
    for kind, mean in means.items():
        print(f"{kind}, mean of generated cells: AUC {mean['auc']:.3f}, shift r {mean['r']:.3f}")
    ratio = means["left out"]["r"] / means["seen"]["r"]
    print(f"shift r of left-out over seen combinations: {ratio:.3f} (0.9 is wanted)")
    if options.json:
        print(json.dumps(results | {"means": means}))


if __name__ == "__main__":
    main()
