"What every attack promises."

import inspect
import io
import traceback

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from meco_nb.alone import alone
from meco_nb.attacks.adaptive import PERTURB
from meco_nb.attacks.base import steal
from meco_nb.defenses.model_guardian import ModelGuardian
from meco_nb.experiment import run
from meco_nb.methods import ATTACKS, AttackCard, card_of, check_settings, settings_of
from meco_nb.models import build_model, network_name
from meco_nb.oracle import Averaged, Oracle, Undefended, Wrapped
from meco_nb.parties import in_service
from meco_nb.relearn import BELIEVE
from meco_nb.settings import resolve
from meco_nb.theft import Theft, judge_chosen
from meco_nb.thieves import EVERY, graded_settings, row_of

CARDS = {name: card_of(ATTACKS[name], AttackCard) for name in ATTACKS}
SMALL = {name: card.small for name, card in CARDS.items()}


@pytest.fixture(scope='module')
def real(digits):
    return digits.train[:20][0]


def start(name, oracle, real, batch_size=16, seed=0, **more):
    clone = build_model('lenet5', oracle, seed=1 + seed, batch_norm=True)
    settings = SMALL[name] | more
    return ATTACKS[name](clone, batch_size=batch_size, seed=seed, images=real, **settings)


def finish(attack, oracle):
    "The weights of the clone at the end, in one row."
    clone = steal(attack, oracle)
    return torch.cat([tensor.flatten().float() for tensor in clone.state_dict().values()])


class Watched:
    "A defense that checks every image it is asked about."

    def __init__(self, victim):
        self.victim, self.asked = victim, 0

    def __call__(self, images):
        assert images.min() >= 0 and images.max() <= 1 and images.isfinite().all()
        self.asked += len(images)
        return self.victim(images).softmax(-1)


@pytest.mark.parametrize('name', ATTACKS)
@settings(deadline=None, max_examples=8)
@given(
    budget=st.integers(1, 400),
    batch_size=st.integers(1, 70),
    labels=st.sampled_from(['soft', 'hard']),
)
def test_any_budget_is_spent_to_the_query(name, victim, real, budget, batch_size, labels):
    if name in ('ideal', 'qedg'):  # in every round they learn again from everything
        budget = min(budget, 12 * batch_size)
    # At its own rate, .3, batches of one image make it diverge, and what has diverged asks no more.
    slow = dict(clone_lr=0.01) if name == 'dual_students' else {}
    watched = Watched(victim.eval())
    oracle = Oracle(watched, budget, labels)
    attack = start(name, oracle, real, batch_size, **slow)
    if labels not in CARDS[name].labels:
        with pytest.raises(ValueError, match='labels'):
            finish(attack, oracle)
        return
    finish(attack, oracle)
    assert oracle.used == watched.asked == budget


@pytest.mark.parametrize('name', ATTACKS)
def test_a_step_costs_what_it_says(name, victim, real):
    oracle = Oracle(Undefended(victim), 600)
    attack = start(name, oracle, real)
    while not attack.done(oracle):
        before, cost = dict(oracle.ledger), attack.cost()
        attack.step(oracle)
        spent = {k: v - before.get(k, 0) for k, v in oracle.ledger.items() if v > before.get(k, 0)}
        if oracle.remaining and getattr(attack, 'cost_is_exact', True):
            assert spent == {k: v for k, v in cost.items() if v}
        else:
            assert sum(spent.values()) <= sum(cost.values())
    assert set(oracle.ledger) == set(CARDS[name].purposes)


@pytest.mark.parametrize('name', ATTACKS)
def test_a_stopped_attack_goes_on_bit_for_bit(name, victim, real):
    def fresh(seed=0):
        oracle = Oracle(Undefended(victim), 300)
        return start(name, oracle, real, seed=seed), oracle

    attack, oracle = fresh()
    steps = sum(1 for _ in attack.run(oracle))
    whole = finish(attack, oracle)
    assert torch.equal(whole, finish(*fresh())) and not torch.equal(whole, finish(*fresh(seed=1)))
    for stop in sorted({0, 1, steps // 2, steps - 1}):
        first, oracle = fresh()
        for _ in range(stop):
            next(first.run(oracle))
        states = first.state_dict(), oracle.state_dict()
        torch.save(states, buffer := io.BytesIO())
        second, oracle = fresh()
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        for part, state in zip((second, oracle), saved, strict=True):
            part.load_state_dict(state)
        assert torch.equal(whole, finish(second, oracle)), f'stopped after {stop} steps'


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('shape, classes', [((3, 17, 9), 2), ((1, 64, 64), 1000)])
def test_it_works_for_any_victim(name, shape, classes):
    def network():
        linear = torch.nn.Linear(16 * shape[0], classes)
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), linear)

    victim, clone = network(), network()
    oracle, more = Oracle(Undefended(victim), 60, shape=shape, num_classes=classes), SMALL[name]
    if 'latent' in settings_of(ATTACKS[name]):
        more = more | dict(latent=1024)  # room for a class in each number
    real, before = torch.rand(10, *shape), clone[2].weight.clone()
    attack = ATTACKS[name](clone, batch_size=8, shape=shape, images=real, **more)
    steal(attack, oracle)
    assert oracle.used == 60 and attack.samples(3).shape == (3, *shape)
    assert not torch.equal(before, clone[2].weight)


