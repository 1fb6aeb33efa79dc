"What the defenses that change the answer promise."

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from meco_nb.defenses.noise import GaussianInput, GaussianOutput, match_l1, mean_l1, onto_simplex
from meco_nb.defenses.outputs import ModelGuardS, RandP, best_answer, linear_programme, toward
from meco_nb.defenses.poisoning import Grad, PPoison, against_gradient, along_ones
from meco_nb.experiment import run
from meco_nb.methods import DEFENSES
from meco_nb.models import build_model
from meco_nb.oracle import Oracle, Undefended
from meco_nb.settings import resolve
from meco_nb.training import evaluate

KEEPING = dict(
    randp={}, p_poison={}, grad={}, modelguard_w={}, modelguard_s={}, top1={}, gaussian_output={}
)
BOUNDED = KEEPING | {
    'randp, any': dict(keep_argmax=False),
    'p_poison, extreme': dict(variant='extreme'),
    'p_poison, target': dict(compare='target'),
    'grad, any': dict(keep_argmax=False),
    'grad, min_ip': dict(goal='min_ip'),
}
OTHER = dict(
    rounding={},
    reverse_sigmoid={},
    gaussian_input={},
    uint8_input={},
    **{'gaussian_output, any': dict(keep_argmax=False)},
)


def make(name, victim, given, **more):
    cls = DEFENSES[name.split(',')[0]]
    if hasattr(cls(victim), 'randomness'):
        more |= dict(seeding='keyed', key=b'k')
    return cls(victim, **given, **more).eval()


def by_programme(p, c, l1, keep, margin=1e-4):
    "The cost of the best answer, by the slow solver."
    return (linear_programme(p, c, l1, keep, margin) @ c.double()).item()


def distribution(seed, K, kind, count=1):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(count, K, generator=random)
    return dict(
        flat=(values / 10).softmax(-1),
        usual=(3 * values).softmax(-1),
        sure=(40 * values).softmax(-1),
        corner=F.one_hot(values.argmax(-1), K).float(),
        tie=(20.0 * (values > 0)).softmax(-1),
        uniform=torch.full((count, K), 1 / K),
    )[kind]


DISTRIBUTIONS = dict(
    seed=st.integers(0, 10_000),
    K=st.sampled_from([2, 3, 10, 100]),
    kind=st.sampled_from(['flat', 'usual', 'sure', 'corner', 'tie', 'uniform']),
)


@settings(deadline=None, max_examples=60)
@given(
    **{**DISTRIBUTIONS, 'K': st.sampled_from([2, 3, 7, 10])},
    l1=st.sampled_from([0.05, 0.3, 1.0, 1.7, 2.0]),
    keep=st.booleans(),
)
def test_the_best_answer_is_the_linear_programme_s(seed, K, kind, l1, keep):
    p, c = (
        distribution(seed, K, kind),
        torch.randn(1, K, generator=torch.Generator().manual_seed(seed + 1)),
    )
    top = p.topk(2).values[0]
    if keep and top[0] - top[1] < 2e-4:
        return
    ours = (best_answer(p, c, l1, keep).double() @ c[0].double()).item()
    assert abs(ours - by_programme(p[0], c[0].double(), l1, keep)) < 1e-5


