"""Models of tokens whose blocks differ from the usual ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, TOKENS, VOCABULARY, Case
from tests.multiprocess.recurrent import next_tokens, token_loss, words

WIDTH, HEADS = 32, 4


def causal(length: int, device: torch.device) -> Tensor:
    """True where a token must not look."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


class Trunk(nn.Module):
    """Embeds tokens, applies blocks, and reads the logits by the embedding."""

    def __init__(self, make: Any, layers: int = 3) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(make(i) for i in range(layers))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.embed.weight.t()


class Differential(nn.Module):
    """The difference of two softmaxes, by a learned factor that depends on depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.start = 0.8 - 0.6 * math.exp(-0.3 * depth)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.factors = nn.Parameter(torch.randn(4, 4) / 10)
        self.norm, self.inner = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH // HEADS, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.norm(x)
        q, k = (p(y).view(n, t, 2 * HEADS, -1).transpose(1, 2) for p in (self.q, self.k))
        v = self.v(y).view(n, t, HEADS, -1).transpose(1, 2)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(causal(t, x.device), float("-inf"))
        maps = scores.softmax(-1, dtype=torch.float32).type_as(q).view(n, HEADS, 2, t, t)
        a, b, c, d = self.factors
        factor = torch.exp((a * b).sum()) - torch.exp((c * d).sum()) + self.start
        y = self.inner((maps[:, :, 0] - factor * maps[:, :, 1]) @ v) * (1 - self.start)
        return x + self.out(y.transpose(1, 2).reshape(n, t, -1))


class RelativeShift(nn.Module):
    """Transformer-XL's: positions relative to each token by padding and another view."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.qkv, self.place = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.u, self.w = (nn.Parameter(torch.randn(HEADS, WIDTH // HEADS) / 10) for _ in range(2))
        self.out, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        steps = torch.arange(TOKENS - 1, -1, -1.0)[:, None] / 1e4 ** (torch.arange(16) / 16)
        self.register_buffer("waves", torch.cat([steps.sin(), steps.cos()], 1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, -1).unbind(2)
        r = self.place(self.waves[-t:]).view(t, HEADS, -1)
        own = torch.einsum("nihd,njhd->nhij", q + self.u, k)
        far = torch.einsum("nihd,jhd->nhij", q + self.w, r)
        far = F.pad(far, (1, 0)).view(n, HEADS, t + 1, t)[:, :, 1:].view_as(far)
        scores = ((own + far) / math.sqrt(WIDTH / HEADS)).masked_fill(causal(t, x.device), -1e9)
        y = torch.einsum("nhij,njhd->nihd", scores.softmax(-1), v).reshape(n, t, -1)
        return self.norm(x + self.out(y))


class Capacity(nn.Module):
    """GShard's: the two best experts, each with room for few tokens of a sample."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, WIDTH, 48) / 6)
        self.down = nn.Parameter(torch.randn(4, 48, WIDTH) / 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        chance = self.gate(y).softmax(-1)
        weights, chosen = chance.topk(2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        hot = F.one_hot(chosen, 4).flatten(1, 2)
        place = ((hot.cumsum(1) - 1) * hot).unflatten(1, (-1, 2))
        hot = hot.unflatten(1, (-1, 2))
        inside = (place < 6) & (hot > 0)
        slots = F.one_hot((place * inside).sum(-1), 6).to(x.dtype)
        send = torch.einsum("ntke,ntkc->ntec", inside.to(x.dtype), slots)
        back = torch.einsum("ntk,ntke,ntkc->ntec", weights, inside.to(x.dtype), slots)
        inner = torch.einsum("ntec,ntd,edf->necf", send, y, self.up)
        made = torch.einsum("necf,efd->necd", F.gelu(inner), self.down)
        return x + torch.einsum("ntec,necd->ntd", back, made)


class Ternary(nn.Module):
    """BitNet's: weights of three values and rounded activations, gradients straight through."""

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            x = x - x.mean(-1, keepdim=True)
            step = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            x = x + ((x * step).round().clamp(-128, 127) / step - x).detach()
            size = self.weight.abs().mean().clamp(min=1e-5)
            rounded = (self.weight / size).round().clamp(-1, 1) * size
            return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.qkv, self.out = self.Linear(WIDTH, 3 * WIDTH), self.Linear(WIDTH, WIDTH)
        self.up, self.down = self.Linear(WIDTH, 64), self.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, -1))
        return x + self.down(F.relu(self.up(x)).square())


