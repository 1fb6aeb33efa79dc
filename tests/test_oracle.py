"The border holds for any order of questions."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meco_nb.oracle import Averaged, BudgetExceeded, HardLabels, Oracle
from meco_nb.randomness import Randomness


def answer(images):
    return torch.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], -1)


@given(st.integers(0, 50), st.lists(st.integers(1, 20), max_size=12), st.integers(1, 7))
def test_never_one_query_too_many(budget, batches, chunk):
    oracle, answered = Oracle(answer, budget, chunk_size=chunk), 0
    for size in batches:
        before = oracle.used
        try:
            oracle(torch.rand(size, 1, 2, 2), 'some' if size % 2 else 'other')
            answered += size
        except BudgetExceeded:
            assert size > budget - before and oracle.used == before
    assert oracle.used == answered == sum(oracle.ledger.values()) <= budget


@given(st.integers(1, 5), st.integers(0, 30))
def test_averaging_costs_what_it_asks(n, budget):
    oracle = Oracle(answer, budget)
    averaged = Averaged(oracle, n)
    if averaged.remaining:
        averaged(torch.rand(averaged.remaining, 1, 2, 2))
    assert oracle.used == budget // n * n and averaged.remaining == 0


def test_wrappers_compose():
    images = torch.rand(4, 1, 2, 2)
    for wrapped in (
        HardLabels(Averaged(Oracle(answer, 100), 3)),
        Averaged(HardLabels(Oracle(answer, 100)), 3),
    ):
        assert (
            torch.equal(wrapped(images).argmax(-1), answer(images).argmax(-1))
            and wrapped.used == 12
        )


@pytest.mark.parametrize(
    'images',
    [
        torch.rand(2, 1, 3, 3),
        torch.rand(1, 2, 2),
        torch.rand(0, 1, 2, 2),
        torch.full((1, 1, 2, 2), torch.nan),
        torch.full((1, 1, 2, 2), torch.inf),
        torch.ones(1, 1, 2, 2).long(),
        [[0.0]],
    ],
)
def test_what_is_not_an_image_costs_nothing(images):
    oracle = Oracle(answer, 10, shape=(1, 2, 2))
    with pytest.raises((TypeError, ValueError), match='images must'):
        oracle(images)
    assert oracle.used == 0


def test_the_defense_is_asked_in_eval_mode_and_without_gradients():
    class Defense(torch.nn.Module):
        def forward(self, images):
            assert not self.training and not torch.is_grad_enabled()
            return answer(images)

    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    assert not Oracle(Defense().train(), 10)(images).requires_grad


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64), st.integers(0, 7), st.integers(0, 15))
def test_one_bit_of_key_or_level_of_a_pixel_changes_keyed_noise(key, bit, pixel):
    images = torch.linspace(0.1, 0.9, 16).mul(255).round().div(255).view(1, 1, 4, 4)
    noise = Randomness('keyed', key).normal(images)
    assert torch.equal(Randomness('keyed', key).normal(images), noise)
    other = bytes([key[0] ^ 1 << bit]) + key[1:]
    assert not torch.equal(Randomness('keyed', other).normal(images), noise)
    changed = images.clone().view(-1)
    changed[pixel] += 0.4 / 255  # not a level
    assert torch.equal(Randomness('keyed', key).normal(changed.view(1, 1, 4, 4)), noise)
    changed[pixel] += 0.6 / 255
    assert not torch.equal(Randomness('keyed', key).normal(changed.view(1, 1, 4, 4)), noise)
