"""Nothing wrong passes the border. Each test holds one kind of wrong number, or of lost work.

The table of kinds is in CONTRIBUTING.md; what is bad in a single call is in test_bad_inputs.py."""

import copy
import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import meco_nb
from meco_nb import files, records
from meco_nb.answers import AsLogits, probabilities_of
from meco_nb.attacks.base import Memory, steal
from meco_nb.attacks.knockoff import Knockoff
from meco_nb.data import make_data
from meco_nb.defenses import MeCoPlain, ModelGuardian, ModelGuardS, RandP, Rounding, Top1
from meco_nb.experiment import run
from meco_nb.files import load_state, save_state, save_weights
from meco_nb.grading import Grade, grade
from meco_nb.grid import run_all
from meco_nb.methods import ATTACKS, DEFENSES, AttackCard, DefenseCard, card_of
from meco_nb.models import build_model
from meco_nb.oracle import AccessEnded, Averaged, Oracle, Patient, Unanswered, Undefended
from meco_nb.records import load_records, made_by, read_record, table
from meco_nb.settings import resolve, run_name
from meco_nb.theft import steps_of
from meco_nb.training import evaluate, fit, predict

FEW = dict(budget=200, quick=True, rows=['Knockoff, shapes'])
MODULES = [n for n in DEFENSES if n != 'undefended']
TRAINED = [n for n in DEFENSES if hasattr(DEFENSES[n], 'fit')]


def small(name):
    "Settings that make a defense quick, of its constructor and of its `fit`."
    settings = card_of(DEFENSES[name], DefenseCard).small
    own = {k: v for k, v in settings.items() if k not in ('epochs', 'count', 'most')}
    own = {k: v for k, v in own.items() if not (k == 'l1' and name.startswith('gaussian'))}
    return own, {k: v for k, v in settings.items() if k not in own}


def trained(name, victim, data):
    "A defense, trained for as short as its card says."
    own, rest = small(name)
    defense = DEFENSES[name](victim, **own)
    return defense.fit(data, **rest) if hasattr(defense, 'fit') else defense


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Counting:
    "A plain function's defense that counts what it answers."

    def __init__(self, defense):
        self.defense, self.answered = defense, 0

    def __call__(self, images):
        with torch.no_grad():
            answers = self.defense(images)
        self.answered += len(images)
        return answers


# What was graded


def test_a_folder_belongs_to_one_model(tmp_path, victim, digits):
    def swapped(images):
        return Undefended(victim)(images).flip(-1).detach()

    def plain(images):
        return Undefended(victim)(images).detach()

    other = make_data('digits', digits.train, TensorDataset(*digits.test[:100]))
    grade(RandP(victim, l1=0.5), digits, out=tmp_path / 'module', **FEW)
    grade(plain, digits, out=tmp_path / 'function', **FEW)
    for out, defense, data, differs in [
        ('module', Top1(victim), digits, 'defense'),
        ('module', RandP(victim, l1=0.6), digits, 'settings'),
        ('module', RandP(build_model('lenet5', digits), l1=0.5), digits, 'weights'),
        ('module', RandP(victim, l1=0.5), other, 'data'),
        ('function', swapped, digits, 'answers'),
    ]:
        with pytest.raises(ValueError, match=f'another model .*{differs}.* differ'):
            grade(defense, data, out=tmp_path / out, **FEW)


def test_the_evaluators_questions_are_asked_once_and_counted(tmp_path, victim, digits):
    api, rows = Counting(Undefended(victim)), ['Knockoff, shapes', 'Knockoff, noise']
    found = grade(api, digits, out=tmp_path, **FEW | dict(rows=rows))
    assert found.evaluation.ledger == {'identity': 32, 'the test set': len(digits.test)}
    assert api.answered == 2 * 200 + 32 + len(digits.test)
    again = grade(api, digits, out=tmp_path, **FEW | dict(rows=rows))
    assert again.evaluation.ledger['identity'] == 64 and api.answered == 2 * 200 + 64 + 360
    assert f'{len(digits.test)} for the test set' in str(found)


# What an answer is


