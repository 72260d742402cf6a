"""Models of many fields, written from scratch as their papers describe them, small."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, TOKENS, Case
from tests.multiprocess.unusual import (
    WIDTH,
    Residual,
    labels,
    residuals,
    sequences,
)

HEADS = 4


class Recommender(nn.Module):
    """DLRM: bags of categories, a bottom MLP, all pairs of dot products, a top MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(64, WIDTH, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))
        self.top = nn.Sequential(nn.Linear(WIDTH + 6, 32), nn.ReLU(), nn.Linear(32, 1))
        rows, columns = torch.tril_indices(4, 4, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        dense = self.bottom(dense)
        found = [bag(sparse[:, i]) for i, bag in enumerate(self.bags)]
        x = torch.stack([dense, *found], 1)
        pairs = torch.bmm(x, x.transpose(1, 2))[:, self.rows, self.columns]
        return self.top(torch.cat([dense, pairs], 1)).squeeze(1)


def clicks(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    dense = torch.randn(samples, WIDTH, generator=generator)
    sparse = torch.randint(64, (samples, 3, 5), generator=generator)
    return (dense, sparse), torch.randint(2, (samples,), generator=generator).float()


class Radiance(nn.Module):
    """NeRF: positions as waves, an MLP with a skip, composited along rays."""

    def __init__(self, bands: int = 4) -> None:
        super().__init__()
        self.register_buffer("bands", 2.0 ** torch.arange(bands))
        size = 3 + 6 * bands
        self.layers = nn.ModuleList(
            nn.Linear(size + 32 if i == 2 else 32 if i else size, 32) for i in range(4)
        )
        self.density, self.color = nn.Linear(32, 1), nn.Linear(32, 3)

    def forward(self, points: Tensor) -> Tensor:
        waves = (points.unsqueeze(-1) * self.bands).flatten(-2)
        x = first = torch.cat([points, waves.sin(), waves.cos()], -1)
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(torch.cat([first, x], -1) if i == 2 else x))
        opaque = 1 - torch.exp(-F.softplus(self.density(x)).squeeze(-1) * 0.1)
        left = torch.cumprod(1 - opaque + 1e-6, -1).roll(1, -1)
        left = torch.cat([torch.ones_like(left[:, :1]), left[:, 1:]], -1)
        return ((opaque * left).unsqueeze(-1) * self.color(x).sigmoid()).sum(1)


def rays(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    points = torch.randn(samples, 8, 3, generator=generator)
    return (points,), torch.rand(samples, 3, generator=generator)


def waves_of(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of a time."""
    half = torch.arange(width // 2, device=time.device)
    angles = time[:, None] * torch.exp(-math.log(10000) * half / (width // 2))
    return torch.cat([angles.sin(), angles.cos()], -1)


class Diffusion(nn.Module):
    """A U-Net that is told the time, with attention at its bottom."""

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.norm, self.first = nn.GroupNorm(4, inner), nn.Conv2d(inner, outer, 3, padding=1)
            self.time = nn.Linear(WIDTH, outer)
            self.second = nn.Conv2d(outer, outer, 3, padding=1)
            self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            y = self.first(F.silu(self.norm(x))) + self.time(time)[:, :, None, None]
            return self.skip(x) + self.second(F.silu(y))

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList([self.Block(8, 8), self.Block(8, 16)])
        self.attention = nn.MultiheadAttention(16, HEADS, batch_first=True)
        self.up = nn.ModuleList([self.Block(32, 8), self.Block(16, 8)])
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        time = self.time(waves_of(time, WIDTH))
        x, kept = self.enter(x), []
        for block in self.down:
            x = block(x, time)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        b, c, h, w = x.shape
        rows = x.flatten(2).transpose(1, 2)
        x = x + self.attention(rows, rows, rows)[0].transpose(1, 2).reshape(b, c, h, w)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, kept.pop()], 1), time)
        return self.leave(x)


def noised(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x, noise = torch.randn(2, samples, 3, 16, 16, generator=generator)
    return (x + noise, torch.rand(samples, generator=generator)), noise


class DiT(nn.Module):
    """A transformer of patches whose norms are shifted and scaled by the time and class."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width, elementwise_affine=False)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width),
                nn.GELU(approximate="tanh"),
                nn.Linear(4 * width, width),
            )
            self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            a, b, g, d, e, f = self.modulate(c).chunk(6, dim=1)
            y = self.norm(x) * (1 + a.unsqueeze(1)) + b.unsqueeze(1)
            n, t, w = y.shape
            q, k, v = self.qkv(y).reshape(n, t, 3, HEADS, w // HEADS).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, w)
            x = x + g.unsqueeze(1) * self.out(y)
            y = self.norm(x) * (1 + d.unsqueeze(1)) + e.unsqueeze(1)
            return x + f.unsqueeze(1) * self.mlp(y)

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 16, width) / 50)
        self.classes = nn.Embedding(CLASSES, width)
        self.blocks = nn.ModuleList(self.Block(width) for _ in range(3))
        self.head = nn.Linear(width, 48)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        c = self.classes(label) + waves_of(time, self.width)
        for block in self.blocks:
            x = block(x, c)
        x = self.head(x).reshape(-1, 4, 4, 4, 4, 3)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 3, 16, 16)


