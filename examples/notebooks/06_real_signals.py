# %% [markdown]
# # 6. Real signals
#
# **Question: a heartbeat and a photo are not sparse. Can they be recovered from few measurements
# all the same?**
#
# They are sparse *in another basis*: $x = \Psi c$ with few large entries in c. Whatever the
# basis, the recipe stays the same: measure sums, then look for the smallest $\|c\|_1$ that
# explains them.
#
# ## An electrocardiogram in wavelets
#
# 1024 samples (the ECG that comes with PyWavelets), measured by 256 random sums.

# %% alt="An electrocardiogram, and its sorted coefficients: in wavelets they fall by a hundred after 100 coefficients, in samples hardly"
import matplotlib.pyplot as plt
import numpy as np
import pywt
from scipy.linalg import hadamard

import lowrank
from lowrank.sensing import bases, gallery, operators, solve, total_variation

plt.style.use("notebooks.mplstyle")


def decibels(truth: np.ndarray, found: np.ndarray) -> float:
    """Signal to error, 20 log10(||x|| / ||x - x'||)."""
    return float(20 * np.log10(np.linalg.norm(truth) / np.linalg.norm(truth - found)))


ecg = pywt.data.ecg().astype(float)
Psi = bases.wavelet(ecg.size, name="sym4", level=6)
c = np.sort(np.abs(Psi.adjoint(ecg)))[::-1]
kept = np.cumsum(c**2) / np.sum(c**2)
print(
    f"99.9 % of the energy lies in {np.argmax(kept > 0.999) + 1} of {c.size} wavelet coefficients"
)

figure, axes = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(2, 1))
axes[0].plot(ecg, lw=1)
axes[0].set(xlabel="sample", ylabel="ECG (raw units)")
axes[1].semilogy(c / c[0], label="in wavelets")
axes[1].semilogy(np.sort(np.abs(ecg))[::-1] / np.abs(ecg).max(), label="in samples")
axes[1].set(xlabel="rank of the coefficient", ylabel="size / largest", ylim=(1e-4, 1.5))
axes[1].legend()
plt.show()

# %% [markdown]
# Coarse wavelets carry larger coefficients than fine ones, and the L1 norm may be told so:
# `scale_weights` makes the coarse ones cheaper.

# %% alt="The electrocardiogram recovered from 256 sums lies on the true one; the error with weights by scale is half of that with equal weights"
A = operators.gaussian(256, ecg.size, seed=0)
equal = lowrank.recover(A, A @ ecg, basis=Psi)
scaled = lowrank.recover(A, A @ ecg, basis=Psi, weights=bases.scale_weights(Psi))

figure, axes = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True)
axes[0].plot(ecg, color="0.6", ls="-", lw=3, label="ECG")
axes[0].plot(scaled.x, "C1-", lw=1, label=f"from 256 sums, {decibels(ecg, scaled.x):.1f} dB")
axes[1].plot(equal.x - ecg, "C0-", lw=0.8, label=f"equal weights, {decibels(ecg, equal.x):.1f} dB")
axes[1].plot(scaled.x - ecg, "C1-", lw=0.8, label=f"by scale, {decibels(ecg, scaled.x):.1f} dB")
axes[0].set(ylabel="ECG (raw units)")
axes[1].set(xlabel="sample", ylabel="error (raw units)")
for ax in axes:
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## A picture from a few lines of its Fourier transform
#
# A magnetic resonance scanner measures the Fourier transform of a picture, line by line, and
# every line takes time. The phantom is not sparse, but its *gradient* is: it is constant in
# patches. So minimise the total variation, the sum of the lengths of the gradient:
#
# $$\min_x \sum_i \lVert (\nabla x)_i \rVert_2 \quad \text{subject to the measured Fourier coefficients.}$$

# %% alt="The phantom, the 22 lines measured in its Fourier transform, the blurred picture with the rest as zero, and the exact one by total variation"
n, lines = 96, 20
phantom = gallery.radial_phantom(n, lines)
mask = operators.radial_mask((n, n), lines)
zero_filled = phantom.A.adjoint(phantom.y).real
found = solve(phantom.problem)

pictures = {
    "the phantom": phantom.signal,
    f"measured: {100 * mask.mean():.0f} % of the\nfrequencies": np.fft.fftshift(mask).ravel(),
    f"the rest taken as zero:\nerror {100 * phantom.error(zero_filled):.0f} %": zero_filled,
    "least total variation:\nexact to 6 digits": found.x,
}
figure, axes = plt.subplots(1, 4, figsize=(10, 3))
for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
    ax.imshow(np.reshape(picture, (n, n)), vmin=0, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## A camera with one pixel
#
# A mirror array shows one pattern after another, and a single detector measures the sum of the
# light that passes: each number is the product of the scene with one pattern. The patterns are
# rows of a Walsh-Hadamard matrix, black and white only: the slowest ones, and others at random.
# The scene is a public-domain photo (PyWavelets' `ascent`), 128 × 128 pixels.

# %% alt="A photo of 128 by 128 pixels, and what comes back from 20, 40 and 60 % as many numbers, sharper each time"
photo = pywt.data.ascent().astype(float)
scene = photo.reshape(128, 4, 128, 4).mean(axis=(1, 3)) / 255
side, pixels = 128, scene.size

changes = (np.diff(hadamard(side), axis=1) != 0).sum(axis=1)  # of sign, along each row
frequency = np.hypot(*np.meshgrid(changes, changes, indexing="ij")).ravel()


def patterns(m: int, seed: int = 0) -> np.ndarray:
    """m rows: those of lowest frequency first, the others at random, rarer the faster they are."""
    keys = np.random.default_rng(seed).exponential(size=pixels)
    return np.argsort(np.where(frequency < 16, 0, keys * frequency**2))[:m]


def camera(m: int) -> np.ndarray:
    """The scene from m numbers, by total variation."""
    H = operators.partial_hadamard(pixels, rows=patterns(m))
    y = H @ scene.ravel()
    return solve(total_variation(H, y, (side, side), epsilon=0.002 * np.linalg.norm(y)), tol=1e-3).x


shares = (0.2, 0.4, 0.6)
taken = {share: camera(int(share * pixels)).reshape(side, side) for share in shares}

figure, axes = plt.subplots(2, 2, figsize=(7.5, 8))
axes = axes.ravel()
axes[0].imshow(scene, vmin=0, vmax=1)
axes[0].set_title(f"the scene, {pixels} pixels", fontsize=10)
for ax, (share, picture) in zip(axes[1:], taken.items(), strict=True):
    ax.imshow(picture, vmin=0, vmax=1)
    quality = decibels(scene, picture)
    ax.set_title(f"{100 * share:.0f} % as many numbers\n{quality:.1f} dB", fontsize=10)
for ax in axes:
    ax.axis("off")
plt.show()

# %% [markdown]
# A photo is only *nearly* sparse: its quality grows with the number of measurements and is never
# exact, unlike the phantom's.
#
# **Claim.** The ECG comes back from a quarter as many sums as samples at more than 20 dB; the
# phantom from a fifth of its frequencies, exactly; the photo gets better with every pattern.

# %%
assert equal.status.ok
assert scaled.status.ok
assert decibels(ecg, scaled.x) > 20
assert decibels(ecg, scaled.x) > decibels(ecg, equal.x)
assert mask.mean() < 0.21
assert phantom.error(found.x) < 1e-6
assert phantom.error(zero_filled) > 0.3
quality = [decibels(scene, taken[share]) for share in shares]
assert quality == sorted(quality)
assert quality[1] > 18
