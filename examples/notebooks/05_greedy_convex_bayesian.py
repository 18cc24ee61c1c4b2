# %% [markdown]
# # 5. Greedy, convex, Bayesian
#
# **Question: three families of methods recover a sparse signal. Which one for which job?**
#
# | family | asks | knows | example |
# |---|---|---|---|
# | greedy | add the best column, refit, repeat | the number k of non-zeros | OMP, CoSaMP |
# | convex | the least $\tfrac12\Vert Ax-y\Vert^2 + \lambda\Vert x\Vert_1$ | the noise level, through $\lambda$ | LASSO |
# | Bayesian | the mean of $p(x \mid y)$ under a sparse prior | that the matrix is random | AMP, VAMP |
#
# One problem for all of them: n = 400 unknowns, m = 200 Gaussian measurements, k non-zeros drawn
# from N(0, 1), and noise.

# %%
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import PosteriorMean, lam_max, operators, solve, sparse_signal

plt.style.use("notebooks.mplstyle")
n, m = 400, 200
Method = Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]


def draw(k: int, std: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix, a k-sparse signal and its measurements with noise of that standard deviation."""
    rng = np.random.default_rng(seed)
    A = operators.gaussian(m, n, seed=rng).to_dense()
    x = sparse_signal(n, k, seed=rng)
    return A, x, A @ x + std * rng.standard_normal(m)


def lasso(A: np.ndarray, y: np.ndarray, k: int, std: float) -> np.ndarray:
    """LASSO at lam = std sqrt(2 log n); basis pursuit where there is no noise."""
    if std == 0:
        return lowrank.recover(A, y).x
    return lowrank.recover(A, y, lam=std * np.sqrt(2 * np.log(n))).x


methods: dict[str, Method] = {
    "OMP": lambda A, y, k, std: lowrank.recover(A, y, sparsity=k, solver="omp").x,
    "CoSaMP": lambda A, y, k, std: lowrank.recover(A, y, sparsity=k, solver="cosamp").x,
    "LASSO": lasso,
    "Bayes AMP": lambda A, y, k, std: solve(PosteriorMean(A, y), "bg_amp").x,
}
markers = dict(zip(methods, "osD^", strict=True))


def error(found: np.ndarray, x: np.ndarray) -> float:
    """The relative error of the answer."""
    return float(np.linalg.norm(found - x) / np.linalg.norm(x))


# %% [markdown]
# ## The whole LASSO path at once
#
# $\lambda$ trades misfit against sparsity. At $\lambda_{\max} = \|A^T y\|_\infty$ the answer is
# zero; as it falls, coefficients enter one after another. True ones come first.

# %% alt="LASSO path: as the penalty falls, ten true coefficients leave zero first and the others follow, small"
A, x, y = draw(k=10, std=0.05, seed=7)
top = lam_max(A, y)
lams = top * np.logspace(0, -3, 30)
path = np.array([lowrank.recover(A, y, lam=lam).x for lam in lams])
chosen = 0.05 * np.sqrt(2 * np.log(n))

_, ax = plt.subplots(figsize=(7.5, 4))
true = np.flatnonzero(x)
ax.plot(lams, np.delete(path, true, axis=1), color="0.65", ls="-", lw=0.7)
ax.plot(lams, path[:, true], color="C0", ls="-")
ax.plot([], [], color="C0", ls="-", label="true non-zeros")
ax.plot([], [], color="0.65", ls="-", lw=0.7, label="all others")
ax.axvline(chosen, color="C1", ls="--", label="σ √(2 log n)")
ax.set(xscale="log", xlabel="penalty λ", ylabel="coefficient")
ax.invert_xaxis()
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# At the usual choice $\lambda = \sigma\sqrt{2\log n}$ hardly any false coefficient has entered,
# and the true ones are pulled towards zero by about $\lambda$: the price of the penalty. Least
# squares on the support (`debias=True`) gives it back.
#
# ## Accuracy against the number of non-zeros


# %% alt="Median error against the number of non-zeros without noise: OMP and CoSaMP break down at 68, LASSO at 80, Bayes AMP not up to 104"
def median_errors(ks: list[int], stds: list[float], trials: int = 5) -> dict[str, list[float]]:
    """Median relative error of every method at each pair of k and noise."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for k, std in zip(ks, stds, strict=True):
        drawn = [draw(k, std, seed=1000 * k + t) for t in range(trials)]
        for name, method in methods.items():
            errors = [error(method(A, y, k, std), x) for A, x, y in drawn]
            found[name].append(float(np.median(errors)))
    return found


ks = [8, 20, 32, 44, 56, 68, 80, 92, 104]
clean = median_errors(ks, [0.0] * len(ks))

_, ax = plt.subplots(figsize=(7.5, 4))
for name, errors in clean.items():
    ax.plot(ks, np.maximum(errors, 1e-16), marker=markers[name], label=name)
ax.axvline(lowrank.sensing.l1_threshold(m / n) * m, color="0.4", ls=":", label="exact limit of L1")
ax.axvline(lowrank.sensing.bayes_threshold(m / n) * m, color="0.4", ls="--", label="of Bayes AMP")
ax.set(yscale="log", xlabel=f"non-zeros k (n = {n}, m = {m})", ylabel="median relative error")
ax.set_title("Without noise")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The Bayesian method knows the most, that the entries are Gaussian and that the matrix is random,
# and it goes furthest. The convex method knows least and comes with a proof.
#
# ## Accuracy against noise

# %% alt="Median error against noise: all methods grow in proportion; LASSO lies five times above the others"
stds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2]
k = 32
noisy = median_errors([k] * len(stds), stds)


