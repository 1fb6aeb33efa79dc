"Pictures and widgets, without a browser."

import matplotlib
import pytest
import torch

matplotlib.use('agg')

import ipywidgets
import matplotlib.pyplot as plt

from meco_nb.data import make_data
from meco_nb.drawing import COLORS, DASHES, diagram, show_images, use_style
from meco_nb.experiment import run
from meco_nb.explore import (
    explore_defenses,
    explore_run,
    explorer,
    knob,
    load_run,
    png,
    show_answer,
    show_moment,
    turned,
)
from meco_nb.methods import DEFENSES


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


@pytest.mark.parametrize('name', list(DEFENSES))
def test_every_defense_can_be_turned_and_shown(name, victim, digits):
    defense = DEFENSES[name](victim).eval()
    before = {k: v.clone() for k, v in defense.state_dict().items() if torch.is_tensor(v)}
    for factor in (0.0, 1.0, 4.0):
        png(show_answer(defense, victim, digits.test[0][0], seed=3, factor=factor, draws=3))
    assert all(torch.equal(tensor, defense.state_dict()[k]) for k, tensor in before.items())


@pytest.mark.parametrize('name', list(DEFENSES))
def test_a_card_s_knob_is_there(name, victim):
    holder, attribute = knob(DEFENSES[name](victim))
    if DEFENSES[name].card.knob is None:
        assert holder is attribute is None
    elif attribute is not None:
        assert attribute == DEFENSES[name].card.knob.split('.')[-1]


def test_turning_multiplies_the_knob_of_a_copy(victim):
    assert turned(DEFENSES['randp'](victim, l1=1.5), 4.0).l1 == 2
    assert turned(DEFENSES['randp'](victim, l1=0.5), 2.0).l1 == 1
    control = DEFENSES['gaussian_input'](victim, size=0.1)
    assert abs(float(turned(control, 3.0).size) - 0.3) < 1e-6
    assert abs(float(control.size) - 0.1) < 1e-6
    assert knob(DEFENSES['top1'](victim)) == (None, None)


def test_a_seed_decides_the_picture(victim, digits):
    defense, image = DEFENSES['meco'](victim, width=8), digits.test[0][0]
    assert png(show_answer(defense, victim, image, seed=1)) == png(
        show_answer(defense, victim, image, seed=1)
    )
    assert png(show_answer(defense, victim, image, seed=1)) != png(
        show_answer(defense, victim, image, seed=2)
    )


def test_widgets_redraw_when_a_control_changes(victim, digits):
    widget = explore_defenses(
        {'meco': DEFENSES['meco'](victim, width=8), 'top1': DEFENSES['top1'](victim)},
        victim,
        digits.test.tensors[0][:5],
    )
    name, image, seed, factor, picture = widget.children
    seen = [picture.value]
    for control, value in ((image, 4), (seed, 2), (factor, 2.0), (name, 'top1')):
        control.value = value
        seen.append(picture.value)
    assert len(set(seen)) == 5 and all(bytes(value[:4]) == b'\x89PNG' for value in seen)
    assert image.max == 4 and list(name.options) == ['meco', 'top1']
    with pytest.raises(ValueError, match='at least one image'):
        explore_defenses({}, victim, digits.test.tensors[0][:0])


def test_colour_images_are_shown(tmp_path):
    images = torch.rand(64, 3, 8, 8)
    data = make_data(
        'colour',
        torch.utils.data.TensorDataset(images, torch.arange(64) % 2),
        torch.utils.data.TensorDataset(images, torch.arange(64) % 2),
    )
    from meco_nb.models import build_model

    victim = build_model('lenet5', data)
    png(show_answer(DEFENSES['meco'](victim, width=8), victim, images[0]))


def test_a_finished_run_can_be_scrubbed(tmp_path):
    record = run(
        preset='digits',
        defense='undefended',
        budget=900,
        out=tmp_path,
        victim_settings=dict(epochs=1),
    )
    finished = load_run(tmp_path / f'{record.name}.json')
    assert finished.record == record and finished.asked.shape == (len(record.curve), 10, 1, 8, 8)
    assert finished.asked.min() >= 0 and finished.asked.max() <= 1
    slider, picture = explore_run(finished).children
    before = picture.value
    slider.value = len(record.curve) - 1
    assert picture.value != before and png(show_moment(finished, 0)) == before
    (tmp_path / f'{record.name}.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='safetensors'):
        load_run(tmp_path / f'{record.name}.json')


def test_the_palette_and_the_drawings():
    use_style()
    assert len(COLORS) == len(DASHES) == len(set(COLORS.values()))
    assert plt.rcParams['axes.prop_cycle'].by_key()['color'] == list(COLORS.values())
    with pytest.raises(ValueError, match='wrong: images must be'):
        show_images({'wrong': torch.rand(2, 4, 8, 8)})
    axes = diagram({'a': (1, 1, 'A', 'attacker'), 'b': (4, 1, 'B', 'defender')}, [('a', 'b', 'to')])
    assert {'A', 'B', 'to'} <= {text.get_text() for text in axes.texts}


def test_an_explorer_hands_over_the_values_of_its_controls():
    handed = []

    def draw(**values):
        handed.append(values)
        return plt.figure()

    slider = ipywidgets.IntSlider(2, 0, 5)
    explorer(draw, n=slider)
    slider.value = 4
    assert handed == [dict(n=2), dict(n=4)]
