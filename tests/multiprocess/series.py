"""Models of sequences, sets and mixtures, each with a structure of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, TOKENS, VOCABULARY, Case
from tests.multiprocess.unusual import next_tokens, sequences, token_loss, vectors

WIDTH, HEADS = 16, 4


class TokenModel(nn.Module):
    """An embedding, blocks and a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(VOCABULARY, WIDTH), nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Triplet(nn.Module):
    """One network for an anchor, what is like it and what is not."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(WIDTH, 32), (32, 32), (32, 8)]
        self.layers = nn.ModuleList([nn.Linear(*size) for size in sizes])

    def embed(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(F.leaky_relu(x))
        return F.normalize(x, dim=-1)

    def forward(self, anchor: Tensor, like: Tensor, unlike: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.embed(x) for x in (anchor, like, unlike))


def triplets(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x, y, z = torch.randn(3, samples, WIDTH, generator=generator)
    return (x, x + 0.1 * y, z), y


def triplet_loss(output: tuple[Tensor, ...], target: Any) -> Tensor:
    return F.triplet_margin_loss(*output, margin=0.5)


class Ode(nn.Module):
    """A differential equation, solved by Runge and Kutta's rule in fixed steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.field = nn.Sequential(nn.Linear(WIDTH + 1, 32), nn.Tanh(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def slope(self, t: float, x: Tensor) -> Tensor:
        return self.field(torch.cat([x, torch.full_like(x[:, :1], t)], 1))

    def forward(self, x: Tensor) -> Tensor:
        x, step = self.embed(x), 0.25
        for t in (0.0, 0.25, 0.5, 0.75):
            a = self.slope(t, x)
            b = self.slope(t + step / 2, x + step / 2 * a)
            c = self.slope(t + step / 2, x + step / 2 * b)
            d = self.slope(t + step, x + step * c)
            x = x + step / 6 * (a + 2 * b + 2 * c + d)
        return self.head(x)


