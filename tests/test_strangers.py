"Somebody else's attack, defense and data, in a package of their own, run by name."

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

PACKAGE = {
    'methods.py': '''
        import torch

        from meco_nb.attacks.base import Attack, clone_step
        from meco_nb.methods import AttackCard, Count, DefenseCard, Share, checked
        from meco_nb.oracle import Undefended


        class Stripes(Attack):
            "Asks about stripes."
            card = AttackCard(name='stripes', title='Stripes', about='asks about stripes',
                              presets=dict(digits=dict(every=2)), small=dict(every=3))

            @checked
            def __init__(self, clone, shape=None, batch_size: Count = 32, seed: int = 0,
                         images=None, every: Count = 4):
                super().__init__(clone, batch_size, seed)
                self.shape, self.every = shape or clone.image_shape, every
                self.optimizer = torch.optim.Adam(clone.parameters(), 1e-3)
                self.parts |= dict(optimizer=self.optimizer)

            def cost(self):
                return {'clone': self.batch_size}

            def samples(self, count, seed=0):
                return self.draw(count, torch.Generator().manual_seed(seed))

            def draw(self, count, random):
                images = torch.rand(count, *self.shape, generator=random)
                images[..., ::self.every] = 0
                return images

            def step(self, oracle):
                images = self.draw(min(self.batch_size, oracle.remaining), self.random)
                answers = oracle(images)
                return {'clone': clone_step(self.clone, self.optimizer, images, answers, 'kl')}


        class Timid(Undefended):
            "Says everything half as surely."
            card = DefenseCard(name='timid', title='Timid', about='half as sure', family='answer',
                               presets=dict(digits=dict(share=.25)), knob='share')

            @checked
            def __init__(self, victim, share: Share = .5):
                super().__init__(victim)
                self.share = share

            def forward(self, images):
                probs = super().forward(images)
                return (1 - self.share) * probs + self.share / probs.shape[1]
    ''',
    'data.py': '''
        import torch
        from torch.utils.data import TensorDataset


        def squares(root):
            "Dark and bright squares."
            images = torch.rand(300, 1, 9, 9) * .4
            labels = torch.arange(300) % 2
            images[labels == 1] += .6
            train = TensorDataset(images[:200], labels[:200])
            return train, TensorDataset(images[200:], labels[200:])
    ''',
    '__init__.py': '',
}
ENTRY_POINTS = '''
    [meco_nb.attacks]
    stripes = stranger.methods:Stripes
    [meco_nb.defenses]
    timid = stranger.methods:Timid
'''


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A folder with the package and its entry points, as pip would lay them."
    folder = tmp_path_factory.mktemp('site')
    (folder / 'stranger').mkdir()
    for name, text in PACKAGE.items():
        (folder / 'stranger' / name).write_text(textwrap.dedent(text))
    info = folder / 'stranger-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text(textwrap.dedent(ENTRY_POINTS))
    path = os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': path, 'PATH': f"{BIN}:{os.environ['PATH']}"}


def test_the_notebook_runs_what_it_has_never_heard_of(installed, tmp_path):
    "An attack by its name, a defense by its address."
    names = [
        '-p',
        'attack',
        'stripes',
        '-p',
        'defense',
        'stranger.methods:Timid',
        '-p',
        'dataset',
        'stranger.data:squares',
    ]
    few = [
        '-p',
        'budget',
        '200',
        '-p',
        'out',
        tmp_path / 'out',
        '-y',
        '{victim_settings: {epochs: 1}}',
    ]
    command = [
        BIN / 'papermill',
        ROOT / 'nbs' / '05_attacks.ipynb',
        tmp_path / 'o.ipynb',
        *names,
        *few,
    ]
    said = subprocess.run(
        [*command, '--no-progress-bar'], capture_output=True, text=True, cwd=tmp_path, env=installed
    )
    assert said.returncode == 0, said.stderr[-2000:]
    records = list((tmp_path / 'out').glob('*.json'))
    assert len(records) == 2 and all('squares' in path.name for path in records)


def test_it_is_graded_and_grades(installed):
    code = textwrap.dedent('''
        from meco_nb import grade
        from meco_nb.data import load_data
        from meco_nb.methods import ATTACKS, DEFENSES, card_of
        from meco_nb.models import build_model
        from meco_nb.settings import resolve
        from meco_nb.training import fit

        assert 'stripes' in ATTACKS and 'timid' in DEFENSES
        assert resolve(preset='digits', attack='stripes').attack_settings == dict(every=2)
        data = load_data('stranger.data:squares')
        victim = fit(build_model('lenet5', data, seed=0), data, epochs=2)
        timid = DEFENSES['stranger.methods:Timid'](victim, share=.5)
        rows = ['stripes', 'stranger.methods:Stripes', 'Knockoff, shapes']
        print(grade(timid, data, budget=100, quick=True, rows=rows))
        try: grade(timid, data, rows=['tripes'])
        except ValueError as error: print(error)
    ''')
    said = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=installed
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert 'stranger.methods:Stripes' in said.stdout and "unknown attack 'tripes'" in said.stdout
