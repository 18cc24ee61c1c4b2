# %% [markdown]
# # 11. Select channels
#
# **Question: which channels of a layer does the LASSO keep, and why are fewer wide steps faster
# than many small ones?**
#
# Low rank keeps every channel of a layer and computes it from fewer numbers. Selection drops whole
# channels: the layer that makes them, and the one that reads them, become narrower. The network is
# the ResNet-20 that comes with `lowrank` (Fashion-MNIST pictures: © 2017 Zalando SE, MIT licence).

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import lowrank
from lowrank.compression import accuracy, compare_latency
from lowrank.demos.bundled import fashion_mnist, resnet20
from lowrank.sensing import lasso_path

plt.style.use("notebooks.mplstyle")
torch.manual_seed(0)
model = resnet20()
images, _ = fashion_mnist("train")
few = images[:128]
test_images, test_labels = (part[::2] for part in fashion_mnist("test"))
rng = np.random.default_rng(0)

# %% [markdown]
# ## One layer and its reader
#
# In a block of the second stage `conv1` makes 32 channels, which `conv2` alone reads. Channel c adds
# its own part y_c to the output of `conv2`, and the whole output is the sum of 32 such parts. If
# channel c is scaled by b_c, the output becomes Σ b_c y_c. So a LASSO in b selects channels (He,
# Zhang and Sun 2017): it holds the sum close to the whole while it presses the scales to zero.
# A few thousand places of the output, drawn at random, tell enough.

# %%
block = model.get_submodule("stages.1.1")
seen = {}
handle = block.conv2.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
with torch.no_grad():
    model(few)
handle.remove()
n = seen["x"].shape[1]
patches = torch.nn.functional.unfold(seen["x"], 3, padding=1).movedim(1, 2).reshape(-1, 9 * n)
patches = patches[torch.randperm(len(patches))[:6000]].double().numpy()
patches -= patches.mean(0)  # a batch norm takes the mean
X, fresh = patches[:3000], patches[3000:]  # to fit on, and to look at
W = block.conv2.weight.detach().double().numpy().reshape(n, n, 9)  # (outputs, channels, taps)

parts = np.einsum("rck,ock->roc", X.reshape(-1, n, 9), W)  # of each channel, in each output
A = parts.reshape(-1, n)
y = A.sum(1)
print(f"A has {A.shape[0]:,} rows and {n} columns; y is their sum")

# %% [markdown]
# ## The path
#
# A large penalty allows no channel. As it falls, channels come in one after another. Those that
# come first are kept longest.

# %% alt="Scales of 32 channels along the path of the LASSO: a few rise early, most only near the end; beside it the order of entry against the size of each channel's part, large ones early, in another order"
gram = np.linalg.qr(A, mode="r")  # the same problem with as many rows as channels
path = lasso_path(gram, gram.sum(1), n_lams=80, smallest=0.05)
share = path.lams / path.lams[0]
entered = np.array([share[np.flatnonzero(b)].max(initial=0.0) for b in path.coefficients])
order = np.argsort(-entered)
size = np.linalg.norm(A, axis=0)

_, axes = plt.subplots(1, 2, figsize=(10.5, 3.9))
for c in range(n):
    first = c in order[:8]
    axes[0].plot(
        share, path.coefficients[c], color="C0" if first else "0.75", lw=1.6 if first else 0.8
    )
axes[0].set(
    xscale="log", xlabel="penalty / largest", ylabel="scale b of a channel", title="The path"
)
axes[0].invert_xaxis()
axes[1].scatter(
    size / size.max(), entered, color=np.where(np.isin(range(n), order[:8]), "C0", "0.6")
)
axes[1].set(xlabel="size of a channel's part, relative", ylabel="penalty at which it enters")
axes[1].set(yscale="log", title="Large ones early, in another order")
plt.show()
print("first eight channels:", ", ".join(map(str, order[:8])))

# %% [markdown]
# The blue channels enter first. Large ones tend to, yet the order is not that of size: a channel whose
# part resembles that of one that is in already has little to add, and enters later.
#
# ## What the order is worth
#
# Once the channels are chosen, the reader is fitted anew by least squares, so that those that stay
# make up for those that went. Below, the share of the output that is lost at places that the fit has
# not seen: in the order of the LASSO, by size, and by chance. In this layer, whose channels say
# different things, size does as well as the LASSO; what counts most is the fit.


# %% alt="Share of the output lost against channels kept: fitted anew, the orders of the LASSO and of size lie close together and below chance; without the fit the same channels lose several times as much"
def lost(kept: np.ndarray, refit: bool = True) -> float:
    """Share of the output that is lost with these channels alone."""
    columns = (9 * kept[:, None] + np.arange(9)).ravel()
    whole = W.reshape(n, -1).T
    reader = np.linalg.lstsq(X[:, columns], X @ whole, rcond=None)[0] if refit else whole[columns]
    wanted = fresh @ whole
    return float(np.square(wanted - fresh[:, columns] @ reader).sum() / np.square(wanted).sum())


