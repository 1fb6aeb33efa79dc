"Thefts over HTTP: killed and gone on with, from services of all kinds; ART's attacks; a fuzz."

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import meco_nb
from meco_nb.defenses import ModelGuardian, RandP, Undefended
from meco_nb.experiment import attackers_images
from meco_nb.oracle import AccessEnded, BudgetExceeded, Oracle, Unanswered, answers_to
from meco_nb.redis_accounts import accounts_at
from meco_nb.remote import RemoteOracle
from meco_nb.serve import as_app, running
from meco_nb.service import Service
from meco_nb.settings import resolve
from meco_nb.theft import Theft
from meco_nb.training import one_thread
from meco_nb.users import User, hashed

THIEF = User('thief', hashed('key'), 3_000, 'ever')
BOSS = User('boss', hashed('boss'), 0, operator=True)


def service_of(defense, tmp_path, budget=3_000, **more):
    users = [User('thief', hashed('key'), budget, 'ever'), BOSS]
    return Service(defense, users, accounts_at(tmp_path / 'accounts.db'), **more)


def steal(url, folder, attack='dfme', budget=3_000, data=None):
    "A theft over HTTP with a journal and a checkpoint; its clone's weights."
    s = resolve(preset='digits', defense='undefended', attack=attack, budget=budget)
    remote = RemoteOracle(url, 'key', budget=budget, journal=folder / 'journal')
    real = attackers_images(data, s) if data else None
    theft = Theft(s, remote, real, path=folder / 'checkpoint')
    with one_thread():
        theft.run(lambda clone: {}, points=20)
    return theft.oracle, theft.clone.state_dict()


THIEF_SCRIPT = 'import sys; from pathlib import Path; import test_remote; '
THIEF_SCRIPT += 'test_remote.steal(sys.argv[1], Path(sys.argv[2]))'


def thief_process(url, folder):
    here = str(__file__).rpartition('/')[0]
    words = [sys.executable, '-c', THIEF_SCRIPT, url, str(folder)]
    return subprocess.Popen(words, cwd=here)


def test_a_theft_that_is_killed_pays_for_nothing_twice(victim, tmp_path):
    (tmp_path / 'thief').mkdir()
    service = service_of(Undefended(victim), tmp_path)
    with running(service) as url:
        oracle = RemoteOracle(url, 'key')
        process = thief_process(url, tmp_path / 'thief')
        while oracle.account()['used'] < 1_000:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before = oracle.account()['used']
        again, weights = steal(url, tmp_path / 'thief')
        assert 1_000 <= before < again.used == oracle.account()['used'] > 2_900
    (tmp_path / 'other').mkdir()
    other = service_of(Undefended(victim), tmp_path / 'other')
    with running(other) as url:
        (tmp_path / 'unbroken').mkdir()
        _, unbroken = steal(url, tmp_path / 'unbroken')
    assert all(weights[name].equal(unbroken[name]) for name in unbroken)


@pytest.mark.parametrize('attack', ['knockoff', 'jbda', 'disguide'])
def test_attacks_run_as_they_are_and_the_ledgers_agree(victim, digits, tmp_path, attack):
    service = service_of(RandP(victim), tmp_path)
    with running(service) as url:
        oracle, _ = steal(url, tmp_path, attack, 300, data=digits)
    assert oracle.used == 300 == service.accounts.used(THIEF)


def test_a_grade_over_http_is_the_grade_in_process(victim, digits, tmp_path):
    how = dict(rows=['Knockoff, noise', 'Knockoff, distorted real images'], budget=128, quick=True)
    here = meco_nb.grade(Undefended(victim), digits, **how)
    with running(service_of(Undefended(victim), tmp_path)) as url:
        there = meco_nb.grade(RemoteOracle(url, 'key'), digits, **how)
    assert not there.failed
    for name in here:
        assert here[name].ledger == there[name].ledger
        assert abs(here[name].clone['accuracy'] - there[name].clone['accuracy']) < 0.02


def test_a_guard_ends_a_theft_and_the_thief_learns_from_what_he_has(victim, tmp_path):
    guarded = ModelGuardian(victim, sources=('thief',), limit=200, window=400)
    guarded.detector.threshold.fill_(-1e9)  # everything looks synthetic
    service = service_of(guarded, tmp_path)
    with running(service) as url:
        oracle, _ = steal(url, tmp_path)
    assert oracle.ended and 0 < oracle.used <= 200 and service.accounts.used(THIEF) == oracle.used


