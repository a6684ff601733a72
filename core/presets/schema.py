"""What a preset may say: one pydantic model per TOML section, every key with its meaning.

The field descriptions are the documentation that `tfx presets schema` prints. Unknown keys are
refused everywhere; `loading.py` turns pydantic's complaints into ``file:line: key: message``.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "ALTERNATIVES",
    "STANDARD_PHENOTYPES",
    "ClassificationSettings",
    "DataSettings",
    "EncodingSettings",
    "GenerateSettings",
    "LossSettings",
    "MaskingSettings",
    "ModelSettings",
    "Preset",
    "SplitSettings",
    "TrainSettings",
    "phenotype_of",
]

#: The five phenotypes of the original systems and their obs columns in the CELLxGENE schema.
STANDARD_PHENOTYPES: dict[str, str] = {
    "sex": "sex",
    "tissue": "tissue",
    "cell_type": "cell_type",
    "age": "development_stage",
    "disease": "disease",
}

#: Keys of which one at most may be set: a source that gives one takes back the other where a
#: weaker source had given it, so that `--set train.epochs=3` works on a preset with max_steps.
ALTERNATIVES: tuple[tuple[str, str], ...] = (("train.max_steps", "train.epochs"),)


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", value):
        message = "must be letters, digits, '_', '.' or '-', and begin with none of the last two"
        raise ValueError(message)
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
FileList = Annotated[list[str], BeforeValidator(_one_or_many)]
TextList = Annotated[list[str], BeforeValidator(_one_or_many)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class SplitSettings(_Section):
    """How cells are dealt to training, validation and test."""

    by: str = Field(
        "donor_id",
        description="obs column whose values never cross a split; 'cells' splits single cells, "
        "stratified by phenotype",
    )
    validation: float = Field(0.1, ge=0.0, lt=1.0, description="share of cells for validation")
    test: float = Field(0.1, ge=0.0, lt=1.0, description="share of cells for test")
    seed: int = Field(0, ge=0, description="seed of the split")

    @model_validator(mode="after")
    def _leaves_training_cells(self) -> Self:
        if self.validation + self.test >= 1.0:
            message = "validation and test together must leave cells for training (sum below 1)"
            raise ValueError(message)
        return self


class DataSettings(_Section):
    """Which cells, which genes, which phenotypes."""

    files: FileList = Field(
        min_length=1,
        description="h5ad files: paths, globs, 'name_{0..43}.h5ad', or 'builtin:atlas', "
        "'builtin:pbmc68k'",
    )
    validation_files: FileList = Field([], description="files used for validation only")
    test_files: FileList = Field([], description="files used for test only")
    vocabulary: str | None = Field(
        None, description="JSON file with the values of each phenotype; else learnt from training"
    )
    genes: int = Field(2432, ge=1, description="size of the gene panel, most variable genes first")
    include_genes: list[str] = Field(
        [], description="genes that are in the panel whatever their variability"
    )
    hvg: Literal["auto", "seurat_v3", "seurat", "none"] = Field(
        "auto",
        description="ranking of genes: seurat_v3 needs counts, seurat takes log values, "
        "auto picks by what the files hold, none keeps the file's order",
    )
    matrix: str = Field(
        "auto", description="'X', 'raw', 'layers/NAME', or auto: counts first, then log values"
    )
    gene_ids: str = Field(
        "auto", description="'var_names', a var column, or auto: Ensembl ids where there are any"
    )
    join: Literal["intersection", "union"] = Field(
        "intersection",
        description="genes of several files: those in all of them, or all (absent ones are zero)",
    )
    age_groups: Literal["decade", "none"] = Field(
        "decade", description="group ages in years ('73-year-old stage', 73) into decades"
    )
    phenotypes: dict[str, str | Literal[False]] = Field(
        {},
        description="phenotype = obs column. The standard five are looked for under their "
        "CELLxGENE names; a name given here must exist; false leaves a phenotype out",
    )
    split: SplitSettings = SplitSettings()
    where: TextList = Field(
        [],
        description="which cells of the store train and validate, as in "
        "'sex=female,tissue=lung,spleen' or 'disease!=normal'; several must all hold. The store "
        "itself holds all cells: another filter needs no new one",
    )
    store: str | None = Field(
        None, description="folder of the prepared store; default stores/NAME-HASH"
    )


class EncodingSettings(_Section):
    """How expression becomes tokens."""

    kind: Literal["binary", "binned", "continuous"] = Field(
        "binned", description="on/off, ordered bins, or the log-normalised value itself"
    )
    layout: Literal["ranked", "expressed"] = Field(
        "ranked", description="every panel gene in panel order, or only the genes above bin 0"
    )
    bins: int = Field(10, ge=2, le=256, description="number of bins, bin 0 included")
    threshold: float = Field(
        0.1, ge=0.0, description="values up to this (log1p per 10k) count as not expressed"
    )
    maximum: float = Field(9.0, gt=0.0, description="lower edge of the last equal-width bin")
    edges: Literal["equal_width", "quantile", "gene_quantile"] | list[float] | str = Field(
        "equal_width",
        description="equal_width between threshold and maximum; quantile or gene_quantile of "
        "the non-zero training values; a list of bins - 1 edges; or a JSON file of edges per gene",
    )
    max_length: int | None = Field(
        None, ge=1, description="longest sequence; default: what the genes and the header need"
    )


class MaskingSettings(_Section):
    """What is hidden from the model during training."""

    genes: Probability | Literal["uniform"] = Field(
        0.15, description="share of masked genes, or 'uniform': a new share in (0, 1] per cell"
    )
    phenotypes: Probability = Field(0.5, description="probability of masking each phenotype")
    drop_phenotypes: Probability = Field(
        0.0, description="share of the masked phenotypes that are left out of the input altogether"
    )
    unspecified: Probability = Field(
        0.1,
        description="probability of writing [NO_*] for a known phenotype, so that 'not specified' "
        "is a state the model has seen",
    )
    visible_cells: Probability = Field(
        0.0,
        description="share of cells that train annotation as it is used: every gene visible, "
        "every known phenotype masked",
    )
    unexpressed: Probability = Field(
        0.5,
        description="expressed layout: share of the masked genes that are unexpressed ones "
        "swapped in, so that bin 0 is an answer",
    )


class ModelSettings(_Section):
    """The size and kind of the network."""

    layers: int = Field(4, ge=0, description="encoder layers")
    hidden_size: int = Field(256, ge=1, description="width; a multiple of heads")
    heads: int = Field(4, ge=1, description="attention heads")
    intermediate_size: int | None = Field(None, ge=1, description="default: 4 x hidden_size")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout of embeddings and layers")
    attention_dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="dropout of attention weights; costs speed"
    )
    norm: Literal["post", "pre"] = Field("post", description="layer norm after (BERT) or before")
    activation: Literal["gelu", "geglu"] = Field(
        "gelu", description="non-linearity of the feed-forward layers"
    )
    attention: Literal["auto", "varlen", "flash", "sdpa", "cpu", "eager"] = Field(
        "auto",
        description="attention kernel; one that cannot run here is refused. varlen: torch's own for "
        "packed cells (CUDA); flash: the flash-attn package (CUDA); sdpa: torch's, cells grouped by "
        "length; cpu: tfx's own, per cell; eager: written out",
    )
    head: Literal["split", "joint"] = Field(
        "split",
        description="one softmax per question, or the originals' single softmax over bins and all "
        "phenotype values",
    )
    log_linear: bool = Field(
        default=False,
        description="hold the classical answer (class log-odds, low-rank gene pairs, linear "
        "phenotype scores) in the model; the encoder adds to it",
    )
    log_linear_rank: int = Field(
        32,
        ge=0,
        description="rank of the log-linear part's gene-gene term; 0: none, genes have class log-odds alone",
    )
    cell_states: int = Field(
        0,
        ge=0,
        le=1024,
        description="latent states of cells, subtypes for instance, that the log-linear part finds in training "
        "cells: generated cells are drawn each in one, and so vary together as real ones do; 0: none. "
        "Ranked layout, binary or binned values",
    )
    cell_summary: bool = Field(
        default=False,
        description="[CLS] begins with the sum of a learnt vector for every visible gene and bin, at "
        "first the principal components of training cells (a classifier's: noise): without it layers "
        "must learn which gene has which value, and [CLS] is a poor embedding of the cell",
    )
    start_from: str | None = Field(None, description="model folder whose weights to begin with")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.heads:
            message = (
                f"hidden_size must be a multiple of heads (got {self.hidden_size} and {self.heads})"
            )
            raise ValueError(message)
        return self


class LossSettings(_Section):
    """What a wrong answer costs."""

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
        description="weight of a loss by which [CLS] alone tells every gene of the cell, so that its "
        "state is an embedding of the cell",
    )
    cls_contrast: float = Field(
        0.0,
        ge=0.0,
        description="weight of a loss by which [CLS] is alike under two maskings of a cell; every cell "
        "is computed twice",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: rare phenotype values weigh more, by inverse frequency"
    )


class ClassificationSettings(_Section):
    """What `train.task = "classification"` asks, of [CLS] alone, with every gene visible."""

    column: str | None = Field(
        None,
        min_length=1,
        description="what to tell of a cell: an obs column, or a phenotype of [data.phenotypes]",
    )
    positive: str | None = Field(
        None,
        min_length=1,
        description="one value against all others: 'T cell', or 'not T cell'; default: every value "
        "against every other",
    )
    given: TextList = Field(
        [], description="phenotypes that the model is shown; all others are hidden, as [NO_*]"
    )
    sampling: Literal["natural", "balanced"] = Field(
        "natural",
        description="balanced: an epoch has as many cells of each value, rare ones repeated (see "
        "loss.class_weights for the other way to the same end)",
    )
    encoder: Literal["full", "frozen", "lora"] = Field(
        "full",
        description="what of the encoder learns: all of it, nothing (the heads alone), or low-rank "
        "additions to its layers (extra: lora); the last two need model.start_from",
    )
    lora_rank: int = Field(8, ge=1, description="rank of the additions")
    lora_alpha: float = Field(16.0, gt=0.0, description="their weight is lora_alpha / lora_rank")
    mask_genes: Probability = Field(
        0.0, description="share of genes masked while training, so that none is relied upon alone"
    )

    @model_validator(mode="after")
    def _hides_what_it_asks(self) -> Self:
        if self.column is None and (self.positive is not None or self.given):
            message = "positive and given need a column"
            raise ValueError(message)
        if self.column in self.given:
            message = f"given must not name the column that is asked for ({self.column!r})"
            raise ValueError(message)
        return self


class TrainSettings(_Section):
    """How long, how fast, where."""

    task: Literal["masked", "classification"] = Field(
        "masked",
        description="what the model learns to do: fill in what is masked, or tell one phenotype of "
        "a cell from [CLS] (then [classification] says which, and [masking] has no say but for "
        "unspecified: how often what is given is left out)",
    )
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = Field(None, gt=0.0, description="passes over the training cells")
    batch_size: int = Field(
        32, ge=1, description="cells per step, over all processes: a multiple of virtual ranks"
    )
    tokens_per_batch: int | None = Field(
        None,
        ge=1,
        description="most tokens per step, filled with as many cells as fit, instead of batch_size",
    )
    virtual_ranks: int | None = Field(
        None,
        ge=1,
        description="streams that the cells of an epoch are dealt to, each giving its share of a "
        "step; default: one per process. A process that has several adds up their gradients, so "
        "that a run of 4 virtual ranks is the same run on 4, 2 or 1 processes",
    )
    micro_batches: int = Field(
        1,
        ge=1,
        description="parts that a process computes one after another, to save memory; the step is "
        "the same. Doubled by itself where a GPU's memory runs out",
    )
    learning_rate: float = Field(5e-4, gt=0.0, description="peak learning rate (AdamW)")
    weight_decay: float = Field(0.01, ge=0.0, description="weight decay (AdamW)")
    log_linear_learning_rate: float = Field(
        3e-3, gt=0.0, description="peak learning rate of the log-linear part's own parameters"
    )
    log_linear_steps: int = Field(
        0,
        ge=0,
        description="first steps, which train the log-linear part alone: cheap, and the encoder then "
        "learns what it leaves over",
    )
    log_linear_weight_decay: float = Field(
        0.3, ge=0.0, description="weight decay of the log-linear part's own parameters"
    )
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0, description="share of steps to warm up")
    schedule: Literal["linear", "cosine"] = Field("linear", description="decay after warm-up")
    gradient_clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    ema: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="decay of the running average of the weights that is evaluated and saved "
        "instead of the weights themselves (0.999, say); 0: none",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="evaluations without a lower validation loss after which training ends early",
    )
    compile: bool = Field(
        default=False, description="compile the encoder's layers by torch.compile (CUDA)"
    )
    max_nonfinite: int = Field(
        20, ge=1, description="steps in a row without finite loss and gradient that end the run"
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="where metrics are copied to, beside the run folder (extra: trackers)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on GPUs that have it, else fp32. On a CPU with avx512_bf16 or AMX, "
        "bf16 is about twice as fast for models of width 256 and more, at losses within seed noise",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a GPU where there is one, else the CPU"
    )
    eval_steps: int = Field(500, ge=1, description="steps between evaluations")
    eval_cells: int = Field(2000, ge=1, description="most validation cells used while training")
    save_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")
    log_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    seed: int = Field(0, ge=0, description="seed of initial weights, order of cells and masks")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and self.epochs is not None:
            message = "give max_steps or epochs, not both"
            raise ValueError(message)
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
    """A whole preset."""

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
        asks = self.classification.column is not None
        if self.train.task == "classification" and not asks:
            message = "train.task = 'classification' needs classification.column"
            raise ValueError(message)
        if asks and self.train.task != "classification":
            message = "classification.column needs train.task = 'classification'"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _asks_for_a_phenotype(self) -> Self:
        if self.classified is not None and self.data.phenotypes.get(self.classified) is False:
            message = (
                f"classification.column asks for {self.classified!r}, which "
                f"data.phenotypes.{self.classified} = false leaves out"
            )
            raise ValueError(message)
        return self

    @property
    def training_masking(self) -> MaskingSettings:
        """What is hidden while this preset trains: [masking], or a classifier's few genes."""
        if self.classified is None:
            return self.masking
        return MaskingSettings(
            genes=self.classification.mask_genes,
            phenotypes=0.0,  # the asked one is masked in any case
            unspecified=self.masking.unspecified,
            unexpressed=0.0,
        )

    @property
    def classified(self) -> str | None:
        """The phenotype that a classification asks for; None for other tasks.

        A phenotype's name wins over its obs column; any other obs column is a phenotype of its own
        name (`loading` adds it to ``data.phenotypes``).
        """
        column = self.classification.column
        return None if column is None else phenotype_of(column, self.data.phenotypes)


def phenotype_of(column: str, phenotypes: Mapping[str, str | Literal[False]]) -> str:
    """Return the phenotype that ``column`` names, itself or by its obs column.

    Parameters
    ----------
    column
        A phenotype, or an obs column.
    phenotypes
        Of ``data.phenotypes``.
    """
    columns = {**STANDARD_PHENOTYPES, **phenotypes}
    if column in columns:
        return column
    return next((name for name, one in columns.items() if one == column), column)
