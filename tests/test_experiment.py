"An experiment survives whatever happens to it."

import json
import signal
import subprocess
import sys
import time
from collections import deque

import pytest
import soak
import torch

from meco_nb import grid
from meco_nb.cost import cost, counted, seconds_ahead, small_theft
from meco_nb.data import load_data
from meco_nb.experiment import Scene, run
from meco_nb.files import load_state, save_state
from meco_nb.methods import ATTACKS, DEFENSES, AttackCard, DefenseCard, card_of
from meco_nb.models import build_model
from meco_nb.oracle import Undefended
from meco_nb.progress import Progress
from meco_nb.records import load_records
from meco_nb.settings import resolve, run_name

SHORT = dict(
    preset='digits',
    defense='meco',
    budget=15_000,
    victim_settings=dict(epochs=2),
    defense_settings=dict(epochs=1),
)


def start(settings):
    return subprocess.Popen(
        [sys.executable, '-c', soak.RUN, json.dumps(settings)],
        stderr=subprocess.PIPE,
    )


def wait_for(path, process):
    "Until the file is there; fails where the process ends before."
    while not path.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return run(**SHORT, out=str(tmp_path_factory.mktemp('whole')))


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_ends_as_the_whole_one(tmp_path, whole, how):
    settings = dict(SHORT, out=str(tmp_path))
    checkpoint = tmp_path / f'{run_name(resolve(**settings))}.checkpoint'
    process = start(settings)
    wait_for(checkpoint, process)
    process.send_signal(how)
    process.wait()
    assert process.returncode != 0 and not list(tmp_path.glob('*.json'))
    with pytest.raises(FileExistsError, match='resume=True'):
        run(**settings)
    record = run(**settings, resume=True)
    assert (
        record.weights == whole.weights
        and record.ledger == whole.ledger
        and record.curve == whole.curve
    )
    assert not checkpoint.exists() and load_records(tmp_path) == [record]


@pytest.mark.parametrize(
    'content', [b'', b'PK', {'attack': {}}, {'attack': {}, 'oracle': {}, 'chooser': {}}]
)
def test_a_useless_checkpoint_says_what_to_do(tmp_path, content):
    settings = dict(SHORT, budget=500, out=str(tmp_path))
    checkpoint = tmp_path / f'{run_name(resolve(**settings))}.checkpoint'
    checkpoint.write_bytes(content) if isinstance(content, bytes) else save_state(
        checkpoint, content
    )
    with pytest.raises(ValueError, match='cannot go on from .* move it away'):
        run(**settings, resume=True)
    checkpoint.unlink()
    assert sum(run(**settings, resume=True).ledger.values()) == 500


def test_a_failed_process_says_why(tmp_path):
    process = start(dict(SHORT, out=str(tmp_path), attack='dmfe'))
    process.wait()
    assert (
        process.returncode != 0
        and "unknown attack 'dmfe', did you mean 'dfme'?" in process.stderr.read().decode()
    )


def test_hard_labels_and_controls_run():
    for control in ('none', 'perturbation_off', 'untrained_generator'):
        record = run(**{**SHORT, 'budget': 700}, labels='hard', control=control)
        assert sum(record.ledger.values()) == 700 and record.curve[-1]['queries'] == 700
        assert (record.utility['l1_own'] == 0) == (control == 'perturbation_off')
        assert ('generator' in record.ledger) == (control != 'untrained_generator')


def test_records_say_what_made_them(whole):
    assert set(whole.made_by) == {'commit', 'meco_nb', 'torch', 'python', 'device'}
    assert whole.settings['budget'] == 15_000 and len(whole.curve) == 20 and whole.seconds > 0


@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGKILL])
def test_a_worker_ends_with_its_parent(end, tmp_path):
    settings = dict(SHORT, budget=10_000_000, out=str(tmp_path))
    parent = soak.started(soak.RUN_ALL, json.dumps([settings]))
    while not list(tmp_path.glob('models/meco*.json')):
        assert parent.poll() is None
        time.sleep(0.05)
    time.sleep(5)
    workers = soak.workers_of(parent)
    parent.send_signal(end)
    parent.communicate()
    assert workers and not soak.outlived(workers)
    if end == signal.SIGKILL:  # the other may come before there is anything to save
        assert list(tmp_path.glob('*.checkpoint'))


@pytest.mark.parametrize('end', [signal.SIGTERM, signal.SIGINT])
def test_a_training_ends_with_its_parent(end, tmp_path):
    training = dict(epochs=10_000)
    settings = dict(SHORT, victim_settings=training, out=str(tmp_path))
    parent = soak.started(soak.RUN_ALL, json.dumps([settings]))
    while not list(tmp_path.glob('models/victim*.training')):
        assert parent.poll() is None
        time.sleep(0.05)
    workers = soak.workers_of(parent)
    parent.send_signal(end)
    parent.communicate()
    assert workers and not soak.outlived(workers)
    (kept,) = tmp_path.glob('models/victim*.training')
    assert load_state(kept)  # whole, and to go on from


