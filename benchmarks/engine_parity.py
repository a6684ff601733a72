"""Whether what makes training fast costs loss: part of `engine --parity`.

Two questions. Do the baseline and tfx compute the same thing: with copied weights, a joint head and
neither dropout nor smoothing, loss and gradients must agree to rounding. And do runs end at the same
validation loss: the simulated atlas is trained on with several seeds, each shortcut beside plain fp32
with the same seed, so that both see the same cells, masks and initial weights.
"""

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from engine_cells import LOSS, Size, make_batch, make_network, reading_whole_last_layer
from originals_engine import ExpressedOriginal, RankedOriginal, make_original, padded_inputs

from core.cells.prepare import ensure_store
from core.encoding.tokens import CLS, END, NONE, START
from core.model.batch_tensors import BatchTensors
from core.model.cell_model import TfxModel
from core.model.encoder import Encoder
from core.model.losses import masked_loss
from core.presets.loading import resolve_preset
from core.runlog import RunReader
from core.training.engine import train

#: Logit bias of tokens that tfx's joint head does not have: their probability is nothing.
_NEVER = -1e4
_LAYER_NAMES = {
    "bert": (
        "bert.encoder.layer.{}.", "attention.self.query", "attention.self.key",
        "attention.self.value", "attention.output.dense", "attention.output.LayerNorm",
        "intermediate.dense", "output.dense", "output.LayerNorm",
    ),
    "distilbert": (
        "transformer.layer.{}.", "attention.q_lin", "attention.k_lin", "attention.v_lin",
        "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
    ),
}  # fmt: skip
_OUR_NAMES = (
    "attention_output", "attention_norm", "feed_forward_in", "feed_forward_out",
    "feed_forward_norm",
)  # fmt: skip


# ------------------------------------------------------------------------------ equal weights


def copy_weights(original: RankedOriginal | ExpressedOriginal, network: TfxModel) -> None:
    """Give a tfx model with a joint head the weights of an original."""
    tokens, config = network.config.tokens, network.config
    theirs = original.state_dict()
    if isinstance(original, RankedOriginal):
        words = theirs["bert.embeddings.word_embeddings.weight"]
        norm, head = "bert.embeddings.LayerNorm", "head.predictions."
        transform = (f"{head}transform.dense", f"{head}transform.LayerNorm")
        output, layer = f"{head}decoder", _LAYER_NAMES["bert"]
        places = theirs["bert.embeddings.position_embeddings.weight"]
        order = [CLS, *range(tokens.first_slot, tokens.first_gene), START]
        order += [*range(tokens.first_gene, tokens.n_token_ids), END]
        identities = torch.empty_like(places)
        identities[order] = places + theirs["bert.embeddings.token_type_embeddings.weight"][0]
    else:
        words, identities = theirs["value.weight"], theirs["gene.weight"].clone()
        norm, transform, output = "norm", ("head.0", "head.2"), "head.3"
        layer = _LAYER_NAMES["distilbert"]
    for number, identity in enumerate((CLS, START, END)):
        identities[identity] += words[tokens.n_values + number] - words[NONE]
    ours = {
        "embedding.identity.weight": identities,
        "embedding.value.weight": words[: tokens.n_values],
    }
    answers = _answers(network)
    for part in ("weight", "bias"):
        ours[f"embedding.norm.{part}"] = theirs[f"{norm}.{part}"]
        ours[f"joint_transform.linear.{part}"] = theirs[f"{transform[0]}.{part}"]
        ours[f"joint_transform.norm.{part}"] = theirs[f"{transform[1]}.{part}"]
        ours[f"joint_output.{part}"] = theirs[f"{output}.{part}"][answers]
        for number in range(config.layers):
            there, here = layer[0].format(number), f"encoder.layers.{number}."
            ours[f"{here}query_key_value.{part}"] = torch.cat(
                [theirs[f"{there}{name}.{part}"] for name in layer[1:4]]
            )
            for our_name, name in zip(_OUR_NAMES, layer[4:], strict=True):
                ours[f"{here}{our_name}.{part}"] = theirs[f"{there}{name}.{part}"]
    network.encoder_part.load_state_dict(ours)


def _answers(network: TfxModel) -> torch.Tensor:
    """Token of each output of a joint head: the bins, then the values of all phenotypes."""
    tokens = network.config.tokens
    answers = [tokens.first_bin + bin_ for bin_ in range(network.config.n_bins)]
    for first, size in zip(tokens.not_specified, network.config.phenotype_sizes, strict=True):
        answers += [int(first) + 1 + code for code in range(size)]
    return torch.tensor(answers)