@pytest.mark.parametrize('wrong', ['softmax', 'one logit', 'K'])
def test_a_victim_that_is_none_is_told_before_anything_is_bought(wrong, digits):
    layers = [nn.Flatten(), nn.Linear(64, {'one logit': 1, 'K': 8}.get(wrong, 10))]
    api = Counting(Undefended(nn.Sequential(*layers, *[nn.Softmax(-1)] * (wrong == 'softmax'))))
    said = dict(softmax='AsLogits', K='8 classes')
    with pytest.raises(ValueError, match=said.get(wrong, 'torch.zeros_like')):
        grade(api, digits, **FEW)
    assert api.answered <= 16


def test_a_client_that_rounds_is_no_classifier(victim, digits):
    def client(images):
        return Undefended(victim)(images).detach().numpy().round(2).tolist()

    true, found = (evaluate(m, digits.test)['calibration_error'] for m in (victim, client))
    assert abs(true - found) < 0.02


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float64])
def test_every_precision_keeps_the_promises(dtype, victim, digits):
    class Halved(nn.Module):
        def forward(self, images):
            return victim(images).to(dtype)

    images = digits.test.tensors[0]
    with torch.no_grad():
        for model in (Halved(), copy.deepcopy(victim).to(dtype)):
            randp = RandP(model, seeding=0)
            answers, truth = randp(images), probabilities_of(model, images)
            assert torch.equal(answers.argmax(-1), truth.argmax(-1))
            assert (answers - truth).abs().sum(-1).max() <= 1 + 1e-5
            assert Oracle(randp, 360)(images).dtype == torch.float32
            assert evaluate(model, digits.test, victim)['agreement'] > 0.99


@pytest.mark.parametrize('kind', [np.asarray, list, lambda answers: answers.half()])
def test_answers_of_all_makes_are_answers(kind, victim, digits):
    def api(images):
        return kind(Undefended(victim)(images).detach())

    clone = build_model('lenet5', digits, seed=1, batch_norm=True)
    oracle = Oracle(api, 200, shape=(1, 8, 8), num_classes=10)
    assert evaluate(steal(Knockoff(clone, epochs=1), oracle), digits.test)['accuracy'] > 0


class InPlace(nn.Module):
    "Works on the memory that it is given."

    image_shape = (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images):
        return self.layers(images.sub_(0.5).mul_(2))


@pytest.mark.parametrize('name', DEFENSES)
def test_nobodys_memory_is_changed(name, digits):
    torch.manual_seed(0)
    own, _ = small(name)
    defense, images = DEFENSES[name](InPlace(), **own).eval(), digits.test.tensors[0].clone()
    before = images.clone()
    Oracle(defense, 720)(images)
    evaluate(defense, digits.test)
    with torch.no_grad():
        defense(images)
    assert torch.equal(images, before) and torch.equal(digits.test.tensors[0], before)


@pytest.mark.parametrize('name', TRAINED)
def test_a_frozen_or_half_precise_victim_is_trained_as_a_copy(name, victim, digits):
    few = make_data('few', TensorDataset(*digits.train[:400]), digits.test, 10)
    fresh, frozen = trained(name, victim, few), copy.deepcopy(victim).requires_grad_(False)
    assert torch.equal(weights(fresh), weights(trained(name, frozen, few)))
    half = copy.deepcopy(victim).bfloat16()
    one, other = (evaluate(d, digits.test) for d in (fresh, trained(name, half, few)))
    assert abs(one['accuracy'] - other['accuracy']) < 0.1
    assert next(half.parameters()).dtype == torch.bfloat16
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize('name', DEFENSES)
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.half])
def test_a_defense_can_be_cast(name, dtype, victim, digits):
    own, _ = small(name)
    defense = DEFENSES[name](copy.deepcopy(victim), **own).eval().to(dtype)
    answers = Oracle(defense, 32)(digits.test.tensors[0][:32])
    assert answers.dtype == torch.float32 and answers.isfinite().all()


def test_measuring_leaves_a_model_as_it_was(digits):
    model = build_model('lenet5', digits, batch_norm=True).train()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, digits.test)
    evaluate(lambda images: model(images).softmax(-1), digits.test)
    grade(lambda images: model(images).softmax(-1).detach(), digits, **FEW)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# Training


def test_batches_of_one_train_or_are_refused(digits):
    few = make_data('few', TensorDataset(*digits.train[:20]), digits.test, 10)
    model = build_model('lenet5', few)
    before = weights(model)
    assert not torch.equal(before, weights(fit(model, few, epochs=1, batch_size=1)))
    with pytest.raises(ValueError, match='batch_size of 2'):
        fit(build_model('lenet5', few, batch_norm=True), few, batch_size=1)
    with pytest.raises(ValueError, match='frozen'):
        fit(model.requires_grad_(False), few)


