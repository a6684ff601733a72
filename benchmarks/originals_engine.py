"""The originals' training maths on transformers' plain modules: the baseline of `engine`.

Padded cells, attention written out ("eager"), dropout 0.1 on hidden states and on attention weights,
a head over all 284 tokens of a joint vocabulary at *every* position, cross-entropy with label
smoothing 0.5. Ranked: BERT, as PolyGene. Expressed: value + gene embeddings and DistilBERT's layers,
as PerturbGene. Neither original starts with transformers 5; the numbers of operations are theirs, and
so are the shapes, but none of their code is here.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, DistilBertConfig
from transformers.models.bert.modeling_bert import BertOnlyMLMHead
from transformers.models.distilbert.modeling_distilbert import Transformer

from core.encoding.cell_batch import CellBatch
from core.encoding.tokens import CLS, END, START
from core.model.configuration import TfxConfig

#: Bins, phenotype values and special tokens.
VOCABULARY = 284
SMOOTHING = 0.5
_IGNORED = -100
_STANDARD_DEVIATION = 0.02


def padded_inputs(batch: CellBatch, config: TfxConfig) -> dict[str, Tensor]:
    """Arrange a packed batch as the originals do.

    Returns
    -------
    (cells, longest) each, int64: values, genes, mask (1 where a token is) and labels (-100 where
    nothing is asked).
    """
    tokens = config.tokens
    lengths = np.diff(batch.cu_seqlens)
    cell = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(batch.token_id)) - batch.cu_seqlens[cell]
    # Where tfx writes one NONE, the originals have a token each.
    values = batch.value.astype(np.int64)
    for number, identity in enumerate((CLS, START, END)):
        values[batch.token_id == identity] = tokens.n_values + number
    pad = tokens.n_values + 3
    assert pad < VOCABULARY
    labels = np.full(len(values), _IGNORED)
    labels[batch.gene_position] = tokens.first_bin + batch.gene_target.astype(np.int64)
    known = tokens.not_specified[batch.phenotype_slot] + 1
    labels[batch.phenotype_position] = known + batch.phenotype_target

    def spread(flat: np.ndarray, filler: int) -> Tensor:
        padded = np.full((len(lengths), lengths.max()), filler, dtype=np.int64)
        padded[cell, place] = flat
        return torch.from_numpy(padded)

    return {
        "values": spread(values, pad),
        "genes": spread(batch.token_id.astype(np.int64), 0),
        "mask": spread(np.ones(len(values), np.int64), 0),
        "labels": spread(labels, _IGNORED),
    }


def _loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, label_smoothing=smoothing
    )


class RankedOriginal(nn.Module):
    """BERT with its head for masked tokens, the decoder tied to the value embedding."""

    def __init__(
        self, *, layers: int, width: int, heads: int, longest: int, dropout: float, attention: str
    ) -> None:
        super().__init__()
        self.smoothing = SMOOTHING
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_act="gelu",
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=longest,
            attn_implementation=attention,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = BertOnlyMLMHead(config)
        self.head.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the loss."""
        hidden = self.bert(inputs["values"], attention_mask=inputs["mask"]).last_hidden_state
        return _loss(self.head(hidden), inputs["labels"], self.smoothing)


class ExpressedOriginal(nn.Module):
    """Value + gene embeddings without positions, DistilBERT's layers, a head of two layers."""

    def __init__(
        self, *, layers: int, width: int, heads: int, n_genes: int, dropout: float, attention: str
    ) -> None:
        super().__init__()
        self.smoothing = SMOOTHING
        config = DistilBertConfig(
            dim=width,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=4 * width,
            activation="gelu",
            dropout=dropout,
            attention_dropout=dropout,
            attn_implementation=attention,
        )
        self.value = nn.Embedding(VOCABULARY, width)
        self.gene = nn.Embedding(n_genes, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.transformer = Transformer(config)
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-12),
            nn.Linear(width, VOCABULARY),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STANDARD_DEVIATION)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the loss."""
        embedded = self.value(inputs["values"]) + self.gene(inputs["genes"])
        hidden = self.dropout(self.norm(embedded))
        # Added to the scores, as DistilBERT's own model hands it to its layers.
        hides = torch.zeros_like(inputs["mask"], dtype=hidden.dtype)
        hides = hides.masked_fill(inputs["mask"] == 0, torch.finfo(hidden.dtype).min)
        hidden = self.transformer(hidden, hides[:, None, None, :]).last_hidden_state
        return _loss(self.head(hidden), inputs["labels"], self.smoothing)


def make_original(
    config: TfxConfig, *, dropout: float, attention: str = "eager"
) -> RankedOriginal | ExpressedOriginal:
    """Make the original of a tfx model's size and layout, in training mode, from a fixed seed."""
    size = {"layers": config.layers, "width": config.hidden_size, "heads": config.heads}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if config.layout == "ranked":
            model: RankedOriginal | ExpressedOriginal = RankedOriginal(
                **size, longest=config.longest_sequence, dropout=dropout, attention=attention
            )
        else:
            n_genes = config.tokens.n_token_ids
            model = ExpressedOriginal(**size, n_genes=n_genes, dropout=dropout, attention=attention)
    return model.train()
