"Properties of the estimator and of the SVGD step."

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meco_nb.dro import gaussian_kernel, svgd_step
from meco_nb.kd import kl_divergence, recover_logits
from meco_nb.zeroth_order import estimate_gradient

sizes = st.integers(2, 12)
seeds = st.integers(0, 10_000)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@given(sizes, sizes, seeds, st.sampled_from([None, 0.5, 3.0]))
def test_the_kernel_is_symmetric_and_positive_semidefinite(n, d, seed, bandwidth):
    K, variance = gaussian_kernel(normal(n, d, seed=seed), bandwidth)
    assert torch.allclose(K, K.T) and torch.allclose(K.diagonal(), torch.ones(n).double())
    assert torch.linalg.eigvalsh(K).min() > -1e-9 and variance > 0


@settings(deadline=None)
@given(sizes, sizes, seeds, st.booleans(), st.floats(0.5, 5))
def test_the_svgd_step_equals_its_double_loop(n, d, seed, repel, sigma):
    x, grad = normal(n, d, seed=seed), normal(n, d, seed=seed + 1)
    expected, sign = x.clone(), 1 if repel else -1
    for i in range(n):
        for j in range(n):
            k = torch.exp(-(x[i] - x[j]).square().sum() / (2 * sigma**2))
            gradient_of_k = k * (x[i] - x[j]) / sigma**2
            expected[i] -= 0.3 / n * (k * grad[j] - sign * gradient_of_k)
    assert torch.allclose(svgd_step(x, grad, 0.3, sigma, repel), expected, atol=1e-8)


def test_one_particle_follows_its_gradient():
    x, grad = normal(1, 3, 4, 4, seed=0), normal(1, 3, 4, 4, seed=1)
    assert torch.allclose(svgd_step(x, grad, 0.5), x - 0.5 * grad)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), seeds)
def test_the_estimate_is_right_on_quadratics(d, seed):
    "Central differences of a quadratic have no bias: many directions find the gradient."
    A, x = normal(d, d, seed=seed), normal(3, d, seed=seed + 1)

    def quadratic(x):
        return (x @ A * x).sum(1)

    truth, random = x @ (A + A.T), torch.Generator().manual_seed(seed)
    estimate = estimate_gradient(quadratic, x, 4000, 0.5, random, central=True)
    assert torch.linalg.vector_norm(estimate - truth) < 0.15 * torch.linalg.vector_norm(truth)


@given(sizes, seeds)
def test_logits_come_back_up_to_their_mean(k, seed):
    logits = 3 * normal(5, k, seed=seed)
    recovered = recover_logits(logits.softmax(-1), floor=1e-30)
    assert torch.allclose(recovered, logits - logits.mean(-1, keepdim=True), atol=1e-8)


@given(sizes, seeds)
def test_kl_is_not_negative_and_zero_for_the_same(k, seed):
    p, logits = normal(4, k, seed=seed).softmax(-1), normal(4, k, seed=seed + 1)
    assert kl_divergence(p, logits).min() >= -1e-12
    assert kl_divergence(p, p.log()).abs().max() < 1e-12
