"""Small models of what else ``torch.nn`` has: each shows the layers that its name says."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from tests.multiprocess.case import CLASSES, TOKENS, VOCABULARY, Batch, Case
from tests.multiprocess.recurrent import (
    Bag,
    Lstm,
    next_tokens,
    sequences,
    token_loss,
    vectors,
    words,
)
from tests.multiprocess.vision import pictures

WIDTH = 32


def signals(*shape: int) -> Batch:
    """Labelled tensors of a shape."""

    def batch(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
        labels = torch.randint(CLASSES, (samples,), generator=generator)
        return (torch.randn(samples, *shape, generator=generator),), labels

    return batch


def lines() -> nn.Module:
    """Convolutions over time: dilated, grouped, circular; gated linear units."""
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(),
        nn.Conv1d(16, 32, 3, padding=2, dilation=2, groups=2), nn.GLU(1),
        nn.Conv1d(16, 16, 3, padding=1, padding_mode="circular"), nn.AvgPool1d(2), nn.SiLU(),
        nn.AdaptiveMaxPool1d(4), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def volumes() -> nn.Module:
    """Convolutions of volumes, there and back."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ELU(), nn.MaxPool3d(2),
        nn.ConvTranspose3d(8, 8, 2, 2), nn.LeakyReLU(), nn.Conv3d(8, 16, 3, 2, 1), nn.Softplus(),
        nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def resized() -> nn.Module:
    """Images made larger in several ways, padded, with slopes that are learned."""
    return nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 8, 3, 2), nn.PReLU(), nn.ReplicationPad2d(1),
        nn.Upsample(size=(12, 12), mode="bilinear"), nn.Conv2d(8, 16, 3, stride=2), nn.Hardswish(),
        nn.PixelUnshuffle(5), nn.Flatten(), nn.Linear(400, CLASSES),
    )  # fmt: skip


def normalizations() -> nn.Module:
    """Whatever normalises each sample alone."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm([8, 16, 16]), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(8, 8, affine=False), nn.Tanh(),
        nn.LocalResponseNorm(3), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(128, WIDTH), nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, WIDTH),
        nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH, elementwise_affine=False),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


class Decoder(nn.Module):
    """``nn.TransformerDecoder`` with a causal mask, norms first, reading a learned memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        layer = nn.TransformerDecoderLayer(
            WIDTH, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        memory = torch.tanh(self.read(x)).mean(1, keepdim=True)
        return self.head(self.decoder(x, memory, tgt_mask=mask, tgt_is_causal=True))


class Translator(nn.Module):
    """``nn.Transformer``: both trunks read the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.trunks = nn.Transformer(
            WIDTH, 4, num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=64, dropout=0.0,
            activation="gelu", batch_first=True, bias=False,
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.trunks(x, x, tgt_mask=mask))


class Weighed(nn.Module):
    """Attention whose weights are asked for, over sequences first, with keys of their own width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, kdim=8, vdim=8, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        y, weights = self.attention(self.embed(x), x, x)
        return self.head(y.mean(0) * weights.amax((1, 2)).unsqueeze(1))


def parametrized(how: Any) -> nn.Module:
    """Weights that are made of others."""
    return nn.Sequential(
        how(nn.Linear(16, WIDTH)), nn.ReLU(), how(nn.Linear(WIDTH, WIDTH)), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


def synchronised() -> nn.Module:
    """``nn.SyncBatchNorm``, as its conversion makes it."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.GELU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.GELU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES),
        )
    )  # fmt: skip


def frozen() -> nn.Module:
    """Batch normalisation and dropout in evaluation within a model that trains."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, WIDTH), nn.ReLU(), nn.AlphaDropout(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip
    for name in ("1", "3", "8"):
        model.get_submodule(name).eval()
    return model


class Bilinear(nn.Module):
    """Products of two views, distances to learned centres."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, WIDTH), nn.Linear(16, WIDTH)
        self.join = nn.Bilinear(WIDTH, WIDTH, WIDTH)
        self.centres = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        both = self.join(self.left(x).relu(), self.right(x).sigmoid())
        return F.cosine_similarity(both.unsqueeze(1), self.centres, dim=-1)


IMAGES = pictures(3, 16)
CASES: dict[str, Case] = {
    "conv1d": Case(lines, signals(4, 16), F.cross_entropy),
    "conv3d": Case(volumes, signals(1, 8, 8, 8), F.cross_entropy),
    "resized": Case(resized, IMAGES, F.cross_entropy),
    "norms": Case(normalizations, IMAGES, F.cross_entropy),
    "decoder": Case(Decoder, next_tokens, token_loss),
    "transformer": Case(Translator, next_tokens, token_loss),
    "attention-weights": Case(Weighed, sequences, F.cross_entropy),
    "weight-norm": Case(
        partial(parametrized, parametrizations.weight_norm), vectors, F.cross_entropy
    ),
    "weight-norm-hook": Case(partial(parametrized, weight_norm), vectors, F.cross_entropy),
    "spectral-norm": Case(
        partial(parametrized, parametrizations.spectral_norm), vectors, F.cross_entropy, mixes=True
    ),
    "orthogonal": Case(
        partial(parametrized, parametrizations.orthogonal), vectors, F.cross_entropy
    ),
    "sync-batchnorm": Case(synchronised, IMAGES, F.cross_entropy, mixes=True),
    "frozen": Case(frozen, IMAGES, F.cross_entropy),
    "bilinear": Case(Bilinear, vectors, F.cross_entropy),
    "rnn": Case(lambda: Lstm(nn.RNN, nonlinearity="relu"), sequences, F.cross_entropy),
    "bag-max": Case(lambda: Bag("max"), words, F.cross_entropy),
}
