"""Small models of other systems, written to folders as those systems save them.

`PolyGene` and `PerturbGene` also say, on their own account, how each system writes a cell: by the
names of what stands in a batch of ours, not by the rows that the conversion found.
"""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from core.encoding.tokens import CLS, END, MASK, START

#: Genes that a foreign model knows: ours (`examples.make_cell_model`) in another order, and others.
GENES = [
    "ENSG99", *(f"ENSG0000000000{gene}" for gene in (4, 0, 6, 2)), "GENE1", "GENE5",
    "ENSG00000000003.7", "ENSG98",
]  # fmt: skip
#: Place of our gene g in that list.
PLACE = {0: 2, 1: 5, 2: 4, 3: 7, 4: 1, 5: 6, 6: 3}

SHAPE = {"layers": 2, "hidden_size": 12, "heads": 3, "intermediate_size": 20}


def randomise(model, seed=0):
    """Draw every weight, so that no bias is zero and no norm one."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def bert_config(**changes):
    return BertConfig(
        **{
            "num_hidden_layers": 2,
            "hidden_size": 12,
            "num_attention_heads": 3,
            "intermediate_size": 20,
            "pad_token_id": None,
            "attn_implementation": "eager",
        }
        | changes
    )


def distilbert_config(**changes):
    return DistilBertConfig(
        **{"n_layers": 2, "dim": 12, "n_heads": 3, "hidden_dim": 20, "attn_implementation": "eager"}
        | changes
    )


def meanings(config, batch):
    """Give (what, which) of every token: what stands there, and its value as a name or bin."""
    tokens = config.tokens
    names = {MASK: "MASK"}
    names |= {tokens.first_bin + b: b for b in range(tokens.n_bins)}
    for slot, (phenotype, values) in enumerate(config.phenotypes.items()):
        first = int(tokens.not_specified[slot])
        names[first] = None
        names |= {first + 1 + code: value for code, value in enumerate(values)}
        assert phenotype in tokens.phenotypes
    for identity, value in zip(batch.token_id.tolist(), batch.value.tolist(), strict=True):
        if identity in (CLS, START, END):
            yield {CLS: "CLS", START: "START", END: "END"}[identity], None
        elif identity < tokens.first_gene:
            yield tokens.names[identity - tokens.first_slot], names[value]
        else:
            yield identity - tokens.first_gene, names[value]


class PolyGene:
    """BERT over a fixed header and ranked genes: word + position, decoder tied to the words."""

    SLOTS = ("sex", "tissue", "cell_type", "age", "disease")
    VOCABULARY = (
        "[PAD]", "[MASK]", "[SEP]", "[CLS]", "[UNK]", "[START]", "[END]", "[no_sex]", "[no_tissue]",
        "[no_cell_type]", "[no_age]", "[no_disease]", "[unused1]", "[liver]", "[blood]", "[lung]",
        "[T_cell]", "[male]", "[female]", "[normal]",
    )  # fmt: skip

    def __init__(self, n_bins=4):
        self.n_bins = n_bins
        self.model = randomise(
            BertForMaskedLM(
                bert_config(
                    vocab_size=len(self.VOCABULARY) + n_bins, max_position_embeddings=len(GENES) + 8
                )
            )
        )

    def save(self, folder):
        self.model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(self.VOCABULARY) + "\n")
        (folder / "genes.txt").write_text("\n".join(GENES) + "\n")
        return folder

    def answers(self, config):
        """Columns of its logits: the bins, then our phenotype values."""
        bins = [len(self.VOCABULARY) + b for b in range(self.n_bins)]
        values = [v for values in config.phenotypes.values() for v in values]
        return bins + [self.VOCABULARY.index(f"[{v.replace(' ', '_')}]") for v in values]

    def write(self, what, which):
        """Return word and position of one token."""
        word = self.VOCABULARY.index
        if what == "CLS":
            return word("[CLS]"), 0
        if what == "START":
            return word("[START]"), 6
        if what == "END":
            return word("[END]"), 7 + len(GENES)
        if what in self.SLOTS:
            name = "[MASK]" if which == "MASK" else f"[{which or 'no_' + what}]"
            return word(name.replace(" ", "_")), 1 + self.SLOTS.index(what)
        bin_ = word("[MASK]") if which == "MASK" else len(self.VOCABULARY) + which
        return bin_, 7 + PLACE[what]

    def run(self, config, batch):
        """Return the last hidden states and the logits of every token, padding left out."""
        written = torch.tensor([self.write(*one) for one in meanings(config, batch)])
        words, positions, mask = pad(batch, written)
        with torch.no_grad():
            answer = self.model(
                input_ids=words,
                position_ids=positions,
                attention_mask=mask.long(),
                output_hidden_states=True,
            )
        return answer.hidden_states[-1][mask], answer.logits[mask]


#: PerturbGene's tokens by obs column.
PHENOTYPE_TOKENS = {
    "tissue": ["[liver]", "[lung]", "[blood]"],
    "cell_type": ["[T_cell]"],
    "sex": ["[male]", "[female]"],
}


class PerturbGene:
    """DistilBERT without positions: word + token type of phenotype or gene; no START."""

    def __init__(self, n_bins=4):
        self.n_bins = n_bins
        self.tokens = ["[CLS]", "[EOS]", "[MASK]", "[PAD]", "[T_cell]", "[male]", "[female]",
                       "[liver]", "[lung]", "[blood]"]  # fmt: skip
        self.columns = sorted(PHENOTYPE_TOKENS)
        self.model = randomise(
            DistilBertForMaskedLM(
                distilbert_config(
                    vocab_size=len(self.tokens) + n_bins, pad_token_id=3, tie_word_embeddings=False
                )
            )
        )
        # DistilBertModel adds positions to whatever it is given; PerturbGene has none.
        torch.nn.init.zeros_(self.model.distilbert.embeddings.position_embeddings.weight)
        n_types = 1 + len(self.columns) + len(GENES)
        self.types = randomise(torch.nn.Embedding(n_types, 12), seed=1)

    def save(self, folder):
        self.model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors["distilbert.embeddings.position_embeddings.weight"]
        tensors["distilbert.embeddings.token_type_embeddings.weight"] = self.types.weight.data
        save_file(tensors, folder / "model.safetensors")
        (folder / "phenotypic_tokens_map.json").write_text(json.dumps(PHENOTYPE_TOKENS))
        (folder / "genes.txt").write_text("\n".join(GENES) + "\n")
        return folder

    def answers(self, config):
        """Columns of its logits: the bins, then our phenotype values."""
        bins = [len(self.tokens) + b for b in range(self.n_bins)]
        values = [v for values in config.phenotypes.values() for v in values]
        return bins + [self.tokens.index(f"[{v.replace(' ', '_')}]") for v in values]

    def write(self, what, which):
        """Return word and type of one token; what it has no word for, as a phenotype it drops."""
        if what in ("CLS", "END"):
            return self.tokens.index("[CLS]" if what == "CLS" else "[EOS]"), 0
        if what == "START" or (what in self.columns and which is None):
            return self.tokens.index("[PAD]"), 0
        if what in self.columns:
            word = "[MASK]" if which == "MASK" else f"[{which.replace(' ', '_')}]"
            return self.tokens.index(word), 1 + self.columns.index(what)
        bin_ = self.tokens.index("[MASK]") if which == "MASK" else len(self.tokens) + which
        return bin_, 1 + len(self.columns) + PLACE[what]

    def run(self, config, batch):
        """Return the last hidden states and the logits of every token, padding left out."""
        written = torch.tensor([self.write(*one) for one in meanings(config, batch)])
        words, types, mask = pad(batch, written)
        embeddings = self.model.distilbert.embeddings
        with torch.no_grad():
            answer = self.model(
                inputs_embeds=embeddings.word_embeddings(words) + self.types(types),
                attention_mask=mask.long(),
                output_hidden_states=True,
            )
        return answer.hidden_states[-1][mask], answer.logits[mask]


def pad(batch, written):
    """(T, 2) to two (cells, longest) arrays and the mask of real tokens."""
    cells = torch.split(written, batch.cu_seqlens.diff().tolist())
    padded = torch.nn.utils.rnn.pad_sequence(cells, batch_first=True)
    lengths = batch.cu_seqlens.diff().long()
    mask = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
    return padded[..., 0], padded[..., 1], mask
