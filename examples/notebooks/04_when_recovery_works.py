# %% [markdown]
# # 4. When does recovery work?
#
# **Question: can one tell from the matrix, before measuring, which signals will come back?**
#
# Three answers, from the cheapest and most cautious to the exact one:
#
# 1. **Coherence** $\mu$: the largest cosine between two columns. If $k < (1 + 1/\mu)/2$, *every*
#   k-sparse signal comes back. Easy to compute, very cautious.
# 2. **Restricted isometry** $\delta_{k}$: how far any k columns are from orthonormal. If
#   $\delta_{2k} < 1/\sqrt 2$, every k-sparse signal comes back. Sharper, and NP-hard to compute:
#   sampling supports gives a *lower* bound only, so a sample can refute the condition and never
#   prove it.
# 3. **The phase transition**: for large Gaussian matrices, *almost every* k-sparse signal comes
#   back below an exactly known curve, and almost none above it.

# %%
import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import (
    babel,
    l1_threshold,
    mutual_coherence,
    operators,
    restricted_isometry,
    sparse_signal,
)
from lowrank.sensing.phase_transition import phase_transition

plt.style.use("notebooks.mplstyle")
n, m = 128, 64
rng = np.random.default_rng(0)
columns = np.arange(n)


def unit_columns(A: np.ndarray) -> np.ndarray:
    """The matrix with every column scaled to length 1."""
    return A / np.linalg.norm(A, axis=0)


low_rows = np.cos(np.pi * np.outer(np.arange(m), columns + 0.5) / n)
matrices = {
    "Gaussian": operators.gaussian(m, n, seed=1).to_dense(),
    "64 random rows of a DCT": operators.partial_dct(n, m=m, seed=1).to_dense(),
    "the 64 lowest rows of a DCT": low_rows,
}
matrices = {name: unit_columns(A) for name, A in matrices.items()}

# %% [markdown]
# The third matrix is the unlucky one. Its rows are as good as those of the second, and there are
# as many; but they are all slow cosines, so neighbouring columns are nearly the same. It is what
# a low-pass filter or a blurred camera does.

# %% alt="Cumulative coherence of three matrices against the number of columns; all pass one after two to four columns"
print(f"{'matrix':30} coherence   sure for k ≤   RIP of order 8, at least")
for name, A in matrices.items():
    mu = mutual_coherence(A)
    sure = int(np.ceil((1 + 1 / mu) / 2) - 1)
    rip = restricted_isometry(A, 8, samples=3000)
    print(f"{name:30} {mu:9.3f} {sure:14d} {rip.constant:26.2f}")

_, ax = plt.subplots()
for (name, A), marker in zip(matrices.items(), "os^", strict=True):
    sums = babel(A, 12)
    ax.plot(np.arange(1, len(sums) + 1), sums, marker=marker, label=name)
ax.axhline(1, color="black", lw=0.8, ls=":")
ax.set(xlabel="number of other columns", ylabel="sum of largest |cosines|", ylim=(0, 4))
ax.set_title("How much k columns can resemble one other (cumulative coherence)")
ax.legend()
plt.show()

# %% [markdown]
# Coherence vouches for one or two non-zeros only. To vouch for k = 4, the restricted isometry
# constant of order 8 would have to be below $1/\sqrt2 \approx 0.71$: the sample refutes that for
# two of the matrices and leaves it open for the third. By these standards even the Gaussian
# matrix is nearly hopeless. But both speak of the *worst* signal. What happens to an ordinary
# one?


# %% alt="Share recovered against the number of non-zeros: Gaussian and random DCT rows fall at the exact limit of 24.7, the lowest rows of the DCT long before"
def share_recovered(A: np.ndarray, k: int, trials: int = 50) -> float:
    """Share of random k-sparse signals that come back."""
    X = np.stack([sparse_signal(n, k, seed=(k, t)) for t in range(trials)], axis=1)
    errors = np.linalg.norm(lowrank.recover(A, A @ X).x - X, axis=0)
    return float(np.mean(errors < 1e-4 * np.linalg.norm(X, axis=0)))


ks = np.array([1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40])
shares = {name: [share_recovered(A, k) for k in ks] for name, A in matrices.items()}
limit = l1_threshold(m / n) * m

_, ax = plt.subplots()
for (name, share), marker in zip(shares.items(), "os^", strict=True):
    ax.plot(ks, share, marker=marker, label=name)
ax.axvline(limit, color="black", lw=0.9, ls=":", label=f"exact limit, k = {limit:.1f}")
ax.set(xlabel=f"non-zeros k (n = {n}, m = {m})", ylabel="share recovered")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The Gaussian and the random DCT matrix recover about ten times as many non-zeros as coherence
# vouches for, and both break down at the same place: where the exact curve says. The unlucky
# matrix breaks down long before: two spikes side by side look alike to it.
#
# ## The exact curve
#
# For Gaussian matrices, as n grows with $\delta = m/n$ and $\rho = k/m$ fixed, the share that is
# recovered jumps from 1 to 0 at (Donoho and Tanner)
#
# $$g(z) = (1+z^2)\Phi(-z) - z\varphi(z), \quad \rho(\delta) = \max_z \frac{1 - 2g(z)/\delta}{1 + z^2 - 2g(z)}$$
#
# We measure it at a modest n, over the whole plane, from 10 trials a point:

# %% alt="A filled map over m/n and k/m: recovery succeeds below the Donoho-Tanner curve and fails above it"
deltas = np.linspace(0.2, 0.9, 12)
rhos = np.linspace(0.06, 0.94, 16)
result = phase_transition(deltas, rhos, n=100, trials=10, seed=0)
result.plot()
plt.show()

# %%
exact = np.array([l1_threshold(d) for d in result.deltas])
measured = result.threshold()
print("m/n      " + "  ".join(f"{d:.2f}" for d in result.deltas))
print("exact    " + "  ".join(f"{r:.2f}" for r in exact))
print("measured " + "  ".join(f"{r:.2f}" for r in measured))

# %% [markdown]
# At n = 100 the jump is a slope, and its middle already lies on the curve.
#
# **Claim.** The measured transition is within 0.05 of the Donoho-Tanner curve; a random DCT does
# as well as a Gaussian matrix; the lowest rows of the same DCT recover less than half as many
# non-zeros.

# %%
assert np.abs(measured - exact).max() < 0.05
gaussian, random_dct, unlucky = (np.array(s) for s in shares.values())
at = ks <= 16
assert gaussian[at].min() >= 0.98
assert random_dct[at].min() >= 0.98
assert unlucky[ks >= 12].max() < 0.5 < min(gaussian[ks <= 24].min(), random_dct[ks <= 24].min())
