"Thefts that are stopped, that diverge, or are given what cannot work."

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from meco_nb.attacks.base import Attack, steal
from meco_nb.attacks.dast import DaST
from meco_nb.attacks.dfms_hl import DFMSHL, length
from meco_nb.cost import kept_bytes
from meco_nb.defenses import Undefended
from meco_nb.defenses.outputs import Rounding
from meco_nb.evidence import ended
from meco_nb.experiment import run
from meco_nb.grading import Grade, grade
from meco_nb.images import Source
from meco_nb.kept import keep, read_pieces
from meco_nb.leaderboard import check_open
from meco_nb.methods import ATTACKS, AttackCard
from meco_nb.models import build_model
from meco_nb.oracle import Averaged, HardLabels, Oracle, Unanswered
from meco_nb.parties import assemble
from meco_nb.settings import resolve
from meco_nb.studies import row_settings
from meco_nb.theft import Theft
from meco_nb.training import evaluate

SHORT = dict(preset='digits', defense='undefended', budget=600, relearn=2, real_images=20)
SHORT |= dict(held_back=40)


class Stop(Exception):
    pass


def measuring(data, stop_at=None):
    "What a curve shows, up to a look at which everything stops."
    looks = iter(range(10**6))

    def measure(clone):
        if next(looks) == stop_at:
            raise Stop
        return dict(accuracy=evaluate(clone, data.test)['accuracy'])

    return measure


@pytest.mark.parametrize(
    'attack, settings',
    [
        ('knockoff', dict(source='shapes', epochs=2)),
        ('knockoff', dict(source='distorted real', epochs=2, adaptive=True)),
        ('jbda', dict(epochs=1, seeds=20)),
        ('dfms_hl', dict(gan_steps=3, fit_epochs=1)),
        ('ideal', ATTACKS['ideal'].card.small),
        ('dfme', dict(width=4)),
    ],
)
def test_a_stopped_theft_that_relearns_ends_as_if_nothing_had_happened(
    attack, settings, digits, victim, tmp_path
):
    if 'adaptive' in settings:
        settings = dict(source='digits', epochs=2, adaptive=True)
    s = resolve(attack=attack, attack_settings=settings, **SHORT)
    real = digits.train[:20][0]
    whole = Theft(s, Undefended(victim), real)
    whole.run(measuring(digits))
    for stop_at in (2, 3, 3):
        parts = Theft(s, Undefended(victim), real, path=tmp_path / 'state')
        try:
            parts.run(measuring(digits, stop_at))
        except Stop:
            continue
    parts = Theft(s, Undefended(victim), real, path=tmp_path / 'state')
    parts.run(measuring(digits))
    assert whole.oracle.ledger == parts.oracle.ledger
    for one, other in [
        (whole.clone, parts.clone),
        *zip(whole.others().values(), parts.others().values(), strict=True),
    ]:
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    'attack, settings',
    [
        ('dual_students', dict(clone_lr=1e3)),
        ('disguide', dict(clone_lr=30.0)),
        ('disguide', dict(clone_lr=1e3)),
        ('maze', dict(clone_lr=100.0)),
        ('dfme', dict(clone_lr=1e3)),
    ],
)
def test_what_diverges_is_a_failed_attack_and_no_failed_experiment(attack, settings, tmp_path):
    few = dict(preset='digits', defense='undefended', victim_settings=dict(epochs=1))
    record = run(attack=attack, attack_settings=settings, budget=2_000, out=tmp_path, **few)
    assert record.failed.startswith('diverged') and record.clone['accuracy'] < 0.5
    assert ended([record]) == 0
    assert not list(tmp_path.glob('*.checkpoint'))


def test_dual_students_diverges_on_single_images_and_says_so():
    few = dict(preset='digits', defense='undefended', victim_settings=dict(epochs=1))
    record = run(attack='dual_students', budget=400, batch_size=1, labels='hard', seed=0, **few)
    assert record.failed.startswith('diverged') and sum(record.ledger.values()) < 400


def test_a_generator_that_diverges_leaves_the_clone_what_it_knows(digits, victim):
    s = resolve(preset='digits', defense='undefended', budget=12_000, batch_size=64)
    theft = Theft(s, Undefended(victim))
    steps = theft.steps()
    for _ in range(20):
        next(steps)
    with torch.no_grad():
        next(theft.attack.generator.parameters()).fill_(math.nan)
    theft.run(measuring(digits))
    assert theft.failed and theft.judged() is theft.clone
    asked = dict(theft.oracle.ledger)
    theft.run(measuring(digits))  # begun again, it asks nothing more
    assert theft.oracle.ledger == asked


def test_jbda_goes_on_where_an_answer_failed(digits, victim):
    calls = []

    def busy(images):
        calls.append(len(images))
        if len(calls) in (2, 4, 7):
            raise Unanswered('the line was busy')
        return Undefended(victim)(images)

    settings = dict(epochs=1, seeds=20)
    s = resolve(
        preset='digits', attack='jbda', attack_settings=settings, defense='undefended', budget=150
    )
    defense = Undefended(victim)
    defense.forward = busy
    parties = assemble(s, defense, digits.train[:20][0])
    while parties.oracle.remaining:
        try:
            for _ in parties.attack.run(parties.view):
                pass
        except Unanswered:
            pass
    assert parties.oracle.used == 150


def test_a_row_adds_to_what_all_rows_have():
    base = dict(preset='digits', defense='reverse_sigmoid', defense_settings=dict(beta=0.9))
    assert row_settings({}, **base).defense_settings['beta'] == 0.9
    assert (
        row_settings(dict(defense_settings=dict(beta=0.5)), **base).defense_settings['beta'] == 0.5
    )
    assert row_settings(dict(held_back=500), **base).held_back == 500
    training = row_settings(dict(victim_settings=dict(lr=1e-4)), training=3, **base).victim_settings
    assert training['lr'] == 1e-4 and training['epochs'] == 3


