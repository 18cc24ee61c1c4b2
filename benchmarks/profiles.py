"""Published sizes of well-known networks against `profile`: `python benchmarks/profiles.py`.

Every network is built from its configuration on the meta device, so nothing is computed and
nothing is downloaded. Writes `results/profiles.json`. `tests/test_profile.py` holds the same
cases to their tolerances.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank.compression import Profile, profile, run


def vgg16() -> nn.Module:
    """Simonyan and Zisserman 2015, configuration D."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    layers += [nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(4096, 1000))


def resnet(depths: list[int], *, stride_first: bool = False) -> nn.Module:
    """ResNet with a 1000-class head; `stride_first` is the paper's v1, else v1.5."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(depths=depths, num_labels=1000, downsample_in_bottleneck=stride_first)
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


@dataclass(frozen=True)
class Case:
    """A network, what it is run on, and what its publishers say it costs."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    parameters: int
    gmacs: float | None
    source: str
    within: float = 0.005  # half of the last digit that is published

    def example(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.float if len(self.shape) == 4 else torch.long)


IMAGE, TOKENS = (1, 3, 224, 224), (1, 128)
CASES = (
    Case("ResNet-50", lambda: resnet([3, 4, 6, 3]), IMAGE, 25_557_032, 4.09, "torchvision"),
    Case(
        "ResNet-50 v1 (stride in the 1 x 1)",
        lambda: resnet([3, 4, 6, 3], stride_first=True),
        IMAGE,
        25_557_032,
        3.8,
        "He et al. 2016, table 1, cut off after one decimal",
        within=0.1,
    ),
    Case("ResNet-152", lambda: resnet([3, 8, 36, 3]), IMAGE, 60_192_808, 11.51, "torchvision"),
    Case("VGG-16", vgg16, IMAGE, 138_357_544, 15.47, "torchvision"),
    Case("BERT-base-uncased", bert, TOKENS, 109_482_240, None, "Devlin et al. 2019: 110 M"),
    Case("GPT-2 small, tied head", gpt2, TOKENS, 124_439_808, None, "released as 124 M"),
)


def measure(case: Case) -> tuple[Profile, int]:
    """Our profile, and the FLOPs that torch's counter gives for the same network."""
    with torch.device("meta"):
        model, example = case.build(), case.example()
    with FlopCounterMode(display=False) as counter:
        run(model, example)
    return profile(model, example), counter.get_total_flops()


def record(case: Case) -> dict[str, object]:
    cost, torch_flops = measure(case)
    return {
        "network": case.name,
        "input": list(case.shape),
        "published": {
            "parameters": case.parameters,
            "gmacs": case.gmacs,
            "source": case.source,
        },
        "parameters": cost.parameters,
        "gmacs": round(cost.macs / 1e9, 4),
        "gflops": round(cost.flops / 1e9, 4),
        "gmacs_of_torch_flop_counter": round(torch_flops / 2e9, 4),
        "activation_bound_mb": round(cost.activation_bound_bytes / 1e6, 3),
        "not_counted": list(cost.uncounted),
    }


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = [record(case) for case in CASES]
    for row in rows:
        print(f"{row['network']:36}{row['parameters']:>13,}{row['gmacs']:>9} GMACs")
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "device": "meta"}
    target = Path(__file__).parent / "results" / "profiles.json"
    target.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
