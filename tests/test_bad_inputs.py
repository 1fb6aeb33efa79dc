"""Whatever is wrong is said in one sentence, by this package, before anything is trained or bought.

`python tests/test_bad_inputs.py` prints the table: what was wrong, and what is said of it."""

import contextlib
import functools
import inspect
import json
import math
import tempfile
import traceback
import types
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import meco_nb
from meco_nb import files, oracle, training
from meco_nb.answers import AsLogits, check_classifier, logits_of, probabilities_of
from meco_nb.attacks.adaptive import LearnedNoise, perturbed_pair
from meco_nb.attacks.base import disagreement, steal
from meco_nb.data import Data, check_data, find_dataset, hold_out, load_data, make_data
from meco_nb.defenses.edm import Classes
from meco_nb.defenses.noise import Distance, match_l1
from meco_nb.defenses.outputs import Decimals
from meco_nb.defenses.synthetic import Makers
from meco_nb.files import load_state, load_weights, save_state, save_weights
from meco_nb.grading import grade
from meco_nb.grid import run_all
from meco_nb.images import Source, SourceName, make_images
from meco_nb.methods import (
    ATTACKS,
    DEFENSES,
    L1,
    Count,
    Key,
    NotNegative,
    Positive,
    Share,
    Whole,
    check_settings,
    load_class,
    load_path,
    settings_of,
)
from meco_nb.mishaps import Ignorant
from meco_nb.models import LeNet5, build_model, find_model, reinitialised
from meco_nb.oracle import (
    Averaged,
    BudgetExceeded,
    HardLabels,
    Ledger,
    Oracle,
    Patient,
    Unanswered,
    Undefended,
)
from meco_nb.randomness import Randomness
from meco_nb.records import Record, load_records, read_record, save_record
from meco_nb.saving import load, save
from meco_nb.settings import Settings, file_name, resolve, run_name
from meco_nb.studies import pick_rows
from meco_nb.training import evaluate, fit, predict, train
from meco_nb.zeroth_order import estimate_gradient

torch.set_num_threads(1)
HOMES = Path(meco_nb.__file__).parent, Path(__file__).parent
SHAPE, CLASSES = (1, 8, 8), 3
NAN, INF = math.nan, math.inf


class Row(typing.NamedTuple):
    "One thing that somebody may get wrong."

    what: str
    call: Callable  # () -> anything
    message: str  # a part of what must be said
    kinds: tuple = (ValueError, TypeError)
    asked: int = 0  # images that a defense may have answered before it is noticed


def rows(what, function, cases, **more):
    "A row for each of (name, value, message): what `function` says of the value."
    return [
        Row(f'{what}: {name}', functools.partial(function, value), message, **more)
        for name, value, message in cases
    ]


# What is right, from which all that is wrong differs a little


class Victim(nn.Module):
    "A linear victim, whose logits are spoilt."

    def __init__(self, spoil=lambda logits: logits, shape=SHAPE, classes=CLASSES):
        super().__init__()
        self.image_shape, self.num_classes, self.spoil = SHAPE, classes, spoil
        self.layer = nn.Linear(math.prod(shape), classes)

    def forward(self, images):
        return self.spoil(3 * self.layer(images.flatten(1)))


class Nameless(nn.Module):
    "A good classifier that does not say what it is for."

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(math.prod(SHAPE), CLASSES)

    def forward(self, images):
        return self.layer(images.flatten(1))


class Picture:
    "Like an image of PIL."

    mode, size = 'L', (8, 8)


