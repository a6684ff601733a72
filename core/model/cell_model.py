"""The model of cells: parts whose logits are summed, as a model of the transformers library.

`TfxModel` takes a `BatchTensors` and returns logits at its masked positions. Saving and loading weights
is transformers' own (safetensors, ``AutoModel``); `folder` makes the self-contained folder around it.

Shapes: M masked genes, K masked phenotypes, O outputs per gene, V values of all phenotypes.
"""

import logging
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from core.errors import ConfigurationError
from core.model.attention import AttentionRoute, resolve_attention
from core.model.batch_tensors import BatchTensors, CellBounds, OutputPositions
from core.model.configuration import TfxConfig, check_parts
from core.model.encoder import EncoderPart, initialise
from core.model.library_size import LibrarySizeEffects
from core.model.log_linear import LogLinear
from core.model.losses import ClsOutputs
from core.model.pooled import PooledPart

logger = logging.getLogger(__name__)

#: A part of a model that an evaluation can leave out.
LeftOut = Literal["encoder", "log_linear", "library_size", "couplings"]


@dataclass(frozen=True)
class CellOutput:
    """Logits at the masked positions."""

    #: (M, O); joint head: (M, bins + V).
    gene_logits: Tensor
    #: (K, V), -inf outside the slot's own values; joint head: (K, bins + V), nothing excluded.
    phenotype_logits: Tensor
    #: Outputs of the heads of [CLS]; None but in training with such heads.
    cells: ClsOutputs | None = None


class TfxModel(PreTrainedModel):  # type: ignore[misc]
    """A masked language model of cells; logits are the sum of its parts."""

    config_class = TfxConfig
    base_model_prefix = "tfx"
    main_input_name = "batch"

    def __init__(self, config: TfxConfig) -> None:
        super().__init__(config)
        check_parts(config, kind=config.kind, layout=config.layout)
        kind = PooledPart if config.encoder == "pooled" else EncoderPart
        self.encoder_part = kind(config) if config.layers else None
        self.log_linear = LogLinear(config) if config.log_linear else None
        self.library_size = LibrarySizeEffects(config) if config.library_size else None
        #: Leave the encoder out, while the log-linear part is trained first.
        self.log_linear_only = False
        #: Parts that do not take part, to see what they contribute. Of the log-linear part its marginals stay;
        #: "couplings" are all of it but these and the class log-odds.
        self.left_out: frozenset[LeftOut] = frozenset()
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
            initialise(self.encoder_part, self.config.initial_weights)
            is_pooled = self.config.encoder == "pooled"
            starts_at_zero = self.config.initial_weights == "fan_in" and self.config.head == "split"
            if self.log_linear is not None or is_pooled or starts_at_zero:
                self.encoder_part.start_at_zero()
        if self.log_linear is not None:
            self.log_linear.start()
        if self.library_size is not None:
            self.library_size.start()

    @property
    def has_couplings(self) -> bool:
        """Whether the log-linear part is there and couples genes."""
        return self.log_linear is not None and self.log_linear.couplings is not None

    def attention_route(self) -> AttentionRoute:
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
                ragged=self.config.layout == "expressed",
            )
            if self.config.encoder == "attention":
                logger.info("attention: %s (%s)", self._route.name, self._route.reason)
        return self._route

    def forward(self, batch: BatchTensors) -> CellOutput:
        """Predict the masked positions of a batch."""
        parts, cls_outputs = [], None
        without_encoder = self.log_linear_only and self.log_linear is not None
        if "library_size" in self.left_out:
            batch = replace(batch, library_size=None)
        if self.encoder_part is not None and not without_encoder and "encoder" not in self.left_out:
            genes, phenotypes, cls_outputs = self.encoder_part(batch, self.attention_route())
            parts.append((genes.float(), phenotypes.float()))
        if self.log_linear is not None:
            genes, phenotypes = self.log_linear(batch, only=self._only_of_log_linear())
            parts.append((genes.float(), phenotypes.float()))
        genes, phenotypes = parts[0] if len(parts) == 1 else map(torch.add, *parts)
        if self.library_size is not None:
            genes = self.library_size.add(genes, batch)
        if self.config.head != "joint":
            foreign = self.slot_of_value != batch.phenotype_slot.unsqueeze(-1)
            phenotypes = phenotypes.masked_fill(foreign, float("-inf"))
        return CellOutput(genes, phenotypes, cls_outputs)

    def _only_of_log_linear(self) -> Literal["marginals", "class_log_odds"] | None:
        if "log_linear" in self.left_out:
            return "marginals"
        return "class_log_odds" if "couplings" in self.left_out else None

    def phenotype_probabilities(self, logits: Tensor, slot: int) -> Tensor:
        """Return (K, values of the phenotype) probabilities from one slot's logits (K, ...)."""
        if self.config.head == "joint":
            logits = logits[:, self.config.n_bins :]
        return torch.softmax(logits[:, self.slot_of_value == slot], dim=-1)

    def cell_embeddings(
        self, batch: BatchTensors, position: Literal["cls", "mean"] | int = "cls"
    ) -> Tensor:
        """Return (cells, hidden size): the last hidden state at one place of each cell.

        ``position`` is "cls", the slot of a phenotype, or "mean": over all tokens of the cell. A model
        without an encoder raises ConfigurationError.
        """
        if self.encoder_part is None:
            raise ConfigurationError(
                "this model is a log-linear part without an encoder: it has no [CLS] embedding"
            )
        if isinstance(self.encoder_part, PooledPart):
            if position != "cls":
                raise ConfigurationError(
                    "this model has one state for each cell and none for its tokens: leave the position out"
                )
            return self.encoder_part.cell_states(batch)
        starts = batch.cu_seqlens[:-1].long()
        route = self.attention_route()
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
