"""The configuration of a model: everything its shapes depend on, in transformers' form.

`ModelRecord` is the one list of its fields: the model section of a preset, and the facts that the data
decide.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from transformers import PretrainedConfig

from core.encoding.tokens import TokenSpace
from core.errors import ConfigurationError
from core.presets.phenotype_names import LONGEST_NAME
from core.presets.schema import ModelSettings

Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME)]
#: Largest integer of a configuration: more would only exhaust the memory.
_LARGEST = 10**8
#: Fields that configurations of earlier releases may lack.
_ADDED_LATER = {"cell_states", "cell_summary", "cls_reconstruction", "cls_contrast"}
_ADDED_LATER |= {"classified", "given", "positive", "start_from"}
_ADDED_LATER |= {"encoder", "initial_weights", "library_size", "context_genes"}


class ModelRecord(ModelSettings):
    """The fields of ``config.json`` with their types and ranges; transformers' own keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["tfx"] = "tfx"
    #: In header order.
    phenotype_names: list[Name] = Field(default_factory=list)
    phenotype_values: list[list[Name]] = Field(default_factory=list)
    #: Size of the panel.
    n_genes: int = Field(1, ge=1)
    #: Bins of a gene; binary and continuous 2: not expressed and expressed.
    n_bins: int = Field(2, ge=2, le=256)
    kind: Literal["binary", "binned", "continuous"] = "binned"
    layout: Literal["ranked", "expressed"] = "ranked"
    #: Tokens of the longest cell (transformers keeps ``max_length`` for text generation).
    longest_sequence: int = Field(4, ge=1)
    #: Whether the model has the heads of `core.model.losses`.
    cls_reconstruction: bool = False
    cls_contrast: bool = False
    #: Of a classifier: the phenotype that it predicts at [CLS], those that it is shown, and the value
    #: that it separates from the rest, if there is one.
    classified: Name | None = None
    given: list[Name] = Field(default_factory=list)
    positive: Name | None = None

    @field_validator("*")
    @classmethod
    def _no_absurd_size(cls, value: object) -> object:
        if isinstance(value, int) and value > _LARGEST:
            raise ValueError(f"must be at most {_LARGEST:,}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problem = ""
        if len(self.phenotype_names) != len(self.phenotype_values):
            problem = "phenotype_names and phenotype_values differ in number"
        elif len(set(self.phenotype_names)) != len(self.phenotype_names):
            problem = "a phenotype occurs twice"
        elif any(len(set(values)) != len(values) for values in self.phenotype_values):
            problem = "a value of a phenotype occurs twice"
        elif not all(self.phenotype_values):
            problem = "a phenotype has no values"
        elif {*self.given, *filter(None, [self.classified])} - set(self.phenotype_names):
            problem = "a classifier's phenotype is none of the phenotypes"
        if problem:
            raise ValueError(problem)
        return self


_FIELDS = ModelRecord.model_fields.keys() - {"start_from", "model_type"}
#: Fields that every ``config.json`` has.
REQUIRED_FIELDS = ModelRecord.model_fields.keys() - _ADDED_LATER


class TfxConfig(PretrainedConfig):  # type: ignore[misc]
    """Shapes and options of a `TfxModel`, the fields of `ModelRecord`; saved as ``config.json``."""

    model_type = "tfx"

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - and what transformers keeps in config.json
        own = {name: settings.pop(name) for name in _FIELDS & settings.keys()}
        try:
            record = ModelRecord(**own)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"no model can have this {where}: {first['msg']}") from None
        # phenotype_names and phenotype_values are lists: transformers sorts the keys of mappings.
        for name in _FIELDS:
            setattr(self, name, getattr(record, name))
        self.intermediate_size = record.intermediate_size or 4 * record.hidden_size
        super().__init__(**settings)

    @property
    def phenotypes(self) -> dict[str, list[str]]:
        """Name -> values, in header order."""
        return dict(zip(self.phenotype_names, self.phenotype_values, strict=True))

    @property
    def tokens(self) -> TokenSpace:
        """The token ids and values of the model."""
        return TokenSpace(
            self.phenotypes,
            self.n_genes,
            1 if self.kind == "continuous" else self.n_bins,
            layout=self.layout,
            classified=self.classified,
            given=self.given,
        )

    @property
    def predicted(self) -> dict[str, int]:
        """The phenotypes that the model predicts -> their slots: all, or a classifier's one."""
        slots = {name: slot for slot, name in enumerate(self.phenotype_names)}
        return slots if self.classified is None else {self.classified: slots[self.classified]}

    @property
    def n_gene_outputs(self) -> int:
        """Outputs of the gene head per masked gene.

        Binary 1 (logit of "expressed"), binned one per bin, continuous 3 (logit of "expressed"; mean and
        log standard deviation of the value where expressed).
        """
        return {"binary": 1, "binned": int(self.n_bins), "continuous": 3}[self.kind]

    @property
    def phenotype_sizes(self) -> list[int]:
        """Number of values of each phenotype, in header order."""
        return [len(values) for values in self.phenotype_values]


def check_parts(settings: ModelSettings | TfxConfig, *, kind: str, layout: str) -> None:
    """Raise ConfigurationError if two parts of a model exclude each other."""
    problem = ""
    if settings.head == "joint" and kind == "continuous":
        problem = "model.head = 'joint' needs bins; use encoding.kind = 'binned' or 'binary'"
    elif settings.log_linear and (kind == "continuous" or settings.head == "joint"):
        problem = (
            "model.log_linear needs bins and a split head; set encoding.kind = 'binned' or "
            "'binary' and model.head = 'split', or model.log_linear = false"
        )
    elif settings.cell_states and layout == "expressed":
        problem = (
            "model.cell_states derives a cell's state from the whole panel, which encoding.layout = "
            "'expressed' does not show; set it to 0, or the layout to 'ranked'"
        )
    elif settings.library_size and (kind == "continuous" or settings.head == "joint"):
        problem = (
            "model.library_size needs bins and a split head; set encoding.kind = 'binned' or "
            "'binary' and model.head = 'split', or model.library_size = false"
        )
    elif settings.encoder == "pooled" and (kind == "continuous" or settings.head == "joint"):
        problem = (
            "model.encoder = 'pooled' needs bins and a split head; set encoding.kind = 'binned' or "
            "'binary' and model.head = 'split', or model.encoder = 'attention'"
        )
    elif settings.encoder == "pooled" and settings.cell_summary:
        problem = (
            "model.cell_summary is for [CLS] of an encoder with attention; the pooled encoder has one "
            "state for each cell: set model.cell_summary = false"
        )
    elif settings.context_genes and settings.encoder == "pooled":
        problem = (
            "model.context_genes limits what attention reads, and the pooled encoder reads all genes: leave it "
            "out, or set model.encoder = 'attention'"
        )
    elif settings.context_genes and layout == "expressed":
        problem = (
            "model.context_genes is for encoding.layout = 'ranked'; in the expressed layout "
            "encoding.max_length limits the genes of a cell: set it instead"
        )
    elif settings.layers == 0 and not settings.log_linear:
        problem = "model.layers = 0 leaves no model; raise it or set model.log_linear = true"
    if problem:
        raise ConfigurationError(problem)