def told_the_support(std: float, seed: int) -> float:
    """Relative error of least squares by someone who knows where the non-zeros are."""
    A, x, y = draw(k, std, seed)
    best = np.zeros(n)
    best[x != 0] = np.linalg.lstsq(A[:, x != 0], y, rcond=None)[0]
    return error(best, x)


oracle = [np.median([told_the_support(std, 1000 * k + t) for t in range(5)]) for std in stds]

_, ax = plt.subplots(figsize=(7.5, 4))
for name, errors in noisy.items():
    ax.plot(stds, errors, marker=markers[name], label=name)
ax.plot(stds, oracle, color="black", ls=":", label="told the support")
ax.set(xscale="log", yscale="log", ylabel="median relative error")
ax.set(xlabel="standard deviation of each measurement's noise", title=f"k = {k}")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Everything is proportional to the noise, as it should be. LASSO pays for its shrinkage with a
# constant factor.
#
# ## Time
#
# Wall time of a single signal on this machine; the figures differ from one machine to another,
# the order hardly does.

# %% tags=["timing"]
A, x, y = draw(32, 0.01, seed=1)
for name, method in methods.items():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        method(A, y, 32, 0.01)
        times.append(time.perf_counter() - start)
    print(f"{name:10} {1000 * np.median(times):7.1f} ms")

# %% [markdown]
# ## An ill-conditioned matrix
#
# AMP's theory needs a matrix with independent entries. Here the rows of a Gaussian matrix are
# scaled from 1 down to 1/30. VAMP, made for row-orthonormal matrices, is then given the same
# information: any equations $A x = y$ may be multiplied by $R^{-1}$ from a QR factorization, and
# noise-free ones lose nothing by it.

# %%
A, x, _ = draw(32, 0.0, seed=5)
skewed = np.logspace(0, np.log10(1 / 30), m)[:, None] * A + 0.05  # and a common offset
y = skewed @ x
Q, R = np.linalg.qr(skewed.T)  # skewed = R^T Q^T
orthonormal = operators.from_matrix(Q.T, row_orthonormal=True)

amp = solve(PosteriorMean(skewed, y), "bg_amp")
vamp = solve(PosteriorMean(orthonormal, np.linalg.solve(R.T, y)), "vamp")
convex = lowrank.recover(skewed, y)
for name, found in (("AMP", amp), ("VAMP", vamp), ("basis pursuit", convex)):
    exact = "exact" if error(found.x, x) < 1e-6 else "wrong"
    print(f"{name:14} {found.status.name:10} {exact}")

# %% [markdown]
# **Claim.** Near the limit of L1 only the Bayesian method still recovers; with noise all errors
# grow in proportion to it; on a matrix that AMP was not made for, AMP fails and says so, while
# VAMP and basis pursuit are exact.

# %%
past = ks.index(92)
assert clean["Bayes AMP"][past] < 1e-6
assert min(clean[name][past] for name in ("OMP", "CoSaMP", "LASSO")) > 0.1
for errors in noisy.values():
    assert 5 < errors[2] / errors[0] < 20  # ten times the noise
for name, errors in noisy.items():
    assert errors[0] < (8 if name == "LASSO" else 2) * oracle[0]
assert not amp.status.ok
assert error(vamp.x, x) < 1e-6
assert error(convex.x, x) < 1e-6
assert convex.status.ok