@settings(deadline=None, max_examples=100)
@given(
    **DISTRIBUTIONS,
    l1=st.floats(0, 2),
    keep=st.booleans(),
    costs=st.sampled_from(['random', 'equal', 'log', 'huge']),
)
def test_answers_stay_inside_the_budget_and_keep_the_top(seed, K, kind, l1, keep, costs):
    p, c = (
        distribution(seed, K, kind, 5),
        torch.randn(5, K, generator=torch.Generator().manual_seed(seed + 1)),
    )
    c = dict(random=c, equal=0 * c, log=(p + 1e-6).log(), huge=1e12 * c)[costs]
    for answers in (
        best_answer(p, c, l1, keep),
        toward(p, c.softmax(-1), l1, keep),
        toward(p, F.one_hot(c.argmin(-1), K).float(), l1, keep),
    ):
        assert (
            answers.isfinite().all()
            and answers.min() >= 0
            and torch.allclose(answers.sum(-1), torch.ones(5), atol=1e-5)
        )
        assert (answers - p).abs().sum(-1).max() <= l1 + 1e-5
        if keep:
            assert torch.equal(answers.argmax(-1), p.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize('name', BOUNDED | OTHER)
def test_answers_are_valid_and_independent_of_the_batch(victim, name):
    defense = make(name, victim, (BOUNDED | OTHER)[name])

    @settings(deadline=None, max_examples=8)
    @given(
        seed=st.integers(0, 10_000),
        count=st.integers(1, 7),
        kind=st.sampled_from(['uniform', 'black', 'white', 'bits']),
    )
    def check(seed, count, kind):
        images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        images = dict(uniform=images, black=0 * images, white=0 * images + 1, bits=images.round())[
            kind
        ]
        if hasattr(defense, 'reset'):
            defense.reset()
        answers, probs = defense(images), victim(images).softmax(-1)
        assert (
            answers.isfinite().all()
            and answers.min() >= 0
            and torch.allclose(answers.sum(-1), torch.ones(count), atol=1e-5)
        )
        if name in KEEPING:
            assert torch.equal(answers.argmax(-1), probs.argmax(-1))
        if name in BOUNDED and name not in ('top1', 'gaussian_output'):
            assert (answers - probs).abs().sum(-1).max() <= 1 + 1e-5
        if hasattr(defense, 'reset'):
            defense.reset()
        assert torch.allclose(
            torch.cat([defense(image[None]) for image in images]), answers, atol=1e-4
        )
        if hasattr(defense, 'reset'):
            return  # its answers depend on the order, as they should
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(defense(images[order]), answers[order], atol=1e-4)

    check()


@pytest.mark.parametrize('name', KEEPING)
def test_a_kept_top_class_is_the_victim_s_accuracy_exactly(victim, digits, name):
    defense = make(name, victim, KEEPING[name])
    result = evaluate(defense, digits.test, Undefended(victim))
    assert (
        result['accuracy'] == evaluate(victim, digits.test)['accuracy'] and result['agreement'] == 1
    )


@torch.no_grad()
@pytest.mark.parametrize('shape, classes', [((3, 16, 16), 2), ((1, 8, 8), 11), ((3, 8, 8), 1000)])
def test_any_number_of_classes_and_colours(shape, classes):
    victim = build_model(
        'lenet5',
        type('Problem', (), dict(shape=shape, num_classes=classes)),
        seed=0,
        batch_norm=True,
    ).eval()
    for name, settings_ in (BOUNDED | OTHER).items():
        oracle = Oracle(make(name, victim, settings_), 4)
        assert oracle(torch.rand(4, *shape)).shape == (4, classes)


def test_the_public_randp_changes_the_top_class_at_budget_1(victim, digits):
    images = digits.test.tensors[0]
    with torch.no_grad():
        same = RandP(victim, 1.0, keep_argmax=False, seeding=0)(images).argmax(-1) == victim(
            images
        ).argmax(-1)
    assert same.float().mean() < 0.15


@torch.no_grad()
def test_modelguard_s_remembers_across_threads_and_restarts(victim, digits):
    images = digits.test.tensors[0]
    guard = ModelGuardS(victim, 0.2).eval()
    threads = [
        threading.Thread(
            target=lambda part=part: guard.change(victim(part).softmax(-1).detach(), part)
        )
        for part in images.split(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    near = (torch.cdist(guard.memory.given, guard.memory.given, p=1) <= 0.2) & (
        guard.memory.given.argmax(-1)[:, None] == guard.memory.given.argmax(-1)
    )
    assert torch.equal(near, torch.eye(len(near), dtype=torch.bool))  # no answer was added twice
    first, second = Oracle(ModelGuardS(victim, 0.2), 500), Oracle(ModelGuardS(victim, 0.2), 500)
    first(images[:100])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images[100:200]), second(images[100:200]))
    assert torch.equal(copy.deepcopy(guard).memory.given, guard.memory.given)


def slow_coefficients(victim, image, p, goal):
    "GRAD's coefficients for one image, by double backpropagation."
    parameters, w = list(victim.parameters()), torch.zeros(10, requires_grad=True)
    log_probs = victim(image[None])[0].log_softmax(-1)
    gradient = torch.autograd.grad((w * log_probs).sum(), parameters, create_graph=True)
    direction = [torch.ones_like(q) for q in parameters]
    if goal == 'gradient':
        honest = torch.autograd.grad((p * log_probs).sum(), parameters, retain_graph=True)
        direction = [-g for g in honest]
    product = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    return torch.autograd.grad(product, w)[0]


def test_coefficients_are_those_of_double_backpropagation(victim):
    images, probs = torch.rand(3, 1, 8, 8), torch.rand(3, 10).softmax(-1)
    found = dict(ones=along_ones(victim, images), gradient=against_gradient(victim, images, probs))
    for goal, ours in found.items():
        for image, p, c in zip(images, probs, ours, strict=True):
            slow = slow_coefficients(victim, image, p, goal)
            assert torch.allclose(c, slow, rtol=1e-4, atol=1e-5 * slow.abs().max().item())


def test_a_surrogate_is_trained_repeatably_and_leaves_the_victim_alone(victim, digits, tmp_path):
    before = torch.cat([p.flatten() for p in victim.parameters()])
    surrogates = [
        torch.cat(
            [
                p.flatten()
                for p in Grad(victim)
                .fit(digits, epochs=epochs, count=300, checkpoint=tmp_path / f'{i}')
                .surrogate.parameters()
            ]
        )
        for i, epochs in enumerate([0, 1, 1])
    ]
    assert torch.equal(surrogates[1], surrogates[2]) and not torch.equal(
        surrogates[0], surrogates[1]
    )
    assert torch.equal(before, torch.cat([p.flatten() for p in victim.parameters()]))
    assert torch.equal(
        before,
        torch.cat(
            [
                p.flatten()
                for p in PPoison(victim).fit(digits, epochs=1, count=64).victim.parameters()
            ]
        ),
    )


def test_controls_have_the_distance_they_were_given(victim, digits):
    for control in (
        GaussianOutput(victim),
        GaussianOutput(victim, keep_argmax=False),
        GaussianInput(victim),
    ):
        match_l1(control, digits, 0.2)
        assert abs(mean_l1(control, digits) - 0.2) < 0.01
        loaded = type(control)(victim)
        loaded.load_state_dict(control.state_dict())
        assert loaded.size == control.size
    with pytest.raises(ValueError, match='no size'):
        match_l1(GaussianOutput(victim), digits, 1.9)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    K=st.sampled_from([2, 10, 1000]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_the_projection_is_a_distribution_and_leaves_distributions_alone(seed, K, scale):
    values = scale * torch.randn(4, K, generator=torch.Generator().manual_seed(seed))
    answers = onto_simplex(values)
    assert answers.min() >= 0 and torch.allclose(answers.sum(-1), torch.ones(4), atol=1e-3)
    assert torch.allclose(onto_simplex(values.softmax(-1)), values.softmax(-1), atol=1e-5)


@pytest.mark.parametrize(
    'words',
    [
        dict(randp=dict(l1=3)),
        dict(modelguard_w=dict(l1=-1)),
        dict(p_poison=dict(variant='all')),
        dict(grad=dict(goal='ones')),
        dict(rounding=dict(decimals=-1)),
        dict(reverse_sigmoid=dict(beta=2.0)),
        dict(gaussian_input=dict(size=-0.1)),
    ],
)
def test_a_bad_setting_fails_at_once(victim, words):
    ((name, given),) = words.items()
    with pytest.raises(ValueError):
        DEFENSES[name](victim, **given)


def test_unknown_settings_fail_before_anything_is_computed():
    for name in ('randp', 'grad', 'gaussian_output', 'rounding'):
        with pytest.raises(ValueError, match='unknown setting'):
            resolve(preset='digits', defense=name, defense_settings=dict(bugdet=1))


@pytest.mark.parametrize(
    'name, given',
    [
        ('randp', {}),
        ('grad', dict(epochs=1, count=128)),
        ('modelguard_s', {}),
        ('gaussian_output', dict(l1=0.05)),
    ],
)
def test_an_experiment_runs_and_is_repeatable(name, given):
    models = {}
    records = [
        run(
            models,
            preset='digits',
            defense=name,
            defense_settings=given,
            budget=300,
            victim_settings=dict(epochs=1),
        )
        for _ in range(2)
    ]
    assert records[0].weights == records[1].weights and records[0].utility == records[1].utility
