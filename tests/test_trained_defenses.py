"What the defenses that train or detect promise."
import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.utils.data import TensorDataset

from meco_nb.defenses import DEFENSES, ensembles
from meco_nb.defenses.detection import doubt_loss, wrong_loss
from meco_nb.defenses.ensembles import coherence, pick, reinitialised
from meco_nb.defenses.guardian import ModelGuardian, admitted, deceive
from meco_nb.defenses.ini import ini_objectives, pcgrad
from meco_nb.defenses.synthetic import SYNTHETIC, diffusion_images, gan_images, thief_images
from meco_nb.experiment import run
from meco_nb.images import make_images
from meco_nb.models import build_model
from meco_nb.oracle import AccessEnded, Oracle
from meco_nb.training import load_weights, save_weights

NAMES = ['edm', 'misleader', 'ini', 'adaptive_misinformation', 'model_guardian']
QUICK = dict(model_guardian=dict(most=64))  # beside few epochs
GUARDIAN = dict(sources=['thief', 'diffusion'], key=b'k')


class Problem: shape, num_classes = (3, 20, 24), 7


def weights(module): return torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()])


def build(name, victim): return DEFENSES[name](victim, **(GUARDIAN if name == 'model_guardian' else {}))


@pytest.fixture(scope='module', autouse=True)
def quick_makers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensembles, 'anchor_task', partial(ensembles.anchor_task, each=20))
        patch.setitem(SYNTHETIC, 'thief', lambda victim, data, count, seed: thief_images(victim, data, count, budget=500, seed=seed))
        patch.setitem(SYNTHETIC, 'diffusion', lambda victim, data, count, seed: diffusion_images(data, count, epochs=1, width=8, seed=seed))
        yield


@pytest.fixture(scope='module')
def few(digits): return replace(digits, train=TensorDataset(*digits.train[:320]))


@pytest.fixture(scope='module')
def defenses(few, victim): return {name: build(name, victim).fit(few, epochs=1, **QUICK.get(name, {})) for name in NAMES}


