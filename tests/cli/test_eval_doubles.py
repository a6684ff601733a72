"""`tfx eval --doubles`: pairs of perturbations without training cells, beside a calculation with numpy."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

GUIDES = ("GATA1", "CEBPA", "KLF1", "SPI1")
DOUBLES = (("GATA1", "KLF1"), ("CEBPA", "SPI1"))
TRAINED = ("CEBPA", "KLF1")
N_GENES = 40
PRESET = """
[data]
files = "train.h5ad"
genes = 40
[data.phenotypes]
guide_1 = "guide_1"
guide_2 = "guide_2"
[data.split]
by = "cells"
[encoding]
bins = 8
[model]
layers = 1
hidden_size = 16
heads = 2
log_linear = true
[masking]
genes = "uniform"
[train]
max_steps = 20
batch_size = 64
learning_rate = 2e-3
device = "cpu"
precision = "fp32"
threads = 1
"""


def perturbed_cells(groups, seed):
    """Draw Poisson counts of cells of pairs of guides, whose effects on the logarithms of the rates add."""
    effects = np.random.default_rng(0).normal(0, 0.6, (len(GUIDES), N_GENES))
    effects[:, 20:] = 0
    rng, counts, obs = np.random.default_rng(seed), [], []
    for guides, n_cells in groups:
        shift = sum(
            (effects[GUIDES.index(one)] for one in guides if one in GUIDES), np.zeros(N_GENES)
        )
        counts.append(rng.poisson(6 * np.exp(shift), (n_cells, N_GENES)))
        obs += [dict(zip(("guide_1", "guide_2"), guides, strict=True))] * n_cells
    names = [f"cell{seed}-{cell}" for cell in range(len(obs))]
    genes = pd.DataFrame(index=[f"GENE{gene}" for gene in range(N_GENES)])
    values = np.concatenate(counts).astype(np.float32)
    return ad.AnnData(values, obs=pd.DataFrame(obs, index=names), var=genes)


def mean_of(cells, *guides):
    """Mean log values of cells of a pair of guides in either order."""
    values = np.log1p(cells.X * 1e4 / cells.X.sum(axis=1, keepdims=True))
    pairs = cells.obs[["guide_1", "guide_2"]].to_numpy().tolist()
    return values[[sorted(pair) == sorted(guides) for pair in pairs]].mean(axis=0)


@pytest.fixture
def screen(tfx, tmp_path):
    """Train on controls, singles in both orders, and one double; write the doubles that training lacks."""
    singles = [pair for one in GUIDES for pair in ((one, "control"), ("control", one))]
    training = perturbed_cells(
        [(("control", "control"), 200), *((pair, 40) for pair in singles), (TRAINED, 30)], 1
    )
    training.write_h5ad(tmp_path / "train.h5ad")
    # Of one double few cells; of the other either order.
    doubles = perturbed_cells(
        [(DOUBLES[0], 30), (DOUBLES[1], 20), (DOUBLES[1][::-1], 20), (TRAINED, 30), (("GATA1", "SPI1"), 5)], 2
    )  # fmt: skip
    doubles.write_h5ad(tmp_path / "doubles.h5ad")
    (tmp_path / "screen.toml").write_text(PRESET)
    result = tfx("train", "screen.toml", "--run", "screen")
    assert result.code == 0, result.stderr
    return training, doubles


def test_unseen_doubles_are_scored_beside_additive_mean_and_ceiling(tfx, screen):
    training, doubles = screen
    result = tfx("eval", "screen", "doubles.h5ad", "--doubles", "guide_1,guide_2", "--json")
    assert result.code == 0, result.stderr
    report = result.json
    assert [one["double"] for one in report["doubles"]] == ["CEBPA + SPI1", "GATA1 + KLF1"]
    assert [one["cells"] for one in report["doubles"]] == [40, 30]
    assert any("(training cells have it): CEBPA + KLF1" in note for note in report["notes"])
    assert any("(fewer than 20 cells): GATA1 + SPI1" in note for note in report["notes"])
    # Held-out cells train nothing, so that effects are those of about four fifths of the file.
    control = mean_of(training, "control", "control")
    singles = {one: mean_of(training, one, "control") - control for one in GUIDES}
    for one in report["doubles"]:
        guides = one["double"].split(" + ")
        real = mean_of(doubles, *guides) - control
        predicted = {
            "additive": sum(singles[guide] for guide in guides),
            "others": np.mean(
                [effect for guide, effect in singles.items() if guide not in guides]
                + [mean_of(training, *TRAINED) - control], axis=0,
            ),
        }  # fmt: skip
        for name, change in predicted.items():
            assert one["correlation"][name] == pytest.approx(
                np.corrcoef(change, real)[0, 1], abs=0.02
            )
            error = ((change - real) ** 2).sum() / (real**2).sum()
            assert one["error"][name] == pytest.approx(error, abs=0.05)
        assert one["correlation"]["none"] is None
        assert one["error"]["none"] == 1
        assert one["correlation"]["ceiling"] > 0.8
        assert one["correlation"]["model"] > 0.5
    means = {
        name: np.mean([one["correlation"][name] for one in report["doubles"]])
        for name in ("model", "additive")
    }
    assert report["correlation"]["model"] == pytest.approx(means["model"])
    assert report["minus_additive"] == pytest.approx(means["model"] - means["additive"])
    assert "sum of both single effects" in report["verdict"]

    text = tfx("eval", "screen", "doubles.h5ad", "--doubles", "guide_2,guide_1").stdout
    assert "GATA1 + KLF1" in text
    assert report["verdict"][:30] in " ".join(text.split())
    for words, sentence in (
        ("--doubles guide_1", "give the two phenotypes"),
        ("--doubles guide_1,guide_3", "has no phenotype 'guide_3'"),
        ("--doubles guide_1,guide_2", "there is no double to score"),
        ("--doubles guide_1,guide_2 --split test", "cannot be used with --doubles"),
    ):
        refused = tfx("eval", "screen", *words.split())
        assert refused.code in (2, 4)
        assert sentence in " ".join(refused.stderr.split())
