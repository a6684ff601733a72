"""The model of cells: parts whose logits are summed, in transformers' clothes.

`TfxModel` takes a `BatchTensors` and answers its masked positions. Saving and loading weights is
transformers' own (safetensors, ``AutoModel``); the self-contained folder around it is `folder`.
"""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from core.errors import ConfigurationError
from core.model.attention import AttentionRoute, resolve_attention
from core.model.batch_tensors import BatchTensors, CellBounds, OutputPositions
from core.model.cell_objectives import ClsOutputs
from core.model.configuration import TfxConfig
from core.model.encoder import EncoderPart, initialise
from core.model.log_linear import LogLinear

__all__ = ["CellOutput", "TfxModel", "check_parts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellOutput:
    """Logits at the masked positions.

    Attributes
    ----------
    gene_logits
        (M, outputs per gene); joint head: (M, bins + all phenotype values).
    phenotype_logits
        (K, all phenotype values), -inf outside the slot's own values; joint head: with the bins in
        front, nothing excluded.
    cells
        What the heads of [CLS] say; None but in training with such heads.
    """

    gene_logits: Tensor
    phenotype_logits: Tensor
    cells: ClsOutputs | None = None


def check_parts(
    *, kind: str, head: str, layers: int, log_linear: bool, layout: str, states: int
) -> None:
    """Refuse parts of a model that exclude each other.

    Raises
    ------
    ConfigurationError
        The message says which, and what to change.
    """
    if head == "joint" and kind == "continuous":
        message = "model.head = 'joint' needs bins; use encoding.kind = 'binned' or 'binary'"
        raise ConfigurationError(message)
    if log_linear and (kind == "continuous" or head == "joint"):
        message = (
            "model.log_linear needs bins and a split head; set encoding.kind = 'binned' or "
            "'binary' and model.head = 'split', or model.log_linear = false"
        )
        raise ConfigurationError(message)
    if states and layout == "expressed":
        message = (
            "model.cell_states tells a cell's state by the whole panel, which encoding.layout = "
            "'expressed' does not show; set it to 0, or the layout to 'ranked'"
        )
        raise ConfigurationError(message)
    if layers == 0 and not log_linear:
        message = "model.layers = 0 leaves no model; raise it or set model.log_linear = true"
        raise ConfigurationError(message)


class TfxModel(PreTrainedModel):  # type: ignore[misc]
    """A masked language model of cells; logits are the sum of its parts."""

    config_class = TfxConfig
    base_model_prefix = "tfx"
    main_input_name = "batch"

    def __init__(self, config: TfxConfig) -> None:
        super().__init__(config)
        check_parts(
            kind=config.kind, head=config.head, layers=config.layers, log_linear=config.log_linear,
            layout=config.layout, states=config.cell_states,
        )  # fmt: skip
        self.encoder_part = EncoderPart(config) if config.layers else None
        self.log_linear = LogLinear(config) if config.log_linear else None
        #: Leave the encoder out, while the log-linear part is trained first.
        self.log_linear_only = False
        self._route: AttentionRoute | None = None
        slots = [slot for slot, size in enumerate(config.phenotype_sizes) for _ in range(size)]
        # Saved with the weights: from_pretrained builds on the meta device and forgets the others.
        self.register_buffer("slot_of_value", torch.tensor(slots, dtype=torch.long))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave weights to `start`: transformers calls this for missing ones only."""

    def start(self) -> None:
        """Draw initial weights (from torch's global generator, which the caller seeds)."""
        if self.encoder_part is not None:
            initialise(self.encoder_part)
            if self.log_linear is not None:
                self.encoder_part.start_at_zero()
        if self.log_linear is not None:
            self.log_linear.start()

    def attention_route(self, *, ragged: bool) -> AttentionRoute:
        """Return the resolved attention route, logging the choice the first time."""
        if self._route is None:
            dtype = self.dtype
            if torch.is_autocast_enabled(self.device.type):
                dtype = torch.get_autocast_dtype(self.device.type)
            self._route = resolve_attention(
                self.config.attention,
                device=self.device,
                dtype=dtype,
                dropout=self.config.attention_dropout,
                ragged=ragged,
            )
            logger.info("attention: %s (%s)", self._route.name, self._route.reason)
        return self._route

    def forward(self, batch: BatchTensors) -> CellOutput:
        """Answer the masked positions of a batch."""
        genes: list[Tensor] = []
        phenotypes: list[Tensor] = []
        states = None
        if self.encoder_part is not None and not (self.log_linear_only and self.log_linear):
            route = self.attention_route(ragged=self._ragged)
            gene_logits, phenotype_logits, states = self.encoder_part(batch, route)
            genes.append(gene_logits.float())
            phenotypes.append(phenotype_logits.float())
        if self.log_linear is not None:
            gene_logits, phenotype_logits = self.log_linear(batch)
            genes.append(gene_logits.float())
            phenotypes.append(phenotype_logits.float())
        return CellOutput(sum(genes[1:], genes[0]), self._own_values(phenotypes, batch), states)

    @property
    def _ragged(self) -> bool:
        return self.config.layout == "expressed"

    def _own_values(self, parts: list[Tensor], batch: BatchTensors) -> Tensor:
        logits = sum(parts[1:], parts[0])
        if self.config.head == "joint":
            return logits
        foreign = self.slot_of_value != batch.phenotype_slot.unsqueeze(-1)
        return logits.masked_fill(foreign, float("-inf"))

    def phenotype_probabilities(self, logits: Tensor, slot: int) -> Tensor:
        """Return (K, values of the phenotype) probabilities from one slot's logits (K, ...)."""
        if self.config.head == "joint":
            logits = logits[:, self.config.n_bins :]
        return torch.softmax(logits[:, self.slot_of_value == slot], dim=-1)

    def cell_embeddings(
        self, batch: BatchTensors, position: Literal["cls", "mean"] | int = "cls"
    ) -> Tensor:
        """Return (cells, hidden size): the last hidden state at one place of each cell.

        Parameters
        ----------
        batch
            The cells.
        position
            "cls", the number of a phenotype's slot, or "mean": over all tokens of the cell.

        Raises
        ------
        ConfigurationError
            The model has no encoder.
        """
        if self.encoder_part is None:
            message = (
                "this model is a log-linear part without an encoder: it has no [CLS] embedding"
            )
            raise ConfigurationError(message)
        starts = batch.cu_seqlens[:-1].long()
        route = self.attention_route(ragged=self._ragged)
        if position == "mean":
            hidden = self.encoder_part.encode(batch, route)
            sums = hidden.new_zeros(batch.n_cells, hidden.shape[1])
            sums = sums.index_add(0, batch.cell_of_token, hidden)
            return sums / batch.cu_seqlens.diff().unsqueeze(-1)
        if position != "cls":
            starts = starts + 1 + int(position)
        cells = np.arange(batch.n_cells + 1, dtype=np.int32)
        cu_outputs = torch.from_numpy(cells).to(starts.device)
        bounds = CellBounds(batch.token_bounds, cells, batch.cu_seqlens, cu_outputs)
        return self.encoder_part.encode(batch, route, OutputPositions(starts, bounds))


AutoConfig.register(TfxConfig.model_type, TfxConfig, exist_ok=True)
AutoModel.register(TfxConfig, TfxModel, exist_ok=True)