@pytest.mark.parametrize('name', NAMES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 9), kind=st.sampled_from(['uniform', 'black', 'white', 'bits']))
def test_answers_are_probabilities_and_independent_of_the_batch(defenses, name, seed, count, kind):
    defense = defenses[name]
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = dict(uniform=images, black=0 * images, white=0 * images + 1, bits=images.round())[kind]
    getattr(defense, 'reset', int)()
    with torch.no_grad(): answers, alone = defense(images), torch.cat([defense(image[None]) for image in images])
    assert answers.isfinite().all() and answers.min() >= 0 and torch.allclose(answers.sum(-1), torch.ones(count), atol=1e-5)
    assert torch.allclose(answers, alone, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_training_is_repeatable_leaves_the_original_alone_and_is_in_the_weights(defenses, digits, few, victim, name, tmp_path):
    before = weights(victim)
    again = build(name, victim).fit(few, epochs=1, **QUICK.get(name, {}))
    assert torch.equal(weights(again), weights(defenses[name])) and torch.equal(before, weights(victim))
    assert not torch.equal(weights(again), weights(build(name, victim)))
    save_weights(tmp_path / 'it.safetensors', again, {})
    loaded, images = load_weights(tmp_path / 'it.safetensors', build(name, victim)), digits.test.tensors[0][:40]
    with torch.no_grad(): assert torch.equal(loaded(images), again(images))


@pytest.mark.parametrize('name', NAMES)
def test_training_goes_on_from_a_checkpoint(few, victim, name, tmp_path):
    class Stop(Exception): pass
    def stop(): raise Stop
    whole = build(name, victim).fit(few, epochs=2, **QUICK.get(name, {}))
    with pytest.raises(Stop): build(name, victim).fit(few, epochs=2, checkpoint=tmp_path / 'c', each_epoch=stop, **QUICK.get(name, {}))
    assert (tmp_path / 'c').exists()
    assert torch.equal(weights(build(name, victim).fit(few, epochs=2, checkpoint=tmp_path / 'c', **QUICK.get(name, {}))), weights(whole))


@pytest.mark.parametrize('name', NAMES)
def test_it_defends_a_model_with_batch_norm_and_colour(name):
    defense = DEFENSES[name](build_model('lenet5', Problem, batch_norm=True)).eval()
    assert defense(torch.rand(3, 3, 20, 24)).shape == (3, 7)
    oracle = Oracle(defense, budget=10)
    assert oracle.shape == (3, 20, 24) and oracle.num_classes == 7 and oracle(torch.rand(2, 3, 20, 24)).shape == (2, 7)


@pytest.mark.parametrize('name', NAMES)
def test_an_experiment_runs(name):
    own = dict(epochs=1) | QUICK.get(name, {}) | (dict(sources=['thief']) if name == 'model_guardian' else {})
    record = run(preset='digits', defense=name, defense_settings=own, victim_settings=dict(epochs=1), budget=600)
    assert sum(record.ledger.values()) == 600


def test_pcgrad_by_hand():
    assert torch.allclose(pcgrad(torch.tensor([[1., 0], [-1, 1]])), torch.tensor([.25, .75]))
    assert torch.allclose(pcgrad(torch.tensor([[2., 0], [0, 3]])), torch.tensor([1., 1.5]))


@given(seed=st.integers(0, 10_000))
def test_two_projected_gradients_oppose_neither(seed):
    a, b = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    mean = pcgrad(torch.stack([a, b]))
    assert mean @ a >= -1e-4 and mean @ b >= -1e-4


def test_objectives_reach_the_victim_and_not_the_clone(digits, victim):
    victim, clone = copy.deepcopy(victim), reinitialised(victim, 1).eval()
    images, labels = digits.train.tensors[0][:16], digits.train.tensors[1][:16]
    for objective in ini_objectives(victim, clone, images, labels, make_images('shapes', 16, digits.shape)):
        assert any(g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(objective, list(victim.parameters()), allow_unused=True, retain_graph=True))
    assert all(p.grad is None for p in clone.parameters())


@given(classes=st.integers(2, 1000), members=st.integers(2, 9), bins=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_the_index_is_in_range_and_surest_answers_stay_with_their_class(classes, members, bins, seed):
    random = torch.Generator().manual_seed(seed)
    probs = torch.cat([(20 * torch.rand(8, classes, generator=random)).softmax(-1), torch.eye(classes)[:8], torch.full((1, classes), 1 / classes)])
    index = pick(probs, members, bins)
    assert index.min() >= 0 and index.max() < members
    assert torch.equal(index[8:-1], (bins * torch.arange(min(8, classes)) + bins - 1) % members)


def test_one_member_is_asked_and_members_disagree_elsewhere(defenses, digits):
    edm, images = defenses['edm'], digits.test.tensors[0]
    with torch.no_grad(): index, answers = edm.route(images), edm(images)
    for i, member in enumerate(edm.members):
        with torch.no_grad(): assert torch.allclose(answers[index == i], member(images[index == i]).softmax(-1), atol=1e-5)
    assert coherence(edm.members, images).min() >= -1e-5 and coherence(edm.members, images).max() <= 1 + 1e-5


def test_the_limits_of_adaptive_misinformation(defenses, digits):
    am, images = copy.deepcopy(defenses['adaptive_misinformation']), digits.test.tensors[0]
    with torch.no_grad():
        for threshold, model in [(0., am.victim), (2., am.misinformer)]:
            am.threshold = threshold
            assert torch.allclose(am(images), model(images).softmax(-1), atol=1e-6)


@given(seed=st.integers(0, 10_000), scale=st.floats(.1, 200))
def test_losses_of_doubt_and_of_being_wrong(seed, scale):
    logits = scale * torch.randn(5, 7, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(5)
    assert torch.allclose(doubt_loss(logits), F.cross_entropy(logits, torch.full((5, 7), 1 / 7, dtype=torch.double)))
    assert wrong_loss(logits, labels).isfinite() and wrong_loss(logits, labels) >= 0


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 50), budget=st.floats(0, 2), scale=st.floats(.1, 30))
def test_a_lie_keeps_the_top_class_and_the_budget(seed, classes, budget, scale):
    random = torch.Generator().manual_seed(seed)
    probs, noise = (scale * torch.randn(6, classes, generator=random)).softmax(-1), torch.randn(6, classes, generator=random)
    lies = deceive(probs, noise, budget)
    assert lies.min() >= 0 and torch.allclose(lies.sum(-1), torch.ones(6), atol=1e-5)
    assert (lies - probs).abs().sum(-1).max() <= budget + 1e-5
    assert (lies.gather(-1, probs.argmax(-1, keepdim=True))[:, 0] >= lies.amax(-1) - 1e-6).all()


def test_synthetic_images_are_images_and_repeatable(digits, victim):
    for make in [lambda: gan_images(digits, 20, epochs=1, width=4), lambda: diffusion_images(digits, 20, epochs=1, width=8), lambda: thief_images(victim, digits, 20, budget=100)]:
        images = make()
        assert images.shape == (20, 1, 8, 8) and images.min() >= 0 and images.max() <= 1 and torch.equal(images, make())


def always(victim, **settings):
    guardian = ModelGuardian(victim, **{'refuse': 'uniform', **settings})
    guardian.detector.threshold.fill_(-torch.inf)  # flags everything
    return guardian


def test_access_ends_for_one_user_and_at_the_limit(victim):
    guardian, images = always(victim, limit=5, window=8, key=b'k'), torch.rand(8, 1, 8, 8)
    answers = guardian.as_user('thief')(images)
    assert torch.allclose(answers[5:], torch.tensor(.1)) and not (answers[:5] == .1).all(-1).any()
    assert guardian.users['thief']['ended'] and torch.allclose(guardian.as_user('other')(images[:5]), answers[:5], atol=1e-5)
    guardian.refuse = 'raise'
    with pytest.raises(AccessEnded, match='thief'): guardian.as_user('thief')(images[:1])
    assert guardian.users['thief']['asked'] == 9 and not guardian.users['other']['ended']
    guardian.reset()
    assert guardian.as_user('thief')(images[:5]).shape == (5, 10)


@pytest.mark.parametrize('seeding', ['keyed', 3])
def test_a_restarted_service_answers_as_if_nothing_had_happened(victim, seeding, tmp_path):
    images = torch.rand(12, 1, 8, 8)
    first = Oracle(always(victim, limit=7, window=9, seeding=seeding, key=b'k'), budget=100)
    first(images[:4])
    torch.save(first.state_dict(), tmp_path / 's')
    expected = first(images[4:])
    second = Oracle(always(victim, limit=7, window=9, seeding=seeding, key=b'k'), budget=100)
    second.load_state_dict(torch.load(tmp_path / 's', weights_only=True))
    assert torch.equal(second(images[4:]), expected) and torch.allclose(expected[-1], torch.tensor(.1))


def test_flags_leave_the_window():
    flags = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    none = torch.zeros(0, dtype=torch.bool)
    assert admitted(none, flags, limit=3, window=4) == 8 and admitted(none, flags, limit=4, window=4) == 9


@pytest.mark.parametrize('wrong', [dict(sources=['magic']), dict(sources=[]), dict(refuse='shrug'), dict(representation='sound')])
def test_the_guardian_says_what_is_wrong(victim, wrong):
    with pytest.raises(ValueError): ModelGuardian(victim, **wrong)


def test_ensembles_say_what_is_wrong(victim):
    with pytest.raises(ValueError, match='two members'): DEFENSES['edm'](victim, members=1)
    with pytest.raises(ValueError, match='unknown model'): DEFENSES['misleader'](victim, models=['lenet5', 'lenet6'])


def test_a_theft_ends_with_its_access(victim, digits):
    "The refused batch is not charged, and what was bought is learned."
    from meco_nb.settings import resolve
    from meco_nb.theft import Theft
    for attack in ('dfme', 'knockoff', 'jbda', 'dfms_hl', 'maze'):
        small = dict(maze=dict(directions=2), dfms_hl=dict(width=8, gan_steps=3, fit_epochs=1), knockoff=dict(epochs=2), jbda=dict(epochs=1))
        s = resolve(preset='digits', defense='undefended', attack=attack, budget=3000, held_back=100, attack_settings=small.get(attack, {}))
        theft = Theft(s, always(victim, limit=500, window=1000, refuse='raise'), digits.train[:20][0])
        before = theft.clone.network[0].weight.clone()
        theft.run(lambda clone: {})
        assert 0 < theft.oracle.used <= 500 and not torch.equal(before, theft.clone.network[0].weight)
