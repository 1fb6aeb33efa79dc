"What every attack promises."
import io

import pytest
import torch
from hypothesis import given, settings, strategies as st

from meco_nb.attacks import ATTACKS
from meco_nb.attacks.adaptive import PERTURB
from meco_nb.experiment import run
from meco_nb.grading import STRONGEST, row_settings
from meco_nb.models import build_model
from meco_nb.oracle import Averaged, Oracle, Undefended
from meco_nb.settings import resolve
from meco_nb.theft import Theft

SMALL = dict(dfme=dict(width=8), maze=dict(width=8, directions=2), dfms_hl=dict(width=8, gan_steps=3, fit_epochs=2, proxy_images=40),
             knockoff=dict(epochs=2), jbda=dict(epochs=2, seeds=10))


@pytest.fixture(scope='module')
def real(digits): return digits.train[:20][0]


def start(name, oracle, real, batch_size=16, seed=0, **more):
    clone = build_model('lenet5', oracle, seed=1 + seed, batch_norm=True)
    return ATTACKS[name](clone, batch_size=batch_size, seed=seed, images=real, **{**SMALL[name], **more})


def weights(attack): return torch.cat([tensor.flatten().float() for tensor in attack.clone.state_dict().values()])


def finish(attack, oracle):
    for _ in attack.run(oracle): pass
    return weights(attack)


class Watched:
    "A defense that checks every image it is asked about."
    def __init__(self, victim): self.victim, self.asked = victim, 0

    def __call__(self, images):
        assert images.min() >= 0 and images.max() <= 1 and images.isfinite().all()
        self.asked += len(images)
        return self.victim(images).softmax(-1)


def test_every_attack_is_tested_here(): assert set(SMALL) == set(ATTACKS)


@pytest.mark.parametrize('name', ATTACKS)
@settings(deadline=None, max_examples=8)
@given(budget=st.integers(1, 400), batch_size=st.integers(1, 70), labels=st.sampled_from(['soft', 'hard']))
def test_any_budget_is_spent_to_the_query(name, victim, real, budget, batch_size, labels):
    watched = Watched(victim.eval())
    oracle = Oracle(watched, budget, labels)
    finish(start(name, oracle, real, batch_size), oracle)
    assert oracle.used == watched.asked == budget


@pytest.mark.parametrize('name', ATTACKS)
def test_a_step_costs_what_it_says(name, victim, real):
    oracle = Oracle(Undefended(victim), 600)
    attack = start(name, oracle, real)
    while not attack.done(oracle):
        before, cost = dict(oracle.ledger), attack.cost()
        attack.step(oracle)
        spent = {k: v - before.get(k, 0) for k, v in oracle.ledger.items() if v > before.get(k, 0)}
        if oracle.remaining: assert spent == {k: v for k, v in cost.items() if v}
        else: assert sum(spent.values()) <= sum(cost.values())


@pytest.mark.parametrize('name', ATTACKS)
def test_a_stopped_attack_goes_on_bit_for_bit(name, victim, real):
    def fresh(seed=0):
        oracle = Oracle(Undefended(victim), 300)
        return start(name, oracle, real, seed=seed), oracle
    attack, oracle = fresh()
    steps = [None for _ in attack.run(oracle)]
    whole = weights(attack)
    assert torch.equal(whole, finish(*fresh())) and not torch.equal(whole, finish(*fresh(seed=1)))
    for stop in sorted({0, 1, len(steps) // 2, len(steps) - 1}):
        first, oracle = fresh()
        for _ in range(stop): next(first.run(oracle))
        states = first.state_dict(), oracle.state_dict()
        torch.save(states, buffer := io.BytesIO())
        second, oracle = fresh()
        buffer.seek(0)
        for part, state in zip((second, oracle), torch.load(buffer, weights_only=True)): part.load_state_dict(state)
        assert torch.equal(whole, finish(second, oracle)), f'stopped after {stop} steps'


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('shape, classes', [((3, 17, 9), 2), ((1, 64, 64), 1000)])
def test_it_works_for_any_victim(name, shape, classes):
    victim = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16 * shape[0], classes))
    clone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16 * shape[0], classes))
    oracle = Oracle(Undefended(victim), 60, shape=shape)
    attack = ATTACKS[name](clone, batch_size=8, shape=shape, images=torch.rand(10, *shape), **SMALL[name])
    before = clone[2].weight.clone()
    for _ in attack.run(oracle): pass
    assert oracle.used == 60 and attack.samples(3).shape == (3, *shape) and not torch.equal(before, clone[2].weight)


@pytest.mark.parametrize('name', ATTACKS)
def test_looking_at_samples_changes_nothing(name, victim, real):
    def go(look):
        oracle = Oracle(Undefended(victim), 200)
        attack = start(name, oracle, real)
        for _ in attack.run(oracle):
            if look: attack.samples(5, seed=3)
        return weights(attack)
    assert torch.equal(go(False), go(True))


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('perturb', PERTURB)
def test_every_attack_goes_with_every_wrapper(name, perturb, victim, real):
    more = dict(attack_settings=SMALL[name], budget=400, held_back=40, average=3, clone_average=.9, labels='hard', perturb=perturb)
    theft = Theft(resolve(preset='digits', defense='undefended', attack=name, **more), Undefended(victim), real)
    theft.run(lambda clone: {})
    assert theft.oracle.ledger['held back'] == 40 and 400 - 3 < theft.oracle.used <= 400
    assert theft.chosen(lambda clone: {})['which'] and all(p.isfinite().all() for p in theft.clone.parameters())


def test_averaging_asks_in_whole_images(victim):
    oracle = Oracle(Undefended(victim), 10)
    view = Averaged(oracle, 3)
    view(torch.rand(3, 1, 8, 8))
    assert view.remaining == 0 and oracle.used == 9


def test_every_row_of_the_strongest_set_is_valid(digits):
    names = {s for row in STRONGEST.values() for s in [str(row_settings(row, digits, 1_000))]}
    assert len(names) == len(STRONGEST)


@pytest.mark.parametrize('settings', [dict(attack='knockoff', attack_settings=dict(adaptive=True)), dict(attack='dfme', attack_settings=dict(source='shpaes')),
                                      dict(attack='jbda', real_images=0), dict(attack='dfme', attack_settings=dict(gradient='both'))])
def test_bad_settings_say_what_to_do(settings):
    with pytest.raises(ValueError, match='needs a source|unknown source|must be'): run(preset='digits', defense='undefended', budget=100, victim_settings=dict(epochs=0), **settings)
