"""Models that the tests name as `torch_models:...`, as a job names its own code."""

from typing import Any

import torch
from torch import nn


class Linear(nn.Module):  # type: ignore[misc]
    """y = x @ W + b, with a Dropout that must be off."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shape (rows, 3)."""
        result: torch.Tensor = self.dropout(self.linear(x))
        return result


class Several(Linear):
    """Returns what `kind` says, around y = x @ W + b."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> Any:
        """Return a tuple, a dict, or a number for the whole batch."""
        y = self.linear(x) if shift is None else self.linear(x) + shift[:, None]
        if self.kind == "tuple":
            return y, y.argmax(-1)
        if self.kind == "dict":
            return {"y": y, "label": y.argmax(-1), "cache": None, "loss": y.sum()}
        return y.sum()


class Nested(Linear):
    """Takes a dict, and a number by name."""

    def forward(  # type: ignore[override]
        self, given: dict[str, torch.Tensor], *, scale: torch.Tensor
    ) -> torch.Tensor:
        """Return shape (rows, 3)."""
        result: torch.Tensor = self.linear(given["x"]) * scale[:, None]
        return result


class Failing(nn.Module):  # type: ignore[misc]
    """Raises what `kind` says, with what it got in the text."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fail."""
        if self.kind == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.kind == "cpu":
            return torch.empty(2**62, dtype=torch.uint8)
        raise ValueError(f"cannot take {x.tolist()}")


class Tied(nn.Module):  # type: ignore[misc]
    """Scores words with the very vectors that stand for them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 3)
        self.scores = nn.Linear(3, 4, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return shape (rows, 4)."""
        result: torch.Tensor = self.scores(self.words(x))
        return result


class Positional(nn.Module):  # type: ignore[misc]
    """Takes its tensors by position only."""

    def forward(self, a: torch.Tensor, b: torch.Tensor, /) -> torch.Tensor:
        """Return a - b."""
        return a - b


def fail() -> nn.Module:
    """Fail as a user's factory may."""
    raise KeyError("config")


def no_module() -> dict[str, int]:
    """Return what is no module."""
    return {}
