"""Knock-outs in the model against knock-outs of the simulated atlas; `benchmarks/interactions.py` runs this.

In a context (a cell type, or a combination of few cells) `tfx perturb` knocks out genes whose programme is active there. The truth: the genes of the
programme respond, or, in version 2 of the atlas and in a programme with a regulator, only to the regulator. Cells of the
simulator with the gene silenced give the shifts to compare with.
"""

from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from core.cells.atlas.biology import atlas_biology
from core.cells.atlas.edges import true_responses
from core.cells.atlas.simulation import simulate_cells
from core.cells.cell_filter import CellFilter, Condition
from core.cells.store import Store
from core.interactions.baselines import measure_association
from core.interactions.cells import ContextCells, store_reader
from core.interactions.effects import estimate_effects
from core.interactions.perturbation import Change, PerturbRequest
from core.interactions.responses import Perturbation, perturb_cells
from core.interactions.result import FOUND
from core.interactions.truth import conditions_of
from core.model.folder import CellModel

CONTEXTS = (
    "macrophage",
    "CD8-positive, alpha-beta T cell",
    "endothelial cell",
    "classical monocyte",
)
#: A gene is knocked out that this fraction of the context's cells express, and that has this many partners.
_LEAST_DETECTION, _LEAST_PARTNERS = 0.3, 3
_PER_PROGRAMME = 2
_ASSOCIATIONS = ("pearson", "pearson_adjusted", "spearman", "partial_correlation")


def measure_knock_outs(
    run: str, contexts: list[CellFilter], *, version: int, n_genes: int, n_cells: int, seed: int
) -> dict[str, list[dict]]:
    """Score knock-outs of a model: a row per knock-out and measure, one per knock-out, one per directed pair."""
    model = CellModel.load(Path(f"runs/{run}/model"))
    store = Store.open(str(model.provenance["store"]))
    read = store_reader(model, store)
    scores, found, directions = [], [], []
    for where in contexts:
        cells = read(where)
        is_small = len(where.conditions) > 1
        context = ", ".join(one.values[0] for one in where.conditions) + f" ({len(cells):,} cells)"
        associations = measure_association(cells, _ASSOCIATIONS)
        if not is_small:
            directions += directed_pairs(model, cells, version=version, seed=seed)
        for gene in chosen_genes(model, cells, version=version)[:n_genes]:
            change = Change(knock_out=[gene])
            request = PerturbRequest(change, where=where, n_cells=n_cells, seed=seed)
            response = perturb_cells(model, read, request, store=store)
            rows, row = score(
                model, cells, where, gene, response, associations, version=version, seed=seed
            )
            place = {
                "context": context,
                "gene": gene,
                "kind": "few cells" if is_small else "cell types",
            }
            scores += [place | one for one in rows]
            found.append(place | row)
            print(f"{run}: {gene} knocked out, {context}", flush=True)
    return {"scores": scores, "found": found, "directions": directions}


def chosen_genes(model: CellModel, cells: ContextCells, *, version: int) -> list[str]:
    """Return genes to knock out, regulators first, at most two of a programme."""
    truth, ids = atlas_biology(version), list(model.panel.ids)
    detection = np.asarray((cells.expression > 0).mean(axis=0)).ravel()
    conditions = conditions_of(model, cells)
    chosen: list[list[str]] = []
    for programme in truth.programmes:
        members = dict.fromkeys(one for variant in programme.variants for one in variant.loadings)
        fit = [
            gene
            for gene in members
            if gene in ids
            and detection[ids.index(gene)] >= _LEAST_DETECTION
            and (true_responses(ids, gene, *conditions).sign != 0).sum() >= _LEAST_PARTNERS
        ]
        regulator = truth.regulators.get(programme.name)
        fit.sort(key=lambda gene: (gene != regulator, -detection[ids.index(gene)]))
        chosen.append(fit[:_PER_PROGRAMME])
    turns = [one[turn] for turn in range(_PER_PROGRAMME) for one in chosen if len(one) > turn]
    directed = {
        gene
        for programme in chosen
        for gene in programme
        if set(programme) & set(truth.regulators.values())
    }
    return sorted(turns, key=lambda gene: gene not in directed)


