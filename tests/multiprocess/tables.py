"""Models of tables, of items that people like, of time series and of graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, TOKENS, VOCABULARY, Case

WIDTH, HEADS, COLUMNS = 16, 4, 6


def labels(generator: torch.Generator, samples: int) -> Tensor:
    return torch.randint(CLASSES, (samples,), generator=generator)


class TabTransformer(nn.Module):
    """A table of its own for every categorical column, attention between columns."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(8 + i, WIDTH) for i in range(COLUMNS))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(
            nn.Linear(COLUMNS * WIDTH + 4, 32), nn.SELU(), nn.Linear(32, CLASSES)
        )

    def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
        x = torch.stack([table(kinds[:, i]) for i, table in enumerate(self.columns)], 1)
        return self.head(torch.cat([self.encoder(x).flatten(1), self.norm(numbers)], 1))


def rows(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    kinds = torch.randint(8, (samples, COLUMNS), generator=generator)
    return (kinds, torch.randn(samples, 4, generator=generator)), labels(generator, samples)


class DeepFM(nn.Module):
    """Factorisation machine, beside an MLP, over one table with an offset per column."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.arange(COLUMNS) * 8)
        self.table, self.linear = nn.Embedding(8 * COLUMNS, WIDTH), nn.Embedding(8 * COLUMNS, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList([nn.Linear(COLUMNS * WIDTH, 32), nn.Linear(32, 32)])
        self.last = nn.Linear(32, 1)

    def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
        x = self.table(kinds + self.offsets)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(1)
        y = x.flatten(1)
        for layer in self.layers:
            y = F.relu(layer(y))
        first = self.linear(kinds + self.offsets).sum((1, 2)) + self.bias
        return torch.sigmoid(first + pairs + self.last(y).squeeze(1) + numbers.mean(1))


def clicks(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    inputs, found = rows(generator, samples)
    return inputs, (found > 4).float()


class SasRec(nn.Module):
    """Self-attention over what was bought; scores what came next and what did not."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, eps=1e-8) for _ in range(2))
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.convolutions = nn.Sequential(
                nn.Conv1d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv1d(WIDTH, WIDTH, 1)
            )

        def forward(self, x: Tensor, mask: Tensor, alive: Tensor) -> Tensor:
            query = self.norms[0](x)
            x = query + self.attention(query, x, x, attn_mask=mask, need_weights=False)[0]
            y = self.norms[1](x)
            return (y + self.convolutions(y.transpose(1, 2)).transpose(1, 2)) * alive

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, *, seen: Tensor, bought: Tensor, not_bought: Tensor) -> dict[str, Tensor]:
        length = seen.shape[1]
        alive = (seen != 0).unsqueeze(-1).float()
        x = self.items(seen) * WIDTH**0.5
        x = (x + self.positions(torch.arange(length, device=seen.device))) * alive
        mask = ~torch.tril(torch.ones(length, length, dtype=torch.bool, device=seen.device))
        for block in self.blocks:
            x = block(x, mask, alive)
        x = self.norm(x)
        good, bad = ((x * self.items(item)).sum(-1) for item in (bought, not_bought))
        losses = F.softplus(-good) + F.softplus(bad)
        return {"loss": losses.mean(), "margin": (good - bad).detach()}


