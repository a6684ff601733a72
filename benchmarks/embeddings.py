"""How much of a cell its embedding holds: [CLS] by plain masked training and by its own objectives, PCA, scVI.

    python benchmarks/embeddings.py                               the simulated atlas, one seed
    python benchmarks/embeddings.py a.h5ad b.h5ad:treatment       and these files; ":column" adds a
                                                                  phenotype of that obs column
    python benchmarks/embeddings.py --seeds 3 --quick --json      last line one JSON object

A seed is another split (by donor, where donors are known) and another model. Every variant sees the same
cells and genes and as many steps (contrast computes each cell twice). Embeddings are of cells with all genes
visible and no phenotype shown; probes learn from training cells, all figures are of test cells:

- probe: logistic regression on the standardised embedding, accuracy / macro-F1;
- neighbours: fraction of cells whose 15 nearest training cells vote for the right label;
- silhouette: of the label, cosine, -1 to 1;
- masked loss: of genes / phenotypes of validation cells, what training is for (and what may suffer);
- mixing: of a test cell's 15 nearest test cells of its label, how many are of another donor, over what
  chance gives; 1 is mixed, 0 is one island per donor.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from commands import call

from core.cells.store import Store
from core.model.batch_tensors import BatchTensors
from core.model.folder import CellModel

#: Beside the encoder, as in log_linear.toml: steps of both after those of the log-linear part alone.
LOG_LINEAR = {"model.log_linear": "true", "train.max_steps": 3000, "train.log_linear_steps": 2000}
#: Variant -> what of the preset it changes.
VARIANTS = {
    "masked": {},
    "reconstruction": {"loss.cls_reconstruction": 1.0},
    "contrast": {"loss.cls_contrast": 0.1},
    "contrast-half": {"loss.cls_contrast": 0.1, "train.max_steps": 500},  # as many cells computed
    "summary": {"model.cell_summary": "true"},
    "summary-reconstruction": {"model.cell_summary": "true", "loss.cls_reconstruction": 1.0},
    "both": {"loss.cls_reconstruction": 1.0, "loss.cls_contrast": 0.1},
    "log-linear": LOG_LINEAR,
    "log-linear-summary": LOG_LINEAR | {"model.cell_summary": "true"},
}
#: Of the encoder alone: beside a log-linear part it learns what that leaves over, not the cell.
SETTINGS = {
    "data.genes": 128, "model.log_linear": "false", "model.cell_summary": "false",
    "train.max_steps": 1000, "train.log_linear_steps": 0, "train.eval_steps": 500,
    "train.save_steps": 1000, "train.eval_cells": 200,
}  # fmt: skip
_NEIGHBOURS = 15
_COMPONENTS = 50
_BATCH = 64
_MOST_CELLS = 3000


def embed(model: CellModel, store: Store, rows: np.ndarray, place: str) -> np.ndarray:
    """(cells, width), read with all genes visible and no phenotype shown."""
    names = list(model.config.phenotypes)
    parts = []
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        nothing = np.zeros((len(some), len(names)), dtype=np.int32)
        rng = np.random.default_rng(0)
        arrays = model.batches.visible(store.read(some, model.panel), nothing, names, rng)
        with torch.inference_mode():
            found = model.network.eval().cell_embeddings(BatchTensors.from_arrays(arrays), place)
        parts.append(found.float().numpy())
    return np.concatenate(parts)


def score(
    train: np.ndarray,
    test: np.ndarray,
    labels: tuple[np.ndarray, np.ndarray],
    donors: np.ndarray | None,
) -> dict[str, float]:
    """Score embeddings of training and test cells against the labels of both."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score, silhouette_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    known, known_test = labels[0] >= 0, labels[1] >= 0
    scaler = StandardScaler().fit(train[known])
    x, y = scaler.transform(train[known]), scaler.transform(test[known_test])
    truth, answers = labels[0][known], labels[1][known_test]
    predicted = LogisticRegression(max_iter=2000, C=0.1).fit(x, truth).predict(y)
    near = KNeighborsClassifier(_NEIGHBOURS, metric="cosine").fit(x, truth).predict(y)
    return {
        "probe": accuracy_score(answers, predicted),
        "probe_f1": f1_score(answers, predicted, average="macro", labels=np.unique(answers)),
        "neighbours": accuracy_score(answers, near),
        "silhouette": silhouette_score(y, answers, metric="cosine") if len(np.unique(answers)) > 1 else np.nan,
        "mixing": mixing(y, answers, None if donors is None else donors[known_test]),
    }  # fmt: skip


def mixing(embedded: np.ndarray, labels: np.ndarray, donors: np.ndarray | None) -> float:
    """Neighbours of other donors within a label, over what chance gives; NaN without donors."""
    from sklearn.neighbors import NearestNeighbors

    if donors is None or len(np.unique(donors)) < 2:
        return float("nan")
    found = expected = 0.0
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) <= _NEIGHBOURS:
            continue
        finder = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1, metric="cosine").fit(embedded[own])
        near = finder.kneighbors(embedded[own], return_distance=False)[:, 1:]
        of = donors[own]
        found += (of[near] != of[:, None]).mean(axis=1).sum()
        shares = np.array([(of == donor).sum() for donor in of])
        expected += ((len(own) - shares) / (len(own) - 1)).sum()
    return found / expected if expected else float("nan")


