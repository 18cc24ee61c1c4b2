"""The shared matrix and tensor operations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.errors import InputError
from lowrank.linalg import (
    as_working,
    gram,
    khatri_rao,
    leading_eigenvectors,
    mode_product,
    relative_error,
    singular_value_threshold,
    sketched_eigenvectors,
    soft_threshold,
    unfold,
)

ROUNDING = 1e-12
"""float64 products of a few hundred terms of size 1: some hundred eps."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("given_dtype", "working"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_working_dtype(given_dtype, working):
    W = torch.ones(2, 3, dtype=given_dtype, requires_grad=True)
    result = as_working(W, "fc")
    assert result.dtype == working
    assert not result.requires_grad


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (torch.tensor([1.0, math.nan]), "fc: 1 of 2 values are NaN or Inf"),
        (torch.tensor([math.inf, -math.inf]), "fc: 2 of 2 values are NaN or Inf"),
        (torch.ones(2, dtype=torch.int64), "fc: got a torch.int64 tensor"),
        (torch.ones(2, dtype=torch.complex64), "fc: got a torch.complex64 tensor"),
        ([1.0], "fc: got list"),
        (torch.ones(0), "fc: shape (0,)"),
        (torch.tensor(1.0), "fc: shape ()"),
    ],
)
def test_bad_input_names_the_layer(W, message):
    with pytest.raises(InputError) as caught:
        as_working(W, "fc")
    assert str(caught.value).startswith(message)


def test_relative_error_of_zero():
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(zero, one) == math.inf
    assert relative_error(one, zero) == 1.0


def test_relative_error_refuses_to_broadcast():
    with pytest.raises(InputError, match="does not match"):
        relative_error(torch.ones(2, 2), torch.ones(2))


def test_relative_error_does_not_overflow_in_half():
    W = torch.full((100, 100), 6e4, dtype=torch.float16)
    assert relative_error(W, torch.zeros(100, 100)) == 1.0


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.data())
def test_mode_product_is_a_product_of_the_unfolding(shape, data):
    mode = data.draw(st.integers(0, len(shape) - 1))
    W, M = draw(*shape), draw(3, shape[mode], seed=1)
    result = mode_product(W, M, mode)
    torch.testing.assert_close(unfold(result, mode), M @ unfold(W, mode), rtol=0, atol=ROUNDING)


def test_khatri_rao_matches_the_unfolding():
    A, B, C = (draw(n, 2, seed=n) for n in (3, 4, 5))
    W = torch.einsum("ir,jr,kr->ijk", A, B, C)
    torch.testing.assert_close(unfold(W, 0), A @ khatri_rao([B, C]).T, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(unfold(W, 1), B @ khatri_rao([A, C]).T, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (2, 3, 7)])
def test_gram_is_on_the_short_side(shape):
    W = draw(*shape).float()
    S = gram(W)
    assert S.dtype == torch.float64
    assert S.shape[-2:] == (3, 3)
    expected = torch.linalg.svdvals(W.double()) ** 2
    values, vectors = leading_eigenvectors(S, 3)
    torch.testing.assert_close(values, expected, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(
        S @ vectors, vectors * values[..., None, :], rtol=0, atol=100 * ROUNDING
    )


@pytest.mark.parametrize("shape", [(129, 200), (300, 131), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_gram_matrix_by_blocks(shape, dtype):
    W = draw(*shape).to(dtype)
    S = gram(W, dtype=dtype)
    assert S.dtype == dtype
    assert torch.equal(S, S.T)
    expected = W @ W.T if shape[0] <= shape[1] else W.T @ W
    slack = 100 * torch.finfo(dtype).eps * max(shape)
    torch.testing.assert_close(S, expected, rtol=0, atol=slack)


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_finite_values_whose_sum_overflows_are_taken(value):
    W = torch.full((4, 5), value)
    assert torch.equal(as_working(W, "fc"), W)


def test_few_eigenvectors_are_the_leading_ones():
    """Large enough for the route that computes only a part of the spectrum."""
    W = draw(800, 900)
    few, vectors = leading_eigenvectors(W @ W.T, 5)
    torch.testing.assert_close(few, torch.linalg.svdvals(W)[:5] ** 2, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(
        vectors.T @ vectors, torch.eye(5, dtype=W.dtype), rtol=0, atol=ROUNDING
    )


def test_soft_threshold_minimises_its_objective():
    x, grid = torch.tensor(1.3), torch.linspace(-3, 3, 60001)
    best = grid[(0.5 * (grid - x) ** 2 + 0.8 * grid.abs()).argmin()]
    assert abs(float(best - soft_threshold(x, 0.8))) < 2e-4  # two grid steps


def test_singular_value_threshold_is_optimal():
    """The residual W - X lies in tau times the subdifferential of the nuclear norm at X."""
    W, tau = draw(6, 4), 1.0
    X, s = singular_value_threshold(W, tau)
    slope = (W - X) / tau
    assert float(torch.linalg.matrix_norm(slope, 2)) <= 1 + ROUNDING
    assert float((slope * X).sum()) == pytest.approx(float(s.sum()), rel=1e-10)


@pytest.mark.parametrize(("decay", "share"), [(0.0, 0.85), (0.7, 0.97), (2.0, 1 - 1e-6)])
def test_a_sketch_holds_nearly_all_that_the_top_of_a_spectrum_does(decay, share):
    S = gram(torch.arange(1.0, 201)[:, None] ** -decay * draw(200, 1200))
    values, vectors = sketched_eigenvectors(S, 25)
    best = leading_eigenvectors(S, 25)[0]
    assert share * best.sum() <= values.sum() <= best.sum() * (1 + ROUNDING)
    assert (values <= best * (1 + ROUNDING)).all()
    assert torch.allclose(vectors.T @ vectors, torch.eye(25).double(), atol=ROUNDING)
    assert torch.allclose((vectors * (S @ vectors)).sum(0), values)  # Rayleigh quotients