def test_none_is_a_value_where_the_signature_takes_it():
    free = dict(kind="learned", strength=None)
    s = resolve(preset="digits", defense="meco_plain", defense_settings=free)
    assert s.defense_settings["strength"] is None


def test_settings_that_are_resolved_once_more_stay():
    s = resolve(preset='digits', attack='knockoff', attack_settings=dict(epochs=None))
    again = resolve(**{k: getattr(s, k) for k in s.__dataclass_fields__})
    assert again == s


def test_a_frozen_clone_in_half_precision_is_trained_as_a_copy(digits, victim, tmp_path):
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half().requires_grad_(False)
    few = dict(quick=True, budget=300, rows=['Knockoff, shapes'])
    found = grade(Undefended(victim), digits, clone=frozen, **few)
    assert not found.failed
    assert frozen[1].weight.dtype == torch.float16 and not frozen[1].weight.requires_grad


def test_clones_of_one_name_and_other_widths_are_other_clones(digits, victim, tmp_path):
    def net(shape, num_classes, width):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

    few = dict(quick=True, budget=300, rows=['Knockoff, shapes'], out=tmp_path)
    weights = set()
    for width in (2, 16):
        found = grade(Undefended(victim), digits, clone=partial(net, width=width), **few)
        weights |= {record.weights for record in found.values()}
    assert len(weights) == 2


def test_a_folder_that_cannot_be_is_said_before_anything_is_asked(digits, tmp_path):
    (tmp_path / 'file').write_text('')
    asked = []
    with pytest.raises(ValueError, match='no folder'):
        grade(asked.append, digits, quick=True, out=tmp_path / 'file' / 'under')
    assert not asked


def test_an_entry_is_about_one_dataset(tmp_path):
    import meco_nb.leaderboard as board

    path = board.folder_of('digits') / 'randp.json'
    with pytest.raises(ValueError, match='about digits'):
        check_open(path, 99, board.read_entry(path).settings, 'fashion_mnist')


def test_a_grade_without_such_an_attack_says_so():
    with pytest.raises(ValueError, match='no attack of that kind'):
        Grade({}, {}, None).strongest(real=False)


def test_a_wrapped_oracle_is_copied(victim):
    assert copy.deepcopy(HardLabels(Oracle(Undefended(victim), 5))).remaining == 5


def test_pieces_of_a_file_stay(tmp_path):
    path = tmp_path / 'pieces.json'
    for i in range(3):
        keep(path, ('rows', str(i)), i, 0.1)
    assert read_pieces(path)['rows'] == {'0': 0, '1': 1, '2': 2}


def test_wide_images_have_a_discriminator():
    from meco_nb.attacks.dfms_hl import Discriminator

    for shape in [(1, 8, 64), (1, 16, 128), (3, 4, 32), (1, 8, 8)]:
        assert Discriminator(shape)(torch.rand(2, *shape)).shape == (2,)


def test_a_clone_with_other_classes_is_told_before_anything_is_bought(victim, digits):
    "Also by an attack with a loss of its own, and of a clone that does not say how many it has."
    oracle = Oracle(Undefended(victim), budget=100)
    clone = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    attack = DaST(clone, digits.shape, batch_size=10, width=8)
    with pytest.raises(ValueError, match='the clone is for classes 7, the oracle for 10'):
        steal(attack, oracle)
    assert oracle.used == 0


def test_a_share_of_the_budget_is_counted_in_images_where_answers_are_averaged(victim, digits):
    oracle = Oracle(Undefended(victim), budget=4_000)
    attack = DFMSHL(build_model('lenet5', digits, seed=1), batch_size=20, share=0.5, width=8)
    assert length(attack, 'buy', oracle) == 100
    assert length(attack, 'buy', Averaged(oracle, 5)) == 20


def test_real_images_are_checked_before_they_are_distorted(digits):
    with pytest.raises(ValueError, match='lie in'):
        Source('distorted real', digits.shape, images=255 * digits.test.tensors[0][:4])


class Unkept(Rounding):
    "A defense that forgets whose answers it changes."

    card = replace(Rounding.card, name='unkept')

    def __init__(self, victim):
        super().__init__(victim)
        self.whose = self.victim
        del self.victim


class Sizeless(Attack):
    "An attack that asks one image at a time."

    card = AttackCard(name='sizeless', title='Sizeless', about='asks one image at a time', cite=())

    def __init__(self, clone, seed=0, images=None):
        super().__init__(clone, 1, seed)

    def step(self, oracle):
        return dict(clone=oracle(torch.zeros(1, 1, 8, 8)).sum())

    def samples(self, count):
        return torch.zeros(count, 1, 8, 8)


HERE = dict(preset='digits', victim_settings=dict(epochs=1), budget=20)


def test_a_defense_that_keeps_no_victim_is_told_before_anything_is_trained():
    with pytest.raises(TypeError, match='does not keep the network'):
        run(defense=f'{__name__}:Unkept', attack='knockoff', **HERE)


def test_an_attack_without_a_batch_size_needs_none():
    own = dict(defense='undefended', attack=f'{__name__}:Sizeless', **HERE)
    assert run(**own).ledger == dict(clone=20)
    with pytest.raises(ValueError, match='has no batch_size'):
        run(**own, batch_size=5)


def test_what_a_run_keeps_is_counted_wherever_it_is_kept(digits):
    s = resolve(preset='digits', defense='undefended', attack='disguide', budget=500, relearn=1)
    assert kept_bytes(s, digits) == 2 * 500 * 4 * (64 + 10)
