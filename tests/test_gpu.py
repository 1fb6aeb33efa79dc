"A GPU gives what a CPU gives. Skipped where there is none; MECO_TEST_DEVICE=cpu tries them there."

import copy
import os

import pytest
import torch

from meco_nb.attacks.base import steal
from meco_nb.experiment import build_defense, run
from meco_nb.methods import ATTACKS, DEFENSES
from meco_nb.models import build_model
from meco_nb.oracle import Oracle, Undefended, answers_to
from meco_nb.parties import in_service
from meco_nb.randomness import Randomness
from meco_nb.records import device_name
from meco_nb.settings import resolve

DEVICE = os.environ.get('MECO_TEST_DEVICE', 'cuda')
needed = DEVICE != 'cuda' or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not needed, reason='needs a CUDA device')]


def untrained(name, victim):
    "A defense with settings for digits, not trained, at the beginning of its service."
    return in_service(build_defense(resolve(preset='digits', defense=name), victim)[0], seed=0)


@pytest.mark.parametrize('name', [*DEFENSES])
def test_a_defense_answers_as_on_a_cpu(name, victim, digits):
    images = digits.test[:32][0]
    here = answers_to(untrained(name, victim), images)
    there = answers_to(untrained(name, victim).to(DEVICE), images.to(DEVICE))
    assert there.device.type == DEVICE
    assert (here - there.cpu()).abs().max() < 1e-3


def stolen(name, victim, data, device):
    "The clone's weights after three iterations."
    victim = copy.deepcopy(victim).to(device)
    clone = build_model('lenet5', data, seed=1).to(device)
    attack = ATTACKS[name](clone, batch_size=16, **ATTACKS[name].card.small)
    oracle = Oracle(Undefended(victim), 3 * sum(attack.cost().values()))
    weights = [p.detach().flatten().cpu() for p in steal(attack, oracle).parameters()]
    return torch.cat(weights)


@pytest.mark.parametrize('name', ['dfme', 'disguide', 'maze'])
def test_the_first_steps_of_an_attack_agree(name, victim, digits):
    here, there = (stolen(name, victim, digits, device) for device in ('cpu', DEVICE))
    assert (here - there).abs().max() < 1e-2 * here.abs().max()


def test_a_run_repeats_on_one_device_and_says_which():
    short = dict(preset='digits', defense='meco', budget=2_000, victim_settings=dict(epochs=1))
    first, second = (run(**short, defense_settings=dict(epochs=1)) for _ in range(2))
    assert first.weights == second.weights
    assert first.made_by['device'] == device_name()


def test_keyed_noise_is_that_of_a_cpu(digits):
    images = digits.test[:32][0]
    coin = Randomness('keyed', b'k')
    there = coin.normal(images.to(DEVICE))
    assert there.device.type == DEVICE
    assert (coin.normal(images) - there.cpu()).abs().max() < 1e-5
