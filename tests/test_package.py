"The package as it is installed, and what is said of it."

import ast
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from meco_nb.attacks import DFME
from meco_nb.data import DEBIAN, load_data
from meco_nb.defenses import MeCo
from meco_nb.methods import ATTACKS, DEFENSES, with_lists
from meco_nb.settings import resolve

ROOT = Path(__file__).parent.parent


def python(code):
    "What code prints, run in a folder of its own."
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, cwd=folder
        )
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, torch; before = set(sys.modules); import meco_nb, meco_nb.experiment; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = python(code).split()
    heavy = {
        'torchvision',
        'matplotlib',
        'pandas',
        'sklearn',
        'scipy',
        'nbdev',
        'IPython',
        'ipywidgets',
    }
    assert 'meco_nb' in loaded and not heavy & set(loaded)


def test_attackers_import_nothing_of_the_defenders():
    for path in (ROOT / 'meco_nb' / 'attacks').glob('*.py'):
        assert not re.search(r'defenses|load_data|Undefended', path.read_text()), path


def test_registries_hold_what_they_say():
    assert {'undefended', 'meco'} <= set(DEFENSES) and {'dfme', 'maze', 'dfms_hl'} <= set(ATTACKS)
    assert (
        ATTACKS['dfme'] is DFME
        and DEFENSES['meco'] is MeCo
        and next(iter(DEFENSES)) == 'undefended'
    )
    with pytest.raises(ImportError):
        from meco_nb.attacks import NoSuchAttack  # noqa: F401


@pytest.mark.skipif(not DEBIAN.exists(), reason='no Fashion-MNIST here')
def test_fashion_mnist_from_debian(tmp_path):
    small = load_data('fashion_mnist16', root=tmp_path)
    assert small.shape == (1, 16, 16) and len(small.train) == 60_000 and len(small.test) == 10_000
    large = load_data('fashion_mnist', root=tmp_path)
    assert (
        abs(large.mean[0] - 0.2860) < 0.002 and abs(large.std[0] - 0.3530) < 0.003
    )  # as everywhere
    assert large.train.tensors[1].bincount().tolist() == [6000] * 10
    assert abs(small.mean[0] - large.mean[0]) < 0.002


def commands():
    "The papermill lines of the README: (notebook, dict of parameters)."
    for line in re.findall(r'^\.venv/bin/papermill (.+)$', (ROOT / 'README.md').read_text(), re.M):
        notebook, _, *words = shlex.split(line)
        given = {}
        for flag, *rest in zip(words, words[1:], words[2:] + [''], strict=False):
            if flag == '-p':
                given[rest[0]] = rest[1]
            if flag == '-y':
                given |= yaml.safe_load(rest[0])
        yield notebook, given


def test_the_papermill_lines_of_the_readme_ask_for_what_there_is():
    "Names and values, without running them: tests/test_notebooks.py runs notebooks."
    lines = list(commands())
    assert len(lines) >= 8
    for notebook, given in lines:
        cells = json.loads((ROOT / notebook).read_text())['cells']
        tagged = [cell for cell in cells if 'parameters' in cell['metadata'].get('tags', [])]
        known = re.findall(r'^(\w+) =', ''.join(tagged[0]['source']), re.M)
        assert set(given) <= set(known), (notebook, given)
        if notebook == 'nbs/05_attacks.ipynb':
            kept = {k: v for k, v in given.items() if k != 'resume'}
            resolve(**{'preset': 'digits', **kept})


def test_the_lists_of_the_readme_are_those_of_the_cards():
    text = (ROOT / 'README.md').read_text()
    assert text == with_lists(text) and '(`dfme`)' in text and '(`meco`)' in text


def test_the_python_of_the_readme_runs():
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    code = '\n'.join(blocks)
    quick = {
        '20_000': '2_000',
        'fit(data, lr=5e-3)': 'fit(data, lr=5e-3, epochs=1)',
        'data), data)': 'data), data, epochs=1)',
        'quick=True': 'quick=True, budget=300, rows=["Knockoff, shapes"]',
    }
    for long, short in quick.items():
        assert long in code
        code = code.replace(long, short)
    said = python(code)
    assert "'generator': " in said and 'l1' in said
    assert 'strongest attack in all: Knockoff, shapes' in said


def drawn():
    "The rooms of CONTRIBUTING's picture: room -> its modules, and the arrows between rooms."
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    picture = re.search(r'```mermaid\n(.*?)```', text, re.S)[1]
    rooms = {
        name: words.split(': ')[1].split(', ')
        for name, words in re.findall(r'^ +(\w+)\["(.+?)"\]$', picture, re.M)
    }
    arrows = set()
    for sources, targets in re.findall(r'^ +([\w &]+) --> ([\w &]+)$', picture, re.M):
        arrows |= {(a, b) for a in sources.split(' & ') for b in targets.split(' & ')}
    return rooms, arrows


def imports(path):
    "The modules of this package that a file imports, by name."
    own = path.relative_to(ROOT / 'meco_nb').with_suffix('').parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(own[: len(own) - node.level]) if node.level else []
            name = [*base, *(node.module or '').split('.')]
            if node.level or name[0] == 'meco_nb':
                yield '.'.join(part for part in name if part not in ('meco_nb', ''))


def test_the_picture_of_the_architecture_is_the_architecture():
    rooms, arrows = drawn()
    room_of = {module: room for room, modules in rooms.items() for module in modules}
    found = set()
    for path in (ROOT / 'meco_nb').rglob('*.py'):
        module = '.'.join(path.relative_to(ROOT / 'meco_nb').with_suffix('').parts)
        if path.name in ('__init__.py', '_modidx.py'):
            continue
        mine = room_of.get(module) or room_of[module.split('.')[0]]
        for other in filter(None, imports(path)):
            theirs = room_of.get(other) or room_of[other.split('.')[0]]
            found |= {(mine, theirs)} - {(mine, mine)}
    assert found == arrows, (found - arrows, arrows - found)
