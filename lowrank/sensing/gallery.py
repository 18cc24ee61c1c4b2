"""A gallery of test problems with known answers, after Sparco, and the Shepp-Logan phantom.

Each function makes one `Example`: the problem to solve, and the signal and coefficients behind the
measurements. Default sizes are Sparco's. Sparco's data files (a photograph, a seismic section, ...)
are replaced by pictures drawn here, and its curvelets by cosines; those functions say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import bases, operators
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.problems.structured import total_variation


@dataclass(frozen=True, eq=False)
class Example:
    """A problem and the truth behind it.

    Attributes:
        name: as in Sparco, where it has one.
        problem: what to solve; `lowrank.sensing.solve(example.problem)`.
        signal: the true signal, (n,); pictures are flattened in C order.
        coefficients: the true coefficients in the basis, (p,); the signal itself without one.
        shape: of the signal, to draw it.
    """

    name: str
    problem: Problem
    signal: Array
    coefficients: Array
    shape: tuple[int, ...]

    @property
    def A(self) -> Operator:
        """The measurement operator, (m, n)."""
        return self.problem.A

    @property
    def y(self) -> Array:
        """The measurements, (m,)."""
        return np.asarray(self.problem.y)

    @property
    def basis(self) -> Operator | None:
        """The basis Psi with `signal = Psi coefficients`, or None."""
        return self.problem.synthesis

    def error(self, x: Array) -> float:
        """`||x - signal|| / ||signal||`."""
        return float(np.linalg.norm(x - self.signal) / np.linalg.norm(self.signal))


def blocksig(n: int = 1024) -> Example:
    """Sparco 2: Donoho and Johnstone's Blocks in the Haar basis, every sample measured.

    Args:
        n: length, a power of 2.

    Example:
        >>> blocksig(64).problem.operator.shape
        (64, 64)

    Source: van den Berg et al. 2009, problem 2; Donoho, Johnstone 1994, table 1.
    """
    at = (0.1, 0.13, 0.15, 0.23, 0.25, 0.4, 0.44, 0.65, 0.76, 0.78, 0.81)
    heights = (4.0, -5.0, 3.0, -4.0, 5.0, -4.2, 2.1, 4.3, -3.1, 2.1, -4.2)
    t = np.arange(1, n + 1) / n
    signal = np.asarray(sum(h * (t >= s) for h, s in zip(heights, at, strict=True)))
    Psi = bases.wavelet(n, name="haar")
    problem = BasisPursuit(bases.identity(n), signal, basis=Psi)
    return Example("blocksig", problem, signal, Psi.adjoint(signal), (n,))


def cosspike(n: int = 1024, k: int = 120, *, seed: int = 0) -> Example:
    """Sparco 3: two cosines and k Gaussian spikes in the union of the DCT and the identity.

    Args:
        n: length, at least 13.
        k: number of spikes.
        seed: of the spikes.

    Example:
        >>> cosspike(64, 5).problem.operator.shape
        (64, 128)

    Source: van den Berg et al. 2009, problem 3; Chen, Donoho, Saunders 1998.
    """
    c = np.concatenate([_cosines(n, {4: 4.0, 12: 2.0}), _spikes(n, k, seed)])
    return _pursuit("cosspike", bases.identity(n), _union(bases.dct(n)), c)


def zsinspike(n: int = 1024, k: int = 120, *, seed: int = 0) -> Example:
    """Sparco 4: complex sinusoids and k complex spikes in the union of Fourier and identity.

    Args:
        n: length, at least 13.
        k: number of spikes.
        seed: of the spikes.

    Example:
        >>> zsinspike(64, 5).problem.is_complex
        True

    Source: van den Berg et al. 2009, problem 4.
    """
    t = np.arange(n) / n
    waves = 4 * np.sin(4 * np.pi * t) + 3j * np.cos(12 * np.pi * t)
    of_waves = bases.fourier(n).adjoint(waves)
    of_waves[np.abs(of_waves) < 1e-9 * np.abs(of_waves).max()] = 0  # rounding of the transform
    spikes = _spikes(n, k, seed) + 1j * _spikes(n, k, seed + 1)
    spikes[_spikes(n, k, seed) == 0] = 0
    c = np.concatenate([of_waves, spikes])
    return _pursuit("zsinspike", bases.identity(n), _union(bases.fourier(n)), c)


def gcosspike(m: int = 300, n: int = 1024, k: int = 60, *, seed: int = 0) -> Example:
    """Sparco 5: three cosines and k Gaussian spikes, measured by a Gaussian matrix.

    Args:
        m: measurements.
        n: length, at least 21.
        k: number of spikes.
        seed: of spikes and matrix.

    Example:
        >>> gcosspike(30, 64, 3).problem.operator.shape
        (30, 128)

    Source: van den Berg et al. 2009, problem 5.
    """
    c = np.concatenate([_cosines(n, {3: 2.0, 9: 3.0, 20: -1.0}), _spikes(n, k, seed)])
    return _pursuit("gcosspike", operators.gaussian(m, n, seed=seed + 1), _union(bases.dct(n)), c)


def sgnspike(m: int = 600, n: int = 2560, k: int = 20, *, seed: int = 0) -> Example:
    """Sparco 7: k spikes of +-1, measured by a Gaussian matrix with orthonormal rows.

    Args:
        m: measurements.
        n: length.
        k: number of spikes.
        seed: of spikes and matrix.

    Example:
        >>> sgnspike(20, 64, 2).A.row_orthonormal
        True

    Source: van den Berg et al. 2009, problem 7; Candes, Romberg, Tao 2006.
    """
    x = np.sign(_spikes(n, k, seed))
    return _pursuit("sgnspike", _orthonormal_rows(operators.gaussian(m, n, seed=seed + 1)), None, x)


def zsgnspike(m: int = 600, n: int = 2560, k: int = 20, *, seed: int = 0) -> Example:
    """Sparco 8: k complex spikes of modulus 1, complex Gaussian matrix with orthonormal rows.

    Args:
        m: measurements.
        n: length.
        k: number of spikes.
        seed: of spikes and matrix.

    Example:
        >>> zsgnspike(20, 64, 2).problem.is_complex
        True

    Source: van den Berg et al. 2009, problem 8.
    """
    turns = np.exp(2j * np.pi * np.random.default_rng(seed + 2).random(n))
    x = np.abs(np.sign(_spikes(n, k, seed))) * turns
    A = operators.gaussian(m, n, seed=seed + 1, dtype=complex)
    return _pursuit("zsgnspike", _orthonormal_rows(A), None, x)


def jitter(n: int = 1000, k: int = 3, *, spacing: int = 5, seed: int = 0) -> Example:
    """Sparco 902: k cosines, sampled near every fifth point.

    Args:
        n: length.
        k: number of cosines.
        spacing: between the points of the grid, each of which is moved by at most half of it.
        seed: of cosines and samples.

    Example:
        >>> jitter(100, 2).problem.operator.shape
        (20, 100)

    Source: van den Berg et al. 2009, problem 902; Hennenfent, Herrmann 2007.
    """
    rng = np.random.default_rng(seed + 1)
    grid = np.arange(0, n, spacing)
    reach = (spacing - 1) // 2  # so that no two samples meet
    at = np.unique((grid + rng.integers(-reach, reach + 1, grid.size)) % n)
    return _pursuit("jitter", operators.sampling(n, at), bases.dct(n), _spikes(n, k, seed))


def spiketrn(n: int = 1024, k: int = 12, *, seed: int = 0) -> Example:
    """Sparco 903: k spikes, convolved with a truncated second derivative of a Gaussian.

    Args:
        n: length.
        k: number of spikes.
        seed: of the spikes.

    Example:
        >>> spiketrn(64, 3).problem.operator.shape
        (64, 64)

    Source: van den Berg et al. 2009, problem 903; Dossal, Mallat 2005.
    """
    rng = np.random.default_rng(seed)
    x = np.zeros(n)
    size = 0.1 + np.abs(rng.standard_normal(k))
    x[rng.permutation(n)[:k]] = rng.choice([-1.0, 1.0], k) * size
    u = np.linspace(-1, 1, n) / 0.05
    pulse = (u**2 - 1) * np.exp(-(u**2) / 2)
    pulse = pulse[round(0.456 * n) :]  # from the left one of the two positive lobes on
    taps = np.concatenate([np.zeros(n - 1), pulse / pulse[0], np.zeros(n - pulse.size)])
    A = operators.toeplitz(n, n, taps=taps).to_dense()  # small enough for the exact solvers
    return _pursuit("spiketrn", operators.from_matrix(A), None, x)


def blurspike(
    n: int = 64, *, share: float = 0.01, noise_std: float = 0.01, seed: int = 0
) -> Example:
    """Sparco 702: spikes of +-1 in a picture, averaged over 8 x 8 pixels, with noise.

    Args:
        n: side of the picture.
        share: of the pixels that hold a spike.
        noise_std: of each pixel's noise.
        seed: of spikes and noise.

    Example:
        >>> blurspike(16).shape
        (16, 16)

    Source: van den Berg et al. 2009, problem 702; Figueiredo, Nowak, Wright 2007. Deviation: the
    blur wraps around.
    """
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 0.0, 1.0], n * n, p=[share / 2, 1 - share, share / 2])
    A = operators.circular_convolution((n, n), np.full((8, 8), 1 / 64))
    noise = noise_std * rng.standard_normal(n * n)
    problem = BPDN(A, A.forward(x) + noise, float(np.linalg.norm(noise)))
    return Example("blurspike", problem, x, x, (n, n))


def blurry(n: int = 128, *, noise_std: float = np.sqrt(2) / 256, seed: int = 0) -> Example:
    """Like Sparco 701: a blurred picture, sparse in wavelets, with noise; penalised.

    Args:
        n: side of the picture, a multiple of 8.
        noise_std: of each pixel's noise.
        seed: of the noise.

    Example:
        >>> blurry(16).basis.orthonormal
        True

    Source: van den Berg et al. 2009, problem 701; Figueiredo, Nowak, Wright 2007 for the blur
    `1 / (1 + i^2 + j^2)`, -4 <= i, j <= 4. Deviation: the phantom in place of a photograph; the
    blur wraps around; lam is a tenth of the noise's standard deviation.
    """
    i = np.arange(-4.0, 5.0)
    blur = 1 / (1 + i[:, None] ** 2 + i**2)
    A = operators.circular_convolution((n, n), blur / blur.sum())
    picture, Psi = shepp_logan(n).ravel(), bases.wavelet(n, n, name="db2", level=3)
    noise = noise_std * np.random.default_rng(seed).standard_normal(n * n)
    problem = Lasso(A, A.forward(picture) + noise, noise_std / 10, basis=Psi)
    return Example("blurry", problem, picture, Psi.adjoint(picture), (n, n))


def seismic(
    rows: int = 256,
    traces: int = 250,
    *,
    missing: float = 0.35,
    noise: float = 0.01,
    seed: int = 0,
) -> Example:
    """Like Sparco 901: a seismic section of which some traces are missing.

    The section is drawn: Ricker pulses along eight hyperbolas.

    Args:
        rows: samples in time.
        traces: number of traces, columns of the picture.
        missing: share of the traces that were not recorded.
        noise: its norm over the measurements' norm, > 0.
        seed: of reflectors, missing traces and noise.

    Example:
        >>> seismic(32, 20).problem.operator.shape
        (416, 640)

    Source: van den Berg et al. 2009, problem 901; Hennenfent, Herrmann 2005. Deviation: drawn in
    place of recorded, with noise in place of none, and cosines in place of curvelets, in which such
    a section is less sparse.
    """
    rng = np.random.default_rng(seed)
    time, place = np.linspace(0, 1, rows)[:, None], np.linspace(-1, 1, traces)
    section = np.zeros((rows, traces))
    for depth, speed, strength in rng.uniform((0.1, 1.5, 0.3), (0.8, 4.0, 1.0), (8, 3)):
        arrival = np.sqrt(depth**2 + (place / speed) ** 2)
        a = (np.pi * 20 * (time - arrival)) ** 2  # a Ricker pulse of 20 periods a section
        section += strength * (1 - 2 * a) * np.exp(-a)
    kept = np.zeros((rows, traces), dtype=bool)
    kept[:, rng.permutation(traces)[round(missing * traces) :]] = True
    A, Psi = operators.sampling(section.size, kept.ravel()), bases.dct(rows, traces)
    signal = section.ravel()
    clean, e = A.forward(signal), rng.standard_normal(A.shape[0])
    epsilon = noise * float(np.linalg.norm(clean))
    problem = BPDN(A, clean + epsilon / np.linalg.norm(e) * e, epsilon, basis=Psi)
    return Example("seismic", problem, signal, Psi.adjoint(signal), section.shape)


def radial_phantom(n: int = 256, lines: int = 22) -> Example:
    """The Shepp-Logan phantom from radial lines of its Fourier transform, by total variation.

    Args:
        n: side of the picture.
        lines: number of lines over half a turn.

    Example:
        >>> radial_phantom(16, 4).problem.operator.shape[1]
        256

    Source: Candes, Romberg, Tao 2006, figure 1.
    """
    picture = shepp_logan(n).ravel()
    F = operators.partial_fourier((n, n), mask=operators.radial_mask((n, n), lines))
    A = operators.for_real_signals(F)
    problem = total_variation(A, A.forward(picture), (n, n))
    return Example("radial_phantom", problem, picture, picture, (n, n))


_ELLIPSES = (
    # grey, half axes a and b, centre x and y, angle in degrees
    (1.0, 0.69, 0.92, 0.0, 0.0, 0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0),
)


def shepp_logan(n: int) -> Array:
    """The Shepp-Logan head phantom, (n, n), in the modified contrast; values in [0, 1].

    Drawn from its ten ellipses at the centres of the pixels; row 0 is the top.

    Args:
        n: side, >= 1.

    Raises:
        InputError: n below 1.

    Example:
        >>> P = shepp_logan(64)
        >>> P.shape, float(P.min()), float(P.max().round(12))
        ((64, 64), 0.0, 1.0)

    Source: Shepp, Logan 1974, figure 1; grey values of Toft 1996, table B.3, whose contrast within
        the skull is ten times the original's.
    """
    if n < 1:
        raise InputError("shepp_logan", f"side {n} is below 1", "pass the number of pixels")
    t = (2 * np.arange(n) + 1 - n) / n
    x, y = t[None, :], -t[:, None]
    picture = np.zeros((n, n))
    for grey, a, b, x0, y0, degrees in _ELLIPSES:
        turn = np.deg2rad(degrees)
        u = (x - x0) * np.cos(turn) + (y - y0) * np.sin(turn)
        v = (y - y0) * np.cos(turn) - (x - x0) * np.sin(turn)
        picture[(u / a) ** 2 + (v / b) ** 2 <= 1] += grey
    return np.abs(picture.round(12))  # sums of tenths: no -0.0 and no 1e-17


GALLERY: dict[str, Callable[..., Example]] = {
    "blocksig": blocksig,
    "cosspike": cosspike,
    "zsinspike": zsinspike,
    "gcosspike": gcosspike,
    "sgnspike": sgnspike,
    "zsgnspike": zsgnspike,
    "jitter": jitter,
    "spiketrn": spiketrn,
    "blurspike": blurspike,
    "blurry": blurry,
    "seismic": seismic,
    "radial_phantom": radial_phantom,
}
"""Every problem of the gallery by name."""


def _pursuit(name: str, A: Operator, Psi: Operator | None, c: Array) -> Example:
    """Basis pursuit for exact measurements of `Psi c`."""
    signal = c if Psi is None else Psi.forward(c)
    problem = BasisPursuit(A, A.forward(signal), basis=Psi)
    return Example(name, problem, signal, c, signal.shape)


def _spikes(n: int, k: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    x = np.zeros(n)
    x[rng.permutation(n)[:k]] = rng.standard_normal(k)
    return x


def _cosines(n: int, amplitudes: dict[int, float]) -> Array:
    """DCT coefficients of cosines with these amplitudes at these frequencies."""
    c = np.zeros(n)
    for frequency, amplitude in amplitudes.items():
        c[frequency] = amplitude * np.sqrt(n / 2)
    return c


def _union(Psi: Operator) -> Operator:
    return bases.concatenation(Psi, bases.identity(Psi.shape[0]))


def _orthonormal_rows(A: Operator) -> Operator:
    Q = np.linalg.qr(A.to_dense().conj().T)[0]
    return operators.from_matrix(np.ascontiguousarray(Q.conj().T), row_orthonormal=True)
