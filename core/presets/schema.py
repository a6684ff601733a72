"""The keys of a preset: one pydantic model per TOML section, every key with its meaning.

The field descriptions are the documentation that `tfx presets schema` prints. An unknown key is an
error in every section; `loading` writes pydantic's errors as ``file:line: key: message``.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from core.presets.phenotype_names import phenotype_of

#: Key -> the one that cannot be set beside it: a source that sets one unsets the other of a weaker source,
#: so that `--set train.epochs=3` works on a preset with max_steps.
ALTERNATIVES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "max_steps"): ("train", "epochs"),
    ("train", "epochs"): ("train", "max_steps"),
}


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise ValueError(
            "must be letters, digits, '_', '.' or '-', and must not begin with '.' or '-'"
        )
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
FileList = Annotated[list[str], BeforeValidator(_one_or_many)]
TextList = Annotated[list[str], BeforeValidator(_one_or_many)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
ThreadCount = Annotated[int, Field(ge=1, le=4096)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class SplitSettings(_Section):
    """How cells are divided into training, validation and test."""

    by: str = Field(
        "donor_id",
        description="obs column each of whose values is in one split only; 'cells' splits single "
        "cells, stratified by phenotype",
    )
    validation: float = Field(0.1, ge=0.0, lt=1.0, description="fraction of cells for validation")
    test: float = Field(0.1, ge=0.0, lt=1.0, description="fraction of cells for test")
    seed: int = Field(0, ge=0, description="seed of the split")

    @model_validator(mode="after")
    def _leaves_training_cells(self) -> Self:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                "validation and test together must leave cells for training (sum below 1)"
            )
        return self


class DataSettings(_Section):
    """Which cells, which genes, which phenotypes."""

    files: FileList = Field(
        min_length=1,
        description="files of cells (.h5ad, .zarr, .h5mu, 10x): paths, globs, 'name_{0..43}.h5ad'; or "
        "'soma://PATH', 'builtin:atlas', 'builtin:pbmc68k'",
    )
    validation_files: FileList = Field([], description="files used for validation only")
    test_files: FileList = Field([], description="files used for test only")
    vocabulary: str | None = Field(
        None,
        description="JSON file with the values of each phenotype; default: those of training cells",
    )
    genes: int = Field(2432, ge=1, description="size of the gene panel, most variable genes first")
    include_genes: list[str] = Field(
        [], description="genes that the panel has, whatever their variability"
    )
    genes_file: str | None = Field(
        None,
        description="text file of more such genes, one a line; it is read when a run begins, and the "
        "run keeps the names in include_genes",
    )
    hvg: Literal["auto", "seurat_v3", "seurat", "none"] = Field(
        "auto",
        description="HVG ranking: seurat_v3 needs counts, seurat needs log values, auto chooses by the "
        "values in the files, none keeps the order of the file",
    )
    matrix: str = Field(
        "auto",
        description="'X', 'raw', 'layers/NAME', or auto: counts if the file has them, else log values",
    )
    values: Literal["auto", "counts", "linear", "log"] = Field(
        "auto",
        description="what the matrix holds. auto recognises counts and what normalisation and "
        "logarithms make of them, and refuses the rest; counts recovers whole counts from any of "
        "these; linear (proportional to counts) and log (log1p of counts per 10,000) take values "
        "that are not recognised, with a warning",
    )
    gene_ids: str = Field(
        "auto", description="'var_names', a var column, or auto: Ensembl ids if the file has them"
    )
    join: Literal["intersection", "union"] = Field(
        "intersection",
        description="genes of several files: those in all of them, or all (absent ones are zero)",
    )
    drop_duplicates: bool = Field(
        default=False,
        description="leave out cells that repeat another one (equal values of all genes): the first is "
        "kept, and cells with is_primary_data = False are left out before others",
    )
    age_groups: Literal["decade", "none"] = Field(
        "decade", description="group ages in years ('73-year-old stage', 73) into decades"
    )
    phenotypes: dict[str, str | Literal[False]] = Field(
        {},
        description="phenotype = obs column. The five standard phenotypes are found by their "
        "CELLxGENE column names; a column named here must exist; false leaves a phenotype out. A name "
        "has at most 100 characters, without '/', '=' and ','",
    )
    split: SplitSettings = SplitSettings()
    where: TextList = Field(
        [],
        description="cells of the store to train and validate on, as in "
        "'sex=female,tissue=lung,liver' or 'disease!=normal'; a cell must match all filters. The "
        "store itself holds all cells: another filter needs no new store",
    )
    store: str | None = Field(
        None, description="folder of the prepared store; default: stores/NAME-HASH"
    )


class EncodingSettings(_Section):
    """How expression values become tokens."""

    kind: Literal["binary", "binned", "continuous"] = Field(
        "binned", description="expressed or not, ordered bins, or the log-normalised value itself"
    )
    layout: Literal["ranked", "expressed"] = Field(
        "ranked", description="every panel gene in panel order, or only the expressed genes"
    )
    bins: int = Field(10, ge=2, le=256, description="number of bins, bin 0 included")
    threshold: float = Field(
        0.1, ge=0.0, description="values up to this (log1p per 10,000) count as not expressed"
    )
    maximum: float = Field(9.0, gt=0.0, description="lower edge of the last equal-width bin")
    edges: Literal["equal_width", "quantile", "gene_quantile"] | list[float] | str = Field(
        "equal_width",
        description="equal_width between threshold and maximum; quantile or gene_quantile of "
        "the non-zero training values; a list of bins - 1 edges; or a JSON file of edges per gene",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="longest sequence; default: long enough for all genes and phenotypes",
    )


class MaskingSettings(_Section):
    """What is masked during training."""

    genes: Probability | Literal["uniform"] = Field(
        0.15, description="mask rate of genes, or 'uniform': a new rate in (0, 1] for every cell"
    )
    phenotypes: Probability = Field(0.5, description="probability of masking each phenotype")
    drop_phenotypes: Probability = Field(
        0.0, description="fraction of the masked phenotypes that are removed from the input"
    )
    unspecified: Probability = Field(
        0.1,
        description="probability of writing [NO_*] for a known phenotype, and with model.library_size "
        "of leaving out a cell's library size, so that the model learns to work without them",
    )
    visible_cells: Probability = Field(
        0.0,
        description="fraction of cells that train annotation: every gene visible, every known "
        "phenotype masked",
    )
    unexpressed: Probability = Field(
        0.5,
        description="expressed layout: fraction of the masked genes that are genes not expressed in "
        "the cell, so that the model learns to predict bin 0",
    )


class ModelSettings(_Section):
    """Size and kind of the network."""

    encoder: Literal["attention", "pooled"] = Field(
        "attention",
        description="attention: BERT, whose cost grows with the square of the genes of a cell; pooled: "
        "a sum of learnt vectors for the visible genes and bins, which begins with the principal "
        "components of training cells, then residual layers, whose cost grows with the number of genes. "
        "pooled is for CPUs and large panels, and needs bins",
    )
    layers: int = Field(4, ge=0, description="encoder layers")
    hidden_size: int = Field(256, ge=1, description="width of a token; a multiple of heads")
    heads: int = Field(4, ge=1, description="attention heads")
    intermediate_size: int | None = Field(
        None, ge=1, description="width of the feed-forward layers; default: 4 x hidden_size"
    )
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout of embeddings and layers")
    attention_dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="dropout of attention weights; makes training slower"
    )
    norm: Literal["post", "pre"] = Field(
        "post", description="layer norm after each block (BERT) or before it"
    )
    activation: Literal["gelu", "geglu"] = Field(
        "gelu", description="non-linearity of the feed-forward layers"
    )
    initial_weights: Literal["bert", "fan_in"] = Field(
        "bert",
        description="standard deviation of the initial weights: bert: 0.02; fan_in: 1 / sqrt(inputs of "
        "the layer), and outputs that start at zero. With fan_in, norm = 'pre' and a learning rate of "
        "2e-3 the encoder learns from the first step, without a log-linear part",
    )
    attention: Literal["auto", "varlen", "flash", "sdpa", "cpu", "eager"] = Field(
        "auto",
        description="attention kernel; an error if it cannot run here. varlen: torch's for packed "
        "cells (CUDA); flash: the flash-attn package (CUDA); sdpa: torch's, with cells grouped by "
        "length; cpu: tfx's, cell by cell; eager: plain tensor operations",
    )
    head: Literal["split", "joint"] = Field(
        "split",
        description="split: one softmax for the bins and one per phenotype; joint: one softmax over "
        "bins and all phenotype values, as in PolyGene and PerturbGene",
    )
    log_linear: bool = Field(
        default=False,
        description="add a log-linear part (class log-odds, low-rank couplings of genes, linear "
        "phenotype scores), to whose logits the encoder's are added",
    )
    log_linear_rank: int = Field(
        32,
        ge=0,
        description="rank of the log-linear part's couplings between genes; 0: no couplings",
    )
    cell_states: int = Field(
        0,
        ge=0,
        le=1024,
        description="number of latent cell states per cell type, found by k-means in training cells: a "
        "generated cell is drawn in one of them, so that its genes vary together; 0: none. Ranked "
        "layout, binary or binned values",
    )
    cell_summary: bool = Field(
        default=False,
        description="[CLS] starts from the sum of a learnt vector for every visible gene and bin, "
        "initially the principal components of training cells (in a classifier: noise). Without it "
        "[CLS] is a poor embedding of the cell",
    )
    library_size: bool = Field(
        default=False,
        description="give the model the library size of each cell (its total counts over all genes of "
        "the file): as a vector added to [CLS], as an effect on the logits of every gene and bin, and as "
        "probability zero for bins that no whole count reaches. Needs counts, and binary or binned values",
    )
    context_genes: int | None = Field(
        None,
        ge=1,
        description="most genes of a cell that attention reads in a training step, drawn anew each time; only "
        "these are predicted. The time of attention then does not grow with the panel. Other parts read "
        "all genes, and so does a trained model. Default: all. Ranked layout, encoder = 'attention'",
    )
    start_from: str | None = Field(
        None, description="run or model folder that the initial weights come from"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size must be a multiple of heads (got {self.hidden_size} and {self.heads})"
            )
        return self


class LossSettings(_Section):
    """The loss."""

    kind: Literal["auto", "bce", "label_smoothing", "gaussian", "regression"] = Field(
        "auto",
        description="auto: bce for binary, label_smoothing for binned, regression for continuous",
    )
    smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="label smoothing of the gene loss")
    gaussian_width: float = Field(
        1.0, gt=0.0, description="standard deviation, in bins, of the gaussian targets"
    )
    weighting: Literal["mean", "rate"] = Field(
        "mean",
        description="mean over masked genes, or each cell divided by its mask rate (the likelihood "
        "bound of masked diffusion; for masking.genes = 'uniform')",
    )
    phenotype_weight: float = Field(1.0, ge=0.0, description="weight of the phenotype loss")
    phenotype_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="label smoothing of the phenotype loss"
    )
    cls_reconstruction: float = Field(
        0.0,
        ge=0.0,
        description="weight of a loss for predicting every gene of the cell from [CLS] only, which "
        "makes the state of [CLS] an embedding of the cell",
    )
    cls_contrast: float = Field(
        0.0,
        ge=0.0,
        description="weight of a loss that makes [CLS] similar under two maskings of a cell; every "
        "cell is computed twice",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: weight phenotype values by inverse frequency"
    )


class ClassificationSettings(_Section):
    """`train.task = "classification"`: predict one obs column from [CLS], with every gene visible."""

    column: str | None = Field(
        None,
        min_length=1,
        description="what to predict: an obs column, or a phenotype of [data.phenotypes]",
    )
    positive: str | None = Field(
        None,
        min_length=1,
        description="one-vs-rest for this value: 'T cell', or 'not T cell'; default: all values are "
        "classes",
    )
    given: TextList = Field(
        [], description="phenotypes that the model sees; all others are unspecified ([NO_*])"
    )
    sampling: Literal["natural", "balanced"] = Field(
        "natural",
        description="balanced: an epoch has equally many cells of each value, rare ones repeated "
        "(loss.class_weights balances by weights instead)",
    )
    encoder: Literal["full", "frozen", "lora"] = Field(
        "full",
        description="parts of the encoder that are trained: full: all; frozen: none, only the heads; "
        "lora: low-rank additions to its layers (extra: lora). The last two need model.start_from",
    )
    lora_rank: int = Field(8, ge=1, description="rank of the low-rank additions")
    lora_alpha: float = Field(16.0, gt=0.0, description="their weight is lora_alpha / lora_rank")
    mask_genes: Probability = Field(
        0.0, description="mask rate of genes, so that the classifier depends on no single gene"
    )

    @model_validator(mode="after")
    def _hides_its_column(self) -> Self:
        if self.column is None and (self.positive is not None or self.given):
            raise ValueError("positive and given need a column")
        if self.column in self.given:
            raise ValueError(f"given must not name the column to predict ({self.column!r})")
        return self


class TrainSettings(_Section):
    """Duration, optimiser, machine, checkpoints."""

    task: Literal["masked", "classification"] = Field(
        "masked",
        description="masked: predict masked genes and phenotypes; classification: predict "
        "classification.column from [CLS], where of [masking] only unspecified is used: how often "
        "a given phenotype is left out",
    )
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = Field(None, gt=0.0, description="passes over the training cells")
    batch_size: int = Field(
        32, ge=1, description="cells per step over all processes; a multiple of virtual_ranks"
    )
    tokens_per_batch: int | None = Field(
        None,
        ge=1,
        description="largest number of tokens per step, filled with cells; used instead of batch_size",
    )
    virtual_ranks: int | None = Field(
        None,
        ge=1,
        description="fixed shards of every batch; default: one per process. A process with several "
        "adds up their gradients, so that a run of 4 virtual ranks is the same run on 4, 2 or 1 "
        "processes",
    )
    micro_batches: int = Field(
        1,
        ge=1,
        description="parts of a batch that a process computes one after another, to save memory; the "
        "step is the same. tfx doubles it if the memory of a GPU runs out",
    )
    learning_rate: float = Field(5e-4, gt=0.0, description="peak learning rate (AdamW)")
    weight_decay: float = Field(0.01, ge=0.0, description="weight decay (AdamW)")
    log_linear_learning_rate: float = Field(
        3e-3, gt=0.0, description="peak learning rate of the log-linear part's own parameters"
    )
    log_linear_steps: int = Field(
        0,
        ge=0,
        description="number of first steps that train only the log-linear part, which is quick; the "
        "encoder then learns the rest",
    )
    log_linear_weight_decay: float = Field(
        0.3, ge=0.0, description="weight decay of the log-linear part's own parameters"
    )
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0, description="fraction of steps for warm-up")
    schedule: Literal["linear", "cosine"] = Field("linear", description="decay after warm-up")
    gradient_clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    ema: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="decay of the moving average of the weights (for example 0.999), which is then "
        "evaluated and saved instead of the weights; 0: none",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without a better validation score after which training ends early",
    )
    compile: bool = Field(
        default=False, description="compile the encoder's layers with torch.compile (CUDA)"
    )
    max_nonfinite: int = Field(
        20,
        ge=1,
        description="end the run after so many steps in a row without finite loss and gradient",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="trackers that receive copies of the metrics (extra: trackers)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on GPUs that support it, else fp32. On a CPU with avx512_bf16 or AMX, "
        "bf16 is about twice as fast for hidden sizes of 256 and more, with losses within seed noise",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a GPU if the machine has one, else the CPU"
    )
    threads: ThreadCount | Literal["auto"] = Field(
        "auto",
        description="threads of a CPU; auto: one or all, whichever is faster: a few steps are timed at the "
        "start, and again when steps have become slow (OMP_NUM_THREADS, if set, decides). A fixed number "
        "gives the same losses bit for bit",
    )
    eval_steps: int = Field(500, ge=1, description="steps between evaluations")
    eval_cells: int = Field(
        2000, ge=1, description="largest number of validation cells used during training"
    )
    save_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="number of checkpoints to keep")
    log_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    seed: int = Field(0, ge=0, description="seed of initial weights, order of cells and masks")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError("give max_steps or epochs, not both")
        return self


class GenerateSettings(_Section):
    """How cells are sampled: defaults of `tfx generate`, its options, and keys of served requests."""

    steps: int = Field(32, ge=1, description="unmasking steps, each with one pass of the encoder")
    gene_steps: int = Field(
        512,
        ge=1,
        description="parts of the panel after each of which the log-linear part sees the genes drawn so "
        "far: gene by gene in panels up to this size",
    )
    method: Literal["auto", "unmask", "gibbs"] = Field(
        "auto",
        description="unmask: each gene is drawn once; gibbs: cells start from class marginals and "
        "are redrawn at the mask rate; auto: gibbs for models trained at a fixed mask rate",
    )
    schedule: Literal["linear", "cosine"] = Field(
        "linear", description="genes per step: equal numbers, or few at first (cosine)"
    )
    temperature: float = Field(
        1.0, gt=0.0, description="sampling temperature; 1 samples from the model's distribution"
    )
    guidance: float = Field(
        0.0, ge=0.0, description="weight of classifier-free guidance; 0 turns it off"
    )
    guidance_ramp: Literal["late", "none"] = Field(
        "late", description="late: guidance grows with the fraction of genes revealed"
    )
    genes_per_cell: Literal["sample", "none"] = Field(
        "sample",
        description="sample: every cell gets the number of expressed genes of a training cell with "
        "its phenotypes; none: the number is not controlled",
    )
    decode: Literal["sample", "mean", "bins", "counts"] = Field(
        "sample",
        description="value of a bin: drawn from the gene's training values, their mean, the bin "
        "number, or whole counts at the cell's library size",
    )


class Preset(_Section):
    """A preset."""

    name: FolderName | None = Field(
        None, description="name of the run, and of its folder; default: the file's name"
    )
    data: DataSettings
    encoding: EncodingSettings = EncodingSettings()
    masking: MaskingSettings = MaskingSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    classification: ClassificationSettings = ClassificationSettings()
    train: TrainSettings = TrainSettings()
    generate: GenerateSettings = GenerateSettings()

    @model_validator(mode="after")
    def _task_has_its_section(self) -> Self:
        has_column = self.classification.column is not None
        if self.train.task == "classification" and not has_column:
            raise ValueError("train.task = 'classification' needs classification.column")
        if has_column and self.train.task != "classification":
            raise ValueError("classification.column needs train.task = 'classification'")
        return self

    @model_validator(mode="after")
    def _classifies_a_phenotype(self) -> Self:
        if self.classified is not None and self.data.phenotypes.get(self.classified) is False:
            raise ValueError(
                f"classification.column is {self.classified!r}, which "
                f"data.phenotypes.{self.classified} = false leaves out"
            )
        return self

    @property
    def training_masking(self) -> MaskingSettings:
        """What is masked when this preset trains: [masking], or a classifier's genes."""
        if self.classified is None:
            return self.masking
        return MaskingSettings(
            genes=self.classification.mask_genes,
            phenotypes=0.0,  # the classified one is masked in any case
            unspecified=self.masking.unspecified,
            unexpressed=0.0,
        )

    @property
    def classified(self) -> str | None:
        """The phenotype that a classification predicts; None for other tasks.

        A phenotype's name wins over its obs column; any other obs column is a phenotype of its own
        name (`loading` adds it to ``data.phenotypes``).
        """
        column = self.classification.column
        return None if column is None else phenotype_of(column, self.data.phenotypes)
