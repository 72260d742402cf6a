"""Models of images, points, graphs and fields, each with a structure of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, Case
from tests.multiprocess.unusual import sequences

WIDTH = 16


def labels(generator: torch.Generator, samples: int) -> Tensor:
    return torch.randint(CLASSES, (samples,), generator=generator)


def small_images(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return (torch.randn(samples, 3, 16, 16, generator=generator),), labels(generator, samples)


def conv(inner: int, outer: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **options)


class PointNet(nn.Module):
    """Points of a cloud, turned by a learned matrix, and the maximum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, WIDTH, 1), nn.ReLU(), nn.Conv1d(WIDTH, 9, 1))
        self.points = nn.ModuleList([nn.Conv1d(n, 32, 1) for n in (3, 32, 32)])
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, cloud: Tensor) -> Tensor:
        turn = self.turn(cloud.mT).amax(-1).view(-1, 3, 3) + torch.eye(3)
        x = torch.bmm(cloud, turn).mT
        for layer in self.points:
            x = F.relu(layer(x))
        return self.head(torch.max(x, 2)[0])


def clouds(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return (torch.randn(samples, 24, 3, generator=generator),), labels(generator, samples)


@dataclass
class Quantised:
    """What ``VectorQuantised`` returns."""

    loss: Tensor
    image: Tensor
    codes: Tensor


class VectorQuantised(nn.Module):
    """Rounds to the nearest of learned codes and lets gradients pass straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, WIDTH, stride=2), nn.ReLU(), conv(WIDTH, 8))
        self.codes = nn.Embedding(32, 8)
        self.decoder = nn.Sequential(
            conv(8, WIDTH), nn.ReLU(), nn.ConvTranspose2d(WIDTH, 3, 4, stride=2, padding=1)
        )

    def forward(self, image: Tensor) -> Quantised:
        z = self.encoder(image).permute(0, 2, 3, 1)
        codes = torch.cdist(z.flatten(1, 2), self.codes.weight).argmin(-1)
        q = self.codes(codes).view_as(z)
        commitment = F.mse_loss(q.detach(), z) * 0.25 + F.mse_loss(q, z.detach())
        straight = z + (q - z).detach()
        made = self.decoder(straight.permute(0, 3, 1, 2))
        return Quantised(F.mse_loss(made, image) + commitment, made, codes)


def only_images(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    return small_images(generator, samples)[0], None


class SpatialTransformer(nn.Module):
    """Looks at the image through an affine grid that it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(conv(3, 8, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6))
        self.offsets = conv(3, 2)
        self.body = nn.Sequential(conv(3, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH, stride=2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.where(x).view(-1, 2, 3) + torch.eye(2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        grid = grid + 0.1 * self.offsets(x).permute(0, 2, 3, 1).tanh()
        x = F.grid_sample(x, grid, align_corners=False)
        return self.head(self.body(x).mean((2, 3)))


class Capsules(nn.Module):
    """Three rounds of routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = conv(3, 4 * 8, stride=4)
        self.weight = nn.Parameter(torch.randn(64, CLASSES, 8, 8) / 8)

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        norm = x.square().sum(-1, keepdim=True)
        return norm / (1 + norm) * x / (norm + 1e-6).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(self.primary(x).unflatten(1, (4, 8)).movedim(2, -1).flatten(1, 3))
        votes = torch.einsum("bid,ijde->bije", u, self.weight)
        agreement = torch.zeros(x.size(0), 64, CLASSES, device=x.device)
        for _ in range(3):
            made = self.squash((agreement.softmax(2).unsqueeze(-1) * votes).sum(1))
            agreement = agreement + (votes * made.unsqueeze(1)).sum(-1)
        return (made.square().sum(-1) + 1e-6).sqrt()


def margin_loss(lengths: Tensor, target: Tensor) -> Tensor:
    own = F.one_hot(target, CLASSES).to(lengths.dtype)
    loss = own * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - own) * F.relu(lengths - 0.1) ** 2
    return loss.sum(1).mean()


class GraphAttention(nn.Module):
    """Attention along the edges of a fixed graph, with sums at the nodes that they end in."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
            self.source, self.target = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1, bias=False)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h = self.linear(x)
            start, end = edges[0], edges[1]
            score = F.leaky_relu(self.source(h)[:, start] + self.target(h)[:, end], 0.2).exp()
            total = torch.zeros_like(h[..., :1]).index_add(1, end, score)
            weight = score / total[:, end].clamp(min=1e-6)
            index = end.view(1, -1, 1).expand(h.size(0), -1, WIDTH)
            made = torch.zeros_like(h).scatter_add(1, index, weight * h[:, start])
            return F.elu(made) + x

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("edges", torch.randint(12, (2, 40), generator=generator))
        self.embed = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList([self.Layer() for _ in range(4)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, nodes: Tensor) -> Tensor:
        x = self.embed(nodes)
        for layer in self.layers:
            x = layer(x, self.edges)
        return self.head(x.mean(1))


def graphs(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return (torch.randn(samples, 12, 5, generator=generator),), labels(generator, samples)


class SqueezeExcite(nn.Module):
    """A residual block whose channels are weighted by what all of the image holds."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.a, self.b = conv(width, width), conv(width, width)
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        return F.relu(x + y * gate)


class Dense(nn.Module):
    """A layer of a DenseNet, which puts what it makes beside what it read."""

    def __init__(self, width: int, growth: int = 4) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, width), conv(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.pooled = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(WIDTH, 4, 1)
        self.three = nn.Sequential(nn.Conv2d(WIDTH, 8, 1), nn.ReLU(), conv(8, 4))
        self.five = nn.Sequential(nn.Conv2d(WIDTH, 4, 1), nn.ReLU(), conv(4, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1).relu()


class Inverted(nn.Module):
    """EfficientNet's block, left out for a sample now and then (here never)."""

    def __init__(self, keep: float = 1.0) -> None:
        super().__init__()
        self.keep = keep
        self.expand, self.project = nn.Conv2d(WIDTH, 32, 1), nn.Conv2d(32, WIDTH, 1)
        self.depthwise = conv(32, 32, groups=32)
        self.squeeze, self.excite = nn.Conv2d(32, 4, 1), nn.Conv2d(4, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.depthwise(F.silu(self.expand(x))))
        y = y * self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        y = self.project(y)
        if self.training:
            mask = (self.keep + torch.rand(x.shape[0], 1, 1, 1, device=x.device)).floor()
            y = y / self.keep * mask
        return x + y


class Stacked(nn.Module):
    """A stem, blocks and a head."""

    def __init__(self, *blocks: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.stem, self.blocks = conv(3, WIDTH, stride=2), nn.Sequential(*blocks)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Hourglass(nn.Module):
    """Goes down and up again, within itself."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.skip, self.down, self.up = (conv(WIDTH, WIDTH) for _ in range(3))
        self.inner = Hourglass(depth - 1) if depth else conv(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.inner(F.relu(self.down(F.max_pool2d(x, 2))))))
        return self.skip(x) + F.interpolate(y, scale_factor=2, mode="nearest")


class Poses(nn.Module):
    """Two hourglasses, each with heat maps that count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, WIDTH)
        self.stacks = nn.ModuleList([Hourglass(2) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Conv2d(WIDTH, 4, 1) for _ in range(2)])
        self.back = nn.ModuleList([nn.Conv2d(4, WIDTH, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stack, head, back in zip(self.stacks, self.heads, self.back, strict=True):
            y = stack(x)
            maps.append(head(y))
            x = x + y + back(maps[-1])
        return maps


def heat_maps(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    (x,), _ = small_images(generator, samples)
    return (x,), torch.randn(samples, 4, 16, 16, generator=generator)


def maps_loss(maps: list[Tensor], target: Tensor) -> Tensor:
    return sum((F.mse_loss(m, target) for m in maps), torch.zeros(()))


class Pyramid(nn.Module):
    """Features of three sizes, and one detection head for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(n, WIDTH, stride=2) for n in (3, WIDTH, WIDTH)])
        self.lateral = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(3)])
        self.tower = nn.Sequential(conv(WIDTH, WIDTH), nn.GroupNorm(4, WIDTH), nn.ReLU())
        self.kinds, self.boxes, self.centre = conv(WIDTH, 5), conv(WIDTH, 4), conv(WIDTH, 1)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        found = [x := F.relu(stage(x)) for stage in self.stages]
        top, levels = None, []
        for lateral, level in zip(reversed(self.lateral), reversed(found), strict=True):
            side = lateral(level)
            top = side if top is None else side + F.interpolate(top, size=side.shape[-2:])
            levels.append(self.tower(top))
        flat = [[head(y).flatten(2) for y in levels]
                for head in (self.kinds, self.boxes, self.centre)]  # fmt: skip
        return {"kinds": flat[0], "boxes": flat[1], "centre": flat[2]}


def detections(generator: torch.Generator, samples: int) -> tuple[Any, Any]:
    (x,), _ = small_images(generator, samples)
    places = 64 + 16 + 4
    kinds = torch.randint(5, (samples, places), generator=generator)
    boxes = torch.randn(samples, 4, places, generator=generator)
    return (x,), {"kinds": kinds, "boxes": boxes}


def detection_loss(output: dict[str, list[Tensor]], target: dict[str, Tensor]) -> Tensor:
    kinds, boxes, centre = (torch.cat(output[key], -1) for key in ("kinds", "boxes", "centre"))
    there = (target["kinds"] > 0).to(boxes.dtype)
    box = F.smooth_l1_loss(boxes, target["boxes"], reduction="none").sum(1)
    return (
        F.cross_entropy(kinds, target["kinds"]) + 0.5 * (box * there).mean()
        + F.binary_cross_entropy_with_logits(centre.squeeze(1), there)
    )  # fmt: skip


class Field(nn.Module):
    """Coordinates to colours: sines (SIREN), or random Fourier features."""

    def __init__(self, *, sines: bool) -> None:
        super().__init__()
        self.sines = sines
        if not sines:
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("frequencies", torch.randn(2, WIDTH, generator=generator))
        self.first = nn.Linear(2 if sines else 2 * WIDTH, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.sines:
            angle = 2 * math.pi * x @ self.frequencies
            x = torch.cat([angle.sin(), angle.cos()], -1)
        act = (lambda y: torch.sin(5 * y)) if self.sines else F.relu
        x = act(self.first(x))
        for layer in self.layers:
            x = act(layer(x))
        return self.head(x).sigmoid()


def places(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    x = torch.rand(samples, 2, generator=generator)
    return (x,), torch.rand(samples, 3, generator=generator)


class Physics(nn.Module):
    """A network whose derivative counts, taken by autograd within the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n, WIDTH) for n in (2, WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, 1)

    def value(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = self.value(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y, slope


def physics_loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    y, slope = output
    return F.mse_loss(y, target[:, :1]) + (slope.sum(1) + y.squeeze(1)).square().mean()


class AdaptedConvolutions(nn.Module):
    """Frozen convolutions with learned ones of low rank beside them."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = conv(WIDTH, WIDTH).requires_grad_(requires_grad=False)
            self.down, self.up = conv(WIDTH, 2, bias=False), nn.Conv2d(2, WIDTH, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.base(x) + self.up(self.down(x)))

    def __init__(self) -> None:
        super().__init__()
        self.inner = Stacked(*(self.Layer() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class ConvLSTM(nn.Module):
    """A recurrence over frames whose gates are convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([conv(3 + 8, 32), conv(8 + 8, 32)])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, frames: Tensor) -> Tensor:
        shape = (frames.shape[0], 8, *frames.shape[-2:])
        states = [(frames.new_zeros(shape), frames.new_zeros(shape)) for _ in self.cells]
        for x in frames.unbind(1):
            for k, cell in enumerate(self.cells):
                h, c = states[k]
                i, f, o, g = cell(torch.cat([x, h], 1)).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                x = o.sigmoid() * c.tanh()
                states[k] = x, c
        return self.head(states[-1][0].mean((2, 3)))


def films(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    return (torch.randn(samples, 4, 3, 8, 8, generator=generator),), labels(generator, samples)


class Complex(nn.Module):
    """Complex weights on a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = (
            nn.ParameterList([torch.randn(WIDTH, WIDTH) / 8 for _ in range(2)]) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for real, imaginary in zip(self.real, self.imaginary, strict=True):
            spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
            spectrum = spectrum @ torch.complex(real, imaginary)
            x = x + torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho")
        return self.head(x.mean(1))


CASES = {
    "pointnet": Case(PointNet, clouds, F.cross_entropy),
    "vq-vae": Case(VectorQuantised, only_images),
    "spatial-transformer": Case(SpatialTransformer, small_images, F.cross_entropy),
    "capsules": Case(Capsules, small_images, margin_loss),
    "graph-attention": Case(GraphAttention, graphs, F.cross_entropy),
    "squeeze-excite": Case(lambda: Stacked(*(SqueezeExcite() for _ in range(3))), small_images,
                           F.cross_entropy),
    "densenet": Case(lambda: Stacked(*(Dense(WIDTH + 4 * k) for k in range(4)), width=32),
                     small_images, F.cross_entropy),
    "inception": Case(lambda: Stacked(*(Inception() for _ in range(3))), small_images,
                      F.cross_entropy),
    "efficientnet": Case(lambda: Stacked(*(Inverted() for _ in range(3))), small_images,
                         F.cross_entropy),
    "hourglass": Case(Poses, heat_maps, maps_loss),
    "pyramid": Case(Pyramid, detections, detection_loss),
    "siren": Case(lambda: Field(sines=True), places, F.mse_loss),
    "fourier-features": Case(lambda: Field(sines=False), places, F.mse_loss),
    "physics": Case(Physics, places, physics_loss),
    "lora-convolutions": Case(AdaptedConvolutions, small_images, F.cross_entropy),
    "complex": Case(Complex, sequences, F.cross_entropy),
    "conv-lstm": Case(ConvLSTM, films, F.cross_entropy),
}  # fmt: skip