def random_images(count=4, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def fair(images):
    "An answer that is right."
    return torch.full((len(images), CLASSES), 1 / CLASSES)


def api(defense=fair, **more):
    return Oracle(defense, **(dict(budget=100, shape=SHAPE, num_classes=CLASSES) | more))


def part(count=12, images=None, labels=None):
    "A dataset of random images, or of those given."
    images = random_images(count) if images is None else images
    return TensorDataset(images, torch.arange(len(images)) % CLASSES if labels is None else labels)


@functools.cache
def toy(shape=SHAPE, classes=CLASSES):
    labels = torch.arange(24) % classes
    train, test = (part(images=random_images(n, shape), labels=labels[:n]) for n in (24, 12))
    return make_data('toy', train, test, classes)


@functools.cache
def network():
    return build_model('lenet5', toy(), seed=0).eval()


@functools.cache
def made(name):
    "A defense of a good victim."
    more = dict(sources=('gan',)) if name == 'model_guardian' else {}
    return DEFENSES[name](Victim(), **more)


SCRATCH = tempfile.TemporaryDirectory()


def fresh():
    "A folder that nobody has used."
    return Path(tempfile.mkdtemp(dir=SCRATCH.name))


def written(content, name='file.json'):
    "A file with some content."
    path = fresh() / name
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


# Images that are none


def picture_cases():
    x = random_images(2)
    return [
        ('a list', x.tolist(), 'got list'),
        ('a list of tensors', list(x), 'got list'),
        ('an array', x.numpy(), 'got ndarray'),
        ('None', None, 'got NoneType'),
        ('a path', 'cat.png', 'got str'),
        ('a number', 0.5, 'got float'),
        ('a picture', Picture(), 'got Picture'),
        ('a dict', dict(images=x), 'got dict'),
        ('uint8', (x * 255).byte(), 'got torch.uint8; for 8-bit pixels send images.float() / 255'),
        ('int64', x.long(), 'got torch.int64'),
        ('bool', x > 0.5, 'got torch.bool'),
        ('complex', x + 0j, 'got torch.complex64'),
        ('one image without a batch', x[0], 'with N at least 1, got (1, 8, 8)'),
        ('five dimensions', x[None], 'must have shape (N, 1, 8, 8)'),
        ('a scalar', torch.tensor(0.5), 'must have shape (N, 1, 8, 8) with N at least 1, got ()'),
        ('rows', x.flatten(1), 'got (2, 64)'),
        ('no image', x[:0], 'with N at least 1, got (0, 1, 8, 8)'),
        ('three channels', x.expand(-1, 3, -1, -1), 'got (2, 3, 8, 8)'),
        ('channels last', x.permute(0, 2, 3, 1), 'got (2, 8, 8, 1)'),
        ('another size', random_images(2, (1, 9, 8)), 'got (2, 1, 9, 8)'),
        ('255 pixels', 255 * x, 'lie in [0, 1]'),
        ('normalised', (x - 0.5) / 0.25, 'send raw pixels'),
        ('a little below 0', x - 0.01, 'lie in [0, 1]'),
        ('a little above 1', 0 * x + 1.01, 'lie in [0, 1]'),
        ('NaN', x * NAN, 'must be finite'),
        ('one NaN', x.clone().view(-1).index_fill(0, torch.tensor(5), NAN).view_as(x), 'finite'),
        ('inf', x + INF, 'to inf'),
        ('minus inf', x - INF, 'from -inf'),
        ('NaN in half precision', (x * NAN).half(), 'must be finite'),
        ('255 in double precision', 255 * x.double(), 'lie in [0, 1]'),
        ('sparse', x.to_sparse(), 'images must'),
        ('8-bit floats', x.to(torch.float8_e4m3fn), 'images must'),
    ]


def picture_rows():
    some = [
        case for case in picture_cases() if case[0] in ('a list', 'None', 'uint8', '255 pixels')
    ]
    wrappers = {
        'HardLabels': HardLabels,
        'Averaged': lambda oracle: Averaged(oracle, 2),
        'Averaged with jitter': lambda oracle: Averaged(oracle, 2, 1),
    }
    found = rows('images', lambda x: api()(x), picture_cases())
    for name, wrap in wrappers.items():
        found += rows(f'images through {name}', lambda x, wrap=wrap: wrap(api())(x), some)
    return [
        *found,
        Row(
            'one image too many',
            lambda: api(budget=3)(random_images()),
            'left; nothing was charged',
            (BudgetExceeded,),
        ),
        Row(
            'probabilities_of: rows',
            lambda: probabilities_of(Victim(), random_images()[..., :4]),
            'cannot answer images of shape (1, 8, 4)',
        ),
        Row(
            'probabilities_of, second call: other images',
            lambda: second(probabilities_of, Victim()),
            'cannot answer images of shape (1, 8, 4)',
        ),
    ]


def second(function, model):
    "A model that was right the first time."
    function(model, random_images())
    return function(model, random_images()[..., :4])


# Answers that are none


def answer_cases():
    "What a defense returns instead of probabilities."
    none = 'rows finite, not negative and summing to 1'
    return [
        ('logits', lambda x: 5 * x.flatten(1)[:, :3] - 2, none),
        ('NaN', lambda x: fair(x) * NAN, none),
        ('one NaN', lambda x: fair(x) + torch.eye(len(x), 3) * NAN, none),
        ('inf', lambda x: fair(x) + INF, none),
        ('minus inf', lambda x: fair(x) - INF, none),
        ('zeros', lambda x: 0 * fair(x), 'sums from 0 to 0'),
        ('sums of 0.9', lambda x: 0.9 * fair(x), 'sums from 0.9 to 0.9'),
        ('sums of 1.1', lambda x: 1.1 * fair(x), 'sums from 1.1 to 1.1'),
        ('per cent', lambda x: 100 * fair(x), 'sums from 100 to 100'),
        ('ones', lambda x: torch.ones(len(x), 3), 'sums from 3 to 3'),
        ('negative', lambda x: torch.tensor([[1.2, -0.2, 0.0]]).expand(len(x), -1), none),
        *shape_cases(),
    ]


def shape_cases():
    "What no model may return."
    return [
        ('one column', lambda x: torch.ones(len(x), 1), 'got one'),
        ('no column', lambda x: torch.ones(len(x), 0), 'got one'),
        ('too few rows', lambda x: fair(x)[1:], 'numbers for'),
        ('too many rows', lambda x: torch.cat([fair(x), fair(x)]), 'numbers for'),
        ('no row', lambda x: fair(x)[:0], 'got torch.float32 (0, 3)'),
        ('classes', lambda x: torch.zeros(len(x)).long(), 'classes become rows by F.one_hot'),
        ('one row', lambda x: fair(x)[0], 'numbers for'),
        ('a scalar', lambda x: torch.tensor(1.0), 'got torch.float32 ()'),
        ('three dimensions', lambda x: fair(x)[..., None], 'numbers for'),
        ('complex', lambda x: fair(x) + 0j, 'got torch.complex64'),
        ('a dict', lambda x: dict(logits=fair(x)), 'got dict; wrap it'),
        ('a string', lambda x: 'cat', 'a model must return'),
        ('None', lambda x: None, 'a model must return'),
        ('a tuple', lambda x: (fair(x), fair(x)), 'a model must return'),
        ('an object', lambda x: SimpleNamespace(logits=fair(x)), 'got SimpleNamespace; wrap it'),
        ('strings', lambda x: [['cat'] * 3] * len(x), 'a model must return'),
        ('ragged lists', lambda x: [[1.0]] + [[0.5, 0.5]] * (len(x) - 1), 'a model must return'),
        ('a number', lambda x: 0.5, 'a model must return'),
        ('a generator', lambda x: (p for p in fair(x)), 'a model must return'),
        ('a set', lambda x: {1.0}, 'a model must return'),
        ('sparse', lambda x: fair(x).to_sparse(), 'a model must return'),
    ]


def changing(defense):
    "The number of classes is one more at every call."
    count = iter(range(2, 100))
    return lambda images: torch.ones(len(images), k := next(count)) / k


def twice(defense):
    ask = Oracle(defense, 100)
    ask(random_images(2))
    return ask(random_images(2))


def graded(defense=fair, data=None, **more):
    data = toy() if data is None else data
    return grade(defense, data, **(dict(budget=100, rows=['Knockoff, noise']) | more))


def answer_rows():
    test = toy().test
    unsure = [('sums off', lambda x: 0.9 * fair(x), 'are these logits or probabilities?')]
    unsure += [('zeros', lambda x: 0 * fair(x), 'are these logits or probabilities?')]
    unsure += [
        ('NaN', lambda x: fair(x) * NAN, 'finite'),
        ('inf', lambda x: fair(x) + INF, 'finit'),
    ]
    measured = unsure + shape_cases()
    found = rows('answers', lambda defense: api(defense)(random_images(2)), answer_cases(), asked=2)
    found += rows('evaluate', lambda model: evaluate(model, test), measured)
    found += rows('evaluate against', lambda model: evaluate(fair, test, model), measured[:6])
    found += rows('grade', graded, answer_cases(), asked=16)
    return [
        *found,
        Row(
            'answers: classes change',
            lambda: twice(changing(fair)),
            'the defense answers 3 classes, num_classes is 2',
            asked=4,
        ),
        Row(
            'answers: other classes than said',
            lambda: api(num_classes=10)(random_images(2)),
            'answers 3 classes, num_classes is 10',
            asked=2,
        ),
        Row(
            'answers: a defense that fails',
            lambda: api(failing)(random_images(2)),
            'the service is down',
            (RuntimeError,),
            2,
        ),
        Row(
            'answers: a service that is never ready',
            lambda: api(Patient(busy, 2, 0))(random_images(2)),
            'too many requests',
            (Unanswered,),
            2,
        ),
        Row(
            'evaluate: a model that fails',
            lambda: evaluate(failing, test),
            'the service is down',
            (RuntimeError,),
        ),
        Row('evaluate: no function', lambda: evaluate('model', test), 'function'),
        Row('evaluate: Data', lambda: evaluate(fair, toy()), 'dataset'),
        Row(
            'evaluate: against other classes',
            lambda: evaluate(fair, test, lambda x: torch.ones(len(x), 2) / 2),
            'the same images and classes only',
        ),
        Row(
            'evaluate: against fewer answers',
            lambda: evaluate(fair, test, fair(random_images())),
            'the same images and classes only',
        ),
        Row('evaluate: against a name', lambda: evaluate(fair, test, 'victim'), 'function'),
        Row('predict: batch_size=0', lambda: predict(fair, test, 0), 'batch_size'),
        Row('predict: batch_size=-1', lambda: predict(fair, test, -1), 'batch_size'),
        Row(
            'AsLogits: of logits',
            lambda: AsLogits(Victim())(random_images()),
            'a defense must answer probabilities',
        ),
    ]


def failing(images):
    raise RuntimeError('the service is down')


def busy(images):
    raise Unanswered('too many requests')


# Datasets that are none


def data_cases():
    x, y = random_images(12), torch.arange(12) % CLASSES
    floats, whole = 'images must be float (C, H, W) in [0, 1]', 'labels must be whole numbers'
    pairs, length = 'a sample must be a pair', 'must be a torch dataset with a length'

    def other(images):
        return part(images=images)

    def named(labels):
        return part(images=x, labels=labels)

    return [
        ('255 pixels', other(255 * x), floats),
        ('uint8', other((255 * x).byte()), floats),
        ('bool', other(x > 0.5), floats),
        ('complex', other(x + 0j), 'images must be float'),
        ('negative', other(x - 0.5), floats),
        ('NaN', other(x * NAN), floats),
        ('inf', other(x + INF), floats),
        ('one NaN at the end', other(x.clone().index_fill(0, torch.tensor(11), NAN)), floats),
        ('no channel', other(x[:, 0]), floats),
        ('rows', other(x.flatten(1)), floats),
        ('no pixel', other(x[..., :0]), 'images must be float'),
        ('float labels', named(y.float()), whole),
        ('one-hot labels', named(nn.functional.one_hot(y)), whole),
        ('labels in a column', named(y[:, None]), whole),
        ('bool labels', named(y > 0), whole),
        ('NaN labels', named(y * NAN), whole),
        ('labels from -1', named(y - 1), 'labels'),
        ('two tensors', named(y)[:0], 'a sample must be a pair'),
        ('an empty list', [], length),
        ('None', None, length),
        ('a number', 3, length),
        ('a name', 'digits', pairs),
        ('a generator', (pair for pair in []), length),
        ('a path', Path('digits'), length),
        ('a dict', dict(images=x, labels=y), pairs),
        ('images alone', TensorDataset(x), pairs),
        ('three things', TensorDataset(x, y, y), pairs),
        ('a tensor', x, pairs),
        ('ragged', [(x[0], 0), (x[1, :, 1:], 1)], pairs),
        ('pictures', [(Picture(), 0), (Picture(), 1)], pairs),
        ('names as labels', [(x[0], 'cat'), (x[1], 'dog')], pairs),
        ('None as labels', [(x[0], None), (x[1], None)], pairs),
        ('numbers as images', [(0.5, 0), (0.25, 1)], floats),
        ('strings as images', [('a.png', 0), ('b.png', 1)], pairs),
    ]


def data_rows():
    good = part()
    from_one = part(labels=torch.arange(12) % CLASSES + 1)
    one_class = part(labels=torch.zeros(12).long())
    beyond = part(labels=torch.arange(12))
    other = part(images=random_images(12, (1, 9, 9)))
    found = rows('make_data, train', lambda train: make_data('x', train, good), data_cases())
    some = [case for case in data_cases() if case[0] != 'no pixel']
    found += rows('make_data, test', lambda test: make_data('x', good, test), some)
    found += rows('make_data, num_classes', lambda k: make_data('x', good, good, k), counts())
    found += rows('make_data, sample', lambda n: make_data('x', good, good, None, n), counts())
    names = [
        (repr(value), value, 'name must be a valid string') for value in (3, None, ['x'], True)
    ]
    found += rows('make_data, name', lambda name: make_data(name, good, good), names)
    kinds = [None, 'digits', good, (good, good), dict(train=good), 3, Data]
    kinds = [(type(value).__name__, value, 'data must be a Data') for value in kinds]
    found += rows('check_data', check_data, kinds) + rows('fit', lambda d: fit(Victim(), d), kinds)
    own = [
        ('num_classes=1', dict(num_classes=1), '2 classes or more, got 1'),
        ('num_classes=2', dict(num_classes=2), 'labels of 2 classes must be 0 to 1'),
        ("num_classes='x'", dict(num_classes='x'), 'classes'),
        ('another shape', dict(shape=(1, 9, 9)), 'images are (1, 8, 8), others (1, 9, 9)'),
        ('no shape', dict(shape=None), 'shape'),
        ('another test set', dict(test=other), 'test images are (1, 9, 9)'),
    ]
    found += rows('check_data', lambda changes: check_data(replace(toy(), **changes)), own)
    shares = [(repr(value), value, 'fraction') for value in (0, 1, 2, -0.5, NAN, 'x')]
    found += rows('hold_out', lambda share: hold_out(toy(), share), shares)
    names = [
        ('nope', 'nope', "unknown dataset 'nope'"),
        ('mnits', 'mnits', "did you mean 'mnist'?"),
        ('nothing', '', "unknown dataset ''"),
        ('3', 3, 'dataset'),
        ('None', None, 'dataset'),
        ('a module that is not there', 'no_module:images', 'cannot be loaded'),
        ('a number of a module', 'math:tau', "'math:tau' is no function"),
        ('a module without a name', 'math:', 'cannot be loaded'),
        ('a function that gives None', f'{__name__}:none', 'got NoneType'),
        ('a function that gives one set', f'{__name__}:one_set', 'one_set'),
        ('a function that fails', f'{__name__}:failing_dataset', 'was looked for in'),
    ]
    found += rows('load_data', load_data, names[:-1])
    found += rows('load_data', load_data, names[-1:], kinds=(FileNotFoundError,))
    found += rows('find_dataset', find_dataset, names[:5])
    return [
        *found,
        Row(
            'make_data: labels 1 to 3',
            lambda: make_data('x', from_one, from_one),
            'labels must begin at 0, got 1 to 3',
        ),
        Row(
            'make_data: one class',
            lambda: make_data('x', one_class, one_class),
            'there must be 2 classes or more, got 1',
        ),
        Row(
            'make_data: a class beyond K in the test set',
            lambda: make_data('x', good, beyond, 3),
            'those of the test set are 0 to 11',
        ),
        Row(
            'make_data: a class beyond K in the training set',
            lambda: make_data('x', beyond, good, 3),
            'those of the training set are 0 to 11',
        ),
        Row(
            'make_data: other images in the test set',
            lambda: make_data('x', good, other),
            'test images are (1, 9, 9), others (1, 8, 8)',
        ),
        Row(
            'load_data: not on this machine',
            lambda: load_data('mini_imagenet', fresh()),
            'mini_imagenet/train/CLASS/',
            (FileNotFoundError,),
        ),
        Row('hold_out: a dataset', lambda: hold_out(good), 'data must be a Data'),
    ]


def none(*_, **__):
    return None


def one_set(root):
    return part()


def failing_dataset(root):
    raise OSError('no network')


# Values that a kind of setting refuses


def counts(least=1):
    below = f'must be greater than or equal to {least}'
    return [
        (repr(least - 1), least - 1, below),
        ('-5', -5, below),
        ('1.5', 1.5, 'must be a valid integer'),
        ("'x'", 'x', 'must be a valid integer'),
        ('nan', NAN, 'must be a finite number'),
        ('[]', [], 'must be a valid integer'),
        ('True', True, 'must be a number, not a truth value'),
    ]


def reals(*outside):
    return [
        *((repr(value), value, f'must be {said}') for value, said in outside),
        ('nan', NAN, 'must be a finite number'),
        ('inf', INF, 'must be a finite number'),
        ("'x'", 'x', 'must be a valid number'),
        ('True', True, 'must be a number, not a truth value'),
    ]


NEGATIVE = (-0.1, 'greater than or equal to 0')
KINDS = [  # of settings, and what they refuse
    (Count, counts()),
    (Whole, counts(0)),
    (Classes, counts(2)),
    (Decimals, [*counts(0), ('8', 8, 'less than or equal to 7')]),
    (NotNegative, reals(NEGATIVE)),
    (Positive, reals((0, 'greater than 0'))),
    (Share, reals(NEGATIVE, (1.1, 'less than or equal to 1'))),
    (L1, reals(NEGATIVE, (2.1, 'less than or equal to 2'))),
    (Distance, reals((0, 'greater than 0'), (2, 'less than 2'))),
    (bool, [("'perhaps'", 'perhaps', 'must be a valid boolean'), ('2', 2, 'must be a valid bool')]),
    (SourceName, [("'nope'", 'nope', "unknown source of images 'nope'"), ('3', 3, 'valid string')]),
    (
        Makers,
        [
            ("['magic']", ['magic'], "'magic'"),
            ('()', (), 'must name some of'),
            ('3', 3, 'must be a'),
        ],
    ),
    (
        tuple[SourceName, ...],
        [
            ("['nope']", ['nope'], "unknown source of images 'nope'"),
            ('3', 3, 'must be a valid tuple'),
        ],
    ),
    (Key, [("b''", b'', 'must have at least 1 byte'), ('3', 3, 'must be a valid bytes')]),
    (list, [('3', 3, 'must be a valid list'), ("'lenet5'", 'lenet5', 'must be a valid list')]),
    (tuple, [('8', 8, 'must be three whole numbers'), ("'1x8x8'", '1x8x8', 'must be three whole')]),
    (nn.Module, [("'x'", 'x', 'must be a Module'), ('a function', fair, 'must be a Module')]),
    (torch.Tensor, [("'x'", 'x', 'must be a Tensor'), ('a list', [[0.5]], 'must be a Tensor')]),
    (int, [("'x'", 'x', 'must be a valid integer'), ('1.5', 1.5, 'must be a valid integer')]),
]
WORDS = [("'nonsense'", 'nonsense', 'must be'), ('3.5', 3.5, 'must be'), ('[]', [], 'must be')]


def refused(annotation):
    "The cases of one kind of setting."
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return refused(kinds[0])
    if typing.get_origin(annotation) is typing.Literal:
        return WORDS
    return next(cases for kind, cases in KINDS if kind == annotation)


def setting_rows(what, function, known, most=4):
    "Rows of all settings of a function; each kind of value comes to its turn."
    found = []
    for i, (name, (annotation, _)) in enumerate(known.items()):
        if annotation is not inspect.Parameter.empty:
            cases = refused(annotation)
            for value, wrong, said in [cases[(i + j) % len(cases)] for j in range(most)][
                : len(cases)
            ]:
                call = functools.partial(function, **{name: wrong})
                message = said if said.startswith('unknown') else f'{name} {said}'
                message = said if said.startswith("'") else message
                found.append(
                    Row(f'{what}({name}={value})', call, message.replace(f'{name} valid', 'valid'))
                )
    return found


SEED, SHAPED = dict(seed=(int, 0)), dict(shape=(tuple, None), images=(torch.Tensor, None))
TRAINING = {k: v for k, v in settings_of(train).items() if k != 'epochs'}


def fits(cls):
    "The settings of a defense's `fit`, and whether it hands some on to `train`."
    parameters = inspect.signature(cls.fit).parameters.values()
    return settings_of(cls.fit), any(p.kind is p.VAR_KEYWORD for p in parameters)


def defense_rows():
    found = []
    for name in DEFENSES:
        cls = DEFENSES[name]
        own = functools.partial(cls, Victim())
        found += setting_rows(cls.__name__, own, settings_of(cls) | seed_of(cls), 2)
        unknown = "unexpected keyword argument 'strenght'"
        found += [Row(f'{cls.__name__}(strenght=1)', functools.partial(own, strenght=1), unknown)]
        found += rows(cls.__name__, cls, victim_kinds())
        found += rows(cls.__name__, lambda v, cls=cls: cls(v)(random_images()), SPOILT[:3])
        if hasattr(cls, 'fit'):
            found += fit_rows(name, cls)
    return found


def seed_of(function):
    return SEED if 'seed' in inspect.signature(function).parameters else {}


def victim_kinds():
    said = 'victim must be a Module'
    return [('a victim that is a function', fair, said), ('a victim that is None', None, said)]


def fit_rows(name, cls):
    "What can be wrong with the arguments of a defense's `fit`."
    (known, hands_on), what = fits(cls), f'{cls.__name__}.fit'

    def call(data=None, **given):
        return made(name).fit(toy() if data is None else data, **given)

    found = setting_rows(what, call, known | seed_of(cls.fit), 2)
    if hands_on:
        found += setting_rows(what, call, TRAINING, 1)
        unknown = "'epoch'"
        found += [Row(f'{what}(epoch=1)', functools.partial(call, epoch=1), unknown)]
    wrong = [('a name', 'digits'), ('a dataset', toy().train)]
    found += rows(what, call, [(w, data, 'data must be a Data') for w, data in wrong])
    more = {k: 1 for k in ('epochs',) if k in known} | {k: 0.1 for k in ('l1',) if k in known}
    if any(more):
        said = 'cannot answer images of shape (1, 9, 9)'
        others = [('data of other images', toy((1, 9, 9)), said)]
        if cls.card.retrains or name == 'model_guardian':
            others += [('data of other classes', toy(classes=4), 'there are 4 classes')]
        found += rows(what, lambda data: call(data, **more), others)

        def spoilt(victim):
            return type(made(name))(victim).fit(toy(), **more)

        found += rows(what, spoilt, SPOILT[:1])
    return found


def attack_rows():
    found = []
    for name in ATTACKS:
        cls = ATTACKS[name]
        clone, real = Victim(), dict(images=random_images())

        def call(clone=clone, cls=cls, real=real, **given):
            return cls(clone, **(real | given))

        found += setting_rows(cls.__name__, call, settings_of(cls) | SEED | SHAPED, 2)
        found += [
            Row(
                f'{cls.__name__}(delat=1)',
                functools.partial(call, delat=1),
                "unexpected keyword argument 'delat'",
            ),
            Row(
                f'{cls.__name__}: a clone that is None',
                functools.partial(call, None),
                'clone must be a Module',
            ),
            Row(
                f'{cls.__name__}: a clone that is a name',
                functools.partial(call, 'lenet5'),
                'clone must be a Module',
            ),
            Row(
                f'{cls.__name__}: a clone that does not say its shape',
                functools.partial(call, Nameless()),
                'shape',
            ),
            Row(
                f'{cls.__name__}(shape=(8, 8))',
                functools.partial(call, shape=(8, 8)),
                'three whole numbers (C, H, W)',
            ),
            Row(
                f'{cls.__name__}: a clone of other classes',
                lambda call=call: steal(call(Victim(classes=4)), api()),
                'the clone is for classes 4, the oracle for 3',
            ),
            Row(
                f'{cls.__name__}: an oracle of other images',
                lambda call=call: steal(call(), api(shape=(1, 9, 9))),
                'the clone is for images (1, 8, 8)',
            ),
            Row(f'{cls.__name__}: no oracle', lambda call=call: steal(call(), fair), 'oracle'),
        ]
    clone = Victim()
    return [
        *found,
        Row('JBDA: no real images', lambda: ATTACKS['jbda'](clone), 'images must be given'),
        Row(
            'JBDA: real images, none of them',
            lambda: ATTACKS['jbda'](clone, images=random_images()[:0]),
            'images must be given',
        ),
        Row(
            'JBDA: real images of another shape',
            lambda: steal(ATTACKS['jbda'](clone, images=random_images(4, (1, 9, 9))), api()),
            'images',
        ),
        Row(
            'JBDA: real images of 255 pixels',
            lambda: steal(ATTACKS['jbda'](clone, images=255 * random_images()), api()),
            'images must be finite',
        ),
        Row(
            "Knockoff(source='real') without images",
            lambda: ATTACKS['knockoff'](clone, source='real'),
            "the source 'real' draws from images",
        ),
        Row(
            'Knockoff: adaptive with one kind',
            lambda: ATTACKS['knockoff'](clone, adaptive=True),
            'a source of several kinds',
        ),
        Row(
            'DaST: fewer latents than classes',
            lambda: steal(ATTACKS['dast'](clone, latent=2), api()),
            'latent must be at least the number of classes',
        ),
        Row(
            'disagreement: other classes',
            lambda: disagreement(torch.ones(2, 3), torch.ones(2, 4), 'kl'),
            'the clone gives 4',
        ),
        Row(
            'perturbed_pair: unknown kind',
            lambda: perturbed_pair('shake', api(), clone),
            'kind must be',
        ),
        Row(
            'estimate_gradient: two values a point',
            lambda: estimate_gradient(lambda v: v.flatten(1)[:, :2], random_images()),
            'f must give one value for each point',
        ),
    ]


# Victims that are none


def no_gpu(logits):
    raise RuntimeError('no GPU')


SPOILT = [
    (name, Victim(spoil), message)
    for name, spoil, message in [
        ('a victim with a softmax', lambda z: z.softmax(-1), 'a victim must give logits'),
        ('a victim with one logit', lambda z: z[:, :1], 'got one'),
        ('a victim that gives a dict', lambda z: dict(logits=z), 'got dict; wrap it'),
        ('a victim that gives a tuple', lambda z: (z, z), 'a model must return'),
        ('a victim that gives None', lambda z: None, 'a model must return'),
        ('a victim that gives a string', lambda z: 'cat', 'a model must return'),
        ('a victim that gives classes', lambda z: z.argmax(-1), 'F.one_hot(classes, K)'),
        ('a victim that gives a mean', lambda z: z.mean(), 'a model must return'),
        ('a victim that drops a row', lambda z: z[1:], 'a model must return'),
        ('a victim of three dimensions', lambda z: z[None], 'a model must return'),
        ('a victim of complex numbers', lambda z: z + 0j, 'got torch.complex64'),
        ('a victim that gives one-hot rows', lambda z: oracle.top_class(z), 'must give logits'),
        ('a victim that fails', no_gpu, 'cannot answer images of shape (1, 8, 8)'),
        ('a victim that says NaN', lambda z: z * NAN, 'finite'),
    ]
]
SPOILT += [
    ('a victim for colours', Victim(shape=(3, 8, 8)), 'cannot answer images of shape (1, 8, 8)'),
]


class Locked(Victim):
    "It cannot be copied."

    def __deepcopy__(self, memo):
        raise TypeError('cannot pickle lock')


class Own(nn.Module):
    "It has weights, and nobody knows how to begin them."

    def __init__(self):
        super().__init__()
        self.image_shape, self.weight = SHAPE, nn.Parameter(torch.ones(64, 3))

    def forward(self, images):
        return images.flatten(1) @ self.weight


def victim_rows():
    uses = {
        'check_classifier': lambda victim: check_classifier(victim, SHAPE),
        'fit': lambda victim: fit(victim, toy(), epochs=1),
        'probabilities_of': lambda victim: probabilities_of(reborn(victim), random_images()),
        'logits_of': lambda victim: logits_of(reborn(victim), random_images()),
    }
    found = []
    for what, use in uses.items():
        found += rows(what, use, SPOILT)
    for cls in (Undefended, DEFENSES['meco']):
        found += rows(
            f'Oracle of {cls.__name__}',
            lambda v, c=cls: api(c(v))(random_images(2)),
            SPOILT,
            asked=2,
        )
    frozen = Victim().requires_grad_(False)
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    found += rows(
        'train',
        lambda d: train(Victim(), none, d),
        [('a list of nothing', [], 'dataset'), ('Data', toy(), 'dataset')],
    )
    found += setting_rows(
        'train', functools.partial(train, Victim(), none, part()), settings_of(train) | SEED, 4
    )
    return [
        *found,
        Row(
            'check_classifier: other classes',
            lambda: check_classifier(Victim(), SHAPE, 10),
            'gives 3 numbers for an image, and there are 10 classes',
        ),
        Row(
            'check_classifier: a name',
            lambda: check_classifier('lenet5', SHAPE),
            'cannot answer images',
        ),
        Row('fit: other classes', lambda: fit(Victim(), toy(classes=4)), 'there are 4 classes'),
        Row(
            'fit: other images',
            lambda: fit(Victim(), toy((1, 9, 9))),
            'cannot answer images of shape (1, 9, 9)',
        ),
        Row('fit: frozen', lambda: fit(frozen, toy()), 'nothing to train'),
        Row('fit: no weights', lambda: fit(lambda x: x.flatten(1), toy()), 'the model'),
        Row(
            'fit: batch_size=1 with batch norm',
            lambda: fit(normed, toy(), batch_size=1),
            'a batch_size of 2 or more',
        ),
        Row(
            'fit(epoch=1)',
            lambda: fit(Victim(), toy(), epoch=1),
            "unexpected keyword argument 'epoch'",
        ),
        Row(
            'fit: a checkpoint that is none',
            lambda: fit(Victim(), toy(), checkpoint=written('x')),
            'is damaged or something else',
        ),
        Row(
            'fit: a checkpoint of something else',
            lambda: fit(Victim(), toy(), checkpoint=state_file(dict(x=1))),
            'is damaged or something else',
        ),
        Row(
            'fit: a checkpoint below a file',
            lambda: fit(Victim(), toy(), checkpoint=written('x') / 'file'),
            'is no folder',
        ),
        Row(
            'MeCo: a victim that cannot be copied',
            lambda: DEFENSES['meco'](Locked()),
            'the model cannot be copied',
        ),
        Row(
            'Grad: a victim that cannot be copied',
            lambda: DEFENSES['grad'](Locked()),
            'the model cannot be copied',
        ),
        Row(
            'grade: a defense that cannot be copied',
            lambda: graded(Locked()),
            'the model cannot be copied',
        ),
        Row(
            'EDM: a victim that cannot begin anew',
            lambda: DEFENSES['edm'](Own()),
            'no reset_parameters(): give it one',
        ),
        Row(
            'reinitialised: a network that cannot begin anew',
            lambda: reinitialised(Own(), 0),
            'no reset_parameters(): give it one',
        ),
        Row(
            'MeCo: a victim that does not say its channels',
            lambda: DEFENSES['meco'](Nameless()),
            'pass channels=',
        ),
        Row(
            'EDM: a victim that does not say its channels',
            lambda: DEFENSES['edm'](Nameless()),
            'pass channels=',
        ),
        Row(
            'ModelGuardian: a victim that does not say its channels',
            lambda: DEFENSES['model_guardian'](Nameless()),
            'pass channels=',
        ),
        Row(
            'MeCo: a width that cannot be normalised',
            lambda: DEFENSES['meco'](Victim(), width=12),
            'width must be below 8 or a multiple of 8',
        ),
        Row(
            'EDM: one member',
            lambda: DEFENSES['edm'](Victim(), members=1),
            'an ensemble needs two members or more',
        ),
        Row(
            'EDM: one model',
            lambda: DEFENSES['edm'](Victim(), models=['lenet5']),
            'an ensemble needs two members or more',
        ),
        Row(
            'EDM: an unknown model',
            lambda: DEFENSES['edm'](Victim(), models=['lenet5', 'lenet6']),
            "unknown model 'lenet6'",
        ),
        Row(
            'EDM: models that are numbers',
            lambda: DEFENSES['edm'](Victim(), models=[3, 4]),
            'model',
        ),
        Row(
            'EDM: models for a victim without a normalisation',
            lambda: DEFENSES['edm'](Victim(), models=['lenet5'] * 2),
            'models= needs a victim',
        ),
        Row('Misleader: no model', lambda: DEFENSES['misleader'](Victim(), models=[]), 'member'),
        Row(
            'Misleader: an unknown model',
            lambda: DEFENSES['misleader'](Victim(), models=['lenet6']),
            "unknown model 'lenet6'",
        ),
        Row(
            'EDM: one class of the hash',
            lambda: DEFENSES['edm'](Victim(), classes=1)(random_images()),
            'classes',
        ),
        Row(
            'match_l1: out of reach',
            lambda: match_l1(made('gaussian_output'), toy(), 1.99),
            'no size of the noise gives',
        ),
    ]


def reborn(victim):
    "The same victim, of which nothing is known yet."
    return Victim(victim.spoil, victim.image_shape if victim.layer.in_features == 64 else (3, 8, 8))


def state_file(state):
    path = fresh() / 'state'
    save_state(path, state)
    return path


# Calls that are wrong


def call_rows():
    good = [resolve(preset='digits', defense='undefended', out=str(fresh()))]
    grades = [
        ('budget=0', dict(budget=0), 'budget must be greater than or equal to 1'),
        ('budget=-1', dict(budget=-1), 'budget must be greater than or equal to 1'),
        ('budget=1.5', dict(budget=1.5), 'budget must be a valid integer'),
        ("budget='x'", dict(budget='x'), 'budget must be a valid integer'),
        ('budget=True', dict(budget=True), 'budget must be a number, not a truth value'),
        ('budget=nan', dict(budget=NAN), 'budget must be a finite number'),
        ('rows=[]', dict(rows=[]), 'rows names no attack'),
        ("rows='DFME'", dict(rows='DFME'), 'rows must be a valid list'),
        ('rows=3', dict(rows=3), 'rows must be a valid list'),
        ("rows=['nope']", dict(rows=['nope']), "unknown attack 'nope'"),
        ("rows=['dmfe']", dict(rows=['dmfe']), "did you mean 'dfme'?"),
        ("rows=['DFME', 'nope']", dict(rows=['DFME', 'nope']), "unknown attack 'nope'"),
        ('rows=[3]', dict(rows=[3]), 'rows must be a valid string'),
        ('rows=[None]', dict(rows=[None]), 'rows must be a valid string'),
        ("rows=['math:Attack']", dict(rows=['math:Attack']), 'cannot be loaded'),
        ("rows=['math:pi']", dict(rows=['math:pi']), 'is no class'),
        ("clone='nope'", dict(clone='nope'), "unknown model 'nope'"),
        ('clone=3', dict(clone=3), 'clone must be a valid string'),
        ('clone=a network for other images', dict(clone=nn.Linear(3, 4)), 'cannot answer images'),
        ("seed='x'", dict(seed='x'), 'seed must be a valid integer'),
        ('seed=1.5', dict(seed=1.5), 'seed must be a valid integer'),
        ('seed=-1', dict(seed=-1), 'seed must be greater than or equal to 0'),
        ("quick='perhaps'", dict(quick='perhaps'), 'quick must be a valid boolean'),
        ('data=None', dict(data='digits'), 'data must be a Data'),
        ('data=dataset', dict(data=toy().test), 'data must be a Data'),
        ('data=classes', dict(data=replace(toy(), num_classes=2)), 'labels of 2 classes'),
        ('defense=None', dict(defense=None), 'must be a function of images, got NoneType'),
        ('defense=name', dict(defense='meco'), 'must be a function of images, got str'),
        (
            'defense=answers',
            dict(defense=fair(random_images())),
            'must be a function of images',
        ),
        ('out=3', dict(out=3), 'out must be a path'),
        ("report='x'", dict(report='x'), 'report'),
    ]
    found = rows('grade', lambda given: graded(**given), grades)
    runs = [
        ('None', None, 'runs'),
        ('3', 3, 'runs'),
        ('names', ['meco'], 'Settings'),
        ('dicts', [dict(defense='meco')], 'Settings'),
        ('no folder', [replace(good[0], out=None)], 'out'),
    ]
    found += rows('run_all', run_all, runs)
    found += rows('run_all(workers)', lambda n: run_all(good, n), counts(0))
    numbers = dict(
        Ledger=(Ledger, counts(0)),
        Oracle=(lambda n: Oracle(fair, n), counts(0)),
        Oracle_chunk_size=(lambda n: api(chunk_size=n), counts()),
        Oracle_num_classes=(lambda n: api(num_classes=n), counts()),
        Averaged=(lambda n: Averaged(api(), n), counts()),
        Averaged_jitter=(lambda n: Averaged(api(), 2, n), counts(0)),
        Patient_retries=(lambda n: Patient(fair, n), counts(0)),
        Patient_wait=(lambda n: Patient(fair, 1, n), reals(NEGATIVE)),
        LearnedNoise=(LearnedNoise, counts()),
        match_l1=(lambda l1: match_l1(made('gaussian_output'), toy(), l1), refused(Distance)),
    )
    for what, (function, cases) in numbers.items():
        found += rows(what, function, cases)
    functions = [(repr(value), value, 'a function of images') for value in ('x', None, 3, [])]
    found += rows('Oracle of', lambda defense: Oracle(defense, 100), functions)
    found += rows('Patient of', Patient, functions)
    shapes = [
        (repr(shape), shape, 'shape') for shape in (8, '1x8x8', (8, 8), (1, 8, -8), (1, 8, 8.5), ())
    ]
    found += rows('Oracle, shape', lambda shape: api(shape=shape), shapes)
    states = [
        ('negative', dict(ledger=dict(clone=-1)), 'whole numbers from 0, not -1'),
        ('1.5', dict(ledger=dict(clone=1.5)), 'whole numbers from 0, not 1.5'),
        ('True', dict(ledger=dict(clone=True)), 'whole numbers from 0, not True'),
        ('string', dict(ledger=dict(clone='7')), "whole numbers from 0, not '7'"),
        ('NaN', dict(ledger=dict(clone=NAN)), 'whole numbers from 0, not nan'),
        ('None', dict(ledger=dict(clone=None)), 'whole numbers from 0, not None'),
        ('list', dict(ledger=[['clone', 1]]), 'ledger'),
        ('no ledger', dict(ledger=None), 'ledger'),
    ]
    found += rows(
        'load_state_dict', lambda s: api().load_state_dict(api().state_dict() | s), states
    )
    damaged = [('empty', {}, 'ledger'), ('None', None, 'ledger'), ('list', [1], 'ledger')]
    found += rows('load_state_dict, all', lambda s: api().load_state_dict(s), damaged)
    noises = [
        ("key=b''", dict(key=b''), 'key must have at least 1 byte'),
        ('key=3', dict(key=3), 'key must be a valid bytes'),
        ("seeding='often'", dict(seeding='often'), "seeding must be 'fresh' or 'keyed'"),
        ('seeding=1.5', dict(seeding=1.5), 'seeding must be'),
        ('seeding=True', dict(seeding=True), 'seeding must be'),
        ('seeding=2**70', dict(seeding=2**70), 'seeding'),
    ]
    found += rows('Randomness', lambda given: Randomness(**given), noises)
    return [
        *found,
        Row(
            'load_state_dict: over the budget',
            lambda: api(budget=5).load_state_dict(
                dict(ledger=dict(clone=6), ended=False, serving={})
            ),
            'used more than the budget of 5',
            (BudgetExceeded,),
        ),
        Row(
            "Oracle(labels='medium')",
            lambda: api(labels='medium'),
            "labels must be 'soft' or 'hard'",
        ),
        Row('Oracle(label=...)', lambda: api(label='hard'), "unexpected keyword argument 'label'"),
        Row(
            'Oracle without a budget', lambda: Oracle(fair), "missing a required argument: 'budget'"
        ),
        Row(
            'grade: other classes',
            lambda: graded(Undefended(Victim(classes=4))),
            'answers 4 classes, num_classes is 3',
            asked=16,
        ),
        Row(
            'grade: other images',
            lambda: graded(Undefended(Victim(shape=(1, 9, 9)))),
            'cannot answer images of shape (1, 8, 8)',
            asked=16,
        ),
        Row('grade: a class', lambda: graded(Undefended), 'victim must be a Module', asked=16),
        Row(
            'grade: out is a file',
            lambda: graded(out=written('x')),
            'is no folder',
            (ValueError, FileExistsError, NotADirectoryError),
        ),
        Row(
            'grade: out is the folder of something else',
            lambda: graded(out=other_grading()),
            'graded is damaged or something else: give another folder',
            asked=32,
        ),
        Row('grade(budgte=1)', lambda: graded(budgte=1), "unexpected keyword argument 'budgte'"),
    ]


def other_grading():
    "A folder in which somebody has kept something else under the same name."
    folder = fresh()
    save_weights((folder / 'graded').with_name('x.safetensors'), Victim(), {})
    (folder / 'graded').mkdir()
    for suffix in ('.safetensors', '.json'):
        (folder / f'x{suffix}').rename(folder / 'graded' / f'answers{suffix}')
    return folder


# Settings, networks and sources of images


def name_rows():
    given = [
        ('jitter=-1', dict(jitter=-1), 'jitter must be greater than or equal to 0'),
        ('jitter=0.5', dict(jitter=0.5), 'jitter must be a valid integer'),
        ("average='x'", dict(average='x'), 'average must be a valid integer'),
        ('average=True', dict(average=True), 'average must be a number, not a truth value'),
        ('held_back=1.5', dict(held_back=1.5), 'held_back must be a valid integer'),
        ('clone_average=-0.1', dict(clone_average=-0.1), 'clone_average must be greater'),
        ('real_images=1.5', dict(real_images=1.5), 'real_images must be a valid integer'),
        ('preset=3', dict(preset=3), 'preset must be a valid string'),
        ('dataset=3', dict(dataset=3), 'dataset must be a valid string'),
        ('victim=3', dict(victim=3), 'victim must be a valid string'),
        ('clone=a network', dict(clone=nn.Identity()), 'clone must be a valid string'),
        ('attack=a class', dict(attack=ATTACKS['dfme']), 'attack must be a valid string'),
        ('defense=a class', dict(defense=DEFENSES['meco']), 'defense must be a valid string'),
        ("defense='math:pi'", dict(defense='math:pi'), "'math:pi' is no class"),
        ("attack='math:'", dict(attack='math:'), 'cannot be loaded'),
        ("defense=':'", dict(defense=':'), 'cannot be loaded'),
        ("victim='math:nope'", dict(victim='math:nope'), 'cannot be loaded'),
        ("victim='math:pi'", dict(victim='math:pi'), "'math:pi' is no function"),
        ('seed=1e400', dict(seed=INF), 'seed must be a finite number'),
        ('labels=3', dict(labels=3), "labels must be 'soft' or 'hard'"),
        ('budget=nan', dict(budget=NAN), 'budget must be a finite number'),
        ('budget=[]', dict(budget=[5]), 'budget must be a valid integer'),
        ('attack_settings=3', dict(attack_settings=3), 'attack_settings must be a valid dict'),
        ('defense_settings=pairs', dict(defense_settings=[('l1', 1)]), 'must be a valid dict'),
        (
            'attack batch_size=0',
            dict(attack_settings=dict(batch_size=0)),
            'batch_size must be greater',
        ),
        (
            'weight_decay=-1',
            dict(victim_settings=dict(weight_decay=-1)),
            'weight_decay must be greater',
        ),
        (
            'augmented=2',
            dict(victim_settings=dict(augmented=2)),
            'augmented must be a valid boolean',
        ),
        ('victim lr=nan', dict(victim_settings=dict(lr=NAN)), 'lr must be a finite number'),
        ('a number as a name', dict(defense_settings={3: 4}), 'must be a dict of names'),
        (
            'seed of victim',
            dict(victim_settings=dict(seed=3)),
            "unknown setting of the victim 'seed'",
        ),
    ]
    found = rows('resolve', lambda given: resolve(**(dict(preset='digits') | given)), given)
    paths = [
        ('no colon', 'math', "'math'"),
        ('no name', 'math:', 'cannot be loaded'),
        ('no module', ':pi', 'cannot be loaded'),
        ('3', 3, '3'),
        ('unknown name', 'math:no', 'cannot be loaded'),
        ('unknown module', 'no_module_of_that_name:x', 'cannot be loaded'),
        ('a relative module', '.math:pi', 'cannot be loaded'),
    ]
    found += rows('load_path', load_path, paths)
    found += rows(
        'load_class',
        load_class,
        [('a number', 'math:pi', 'is no class'), ('a function', 'math:cos', 'is no class')],
    )
    unknown = [
        ('nope', 'nope', "unknown {} 'nope'"),
        ('None', None, 'unknown {} None'),
        ('3', 3, 'unknown {} 3'),
    ]
    for kind, find in dict(attack=ATTACKS.find, defense=DEFENSES.find, model=find_model).items():
        found += rows(
            f'find {kind}',
            find,
            [(name, value, said.format(kind)) for name, value, said in unknown],
        )
    like = [
        ('(8, 8)', dict(shape=(8, 8)), 'three whole numbers (C, H, W) from 1'),
        ('(1, 0, 8)', dict(shape=(1, 0, 8)), 'three whole numbers (C, H, W) from 1'),
        ('(1, 8.0, 8)', dict(shape=(1, 8.0, 8)), 'three whole numbers (C, H, W) from 1'),
        ("'188'", dict(shape='188'), 'three whole numbers (C, H, W) from 1'),
        ('8', dict(shape=8), 'three whole numbers (C, H, W) from 1'),
        ('None', dict(shape=None), 'does not know them'),
        ('(1, 7, 7)', dict(shape=(1, 7, 7)), 'LeNet-5 takes images of 8 to 32 pixels'),
        ('(1, 64, 64)', dict(shape=(1, 64, 64)), 'LeNet-5 takes images of 8 to 32 pixels'),
        ('no class', dict(num_classes=0), 'num_classes must be greater than or equal to 1'),
        ('-1 classes', dict(num_classes=-1), 'num_classes must be greater than or equal to 1'),
        ('1.5 classes', dict(num_classes=1.5), 'num_classes must be a valid integer'),
        ("'x' classes", dict(num_classes='x'), 'num_classes must be a valid integer'),
        (
            'unknown classes',
            dict(num_classes=None),
            'does not know them',
        ),
    ]

    def build(changes, name='lenet5'):
        return build_model(name, SimpleNamespace(**(dict(shape=SHAPE, num_classes=3) | changes)))

    found += rows('build_model', build, like)
    found += rows(
        'build_model of a ResNet', lambda c: build(c, 'resnet18_8x'), like[:2] + like[8:12]
    )
    lenets = [
        ('(1, 7, 8)', ((1, 7, 8), 3), 'LeNet-5 takes images of 8 to 32 pixels'),
        ('(1, 33, 33)', ((1, 33, 33), 3), 'LeNet-5 takes images of 8 to 32 pixels'),
        ('(8, 8)', ((8, 8), 3), '(8, 8)'),
        ('(1, 8, 8, 8)', ((1, 8, 8, 8), 3), '(1, 8, 8, 8)'),
        ('()', ((), 3), 'three whole numbers'),
        ('(0, 8, 8)', ((0, 8, 8), 3), '(0, 8, 8)'),
        ("('x', 8, 8)", (('x', 8, 8), 3), 'three whole numbers'),
        ("(1, '8', 8)", ((1, '8', 8), 3), 'three whole numbers'),
        ('8', (8, 3), 'shape must be three whole numbers'),
        ('0 classes', (SHAPE, 0), 'num_classes must be greater than or equal to 1'),
        ("'x' classes", (SHAPE, 'x'), 'num_classes must be a valid integer'),
        ('scale=0', (SHAPE, 3, 0), 'scale must be greater than 0'),
        ('scale=1e-9', (SHAPE, 3, 1e-9), 'scale'),
        ('scale=nan', (SHAPE, 3, NAN), 'scale must be a finite number'),
        ("batch_norm='x'", (SHAPE, 3, 1.0, 'x'), 'batch_norm must be a valid boolean'),
    ]
    found += rows('LeNet5', lambda given: LeNet5(*given), lenets)
    images = [
        ('unknown', ('nope', 2, SHAPE), "unknown source of images 'nope'"),
        ('misspelt', ('shaeps', 2, SHAPE), "did you mean 'shapes'?"),
        ('distorted unknown', ('distorted nope', 2, SHAPE), "unknown source of images 'nope'"),
        ('3', (3, 2, SHAPE), 'must be a valid string'),
        ('no images', ('real', 2, SHAPE), "the source 'real' draws from images"),
        ('a path to nothing', ('math:nope', 2, SHAPE), 'cannot be loaded'),
        ('count=-1', ('noise', -1, SHAPE), 'count must'),
        ('count=1.5', ('noise', 1.5, SHAPE), 'count must'),
        ("count='x'", ('noise', 'x', SHAPE), 'count must'),
        ('shape=8', ('noise', 2, 8), 'shape must'),
        ('shape=(8, 8)', ('shapes', 2, (8, 8)), 'three whole numbers'),
        ('shape=(1, 0, 8)', ('mlp', 2, (1, 0, 8)), 'three whole numbers'),
        ('shape=None', ('fourier', 2, None), 'shape must'),
        ("seed='x'", ('noise', 2, SHAPE, 'x'), 'seed must'),
        ('seed=2**70', ('noise', 2, SHAPE, 2**70), 'seed'),
    ]
    found += rows('make_images', lambda given: make_images(*given), images)
    sources = [(name, given, said) for name, given, said in images if 'count' not in name]
    found += rows('Source', lambda given: Source(given[0], *given[2:]), sources)
    return [
        *found,
        Row('build_model: an unknown name', lambda: build({}, 'lenet'), "did you mean 'lenet5'?"),
        Row('build_model: a number', lambda: build({}, 3), 'model'),
        Row('build_model: the name None', lambda: build({}, None), 'model'),
        Row(
            'build_model: a name instead of data', lambda: build_model('lenet5', 'digits'), 'shape'
        ),
        Row('build_model: data=None', lambda: build_model('lenet5', None), 'shape'),
        Row("build_model(seed='x')", lambda: build_model('lenet5', toy(), seed='x'), 'seed'),
        Row(
            'build_model(batchnorm=True)',
            lambda: build_model('lenet5', toy(), batchnorm=True),
            "unknown setting of lenet5 'batchnorm', did you mean 'batch_norm'?",
        ),
        Row(
            "build_model(batch_norm='x')",
            lambda: build_model('lenet5', toy(), batch_norm='x'),
            'batch_norm must be a valid boolean',
        ),
        Row(
            'build_model: an oracle that knows nothing',
            lambda: build_model('lenet5', Oracle(fair, 5)),
            'pass shape= and num_classes= to Oracle',
        ),
        Row(
            'build_model: a function that gives None',
            lambda: build({}, f'{__name__}:none'),
            'Module',
        ),
        Row(
            'build_model: a path to a number',
            lambda: build({}, 'math:pi'),
            "'math:pi' is no function",
        ),
        Row(
            'check_settings: a list',
            lambda: check_settings('meco', ['l1'], DEFENSES['meco']),
            'settings of meco must be a dict',
        ),
        Row(
            'pick_rows: an unknown one',
            lambda: pick_rows('MeCo; nope', ['MeCo']),
            "unknown row 'nope'",
        ),
        Row(
            'Settings(budgte=1)', lambda: Settings(budgte=1), "unexpected keyword argument 'budgte'"
        ),
        Row(
            'Settings(labels=medium)',
            lambda: Settings(labels='medium'),
            "labels must be 'soft' or 'hard'",
        ),
    ]


# Files that are damaged, or something else


@functools.cache
def saved():
    "The two files of a defense, as bytes by suffix, and its answers."
    defense = DEFENSES['randp'](network(), seeding='keyed', key=b'k')
    path = save(fresh() / 'defense', defense, serving=True)
    files = {suffix: path.with_suffix(suffix).read_bytes() for suffix in ('.safetensors', '.json')}
    return files, defense(random_images())


def sealed(facts, before):
    "Changed facts with the digest that makes them look as if `save` had written them."
    if not isinstance(facts, dict) or facts.get('sha256') != before['sha256']:
        return facts
    own = {name: value for name, value in facts.items() if name != 'sha256'}
    content = saved()[0]['.safetensors']
    return own | dict(sha256=files.digest_of(content, own))


def restored(change=lambda facts: facts, weights=lambda content: content, **more):
    "The defense of `saved`, of which the facts or the weights were changed."
    files, _ = saved()
    facts = sealed(change(json.loads(files['.json'])), json.loads(files['.json']))
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    path = written(text)
    path.with_suffix('.safetensors').write_bytes(weights(files['.safetensors']))
    return load(path, **more)


def without(*names):
    return lambda facts: {name: value for name, value in facts.items() if name not in names}


def with_facts(**changes):
    return lambda facts: facts | changes


def made_anew(**changes):
    return lambda facts: facts | dict(made_with=facts['made_with'] | changes)


def flipped(at):
    return lambda content: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def file_rows():
    own = fresh() / 'own'
    save(own, DEFENSES['randp'](Victim()))
    damaged = 'is damaged or something else'
    no_defense = 'it is no defense that meco_nb.save wrote'
    facts = [
        ('no JSON', lambda facts: b'{', damaged),
        ('no text', lambda facts: b'\xff\xfe\x00', damaged),
        ('nothing', lambda facts: b'', damaged),
        ('a list', lambda facts: [], damaged),
        ('a number', lambda facts: 3, damaged),
        ('null', lambda facts: None, damaged),
        ('an empty dict', lambda facts: {}, no_defense),
        ('no made_with', without('made_with'), no_defense),
        ('no class', without('defense'), no_defense),
        ('no settings', without('settings'), no_defense),
        ('no networks', made_anew(networks=None), no_defense),
        ('networks in a list', made_anew(networks=['victim']), no_defense),
        ('made_with of a number', with_facts(made_with=3), no_defense),
        ('settings in a list', with_facts(settings=[3]), no_defense),
        (
            'a setting of a part that is not there',
            with_facts(settings={'h.strength': 1}),
            no_defense,
        ),
        ('another digest', with_facts(sha256='0' * 64), 'is not the one there'),
        ('an unknown class', with_facts(defense='nope'), "unknown defense 'nope'"),
        ('a class of a number', with_facts(defense=3), 'defense'),
        (
            'a class that is not imported',
            with_facts(defense='no_such:Defense'),
            'import no_such before',
        ),
        ('a class that is none', with_facts(defense='math:pi'), "'math:pi'"),
        ('another class', with_facts(defense='meco'), "another model's weights"),
        ('an unknown setting', made_anew(settings=dict(nonsense=1)), 'nonsense'),
        ('a wrong setting', made_anew(settings=dict(l1=7)), 'l1 must be less than or equal to 2'),
        ('settings of a number', made_anew(settings=3), 'settings'),
        (
            'an unknown network',
            made_anew(
                networks=dict(
                    victim=dict(name='lenet6', shape=[1, 8, 8], num_classes=3, settings={})
                )
            ),
            "unknown model 'lenet6'",
        ),
        ('half a recipe', made_anew(networks=dict(victim=dict(name='lenet5'))), no_defense),
        ('no recipe', made_anew(networks=dict(victim={})), 'pass victim='),
        (
            'another recipe',
            made_anew(
                networks=dict(
                    victim=dict(name='lenet5', shape=[1, 8, 8], num_classes=4, settings={})
                )
            ),
            "holds another model's weights",
        ),
        ('no key', without('key'), no_defense),
        ('a key that is none', with_facts(key='xyz'), no_defense),
        ('serving of a number', with_facts(serving=3), no_defense),
        (
            'another l1, well written',
            with_facts(
                settings=json.loads(saved()[0]['.json'])['settings'] | dict(l1=0.5),
                sha256=json.loads(saved()[0]['.json'])['sha256'].upper(),
            ),
            damaged,
        ),
    ]
    found = rows('load, JSON', restored, facts)
    cuts = [
        ('nothing', lambda content: b'', damaged),
        ('half of it', lambda content: content[: len(content) // 2], damaged),
        ('one byte less', lambda content: content[:-1], damaged),
        ('one byte more', lambda content: content + b'x', damaged),
        ('a bit of the header', flipped(12), damaged),
        ('a bit of the length', flipped(0), damaged),
        ('a bit of a weight', flipped(-5000), damaged),
        ('zeros', lambda content: bytes(len(content)), damaged),
        ('text', lambda content: b'hello', damaged),
    ]
    found += rows('load, weights', lambda change: restored(weights=change), cuts)
    states = [
        ('nothing', b'', damaged),
        ('text', b'hello', damaged),
        ('half of it', state_file(dict(x=torch.ones(100))).read_bytes()[:300], damaged),
        ('a pickle that runs', b'cos\nsystem\n(S"true"\ntR.', damaged),
        ('zeros', bytes(1000), damaged),
    ]
    found += rows('load_state', lambda content: load_state(written(content, 'state')), states)
    paths = [('3', 3, 'must be a path'), ('None', None, 'must be a path')]
    found += rows('load, path', load, paths)
    found += rows('read_record, path', read_record, paths)
    return [
        *found,
        *record_rows(),
        Row(
            'save: a path that exists',
            lambda: save(own, made('randp')),
            'is there already: give another name',
            (FileExistsError,),
        ),
        Row(
            'save: a function',
            lambda: save(fresh() / 'x', fair),
            'a defense that can be saved is an nn.Module',
        ),
        Row(
            'save: None',
            lambda: save(fresh() / 'x', None),
            'a defense that can be saved is an nn.Module',
        ),
        Row(
            'save: a class',
            lambda: save(fresh() / 'x', Undefended),
            'a defense that can be saved is an nn.Module',
        ),
        Row(
            'save: arguments the other way round',
            lambda: save(made('randp'), 'x'),
            'a defense that can be saved is an nn.Module',
        ),
        Row(
            'save: below a file',
            lambda: save(written('x') / 'x', made('randp')),
            'folder',
            (ValueError, FileExistsError, NotADirectoryError),
        ),
        Row('load: a missing victim', lambda: load(own), 'pass victim='),
        Row(
            'load: a victim of another shape',
            lambda: load(own, Victim(classes=4)),
            "holds another model's weights: victim.layer.bias",
        ),
        Row(
            'load: a victim of another class',
            lambda: load(own, network()),
            "holds another model's weights",
        ),
        Row(
            'load: a victim that is a function', lambda: load(own, fair), 'victim must be a Module'
        ),
        Row(
            'load: a network that the defense has not',
            lambda: load(own, Victim(), surrogate=Victim()),
            'surrogate',
        ),
        Row(
            'load: a path that is not there',
            lambda: load(fresh() / 'nope'),
            'is not there',
            (FileNotFoundError,),
        ),
        Row(
            'load: JSON alone',
            lambda: load(written(saved()[0]['.json'])),
            'file.safetensors',
            (ValueError, FileNotFoundError),
        ),
        Row('load: a folder', lambda: load(fresh()), 'is not there', (FileNotFoundError,)),
        Row(
            'load_weights: of another network',
            lambda: load_weights(weights_file(), Victim(classes=4)),
            "holds another model's weights",
        ),
        Row(
            'load_weights: into another class',
            lambda: load_weights(weights_file(), network()),
            "holds another model's weights",
        ),
        Row(
            'load_weights: not there',
            lambda: load_weights(fresh() / 'x.safetensors', Victim()),
            'is not there',
            (FileNotFoundError,),
        ),
        Row(
            'load_weights: no module',
            lambda: load_weights(weights_file(), None),
            'an nn.Module, got NoneType',
        ),
        Row('load_weights: damaged', lambda: load_weights(damaged_weights(), Victim()), damaged),
        Row('load_state: not there', lambda: load_state(fresh() / 'x'), 'No such file'),
    ]


def weights_file():
    path = fresh() / 'x.safetensors'
    save_weights(path, Victim(), {})
    return path


def damaged_weights():
    path = weights_file()
    path.write_bytes(flipped(-3)(path.read_bytes()))
    return path


def good_record():
    s = resolve(preset='digits', defense='undefended')
    measured = dict(accuracy=0.5, calibration_error=0.1, agreement=0.5, l1=0.5, renamed=0.5)
    return Record(
        name=run_name(s),
        settings={k: v for k, v in asdict(s).items() if k not in ('out', 'resume')},
        utility=dict(accuracy=0.9, calibration_error=0.1, l1_own=0.0, l1_original=0.0, flips=0.0),
        clone=measured,
        curve=[dict(queries=100, accuracy=0.5, agreement=0.5)],
        ledger=dict(clone=100),
        seconds=1.5,
        weights='0' * 64,
        made_by=dict(commit=None, meco_nb='0'),
    )


def recorded(change):
    fields = asdict(good_record())
    text = change if isinstance(change, str) else json.dumps(change(fields))
    return read_record(written(text))


def record_rows():
    damaged, no_record = 'is damaged', 'is no record of this version'
    wrong = dict(
        seconds='x',
        curve=3,
        ledger=[1],
        name=None,
        clone=None,
        utility='good',
        weights=3,
        made_by=[],
        chosen=3,
        failed=3,
    )
    cases = [
        ('nothing', '', damaged),
        ('no JSON', '{"name": ', damaged),
        ('a list', '[]', no_record),
        ('a number', '3', no_record),
        ('null', 'null', no_record),
        ('a string', '"record"', no_record),
        ('an empty dict', '{}', "missing 'clone'"),
        ('an unknown field', lambda fields: fields | dict(nonsense=1), "unknown 'nonsense'"),
        ('an unknown setting', lambda f: f | dict(settings=dict(nonsense=1)), "unknown 'nonsense'"),
        ('settings in a list', lambda f: f | dict(settings=[1]), damaged),
        ('no settings', lambda f: f | dict(settings=None), damaged),
        (
            'a wrong budget',
            lambda f: f | dict(settings=f['settings'] | dict(budget='many')),
            'budget',
        ),
        ('a wrong ledger', lambda f: f | dict(ledger=dict(clone='many')), 'ledger'),
    ]
    cases += [
        (f'no {name}', without(name), f'missing {name!r}')
        for name in ('name', 'clone', 'curve', 'seconds', 'ledger')
    ]
    cases += [
        (f'{name}={value!r}', with_facts(**{name: value}), damaged) for name, value in wrong.items()
    ]
    folders = [
        ('not there', fresh() / 'nope', 'nope'),
        ('a file', written('x'), 'file.json'),
        ('3', 3, 'must be a path'),
    ]
    return [
        *rows('read_record', recorded, cases),
        *rows(
            'load_records',
            load_records,
            folders,
            kinds=(ValueError, TypeError, FileNotFoundError, NotADirectoryError),
        ),
        Row(
            'load_records: one of them is none',
            lambda: load_records(written('[]').parent),
            no_record,
        ),
        Row('read_record: not there', lambda: read_record(fresh() / 'x.json'), 'No such file'),
    ]


GROUPS = [
    picture_rows,
    answer_rows,
    data_rows,
    victim_rows,
    defense_rows,
    attack_rows,
    call_rows,
    name_rows,
    file_rows,
]
ROWS = [row for group in GROUPS for row in group()]


@contextlib.contextmanager
def watched():
    "Counts what is trained and what a defense is asked; nothing is really trained."
    seen, answers_to = Counter(), oracle.answers_to

    def epoch(*_):
        seen['trained'] += 1
        return 0.0

    def asked(defense, images):
        seen['asked'] += (
            0 if isinstance(getattr(defense, "victim", None), Ignorant) else len(images)
        )
        return answers_to(defense, images)

    with mock.patch.object(training, '_epoch', epoch):
        with mock.patch.object(oracle, 'answers_to', asked):
            yield seen


def outcome(row):
    "The error of a row's call, None where there is none, and what was trained and asked first."
    with watched() as seen:
        try:
            row.call()
        except Exception as error:
            return error, seen
    return None, seen


def is_ours(error):
    "Whether an error was raised by this project's own code."
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return where.parent in HOMES or HOMES[0] in where.parents


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.what)
def test_what_is_wrong_is_said(row):
    error, seen = outcome(row)
    assert error is not None, 'no error'
    assert isinstance(error, row.kinds) and row.message in str(error), repr(error)
    assert is_ours(error), traceback.format_exception(error)[-4:]
    assert seen['trained'] == 0 and seen['asked'] <= row.asked, seen


def test_the_table_has_no_row_twice():
    assert len({row.what for row in ROWS}) == len(ROWS) >= 300


# Whatever comes

FUZZ = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
ERRORS = ValueError, TypeError
DTYPES = [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool]
SIZES = st.lists(st.sampled_from([0, 1, 2, 8]), max_size=5).map(tuple)
NUMBERS = st.sampled_from([0.0, 1.0, 0.5, -0.1, 1.1, 255.0, NAN, INF, -INF, 1e-8])


@st.composite
def tensors(draw, sizes=SIZES):
    "Tensors of any shape, of few values, of which most are wrong."
    shape = draw(sizes)
    values = draw(st.lists(NUMBERS, min_size=1, max_size=3))
    dtype, count = draw(st.sampled_from(DTYPES)), math.prod(shape)
    flat = torch.tensor(values).repeat(count + 1)[:count]
    flat = flat if dtype.is_floating_point else flat.nan_to_num()
    return flat.reshape(shape).to(dtype)


@FUZZ
@given(tensors(st.one_of(SIZES, st.just((2, *SHAPE)))), st.integers(0, 3))
def test_any_images_are_answered_or_cost_nothing(images, budget):
    ask = Oracle(Undefended(Victim()), budget, shape=SHAPE)
    try:
        answers = ask(images)
    except (*ERRORS, BudgetExceeded) as error:
        assert is_ours(error) and ask.used == 0
    else:
        assert answers.shape == (len(images), CLASSES) and ask.used == len(images)
        assert answers.isfinite().all() and (answers.sum(-1) - 1).abs().max() < 1e-3


TABLES = tensors(st.sampled_from([(2, 2), (2, 3), (2,), (2, 1), (3, 2), (2, 2, 2), ()]))
ANYTHING = st.one_of(
    TABLES,
    TABLES.map(lambda t: t.softmax(-1) if t.is_floating_point() and t.ndim else t),
    st.none(),
    st.text(max_size=3),
    st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
)


@FUZZ
@given(ANYTHING)
def test_any_answer_comes_out_as_probabilities_or_not_at_all(answer):
    try:
        found = Oracle(lambda images: answer, 10)(random_images(2))
    except ERRORS as error:
        assert is_ours(error)
    else:
        assert found.dtype == torch.float32 and found.ndim == 2 and len(found) == 2
        assert found.isfinite().all() and found.min() >= 0
        assert (found.sum(-1) - 1).abs().max() < 1e-3


@st.composite
def datasets(draw):
    "Datasets of a few images and labels, of which some are right."
    count = draw(st.integers(0, 4))
    shape = draw(st.sampled_from([SHAPE, SHAPE, (8, 8), (1, 2, 2), ()]))
    images = draw(tensors(st.just((count, *shape))))
    values = draw(st.lists(st.integers(-1, 5), min_size=count, max_size=count))
    dtype = draw(
        st.sampled_from([torch.int64, torch.int64, torch.int32, torch.uint8, torch.float32])
    )
    labels = torch.tensor(values, dtype=torch.int64).to(dtype)
    return TensorDataset(images, labels if draw(st.booleans()) else labels[:, None])


@FUZZ
@given(datasets(), datasets(), st.sampled_from([None, None, 2, 6]))
def test_any_dataset_becomes_data_or_is_refused(train, test, num_classes):
    try:
        data = make_data('any', train, test, num_classes)
    except ERRORS as error:
        assert is_ours(error)
    else:
        labels = torch.cat([train.tensors[1], test.tensors[1]]).long()
        assert labels.ndim == 1 and 0 <= labels.min() <= labels.max() < data.num_classes
        assert data.shape == train.tensors[0].shape[1:] == test.tensors[0].shape[1:]


@st.composite
def mutations(draw):
    "A function that flips a bit of a file, cuts it, or puts bytes into it."
    kind, place = draw(st.sampled_from(['flip', 'cut', 'insert'])), draw(st.floats(0, 0.999))
    bit, more = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=4))

    def mutate(content):
        at = int(place * len(content))
        if kind == 'flip':
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        return content[:at] + (content[at + len(more) :] if kind == 'cut' else more + content[at:])

    return mutate


