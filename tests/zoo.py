"""Networks of every architecture, from configs with random weights, in two sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Net:
    """How to build a network and an input for it."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]


def _transformers(kind: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        return getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()

    return build


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return build().eval()

    return seeded


def _picture(size: int, batch: int = 1) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _words(n: int, vocabulary: int) -> Callable[[], Mapping[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return lambda: {"input_ids": torch.randint(0, vocabulary, (1, n), generator=rng)}


class VGG(nn.Module):
    """VGG with batch norm; `width` 64 and five stages give VGG-16-BN."""

    def __init__(self, width: int, depths: tuple[int, ...], size: int, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, depth in enumerate(depths):
            out = width * min(2**stage, 8)
            for _ in range(depth):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        side = size // 2 ** len(depths)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def audio_net(width: int = 12) -> nn.Module:
    """One-dimensional convolutions, strided, dilated and grouped."""
    return nn.Sequential(
        nn.Conv1d(1, width, 64, stride=16), nn.ReLU(),
        nn.Conv1d(width, 2 * width, 9, padding=4, bias=False), nn.BatchNorm1d(2 * width),
        nn.ReLU(), nn.Conv1d(2 * width, 2 * width, 9, padding=16, dilation=4, groups=4), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 12),
    )  # fmt: skip


def video_net(width: int = 8) -> nn.Module:
    """Three-dimensional convolutions."""
    return nn.Sequential(
        nn.Conv3d(3, width, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)), nn.ReLU(),
        nn.Conv3d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(2 * width, 4 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


class UNet(nn.Module):
    """Encoder and decoder with skip connections and transposed convolutions."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.leave = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        h = torch.relu(self.middle(torch.relu(self.down(skip))))
        return self.leave(torch.cat([skip, torch.relu(self.up(h))], dim=1))


def _speech(mels: int, frames: int) -> Callable[[], Mapping[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return lambda: {
        "input_features": torch.randn(1, mels, frames, generator=rng),
        "decoder_input_ids": torch.randint(0, 90, (1, 6), generator=rng),
    }


_OWN = {
    "audio": Net(_seeded(audio_net), lambda: torch.randn(2, 1, 2048)),
    "video": Net(_seeded(video_net), lambda: torch.randn(1, 3, 6, 24, 24)),
    "unet": Net(_seeded(UNet), _picture(32)),
}

SMALL = {
    **_OWN,
    "resnet": Net(
        _transformers(
            "ResNetForImageClassification", "ResNetConfig", embedding_size=16,
            hidden_sizes=[32, 64], depths=[2, 2], layer_type="bottleneck",
        ),
        _picture(32),
    ),
    "vgg": Net(_seeded(lambda: VGG(16, (1, 2), 32, 64)), _picture(32)),
    "mobilenet": Net(
        _transformers(
            "MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.35,
        ),
        _picture(64),
    ),
    "convnext": Net(
        _transformers(
            "ConvNextForImageClassification", "ConvNextConfig",
            hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1],
        ),
        _picture(64),
    ),
    "vit": Net(
        _transformers(
            "ViTForImageClassification", "ViTConfig", hidden_size=48, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
        ),
        _picture(32),
    ),
    "bert": Net(
        _transformers(
            "BertForMaskedLM", "BertConfig", vocab_size=300, hidden_size=48,
            num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        ),
        _words(12, 300),
    ),
    "gpt2": Net(
        _transformers(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=300, n_embd=48, n_layer=2, n_head=4,
            n_positions=64, use_cache=False,
        ),
        _words(12, 300),
    ),
    "llama": Net(
        _transformers(
            "LlamaForCausalLM", "LlamaConfig", vocab_size=300, hidden_size=48,
            intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, use_cache=False,
        ),
        _words(12, 300),
    ),
    "whisper": Net(
        _transformers(
            "WhisperForConditionalGeneration", "WhisperConfig", vocab_size=100, d_model=32,
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            num_mel_bins=20, max_source_positions=50, max_target_positions=24,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            use_cache=False,
        ),
        _speech(20, 100),
    ),
}  # fmt: skip
"""Every architecture, small enough for the default suite."""

FULL = {
    "resnet-50": Net(
        _transformers("ResNetForImageClassification", "ResNetConfig", num_labels=1000),
        _picture(224),
    ),
    "vgg-16-bn": Net(_seeded(lambda: VGG(64, (2, 2, 3, 3, 3), 224, 4096)), _picture(224)),
    "mobilenet-v2": Net(
        _transformers("MobileNetV2ForImageClassification", "MobileNetV2Config"), _picture(224)
    ),
    "convnext-tiny": Net(
        _transformers("ConvNextForImageClassification", "ConvNextConfig"), _picture(224)
    ),
    "vit-base": Net(_transformers("ViTForImageClassification", "ViTConfig"), _picture(224)),
    "bert-base": Net(_transformers("BertForMaskedLM", "BertConfig"), _words(32, 30522)),
    "gpt2": Net(
        _transformers("GPT2LMHeadModel", "GPT2Config", use_cache=False), _words(32, 50257)
    ),
    "llama-135m": Net(
        _transformers(
            "LlamaForCausalLM", "LlamaConfig", vocab_size=49152, hidden_size=576,
            intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True, use_cache=False,
        ),
        _words(32, 49152),
    ),
    "whisper-base": Net(
        _transformers(
            "WhisperForConditionalGeneration", "WhisperConfig", use_cache=False,
            vocab_size=51865, d_model=512, encoder_layers=6, decoder_layers=6,
            encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
        ),
        _speech(80, 3000),
    ),
}  # fmt: skip
"""The same at the sizes that people use."""
