"""Settings are typed, and tried before anything is computed.

`python tests/test_settings.py` prints the table of what can be wrong, and how soon it is said."""

import time

import pytest

from meco_nb import experiment
from meco_nb.data import load_data
from meco_nb.methods import ATTACKS, DEFENSES, Count, Share, card_of, checked, settings_of
from meco_nb.settings import PRESETS, Settings, resolve, run_name, takes

FAIR = dict(defense='randp')
KNOCKOFF = dict(attack='knockoff', defense='undefended')
WRONG = [  # settings, and what is said of them
    (dict(bugdet=5), "unknown setting 'bugdet', did you mean 'budget'?"),
    (dict(preset='digit'), "unknown preset 'digit', did you mean 'digits'?"),
    (dict(dataset='minst'), "unknown dataset 'minst', did you mean 'mnist'?"),
    (dict(victim='lenet'), "unknown model 'lenet', did you mean 'lenet5'?"),
    (dict(clone='resnet'), "unknown model 'resnet'"),
    (dict(defense='mecco'), "unknown defense 'mecco', did you mean 'meco'?"),
    (dict(attack='dmfe'), "unknown attack 'dmfe', did you mean 'dfme'?"),
    (dict(defense='no_module:Defense'), "'no_module:Defense' cannot be loaded"),
    (dict(attack='math:Attack'), "'math:Attack' cannot be loaded"),
    (dict(dataset='math:tau'), "'math:tau' is no function"),
    (dict(budget='many'), 'budget must be a valid integer'),
    (dict(budget=0), 'budget must be greater than or equal to 1'),
    (dict(budget=-3), 'budget must be greater than or equal to 1'),
    (dict(budget=0.5), 'budget must be a valid integer'),
    (dict(budget=True), 'budget must be a number, not a truth value'),
    (dict(batch_size=0), 'batch_size must be greater than or equal to 1'),
    (dict(seed=-1), 'seed must be greater than or equal to 0'),
    (dict(seed='x'), 'seed must be a valid integer'),
    (dict(labels='medium'), "labels must be 'soft' or 'hard'"),
    (dict(control='off'), 'control must be'),
    (dict(where='victim'), 'where must be'),
    (dict(perturb='shake'), 'perturb must be'),
    (dict(average=0), 'average must be greater than or equal to 1'),
    (dict(average=2_000_000), 'cannot be paid from'),
    (dict(jitter=-1), 'jitter must be greater than or equal to 0'),
    (dict(relearn=1.5), 'relearn must be a valid integer'),
    (dict(believe='nobody', relearn=1), "believe must be 'all', 'sure'"),
    (dict(believe='sure'), 'relearn must be 1 or more epochs'),
    (dict(users=0), 'users must be greater than or equal to 1'),
    (dict(users=2, where='clone'), "users=2 needs where='all'"),
    (dict(held_back=-1), 'held_back must be greater than or equal to 0'),
    (dict(held_back=100_000), 'must leave something of the budget'),
    (dict(clone_average=1), 'clone_average must be less than 1'),
    (dict(clone_average=float('nan')), 'clone_average must be'),
    (dict(real_images=-1), 'real_images must be greater than or equal to 0'),
    (dict(real_images=5_000), 'real_images is 5000, and there are 1437'),
    (dict(resume='perhaps'), 'resume must be a valid boolean'),
    (dict(out=3), 'out must be a path'),
    (dict(victim_settings=['epochs']), 'victim_settings must be a valid dictionary'),
    (dict(victim_settings=dict(epochs=-1)), 'epochs must be greater than or equal to 0'),
    (dict(victim_settings=dict(epochs=1.5)), 'epochs must be a valid integer'),
    (dict(victim_settings=dict(epoch=1)), "unknown setting of the victim 'epoch'"),
    (dict(victim_settings=dict(optimizer='adam')), "optimizer must be 'adamw' or 'sgd'"),
    (dict(victim_settings=dict(lr=0)), 'lr must be greater than 0'),
    (dict(clone_settings=dict(foo=1)), "unknown setting of lenet5 'foo'"),
    (dict(clone_settings=dict(batch_norm='x')), 'batch_norm must be a valid boolean'),
    (dict(defense_settings=dict(width=12)), 'width'),
    (dict(defense_settings=dict(width=0)), 'width must be greater than or equal to 1'),
    (dict(defense_settings=dict(strenght=1)), "unknown setting of meco 'strenght'"),
    (dict(defense='meco_plain', defense_settings=dict(kind='random')), 'kind must be'),
    (dict(defense_settings=dict(epochs=-2)), 'epochs must be greater than or equal to 0'),
    (dict(defense_settings=dict(batch_size=0)), 'batch_size must be greater than or equal to 1'),
    (dict(defense_settings=dict(gamma='big')), 'gamma must be a valid number'),
    (dict(FAIR, defense_settings=dict(l1=5)), 'l1 must be less than or equal to 2'),
    (dict(FAIR, defense_settings=dict(seeding='often')), 'seeding must be'),
    (dict(FAIR, defense_settings=dict(epochs=1)), "unknown setting of randp 'epochs'"),
    (
        dict(FAIR, control='trained_as_long'),
        "control 'trained_as_long' needs a defense that trains",
    ),
    (dict(defense='undefended', control='perturbation_off'), "'undefended' has none"),
    (dict(defense='edm', defense_settings=dict(members=1)), 'members'),
    (dict(defense='edm', defense_settings=dict(foreign='nope')), "unknown source of images 'nope'"),
    (dict(defense='edm', defense_settings=dict(models=['lenet6', 'lenet5'])), "'lenet6'"),
    (dict(defense='rounding', defense_settings=dict(decimals=0.5)), 'decimals must be'),
    (dict(defense='reverse_sigmoid', defense_settings=dict(beta=2)), 'beta must be'),
    (dict(defense='grad', defense_settings=dict(goal='up')), 'goal must be'),
    (dict(defense='model_guardian', defense_settings=dict(sources=['magic'])), 'magic'),
    (dict(attack_settings=dict(delat=1)), "unknown setting of dfme 'delat'"),
    (dict(attack_settings=dict(delta=0)), 'delta must be greater than 0'),
    (dict(attack_settings=dict(delta='x')), 'delta must be a valid number'),
    (dict(attack_settings=dict(source='nope')), "unknown source of images 'nope'"),
    (dict(attack_settings=dict(clone_steps=0)), 'clone_steps must be greater than or equal to 1'),
    (dict(attack_settings=dict(gradient='both')), "gradient must be 'victim' or 'clone'"),
    (dict(attack_settings=dict(loss='l3')), 'loss must be'),
    (dict(attack='maze', attack_settings=dict(memory=0)), 'memory must be'),
    (
        dict(attack='dfms_hl', attack_settings=dict(share=2)),
        'share must be less than or equal to 1',
    ),
    (dict(KNOCKOFF, attack_settings=dict(epochs='x')), 'epochs must be a valid integer'),
    (dict(KNOCKOFF, attack_settings=dict(epochs=-1)), 'epochs must be greater than or equal to 0'),
    (dict(KNOCKOFF, attack_settings=dict(epochs=1.5)), 'epochs must be a valid integer'),
    (dict(KNOCKOFF, attack_settings=dict(adaptive=True)), 'several kinds'),
    (dict(KNOCKOFF, attack_settings=dict(source='real'), real_images=0), 'images'),
    (dict(KNOCKOFF, control='untrained_generator'), 'needs an attack with a generator'),
    (dict(KNOCKOFF, where='generator'), "where='generator'"),
    (dict(attack='jbda', defense='undefended', real_images=0), 'real_images must be 1 or more'),
    (dict(attack='jbda', defense='undefended', attack_settings=dict(size=-1)), 'size must be'),
]