counts = range(2, n, 2)
chance = rng.permutation(n)
orders = {"LASSO": order, "size": np.argsort(-size), "chance": chance}
curves = {name: [lost(o[:k]) for k in counts] for name, o in orders.items()}
bare = [lost(order[:k], refit=False) for k in counts]

_, ax = plt.subplots(figsize=(7, 4))
for (name, values), style in zip(curves.items(), ("-o", "--s", ":^"), strict=True):
    ax.plot(counts, values, style, ms=4, label=name)
ax.plot(counts, bare, "-", color="C0", alpha=0.4, label="LASSO, not fitted anew")
ax.set(xlabel=f"channels kept of {n}", ylabel="share of the output lost", yscale="log")
ax.legend()
plt.show()

# %% [markdown]
# ## The whole network
#
# `methods="select"` does this for all units at once, and spends the budget where it costs least.
# A residual stream is one unit: its channels go together in every block. At half of the MACs:

# %% alt="What stays of the layers that lost channels, bar by bar: the inner layers of blocks lose more than the streams"
narrow, report = lowrank.compress(
    model, few[:1], macs=0.5, data=few, methods="select", effort="quick"
)
thin, _ = lowrank.compress(
    model, few[:1], macs=0.5, data=few, methods="channel_svd", effort="quick"
)
outputs = {n: w.outputs for n, w in report.plan.narrowed.items() if w.outputs is not None}
stays = {n: 100 * len(kept.places) / kept.of for n, kept in outputs.items()}

_, ax = plt.subplots(figsize=(8, 4.4))
ax.barh(list(stays), list(stays.values()), color="C0", edgecolor="black", linewidth=0.5)
ax.set(xlabel="outputs that stay, %", xlim=(0, 100), title="Half of the MACs, by channels alone")
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
plt.show()
dense_accuracy = accuracy(model, test_images, test_labels)
scores = {"channels": accuracy(narrow, test_images, test_labels)}
scores["low rank"] = accuracy(thin, test_images, test_labels)
for name, value in scores.items():
    print(f"{name:9} {value:.1%} (dense {dense_accuracy:.1%})")

# %% [markdown]
# ## Fewer wide steps, or many small ones
#
# Low rank loses less at equal MACs: it may keep any combination of channels, selection only some of
# them as they are. But the clock counts steps, too. A layer of low rank becomes two layers, or four
# with a tensor train; each must be started, and the thin streams between them written and read; batch
# norms and activations stay as wide as they were. A narrower network has as many steps as before, and
# each of them, batch norms included, has less to do. (Figures of the machine this ran on; yours will
# differ.)

# %% tags=["timing"] alt="Time kept at half of the MACs against the number of convolutions: fewer channels, with as many as the dense network, take least; a tensor train, with most, takes longest"
train, _ = lowrank.compress(model, few[:1], macs=0.5, methods="tensor_train", effort="quick")
networks = {"fewer channels": narrow, "channel SVD": thin, "tensor train": train}
dense_time, *times = compare_latency([model, *networks.values()], test_images[:64], repeats=9)
kept = {k: 100 * t.median_ms / dense_time.median_ms for k, t in zip(networks, times, strict=True)}


def convolutions(network: torch.nn.Module) -> int:
    """How many there are to run, one after another."""
    return sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())


steps = {name: convolutions(network) for name, network in networks.items()}
_, ax = plt.subplots(figsize=(7.5, 2.6))
bars = ax.barh(list(kept), list(kept.values()), color=["C0", "C1", "C2"], edgecolor="black", lw=0.6)
ax.bar_label(bars, [f" {steps[name]} convolutions" for name in kept])
ax.axvline(100, color="black", ls=":", lw=1)
ax.set(xlabel="time of 64 pictures, % of the dense network's", xlim=(0, 170))
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# So: where storage or MACs are asked for, low rank; where the clock is, both. With
# `compress(latency=0.5, methods=["channel_svd", "select"])` the library tries them together on the
# clock.
#
# **Claim.** Half of this layer's channels, in the order of the LASSO and with the reader fitted anew,
# lose less of the output than channels drawn by chance, no more than a tenth more than by size, and
# less than half as much as the same channels with the reader as it was. At half of the MACs the
# narrower network runs as many convolutions as the dense one, the factorized ones many more.

# %%
half = n // 2
assert lost(order[:half]) < lost(chance[:half])
assert lost(order[:half]) < 1.1 * lost(np.argsort(-size)[:half])
assert lost(order[:half]) < 0.5 * lost(order[:half], refit=False)
assert report.kept("macs") <= 0.5
assert steps["fewer channels"] == convolutions(model)
assert steps["tensor train"] > steps["channel SVD"] > 1.5 * convolutions(model)
