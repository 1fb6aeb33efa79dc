"The notebooks are the source, and run headless."
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meco_nb.attacks import ATTACKS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
BIN = Path(sys.executable).parent


def cells(path): return json.loads(path.read_text())['cells']


def papermill(out, *words):
    command = [BIN / 'papermill', ROOT / 'nbs' / '05_attacks.ipynb', out, '--no-progress-bar', *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PATH': f"{BIN}:{os.environ['PATH']}"})


def differences(comparison):
    yield from comparison.left_only + comparison.right_only + comparison.diff_files
    for sub in comparison.subdirs.values(): yield from differences(sub)


def test_the_package_is_what_the_notebooks_export(tmp_path):
    for name in ('settings.ini', 'nbs', 'README.md', '_quarto.yml'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in ('.', 'attacks', 'defenses'):  # written by hand: they hand names on
        (tmp_path / 'meco_nb' / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / 'meco_nb' / name / '__init__.py', tmp_path / 'meco_nb' / name)
    subprocess.run([BIN / 'nbdev_export'], cwd=tmp_path, check=True, capture_output=True)
    assert not list(differences(filecmp.dircmp(ROOT / 'meco_nb', tmp_path / 'meco_nb', ignore=['__pycache__'])))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_opens_with_title_and_subtitle_and_shows_its_outputs(path):
    first = ''.join(cells(path)[0]['source'])
    assert re.match(r'# .+\n\n> .+', first)
    code = [cell for cell in cells(path) if cell['cell_type'] == 'code']
    assert not any('eval: false' in ''.join(cell['source']) for cell in code)
    assert not any(output['output_type'] == 'error' for cell in code for output in cell['outputs'])
    assert any(cell['outputs'] for cell in code)
    shown = json.dumps([cell['outputs'] for cell in code])
    assert not re.search(r'''site-packages|ipykernel_|(?<![\w.:/)\]}-])/\w+/\w''', re.sub(r'"image/png": "[^"]*"', '', shown))  # no path of any machine


def test_every_chapter_is_in_the_sidebar_once_and_in_order():
    listed = re.findall(r'[\w]+\.ipynb', (ROOT / '_quarto.yml').read_text())
    assert sorted(listed) == [path.name for path in NOTEBOOKS] and listed[0] == 'index.ipynb'


def test_the_parameters_cell_is_tagged():
    tagged = [cell for cell in cells(ROOT / 'nbs' / '05_attacks.ipynb') if 'parameters' in cell['metadata'].get('tags', [])]
    assert len(tagged) == 1 and 'budget = None' in ''.join(tagged[0]['source'])


def test_papermill_runs_the_experiment(tmp_path):
    said = papermill(tmp_path / 'o.ipynb', '-p', 'budget', '1e3', '-p', 'preset', 'digits', '-p', 'out', str(tmp_path / 'out'),
                     '-y', '{victim_settings: {epochs: 1}, defense_settings: {epochs: 1}}')
    assert said.returncode == 0, said.stderr[-2000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / 'out').glob('*.json')]
    assert len(records) == 4 and all(sum(r['ledger'].values()) == 1000 == r['settings']['budget'] for r in records)
    assert not list((tmp_path / 'out').glob('.*')) and not list((tmp_path / 'out').glob('*.checkpoint'))


@pytest.mark.parametrize('attack', [name for name in ATTACKS if name != 'dfme'])
def test_papermill_runs_every_attack(tmp_path, attack):
    few = dict(dfms_hl='{gan_steps: 3, fit_epochs: 1, width: 8}', knockoff='{epochs: 1}', jbda='{epochs: 1}', maze='{width: 8}')[attack]
    said = papermill(tmp_path / 'o.ipynb', '-p', 'budget', '300', '-p', 'preset', 'digits', '-p', 'attack', attack, '-p', 'defense', 'undefended',
                     '-y', f'{{victim_settings: {{epochs: 1}}, attack_settings: {few}}}')
    assert said.returncode == 0, said.stderr[-2000:]


@pytest.mark.parametrize('words, message', [(['-p', 'defense', 'mecco'], "unknown defense 'mecco'; known: undefended, meco"),
                                            (['-p', 'bugdet', '1e3'], "unknown parameter 'bugdet', did you mean 'budget'?"),
                                            (['-p', 'budget', '0.5'], 'budget must be a whole number')])
def test_papermill_fails_at_once_on_a_mistake(tmp_path, words, message):
    said = papermill(tmp_path / 'o.ipynb', *words)
    assert said.returncode != 0 and message in said.stderr