class Wave(nn.Module):
    """WaveNet: gated causal convolutions of growing dilation whose skips add up."""

    class Layer(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.dilation = dilation
            self.gates = nn.Conv1d(WIDTH, 2 * WIDTH, 2, dilation=dilation)
            self.residual, self.skip = (nn.Conv1d(WIDTH, WIDTH, 1) for _ in range(2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            signal, gate = self.gates(F.pad(x, (self.dilation, 0))).chunk(2, 1)
            y = signal.tanh() * gate.sigmoid()
            return x + self.residual(y), self.skip(y)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([self.Layer(2**k) for k in range(4)])
        self.head = nn.Conv1d(WIDTH, VOCABULARY, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x, skips = self.embed(tokens).transpose(1, 2), []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        return self.head(F.relu(sum(skips))).transpose(1, 2)


class Translation(nn.Module):
    """A recurrent encoder, and a decoder that is shown the right tokens and attends."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = (nn.Embedding(VOCABULARY, WIDTH) for _ in range(2))
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.cell = nn.GRUCell(2 * WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(2 * WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        keys, h, made = self.score(memory), last[0], []
        for x in self.target(target).unbind(1):
            weight = torch.bmm(keys, h.unsqueeze(2)).softmax(1)
            context = (weight * memory).sum(1)
            h = self.cell(torch.cat([x, context], 1), h)
            made.append(self.head(torch.cat([h, context], 1)))
        return torch.stack(made, 1)


def translations(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    source, target = torch.randint(VOCABULARY, (2, samples, 9), generator=generator)
    return (source, target[:, :-1]), target[:, 1:]


class Pointer(nn.Module):
    """Points at places of its input, one after the other, never twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, WIDTH)
        self.encoder = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.key, self.query = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, places: Tensor, order: Tensor) -> Tensor:
        x = self.embed(places)
        memory, (h, c) = self.encoder(x)
        keys, (h, c), step = self.key(memory), (h[0], c[0]), x.mean(1)
        taken, made = torch.zeros_like(order, dtype=torch.bool), []
        for k in range(order.size(1)):
            h, c = self.cell(step, (h, c))
            score = self.value(torch.tanh(keys + self.query(h).unsqueeze(1))).squeeze(2)
            made.append(score.masked_fill(taken, -1e4))
            index = order[:, k : k + 1]
            taken = taken.scatter(1, index, True)
            step = x.gather(1, index.unsqueeze(2).expand(-1, -1, WIDTH)).squeeze(1)
        return torch.stack(made, 2)


def tours(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    places = torch.rand(samples, 6, 2, generator=generator)
    order = torch.rand(samples, 6, generator=generator).argsort(1)
    return (places, order), order


class Highway(nn.Module):
    """Lets through what its gate does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return torch.lerp(x, F.relu(self.change(x)), gate)


class Spline(nn.Module):
    """A KAN layer: a learned cubic spline on every edge."""

    def __init__(self, inner: int, outer: int, places: int = 5, order: int = 3) -> None:
        super().__init__()
        self.order = order
        knots = torch.arange(-order, places + order + 1) * (2 / places) - 1
        self.register_buffer("knots", knots.expand(inner, -1).contiguous())
        self.base = nn.Parameter(torch.randn(outer, inner) / math.sqrt(inner))
        self.coefficients = nn.Parameter(torch.randn(outer, inner, places + order) / 8)

    def forward(self, x: Tensor) -> Tensor:
        knots, y = self.knots, x.unsqueeze(-1)
        bases = ((y >= knots[:, :-1]) & (y < knots[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            rise = (y - knots[:, : -(k + 1)]) / (knots[:, k:-1] - knots[:, : -(k + 1)])
            fall = (knots[:, k + 1 :] - y) / (knots[:, k + 1 :] - knots[:, 1:-k])
            bases = rise * bases[..., :-1] + fall * bases[..., 1:]
        spline = F.linear(bases.flatten(1), self.coefficients.flatten(1))
        return F.linear(F.silu(x), self.base) + spline


class Hyper(nn.Module):
    """A network that writes the weights of another one, for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.ParameterDict({"scale": torch.ones(8), "shift": torch.zeros(8)})
        self.writers = nn.ModuleList([nn.Linear(WIDTH, n) for n in (8 * 8 + 8, 8 * CLASSES)])

    def forward(self, condition: Tensor, x: Tensor) -> Tensor:
        weight, bias = self.writers[0](condition).split([64, 8], 1)
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.view(-1, 8, 8))
        x = F.relu(x) * self.shared["scale"] + self.shared["shift"]
        return torch.bmm(x, self.writers[1](condition).view(-1, 8, CLASSES)).mean(1)


def conditioned(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (condition,), target = vectors(generator, samples)
    return (condition, torch.randn(samples, 5, 8, generator=generator)), target


class ExpertChoice(nn.Module):
    """Experts choose the tokens of a sequence that they work on."""

    def __init__(self, experts: int = 4, chosen: int = 6) -> None:
        super().__init__()
        self.chosen = chosen
        self.gate = nn.Linear(WIDTH, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, WIDTH, 32) / 4)
        self.down = nn.Parameter(torch.randn(experts, 32, WIDTH) / 6)

    def forward(self, x: Tensor) -> Tensor:
        weight, index = self.gate(x).softmax(-1).mT.topk(self.chosen, -1)
        rows = index.flatten(1).unsqueeze(-1).expand(-1, -1, WIDTH)
        taken = x.gather(1, rows).unflatten(1, index.shape[1:])
        made = torch.einsum("becd,edh->bech", taken, self.up).relu()
        made = torch.einsum("bech,ehd->becd", made, self.down) * weight.unsqueeze(-1)
        return x + torch.zeros_like(x).scatter_add(1, rows, made.flatten(1, 2))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions for (batch, heads, length, head)."""
    half = x.shape[-1] // 2
    rate = 10000 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device).unsqueeze(1) * rate
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class LinearAttention(nn.Module):
    """Causal attention as a running sum, with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        norm = 1 / (torch.einsum("bhtd,bhtd->bht", q, k.cumsum(2)) + 1e-6)
        state = torch.einsum("bhtd,bhte->bhtde", rotate(k), v).cumsum(2)
        y = torch.einsum("bhtd,bhtde,bht->bhte", rotate(q), state, norm)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Grouped queries by torch's own flag, with a padding mask that the model makes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, HEADS // 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=0.0, scale=0.4, enable_gqa=True
        )
        return x + self.out(y.transpose(1, 2).flatten(2))


class GroupedModel(TokenModel):
    """Tokens below 8 are padding for whoever looks back at them."""

    def forward(self, tokens: Tensor) -> Tensor:
        x, length = self.embed(tokens), tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=x.device)
        mask = (causal & (tokens >= 8)[:, None, None, :]) | own
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


class Relative(TokenModel):
    """T5's biases by hand: buckets of distances, made once and read by all blocks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(WIDTH)
            self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            y = self.norm(x)
            q, k, v = (f(y).unflatten(-1, (HEADS, -1)) for f in (self.q, self.k, self.v))
            score = torch.einsum("bqhd,bkhd->bhqk", q, k) + bias
            y = torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), v)
            return x + self.o(y.flatten(2))

    def __init__(self) -> None:
        super().__init__(*(self.Block() for _ in range(3)))
        self.biases = nn.Embedding(8, HEADS)

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        distance = (place[:, None] - place[None, :]).clamp(min=0)
        far = 4 + (distance.clamp(min=1).float() / 4).log2().clamp(min=0).long()
        bucket = torch.where(distance < 4, distance, far.clamp(max=7))
        bias = self.biases(bucket).permute(2, 0, 1).unsqueeze(0)
        bias = bias.masked_fill(place[:, None] < place[None, :], -1e4)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, bias)
        return self.head(x)


class Memory(nn.Module):
    """Reads and writes a memory by content, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(6, 8) / 2)
        self.controller = nn.GRUCell(WIDTH + 8, WIDTH)
        self.read, self.write = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8 + 8 + 8)
        self.head = nn.Linear(WIDTH + 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.start.expand(x.shape[0], -1, -1)
        h, seen = x.new_zeros(x.shape[0], WIDTH), x.new_zeros(x.shape[0], 8)
        for step in x[:, :4].unbind(1):
            h = self.controller(torch.cat([step, seen], -1), h)
            key, erase, add = self.write(h).split(8, -1)
            weight = F.cosine_similarity(memory, key.unsqueeze(1), dim=-1).softmax(-1).unsqueeze(-1)
            memory = memory * (1 - weight * erase.sigmoid().unsqueeze(1)) + weight * add.unsqueeze(
                1
            )
            weight = (memory @ self.read(h).unsqueeze(-1)).softmax(1)
            seen = (weight * memory).sum(1)
        return self.head(torch.cat([h, seen], -1))


class Mixture(nn.Module):
    """The parameters of a mixture of normal distributions (held in lists)."""

    def __init__(self, parts: int = 5) -> None:
        super().__init__()
        sizes = [(32, WIDTH), (32, 32), (3 * parts, 32)]
        self.weights = nn.ParameterList([torch.randn(size) / math.sqrt(size[1]) for size in sizes])
        self.biases = nn.ParameterList([torch.zeros(size[0]) for size in sizes])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x if k == 0 else F.softplus(x), weight, bias)
        share, mean, scale = x.chunk(3, -1)
        return share.log_softmax(-1), mean, scale.exp()


