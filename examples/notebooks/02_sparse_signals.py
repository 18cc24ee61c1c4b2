# %% [markdown]
# # 2. Sparse signals and how to measure them
#
# **Question: a signal has N numbers. Can fewer than N measurements hold all of it?**
#
# A signal is *k-sparse* if at most k of its N entries are not zero. To describe it takes about 2k
# numbers: where the non-zeros are, and how large. That is the room which compressed sensing uses.

# %% alt="A signal of 256 entries, of which eight stand out from zero"
import math

import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import operators, sparse_signal

plt.style.use("notebooks.mplstyle")
N, k = 256, 8
x = sparse_signal(N, k, seed=1)

_, ax = plt.subplots(figsize=(7.5, 2.4))
ax.axhline(0, color="black", lw=1)
ax.vlines(np.flatnonzero(x), 0, x[x != 0], colors="C0")
ax.plot(np.flatnonzero(x), x[x != 0], "C0o")
ax.set(
    xlabel="index i",
    xlim=(-5, N + 5),
    ylabel="x[i]",
    title=f"A {k}-sparse signal of length N = {N}",
)
plt.show()

# %% [markdown]
# ## A measurement is a sum
#
# We do not look at single entries: most of them are zero, and looking at one of them mostly tells
# nothing. Instead each measurement is a weighted sum of *all* entries, and the weights are one
# row of the measurement matrix $A$ (m rows, N columns):
#
# $$y = A x, \qquad y_j = \sum_{i=1}^{N} A_{ji}\, x_i .$$
#
# Here the weights are random, Gaussian with variance 1/m, so that $\|Ax\|^2 = \|x\|^2$ on
# average.

# %% alt="y = A x drawn to scale: y has 64 rows, A 64 rows and 256 columns, x 256 rows of which eight are coloured"
m = 64
A = operators.gaussian(m, N, seed=2).to_dense()
y = A @ x

_, ax = plt.subplots(figsize=(7.5, 5.6))
places = {"y": (y[:, None], 0, 16), "A": (A, 44, 44 + N), "x": (x[:, None], 330, 346)}
for name, (values, left, right) in places.items():
    rows, columns = values.shape
    scale = np.abs(values).max()
    where = (left, right, rows, 0)  # one unit to each row, in all three
    ax.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, extent=where, interpolation="none")
    ax.add_patch(plt.Rectangle((left, 0), right - left, rows, fill=False, lw=0.8))
    ax.text((left + right) / 2, -4, f"{name}\n{rows} × {columns}", ha="center", va="bottom")
ax.text(30, m / 2, "=", fontsize=18, ha="center", va="center")
ax.text(315, m / 2, "·", fontsize=22, ha="center", va="center")
ax.text(44, m + 12, "red: positive, blue: negative, white: zero", va="top")
ax.set(xlim=(-4, 352), ylim=(N + 2, -34))
ax.axis("off")
plt.show()

# %% [markdown]
# ## Why m ≪ N can be enough
#
# $y = A x$ has m equations and N unknowns. With m < N there are infinitely many solutions, so
# linear algebra alone cannot tell which one is meant. Sparsity can:
#
# - Suppose two k-sparse signals gave the same y. Their difference is 2k-sparse and $A$ maps it to
#   zero, so some 2k columns of $A$ would be linearly dependent.
# - For a random Gaussian matrix any 2k ≤ m columns are independent (with probability one). So **m
#   = 2k measurements determine a k-sparse signal**, whatever N is.
#
# That settles what is *possible*. To find the signal that way one would have to try all supports,
# and there are far too many:

# %%
supports = math.comb(N, k)
years = supports * 10e-6 / (3600 * 24 * 365)
print(f"{supports:.1e} supports of {k} among {N}: at 10 µs for each, {years:.0f} years")

# %% [markdown]
# ## The way out: the smallest sum of absolute values
#
# Among all solutions of $Ax = y$, take the one with the least $\|x\|_1 = \sum |x_i|$. That is a
# linear program, solved in milliseconds. It asks for a few more measurements than 2k (of the
# order of $2k \log(N/k)$; notebook 4 has the exact figure), and still far fewer than N.

# %% alt="Three panels: the sparse signal; the least-squares solution, small everywhere and wrong; the L1 solution, the same as the signal"
found = lowrank.recover(A, y)
least_squares = np.linalg.pinv(A) @ y  # the solution with the least sum of squares

figure, axes = plt.subplots(3, 1, figsize=(7.5, 5.2), sharex=True, sharey=True)
rows = (
    (x, f"the signal, {k} non-zeros", "C0", "o"),
    (least_squares, "least sum of squares: fits y as well, and is wrong", "C2", "^"),
    (found.x, f"least sum of absolute values, from m = {m} of N = {N}", "C1", "s"),
)
for ax, (values, title, colour, marker) in zip(axes, rows, strict=True):
    shown = np.flatnonzero(np.abs(values) > 1e-9)
    ax.vlines(shown, 0, values[shown], colors=colour, lw=1)
    ax.plot(shown, values[shown], color=colour, marker=marker, ls="none", ms=4)
    ax.axhline(0, color="black", lw=0.6)
    ax.set(title=title, ylabel="x[i]")
axes[-1].set_xlabel("index i")
plt.show()

# %% [markdown]
# ## How many measurements?
#
# We draw 40 signals for each m and count how often they come back.


# %% alt="Share of signals recovered against the number of measurements: none below 24, all from 56 on, between the lines 2k and 2k ln(N/k)"
def share_recovered(m: int, trials: int = 40) -> float:
    """Share of random k-sparse signals that come back from m Gaussian measurements."""
    signals = np.stack([sparse_signal(N, k, seed=(m, t)) for t in range(trials)], axis=1)
    matrix = operators.gaussian(m, N, seed=m).to_dense()
    errors = np.linalg.norm(lowrank.recover(matrix, matrix @ signals).x - signals, axis=0)
    return float(np.mean(errors < 1e-4 * np.linalg.norm(signals, axis=0)))


sizes = [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64]
shares = [share_recovered(m) for m in sizes]

_, ax = plt.subplots()
ax.plot(sizes, shares, "C0o-", label="recovered by L1")
ax.axvline(2 * k, color="C1", ls="--", label=f"2k = {2 * k}: possible in principle")
ax.axvline(2 * k * math.log(N / k), color="C2", ls="-.", label="2k ln(N/k)")
ax.set(xlabel=f"measurements m (of N = {N})", ylabel="share of signals recovered", xlim=(0, 70))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# **Claim.** All N = 256 numbers come back from m = 64 random sums, to rounding error, while the
# smallest least-squares solution misses most of the signal.

# %%
size = np.linalg.norm(x)
assert np.linalg.norm(A @ least_squares - y) < 1e-10 * np.linalg.norm(y)
assert np.linalg.norm(least_squares - x) > 0.5 * size
assert np.linalg.norm(found.x - x) < 1e-8 * size
assert found.status.ok
assert shares[0] == 0
assert shares[-1] == 1