# Datasets


def test_labels_in_eight_bits_and_names_of_all_kinds(tmp_path, victim, digits):
    parts = [TensorDataset(d.tensors[0], d.tensors[1].byte()) for d in (digits.train, digits.test)]
    for name in ['../../evil', 'a/b', 'x' * 300, 'naïve 日本']:
        data = make_data(name, *parts)
        found = grade(Undefended(victim), data, out=tmp_path / 'in' / 'side', **FEW)
        assert len(found) == 1 and not found.failed
    assert [p.name for p in tmp_path.iterdir()] == ['in']
    assert [p.name for p in (tmp_path / 'in').iterdir()] == ['side']


def test_a_class_that_only_the_test_set_has_counts(digits):
    nine = digits.train.tensors[1] == 9
    without = TensorDataset(*digits.train[~nine])
    assert make_data('digits', without, digits.test).num_classes == 10


# Records


def test_whose_commit_it_is(tmp_path, monkeypatch):
    package = tmp_path / 'site-packages' / 'meco_nb' / '__init__.py'
    package.parent.mkdir(parents=True)
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    monkeypatch.setattr(meco_nb, '__file__', str(package))
    assert made_by()['commit'] is None
    monkeypatch.undo()
    monkeypatch.setenv('PATH', str(tmp_path))
    assert records.git('status') == '' and made_by()['commit'] is None


def test_records_of_a_grading_are_records(tmp_path, victim, digits):
    found = grade(Undefended(victim), digits, out=tmp_path, **FEW)
    assert load_records(tmp_path) == list(found.values())
    assert '| undefended' not in table(load_records(tmp_path)) and 'given' in table(found.values())
    path = next(tmp_path.glob('*.json'))
    fields = json.loads(path.read_text())
    for wrong, said in [
        (fields | dict(colour='red'), "unknown 'colour'"),
        ({k: v for k, v in fields.items() if k != 'ledger'}, "missing 'ledger'"),
        (fields | dict(settings=fields['settings'] | dict(queries=3)), "unknown 'queries'"),
        (fields | dict(seconds='long'), 'seconds'),
    ]:
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=f'{path.name}.*{said}'):
            read_record(path)


# Work that was paid for


def test_access_that_ends_while_it_is_graded(victim, digits):
    class Ending(Counting):
        def __call__(self, images):
            if self.answered > 32 + 360 + self.limit:
                raise AccessEnded('no more')
            return super().__call__(images)

    for limit in (0, 150, 196):
        api = Ending(Undefended(victim))
        api.limit = limit
        found = grade(api, digits, **FEW)
        assert not found.failed and sum(found['Knockoff, shapes'].ledger.values()) <= 200


def test_a_clone_that_diverges_is_a_failed_attack(victim, digits, tmp_path):
    wild = dict(attack_settings=dict(clone_lr=1e30), preset='digits', defense='undefended')
    wild |= dict(victim_settings=dict(epochs=1))
    for attack in ('dfme', 'maze', 'knockoff'):
        record = run(**wild, attack=attack, budget=2_000, held_back=100, out=str(tmp_path))
        assert record.failed.startswith('diverged') and record.clone['accuracy'] < 0.2
        assert read_record(tmp_path / f'{record.name}.json') == record
        assert np.isfinite(record.clone['l1']) and sum(record.ledger.values()) <= 2_000


def test_a_grading_goes_on_past_an_api_that_fails_and_resumes(victim, digits, tmp_path):
    class Flaky(Counting):
        fails = True

        def __call__(self, images):
            if self.fails and 32 + 360 + 100 < self.answered < 32 + 360 + 200:
                raise TimeoutError('no answer')
            return super().__call__(images)

    api, rows = Flaky(Undefended(victim)), ['Knockoff, shapes', 'Knockoff, noise']
    few = FEW | dict(rows=rows, out=tmp_path)
    found = grade(api, digits, **few)
    assert set(found.failed) == set(rows) and 'TimeoutError: no answer' in str(found)
    api.fails = False
    found = grade(api, digits, **few)
    assert not found.failed and [sum(r.ledger.values()) for r in found.values()] == [200, 200]
    asked = sum(found.evaluation.ledger.values())
    assert api.answered <= 2 * 200 + asked  # nothing that was answered was bought again


