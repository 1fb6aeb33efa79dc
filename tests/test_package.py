"The package as it is installed."
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from meco_nb.attacks import ATTACKS
from meco_nb.data import DEBIAN, load_data
from meco_nb.defenses import DEFENSES
from meco_nb.settings import resolve

ROOT = Path(__file__).parent.parent


def test_importing_it_loads_nothing_heavy():
    code = "import sys, torch; before = set(sys.modules); import meco_nb, meco_nb.experiment; print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert 'meco_nb' in loaded
    assert not {'torchvision', 'matplotlib', 'sklearn', 'scipy', 'nbdev', 'fastcore', 'IPython', 'ipywidgets'} & set(loaded)


def test_attackers_import_nothing_of_the_defenders():
    for path in (ROOT / 'meco_nb' / 'attacks').glob('*.py'):
        assert not re.search(r'defenses|load_data|Undefended', path.read_text()), path


def test_registries_hold_what_they_say():
    assert {'undefended', 'meco'} <= set(DEFENSES) and {'dfme', 'maze', 'dfms_hl', 'knockoff', 'jbda'} == set(ATTACKS)


@pytest.mark.skipif(not DEBIAN.exists(), reason="Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
def test_fashion_mnist_from_debian(tmp_path):
    small = load_data('fashion_mnist16', root=tmp_path)
    assert small.shape == (1, 16, 16) and len(small.train) == 60_000 and len(small.test) == 10_000
    large = load_data('fashion_mnist', root=tmp_path)
    assert abs(large.mean[0] - .2860) < .002 and abs(large.std[0] - .3530) < .003       # the numbers everybody normalises with
    assert large.train.tensors[1].bincount().tolist() == [6000] * 10
    assert abs(small.mean[0] - large.mean[0]) < .002


def commands():
    "The papermill lines of the README: (notebook, dict of parameters)."
    for line in re.findall(r'^\.venv/bin/papermill (.+)$', (ROOT / 'README.md').read_text(), re.M):
        notebook, _, *words = shlex.split(line)
        given = {}
        for flag, *rest in zip(words, words[1:], words[2:] + ['']):
            if flag == '-p': given[rest[0]] = rest[1]
            if flag == '-y': given |= yaml.safe_load(rest[0])
        yield notebook, given


def test_the_papermill_lines_of_the_readme_ask_for_what_there_is():
    "Names and values, without running them: tests/test_notebooks.py runs notebooks."
    lines = list(commands())
    assert len(lines) >= 8
    for notebook, given in lines:
        cells = json.loads((ROOT / notebook).read_text())['cells']
        parameters = next(''.join(cell['source']) for cell in cells if 'parameters' in cell['metadata'].get('tags', []))
        known = re.findall(r'^(\w+) =', parameters, re.M)
        assert set(given) <= set(known), (notebook, given)
        if notebook == 'nbs/05_attacks.ipynb': resolve(**{'preset': 'digits', **{k: v for k, v in given.items() if k not in ('resume', 'seed')}})


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    code = '\n'.join(blocks).replace('20_000', '2_000').replace('epochs=10', 'epochs=1').replace('data), data)', 'data), data, epochs=1)').replace('quick=True', 'quick=True, budget=300, rows=["Knockoff, shapes"]')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "'generator': " in said.stdout and 'l1' in said.stdout and 'strongest attack in all: Knockoff, shapes' in said.stdout
