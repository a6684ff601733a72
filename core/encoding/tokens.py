"""Tokens: every position of a sequence has a token id (which token) and a value (its content).

    [CLS] [SEX] [TISSUE] ... [START] gene1 gene2 ... geneN [END]

Token ids: CLS, START, END, one slot per phenotype, one per gene. Values: NONE (of CLS, START and END),
MASK, the bins shared by all genes, and for each phenotype [NO_*] and its values. The two layouts differ
only in the genes of a sequence (`batches`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigurationError

CLS, START, END = 0, 1, 2

NONE, MASK = 0, 1
#: Value of bin 0.
FIRST_BIN = 2


@dataclass(frozen=True)
class TokenSpace:
    """The token ids and values of one model."""

    #: Token id of the first phenotype, and value of bin 0.
    first_slot: ClassVar[int] = 3
    first_bin: ClassVar[int] = FIRST_BIN
    #: Name -> values, in header order.
    phenotypes: Mapping[str, Sequence[str]]
    #: Size of the panel.
    n_genes: int
    #: Bins of a gene, bin 0 included; continuous: 1, the token "a number follows".
    n_bins: int
    layout: Literal["ranked", "expressed"]
    #: The phenotype that a classifier predicts at [CLS]; None: every masked position predicts itself.
    classified: str | None = None
    #: Phenotypes that a classifier is shown.
    given: Sequence[str] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Phenotypes in header order."""
        return tuple(self.phenotypes)

    @property
    def n_phenotypes(self) -> int:
        """Number of phenotype slots."""
        return len(self.phenotypes)

    @property
    def header_length(self) -> int:
        """CLS, the phenotype slots and START."""
        return self.n_phenotypes + 2

    @property
    def n_token_ids(self) -> int:
        """CLS, START, END, the slots, the genes."""
        return self.first_slot + self.n_phenotypes + self.n_genes

    @property
    def n_values(self) -> int:
        """NONE, MASK, the bins, every phenotype's [NO_*] and values."""
        return FIRST_BIN + self.n_bins + sum(len(v) + 1 for v in self.phenotypes.values())

    @property
    def token_id_type(self) -> type[np.uint16 | np.int32]:
        """Smallest type of a batch's token ids."""
        return np.uint16 if self.n_token_ids <= 65_536 else np.int32

    @property
    def value_type(self) -> type[np.uint8 | np.uint16 | np.int32]:
        """Smallest type of a batch's values."""
        if self.n_values <= 256:
            return np.uint8
        return np.uint16 if self.n_values <= 65_536 else np.int32

    @property
    def first_gene(self) -> int:
        """Token id of gene 0."""
        return self.first_slot + self.n_phenotypes

    @cached_property
    def not_specified(self) -> NDArray[np.int64]:
        """(phenotypes,), the value [NO_*] of each phenotype; its code c is c + 1 further on."""
        sizes = [len(values) + 1 for values in self.phenotypes.values()]
        return FIRST_BIN + self.n_bins + np.cumsum([0, *sizes[:-1]], dtype=np.int64)[: len(sizes)]

    @property
    def required_length(self) -> int:
        """Tokens of a sequence with every panel gene: N + 3 + the phenotypes in the header."""
        return self.header_length + self.n_genes + 1

    def resolve_max_length(self, wanted: int | None) -> int:
        """Check that a preset's ``max_length`` has room for the panel (ranked) or a gene (expressed).

        None: what the panel needs.
        """
        if wanted is None:
            return self.required_length
        if self.layout == "ranked" and wanted < self.required_length:
            room = wanted - self.header_length - 1
            raise ConfigurationError(
                f"encoding.max_length = {wanted} is too short: {self.n_genes} genes, "
                f"{self.n_phenotypes} phenotypes and CLS, START, END need {self.required_length}; "
                f"raise it{f', leave it out, or lower data.genes to {room}' if room > 0 else ' or leave it out'}"
            )
        if wanted < self.header_length + 2:
            raise ConfigurationError(
                f"encoding.max_length = {wanted} leaves no room for genes: the header and END "
                f"take {self.header_length + 1}; give at least {self.header_length + 2}"
            )
        return wanted