def test_a_patient_client_asks_again_only_what_surely_was_not_answered():
    errors = [Unanswered('429', after=0), Unanswered('429')]

    def client(images):
        if errors:
            raise errors.pop()
        return torch.full((len(images), 2), 0.5)

    oracle = Oracle(Patient(client, retries=2, wait=0), 10)
    oracle(torch.rand(3, 1, 2, 2))
    assert oracle.used == 3
    errors += [TimeoutError('perhaps')]
    with pytest.raises(TimeoutError):
        oracle(torch.rand(3, 1, 2, 2))
    assert oracle.used == 6


# Files


@pytest.mark.parametrize('suffix', ['.training', '.safetensors', '.json'])
def test_a_damaged_file_says_which_it_is(suffix, tmp_path):
    settings = dict(preset='digits', budget=200, victim_settings=dict(epochs=1), out=str(tmp_path))
    settings |= dict(defense='undefended')
    run(**settings)
    model = next((tmp_path / 'models').glob('*.safetensors'))
    path = model.with_suffix(suffix)
    if suffix == '.training':
        model.unlink()
        path.write_bytes(b'half a file')
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    for record in tmp_path.glob('*.json'):
        record.unlink()
    with pytest.raises(ValueError, match=f'{path.name}.*move it away'):
        run(**settings, resume=True)


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, 'no space')

    path = tmp_path / 'state'
    save_state(path, dict(step=1))
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='the disk is full.*resume=True'):
        save_state(path, dict(step=2))
    assert load_state(path) == dict(step=1) and list(tmp_path.iterdir()) == [path]


def test_tied_weights_are_saved(tmp_path):
    layer = nn.Linear(4, 4)
    tied = nn.ModuleList([layer, nn.Linear(4, 4)])
    tied[1].weight = layer.weight
    save_weights(tmp_path / 'tied.safetensors', tied, {})
    other = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    files.load_weights(tmp_path / 'tied.safetensors', other)
    assert torch.equal(other[0].weight, other[1].weight)


def test_a_checkpoint_holds_no_more_than_it_says(tmp_path):
    memory = Memory()
    for _ in range(40):
        memory.add(torch.rand(33, 1, 8, 8), torch.rand(33, 10))
    save_state(tmp_path / 'memory', memory.state_dict())
    numbers = 4 * sum(rows.numel() for rows in memory.tensors())
    assert (tmp_path / 'memory').stat().st_size < numbers + 4_000


@pytest.mark.parametrize('name', DEFENSES)
def test_every_defense_is_saved_and_loaded(name, victim, digits, tmp_path):
    defense, images = trained(name, victim, digits).eval(), digits.test.tensors[0][:64]
    with torch.no_grad():
        defense(images)
        saved = meco_nb.save(tmp_path / f'{name}-1.5', defense, serving=True)
        assert saved.name == f'{name}-1.5.safetensors'
        there = meco_nb.load(saved)
        if hasattr(defense, 'randomness') and defense.randomness.seeding == 'fresh':
            for one in (defense, there):
                one.randomness = type(defense.randomness)(0)
        assert type(there) is type(defense) and torch.equal(there(images), defense(images))


# Promises


def test_threads_never_get_one_answer_too_many():
    for budget in (1, 5, 100):
        api = Counting(lambda images: torch.full((len(images), 2), 0.5))
        oracle, gate = Oracle(api, budget), threading.Barrier(16)

        def ask(_, oracle=oracle, gate=gate):
            gate.wait()
            for _ in range(20):
                try:
                    oracle(torch.rand(1, 1, 2, 2))
                except RuntimeError:
                    return

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(16)))
        assert oracle.used == budget == sum(oracle.ledger.values())


def ended_after(victim, limit, asked):
    "A defense that answers so many images, which are noted, and no more."

    def defense(images):
        if sum(map(len, asked)) + len(images) > limit:
            raise AccessEnded('no more')
        asked.append(images.clone())
        return Undefended(victim)(images).detach()

    return defense


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('limit', [40, 90, 170, 300, 10_000])
def test_every_attack_learns_from_all_that_it_bought(name, limit, victim, digits):
    asked, studied = [], set()
    oracle = Oracle(ended_after(victim, limit, asked), 400, shape=(1, 8, 8), num_classes=10)
    clone = build_model('lenet5', oracle, seed=1, batch_norm=True)
    card = card_of(ATTACKS[name], AttackCard)
    attack = ATTACKS[name](clone, batch_size=16, images=digits.train[:20][0], **card.small)
    bought = []

    def note(module, given):
        if torch.is_grad_enabled():
            studied.update(image.detach().numpy().tobytes() for image in given[0])

    class Noting:
        def __getattr__(self, key):
            return getattr(oracle, key)

        def __call__(self, images, purpose='clone'):
            answers = oracle(images, purpose)
            if purpose in ('clone', 'seed'):
                bought.extend(image.detach().numpy().tobytes() for image in images)
            return answers

    clone.register_forward_pre_hook(note)
    for _ in steps_of(attack, Noting()):
        pass
    assert set(bought) <= studied, f'{len(set(bought) - studied)} of {len(bought)} were not studied'


