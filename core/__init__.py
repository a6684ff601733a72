"""The tfx engine: cells, encoding, model, training, evaluation, generation. Knows no terminal."""

__version__ = "0.2.0"
