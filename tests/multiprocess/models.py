"""The models that emitted programs are compared on, small and with dropout off."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, LAYERS, SAMPLES, TOKENS, VOCABULARY, Case
from tests.multiprocess.domains import CASES as DOMAINS
from tests.multiprocess.huggingface import CASES as HUGGING_FACE
from tests.multiprocess.library import CASES as LIBRARY
from tests.multiprocess.mixers import CASES as MIXERS
from tests.multiprocess.ordinary import CASES as ORDINARY
from tests.multiprocess.recurrent import CASES as RECURRENT
from tests.multiprocess.scenes import CASES as SCENES
from tests.multiprocess.scratch import CASES as SCRATCH
from tests.multiprocess.series import CASES as SERIES
from tests.multiprocess.shapes import CASES as SHAPES
from tests.multiprocess.tables import CASES as TABLES
from tests.multiprocess.tokens import CASES as TOKEN_MODELS
from tests.multiprocess.unusual import CASES as UNUSUAL
from tests.multiprocess.vision import CASES as VISION
from tests.multiprocess.whole import CASES as WHOLE


def make_gpt(layers: int = LAYERS) -> nn.Module:
    from examples.gpt import GPT, GPTConfig

    return GPT(GPTConfig(VOCABULARY, TOKENS, layers, n_head=4, n_embd=32))


def make_gpt2(layers: int = LAYERS) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    config = GPT2Config(
        n_layer=layers, n_head=4, n_embd=32, vocab_size=VOCABULARY, n_positions=TOKENS,
        bos_token_id=0, eos_token_id=0, **dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_llama(layers: int = LAYERS) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_t5(encoder: int = LAYERS, decoder: int = LAYERS) -> nn.Module:
    """Two trunks, a bias that the first block of each makes for all, one embedding thrice."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=encoder,
        num_decoder_layers=decoder, num_heads=4, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def make_whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_source_positions=TOKENS, max_target_positions=TOKENS, dropout=0.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def make_bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=TOKENS, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config)


def make_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=CLASSES,
    )  # fmt: skip
    return ViTForImageClassification(config)


class Wide(nn.Module):
    """A residual MLP that also counts how often it ran, by an argument that is no tensor."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, depth: int, *, first: Tensor) -> dict[str, Any]:
        y = self.down(F.gelu(self.up(self.norm(x + first))))
        return {"hidden": x + y, "depth": depth + 1}


class Alternating(nn.Module):
    """Blocks of two widths in turn, all of which read the embedding; the head shares it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.blocks = nn.ModuleList([Wide(32, 96 if i % 2 else 64) for i in range(4)])
        self.head = nn.Linear(32, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = first = self.embed(tokens)
        depth = 0
        for block in self.blocks:
            result = block(x, depth, first=first)
            x, depth = result["hidden"], result["depth"]
        return self.head(x)


def make_mlp() -> nn.Module:
    """Layers of different widths in a plain Sequential."""
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES)
    )


class Convolutions(nn.Module):
    """Shaped like AlexNet: features, pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Dropout(0.0), nn.Linear(256, 64), nn.ReLU(inplace=True), nn.Linear(64, CLASSES)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


class Normalized(nn.Module):
    """Residual blocks with batch normalisation, whose widths tp divides.

    A bias in front of it has no gradient but rounding errors, which Adam makes large.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.ModuleList([Bottleneck(8, 32) for _ in range(2)])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Two convolutions, each with statistics over the samples."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.inner = nn.BatchNorm2d(inner)
        self.down = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.outer = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.outer(self.down(F.relu(self.inner(self.up(x))))))


def make_instances() -> nn.Module:
    """Statistics of each sample, of which running means over the samples are kept."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


class Remembering(nn.Module):
    """An MLP that keeps a running mean of its own and reads it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x + self.down(F.gelu(self.up(x - self.mean)))


def make_remembering() -> nn.Module:
    return nn.Sequential(*(Remembering(16) for _ in range(3)), nn.Linear(16, CLASSES))


def make_alexnet() -> nn.Module:
    """Large linear layers behind small convolutions, as in the real one."""
    from examples.alexnet import AlexNet

    return AlexNet(classes=CLASSES, width=16, hidden=2048, pooled=2, dropout=0.0)


