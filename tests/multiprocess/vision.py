"""Convolutional models that programs are compared on, small.

Biases in front of batch normalisation are left out: their gradients are rounding errors, which
Adam makes large.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, Batch, Case

# ---- what models are fed


def pictures(channels: int, size: int) -> Batch:
    """Labelled images of (channels, size, size)."""

    def batch(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
        labels = torch.randint(CLASSES, (samples,), generator=generator)
        return (torch.randn(samples, channels, size, size, generator=generator),), labels

    return batch


def named_pictures(generator: torch.Generator, samples: int) -> Any:
    """What Hugging Face's image classifiers take."""
    (pixels,), labels = pictures(3, 32)(generator, samples)
    return {"pixel_values": pixels, "labels": labels}, None


def segmented(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Images with a class per pixel."""
    labels = torch.randint(4, (samples, 32, 32), generator=generator)
    return (torch.randn(samples, 3, 32, 32, generator=generator),), labels


def reconstructed(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Images that are their own target."""
    images = torch.rand(samples, 1, 16, 16, generator=generator)
    return (images,), images


def enlarged(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Images, and the same at twice the size."""
    images = torch.rand(samples, 1, 16, 16, generator=generator)
    return (F.avg_pool2d(images, 2),), images


def pixel_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over samples and pixels."""
    return F.cross_entropy(logits, target)


# ---- models


class Mnist(nn.Module):
    """Two convolutions and two linear layers for 28 x 28 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16 * 12 * 12, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = torch.flatten(F.max_pool2d(x, 2), 1)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


def eurosat() -> nn.Module:
    """Convolutions with batch normalisation for 64 x 64 satellite images, as a Sequential."""
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )


class Residual(nn.Module):
    """ResNet's bottleneck: strided where its stage begins, with a projection beside it.

    Blocks start as identities (Goyal et al. 2017): otherwise 50 layers turn a millionth of the
    parameters into a tenth of the gradients, and no two orders of summation agree.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        nn.init.zeros_(self.bn3.weight)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet-50 has stages of (3, 4, 6, 3) bottlenecks, ResNet-152 of (3, 8, 36, 3)."""

    def __init__(self, stages: tuple[int, ...] = (3, 4, 6, 3), width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = width
        for number, count in enumerate(stages):
            own = width * 2**number
            blocks = []
            for index in range(count):
                blocks.append(Residual(before, own, 2 if number and not index else 1))
                before = 4 * own
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def hf_resnet() -> nn.Module:
    """Hugging Face's ResNet with bottlenecks."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], num_labels=CLASSES
    )
    return ResNetForImageClassification(config)


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        inner = 4 * before
        self.layers = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True), nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.skip = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        shapes = ((8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 16, 1))
        self.blocks = nn.ModuleList([Inverted(*shape) for shape in shapes])
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Next(nn.Module):
    """ConvNeXt's block: a wide depthwise convolution, channels last in the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """A patch embedding and blocks of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList([Next(16) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((2, 3))))


def twice(before: int, after: int) -> nn.Module:
    """U-Net's pair of convolutions."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Skip connections from each level down to the same one up, transposed convolutions."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.downs = nn.ModuleList()
        before = 3
        for width in widths:
            self.downs.append(twice(before, width))
            before = width
        self.bottom = twice(before, 2 * before)
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        for width in reversed(widths):
            self.ups.append(nn.ConvTranspose2d(2 * width, width, 2, 2))
            self.joins.append(twice(2 * width, width))
        self.head = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for down in self.downs:
            x = down(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, join, skip in zip(self.ups, self.joins, reversed(kept), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


class SuperResolution(nn.Module):
    """Sub-pixel convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv3(torch.tanh(self.conv2(torch.tanh(self.conv1(x))))))


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 4 * 4, 16),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(16, 16 * 4 * 4), nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def grouped() -> nn.Module:
    """Normalisations that treat each sample alone."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


class TiedAutoencoder(nn.Module):
    """The decoder's matrix is the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 256) / 16)
        self.before, self.after = nn.Parameter(torch.zeros(32)), nn.Parameter(torch.zeros(256))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(F.linear(x.flatten(1), self.weight, self.before))
        return F.linear(code, self.weight.t(), self.after).view_as(x)


CASES: dict[str, Case] = {
    "mnist": Case(Mnist, pictures(1, 28), F.nll_loss),
    "eurosat": Case(eurosat, pictures(3, 64), F.cross_entropy, mixes=True),
    "resnet50": Case(ResNet, pictures(3, 64), F.cross_entropy, mixes=True),
    "resnet152": Case(
        partial(ResNet, (3, 8, 36, 3), 2), pictures(3, 64), F.cross_entropy, mixes=True
    ),
    "hf-resnet": Case(hf_resnet, named_pictures, mixes=True),
    "mobilenet": Case(MobileNet, pictures(3, 32), F.cross_entropy, mixes=True),
    "convnext": Case(ConvNext, pictures(3, 32), F.cross_entropy),
    "unet": Case(UNet, segmented, pixel_loss, mixes=True),
    "super-resolution": Case(SuperResolution, enlarged, F.mse_loss),
    "autoencoder": Case(Autoencoder, reconstructed, F.mse_loss),
    "tied-autoencoder": Case(TiedAutoencoder, reconstructed, F.mse_loss),
    "groupnorm": Case(grouped, pictures(3, 32), F.cross_entropy),
}
