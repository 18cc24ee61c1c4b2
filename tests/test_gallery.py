"""The gallery at reduced sizes: consistent, solved, certified, and recovered where that is due."""

import numpy as np
import pytest

from lowrank import recover
from lowrank.errors import InputError
from lowrank.sensing import (
    BPDN,
    BasisPursuit,
    Status,
    bases,
    limits,
    operators,
    solve,
    total_variation,
)
from lowrank.sensing.gallery import GALLERY, radial_phantom, shepp_logan

SMALL = {
    "blocksig": {"n": 128},
    "cosspike": {"n": 128, "k": 12},
    "zsinspike": {"n": 128, "k": 10},
    "gcosspike": {"m": 60, "n": 128, "k": 5},
    "sgnspike": {"m": 60, "n": 200, "k": 8},
    "zsgnspike": {"m": 60, "n": 200, "k": 8},
    "jitter": {"n": 200},
    "spiketrn": {"n": 128, "k": 5},
    "blurspike": {"n": 32},
    "blurry": {"n": 32},
    "seismic": {"rows": 32, "traces": 30},
    "radial_phantom": {"n": 64, "lines": 22},
}
NOISY = ("blurspike", "blurry", "seismic")
EXACT = 1e-6
"""Error of a signal that basis pursuit must find: the default gap is 1e-8."""


@pytest.mark.parametrize("name", GALLERY)
def test_measurements_come_from_the_truth(name):
    example = GALLERY[name](**SMALL[name])
    Psi, c = example.basis, example.coefficients
    assert np.allclose(c if Psi is None else Psi.forward(c), example.signal)
    off = np.linalg.norm(example.A.forward(example.signal) - example.y)
    # spikes spread over 64 pixels stand little above the noise of each
    assert off < (0.7 if name in NOISY else 1e-12) * np.linalg.norm(example.y)
    if isinstance(example.problem, BPDN):
        assert off <= example.problem.epsilon * (1 + 1e-9)  # the truth is feasible
    assert example.name == name
    assert np.prod(example.shape) == example.signal.size
    assert example.error(example.signal) == 0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", GALLERY)
def test_is_certified(name):
    example = GALLERY[name](**SMALL[name])
    result = solve(example.problem)
    assert result.status is Status.OPTIMAL, result
    assert max(result.gap, result.infeasibility) < 1e-8
    if name not in NOISY:
        assert example.error(result.x) < EXACT


def test_seeds_differ():
    one, other = (GALLERY["sgnspike"](20, 50, 3, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.signal, other.signal)
    assert not np.array_equal(one.A.to_dense(), other.A.to_dense())


def test_shepp_logan_is_toft_s():
    """Grey values at points that lie in one, two or three of the ellipses, in tenths."""
    P = shepp_logan(256)
    at = {(0.0, 0.0): 2, (0.0, 0.9): 10, (0.22, 0.0): 0, (0.0, 0.35): 3, (0.9, 0): 0}
    for (x, y), grey in at.items():
        assert P[int((1 - y) * 128), int((1 + x) * 128)] == pytest.approx(grey / 10), (x, y)
    with pytest.raises(InputError, match="side 0"):
        shepp_logan(0)


def test_phantom_from_radial_lines():
    example = radial_phantom(64, 22)
    found = solve(example.problem, tol=1e-4)
    assert found.status is Status.OPTIMAL
    assert example.error(found.x) < 1e-3
    assert example.error(example.A.adjoint(example.y)) > 0.3


@pytest.mark.parametrize("mean_measured", [True, False])
def test_circulant_steps_give_the_same_tv(mean_measured, monkeypatch):
    """With and without the spectra that precondition; the border does not wrap around."""
    monkeypatch.setattr(limits, "FORMED_ALWAYS", 0)  # a matrix needs no such steps
    mask = operators.variable_density_mask((12, 10), 40, seed=0)
    mask[0, 0] = mean_measured
    F = operators.partial_fourier((12, 10), mask=mask)
    y = F @ np.add.outer(np.arange(12.0), np.arange(10.0) // 4).ravel()
    plain = operators.from_functions(F.shape, F.forward, F.adjoint, dtype=complex, norm=1.0)
    kwargs = {"epsilon": 0.1, "shape": (12, 10)}
    fast, slow = (solve(total_variation(A, y, **kwargs), "admm") for A in (F, plain))
    assert fast.status is slow.status is Status.OPTIMAL
    assert fast.objective == pytest.approx(slow.objective, rel=1e-7)
    assert fast.n_products < slow.n_products / 2


def test_a_small_operator_is_formed_unless_its_steps_are_known():
    F = operators.partial_fourier((12, 10), m=40, seed=0)
    plain = operators.from_functions(F.shape, F.forward, F.adjoint, dtype=complex, norm=1.0)
    formed = []
    for A in (F, plain):
        problem = total_variation(A, np.ones(A.shape[0]), epsilon=0.1, shape=(12, 10))
        formed.append(limits.judged(problem, None)[0].operator.is_dense)
    assert formed == [False, True]


def test_gram_spectra_are_those_of_the_gram():
    for A in (
        operators.partial_fourier((6, 5), m=9, seed=0),
        operators.circular_convolution((6, 5), np.arange(6.0).reshape(2, 3)),
    ):
        values = np.linalg.eigvalsh(A.to_dense().conj().T @ A.to_dense())
        assert np.allclose(np.sort(A.gram_spectrum.ravel()), values)
    real = operators.for_real_signals(operators.partial_fourier((6, 5), m=9, seed=0))
    values = np.linalg.eigvalsh(real.to_dense().T @ real.to_dense())
    assert np.allclose(np.sort(real.gram_spectrum.ravel()), values)


def test_bad_kernel():
    with pytest.raises(InputError, match="no larger than the signal"):
        operators.circular_convolution(4, np.ones(5))


def test_scale_weights():
    Psi = bases.wavelet(8, 8, name="haar", level=2)
    weights = bases.scale_weights(Psi).reshape(-1)
    assert weights[:16].tolist() == [0.5] * 16  # atoms of 4 times the finest one's volume
    assert weights[16:].tolist() == [1.0] * 48
    assert bases.scale_weights(Psi, 0).tolist() == [1.0] * 64
    with pytest.raises(InputError, match="has no scales"):
        bases.scale_weights(bases.dct(8))
    with pytest.raises(InputError, match="growth"):
        bases.scale_weights(Psi, -1)
    overcomplete = bases.wavelet(77, name="db4", level=2, mode="symmetric")
    assert bases.scale_weights(overcomplete).shape == (overcomplete.shape[1],)


def test_scale_weights_recover_an_ecg_better():
    import pywt

    x = pywt.data.ecg().astype(float)
    Psi, A = bases.wavelet(1024, name="sym4", level=6), operators.gaussian(256, 1024, seed=0)
    plain = recover(A, A @ x, basis=Psi)
    weighted = recover(A, A @ x, basis=Psi, weights=bases.scale_weights(Psi))
    assert plain.status is weighted.status is Status.OPTIMAL
    error, better = (np.linalg.norm(x - f.x) / np.linalg.norm(x) for f in (plain, weighted))
    assert -20 * np.log10(better) > 18
    assert better < error


def test_weights_keep_the_problem():
    """Weights that are all equal change the objective and nothing else."""
    A = operators.gaussian(20, 32, seed=0)
    y = A @ np.eye(32)[3]
    one = solve(BasisPursuit(A, y))
    two = solve(BasisPursuit(A, y, weights=2.0))
    assert two.objective == pytest.approx(2 * one.objective)
    assert np.allclose(one.x, two.x)