@FUZZ
@given(st.sampled_from(['.safetensors', '.json', '.json']), mutations())
def test_a_damaged_defense_answers_the_same_or_not_at_all(suffix, mutate):
    files, answers = saved()
    files = files | {suffix: mutate(files[suffix])}
    path = fresh() / 'defense'
    for name, content in files.items():
        path.with_suffix(name).write_bytes(content)
    try:
        defense = load(path)
    except ValueError as error:
        assert is_ours(error)
    else:
        assert torch.equal(defense(random_images()), answers)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
)


@FUZZ
@given(st.data())
def test_a_changed_record_is_a_record_or_refused(data):
    fields = asdict(good_record())
    within = fields[data.draw(st.sampled_from(['settings', 'clone', 'ledger', 'utility']))]
    where = data.draw(st.sampled_from([fields, fields, within]))
    name = data.draw(st.one_of(st.sampled_from(sorted(where)), st.text(max_size=3)))
    where[name] = data.draw(VALUES)
    text = data.draw(mutations())(json.dumps(fields).encode()) if data.draw(st.booleans()) else None
    try:
        record = read_record(written(json.dumps(fields) if text is None else text))
    except ValueError as error:
        assert is_ours(error)
    else:
        assert isinstance(record, Record) and isinstance(record.seconds, float)
        save_record(fresh() / 'record.json', record)


@FUZZ
@given(st.text(min_size=1, max_size=400))
def test_any_name_makes_a_file_name(name):
    data = make_data(name, part(), part())
    s = Settings(dataset=data.name)
    for found in (run_name(s), file_name(data.name)):
        assert not set(found) & set('/\\\0') and len(found.encode()) <= 255
    path = fresh() / f'{run_name(s)}.checkpoint'
    path.write_text('')
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def main():
    "Print the table."
    print(f'{len(ROWS)} rows')
    width = max(len(row.what) for row in ROWS)
    for row in ROWS:
        error, _ = outcome(row)
        said = 'NO ERROR' if error is None else str(error).splitlines()[0]
        print(f'{row.what:{width}} | {said}')


if __name__ == '__main__':
    main()
