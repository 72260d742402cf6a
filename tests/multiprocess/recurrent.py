"""Recurrent models and others that are neither transformers nor convolutions, small."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, TOKENS, VOCABULARY, Case

# ---- what models are fed


def sequences(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Labelled sequences of vectors."""
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return (torch.randn(samples, TOKENS, 8, generator=generator),), labels


def next_tokens(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Tokens, and the same one on."""
    tokens = torch.randint(VOCABULARY, (samples, TOKENS + 1), generator=generator)
    return (tokens[:, :-1],), tokens[:, 1:]


def words(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Labelled sequences of tokens."""
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return (torch.randint(VOCABULARY, (samples, TOKENS), generator=generator),), labels


def vectors(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Labelled vectors."""
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return (torch.randn(samples, 16, generator=generator),), labels


def pairs(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """An image, words and figures at once."""
    images = torch.randn(samples, 1, 8, 8, generator=generator)
    tokens = torch.randint(VOCABULARY, (samples, TOKENS), generator=generator)
    figures = torch.randn(samples, 5, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return {"image": images, "tokens": tokens, "figures": figures}, labels


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


# ---- recurrences


class Lstm(nn.Module):
    """``nn.LSTM`` over vectors, classified by its last state."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 16, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(out[:, -1])


class LstmLanguage(nn.Module):
    """An LSTM language model."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.rnn = nn.LSTM(32, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, VOCABULARY, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


class Cells(nn.Module):
    """``nn.LSTMCell`` in a loop of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 16)
        for t in range(4):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


# ---- others


def normalized_mlp() -> nn.Module:
    """BatchNorm1d, also without parameters and without running statistics."""
    return nn.Sequential(
        nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32, affine=False), nn.ReLU(),
        nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32, track_running_stats=False), nn.ReLU(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip


class Bag(nn.Module):
    """The mean of word vectors."""

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, 32, mode=mode)
        self.hidden, self.head = nn.Linear(32, 64), nn.Linear(64, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(tokens))))


class TwoLayer(nn.Module):
    """An MLP whose layers are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Joined(nn.Module):
    """Three towers for three inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.table = nn.Sequential(nn.Linear(5, 16), nn.Tanh())
        self.trunk = nn.Sequential(
            nn.Linear(8 * 16 + 32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
            nn.Linear(64, CLASSES),
        )  # fmt: skip

    def forward(self, image: Tensor, tokens: Tensor, figures: Tensor) -> Tensor:
        towers = [self.vision(image), self.embed(tokens).mean(1), self.table(figures)]
        return self.trunk(torch.cat(towers, 1))


class Attending(nn.Module):
    """``nn.MultiheadAttention`` without a block around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.norm(x + y).mean(1))


class Encoder(nn.Module):
    """``nn.TransformerEncoder``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


CASES: dict[str, Case] = {
    "batchnorm-mlp": Case(normalized_mlp, vectors, F.cross_entropy, mixes=True),
    "lstm": Case(Lstm, sequences, F.cross_entropy),
    "bilstm": Case(lambda: Lstm(bidirectional=True), sequences, F.cross_entropy),
    "gru": Case(lambda: Lstm(nn.GRU), sequences, F.cross_entropy),
    "lstm-lm": Case(LstmLanguage, next_tokens, token_loss),
    "lstm-lm-tied": Case(lambda: LstmLanguage(tied=True), next_tokens, token_loss),
    "lstm-cells": Case(Cells, sequences, F.cross_entropy),
    "bag": Case(Bag, words, F.cross_entropy),
    "bag-sum": Case(lambda: Bag("sum"), words, F.cross_entropy),
    "two-layer": Case(TwoLayer, vectors, F.cross_entropy),
    "towers": Case(Joined, pairs, F.cross_entropy),
    "attention": Case(Attending, sequences, F.cross_entropy),
    "encoder": Case(Encoder, sequences, F.cross_entropy),
}
