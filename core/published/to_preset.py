"""From a run of PolyGene or PerturbGene to a preset that extends a published one.

The option behind each key is in a comment; options without effect here are listed with the reason.
The documented meaning of an option is used where the system does otherwise
(docs/published-models.md).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from core.errors import ConfigurationError
from core.files import file_json
from core.presets.phenotype_names import STANDARD_PHENOTYPES, phenotype_of
from core.presets.toml_text import write_key, write_value
from core.published.commands import OPTIONS, PublishedRun
from core.wording import visible

_WIDTH = 28
_SHARD = 10_000  # both systems' default
_BATCHES_PER_STEP = 4  # PolyGene's gradient_accumulation_steps, in its code
#: Shapes of PerturbGene's DistilBERT: hidden and intermediate size.
_SHAPES = {"base": (768, 3072), "large": (1024, 4096)}
#: Genes of a cell that PerturbGene masks from, if its limit allows: an estimate for Tabula Sapiens.
_EXPRESSED = 2500


def to_preset(run: PublishedRun) -> str:
    """Write the preset of a run, as TOML; ConfigurationError if the run's options make none."""
    keys = _Keys(run)
    base = _polygene(keys) if run.system == "PolyGene" else _perturbgene(keys)
    return "\n".join([*_head(run), f'extends = "{base}"', *keys.lines(), ""])


class _Keys:
    """Keys of the preset as they are decided, with the options behind them."""

    def __init__(self, run: PublishedRun) -> None:
        self.run, self.options = run, run.options
        self.values: dict[str, dict[str, tuple[object, str]]] = {"": {}}

    def put(self, key: str, value: object, source: str) -> None:
        """Set a dotted key; ``source`` names the option in a comment."""
        section, _, name = key.rpartition(".")
        self.values.setdefault(section, {})[name] = (value, source)

    def copy(self, option: str, key: str, kind: type) -> None:
        """Set a key to the number of an option, if it was given."""
        if option in self.options:
            self.put(key, self.number(option, kind), self.quoted(option))

    def quoted(self, option: str) -> str:
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
            self.fail(f"{option} must be {what} (got {value!r})")
        return found

    def texts(self, option: str) -> list[str]:
        """Return an option's value as a list of texts."""
        value = self.options.get(option, [])
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]

    def fail(self, message: str) -> NoReturn:
        """Raise an error that names the run."""
        raise ConfigurationError(f"{self.run.where}: {message}")

    def lines(self) -> Iterator[str]:
        for section, values in self.values.items():
            if not values:
                continue
            yield ""
            if section:
                yield f"[{section}]"
            for name, (value, source) in values.items():
                line = f"{write_key(name)} = {write_value(value)}"
                yield f"{line:<{_WIDTH - 1}} # {visible(source)}"


def _head(run: PublishedRun) -> Iterator[str]:
    yield f"# A run of {run.system}, imported from {visible(run.where)}."
    yield "#"
    yield f"# Behind each key is the option of {run.system}. Differences: 'tfx docs published-models'."
    without = [
        f"#   {option.name}: {option.note}"
        for option in OPTIONS[run.system]
        if option.name in run.options and not option.ours
    ]
    if without:
        yield "#"
        yield "# Options without effect here:"
        yield from without
    yield ""


def _name_and_files(keys: _Keys, train: str, evaluation: str) -> int:
    """Set the name and the files; return the number of training shards."""
    if "output_dir" in keys.options:
        last = str(keys.options["output_dir"]).rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^\w.-]+", "-", last).strip(".-")
        if name:
            keys.put("name", name, keys.quoted("output_dir"))
    training = [one.removeprefix("file://") for one in keys.texts(train)]
    validation = [one.removeprefix("file://") for one in keys.texts(evaluation)]
    validation = [one for one in validation if not one.endswith(".json")]
    if not training:
        keys.fail(f"{train} is missing, the files to train on")
    keys.put("data.files", training, train)
    keys.put(
        "data.validation_files",
        validation,
        evaluation if validation else f"no files in {evaluation}",
    )
    keys.put("data.test_files", [], "none; name some for tfx eval")
    if validation:
        keys.put("data.split.validation", 0.0, f"those of {evaluation}")
    keys.put("data.split.test", 0.0, "none; 0.1 keeps a tenth of the donors")
    return sum(map(_count_files, training))


def _count_files(pattern: str) -> int:
    """Count the files of a pattern with braces: name_{0..43}.h5ad."""
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)
    return math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)


def _phenotypes(keys: _Keys, option: str, used: Sequence[str]) -> None:
    names = [phenotype_of(one, {}) for one in used]
    for name, one in zip(names, used, strict=True):
        if name not in STANDARD_PHENOTYPES:
            known = ", ".join(STANDARD_PHENOTYPES)
            keys.fail(f"{option} names {one!r}; the phenotypes are {known}")
    for name, column in STANDARD_PHENOTYPES.items():
        is_used = name in names
        source = option if is_used else f"not among {option}"
        keys.put(f"data.phenotypes.{name}", column if is_used else False, source)