@pytest.mark.parametrize('name', ATTACKS)
def test_looking_at_samples_changes_nothing(name, victim, real):
    def go(look):
        oracle = Oracle(Undefended(victim), 200)
        attack = start(name, oracle, real)
        for _ in attack.run(oracle):
            if look:
                attack.samples(5, seed=3)
        return finish(attack, oracle)

    assert torch.equal(go(False), go(True))


@pytest.mark.parametrize('name', ATTACKS)
def test_every_setting_has_a_type_and_takes_no_nonsense(name, victim, real):
    oracle, cls = Oracle(Undefended(victim), 0), ATTACKS[name]
    for setting, (kind, _) in settings_of(cls).items():
        assert kind is not inspect.Parameter.empty, f'{setting} has no type'
        for wrong in [object(), -1.5, 'nonsense']:
            with pytest.raises(ValueError, match=setting):
                cls(build_model('lenet5', oracle), images=real, **{setting: wrong})


@pytest.mark.parametrize('name', ATTACKS)
def test_its_presets_are_settings_of_it(name):
    card = CARDS[name]
    for preset in [*card.presets.values(), card.small, card.untrained or {}]:
        assert check_settings(name, preset, ATTACKS[name]) == preset


@pytest.mark.parametrize('name', [name for name in ATTACKS if CARDS[name].untrained is not None])
def test_its_control_leaves_the_generator_alone(name, victim, real):
    oracle = Oracle(Undefended(victim), 300)
    attack = start(name, oracle, real, **CARDS[name].untrained)
    before = [parameter.clone() for parameter in attack.generator.parameters()]
    steal(attack, oracle)
    assert set(oracle.ledger) == {'clone'}
    for old, new in zip(before, attack.generator.parameters(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('perturb', PERTURB)
def test_every_attack_goes_with_every_wrapper(name, perturb, victim, real):
    more = dict(
        attack_settings=SMALL[name],
        budget=400,
        held_back=40,
        average=3,
        clone_average=0.9,
        labels='hard',
        perturb=perturb,
    )
    s = resolve(preset='digits', defense='undefended', attack=name, **more)
    theft = Theft(s, Undefended(victim), real)
    theft.run(lambda clone: {})
    assert theft.oracle.ledger['held back'] == 40 and 400 - 3 < theft.oracle.used <= 400
    assert judge_chosen(theft, lambda clone: {})['which']
    assert all(p.isfinite().all() for p in theft.clone.parameters())


def test_averaging_asks_in_whole_images(victim):
    oracle = Oracle(Undefended(victim), 10)
    view = Averaged(oracle, 3)
    view(torch.rand(3, 1, 8, 8))
    assert view.remaining == 0 and oracle.used == 9


def test_every_row_of_the_strongest_set_is_valid(digits):
    names = {str(graded_settings(row_of(name), digits, 1_000)) for name in EVERY}
    assert len(names) == len(EVERY)


@pytest.mark.parametrize(
    'settings',
    [
        dict(attack='knockoff', attack_settings=dict(adaptive=True)),
        dict(attack='dfme', attack_settings=dict(source='shpaes')),
        dict(attack='jbda', real_images=0),
        dict(attack='dfme', attack_settings=dict(gradient='both')),
    ],
)
def test_bad_settings_say_what_to_do(settings):
    with pytest.raises(ValueError, match='needs a source|unknown source|must be'):
        run(
            preset='digits',
            defense='undefended',
            budget=100,
            victim_settings=dict(epochs=0),
            **settings,
        )


def test_a_full_batch_of_zsdb3kd_costs_no_more_than_it_says(victim, real):
    attack = start('zsdb3kd', Oracle(Undefended(victim), 1), real, batch_size=2)
    oracle = Oracle(Undefended(victim), sum(attack.cost().values()))
    attack.step(oracle)
    assert 0 < oracle.used <= oracle.budget and len(attack.bought) == 2


@pytest.mark.parametrize('name', ATTACKS)
def test_learning_once_more_costs_nothing_and_changes_nothing(name):
    more = dict(attack_settings=SMALL[name], budget=300, victim_settings=dict(epochs=1))
    labels = CARDS[name].labels[0]
    plain, again = (
        run(preset='digits', defense='undefended', attack=name, labels=labels, relearn=n, **more)
        for n in (0, 2)
    )
    assert plain.ledger == again.ledger and plain.weights == again.weights
    assert set(again.others) == {*plain.others, 'relearned'}


@pytest.mark.parametrize('believe', BELIEVE)
def test_what_is_believed_changes_the_relearned_clone_alone(believe):
    more = dict(attack_settings=SMALL['knockoff'], budget=200, victim_settings=dict(epochs=1))
    runs = [
        run(preset='digits', defense='undefended', attack='knockoff', relearn=2, believe=b, **more)
        for b in ('all', believe)
    ]
    assert runs[0].ledger == runs[1].ledger and runs[0].weights == runs[1].weights
    accuracy = [record.others['relearned'] for record in runs]
    assert (accuracy[0] == accuracy[1]) == (believe == 'all')


def test_more_accounts_buy_more_where_access_ends(victim, digits):
    guard = ModelGuardian(victim, limit=200)
    guard.suspicious = lambda images: torch.ones(len(images), dtype=torch.bool)
    asked = {}
    for users in (1, 4):
        s = resolve(preset='digits', attack='knockoff', budget=1_000, users=users)
        theft = Theft(s, in_service(guard, 0), shape=digits.shape, num_classes=10)
        theft.run(lambda clone: {}, points=0)
        asked[users] = theft.oracle.used
    assert asked == {1: 192, 4: 768}  # three batches of 64 each


def test_a_thief_without_a_victim_asks_nothing_and_is_the_same_again(digits):
    clones = [
        alone(build_model('lenet5', digits, seed=1), digits, 20, copies=200, epochs=2)
        for _ in range(2)
    ]
    first, second = (torch.cat([p.flatten() for p in c.parameters()]) for c in clones)
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match='real_images'):
        alone(clones[0], digits, 0)


def multilayer(shape, num_classes):
    width = torch.Size(shape).numel()
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, num_classes))