def scvi_latents(
    store: Store, model: CellModel, rows: dict[str, np.ndarray], seed: int
) -> list[np.ndarray]:
    """Latent means of scVI at the package's defaults, trained on the counts of all training cells."""
    import scvi
    from anndata import AnnData

    scvi.settings.seed = seed
    train = store.rows("train")
    cells = AnnData(store.read_counts(train, model.panel).astype(np.float32))
    scvi.model.SCVI.setup_anndata(cells)
    fitted = scvi.model.SCVI(cells)
    fitted.train(enable_progress_bar=False, logger=False, enable_checkpointing=False)
    cells_of = [
        AnnData(store.read_counts(one, model.panel).astype(np.float32)) for one in rows.values()
    ]
    return [np.asarray(fitted.get_latent_representation(one)) for one in cells_of]


def measure(
    name: str, settings: dict[str, object], seeds: int, variants: list[str], *, with_scvi: bool
) -> dict[str, dict[str, dict]]:
    """Phenotype -> embedding -> figures of each seed."""
    from sklearn.decomposition import PCA

    preset = Path(__file__).with_name("log_linear.toml")
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(seeds):
        of_seed = settings | {"train.seed": seed, "data.split.seed": seed}
        pca_done = False
        for variant in variants:
            changed = of_seed | VARIANTS[variant]
            sets = [part for k, v in changed.items() for part in ("--set", f"{k}={v}")]
            run = f"{name}-{variant}-{seed}"
            validation = call("train", str(preset), "--run", run, *sets)["validation"]
            model = CellModel.load(Path(f"runs/{run}/model"))
            store = Store.open(str(model.provenance["store"]))
            rows = {}
            for split in ("train", "test"):
                own = store.rows(split)
                rng = np.random.default_rng(seed)
                rows[split] = (
                    own
                    if len(own) <= _MOST_CELLS
                    else np.sort(rng.choice(own, _MOST_CELLS, replace=False))
                )
            embedded = {
                f"{variant}, {place}": [embed(model, store, rows[split], place) for split in rows]
                for place in ("cls", "mean")
            }
            if not pca_done:
                cells = [store.read(rows[split], model.panel).toarray() for split in rows]
                pca = PCA(min(_COMPONENTS, len(model.panel)), random_state=0).fit(cells[0])
                embedded["PCA"] = [pca.transform(one) for one in cells]
                if with_scvi:
                    embedded["scVI"] = scvi_latents(store, model, rows, seed)
                pca_done = True
            donors = None if store.donors is None else np.asarray(store.donors[rows["test"]])
            for slot, phenotype in enumerate(store.phenotypes):
                labels = tuple(np.asarray(store.phenotype_codes[rows[s], slot]) for s in rows)
                if len(np.unique(labels[0][labels[0] >= 0])) < 2 or not (labels[1] >= 0).any():
                    continue
                for kind, (train, test) in embedded.items():
                    figures = score(train, test, labels, donors)
                    if kind not in ("PCA", "scVI"):
                        for part in ("genes", "phenotypes"):
                            figures[part] = validation[f"loss/{part}"]
                    found.setdefault(phenotype, {}).setdefault(kind, []).append(figures)
            print(f"{name}: {variant}, seed {seed + 1} of {seeds}", flush=True)
    return found


def show(results: dict[str, dict[str, dict]]) -> None:
    """Print the table as Markdown."""
    print(
        "\n| dataset | phenotype | embedding | probe | neighbours | silhouette | mixing | masked loss |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for dataset, phenotypes in results.items():
        for phenotype, kinds in phenotypes.items():
            for kind, seeds in kinds.items():
                probe = f"{_mean(seeds, 'probe')} / {_mean(seeds, 'probe_f1')}"
                rest = " | ".join(_mean(seeds, m) for m in ("neighbours", "silhouette", "mixing"))
                masked = " / ".join(_mean(seeds, part) for part in ("genes", "phenotypes"))
                print(f"| {dataset} | {phenotype} | {kind} | {probe} | {rest} | {masked} |")


def _mean(seeds: list[dict[str, float]], measure_name: str) -> str:
    values = [one[measure_name] for one in seeds if not np.isnan(one.get(measure_name, np.nan))]
    if not values:
        return ""
    spread = f" ({statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help=".h5ad files, each with ':column' if wanted")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps")
    parser.add_argument("--no-atlas", action="store_true", help="the files alone")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of these, by commas")
    parser.add_argument("--scvi", action="store_true", help="scVI's latent space too (extra scvi)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    variants = arguments.variants.split(",")
    if unknown := set(variants) - VARIANTS.keys():
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    quick = {"train.max_steps": 200} if arguments.quick else {}
    jobs = [] if arguments.no_atlas else [("atlas", SETTINGS | quick)]
    for given in arguments.files:
        path, _, column = given.partition(":")
        settings = SETTINGS | quick | {"data.files": json.dumps(str(Path(path).resolve()))}
        if column:
            settings[f"data.phenotypes.{column}"] = column
        jobs.append((Path(path).stem, settings))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        results = {
            name: measure(name, settings, arguments.seeds, variants, with_scvi=arguments.scvi)
            for name, settings in jobs
        }
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{arguments.seeds} seed(s)")  # fmt: skip
    show(results)
    if arguments.json:
        print(json.dumps({"seeds": arguments.seeds, "results": results}))


if __name__ == "__main__":
    main()