def noised_classes(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (x, time), noise = noised(generator, samples)
    return (x, time, labels(generator, samples)), noise


class Variational(nn.Module):
    """An autoencoder that samples what it encodes; the noise is passed in."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        mean, log = self.encoder(x).chunk(2, -1)
        again = self.decoder(mean + noise * torch.exp(0.5 * log))
        kl = -0.5 * (1 + log - mean.pow(2) - log.exp()).sum(-1).mean()
        return {"loss": F.mse_loss(again, x) + 0.1 * kl, "again": again}


def noisy_vectors(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    x = torch.randn(samples, WIDTH, generator=generator)
    return (x, torch.randn(samples, 8, generator=generator)), None


class Conformer(nn.Module):
    """Half MLP, attention with relative positions, gated convolution, half MLP; CTC."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = Residual(width), Residual(width)
            self.norm = nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.bias = nn.Parameter(torch.zeros(HEADS, 2 * TOKENS - 1))
            self.enter = nn.Conv1d(width, 2 * width, 1)
            self.depth = nn.Conv1d(width, width, 3, padding=1, groups=width)
            self.depth_norm = nn.GroupNorm(1, width)
            self.leave = nn.Conv1d(width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            b, t, c = x.shape
            q, k, v = self.qkv(self.norm(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            steps = torch.arange(t, device=x.device)
            bias = self.bias[:, steps[:, None] - steps[None] + t - 1]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
            y = F.glu(self.enter(x.transpose(1, 2)), dim=1)
            y = self.leave(F.silu(self.depth_norm(self.depth(y)))).transpose(1, 2)
            return self.second(x + y)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def ctc(logits: Tensor, target: Tensor) -> Tensor:
    lengths = torch.full((logits.shape[0],), logits.shape[1], dtype=torch.long)
    wanted = torch.full((logits.shape[0],), target.shape[1], dtype=torch.long)
    logs = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(logs, target, lengths, wanted, zero_infinity=True)


def spoken(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (x,), _ = sequences(generator, samples)
    return (x,), torch.randint(1, 12, (samples, 5), generator=generator)


class Temporal(nn.Module):
    """TCN: dilated causal convolutions with weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(WIDTH, WIDTH, 3, dilation=2**i)) for i in range(3)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for i, layer in enumerate(self.layers):
            x = x + F.relu(layer(F.pad(x, (2 ** (i + 1), 0))))
        return self.head(x[:, :, -1])


class Mixer(nn.Module):
    """MLPs over tokens and channels by turns."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.channels = Residual(TOKENS), Residual(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.channels(self.tokens(x.mT).mT)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Gated(nn.Module):
    """gMLP: a spatial gate."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64)
            self.gate_norm, self.gate = nn.LayerNorm(32), nn.Conv1d(TOKENS, TOKENS, 1)
            self.down = nn.Linear(32, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
            return x + self.down(u * self.gate(self.gate_norm(v)))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Perceiver(nn.Module):
    """Latents that read the inputs by attention, again and again with one module."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, WIDTH))
        self.cross = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True)
        self.blocks = residuals()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.latents.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            y = block(y + self.cross(y, x, x, need_weights=False)[0])
        return self.head(y.mean(1))


class Graph(nn.Module):
    """A graph convolution on a dense adjacency, normalised by degree."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        edges = edges.float() + torch.eye(edges.shape[-1], device=edges.device)
        scale = edges.sum(-1).rsqrt()
        edges = scale.unsqueeze(-1) * edges * scale.unsqueeze(-2)
        for layer in self.layers:
            x = F.relu(edges @ layer(x))
        return self.head(x.amax(1))


def graphs(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (x,), target = sequences(generator, samples)
    return (x, torch.rand(samples, TOKENS, TOKENS, generator=generator) > 0.7), target


class Sets(nn.Module):
    """DeepSets with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.Sequential(*residuals()), nn.Sequential(*residuals())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.each(x).masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.head(self.all(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)))


def sets(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (x,), target = sequences(generator, samples)
    return (x, torch.rand(samples, TOKENS, generator=generator) > 0.3), target


class Tagger(nn.Module):
    """A conditional random field over a linear layer: the loss is a forward algorithm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.emit = residuals(), nn.Linear(WIDTH, 5)
        self.moves = nn.Parameter(torch.randn(5, 5) / 5)

    def forward(self, x: Tensor, tags: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        scores = self.emit(x)
        alpha = scores[:, 0]
        for t in range(1, scores.shape[1]):
            alpha = torch.logsumexp(alpha.unsqueeze(2) + self.moves, 1) + scores[:, t]
        path = scores.gather(2, tags.unsqueeze(2)).squeeze(2).sum(1)
        path = path + self.moves[tags[:, :-1], tags[:, 1:]].sum(1)
        return (torch.logsumexp(alpha, 1) - path).mean()


def tagged(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (x,), _ = sequences(generator, samples)
    return (x, torch.randint(5, (samples, TOKENS), generator=generator)), None


class Operations(nn.Module):
    """Sorting, scattering, folding, counting: ops that few models use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(WIDTH, WIDTH), residuals(2)
        self.buckets, self.head = nn.Embedding(8, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("bounds", torch.linspace(-1, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.buckets(torch.bucketize(x[..., 0], self.bounds))
        x = self.blocks[0](x).roll(2, 1)
        windows = x.unfold(1, 4, 2).mean(-1)
        top = x.topk(3, dim=1).values.sum(1)
        ordered = x.sort(dim=1, descending=True).values[:, 0]
        order = x[..., 0].argsort(1)
        taken = torch.take_along_dim(x, order.unsqueeze(-1), 1)[:, 0]
        put = torch.zeros_like(x).scatter(1, order.unsqueeze(-1).expand_as(x), x)[:, -1]
        kept = torch.where(x > 0, x, 0.1 * x).tril().flip(1)[:, 0]
        total = F.unfold(x.unsqueeze(1), 3, padding=1).mean(-1)[:, :1] + x.cumsum(1)[:, -1]
        y = top + ordered + taken + put + kept + total + windows.amax(1) + x.median(1).values
        return self.head(self.blocks[1](torch.addmm(y, y, self.first.weight)))


CASES = {
    "dlrm": Case(Recommender, clicks, F.binary_cross_entropy_with_logits),
    "nerf": Case(Radiance, rays, F.mse_loss),
    "diffusion": Case(Diffusion, noised, F.mse_loss),
    "dit": Case(DiT, noised_classes, F.mse_loss),
    "vae": Case(Variational, noisy_vectors),
    "conformer": Case(Conformer, spoken, ctc),
    "tcn": Case(Temporal, sequences, F.cross_entropy),
    "mixer": Case(Mixer, sequences, F.cross_entropy),
    "gmlp": Case(Gated, sequences, F.cross_entropy),
    "perceiver": Case(Perceiver, sequences, F.cross_entropy),
    "gcn": Case(Graph, graphs, F.cross_entropy),
    "deepsets": Case(Sets, sets, F.cross_entropy),
    "crf": Case(Tagger, tagged),
    "operations": Case(Operations, sequences, F.cross_entropy),
}