class Sphere(nn.Module):
    """nGPT's: weights and hidden states of length one, steps of learned sizes."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.scale, self.step = (nn.Parameter(torch.ones(1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        x = F.normalize(x, dim=-1)
        weight, out = (F.normalize(w, dim=-1) for w in (self.qkv, self.out))
        q, k, v = (x @ weight.T).view(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = (F.normalize(y, dim=-1) * self.scale for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        y = F.normalize(F.linear(y.transpose(1, 2).reshape(n, t, -1), out), dim=-1)
        return F.normalize(torch.lerp(x, y, self.step.abs() * 0.2), dim=-1)


class Selective(nn.Module):
    """Mamba's: a causal convolution, then a state that forgets by what it reads, in a loop."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.norm, self.enter = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 64, bias=False)
        self.line = nn.Conv1d(32, 32, 4, groups=32, padding=3)
        self.read, self.rate = nn.Linear(32, 10, bias=False), nn.Linear(2, 32)
        self.log, self.keep = nn.Parameter(torch.zeros(32, 4)), nn.Parameter(torch.ones(32))
        self.leave = nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.enter(self.norm(x)).chunk(2, -1)
        y = F.silu(self.line(y.mT)[..., : x.shape[1]].mT)
        rate, write, read = self.read(y).split([2, 4, 4], -1)
        rate = F.softplus(self.rate(rate))
        decay = torch.exp(rate.unsqueeze(-1) * -self.log.exp())
        added = (rate * y).unsqueeze(-1) * write.unsqueeze(-2)
        state, found = torch.zeros_like(added[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + added[:, t]
            found.append(torch.einsum("nds,ns->nd", state, read[:, t]))
        y = torch.stack(found, 1) + y * self.keep
        return x + self.leave(y * F.silu(gate))


class Halting(nn.Module):
    """A universal transformer: one block, as often as each token needs, by masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.halt = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 1)
        self.block = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, 0.0, batch_first=True)
        self.times, self.head = nn.Embedding(4, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens)
        total, left = torch.zeros_like(x), torch.ones_like(x[..., 0])
        mask, cost = causal(x.shape[1], x.device), 0.0
        for i in range(4):
            x = self.block(x + self.times.weight[i], src_mask=mask)
            stop = self.halt(x).squeeze(-1).sigmoid() if i < 3 else torch.ones_like(left)
            total, left = total + (left * stop).unsqueeze(-1) * x, left * (1 - stop)
            cost = cost + left.mean()
        return self.head(total), cost


def with_cost(output: Any, target: Tensor) -> Tensor:
    return token_loss(output[0], target) + 0.01 * output[1]


class Decisions(nn.Module):
    """Returns, states and actions in turn, in one sequence; actions are read of the states."""

    def __init__(self) -> None:
        super().__init__()
        self.returns, self.states = nn.Linear(1, WIDTH), nn.Linear(5, WIDTH)
        self.actions, self.times = nn.Linear(3, WIDTH), nn.Embedding(TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, 0.0, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.act, self.norm = nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh()), nn.LayerNorm(WIDTH)

    def forward(self, returns: Tensor, states: Tensor, actions: Tensor, times: Tensor) -> Tensor:
        n, t, _ = states.shape
        when = self.times(times)
        kinds = (self.returns(returns), self.states(states), self.actions(actions))
        x = (
            torch.stack([kind + when for kind in kinds], 1)
            .permute(0, 2, 1, 3)
            .reshape(n, 3 * t, -1)
        )
        x = self.blocks(self.norm(x), mask=causal(3 * t, x.device), is_causal=True)
        return self.act(x.reshape(n, t, 3, -1).permute(0, 2, 1, 3)[:, 1])


def episodes(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    returns, states, actions = torch.randn(samples, 8, 9, generator=generator).split([1, 5, 3], -1)
    first = torch.randint(8, (samples, 1), generator=generator)
    inputs = {"returns": returns.clone(), "states": states.clone(), "actions": actions.clone()}
    return {**inputs, "times": first + torch.arange(8)}, actions.tanh()


class Forced(nn.Module):
    """A GRU cell that reads the sentence, another that is told the right words one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.reader = nn.GRU(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(2 * WIDTH, WIDTH)
        self.cell, self.score = nn.GRUCell(3 * WIDTH, WIDTH), nn.Bilinear(WIDTH, 2 * WIDTH, 1)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        kept, last = self.reader(self.embed(tokens))
        state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
        words, made = self.embed(tokens), []
        word = torch.zeros_like(words[:, 0])
        for t in range(4):
            wide = state.unsqueeze(1).expand(-1, kept.shape[1], -1).contiguous()
            share = self.score(wide, kept).softmax(1)
            state = self.cell(torch.cat([word, (share * kept).sum(1)], -1), state)
            made.append(self.head(state))
            word = words[:, t]
        return torch.stack(made, 1)


def first_words(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target[:, :4].flatten())


class Ahead(nn.Module):
    """Heads for the next three tokens, each a block over the trunk, with shared embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(Ternary)
        self.heads = nn.ModuleList(nn.ModuleDict({
            "norm": nn.RMSNorm(WIDTH), "join": nn.Linear(2 * WIDTH, WIDTH), "block": Sphere(0),
        }) for _ in range(2))  # fmt: skip

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        trunk, embed = self.trunk, self.trunk.embed
        x = embed(input_ids) + trunk.positions.weight
        for block in trunk.blocks:
            x = block(x)
        losses = [token_loss(trunk.norm(x) @ embed.weight.T, labels)]
        for i, head in enumerate(self.heads, 1):
            after = torch.cat([embed(labels[:, i:]), embed(labels[:, :i]).detach()], 1)
            x = head["block"](head["join"](torch.cat([head["norm"](x), head["norm"](after)], -1)))
            logits = F.linear(x, embed.weight)[:, :-i]
            losses.append(F.cross_entropy(logits.transpose(1, 2), labels[:, i:]))
        return {
            "loss": losses[0] + 0.3 * torch.stack(losses[1:]).mean(),
            "parts": losses[0].detach(),
        }


def labelled_tokens(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (tokens,), target = next_tokens(generator, samples)
    return {"input_ids": tokens, "labels": target}, None


class Distilled(nn.Module):
    """Learns from a frozen teacher that runs without gradients in the same forward."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = Trunk(RelativeShift, 2).eval(), Trunk(RelativeShift, 2)
        self.teacher.requires_grad_(False)
        self.match = nn.Linear(VOCABULARY, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = self.teacher(tokens)
        return self.match(self.student(tokens)), wanted


def distilled(output: Any, target: Tensor) -> Tensor:
    own, wanted = (F.log_softmax(x / 2, -1) for x in output)
    kl = F.kl_div(own.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True)
    return 0.5 * 4 * kl + 0.5 * token_loss(output[0], target)


class Prompted(nn.Module):
    """A frozen trunk with learned tokens in front and adapters behind each block."""

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Differential(1).requires_grad_(False)
            self.down, self.up = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.block(x)
            return x + self.up(F.silu(self.down(x)))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.prompt = nn.Parameter(torch.randn(4, WIDTH))
        self.blocks = nn.ModuleList(self.Adapter() for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = torch.cat([self.prompt.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, :4].mean(1))


class Sets(nn.Module):
    """Attention to learned points and back, then to seeds: sets of any order."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
            self.line = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = self.norms[0](x + self.attention(x, y, y, need_weights=False)[0])
            return self.norms[1](x + F.relu(self.line(x)))

    class Induced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points = nn.Parameter(torch.randn(1, 4, WIDTH))
            self.there, self.back = Sets.Attend(), Sets.Attend()

        def forward(self, x: Tensor) -> Tensor:
            return self.back(x, self.there(self.points.repeat(x.size(0), 1, 1), x))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(self.Induced() for _ in range(2))
        self.seed, self.pool = nn.Parameter(torch.randn(1, 1, WIDTH)), self.Attend()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(self.seed.repeat(x.size(0), 1, 1), x)[:, 0])


CASES = {
    "differential": Case(lambda: Trunk(Differential), next_tokens, token_loss),
    "relative-shift": Case(lambda: Trunk(RelativeShift), next_tokens, token_loss),
    "capacity": Case(lambda: Trunk(Capacity), next_tokens, token_loss),
    "ternary": Case(lambda: Trunk(Ternary), next_tokens, token_loss),
    "sphere": Case(lambda: Trunk(Sphere), next_tokens, token_loss),
    "selective": Case(lambda: Trunk(Selective), next_tokens, token_loss),
    "halting": Case(Halting, next_tokens, with_cost),
    "decisions": Case(Decisions, episodes, F.mse_loss),
    "forced": Case(Forced, next_tokens, first_words),
    "ahead": Case(Ahead, labelled_tokens),
    "distilled": Case(Distilled, next_tokens, distilled),
    "prompted": Case(Prompted, words, F.cross_entropy),
    "sets": Case(Sets, words, F.cross_entropy),
}