def score(
    model: CellModel,
    cells: ContextCells,
    where: CellFilter,
    gene: str,
    found: Perturbation,
    associations: dict[str, np.ndarray],
    *,
    version: int,
    seed: int,
) -> tuple[list[dict], dict]:
    """Compare a response, and simple measures, with the responding genes and with simulated knock-outs."""
    ids, at = list(model.panel.ids), int(found.wanted.genes[0])
    truth = true_responses(ids, gene, *conditions_of(model, cells), version=version)
    used = ~np.isnan(found.q) & ~truth.is_partial[0]
    label = (truth.sign[0] != 0)[used]
    effects = estimate_effects(model, cells, found.wanted.genes, np.arange(len(ids)), seed=seed)
    shifts = {
        "the model's knock-out": found.shift,
        "correlation (regression)": found.correlation,
        "mean of other perturbations": found.other_perturbations,
        "no change": np.zeros(len(ids)),
    }
    sizes = shifts | {"effects of tfx interactions": effects.weight[0]}
    sizes |= {name: one[at] for name, one in associations.items()}
    sizes["detection rate"] = np.asarray((cells.expression > 0).mean(axis=0)).ravel()
    real = measured_shift(model, where, gene, version=version, seed=seed)
    rows = []
    for name, one in sizes.items():
        size = np.abs(one[used])
        is_varied = 0 < label.sum() < len(label) and name != "no change"
        row = {"measure": name, "auroc": float(roc_auc_score(label, size)) if is_varied else np.nan}
        if name in shifts:
            error = ((one[used] - real[used]) ** 2).sum() / (real[used] ** 2).sum()
            r = np.corrcoef(one[used], real[used])[0, 1] if name != "no change" else np.nan
            row |= {"r": float(r), "error": float(error)}
        rows.append(row)
    called = found.q[used] < FOUND
    right = np.sign(found.shift[used]) == -truth.sign[0][used]
    summary = {
        "responders": int(label.sum()),
        "found": int(called.sum()),
        "true": int((called & label).sum()),
        "sign": int((called & label & right).sum()),
    }
    return rows, summary


def measured_shift(
    model: CellModel, where: CellFilter, gene: str, *, version: int, seed: int
) -> np.ndarray:
    """(G,) change of mean log values in simulated cells of a context when the gene is silenced."""
    condition = {one.name: one.values[0] for one in where.conditions}
    means = []
    for silenced in ((), (gene,)):
        drawn = simulate_cells(
            3000, seed=1000 + seed, version=version, silenced=silenced, include_left_out=False,
            **condition,
        )  # fmt: skip
        totals = np.asarray(drawn.X.sum(axis=1))
        values = np.log1p(drawn[:, list(model.panel.ids)].X.toarray() * 1e4 / totals)
        means.append(values.mean(axis=0))
    shift: np.ndarray = means[1] - means[0]
    return shift


def directed_pairs(model: CellModel, cells: ContextCells, *, version: int, seed: int) -> list[dict]:
    """Compare both directions of each pair of a regulator and a gene that it drives in a context."""
    truth, ids = atlas_biology(version), list(model.panel.ids)
    conditions = conditions_of(model, cells)
    rows = []
    for regulator in truth.regulators.values():
        if regulator not in ids or cells.expression[:, ids.index(regulator)].nnz < 50:
            continue
        sign = true_responses(ids, regulator, *conditions, version=version).sign[0]
        counts = np.asarray((cells.expression > 0).sum(axis=0)).ravel()
        targets = np.flatnonzero((sign != 0) & (counts >= 50))
        if len(targets) == 0:
            continue
        at = np.concatenate([[ids.index(regulator)], targets])
        weights = {
            "effects of tfx interactions": estimate_effects(
                model, cells, at, at, error=0.05, seed=seed
            ).weight,
            "gradient-boosted trees": measure_association(cells, ["trees"])["trees"][
                np.ix_(at, at)
            ],
        }
        for name, weight in weights.items():
            forward, back = np.abs(weight[0, 1:]), np.abs(weight[1:, 0])
            rows.append(
                {"regulator": regulator, "measure": name, "pairs": len(targets)}
                | {"right": int((forward > back).sum())}
            )
    return rows


def cell_types(n: int) -> list[CellFilter]:
    """Return filters of the first cell types."""
    return [CellFilter((Condition("cell_type", (name,)),)) for name in CONTEXTS[:n]]


def show_knock_outs(results: dict[str, dict[str, list[dict]]]) -> None:
    """Print the tables as Markdown."""
    for name, one in results.items():
        found, scores = one["found"], one["scores"]
        kinds = list(dict.fromkeys(row["kind"] for row in found))
        counts = {kind: sum(row["kind"] == kind for row in found) for kind in kinds}
        heads = [
            f"{what}, {kind} ({counts[kind]})"
            for kind in kinds
            for what in ("AUROC of responding genes", "r with the real shift", "its error")
        ]
        print(f"\n{name}: means over knock-outs, in contexts of cell types and of few cells\n")
        print(f"| measure | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
        for measure in dict.fromkeys(row["measure"] for row in scores):
            shown = []
            for kind in kinds:
                own = [row for row in scores if (row["measure"], row["kind"]) == (measure, kind)]
                for key in ("auroc", "r", "error"):
                    values = [
                        row[key] for row in own if row.get(key, np.nan) == row.get(key, np.nan)
                    ]
                    shown.append(f"{np.mean(values):.3f}" if values else "")
            print(f"| {measure} | {' | '.join(shown)} |")
        print(
            "\n| knock-out | context | responders | found (q < 0.05) | true | of the right sign |"
        )
        print("|---|---|---|---|---|---|")
        for row in found:
            print(
                f"| {' | '.join(str(row[key]) for key in ('gene', 'context', 'responders', 'found', 'true', 'sign'))} |"
            )
        if one["directions"]:
            print("\n| direction of regulator and driven gene | right | pairs |\n|---|---|---|")
            for measure in dict.fromkeys(row["measure"] for row in one["directions"]):
                own = [row for row in one["directions"] if row["measure"] == measure]
                right, pairs = (sum(row[key] for row in own) for key in ("right", "pairs"))
                print(f"| {measure} | {right} | {pairs} |")