def compare_equal_weights(layout: str) -> dict[str, float]:
    """Loss and gradients of the two, float64; how far apart they are."""
    n_genes, lengths = 200, [208] * 3 if layout == "ranked" else [150, 30, 90]
    network = make_network(
        Size(layers=3, width=32, heads=4), layout, n_genes, longest=208, head="joint"
    ).double()
    config = network.config
    original = make_original(config, dropout=0.0).double()
    original.smoothing = 0.0
    output = (
        original.head.predictions.decoder
        if isinstance(original, RankedOriginal)
        else original.head[-1]
    )
    with torch.no_grad():
        bias = torch.full_like(output.bias, _NEVER)
        bias[_answers(network)] = 0.0
        output.bias.copy_(bias)
    copy_weights(original, network)
    arrays = make_batch(config, lengths, seed=0)
    batch = BatchTensors.from_arrays(arrays)
    theirs = original(padded_inputs(arrays, config))
    theirs.backward()
    answers = network(batch)
    parts = masked_loss(
        answers.gene_logits, answers.phenotype_logits, batch, config,
        LOSS.model_copy(update={"smoothing": 0.0}),
    )  # fmt: skip
    counts = len(arrays.gene_position), len(arrays.phenotype_position)
    # Theirs is one mean over all masked positions, ours one mean for each kind.
    ours = (counts[0] * parts.genes + counts[1] * parts.phenotypes) / sum(counts)
    ours.backward()
    names = _LAYER_NAMES["bert" if layout == "ranked" else "distilbert"]
    gradients = dict(original.named_parameters())
    worst = 0.0
    for number, layer in enumerate(network.encoder_part.encoder.layers):
        there = names[0].format(number)
        expected = torch.cat([gradients[f"{there}{name}.weight"].grad for name in names[1:4]])
        found = layer.query_key_value.weight.grad
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    return {"their_loss": theirs.item(), "our_loss": ours.item(), "gradient_difference": worst}


# ----------------------------------------------------------------------------------- training

WHOLE = "fp32, last layer computed in full"
#: What is trained: label -> options of the preset beyond `_COMMON`.
RUNS = {
    "fp32": {},
    "bf16": {"train.precision": "bf16"},
    WHOLE: {},
    "fp32, the originals' dropout": {"model.dropout": 0.1, "model.attention_dropout": 0.1},
}
_COMMON = {
    "masking.genes": 0.15, "masking.visible_cells": 0.0, "model.log_linear": False,
    "model.layers": 4, "model.hidden_size": 128, "model.dropout": 0.0, "loss.weighting": "mean",
    "train.log_linear_steps": 0, "train.batch_size": 16, "train.precision": "fp32",
    "train.device": "cpu", "train.eval_cells": 1200, "train.log_steps": 50,
}  # fmt: skip
_KEYS = ("loss", "loss/genes", "loss/phenotypes", "acc/genes", "acc/cell_type")


def train_all(folder: Path, *, steps: int, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Train every run with every seed; last validation figures of each."""
    preset = Path(__file__).with_name("log_linear.toml")
    store = ensure_store(resolve_preset(preset).preset.data, "base", root=folder)
    found: dict[str, list[dict[str, float]]] = {}
    for label, options in RUNS.items():
        for seed in range(seeds):
            every = {"train.max_steps": steps, "train.eval_steps": steps, "train.save_steps": steps}
            resolved = resolve_preset(
                preset, options={**_COMMON, **every, "train.seed": seed, **options}
            )
            run = folder / f"{label}-{seed}"
            if label == WHOLE:
                whole = reading_whole_last_layer(Encoder.forward)
                with patch.object(Encoder, "forward", whole):
                    train(resolved, store, run)
            else:
                train(resolved, store, run)
            last = RunReader(run).metrics("validation")[-1]
            found.setdefault(label, []).append({key: last[key] for key in _KEYS})
    return found


def measure(*, quick: bool) -> dict:
    """Answer both questions."""
    steps, seeds = (40, 2) if quick else (150, 3)
    with tempfile.TemporaryDirectory() as folder:
        runs = train_all(Path(folder), steps=steps, seeds=seeds)
    plain = np.array([found["loss"] for found in runs["fp32"]])
    noise = float(plain.std(ddof=1))
    gates = {}
    for label in list(RUNS)[1:]:
        difference = np.array([found["loss"] for found in runs[label]]) - plain
        mean = float(difference.mean())
        verdict = "within noise" if abs(mean) <= noise else "worse" if mean > 0 else "better"
        largest = float(np.abs(difference).max())
        gates[label] = {"mean": mean, "largest": largest, "verdict": verdict}
    return {
        "equal_weights": {name: compare_equal_weights(name) for name in ("ranked", "expressed")},
        "steps": steps,
        "seeds": seeds,
        "seed_noise": noise,
        "runs": runs,
        "gates": gates,
    }


def show(results: dict) -> None:
    """Print both as Markdown."""
    print("\n| equal weights, float64 | loss, (i) | loss, tfx | difference of gradients |")
    print("|---|---|---|---|")
    for layout, found in results["equal_weights"].items():
        print(f"| {layout} | {found['their_loss']:.8f} | {found['our_loss']:.8f} | "
              f"{found['gradient_difference']:.1e} |")  # fmt: skip
    print(f"\nValidation after {results['steps']} steps, mean of {results['seeds']} seeds; seed noise "
          f"(sd of the fp32 loss) {results['seed_noise']:.4f}\n")  # fmt: skip
    print("| | loss | genes | phenotypes | genes right | cell types right | loss - fp32, same seeds "
          "(largest) | |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for label, runs in results["runs"].items():
        means = [f"{np.mean([run[key] for run in runs]):.4f}" for key in _KEYS]
        gate = results["gates"].get(label)
        verdict = ["", ""]
        if gate is not None:
            verdict = [f"{gate['mean']:+.5f} ({gate['largest']:.5f})", gate["verdict"]]
        print(f"| {' | '.join([label, *means, *verdict])} |")
