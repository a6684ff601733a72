"""Text cut to a width."""

__all__ = ["shortened"]


def shortened(text: str, width: int) -> str:
    """Cut a text that is longer than ``width`` characters, and show that by an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"
