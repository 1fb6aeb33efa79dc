"A thief who multiplies in half precision meets the same victim, and what he keeps is in single."

import copy

import pytest
import torch
from torch import nn

from meco_nb.attacks.base import steal
from meco_nb.attacks.dfme import DFME
from meco_nb.experiment import run
from meco_nb.methods import ATTACKS, AttackCard, card_of
from meco_nb.models import build_model
from meco_nb.oracle import Oracle, Undefended
from meco_nb.relearn import Keeping, Relearning
from meco_nb.settings import resolve, run_name

CARDS = {name: card_of(ATTACKS[name], AttackCard) for name in ATTACKS}


def noting(network):
    "The precisions in which a network's first convolution is computed, with gradients and without."
    seen = {True: set(), False: set()}
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *call: seen[torch.is_grad_enabled()].add(call[2].dtype))
    return seen


def start(name, clone, real, precision='bfloat16', **more):
    settings = CARDS[name].small | more
    attack = ATTACKS[name](clone, batch_size=8, images=real, **settings)
    attack.precision = precision
    return attack


def networks(attack):
    return [part for part in attack.parts.values() if isinstance(part, nn.Module)]


@pytest.mark.parametrize('name', ATTACKS)
def test_every_attack_multiplies_in_half_and_keeps_single(name, victim, digits):
    defense = Undefended(victim)
    of_victim, clone = noting(defense), build_model('lenet5', digits, seed=1, batch_norm=True)
    attack = start(name, clone, digits.train[:20][0])
    of_clone, labels = noting(attack.clone), CARDS[name].labels[0]
    oracle = Oracle(defense, 200, labels)
    steal(attack, oracle)
    assert oracle.used <= oracle.budget
    assert of_victim == {True: set(), False: {torch.float32}}
    assert of_clone[True] == {torch.bfloat16}
    assert {p.dtype for n in networks(attack) for p in n.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for n in networks(attack) for p in n.parameters())
    assert attack.clone(digits.test[:4][0]).dtype == torch.float32


def test_a_difference_is_measured_in_single(victim, digits):
    "The clone's part of DFME's disagreement, which is asked without gradients, is exact."
    clone = build_model('lenet5', digits, seed=1)
    attack, seen = start('dfme', clone, None), noting(clone)
    steal(attack, Oracle(Undefended(victim), sum(attack.cost().values())))
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}


class Own(nn.Module):
    "Somebody's own clone, which gives its logits as they come."

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, images):
        return self.layers(images)


def test_a_clone_that_is_not_ours_learns_in_half(victim, digits):
    clone = Own()
    before = [p.clone() for p in clone.parameters()]
    attack = DFME(clone, digits.shape, batch_size=8, width=8)
    attack.precision = 'bfloat16'
    steal(attack, Oracle(Undefended(victim), 200))
    for old, new in zip(before, clone.parameters(), strict=True):
        assert new.dtype == torch.float32 and new.isfinite().all() and not torch.equal(old, new)


def test_relearning_is_in_half_too(victim, digits):
    keeping = Keeping(Oracle(Undefended(victim), 64))
    keeping(digits.test[:64][0])
    clone = build_model('lenet5', digits, seed=1)
    seen = noting(clone)
    list(Relearning(clone, keeping.bought, 2, seed=0, precision='bfloat16').run())
    assert seen[True] == {torch.bfloat16}
    assert {p.dtype for p in clone.parameters()} == {torch.float32}


def test_a_record_says_what_was_taken():
    taken = resolve(preset='digits', precision='auto').precision
    assert taken == ('bfloat16' if torch.cuda.is_available() else 'float32')
    single, half = (resolve(preset='digits', precision=p) for p in ('float32', 'bfloat16'))
    assert run_name(single) == run_name(resolve(preset='digits')) != run_name(half)
    with pytest.raises(ValueError, match='precision must be'):
        resolve(preset='digits', precision='half')


def test_a_run_in_half_repeats_to_the_bit():
    "And single precision gives another clone."
    common = dict(preset='digits', defense='undefended', budget=1_500, relearn=1)
    common |= dict(victim_settings=dict(epochs=1), precision='bfloat16')
    whole = run(**common)
    assert whole.weights == run(**common).weights and whole.settings['precision'] == 'bfloat16'
    assert run(**common | dict(precision='float32')).weights != whole.weights


@pytest.mark.parametrize('name', ['dfme', 'disguide', 'knockoff'])
def test_an_attack_in_half_goes_on_where_it_stopped(name, victim, digits):
    real = digits.train[:20][0]

    def parties():
        clone = build_model('lenet5', digits, seed=1, batch_norm=True)
        return start(name, clone, real), Oracle(Undefended(victim), 300)

    whole, oracle = parties()
    next(iter(whole.run(oracle)))
    states = copy.deepcopy((whole.state_dict(), oracle.state_dict()))
    steal(whole, oracle)
    second, oracle = parties()
    second.load_state_dict(states[0])
    oracle.load_state_dict(states[1])
    steal(second, oracle)
    for a, b in zip(whole.clone.parameters(), second.clone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_precision_that_is_none_is_told_before_anything_is_asked(victim, digits):
    attack = start('dfme', build_model('lenet5', digits, seed=1), None, precision='half')
    oracle = Oracle(Undefended(victim), 200)
    with pytest.raises(ValueError, match='precision must be'):
        steal(attack, oracle)
    assert oracle.used == 0
