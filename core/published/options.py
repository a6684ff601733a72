"""The options of PolyGene and PerturbGene: what each takes, and what it is called here.

A table for three readers: the parser of their command lines, the converter to a preset, and
docs/published-models.md, which the tests hold against it.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["OPTIONS", "OriginalOption", "System", "find_option"]

System = Literal["PolyGene", "PerturbGene"]
Takes = Literal["one", "many", "nothing"]


@dataclass(frozen=True)
class OriginalOption:
    """One option, or key of a JSON configuration.

    Attributes
    ----------
    name
        Without dashes.
    ours
        Keys of a preset that it decides; empty where nothing here depends on it.
    note
        Why it decides nothing, or what differs; "" where it means the same.
    takes
        Values on a command line.
    aliases
        Older names of it.
    """

    name: str
    ours: tuple[str, ...] = ()
    note: str = ""
    takes: Takes = "one"
    aliases: tuple[str, ...] = ()


def _polygene() -> tuple[OriginalOption, ...]:
    option = OriginalOption
    return (
        option("model_name", (), "a checkpoint is named but never loaded there: model.start_from does",
               aliases=("pretrained_model_path", "pretrained_model_name_or_path")),
        option("phenotypic_tokens_file", (), "a folder of lists; data.vocabulary takes one JSON file",
               aliases=("special_tokens_file",)),
        option("n_epochs", ("train.epochs",)),
        option("train_batch_size", ("train.batch_size", "train.micro_batches"),
               "pretraining adds up four of its batches for a step"),
        option("eval_batch_size", (), "batches of an evaluation follow from memory"),
        option("learning_rate", ("train.learning_rate",)),
        option("hidden_size", (), "not read there: BertConfig has 768, model.hidden_size"),
        option("num_hidden_layers", (), "not read there: BertConfig has 12, model.layers"),
        option("num_attention_heads", (), "not read there: BertConfig has 12, model.heads"),
        option("shard_size", ("train.eval_cells",), "the files' own sizes hold here"),
        option("train_data_path", ("data.files",)),
        option("eval_data_path", ("data.validation_files",)),
        option("output_dir", ("name",)),
        option("max_length", (), "counted from genes and header"),
        option("n_highly_variable_genes", ("data.genes",)),
        option("save_steps", ("train.save_steps", "train.eval_steps"), "a share of an epoch there"),
        option("expression_max_value", (), "not read there: encoding.maximum = 9.0"),
        option("expression_min_value", (), "not read there: encoding.threshold = 0.1"),
        option("threshold", ("encoding.threshold",), "not read there for bins: 0.1"),
        option("mlm_probability", ("masking.genes",)),
        option("phenotypic_mlm_probability", ("masking.phenotypes",), "used as 1 - p there"),
        option("num_bins", ("encoding.bins",)),
        option("sequence_types", ("data.phenotypes",), takes="many"),
        option("binary_expression", ("encoding.kind", "model.head", "loss.kind"),
               "binary cross-entropy as its README says; its code smooths labels", takes="nothing"),
        option("device", (), "not read there: train.device = 'auto'"),
        option("label", ("classification.column", "train.task")),
        option("summary_embeddings_file", (), "tfx embed writes embeddings"),
        option("filter_phenotypes", ("data.where",), "its labels were not filtered with its cells"),
    )  # fmt: skip


def _perturbgene() -> tuple[OriginalOption, ...]:
    option = OriginalOption
    return (
        option("bin_edges", ("encoding.edges", "encoding.bins", "masking.unexpressed"), takes="many"),
        option("bin_edges_path", ("encoding.edges", "encoding.bins"),
               "could not be read there: a JSON file of edges per gene"),
        option("pretrained_model_path",
               ("model.hidden_size", "model.intermediate_size", "model.start_from"),
               "weights were not loaded there, and intermediate_size of the large one was not read"),
        option("model_arch", ("model.hidden_size", "model.intermediate_size")),
        option("shard_size", ("train.eval_cells",), "the files' own sizes hold here"),
        option("eval_data_paths", ("data.validation_files",),
               "masks of an evaluation are the same every time: no JSON file is needed",
               takes="many", aliases=("eval_data_path",)),
        option("max_length", ("encoding.max_length",),
               "here a random choice of genes is kept, there [EOS] and the last ones were lost"),
        option("num_top_genes", ("data.genes",)),
        option("vocab_path", ("data.vocabulary",)),
        option("included_phenotypes", ("data.phenotypes",), takes="many"),
        option("use_flash_attn", (), "model.attention = 'auto' takes what is quickest",
               takes="nothing"),
        option("output_dir", ("name",)),
        option("per_device_eval_batch_size", (), "batches of an evaluation follow from memory"),
        option("dataloader_num_workers", (), "one thread keeps up: benchmarks/loading.md"),
        option("auto_find_batch_size", (), "a step that does not fit is cut into parts by itself",
               takes="nothing"),
        option("use_fp16", ("train.precision",), takes="nothing"),
        option("train_data_paths", ("data.files",), "shuffled here, read in order there",
               takes="many", aliases=("train_data_path",)),
        option("num_hidden_layers", ("model.layers",)),
        option("num_attention_heads", ("model.heads",)),
        option("num_train_epochs", ("train.epochs",)),
        option("per_device_train_batch_size", ("train.batch_size",), "of all devices together here"),
        option("gradient_accumulation_steps", ("train.batch_size", "train.micro_batches")),
        option("learning_rate", ("train.learning_rate",)),
        option("weight_decay", ("train.weight_decay",)),
        option("warmup_ratio", ("train.warmup_ratio",)),
        option("save_steps", ("train.save_steps",)),
        option("eval_steps", ("train.eval_steps",)),
        option("gene_mask_prob", ("masking.genes",), aliases=("mlm_probability",)),
        option("phenotype_mask_prob", ("masking.phenotypes",),
               aliases=("phenotypic_mlm_probability",)),
        option("phenotype_category", ("classification.column", "train.task")),
        option("binary_label", ("classification.positive",)),
        option("balanced_dataset", ("loss.class_weights",), takes="nothing"),
        option("mixed_precision", ("train.precision",), "of accelerate launch"),
        option("num_processes", ("train.virtual_ranks", "train.batch_size"), "of accelerate launch"),
        option("num_machines", (), "of accelerate launch, which goes on launching: docs/training.md"),
        option("dynamo_backend", ("train.compile",), "of accelerate launch"),
        option("no_python", (), "of accelerate launch", takes="nothing"),
    )  # fmt: skip


OPTIONS: dict[System, tuple[OriginalOption, ...]] = {
    "PolyGene": _polygene(),
    "PerturbGene": _perturbgene(),
}


def find_option(system: System, name: str) -> OriginalOption | None:
    """Return an option by its name, with or without dashes, or by an older one; None if unknown."""
    bare = name.lstrip("-").replace("-", "_")
    for option in OPTIONS[system]:
        if bare in (option.name, *option.aliases):
            return option
    return None
