"""Two demos of sparse recovery: a random sparse signal, and an electrocardiogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from lowrank.errors import InputError
from lowrank.sensing import bases, operators, recover
from lowrank.sensing.noise import noise_bound
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.phase_transition import l1_threshold
from lowrank.sensing.result import Recovery
from lowrank.sensing.signals import Kind, sparse_signal
from lowrank.sensing.solvers import Callback


@dataclass(frozen=True, eq=False)
class RecoveryDemo:
    """A signal, what was measured of it, and what came back.

    Attributes:
        truth: the signal (n,).
        measurements: y (m,).
        recovery: the answer and its certificate.
        remarks: figures that put the answer in its place, a sentence each.
        unit: of the signal.
    """

    truth: Array
    measurements: Array
    recovery: Recovery
    remarks: tuple[str, ...]
    unit: str = ""

    @property
    def error(self) -> float:
        """`||x - truth|| / ||truth||`."""
        return float(np.linalg.norm(self.recovery.x - self.truth) / np.linalg.norm(self.truth))

    @property
    def snr(self) -> float:
        """Signal to error in dB, `-20 log10(error)`."""
        return decibels(self.truth, self.recovery.x)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        own = {"m": int(self.measurements.size), "error": self.error, "snr_db": self.snr}
        return own | self.recovery.to_dict() | {"remarks": list(self.remarks)}

    def draw(self) -> Any:
        """Signal, measurements and recovery as a matplotlib figure."""
        return self.recovery.plot(self.truth, self.measurements, unit=self.unit)


def sparse(
    n: int = 400,
    m: int = 120,
    k: int = 20,
    *,
    noise: float = 0.0,
    kind: Kind = "gaussian",
    seed: int = 0,
    callback: Callback | None = None,
) -> RecoveryDemo:
    """Make a k-sparse signal, measure it by a Gaussian matrix, recover it.

    Args:
        n: length of the signal.
        m: number of measurements.
        k: number of non-zeros, 1 .. n.
        noise: norm of the noise as a share of that of the measurements, >= 0.
        kind: of the non-zeros, as in `sparse_signal`.
        seed: of signal, matrix and noise.
        callback: as in `recover`.

    Raises:
        InputError: a size below 1, k above n, negative noise.

    Example:
        >>> sparse(100, 50, 5).error < 1e-6
        True
    """
    if n < 1 or m < 1 or not 1 <= k <= n or not 0 <= noise < np.inf:
        text = f"n={n}, m={m}, k={k}, noise={noise}"
        raise InputError("demo", text, "pass n, m >= 1, k in 1..n and noise >= 0")
    rng = np.random.default_rng(seed)
    x = sparse_signal(n, k, seed=rng, kind=kind)
    A = operators.gaussian(m, n, seed=rng, dtype=x.dtype)
    clean = A @ x
    std = noise * float(np.linalg.norm(clean)) / np.sqrt(m)
    errors = rng.standard_normal(m) if x.dtype == float else _circular(rng, m)
    bound = noise_bound(std, m, is_complex=x.dtype != float)
    y = clean + std * errors
    found = recover(A, y, noise=bound or None, callback=callback)
    return RecoveryDemo(x, y, found, _limits(m, n, k, x.dtype == float))


def ecg(
    m: int = 256, *, wavelet: str = "sym5", seed: int = 0, callback: Callback | None = None
) -> RecoveryDemo:
    """Recover PyWavelets' electrocardiogram (1024 samples) from m random sums of its samples.

    Basis pursuit in a wavelet basis, with lighter weights at coarser scales.

    Args:
        m: number of measurements, 1 .. 1024; 256 is a quarter of the samples.
        wavelet: an orthogonal wavelet of PyWavelets.
        seed: of the Gaussian matrix.
        callback: as in `recover`.

    Raises:
        InputError: m out of range, or an unknown wavelet.

    Example:
        >>> ecg(256).snr > 20
        True
    """
    from pywt.data import ecg as samples

    x = np.asarray(samples(), dtype=float)
    n = x.size
    if not 1 <= m <= n:
        raise InputError("demo", f"{m} measurements are outside 1..{n}", "256 is a quarter")
    A, Psi = operators.gaussian(m, n, seed=seed), bases.wavelet(n, name=wavelet)
    y = A @ x
    found = recover(A, y, basis=Psi, weights=bases.scale_weights(Psi), callback=callback)
    return RecoveryDemo(x, y, found, _alternatives(x, A, y, Psi, m), unit="raw units")


def decibels(truth: Array, x: Array) -> float:
    """Signal to error `20 log10(||truth|| / ||truth - x||)`, in dB."""
    error = float(np.linalg.norm(x - truth))
    return float(20 * np.log10(np.linalg.norm(truth) / error)) if error else float(np.inf)


def _circular(rng: np.random.Generator, m: int) -> Array:
    return (rng.standard_normal(m) + 1j * rng.standard_normal(m)) / np.sqrt(2)


def _limits(m: int, n: int, k: int, is_real: bool) -> tuple[str, ...]:
    if m >= n or not is_real:
        return ()
    most = l1_threshold(m / n) * m
    where = "below" if k < most else "above"
    text = f"k = {k} is {where} the limit of L1 for long signals, {most:.0f} at m / n = {m / n:.3g}"
    return (text,)


def _alternatives(x: Array, A: Any, y: Array, Psi: Any, m: int) -> tuple[str, ...]:
    """What equal weights, and plain sampling at m places, would have given."""
    plain = decibels(x, recover(A, y, basis=Psi).x)
    remarks = [f"with equal weights at all scales: {plain:.1f} dB"]
    if m >= 4:
        at = np.linspace(0, x.size - 1, m).round().astype(int)
        spline = decibels(x, CubicSpline(at, x[at])(np.arange(x.size)))
        remarks.append(f"a cubic spline through {m} evenly spaced samples: {spline:.1f} dB")
    return tuple(remarks)
