"""Models of images that are made, found, compared and cut out."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.multiprocess.case import CLASSES, Case

WIDTH, HEADS = 16, 4


def pictures(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return (torch.randn(samples, 3, 16, 16, generator=generator),), labels


class Adversarial(nn.Module):
    """Both sides of a GAN in one step: the critic sees what is made without its gradient."""

    def __init__(self) -> None:
        super().__init__()
        normed = parametrizations.spectral_norm
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(8, 16, 4), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.critic = nn.Sequential(
            normed(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2),
            normed(nn.Conv2d(8, 16, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Flatten(),
            normed(nn.Linear(256, 1)),
        )  # fmt: skip

    def forward(self, real: Tensor, noise: Tensor) -> dict[str, Tensor]:
        fake = self.generator(noise)
        critic = (
            F.relu(1 - self.critic(real)).mean() + F.relu(1 + self.critic(fake.detach())).mean()
        )
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        fooled = torch.func.functional_call(self.critic, weights, (fake,))
        return {"critic": critic, "generator": -fooled.mean()}


def made(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    real = torch.randn(samples, 3, 16, 16, generator=generator)
    return (real, torch.randn(samples, 8, 1, 1, generator=generator)), None


def both_losses(output: Any, target: None) -> Tensor:
    return output["critic"] + output["generator"]


class Modulated(nn.Module):
    """StyleGAN's: each sample has weights of its own, by a convolution with samples as groups."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3) / 12)
            self.style, self.bias = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: Tensor, style: Tensor) -> Tensor:
            n, c, h, w = x.shape
            weight = self.weight * (1 + self.style(style))[:, None, :, None, None]
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
            x = F.conv2d(
                x.reshape(1, n * c, h, w), weight.reshape(n * c, c, 3, 3), None, 1, 1, 1, n
            )
            return F.leaky_relu(x.reshape(n, c, h, w) + self.bias[:, None, None], 0.2)

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(
            *(m for _ in range(3) for m in (nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2)))
        )
        self.start = nn.Parameter(torch.randn(1, WIDTH, 4, 4))
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.colors = nn.ModuleList(nn.Conv2d(WIDTH, 3, 1) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        x, picture = self.start.expand(len(z), -1, -1, -1), None
        for block, color in zip(self.blocks, self.colors, strict=True):
            x = block(x, style)
            own = color(x)
            picture = own if picture is None else F.interpolate(picture, scale_factor=2) + own
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        return picture


def styles(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    wanted = torch.randn(samples, 3, 16, 16, generator=generator)
    return (torch.randn(samples, WIDTH, generator=generator),), wanted


class Windows(nn.Module):
    """Swin's: windows that are rolled, a mask and an index of relative places as buffers."""

    class Block(nn.Module):
        def __init__(self, shift: int) -> None:
            super().__init__()
            self.shift = shift
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
            self.bias = nn.Parameter(torch.randn(49, HEADS) / 10)
            place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
            off = place.flatten(1)[:, :, None] - place.flatten(1)[:, None] + 3
            self.register_buffer("index", off[0] * 7 + off[1], persistent=False)
            region = torch.zeros(8, 8)
            for i, rows in enumerate((slice(0, 4), slice(4, 8 - shift), slice(8 - shift, 8))):
                for j, columns in enumerate(
                    (slice(0, 4), slice(4, 8 - shift), slice(8 - shift, 8))
                ):
                    region[rows, columns] = 3 * i + j
            region = self.cut(region[None, :, :, None]).squeeze(-1)
            apart = region[:, None] != region[:, :, None]
            self.register_buffer("mask", torch.zeros(4, 16, 16).masked_fill(apart, -100.0))

        @staticmethod
        def cut(x: Tensor) -> Tensor:
            n, h, w, c = x.shape
            return x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)

        def forward(self, x: Tensor) -> Tensor:
            n, h, w, c = x.shape
            y = torch.roll(self.norms[0](x), (-self.shift, -self.shift), (1, 2))
            q, k, v = (
                self.qkv(self.cut(y)).reshape(-1, 16, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
            )
            scores = q @ k.transpose(-2, -1) / math.sqrt(c // HEADS)
            scores = scores + self.bias[self.index.view(-1)].view(16, 16, HEADS).permute(2, 0, 1)
            if self.shift:
                scores = (scores.view(n, 4, HEADS, 16, 16) + self.mask[:, None]).view(
                    -1, HEADS, 16, 16
                )
            y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c))
            y = y.view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
            x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
            return x + self.mlp(self.norms[1](x))

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.blocks = nn.ModuleList(self.Block(2 * (i % 2)) for i in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Detector(nn.Module):
    """DETR's: queries that read an image; each is told which object is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, WIDTH, 3, 2, 1)
        )
        self.rows, self.columns = (nn.Parameter(torch.rand(4, WIDTH // 2)) for _ in range(2))
        self.queries = nn.Embedding(5, WIDTH)
        encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, 0.0)
        decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, 0.0)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, 2)
        self.kinds, self.boxes = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        places = torch.cat([
            self.columns.unsqueeze(0).repeat(4, 1, 1), self.rows.unsqueeze(1).repeat(1, 4, 1)
        ], -1).flatten(0, 1).unsqueeze(1)  # fmt: skip
        memory = self.encoder(x.flatten(2).permute(2, 0, 1) + places)
        queries = self.queries.weight.unsqueeze(1).repeat(1, x.shape[0], 1)
        y = self.decoder(queries, memory).transpose(0, 1)
        return {"kinds": self.kinds(y), "boxes": self.boxes(y).sigmoid()}


def objects(generator: torch.Generator, samples: int) -> tuple[Any, Any]:
    inputs, _ = pictures(generator, samples)
    return inputs, {
        "matched": torch.rand(samples, 5, generator=generator).argsort(-1)[:, :3],
        "kinds": torch.randint(CLASSES, (samples, 3), generator=generator),
        "boxes": torch.rand(samples, 3, 4, generator=generator),
    }


def found(output: Any, target: Any) -> Tensor:
    """Classes of all queries, those without an object 0, and corners of the matched boxes."""
    wanted = torch.zeros_like(output["kinds"][..., 0], dtype=torch.long)
    wanted = wanted.scatter(1, target["matched"], target["kinds"])
    loss = F.cross_entropy(output["kinds"].transpose(1, 2), wanted)
    boxes = output["boxes"].gather(1, target["matched"].unsqueeze(-1).expand(-1, -1, 4))
    (ax, ay, aw, ah), (bx, by, bw, bh) = boxes.unbind(-1), target["boxes"].unbind(-1)
    wide = torch.minimum(ax + aw, bx + bw) - torch.maximum(ax, bx)
    high = torch.minimum(ay + ah, by + bh) - torch.maximum(ay, by)
    shared = wide.clamp(min=0) * high.clamp(min=0)
    union = aw * ah + bw * bh - shared
    return loss + F.l1_loss(boxes, target["boxes"]) + (1 - shared / (union + 1e-6)).mean()


class Masked(nn.Module):
    """A masked autoencoder: patches are shuffled, hidden, put back and drawn again."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(48, WIDTH)
        self.positions = nn.Parameter(torch.randn(1, 16, WIDTH) / 10)
        self.hidden = nn.Parameter(torch.randn(1, 1, WIDTH) / 10)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, 0.0, F.gelu, 1e-6, True, True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 48)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        n = x.shape[0]
        rows = x.reshape(n, 3, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, 16, 48)
        order = noise.argsort(dim=1)
        back, kept = order.argsort(dim=1), order[:, :6]
        y = self.patches(rows) + self.positions
        y = self.encoder(y.gather(1, kept.unsqueeze(-1).repeat(1, 1, WIDTH)))
        y = torch.cat([y, self.hidden.repeat(n, 10, 1)], 1)
        y = y.gather(1, back.unsqueeze(-1).repeat(1, 1, WIDTH)) + self.positions
        mask = torch.ones(n, 16, device=x.device)
        mask[:, :6] = 0
        mask = mask.gather(1, back)
        wanted = (rows - rows.mean(-1, True)) / (rows.var(-1, keepdim=True) + 1e-6) ** 0.5
        error = (self.head(self.decoder(y)) - wanted).square().mean(-1)
        return ((error * mask).sum(1) / mask.sum(1)).mean()


def shuffled(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (x,), _ = pictures(generator, samples)
    return (x, torch.rand(samples, 16, generator=generator)), None


class Slots(nn.Module):
    """Slots that compete for places in rounds of a GRU cell, each drawn by one decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, WIDTH, 5, 2, 2), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.cell = nn.GRUCell(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, WIDTH))
        self.decoder = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 4, 3, padding=1)
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        rows = self.norms[0](self.encoder(x).flatten(2).transpose(1, 2))
        keys, values, slots = self.key(rows), self.value(rows), noise
        for _ in range(3):
            scores = (
                torch.einsum("nsc,npc->nps", self.query(self.norms[1](slots)), keys) / WIDTH**0.5
            )
            shares = scores.softmax(-1) + 1e-8
            shares = shares / shares.sum(1, keepdim=True)
            update = torch.einsum("nps,npc->nsc", shares, values)
            slots = self.cell(update.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.mlp(self.norms[2](slots))
        wide = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, 16, 16)
        drawn = self.decoder(wide).unflatten(0, (-1, 3))
        colors, masks = drawn.split([3, 1], dim=2)
        return F.mse_loss((colors * masks.softmax(1)).sum(1), x)


def slotted(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (x,), _ = pictures(generator, samples)
    return (x, torch.randn(samples, 3, WIDTH, generator=generator)), None


class Flow(nn.Module):
    """Couplings and 1x1 convolutions that can be undone; the loss has their determinants."""

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(12))
            self.mix = nn.Parameter(torch.linalg.qr(torch.randn(12, 12))[0])
            self.net = nn.Sequential(
                nn.Conv2d(6, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, 12, 3, padding=1)
            )

        def forward(self, x: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
            places = x.shape[2] * x.shape[3]
            x = (x + self.bias[:, None, None]) * self.scale.exp()[:, None, None]
            x = F.conv2d(x, self.mix[:, :, None, None])
            log = log + places * (self.scale.sum() + torch.linalg.slogdet(self.mix)[1])
            first, second = x.chunk(2, 1)
            shift, scale = self.net(first).chunk(2, 1)
            scale = torch.sigmoid(scale + 2)
            return torch.cat([first, (second + shift) * scale], 1), log + scale.log().sum((1, 2, 3))

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(self.Step() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, log = F.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])
        for step in self.steps:
            x, log = step(x, log)
        return -(log - 0.5 * x.square().sum((1, 2, 3))).mean() / 768


class Segmenter(nn.Module):
    """DeepLab's: dilated branches and one of the whole image; overlap as loss, per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.branches = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=r, dilation=r) for r in (1, 2, 4))
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU())
        self.join = nn.Sequential(nn.Conv2d(32, 8, 1), nn.Dropout2d(0.0), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.trunk(x)
        whole = F.interpolate(
            self.whole(y), size=y.shape[-2:], mode="bilinear", align_corners=False
        )
        return {"out": self.join(torch.cat([*(b(y) for b in self.branches), whole], 1))}


def areas(generator: torch.Generator, samples: int) -> tuple[Any, Tensor]:
    inputs, _ = pictures(generator, samples)
    return inputs, (torch.rand(samples, 1, 16, 16, generator=generator) > 0.5).float()


def overlap(output: Any, target: Tensor) -> Tensor:
    chance = output["out"].sigmoid()
    both, either = ((f).sum((1, 2, 3)) for f in (chance * target, chance + target))
    focal = F.binary_cross_entropy_with_logits(output["out"], target, reduction="none")
    focal = ((1 - torch.exp(-focal)) ** 2 * focal).mean()
    return focal + (1 - (2 * both + 1) / (either + 1)).mean()


class Faces(nn.Module):
    """ArcFace: classes are directions, the wanted one is made harder by an angle."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.PReLU(8), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.PReLU(8),
            nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(256, WIDTH), nn.LayerNorm(WIDTH),
        )  # fmt: skip
        self.classes = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(self.trunk(x)), F.normalize(self.classes))
        sine = torch.sqrt((1 - cosine.pow(2)).clamp(1e-6, 1))
        harder = cosine * math.cos(0.3) - sine * math.sin(0.3)
        harder = torch.where(cosine > math.cos(math.pi - 0.3), harder, cosine - 0.1)
        wanted = torch.zeros_like(cosine).scatter_(1, label.view(-1, 1).long(), 1)
        return F.cross_entropy(8 * (wanted * harder + (1 - wanted) * cosine), label)


def named(generator: torch.Generator, samples: int) -> tuple[Any, None]:
    (x,), label = pictures(generator, samples)
    return (x, label), None


CASES = {
    "gan": Case(Adversarial, made, both_losses, mixes=True),
    "style-gan": Case(Modulated, styles, F.l1_loss),
    "windows": Case(Windows, pictures, F.cross_entropy),
    "detr": Case(Detector, objects, found),
    "masked-autoencoder": Case(Masked, shuffled),
    "slots": Case(Slots, slotted),
    "glow": Case(Flow, lambda *a: (pictures(*a)[0], None)),
    "deeplab": Case(Segmenter, areas, overlap),
    "arcface": Case(Faces, named),
}