def test_a_price_is_what_its_pieces_grow_to():
    "Operations of the whole theft, counted, and of the victim's training, by hand."
    given = dict(preset='digits', defense='undefended', attack='dfme', budget=40_000)
    price, s = cost(**given, relearn=2), resolve(**given)
    data = load_data('digits')
    victim = build_model('lenet5', data, seed=0).eval()
    scene = Scene(data, victim, Undefended(victim))
    whole = counted(lambda: deque(small_theft(s, scene, s.budget), maxlen=0))['Global']
    assert price.stages['theft'].flops['Global'] == pytest.approx(whole, rel=0.03)
    assert sum(price.theft.values()) == pytest.approx(price.stages['theft'].flops['Global'])
    image = counted(lambda: victim(torch.rand(1, 1, 8, 8)))['Global']
    training = 3 * image * s.victim_settings['epochs'] * len(data.train)
    assert price.stages['victim'].flops['Global'] == pytest.approx(training, rel=0.03)
    assert set(price.stages) == {'victim', 'theft', 'relearning', 'judging'}  # nothing to defend
    assert price.queries == 40_000 and price.kept == 40_000 * 4 * (64 + 10)


@pytest.mark.parametrize('name', ATTACKS)
def test_how_long_any_attack_takes_is_known_beforehand(name):
    small = card_of(ATTACKS.find(name), AttackCard).small
    own = dict(attack=name, attack_settings=small, victim_settings=dict(epochs=1))
    ahead = seconds_ahead(resolve(preset='digits', defense='undefended', budget=2_000, **own))
    assert min(ahead.values()) > 0 and set(ahead) == {'victim', 'theft', 'judging'}


@pytest.mark.parametrize('name', ['meco', 'misleader', 'p_poison', 'model_guardian'])
def test_how_long_a_defense_takes_is_known_beforehand(name):
    small = card_of(DEFENSES.find(name), DefenseCard).small
    own = dict(defense=name, defense_settings=small, victim_settings=dict(epochs=1))
    ahead = seconds_ahead(resolve(preset='digits', attack='knockoff', budget=2_000, **own))
    assert ('defense' in ahead) == hasattr(DEFENSES.find(name), 'fit')


def test_a_long_grid_says_its_price_before_it_begins(monkeypatch, capsys):
    monkeypatch.setenv('MECO_PROGRESS', '1')
    monkeypatch.setattr(grid, 'seconds_ahead', lambda s: dict(victim=10.0, theft=s.budget / 1_000))
    own = dict(preset='digits', defense='undefended')
    runs = [resolve(**own, budget=b, seed=seed) for b in (20_000, 40_000) for seed in (0, 1)]
    # two victims of ten seconds, thefts of 20, 20, 40, 40, on two workers
    assert grid.announced(runs, workers=2) == pytest.approx((20 + 120) / 2)
    assert capsys.readouterr().out == '4 runs: about 70 seconds\n'
    assert grid.announced(runs[:1], workers=2) is None  # short
    price = dict(victim=10.0, defense=30.0, theft=60.0)
    monkeypatch.setattr(grid, 'seconds_ahead', lambda s: dict(price))
    shared = [resolve(preset='digits', budget=b, defense='meco') for b in (50_000, 60_000)]
    assert grid.announced(shared, workers=1) == pytest.approx(10 + 30 + 2 * 60)  # trained once
    monkeypatch.setattr(grid, 'seconds_ahead', lambda s: dict(victim=10.0, theft=s.budget / 1_000))
    capsys.readouterr()
    many = [resolve(**own, budget=b) for b in range(20_000, 20_020)]
    assert grid.announced(many, workers=1) == pytest.approx(10 + 20 * 20.01, rel=0.02)
    assert 'seen from 7 of 20 kinds' in capsys.readouterr().out


def test_a_long_loop_prints_what_is_left_where_nobody_sees_a_bar(monkeypatch, capsys):
    monkeypatch.setenv('MECO_PROGRESS', '1')
    monkeypatch.delenv('JPY_SESSION_NAME', raising=False)
    monkeypatch.setattr(Progress, 'every', 0.1)
    with Progress(3, 'naps') as progress:
        for done in range(3):
            time.sleep(0.25)
            progress.update(done + 1)
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith('naps: 2 of 3 (67%), 0 seconds left') for line in said)
    monkeypatch.setenv('MECO_PROGRESS', '0')
    with Progress(3, 'naps'):
        time.sleep(0.25)
    assert not capsys.readouterr().out
