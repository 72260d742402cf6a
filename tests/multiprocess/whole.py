"""Models of which modules and functions cannot be traced, and are run whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, TOKENS, Case
from tests.multiprocess.unusual import WIDTH, sequences


@dataclass
class Chosen:
    """What ``Choosing`` returns."""

    hidden: Tensor
    scores: dict[str, Tensor | None]


class Choosing(nn.Module):
    """Branches on values; takes keywords and nests, returns a dataclass with a dict in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, *, parts: Any, scale: float = 1.0, mask: Any = None) -> Chosen:
        assert mask is None
        rows = x if bool((x * x).sum() >= 0) else parts["skip"]
        return Chosen(self.a(rows) * scale, {"own": self.b(parts["skip"]), "none": None})


class ChoosingBlock(nn.Module):
    """Residual, around a module that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.linear = Choosing(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made = self.inner(F.gelu(x), parts={"skip": x, "depth": 1}, scale=0.5)
        return x + self.linear(made.hidden) * made.scores["own"]


class Transcribing(nn.Module):
    """Modules that are run whole, and a loss that is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ChoosingBlock() for _ in range(4)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x).log_softmax(-1)


def transcripts(generator: torch.Generator, samples: int) -> tuple[Any, Any]:
    (x,), _ = sequences(generator, samples)
    tokens = torch.randint(1, CLASSES, (samples, 5), generator=generator)
    lengths = torch.randint(2, 6, (samples,), generator=generator)
    return (x,), (tokens, torch.full((samples,), TOKENS), lengths)


def transcript_loss(output: Tensor, target: Any) -> Tensor:
    return F.ctc_loss(output.transpose(0, 1), *target)


def summed_transcript_loss(output: Tensor, target: Any) -> Tensor:
    return F.ctc_loss(output.transpose(0, 1), *target, reduction="sum")


CASES = {
    "transcribing": Case(Transcribing, transcripts, transcript_loss),
    "transcribing-sum": Case(Transcribing, transcripts, summed_transcript_loss),
}
