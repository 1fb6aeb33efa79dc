"What every variant of MeCo promises."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meco_nb.ablations import ROWS
from meco_nb.defenses.meco import MeCoPlain
from meco_nb.defenses.perturbation import RandomFilters, rms
from meco_nb.methods import DEFENSES
from meco_nb.models import build_model
from meco_nb.parties import SplitOracle
from meco_nb.settings import resolve, run_name
from meco_nb.studies import row_settings

NAMES = [name for name in DEFENSES if name.startswith('meco')]


@pytest.fixture(scope='module', params=NAMES)
def defense(request, victim):
    return DEFENSES[request.param](victim, seeding='keyed', key=b'k').eval()


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 9),
    kind=st.sampled_from(['uniform', 'black', 'white', 'bits']),
)
def test_answers_are_probabilities_and_independent_of_the_batch(defense, seed, count, kind):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = dict(uniform=images, black=0 * images, white=0 * images + 1, bits=images.round())[kind]
    answers = defense(images)
    assert (
        answers.isfinite().all()
        and answers.min() >= 0
        and torch.allclose(answers.sum(-1), torch.ones(count), atol=1e-5)
    )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(defense(images[order]), answers[order], atol=1e-4)
    assert torch.allclose(torch.cat([defense(image[None]) for image in images]), answers, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(['learned', 'odd', 'frozen', 'gaussian', 'filters']),
    strength=st.floats(0.01, 1),
)
def test_a_perturbation_has_the_size_that_it_was_given(victim, seed, kind, strength):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    meco = MeCoPlain(victim, width=8, strength=strength, kind=kind, seeding=seed)
    with torch.no_grad():
        h = meco.perturb(images) - images
    assert torch.allclose(rms(h), torch.tensor(strength), rtol=1e-3)


def test_only_a_learned_perturbation_learns(digits, victim):
    for kind, changes in dict(learned=True, odd=True, frozen=False).items():
        meco = MeCoPlain(victim, width=8, kind=kind)
        before = torch.cat([p.flatten() for p in meco.h.parameters()])
        meco.fit(digits, epochs=1)
        assert torch.equal(before, torch.cat([p.flatten() for p in meco.h.parameters()])) != changes


def test_training_is_repeatable_and_leaves_the_original_alone(digits, victim):
    before = torch.cat([p.flatten() for p in victim.parameters()])
    weights = [
        torch.cat(
            [p.flatten() for p in MeCoPlain(victim, width=8).fit(digits, epochs=1).parameters()]
        )
        for _ in range(2)
    ]
    assert torch.equal(*weights) and torch.equal(
        before, torch.cat([p.flatten() for p in victim.parameters()])
    )


def test_it_defends_a_model_with_batch_norm_and_colour(digits):
    problem = type('Problem', (), dict(shape=(3, 32, 32), num_classes=7))
    for name in NAMES:
        victim = build_model('lenet5', problem, batch_norm=True)
        assert DEFENSES[name](victim)(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_filters_of_the_released_code_have_their_sizes():
    assert RandomFilters(3).noise_shape((3, 32, 32)) == (2 * (2 * 3 + 2 * 2 * 9 + 3 * 2),)


def test_the_split_oracle_defends_one_purpose(victim, digits):
    meco, images = MeCoPlain(victim, width=8, strength=0.5, seeding=0), digits.test.tensors[0][:16]
    oracle = SplitOracle(meco, 'clone', 100)
    assert torch.equal(oracle(images, 'generator'), oracle(images, 'generator'))
    assert not torch.equal(oracle(images, 'clone'), oracle(images, 'clone'))
    assert oracle.ledger == dict(generator=32, clone=32) and set(
        oracle.state_dict()['serving']
    ) == {'randomness._extra_state'}


def test_rows_of_the_ablations_differ():
    names = [run_name(row_settings(row, preset='digits')) for row in ROWS.values()]
    assert len(set(names)) == len(names)
    assert run_name(resolve(preset='digits', defense='meco_plain')) == run_name(
        row_settings(ROWS['meco_plain'], preset='digits')
    )
