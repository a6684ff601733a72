"""From a run of PolyGene or PerturbGene to a preset that extends its family's.

What the run was told stands behind the keys it decides; what decides nothing here is listed with the
reason. The documented meaning of an option is taken where the original did otherwise
(docs/published-models.md).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from core.presets.schema import STANDARD_PHENOTYPES, phenotype_of
from core.presets.toml_text import printable, write_key, write_value
from core.published.commands import OriginalRun
from core.published.options import OPTIONS

__all__ = ["write_original"]

_WIDTH = 28
_SHARD = 10_000  # both systems' default
_BATCHES_PER_STEP = 4  # PolyGene's gradient_accumulation_steps, in its code
#: DistilBERT's shapes that PerturbGene ships: hidden and intermediate size.
_SHAPES = {"base": (768, 3072), "large": (1024, 4096)}
#: Genes of a cell that it masks from, by its limit: what is known of Tabula Sapiens.
_EXPRESSED = 2500


def write_original(run: OriginalRun) -> str:
    """Write the preset of a run.

    Returns
    -------
    TOML.

    Raises
    ------
    ConfigurationError
        An option's value is not what its system takes, or options contradict each other.
    """
    keys = _Keys(run)
    family = _polygene(keys) if run.system == "PolyGene" else _perturbgene(keys)
    return "\n".join([*_head(run), f'extends = "{family}"', *keys.lines(), ""])


class _Keys:
    """Keys of the preset as they are decided, and the options that decided them."""

    def __init__(self, run: OriginalRun) -> None:
        self.run, self.options = run, run.options
        self.values: dict[str, dict[str, tuple[object, str]]] = {"": {}}

    def put(self, key: str, value: object, source: str) -> None:
        """Set a dotted key; ``source`` says by which option."""
        section, _, name = key.rpartition(".")
        self.values.setdefault(section, {})[name] = (value, source)

    def take(self, option: str, key: str, kind: type) -> None:
        """Set a key to an option's value, if it was given."""
        if option in self.options:
            self.put(key, self.number(option, kind), self.said(option))

    def said(self, option: str) -> str:
        """Write an option and its value for a comment."""
        value = self.options[option]
        if value is True:
            return option
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{option} {text}" if len(text) <= 60 else option

    def number(self, option: str, kind: type, default: Any = None) -> Any:  # noqa: ANN401
        """Return an option's value as a number."""
        value = self.options.get(option, default)
        try:
            found = kind(value)
        except (TypeError, ValueError):
            found = math.nan
        if isinstance(value, bool) or not math.isfinite(found):
            what = "a whole number" if kind is int else "a number"
            message = f"{self.run.where}: {option} must be {what} (got {value!r})"
            raise ConfigurationError(message)
        return found

    def texts(self, option: str) -> list[str]:
        """Return an option's value as a list of texts."""
        value = self.options.get(option, [])
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]

    def lines(self) -> Iterator[str]:
        for section, values in self.values.items():
            if not values:
                continue
            yield ""
            if section:
                yield f"[{section}]"
            for name, (value, source) in values.items():
                line = f"{write_key(name)} = {write_value(value)}"
                yield f"{line:<{_WIDTH - 1}} # {printable(source)}"


def _head(run: OriginalRun) -> Iterator[str]:
    yield f"# A run of {run.system}, imported from {printable(run.where)}."
    yield "#"
    yield "# The option behind each key is the original's. What differs: docs/published-models.md."
    without = [
        f"#   {option.name}: {option.note}"
        for option in OPTIONS[run.system]
        if option.name in run.options and not option.ours
    ]
    if without:
        yield "#"
        yield "# Options that decide nothing here:"
        yield from without
    yield ""


def _files(keys: _Keys, train: str, evaluation: str) -> int:
    """Set the files; return how many shards train."""
    train_paths = [_path(one) for one in keys.texts(train)]
    cells = [_path(one) for one in keys.texts(evaluation) if not one.endswith(".json")]
    if not train_paths:
        message = f"{keys.run.where}: {train} is missing, the files to train on"
        raise ConfigurationError(message)
    keys.put("data.files", train_paths, train)
    keys.put("data.validation_files", cells, evaluation if cells else f"no files in {evaluation}")
    keys.put("data.test_files", [], "none; name some for tfx eval")
    if cells:
        keys.put("data.split.validation", 0.0, f"those of {evaluation}")
    keys.put("data.split.test", 0.0, "none; 0.1 keeps a tenth of the donors")
    return sum(map(_count, train_paths))