def baskets(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    seen, bought, other = torch.randint(VOCABULARY, (3, samples, TOKENS), generator=generator)
    return {"seen": seen, "bought": bought, "not_bought": other}, None


class TwoTowers(nn.Module):
    """Pairwise ranking: bags of items in two towers with one table, and biases per item."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(VOCABULARY, WIDTH, mode="mean", padding_idx=0)
        self.biases = nn.Embedding(VOCABULARY, 1)
        self.user = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))
        self.item = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        x = F.normalize(self.item(self.table(item)), dim=-1)
        return (user * x).sum(-1) + self.biases(item).mean((1, 2))

    def forward(self, seen: Tensor, good: Tensor, bad: Tensor) -> Tensor:
        user = F.normalize(self.user(self.table(seen)), dim=-1)
        return -F.logsigmoid(self.score(user, good) - self.score(user, bad)).mean()


def bags(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    return tuple(torch.randint(1, VOCABULARY, (3, samples, 8), generator=generator)), None


class Fusion(nn.Module):
    """Temporal fusion: gated residuals, a softmax over variables, LSTMs, quantiles."""

    class Gated(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(inner, WIDTH), nn.Linear(WIDTH, 2 * outer)
            self.skip = nn.Linear(inner, outer) if inner != outer else None
            self.norm = nn.LayerNorm(outer)

        def forward(self, x: Tensor) -> Tensor:
            y = F.glu(self.second(F.elu(self.first(x))), -1)
            return self.norm(y + (x if self.skip is None else self.skip(x)))

    def __init__(self) -> None:
        super().__init__()
        self.variables = nn.ModuleList(nn.Linear(1, WIDTH) for _ in range(4))
        self.each = nn.ModuleList(self.Gated(WIDTH, WIDTH) for _ in range(4))
        self.weights = self.Gated(4 * WIDTH, 4)
        self.past = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.future = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.last = self.Gated(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [line(x[..., i : i + 1]) for i, line in enumerate(self.variables)]
        weights = self.weights(torch.cat(parts, -1)).softmax(-1).unsqueeze(-2)
        each = torch.stack([gate(p) for gate, p in zip(self.each, parts, strict=True)], -1)
        x = (weights * each).sum(-1)
        before, state = self.past(x[:, :12])
        after, _ = self.future(x[:, 12:], state)
        x = x + torch.cat([before, after], 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.last(x[:, 12:]))


def quantiles(output: Tensor, target: Tensor) -> Tensor:
    levels = torch.tensor([0.1, 0.5, 0.9], device=output.device)
    off = target.unsqueeze(-1) - output
    return torch.maximum(levels * off, (levels - 1) * off).mean()


def histories(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x = torch.randn(samples, TOKENS, 4, generator=generator)
    return (x,), torch.randn(samples, 4, generator=generator)


class NBeats(nn.Module):
    """Blocks that explain a part of the past and of the future each."""

    class Block(nn.Module):
        def __init__(self, seasonal: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
            self.back, self.fore = nn.Linear(32, 4, bias=False), nn.Linear(32, 4, bias=False)
            time = torch.arange(16) / 16
            powers = [time**i for i in range(4)]
            waves = [torch.cos(6.28 * time), torch.sin(6.28 * time),
                     torch.cos(12.57 * time), torch.sin(12.57 * time)]  # fmt: skip
            self.register_buffer("basis", torch.stack(waves if seasonal else powers))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.layers(x)
            return self.back(y) @ self.basis[:, :12], self.fore(y) @ self.basis[:, 12:]

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(self.Block(seasonal=i > 1) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., 0]
        past, future = x[:, :12], torch.zeros_like(x[:, 12:])
        for block in self.stacks:
            back, fore = block(past)
            past, future = past - back, future + fore
        return future


class PatchTst(nn.Module):
    """Each series alone, normalised and put back, in overlapping patches."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.patches, self.positions = nn.Linear(6, WIDTH), nn.Parameter(torch.zeros(6, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(6 * WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True).detach()
        std = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
        x = ((x - mean) / std * self.scale + self.shift).permute(0, 2, 1)
        n, series, _ = x.shape
        x = self.patches(x.unfold(-1, 6, 2)) + self.positions
        x = self.encoder(x.reshape(n * series, 6, WIDTH)).reshape(n, series, -1)
        x = self.head(x).permute(0, 2, 1)
        return ((x - self.shift) / self.scale * std + mean)[..., 0]


class Autoformer(nn.Module):
    """Trend and season apart; correlations with itself by Fourier, the best delays gathered."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
            self.out = nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

        @staticmethod
        def season(x: Tensor) -> Tensor:
            ends = torch.cat([x[:, :1].repeat(1, 2, 1), x, x[:, -1:].repeat(1, 2, 1)], 1)
            return x - F.avg_pool1d(ends.transpose(1, 2), 5, 1).transpose(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.query(x), self.key(x), self.value(x)
            q, k = (torch.fft.rfft(y.transpose(1, 2), dim=-1) for y in (q, k))
            match = torch.fft.irfft(q * torch.conj(k), n=TOKENS, dim=-1).mean(1)
            weights, delays = torch.topk(match, 3, dim=-1)
            weights = weights.softmax(-1)
            index = torch.arange(TOKENS, device=x.device) + delays.unsqueeze(-1)
            moved = v.unsqueeze(1).expand(-1, 3, -1, -1).gather(
                2, (index % TOKENS).unsqueeze(-1).expand(-1, -1, -1, WIDTH)
            )  # fmt: skip
            x = self.season(x + self.out((moved * weights[..., None, None]).sum(1)))
            return self.season(x + self.mlp(x))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(4, WIDTH, 3, padding=1, padding_mode="circular", bias=False)
        self.layers = nn.ModuleList(self.Block() for _ in range(2))
        self.head = nn.Linear(TOKENS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(-1))


class DeepAr(nn.Module):
    """A recurrent net that says how sure it is; scaled by the mean of each series."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, WIDTH, 2, batch_first=True)
        self.mean, self.deviation = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = 1 + x.abs().mean((1, 2), keepdim=True)
        y, _ = self.rnn(x / scale)
        y = y[:, 12:]
        variance = F.softplus(self.deviation(y)).squeeze(-1) + 1e-3
        return self.mean(y).squeeze(-1) * scale[:, 0], variance, scale


def likelihood(output: Any, target: Tensor) -> Tensor:
    mean, variance, scale = output
    return F.gaussian_nll_loss(mean / scale[:, 0], target / scale[:, 0], variance)


class Molecule(nn.Module):
    """Equivariant messages between points that move; every sample has its own edges."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.edge = nn.Sequential(nn.Linear(2 * WIDTH + 1, WIDTH), nn.SiLU())
            self.move = nn.Linear(WIDTH, 1, bias=False)
            self.node = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.SiLU())

        def forward(self, h: Tensor, x: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
            to, source = (i.unsqueeze(-1) for i in ends.unbind(1))
            wide = (-1, -1, WIDTH)
            between = x.gather(1, to.expand(-1, -1, 3)) - x.gather(1, source.expand(-1, -1, 3))
            near = between.square().sum(-1, keepdim=True)
            pair = [h.gather(1, to.expand(wide)), h.gather(1, source.expand(wide)), near]
            message = self.edge(torch.cat(pair, -1))
            step = between / (near + 1).sqrt() * self.move(message)
            x = x.scatter_add(1, to.expand(-1, -1, 3), step)
            total = torch.zeros_like(h).scatter_add(1, to.expand(wide), message)
            return h + self.node(torch.cat([h, total], -1)), x

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(5, WIDTH)
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, kinds: Tensor, places: Tensor, ends: Tensor) -> dict[str, Tensor]:
        h, x = self.kinds(kinds), places
        for layer in self.layers:
            h, x = layer(h, x, ends)
        return {"energy": self.head(h).sum((1, 2)), "places": x}


def molecules(generator: torch.Generator, samples: int) -> tuple[Any, Any]:
    kinds = torch.randint(5, (samples, 8), generator=generator)
    places, moved = torch.randn(2, samples, 8, 3, generator=generator)
    ends = torch.randint(8, (samples, 2, 20), generator=generator)
    return (kinds, places, ends), {"energy": moved.sum((1, 2)), "places": moved}


def both(output: Any, target: Any) -> Tensor:
    return sum(F.smooth_l1_loss(output[key], target[key]) for key in ("energy", "places"))


class Sage(nn.Module):
    """Means over a shared graph's edges by ``index_add``, whose ends are a buffer."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.others = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            total = torch.zeros_like(x).index_add(1, ends[0], x[:, ends[1]])
            count = torch.zeros(x.shape[1], device=x.device, dtype=x.dtype)
            count = count.index_add(0, ends[0], torch.ones_like(ends[0], dtype=x.dtype))
            y = self.own(x) + self.others(total / count.clamp(min=1).unsqueeze(-1))
            return F.normalize(F.relu(y), dim=-1)

    def __init__(self) -> None:
        super().__init__()
        ends = torch.randint(8, (2, 24), generator=torch.Generator().manual_seed(3))
        self.register_buffer("ends", ends)
        self.enter = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, self.ends)
        return self.head(x.amax(1))


def nodes(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return (torch.randn(samples, 8, 3, generator=generator),), labels(generator, samples)


CASES = {
    "tab-transformer": Case(TabTransformer, rows, F.cross_entropy),
    "deep-fm": Case(DeepFM, clicks, F.binary_cross_entropy),
    "sas-rec": Case(SasRec, baskets),
    "two-towers": Case(TwoTowers, bags),
    "fusion": Case(Fusion, histories, quantiles),
    "n-beats": Case(NBeats, histories, F.l1_loss),
    "patch-tst": Case(PatchTst, histories, F.mse_loss),
    "autoformer": Case(Autoformer, histories, F.huber_loss),
    "deep-ar": Case(DeepAr, histories, likelihood),
    "molecule": Case(Molecule, molecules, both),
    "sage": Case(Sage, nodes, F.cross_entropy),
}