def _masking(keys: _Keys, genes: str, phenotypes: str, n_genes: float, n_phenotypes: float) -> None:
    """Set mask rates, and weigh phenotypes as one mean over all masked positions does."""
    gene_rate = keys.number(genes, float, 0.15)
    phenotype_rate = keys.number(phenotypes, float, 0.5)
    keys.put("masking.genes", gene_rate, genes)
    keys.put("masking.phenotypes", phenotype_rate, phenotypes)
    masked_genes, masked_phenotypes = n_genes * gene_rate, n_phenotypes * phenotype_rate
    if masked_phenotypes and masked_genes:
        weight = float(f"{masked_phenotypes / masked_genes:.2g}")
        keys.put("loss.phenotype_weight", weight, "one mean over all masked positions")
    else:
        keys.put("loss.phenotype_weight", 1.0, "only genes or only phenotypes are masked")


# ------------------------------------------------------------------------------------- PolyGene
def _polygene(keys: _Keys) -> str:
    """Set the keys of a PolyGene; return the preset to extend."""
    options, label = keys.options, keys.options.get("label")
    n_genes = keys.number("n_highly_variable_genes", int, 2432)
    n_bins = keys.number("num_bins", int, 10)
    is_binary = bool(options.get("binary_expression")) or n_bins == 2
    n_files = _name_and_files(keys, "train_data_path", "eval_data_path")
    keys.put("data.genes", n_genes, f"n_highly_variable_genes {n_genes}")
    if keys.run.task == "inference":
        _filter(keys)
    used = keys.texts("sequence_types")
    if label is not None:
        used = [str(label)]
    elif "sequence_types" not in options:
        room = keys.number("max_length", int, n_genes + 8) - n_genes
        used = list(STANDARD_PHENOTYPES) if room >= 3 + len(STANDARD_PHENOTYPES) else []
    _phenotypes(keys, "label" if label is not None else "sequence_types", used)
    keys.put("encoding.kind", "binary" if is_binary else "binned", "binary_expression")
    if is_binary:
        keys.copy("threshold", "encoding.threshold", float)
    else:
        keys.put("encoding.bins", n_bins, f"num_bins {n_bins}")
        if label is not None:
            keys.put("encoding.threshold", 0.1, "not read there for bins")
    if label is not None:
        keys.put("classification.column", str(label), keys.quoted("label"))
    else:
        _masking(keys, "mlm_probability", "phenotypic_mlm_probability", n_genes, len(used))
    keys.copy("n_epochs", "train.epochs", float)
    keys.copy("learning_rate", "train.learning_rate", float)
    if "train_batch_size" in options:
        size = keys.number("train_batch_size", int)
        parts = 1 if label is not None else _BATCHES_PER_STEP
        quoted = keys.quoted("train_batch_size")
        keys.put("train.batch_size", size * parts, f"{quoted}, {parts} at a time")
        keys.put("train.micro_batches", parts, "gradient_accumulation_steps in its code")
        n_batches = max(n_files * keys.number("shard_size", int, _SHARD) // size, 1)
        saving = keys.number("save_steps", float, 0.1)
        source = f"save_steps {saving:g} of {n_batches:,} batches"
        keys.put("train.save_steps", max(int(saving * n_batches), 1), source)
        evaluating = 0.1 if label is not None else 0.25
        source = f"{evaluating:g} of {n_batches:,} batches in its code"
        keys.put("train.eval_steps", max(int(evaluating * n_batches), 1), source)
    keys.copy("shard_size", "train.eval_cells", int)
    if label is not None:
        return "polygene-classify-2434"
    return "polygene-2432-binary" if is_binary else "polygene-2432-binned"


def _filter(keys: _Keys) -> None:
    wanted = keys.options.get("filter_phenotypes") or {}
    if not isinstance(wanted, Mapping):
        keys.fail("filter_phenotypes must be an object of lists")
    filters = []
    for column, values in wanted.items():
        listed = [values] if isinstance(values, str) else list(values)
        quoted = [json.dumps(str(one)) if "," in str(one) else str(one) for one in listed]
        filters.append(f"{phenotype_of(str(column), {})}={','.join(quoted)}")
    if filters:
        keys.put("data.where", filters, "filter_phenotypes")


# ---------------------------------------------------------------------------------- PerturbGene
def _perturbgene(keys: _Keys) -> str:
    """Set the keys of a PerturbGene; return the preset to extend."""
    options, column = keys.options, keys.options.get("phenotype_category")
    is_classifier = keys.run.task == "cls" or column is not None
    _name_and_files(keys, "train_data_paths", "eval_data_paths")
    keys.copy("num_top_genes", "data.genes", int)
    if "vocab_path" in options:
        keys.put("data.vocabulary", str(options["vocab_path"]), keys.quoted("vocab_path"))
    used = keys.texts("included_phenotypes")
    _phenotypes(
        keys, "included_phenotypes", [*used, *([str(column)] if column is not None else [])]
    )
    n_bins = _bins(keys)
    _shape(keys)
    length = keys.number("max_length", int, 0)
    if length:
        more, what = (
            (2, "[START] and the phenotype to classify") if is_classifier else (1, "[START]")
        )
        keys.put("encoding.max_length", length + more, f"max_length {length}, and {what}")
    if is_classifier:
        _classifier(keys, used)
    else:
        n_genes = min(length or _EXPRESSED, _EXPRESSED)
        _masking(keys, "gene_mask_prob", "phenotype_mask_prob", n_genes, 0.9 * len(used))
        if n_bins:
            rate = float(f"{1 / n_bins:.2g}")
            keys.put("masking.unexpressed", rate, "one of the bins, by SWAP_GENE_IDS_PROB")
    _perturbgene_training(keys)
    return "perturbgene-classify-tissue" if is_classifier else "perturbgene-128-base"


def _bins(keys: _Keys) -> int:
    """Set the bins; return their number, 0 if it is in a file that cannot be read here."""
    if "bin_edges" in keys.options:
        edges = keys.options["bin_edges"]
        values = edges if isinstance(edges, list) else str(edges).split()
        try:
            numbers = [float(one) for one in values]
        except (TypeError, ValueError):
            keys.fail(f"bin_edges must be numbers (got {edges!r})")
        keys.put("encoding.bins", len(numbers) + 1, "one more than bin_edges")
        keys.put("encoding.edges", numbers, "bin_edges")
        return len(numbers) + 1
    if "bin_edges_path" not in keys.options:
        return 0
    path = Path(str(keys.options["bin_edges_path"]))
    keys.put("encoding.edges", str(path), keys.quoted("bin_edges_path"))
    try:
        edges = file_json(path)
        n_bins = len(next(iter(edges.values()))) + 1
    except (OSError, ValueError, AttributeError, StopIteration, TypeError):
        return 0
    keys.put("encoding.bins", n_bins, f"one more than the edges of a gene in {path}")
    return n_bins


def _shape(keys: _Keys) -> None:
    keys.copy("num_hidden_layers", "model.layers", int)
    keys.copy("num_attention_heads", "model.heads", int)
    option = "pretrained_model_path" if "pretrained_model_path" in keys.options else "model_arch"
    if option not in keys.options:
        return
    path = str(keys.options[option])
    if option == "pretrained_model_path" and not path.endswith(".json"):
        keys.put("model.start_from", path, keys.quoted(option))
        return
    hidden, inner = _SHAPES["large" if "large" in path else "base"]
    keys.put("model.hidden_size", hidden, keys.quoted(option))
    keys.put("model.intermediate_size", inner, keys.quoted(option))


def _classifier(keys: _Keys, used: Sequence[str]) -> None:
    options = keys.options
    if "phenotype_category" not in options:
        keys.fail("a classification needs phenotype_category")
    column = str(options["phenotype_category"])
    keys.put("classification.column", column, keys.quoted("phenotype_category"))
    if used:
        names = [phenotype_of(one, {}) for one in used]
        keys.put("classification.given", names, keys.quoted("included_phenotypes"))
    if "binary_label" in options:
        value = str(options["binary_label"]).strip().strip("[]").replace("_", " ")
        keys.put("classification.positive", value, keys.quoted("binary_label"))
        keys.put("loss.phenotype_smoothing", 0.0, "a tenth of the label's frequency there")
    if "balanced_dataset" in options:
        keys.put("loss.class_weights", "none", "balanced_dataset")
    else:
        keys.put("loss.class_weights", "balanced", "no balanced_dataset")


def _perturbgene_training(keys: _Keys) -> None:
    options = keys.options
    keys.copy("num_train_epochs", "train.epochs", float)
    processes = keys.number("num_processes", int, 1)
    parts = keys.number("gradient_accumulation_steps", int, 1)
    if "per_device_train_batch_size" in options:
        size = keys.number("per_device_train_batch_size", int) * parts * processes
        factors = f", {parts} at a time, on {processes} devices" if parts * processes > 1 else ""
        keys.put("train.batch_size", size, keys.quoted("per_device_train_batch_size") + factors)
    keys.put("train.micro_batches", parts, "gradient_accumulation_steps")
    if processes > 1:
        keys.put("train.virtual_ranks", processes, keys.quoted("num_processes"))
    for option in ("learning_rate", "weight_decay", "warmup_ratio"):
        keys.copy(option, f"train.{option}", float)
    if "warmup_ratio" not in options:
        keys.put("train.warmup_ratio", 0.0, "no warmup_ratio")
    for option in ("save_steps", "eval_steps"):
        keys.copy(option, f"train.{option}", int)
    keys.copy("shard_size", "train.eval_cells", int)
    precisions = {"fp16": "fp16", "bf16": "bf16", "no": "fp32"}
    if "use_fp16" in options:
        keys.put("train.precision", "fp16", "use_fp16")
    if "mixed_precision" in options:
        wanted = str(options["mixed_precision"])
        if wanted not in precisions:
            keys.fail(f"mixed_precision must be fp16, bf16 or no (got {wanted!r})")
        keys.put("train.precision", precisions[wanted], keys.quoted("mixed_precision"))
    if str(options.get("dynamo_backend", "no")).lower() != "no":
        keys.put("train.compile", value=True, source=keys.quoted("dynamo_backend"))