def _path(text: str) -> str:
    return re.sub(r"^file://", "", text)


def _count(pattern: str) -> int:
    """Count the files that braces stand for: name_{0..43}.h5ad."""
    count = 1
    for first, last in re.findall(r"\{(\d+)\.\.(\d+)\}", pattern):
        count *= abs(int(last) - int(first)) + 1
    return count


def _phenotypes(keys: _Keys, option: str, shown: Sequence[str]) -> None:
    names = [phenotype_of(one, {}) for one in shown]
    for name, one in zip(names, shown, strict=True):
        if name not in STANDARD_PHENOTYPES:
            message = (
                f"{keys.run.where}: {option} names {one!r}; the phenotypes are "
                f"{', '.join(STANDARD_PHENOTYPES)}"
            )
            raise ConfigurationError(message)
    for name, column in STANDARD_PHENOTYPES.items():
        is_shown = name in names
        keys.put(f"data.phenotypes.{name}", column if is_shown else False,
                 option if is_shown else f"not among {option}")  # fmt: skip


def _name(keys: _Keys) -> None:
    if "output_dir" in keys.options:
        last = str(keys.options["output_dir"]).rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^\w.-]+", "-", last).strip(".-")
        if name:
            keys.put("name", name, keys.said("output_dir"))


def _weight(keys: _Keys, n_phenotypes: float, n_genes: float) -> None:
    """Weigh phenotypes as one mean over all masked positions does."""
    if n_phenotypes and n_genes:
        weight = float(f"{n_phenotypes / n_genes:.2g}")
        keys.put("loss.phenotype_weight", weight, "one mean over all masked positions")
    else:
        keys.put("loss.phenotype_weight", 1.0, "one kind of question alone")


# ------------------------------------------------------------------------------------- PolyGene


