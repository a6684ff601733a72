"""Double knock-outs that a model was not trained on, beside the sum of both single ones, in the simulated atlas.

    python benchmarks/doubles.py                    macrophages, eight genes of different programmes, 7 of 28 doubles left out
    python benchmarks/doubles.py --folder doubles   keep the files and the run

Cells of the simulator with one gene or two silenced make a screen as Perturb-seq gives it: two columns of guides, singles in both
orders. `tfx init` writes the preset, `tfx train` trains it, and `tfx eval --doubles` scores the doubles left out.
"""

import argparse
import contextlib
import itertools
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import torch
from commands import call

from core.cells.atlas.biology import atlas_biology
from core.cells.atlas.simulation import simulate_cells

CELL_TYPE, TISSUE = "macrophage", "lung"
N_GENES, LEFT_OUT = 8, 7
CONTROLS, SINGLES, DOUBLES, SCORED = 800, 60, 60, 200


def silenced_cells(n_cells: int, guides: Sequence[str], seed: int) -> ad.AnnData:
    """Simulate macrophages, each of a donor of its own, with the genes among the guides silenced."""
    genes = [guide for guide in guides if guide != "control"]
    cells = simulate_cells(
        n_cells, seed=seed, n_donors=n_cells, silenced=genes, cell_type=CELL_TYPE, tissue=TISSUE,
        disease="normal",
    )  # fmt: skip
    cells.obs = cells.obs[[]]
    cells.obs_names = [f"{seed}-{cell}" for cell in range(n_cells)]
    cells.obs["guide_1"], cells.obs["guide_2"] = guides
    return cells


def chosen_genes() -> list[str]:
    """Return the gene of each programme that most macrophages express, those of most cells first."""
    cells = silenced_cells(500, ("control", "control"), 0)
    detection = dict(
        zip(cells.var_names, np.asarray((cells.X > 0).mean(axis=0)).ravel(), strict=True)
    )
    best = {
        max(
            (gene for variant in programme.variants for gene in variant.loadings), key=detection.get
        )
        for programme in atlas_biology(1).programmes
    }
    return sorted(best, key=lambda gene: (-detection[gene], gene))[:N_GENES]


def write_screen(seed: int) -> list[str]:
    """Write train.h5ad and doubles.h5ad; return the genes."""
    genes, rng = chosen_genes(), np.random.default_rng(seed)
    pairs = list(itertools.combinations(genes, 2))
    left_out = {pairs[place] for place in rng.permutation(len(pairs))[:LEFT_OUT]}
    arms = [(CONTROLS, ("control", "control"))]
    arms += [(SINGLES, order) for one in genes for order in ((one, "control"), ("control", one))]
    arms += [(DOUBLES, pair[:: rng.choice([-1, 1])]) for pair in pairs if pair not in left_out]
    scored = [(SCORED, pair) for pair in pairs if pair in left_out]
    for name, groups in (("train", arms), ("doubles", scored)):
        seeds = itertools.count(1000 * (seed + 1) + 500 * (name == "doubles"))
        parts = [silenced_cells(n, guides, next(seeds)) for n, guides in groups]
        ad.concat(parts).write_h5ad(f"{name}.h5ad")
    return genes


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="keeps everything")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = chosen.folder or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder):
            genes = write_screen(chosen.seed)
            guides = [f"data.phenotypes.guide_{place}=guide_{place}" for place in (1, 2)]
            sets = [word for guide in guides for word in ("--set", guide)]
            call("init", "train.h5ad", "-o", "screen.toml", *sets)
            trained = call("train", "screen.toml", "--run", "screen")
            report = call("eval", "runs/screen", "doubles.h5ad", "--doubles", "guide_1,guide_2")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(
        f"genes: {', '.join(genes)}; trained in {trained['processor_seconds']:.0f} s of processor time\n"
    )
    print("| prediction | correlation | squared error, over that of no change |\n|---|---|---|")
    for name, correlation in report["correlation"].items():
        interval = report["intervals"].get(name)
        text = "-" if correlation is None else f"{correlation:.3f}"
        if interval and None not in interval:
            text += f" ({interval[0]:.3f} to {interval[1]:.3f})"
        error = report["error"].get(name)
        print(f"| {name} | {text} | {'-' if error is None else f'{error:.3f}'} |")
    print(f"\n{report['verdict']}")


if __name__ == "__main__":
    main()