def mixture_loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    share, mean, scale = output
    normal = torch.distributions.Normal(mean, scale, validate_args=False)
    return -(share + normal.log_prob(target.unsqueeze(1))).logsumexp(-1).mean()


def numbers(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return vectors(generator, samples)[0], torch.randn(samples, generator=generator)


class Uncertain(nn.Module):
    """Tasks whose losses are weighted by learned variances."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.kinds, self.value = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 1)
        self.variances = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, kinds: Tensor, value: Tensor) -> dict[str, Tensor]:
        for layer in self.trunk:
            x = F.gelu(layer(x))
        losses = [
            F.cross_entropy(self.kinds(x), kinds),
            F.mse_loss(self.value(x).squeeze(1), value),
        ]
        total = (torch.stack(losses) * (-self.variances).exp() + self.variances).sum()
        return {"loss": total, "kinds": losses[0].detach()}


def two_tasks(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (x,), target = vectors(generator, samples)
    return (x, target, torch.randn(samples, generator=generator)), None


class Packed(nn.Module):
    """A recurrence over sequences of their own lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(WIDTH, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(x), lengths, batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        return self.head(last[-1])


def ragged(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (x,), target = sequences(generator, samples)
    return (x, torch.randint(1, TOKENS + 1, (samples,), generator=generator)), target


class Ensemble(nn.Module):
    """Members that torch.func stacks and maps over."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.stack([member.weight for member in self.members])
        bias = torch.stack([member.bias for member in self.members])
        made = torch.func.vmap(F.linear, in_dims=(None, 0, 0))(x, weight, bias)
        return self.head(made.tanh().mean(0))


class Patches(TokenModel):
    """Rearranges windows by views of views, as einops does."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.out = nn.Linear(4 * WIDTH, 4 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            y = x.reshape(batch, length // 4, 4, width).permute(0, 1, 3, 2)
            y = F.gelu(self.mix(y.reshape(batch, length // 4, width * 4)))
            y = y.view(batch, length // 4, width, 4).permute(0, 3, 1, 2)
            return x + self.out(y.reshape(batch, length, width).roll(1, dims=1))

    def __init__(self) -> None:
        super().__init__(*(self.Block() for _ in range(3)))


CASES = {
    "triplet": Case(Triplet, triplets, triplet_loss),
    "neural-ode": Case(Ode, vectors, F.cross_entropy),
    "wavenet": Case(Wave, next_tokens, token_loss),
    "translation": Case(Translation, translations, token_loss),
    "pointer": Case(Pointer, tours, F.cross_entropy),
    "highway": Case(lambda: nn.Sequential(*(Highway() for _ in range(4)),
                                          nn.Linear(WIDTH, CLASSES)), vectors, F.cross_entropy),
    "kan": Case(lambda: nn.Sequential(Spline(WIDTH, 8), Spline(8, 8), Spline(8, CLASSES)), vectors,
                F.cross_entropy),
    "hypernetwork": Case(Hyper, conditioned, F.cross_entropy),
    "expert-choice": Case(lambda: TokenModel(*(ExpertChoice() for _ in range(3))), next_tokens,
                          token_loss),
    "linear-rotary": Case(lambda: TokenModel(*(LinearAttention() for _ in range(3))), next_tokens,
                          token_loss),
    "grouped-flag": Case(lambda: GroupedModel(*(Grouped() for _ in range(3))), next_tokens,
                         token_loss),
    "relative-bias": Case(Relative, next_tokens, token_loss),
    "memory": Case(Memory, sequences, F.cross_entropy),
    "mixture-density": Case(Mixture, numbers, mixture_loss),
    "uncertain-tasks": Case(Uncertain, two_tasks),
    "packed": Case(Packed, ragged, F.cross_entropy),
    "ensemble": Case(Ensemble, vectors, F.cross_entropy),
    "patches": Case(Patches, next_tokens, token_loss),
}  # fmt: skip
