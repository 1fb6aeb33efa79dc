"Defenses take victims of any make and data of any size, and what they cannot do they say."

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

import meco_nb
from meco_nb.data import make_data
from meco_nb.defenses import (
    EDM,
    Gatekeeper,
    GaussianOutput,
    Grad,
    MeCoReleased,
    Misdirection,
    Misleader,
    ModelGuardian,
    Rounding,
)
from meco_nb.defenses.edm import edm_loss
from meco_nb.defenses.noise import match_l1
from meco_nb.methods import DEFENSES
from meco_nb.models import reinitialised
from meco_nb.oracle import answers_to
from meco_nb.settings import resolve
from meco_nb.training import evaluate, fit

TRAINED = [name for name in DEFENSES if DEFENSES[name].card.retrains]


class InPlace(nn.Module):
    "Works on the images it is given."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, images):
        return self.body(images.sub_(0.5))


class Attention(nn.Module):
    "Rows of the image look at each other."

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(8, 24), nn.Linear(64, 10)

    def forward(self, images):
        q, k, v = self.mix(images).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


class Auxiliary(InPlace):
    "Has a second head that nobody asks."

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(16, 3)

    def forward(self, images):
        return self.body(images - 0.5)


@pytest.fixture(scope='module')
def few(digits):
    "One image more than a batch."
    images, labels = digits.train[:65]
    return make_data('few', TensorDataset(images, labels), digits.test)


@pytest.mark.parametrize('make', [InPlace, Attention, Auxiliary])
@pytest.mark.parametrize('name', TRAINED)
def test_every_defense_trains_a_victim_of_any_make(name, make, few):
    torch.manual_seed(0)
    victim, more = make(), {}
    if name == 'edm' or name.startswith('meco') or name == 'model_guardian':
        more = dict(channels=1)
    if name == 'gatekeeper':
        more = dict(shape=(1, 8, 8))
    defense = DEFENSES[name](victim, **more).fit(few, epochs=1)
    images = few.test[:5][0]
    answers = answers_to(defense, images)
    assert torch.allclose(answers.sum(-1), torch.ones(5), atol=1e-5)
    assert torch.equal(images, few.test[:5][0])


@pytest.mark.parametrize('variant', ['all_ones', 'min_ip'])
def test_grad_differentiates_attention(variant, few):
    torch.manual_seed(0)
    answers = answers_to(Grad(Attention(), goal=variant), few.test[:3][0])
    assert torch.isfinite(answers).all()


def test_members_of_an_ensemble_see_the_same_images(digits):
    torch.manual_seed(0)
    members, (images, labels) = [InPlace(), InPlace()], digits.train[:8]
    before = images.clone()
    edm_loss(members, images, labels, images, diversity=0)
    assert torch.equal(images, before)


@pytest.mark.parametrize('count, shape', [(65, (1, 8, 8)), (5, (1, 8, 8)), (40, (3, 8, 40))])
def test_our_own_take_a_last_batch_of_one_few_images_and_wide_ones(count, shape):
    torch.manual_seed(0)
    dataset = TensorDataset(torch.rand(count, *shape), torch.arange(count) % 4)
    data = make_data('random', dataset, dataset)
    size = shape[0] * shape[1] * shape[2]
    victim = nn.Sequential(nn.Flatten(), nn.Linear(size, 4))
    for defense in (Misdirection(victim), Gatekeeper(victim, shape=shape)):
        assert defense.fit(data, epochs=1, batch_size=8).history[0] > 0


def test_misdirection_is_where_its_victim_is(victim):
    parts = Misdirection(copy.deepcopy(victim).to('meta')).state_dict()
    assert {tensor.device.type for tensor in parts.values()} == {'meta'}


def test_a_loaded_misleader_wants_its_teacher(victim, digits, tmp_path):
    path = meco_nb.save(tmp_path / 'misleader', Misleader(victim, members=2))
    with pytest.raises(ValueError, match='teacher'):
        meco_nb.load(path).fit(digits, epochs=1)
    again = meco_nb.load(path, victim=victim).fit(digits, alpha=1.0, epochs=3, lr=5e-3)
    assert evaluate(again, digits.test)['accuracy'] > 0.5


def test_what_a_guardian_tolerates_is_saved(victim, tmp_path):
    guarded = ModelGuardian(victim)
    guarded.users.limit, guarded.users.window = 3, 5
    again = meco_nb.load(meco_nb.save(tmp_path / 'guarded', guarded, serving=True))
    assert (again.users.limit, again.users.window) == (3, 5)


def test_a_foreign_normalisation_is_read(victim):
    strange = InPlace()
    strange.normalize = torchvision.transforms.Normalize([0.5], [0.2])
    assert MeCoReleased(strange, channels=1).pixel_std == pytest.approx(0.2)
    with pytest.raises(ValueError, match='scale'):
        MeCoReleased(victim, scale=0)


def test_a_training_of_one_step_trains(digits):
    torch.manual_seed(0)
    images, labels = digits.train[:60]
    data = make_data('one step', TensorDataset(images, labels), digits.test)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.clone()
    fit(model, data, epochs=1, batch_size=64, lr=0.1, optimizer='sgd', seed=2**62)
    assert (model[1].weight - before).abs().max() > 1e-3


def test_settings_out_of_range(victim):
    for wrong, said in [
        (lambda: Rounding(victim, decimals=39), 'decimals'),
        (lambda: EDM(victim, classes=1), 'classes'),
        (lambda: EDM(victim, members=30), 'members'),
    ]:
        with pytest.raises(ValueError, match=said):
            wrong()
    with pytest.raises(ValueError, match='decimals'):
        resolve(preset='digits', defense='rounding', defense_settings=dict(decimals=39))


def test_fresh_attention_and_what_has_none():
    attention = nn.MultiheadAttention(8, 2)
    fresh = reinitialised(attention, seed=1)
    assert not torch.equal(fresh.in_proj_weight, attention.in_proj_weight)
    with pytest.raises(ValueError, match='reset_parameters'):
        reinitialised(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), seed=1)


def test_a_match_that_fails_leaves_the_control_as_it_was(victim, digits):
    noisy = GaussianOutput(victim, size=0.05)
    with pytest.raises(ValueError):
        match_l1(noisy, digits, 1.9)
    assert noisy.size.item() == pytest.approx(0.05)
