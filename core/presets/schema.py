"""What a preset may say: one pydantic model per TOML section, every key with its meaning.

The field descriptions are the documentation that `tfx presets schema` prints. Unknown keys are
refused everywhere; `loading.py` turns pydantic's complaints into ``file:line: key: message``.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "STANDARD_PHENOTYPES",
    "DataSettings",
    "EncodingSettings",
    "GenerateSettings",
    "LossSettings",
    "MaskingSettings",
    "ModelSettings",
    "Preset",
    "SplitSettings",
    "TrainSettings",
]

#: The five phenotypes of the original systems and their obs columns in the CELLxGENE schema.
STANDARD_PHENOTYPES: dict[str, str] = {
    "sex": "sex",
    "tissue": "tissue",
    "cell_type": "cell_type",
    "age": "development_stage",
    "disease": "disease",
}


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


FileList = Annotated[list[str], BeforeValidator(_one_or_many)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


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
    unexpressed: Probability = Field(
        0.5,
        description="expressed layout: share of the masked genes that are unexpressed ones "
        "swapped in, so that bin 0 is an answer",
    )


class ModelSettings(_Section):
    """The size and kind of the network."""

    layers: int = Field(4, ge=0)
    hidden_size: int = Field(256, ge=1)
    heads: int = Field(4, ge=1)
    intermediate_size: int | None = Field(None, ge=1, description="default: 4 x hidden_size")
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    attention_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    norm: Literal["post", "pre"] = Field("post", description="layer norm after (BERT) or before")
    activation: Literal["gelu", "geglu"] = "gelu"
    attention: Literal["auto", "sdpa", "varlen", "eager"] = Field(
        "auto", description="attention kernel; one that cannot run here is refused"
    )
    head: Literal["split", "joint"] = Field(
        "split",
        description="one softmax per question, or the originals' single softmax over bins and all "
        "phenotype values",
    )
    skeleton: bool = Field(
        default=False,
        description="hold the classical answer (class log-odds, low-rank gene pairs, linear "
        "phenotype scores) in the model; the encoder adds to it",
    )
    skeleton_rank: int = Field(32, ge=1, description="rank of the skeleton's gene-gene term")
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
    phenotype_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: rare phenotype values weigh more, by inverse frequency"
    )


class TrainSettings(_Section):
    """How long, how fast, where."""

    task: Literal["masked"] = "masked"
    max_steps: int | None = Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = Field(None, gt=0.0, description="passes over the training cells")
    batch_size: int = Field(32, ge=1, description="cells per step")
    learning_rate: float = Field(5e-4, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0, description="share of steps to warm up")
    schedule: Literal["linear", "cosine"] = Field("linear", description="decay after warm-up")
    gradient_clip: float = Field(1.0, gt=0.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, else fp32"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    eval_steps: int = Field(500, ge=1, description="steps between evaluations")
    eval_cells: int = Field(2000, ge=1, description="most validation cells used while training")
    save_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")
    log_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and self.epochs is not None:
            message = "give max_steps or epochs, not both"
            raise ValueError(message)
        return self


class GenerateSettings(_Section):
    """Defaults of `tfx generate` for models trained by this preset."""

    steps: int = Field(32, ge=1, description="unmasking steps")
    order: Literal["random", "confidence"] = "random"
    temperature: float = Field(1.0, gt=0.0)
    guidance: float = Field(0.0, ge=0.0)
    decode: Literal["sample", "mean", "bins"] = Field(
        "sample",
        description="value for a bin: drawn from the gene's training values, their mean, "
        "or the bin number",
    )


class Preset(_Section):
    """A whole preset."""

    name: str | None = Field(None, description="name of the run; default: the file's name")
    data: DataSettings
    encoding: EncodingSettings = EncodingSettings()
    masking: MaskingSettings = MaskingSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    generate: GenerateSettings = GenerateSettings()