@pytest.mark.parametrize('name', ATTACKS)
def test_any_network_is_a_clone_and_the_shape_is_the_oracles(name, victim, digits):
    s = resolve(
        preset='digits',
        attack=name,
        budget=60,
        labels=CARDS[name].labels[0],
        batch_size=8,
        attack_settings=SMALL[name],
        relearn=1,
    )
    network, start = multilayer(digits.shape, 10), dict(shape=digits.shape, num_classes=10)
    for clone in (network, multilayer):
        theft = Theft(s, Undefended(victim), digits.train[:20][0], clone=clone, **start)
        theft.run(lambda clone: {}, points=0)
        assert theft.oracle.used == 60 and theft.others()['relearned'] is not theft.clone
    assert network_name(multilayer).endswith(':multilayer')


class Waits(TorchDispatchMode):
    "Counts how often a number is read out of a tensor: a GPU would have to be waited for."

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten._local_scalar_dense:
            inside = [frame.filename for frame in traceback.extract_stack()[-12:]]
            self.count += not any('torch/optim' in name for name in inside)  # a counter on the CPU
        return function(*args, **kwargs or {})


class CountsCalls(Wrapped):
    calls = 0

    def __call__(self, images, purpose='clone'):
        self.calls += 1
        return self._oracle(images, purpose)


@pytest.mark.parametrize('name', ['dfme', 'maze', 'disguide', 'dual_students'])
def test_an_iteration_waits_twice_for_each_question(name, victim, real):
    "For the images at the border and for the answers; and for what is kept in the CPU's memory."
    labels = CARDS[name].labels[0]
    oracle = CountsCalls(Oracle(Undefended(victim), 100_000, labels))
    attack = start(name, oracle, real)
    steps = attack.run(oracle)
    next(steps), next(steps)
    oracle.calls = 0
    with Waits() as waits:
        next(steps)
    kept = 2 if hasattr(attack, 'memory') else 0
    assert 0 < waits.count <= 2 * oracle.calls + kept