def _polygene(keys: _Keys) -> str:
    options, task = keys.options, keys.run.task
    n_genes = keys.number("n_highly_variable_genes", int, 2432)
    n_bins = keys.number("num_bins", int, 10)
    is_binary = bool(options.get("binary_expression")) or n_bins == 2
    _name(keys)
    n_files = _files(keys, "train_data_path", "eval_data_path")
    keys.put("data.genes", n_genes, f"n_highly_variable_genes {n_genes}")
    if task == "inference":
        _filter(keys)
    label = options.get("label")
    shown = keys.texts("sequence_types")
    if label is not None:
        shown = [str(label)]
    elif "sequence_types" not in options:
        room = keys.number("max_length", int, n_genes + 8) - n_genes
        shown = list(STANDARD_PHENOTYPES) if room >= 3 + len(STANDARD_PHENOTYPES) else []
    _phenotypes(keys, "label" if label is not None else "sequence_types", shown)
    keys.put("encoding.kind", "binary" if is_binary else "binned", "binary_expression")
    if is_binary:
        keys.take("threshold", "encoding.threshold", float)
    else:
        keys.put("encoding.bins", n_bins, f"num_bins {n_bins}")
    genes_masked = keys.number("mlm_probability", float, 0.15)
    phenotypes_masked = keys.number("phenotypic_mlm_probability", float, 0.5)
    family = "polygene-2432-binary" if is_binary else "polygene-2432-binned"
    if label is not None:
        family = "polygene-classify-2434"
        keys.put("classification.column", str(label), keys.said("label"))
    else:
        keys.put("masking.genes", genes_masked, "mlm_probability")
        keys.put("masking.phenotypes", phenotypes_masked, "phenotypic_mlm_probability")
        _weight(keys, len(shown) * phenotypes_masked, n_genes * genes_masked)
    if label is not None and not is_binary:
        keys.put("encoding.threshold", 0.1, "not read there for bins")
    keys.take("n_epochs", "train.epochs", float)
    keys.take("learning_rate", "train.learning_rate", float)
    if "train_batch_size" in options:
        theirs = keys.number("train_batch_size", int)
        parts = 1 if label is not None else _BATCHES_PER_STEP
        keys.put(
            "train.batch_size",
            theirs * parts,
            keys.said("train_batch_size") + f", {parts} at a time",
        )
        keys.put("train.micro_batches", parts, "gradient_accumulation_steps in its code")
        n_batches = max(n_files * keys.number("shard_size", int, _SHARD) // theirs, 1)
        share = keys.number("save_steps", float, 0.1)
        keys.put(
            "train.save_steps",
            max(int(share * n_batches), 1),
            f"save_steps {share:g} of {n_batches:,} batches",
        )
        each = 0.1 if label is not None else 0.25
        keys.put(
            "train.eval_steps",
            max(int(each * n_batches), 1),
            f"{each:g} of {n_batches:,} batches in its code",
        )
    if "shard_size" in options:
        keys.put("train.eval_cells", keys.number("shard_size", int), keys.said("shard_size"))
    return family  # fmt: skip


def _filter(keys: _Keys) -> None:
    wanted = keys.options.get("filter_phenotypes") or {}
    if not isinstance(wanted, Mapping):
        message = f"{keys.run.where}: filter_phenotypes must be an object of lists"
        raise ConfigurationError(message)
    filters = []
    for column, values in wanted.items():
        listed = [values] if isinstance(values, str) else list(values)
        quoted = [json.dumps(str(one)) if "," in str(one) else str(one) for one in listed]
        filters.append(f"{phenotype_of(str(column), {})}={','.join(quoted)}")
    if filters:
        keys.put("data.where", filters, "filter_phenotypes")


# ---------------------------------------------------------------------------------- PerturbGene


def _perturbgene(keys: _Keys) -> str:
    options = keys.options
    is_classifier = keys.run.task == "cls" or "phenotype_category" in options
    _name(keys)
    _files(keys, "train_data_paths", "eval_data_paths")
    keys.take("num_top_genes", "data.genes", int)
    if "vocab_path" in options:
        keys.put("data.vocabulary", str(options["vocab_path"]), keys.said("vocab_path"))
    shown = keys.texts("included_phenotypes")
    asked = options.get("phenotype_category")
    _phenotypes(keys, "included_phenotypes", [*shown, *([str(asked)] if asked is not None else [])])
    n_bins = _bins(keys)
    _shape(keys)
    length = keys.number("max_length", int, 0)
    if length:
        more = 2 if is_classifier else 1
        keys.put(
            "encoding.max_length",
            length + more,
            f"max_length {length}, and {'[START] and the asked phenotype' if is_classifier else '[START]'}",
        )
    if is_classifier:
        _classifier(keys, str(asked), shown)
    else:
        genes_masked = keys.number("gene_mask_prob", float, 0.15)
        phenotypes_masked = keys.number("phenotype_mask_prob", float, 0.5)
        keys.put("masking.genes", genes_masked, "gene_mask_prob")
        keys.put("masking.phenotypes", phenotypes_masked, "phenotype_mask_prob")
        if n_bins:
            share = float(f"{1 / n_bins:.2g}")
            keys.put("masking.unexpressed", share, "one of the bins, by SWAP_GENE_IDS_PROB")
        expressed = min(length or _EXPRESSED, _EXPRESSED)
        _weight(keys, 0.9 * len(shown) * phenotypes_masked, expressed * genes_masked)
    _perturbgene_training(keys)
    return "perturbgene-classify-tissue" if is_classifier else "perturbgene-128-base"  # fmt: skip


def _bins(keys: _Keys) -> int:
    """Set the bins; return how many there are, 0 where a file knows."""
    if "bin_edges" in keys.options:
        edges = keys.options["bin_edges"]
        values = edges if isinstance(edges, list) else str(edges).split()
        try:
            numbers = [float(one) for one in values]
        except (TypeError, ValueError):
            message = f"{keys.run.where}: bin_edges must be numbers (got {edges!r})"
            raise ConfigurationError(message) from None
        keys.put("encoding.bins", len(numbers) + 1, "one more than bin_edges")
        keys.put("encoding.edges", numbers, "bin_edges")
        return len(numbers) + 1
    if "bin_edges_path" not in keys.options:
        return 0
    path = Path(str(keys.options["bin_edges_path"]))
    keys.put("encoding.edges", str(path), keys.said("bin_edges_path"))
    try:
        edges = json.loads(path.read_text(encoding="utf-8"))
        n_bins = len(next(iter(edges.values()))) + 1
    except (OSError, ValueError, AttributeError, StopIteration, TypeError):
        return 0
    keys.put("encoding.bins", n_bins, f"one more than the edges of a gene in {path}")
    return n_bins


def _shape(keys: _Keys) -> None:
    keys.take("num_hidden_layers", "model.layers", int)
    keys.take("num_attention_heads", "model.heads", int)
    option = "pretrained_model_path" if "pretrained_model_path" in keys.options else "model_arch"
    if option not in keys.options:
        return
    path = str(keys.options[option])
    if option == "pretrained_model_path" and not path.endswith(".json"):
        keys.put("model.start_from", path, keys.said(option))
        return
    hidden, inner = _SHAPES["large" if "large" in path else "base"]
    keys.put("model.hidden_size", hidden, keys.said(option))
    keys.put("model.intermediate_size", inner, keys.said(option))


def _classifier(keys: _Keys, asked: str, shown: Sequence[str]) -> None:
    options = keys.options
    if "phenotype_category" not in options:
        message = f"{keys.run.where}: a classification needs phenotype_category"
        raise ConfigurationError(message)
    keys.put("classification.column", asked, keys.said("phenotype_category"))
    if shown:
        names = [phenotype_of(one, {}) for one in shown]
        keys.put("classification.given", names, keys.said("included_phenotypes"))
    if "binary_label" in options:
        value = str(options["binary_label"]).strip().strip("[]").replace("_", " ")
        keys.put("classification.positive", value, keys.said("binary_label"))
        keys.put("loss.phenotype_smoothing", 0.0, "a tenth of the label's frequency there")
    balanced = "balanced_dataset" in options
    keys.put("loss.class_weights", "none" if balanced else "balanced",
             "balanced_dataset" if balanced else "no balanced_dataset")  # fmt: skip


def _perturbgene_training(keys: _Keys) -> None:
    options = keys.options
    keys.take("num_train_epochs", "train.epochs", float)
    processes = keys.number("num_processes", int, 1)
    parts = keys.number("gradient_accumulation_steps", int, 1)
    if "per_device_train_batch_size" in options:
        each = keys.number("per_device_train_batch_size", int)
        factors = f", {parts} at a time, on {processes} devices" if parts * processes > 1 else ""
        keys.put("train.batch_size", each * parts * processes,
                 keys.said("per_device_train_batch_size") + factors)  # fmt: skip
    keys.put("train.micro_batches", parts, "gradient_accumulation_steps")
    if processes > 1:
        keys.put("train.virtual_ranks", processes, keys.said("num_processes"))
    for option in ("learning_rate", "weight_decay", "warmup_ratio"):
        keys.take(option, f"train.{option}", float)
    if "warmup_ratio" not in options:
        keys.put("train.warmup_ratio", 0.0, "no warmup_ratio")
    for option in ("save_steps", "eval_steps"):
        keys.take(option, f"train.{option}", int)
    if "shard_size" in options:
        keys.put("train.eval_cells", keys.number("shard_size", int), keys.said("shard_size"))
    precision = {"fp16": "fp16", "bf16": "bf16", "no": "fp32"}
    if "use_fp16" in options:
        keys.put("train.precision", "fp16", "use_fp16")
    if "mixed_precision" in options:
        wanted = str(options["mixed_precision"])
        if wanted not in precision:
            message = f"{keys.run.where}: mixed_precision must be fp16, bf16 or no (got {wanted!r})"
            raise ConfigurationError(message)
        keys.put("train.precision", precision[wanted], keys.said("mixed_precision"))
    if str(options.get("dynamo_backend", "no")).lower() != "no":
        keys.put("train.compile", True, keys.said("dynamo_backend"))  # noqa: FBT003
