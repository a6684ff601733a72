"""The configuration of a model: everything its shapes depend on, in transformers' form."""

from collections.abc import Sequence
from typing import Any, Literal

from transformers import PretrainedConfig

from core.encoding.tokens import TokenSpace

__all__ = ["TfxConfig"]


class TfxConfig(PretrainedConfig):  # type: ignore[misc]
    """Shapes and options of a `TfxModel`; saved as ``config.json``.

    Parameters
    ----------
    phenotype_names, phenotype_values
        In header order.
    n_genes, n_bins
        Size of the panel; bins of a gene (binary 2; continuous 2: off and on).
    kind, layout
        Encoding of values and choice of genes.
    longest_sequence
        Tokens of the longest cell (transformers keeps ``max_length`` for text generation).
    hidden_size, layers, heads, intermediate_size, dropout, attention_dropout, norm, activation
        The encoder; BERT's own arrangement by default (post-norm, GELU).
    attention
        Wanted attention route, resolved when the model runs.
    head
        "split" or "joint".
    log_linear, log_linear_rank, cell_states
        Whether the classical answer is part of the model, the rank of its gene-gene term, and how
        many latent states of cells it knows.
    cell_summary
        Whether [CLS] begins with a sum over the visible genes.
    cls_reconstruction, cls_contrast
        Whether the model has the heads by which [CLS] learns (`core.model.cell_objectives`).
    classified, given, positive
        Of a classifier: the phenotype that it tells from [CLS], those that it is shown, and the one
        value that it tells from the rest, if there is one. None and empty for masked models.
    """

    model_type = "tfx"

    def __init__(
        self,
        phenotype_names: Sequence[str] = (),
        phenotype_values: Sequence[Sequence[str]] = (),
        n_genes: int = 1,
        n_bins: int = 2,
        kind: Literal["binary", "binned", "continuous"] = "binned",
        layout: Literal["ranked", "expressed"] = "ranked",
        longest_sequence: int = 4,
        hidden_size: int = 256,
        layers: int = 4,
        heads: int = 4,
        intermediate_size: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        norm: str = "post",
        activation: str = "gelu",
        attention: str = "auto",
        head: str = "split",
        log_linear: bool = False,  # noqa: FBT001, FBT002 - transformers rebuilds it by keyword
        log_linear_rank: int = 32,
        cell_states: int = 0,
        cell_summary: bool = False,  # noqa: FBT001, FBT002
        cls_reconstruction: bool = False,  # noqa: FBT001, FBT002
        cls_contrast: bool = False,  # noqa: FBT001, FBT002
        classified: str | None = None,
        given: Sequence[str] = (),
        positive: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - whatever transformers keeps in config.json
    ) -> None:
        # Two lists, not a mapping: transformers sorts the keys of what it saves.
        self.phenotype_names = list(phenotype_names)
        self.phenotype_values = [list(values) for values in phenotype_values]
        self.n_genes = n_genes
        self.n_bins = n_bins
        self.kind = kind
        self.layout = layout
        self.longest_sequence = longest_sequence
        self.hidden_size = hidden_size
        self.layers = layers
        self.heads = heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.norm = norm
        self.activation = activation
        self.attention = attention
        self.head = head
        self.log_linear = log_linear
        self.log_linear_rank = log_linear_rank
        self.cell_states = cell_states
        self.cell_summary = cell_summary
        self.cls_reconstruction = cls_reconstruction
        self.cls_contrast = cls_contrast
        self.classified = classified
        self.given = list(given)
        self.positive = positive
        super().__init__(**kwargs)

    @property
    def phenotypes(self) -> dict[str, list[str]]:
        """Name -> values, in header order."""
        return dict(zip(self.phenotype_names, self.phenotype_values, strict=True))

    @property
    def tokens(self) -> TokenSpace:
        """The identities and values of the model."""
        n_bins = 1 if self.kind == "continuous" else self.n_bins
        return TokenSpace.build(
            self.phenotypes, self.n_genes, n_bins,
            layout=self.layout, classified=self.classified, given=self.given,
        )  # fmt: skip

    @property
    def predicted(self) -> dict[str, int]:
        """The phenotypes that the model can be asked for -> their slots: all, or a classifier's one."""
        slots = {name: slot for slot, name in enumerate(self.phenotype_names)}
        return slots if self.classified is None else {self.classified: slots[self.classified]}

    @property
    def n_gene_outputs(self) -> int:
        """Numbers the gene head gives per masked gene.

        Binary 1 (logit of "on"), binned one per bin, continuous 3 (logit of "on"; mean and log
        standard deviation of the value where on).
        """
        return {"binary": 1, "binned": self.n_bins, "continuous": 3}[self.kind]

    @property
    def phenotype_sizes(self) -> list[int]:
        """Number of values of each phenotype, in header order."""
        return [len(values) for values in self.phenotype_values]