def test_a_thief_with_two_keys_has_two_budgets(victim, digits, tmp_path):
    "Sybils: counting users is not counting people."
    users = [User(f'u{i}', hashed(f'k{i}'), 32, 'ever') for i in range(2)]
    service = Service(Undefended(victim), users, accounts_at(tmp_path / 'a.db'))
    image = digits.test.tensors[0][:32]
    with running(service) as url:
        for key in ('k0', 'k1'):
            oracle = RemoteOracle(url, key)
            oracle(image)
            with pytest.raises(BudgetExceeded):
                oracle(image[:1])


def test_a_key_that_is_none_is_the_end_of_access(victim, tmp_path):
    with running(service_of(Undefended(victim), tmp_path)) as url:
        with pytest.raises(AccessEnded, match='401: send the key'):
            RemoteOracle(url, 'wrong')


def test_a_server_that_is_not_there_is_unanswered():
    with pytest.raises(Unanswered, match='Connect'):
        RemoteOracle('http://127.0.0.1:9', 'key', retries=1, wait=0)


def test_what_an_oracle_needs_is_said():
    with pytest.raises(ValueError, match='give either url or ask'):
        RemoteOracle()
    with pytest.raises(ValueError, match='give a budget'):
        RemoteOracle(ask=lambda images: None)


def test_noise_is_bought_again_but_not_after_a_kill(victim, digits, tmp_path):
    service, image = service_of(RandP(victim), tmp_path), digits.test.tensors[0][:8]
    with running(service) as url:
        first = RemoteOracle(url, 'key', journal=tmp_path / 'journal')
        one, two = first(image), first(image)
        again = RemoteOracle(url, 'key', journal=tmp_path / 'journal')
        assert not one.equal(two) and again(image).equal(one) and again(image).equal(two)
        assert again.account()['used'] == 16
        assert not again(image).equal(two) and again.account()['used'] == 24


def test_art_s_attacks_ask_an_oracle_over_http(victim, digits, tmp_path):
    extraction = pytest.importorskip('art.attacks.extraction')
    from art.estimators.classification import PyTorchClassifier

    from meco_nb.models import build_model
    from meco_nb.toolboxes import as_art

    service, own = service_of(Undefended(victim), tmp_path), digits.train.tensors[0][:96].numpy()
    for i, attack in enumerate((extraction.KnockoffNets, extraction.CopycatCNN), 1):
        network = build_model('lenet5', digits, batch_norm=True)
        optimizer = torch.optim.Adam(network.parameters())
        loss = torch.nn.CrossEntropyLoss()
        thieved = PyTorchClassifier(network, loss, digits.shape, 10, optimizer=optimizer)
        with running(service) as url:
            oracle = RemoteOracle(url, 'key')
            how = dict(batch_size_query=32, batch_size_fit=32, nb_epochs=1, nb_stolen=96)
            attack(as_art(oracle), **how).extract(own, thieved_classifier=thieved)
        assert oracle.ledger == {'ART': 96} and service.accounts.used(THIEF) == 96 * i


def test_as_art_wants_an_oracle_that_knows_its_shape(victim):
    pytest.importorskip('art')
    from meco_nb.toolboxes import as_art

    with pytest.raises(ValueError, match='with shape= and num_classes='):
        as_art(Oracle(lambda images: answers_to(Undefended(victim), images), 10))


def test_a_model_for_scikit_learn_checks_its_images(victim, digits):
    from meco_nb.toolboxes import SklearnModel

    model = SklearnModel(Undefended(victim), digits.shape, 10)
    rows, labels = (tensor.numpy() for tensor in digits.test.tensors)
    assert model.score(rows.reshape(len(rows), -1), labels) > 0.5
    assert np.allclose(model.predict_proba(rows).sum(1), 1, atol=1e-4)
    with pytest.raises(ValueError, match='lie in'):
        model.predict(rows * 16)


FUZZED = 120  # `python tests/fuzz.py` tries two thousand


def test_a_fuzz_finds_no_failure_and_pays_for_no_refusal(victim, tmp_path):
    "Schemathesis against the service's own OpenAPI: no 5xx, and what is paid was answered."
    from fuzz import fuzz

    service = service_of(Undefended(victim), tmp_path, budget=10**6)
    found = fuzz(as_app(service), cases=FUZZED)
    assert found['cases'] >= FUZZED and not found['failures']
    assert service.accounts.used(THIEF) == found['images answered']