def test_a_grading_leaves_its_defense_alone(victim, digits):
    class Interrupting(RandP):
        def forward(self, images):
            if len(images) == 50:
                raise KeyboardInterrupt
            return super().forward(images)

    defense = Interrupting(victim)
    guarded, given = ModelGuardian(victim, sources=('thief',)), ModelGuardS(victim)
    with torch.no_grad():
        guarded(digits.test.tensors[0][:5], user='anna')
        given(digits.test.tensors[0][:5])
    for one in (defense, guarded, given):
        try:
            grade(one, digits, **FEW | dict(budget=50, rows=['Knockoff, shapes']))
        except KeyboardInterrupt:
            pass
    assert defense.randomness.seeding == 'fresh' and defense.randomness.generator is None
    assert guarded.users['anna']['asked'] == 5 and list(guarded.users.records) == ['anna']
    assert len(given.memory.given) <= 5


def test_jitter_draws_keyed_noise_anew(victim, digits):
    images, far = (digits.test.tensors[0][:32] * 255).round() / 255, {}
    with torch.no_grad():
        mean = RandP(victim, seeding=0)(images.repeat(200, 1, 1, 1)).view(200, 32, 10).mean(0)
        for jitter in (0, 1):
            oracle = Oracle(RandP(victim, seeding='keyed', key=b'k'), 10_000)
            far[jitter] = (Averaged(oracle, 30, jitter)(images) - mean).abs().sum(-1).mean()
    assert far[1] < far[0] / 2
    record = run(
        preset='digits',
        defense='randp',
        attack='knockoff',
        budget=300,
        average=3,
        jitter=1,
        victim_settings=dict(epochs=1),
    )
    assert sum(record.ledger.values()) == 300 and record.settings['jitter'] == 1


def test_what_is_remembered_of_users_is_bounded(victim, digits):
    guarded = ModelGuardian(victim, sources=('thief',), most_users=10)
    given, images = ModelGuardS(victim, l1=0.0, most=30), digits.test.tensors[0]
    with torch.no_grad():
        for i in range(25):
            guarded(images[:2], user=f'user {i}')
        given(images)
    assert len(guarded.users.records) == 10 and len(given.memory.given) == 30


def test_a_client_behind_a_server_is_a_victim(victim, digits):
    def client(images):
        return Undefended(victim)(images).detach().numpy().round(3).tolist()

    defense = Rounding(AsLogits(client, (1, 8, 8)), decimals=1)
    assert evaluate(defense, digits.test, victim)['agreement'] > 0.95
    with pytest.raises(ValueError, match='nothing to train'):
        MeCoPlain(AsLogits(client, (1, 8, 8)), width=8).fit(digits, epochs=1)


def test_nothing_runs_forever(digits):
    with pytest.raises(ValueError, match='workers must be'):
        run_all([resolve(preset='digits')], workers=-1)
    for epochs in (-1, 1.5):
        with pytest.raises(ValueError, match='epochs must be'):
            Knockoff(build_model('lenet5', digits), epochs=epochs)


def test_an_empty_grade_can_be_read(victim, digits):
    with pytest.raises(ValueError, match='rows names no attack'):
        grade(Undefended(victim), digits, rows=[])
    assert isinstance(Grade({}, dict(x='failed'), None), dict)
    assert len(run_name(resolve(preset='digits'))) < 200


def test_predictions_are_of_one_kind(victim, digits):
    first, _ = predict(victim, digits.test)
    second, _ = predict(Undefended(victim), digits.test, batch_size=7)
    assert torch.allclose(first, second, atol=1e-6)


if __name__ == '__main__':
    sys.exit(pytest.main([__file__, '-q']))