def said_of(settings):
    "What is said of wrong settings, and the milliseconds until it is."
    started = time.process_time()
    with pytest.raises((ValueError, TypeError)) as error:
        experiment.run(preset=settings.pop('preset', 'digits'), **settings)
    return str(error.value), 1e3 * (time.process_time() - started)


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    def prepare(*_):
        pytest.fail('something was trained before the settings were found wrong')

    monkeypatch.setattr(experiment, 'prepare', prepare)


@pytest.mark.parametrize('settings, message', WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_said_at_once(settings, message):
    said, _ = said_of(dict(settings))
    assert message in said
    assert len(said.splitlines()) == 1 or 'known:' in said


@pytest.mark.parametrize('attack', [name for name in ATTACKS])
def test_what_is_right_is_tried_quickly(attack):
    card = ATTACKS[attack].card
    s = resolve(preset='digits', attack=attack, labels=card.labels[0], defense='undefended')
    started = time.process_time()
    experiment.try_out(s, load_data('digits'))
    assert time.process_time() - started < 20  # a step, not a training


@pytest.mark.parametrize('defense', list(DEFENSES))
@pytest.mark.parametrize('preset', PRESETS)
def test_every_card_fits_its_signatures(preset, defense):
    "Also the presets that nobody runs here."
    s = resolve(preset=preset, defense=defense)
    known = settings_of(*takes(DEFENSES[defense]))
    assert set(s.defense_settings) | set(DEFENSES[defense].card.small) <= set(known)


def test_strings_numbers_and_none_mean_what_they_say():
    s = resolve(preset='digits', budget='20e6', attack_settings=dict(delta='1e-2', width=None))
    assert s.budget == 20_000_000 and s.attack_settings['delta'] == 0.01
    assert resolve(preset='digits', seed=None, labels=None) == resolve(preset='digits')
    assert resolve(preset='paper', attack='maze').batch_size != resolve(preset='paper').batch_size


def test_resolving_twice_changes_nothing():
    from dataclasses import asdict

    for name in ATTACKS:
        s = resolve(preset='fashion_mnist16', attack=name, labels=ATTACKS[name].card.labels[0])
        assert resolve(**asdict(s)) == s and run_name(resolve(**asdict(s))) == run_name(s)


def test_a_path_may_be_a_folder(tmp_path):
    assert Settings(out=tmp_path).out == str(tmp_path)


def test_a_signature_is_a_schema():
    @checked
    def function(count: Count, share: Share = 0.5, other=None):
        return count, share, other

    assert function('3', share='1e-1', other='x') == (3, 0.1, 'x')
    assert function(2.0, None) == (2, 0.5, None)
    for wrong in [dict(count=0), dict(count=1, share=2), dict(count='a'), dict(count=True)]:
        with pytest.raises(ValueError, match='function: (count|share) must be'):
            function(**wrong)
    assert card_of(int, type(ATTACKS['dfme'].card)).name == 'int'


if __name__ == '__main__':
    from meco_nb.records import markdown

    rows = []
    for wrong, _ in WRONG:
        said, milliseconds = said_of(dict(wrong))
        asked = ', '.join(f'{name}={value!r}' for name, value in wrong.items())
        line = said.splitlines()[0].split('known:')[0]
        rows.append({'settings': asked, 'what is said': line[:110], 'ms': f'{milliseconds:.0f}'})
    print(markdown(rows))