def large_images(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return (torch.randn(samples, 3, 96, 96, generator=generator),), labels


def batch_tokens(generator: torch.Generator, samples: int) -> Tensor:
    return torch.randint(VOCABULARY, (samples, TOKENS + 1), generator=generator)


def next_tokens(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    tokens = batch_tokens(generator, samples)
    return (tokens[:, :-1],), tokens[:, 1:]


def labelled_tokens(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    tokens = batch_tokens(generator, samples)
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, :-1].contiguous()}, None


def labelled_sound(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    sound = torch.randn(samples, 8, 2 * TOKENS, generator=generator)
    tokens = batch_tokens(generator, samples)
    return {"input_features": sound, "labels": tokens[:, :-1].contiguous()}, None


def images(generator: torch.Generator, samples: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return torch.randn(samples, 3, 32, 32, generator=generator), labels


def labelled_images(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    pixels, labels = images(generator, samples)
    return {"pixel_values": pixels, "labels": labels}, None


def classified_images(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    pixels, labels = images(generator, samples)
    return (pixels,), labels


def classified_vectors(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return (torch.randn(samples, 16, generator=generator),), labels


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


CASES = {
    "gpt": Case(make_gpt, next_tokens, token_loss),
    "gpt2": Case(make_gpt2, labelled_tokens),
    "llama": Case(make_llama, labelled_tokens),
    "t5": Case(make_t5, labelled_tokens),
    "t5-long-encoder": Case(partial(make_t5, 5, 1), labelled_tokens),
    "t5-long-decoder": Case(partial(make_t5, 1, 5), labelled_tokens),
    "whisper": Case(make_whisper, labelled_sound),
    "bert": Case(make_bert, labelled_tokens),
    "vit": Case(make_vit, labelled_images),
    "alternating": Case(Alternating, next_tokens, token_loss),
    "mlp": Case(make_mlp, classified_vectors, F.cross_entropy),
    "alexnet": Case(make_alexnet, large_images, F.cross_entropy),
    "normalized": Case(Normalized, classified_images, F.cross_entropy, mixes=True),
    "remembering": Case(make_remembering, classified_vectors, F.cross_entropy, mixes=True),
    "instances": Case(make_instances, classified_images, F.cross_entropy, mixes=True),
    "convolutions": Case(Convolutions, classified_images, F.cross_entropy),
    **HUGGING_FACE,
    **VISION,
    **RECURRENT,
    **ORDINARY,
    **SCRATCH,
    **UNUSUAL,
    **WHOLE,
    **DOMAINS,
    **MIXERS,
    **TABLES,
    **SCENES,
    **TOKEN_MODELS,
    **LIBRARY,
    **SHAPES,
    **SERIES,
}


def build(name: str) -> nn.Module:
    """The same model on every rank. Norms and biases are off their start, so that they count.

    "gpt:5" is a GPT of five blocks; in "gpt/*.h.0.*" the parameters that match are frozen.
    """
    kind, _, frozen = name.partition("/")
    kind, _, layers = kind.partition(":")
    torch.manual_seed(7)
    model = CASES[kind].make(*[int(layers)] if layers else ())
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for own, parameter in model.named_parameters():
        if fnmatchcase(own, frozen):
            parameter.requires_grad_(requires_grad=False)
    return model


def case_of(name: str) -> Case:
    """What ``build`` makes of the name, without number of blocks and frozen parameters."""
    return CASES[re.split("[:/]", name)[0]]


def batch(name: str, step: int, samples: int = SAMPLES) -> tuple[Any, Tensor | None]:
    """(inputs, target) of the global batch of a step."""
    return case_of(name).batch(torch.Generator().manual_seed(step), samples)


def loss_fn(name: str) -> Any:
    """The user's loss function, None where the model returns its loss."""
    return case_of(name).loss_fn


def loss_of(name: str, model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
    """The loss on one device."""
    function = loss_fn(name)
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    if function:
        return function(output, target)
    if isinstance(output, dict):
        return output["loss"]
    first = output[0] if isinstance(output, tuple) else output
    return first if isinstance(first, Tensor) else output.loss
