"The notebooks are the source, and run headless."

import filecmp
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from meco_nb.experiment import run
from meco_nb.methods import ATTACKS

ROOT = Path(__file__).parent.parent
NBS = ROOT / 'nbs'
NOTEBOOKS = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
BIN = Path(sys.executable).parent
PATHS = {**os.environ, 'PATH': f"{BIN}:{os.environ['PATH']}"}


def name_of(path):
    return str(path.relative_to(NBS).with_suffix(''))


def cells(path):
    return json.loads(path.read_text())['cells']


def code_of(path):
    return [''.join(cell['source']) for cell in cells(path) if cell['cell_type'] == 'code']


def exported(path):
    return [code for code in code_of(path) if re.search(r'^#\| exports?$', code, re.M)]


def papermill(out, *words, notebook='nbs/05_attacks.ipynb', cwd=ROOT):
    command = [BIN / 'papermill', ROOT / notebook, out, '--no-progress-bar', *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=PATHS)


def parameters(**given):
    return ['-y', yaml.safe_dump(given)]


def differences(comparison):
    yield from comparison.left_only + comparison.right_only + comparison.diff_files
    for sub in comparison.subdirs.values():
        yield from differences(sub)


def test_the_package_is_what_the_notebooks_export(tmp_path):
    for name in ('settings.ini', 'nbs', 'README.md', '_quarto.yml'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in ('.', 'attacks', 'defenses'):  # written by hand: they hand names on
        (tmp_path / 'meco_nb' / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / 'meco_nb' / name / '__init__.py', tmp_path / 'meco_nb' / name)
    subprocess.run([BIN / 'nbdev_export'], cwd=tmp_path, check=True, capture_output=True)
    folders = ROOT / 'meco_nb', tmp_path / 'meco_nb'
    assert not list(differences(filecmp.dircmp(*folders, ignore=['__pycache__'])))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_chapter_opens_with_title_and_subtitle_and_shows_its_outputs(path):
    assert re.match(r'# .+\n\n> .+', ''.join(cells(path)[0]['source']))
    code = [cell for cell in cells(path) if cell['cell_type'] == 'code']
    assert not any('eval: false' in ''.join(cell['source']) for cell in code)
    assert not any(output['output_type'] == 'error' for cell in code for output in cell['outputs'])
    assert any(cell['outputs'] for cell in code)
    shown = re.sub(r'"image/png": "[^"]*"', '', json.dumps([cell['outputs'] for cell in code]))
    machine = r'''site-packages|ipykernel_|(?<![\w.:/)\]}-])/\w+/\w'''
    assert not re.search(machine, shown)  # no path of any machine


def test_a_method_s_page_has_the_path_of_its_module():
    for path in NOTEBOOKS:
        found = re.search(r'^#\| default_exp (\S+)$', '\n'.join(code_of(path)), re.M)
        if path.parent != NBS:
            assert found and found[1] == name_of(path).replace('/', '.')
        assert found is None or (ROOT / 'meco_nb' / f"{found[1].replace('.', '/')}.py").exists()
        assert re.fullmatch(r'index|\d\d[a-z]?_\w+|attacks/\w+|defenses/\w+', name_of(path))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_lines_are_read_once(path):
    for code in code_of(path):
        lines = code.splitlines()
        long = [line for line in lines if len(line) > 100 and not line.startswith('#| fig-alt')]
        assert not long, long
        options = [i for i, line in enumerate(lines) if line.startswith('#|')]
        assert options == list(range(len(options))), f'an option after code is ignored: {code[:80]}'


def test_half_of_the_exported_cells_are_eight_lines_or_less():
    lengths = [
        sum(not line.startswith('#|') for line in code.splitlines())
        for path in NOTEBOOKS
        for code in exported(path)
    ]
    assert statistics.median(lengths) <= 8


def test_imports_are_folded():
    for path in NOTEBOOKS:
        for code in code_of(path):
            plain = re.sub(r'^#\|.*\n', '', code, flags=re.M)
            if re.match(r'(from|import) ', plain):
                assert '#| code-fold: true' in code, (name_of(path), code[:80])


def test_a_chapter_is_named_by_its_name():
    for path in NOTEBOOKS:
        for cell in cells(path):
            if cell['cell_type'] == 'markdown':
                bare = re.search(r'[Cc]hapters? \d', ''.join(cell['source']))
                assert not bare, (name_of(path), bare and bare[0])


@pytest.mark.parametrize('notebook', ['05_attacks', '06_ablations', '07a_side_by_side'])
def test_the_parameters_cell_is_tagged(notebook):
    found = [c for c in cells(NBS / f'{notebook}.ipynb') if c['metadata'].get('tags')]
    assert len(found) == 1 and found[0]['metadata']['tags'] == ['parameters']
    assert 'preset = ' in ''.join(found[0]['source'])


def test_papermill_runs_the_experiment_from_the_notebook_s_folder(tmp_path):
    once = dict(epochs=1)
    given = parameters(victim_settings=once, defense_settings=once, out=str(tmp_path / 'out'))
    said = papermill(
        tmp_path / 'o.ipynb', '-p', 'budget', '1e3', '-p', 'preset', 'digits', *given, cwd=NBS
    )
    assert said.returncode == 0, said.stderr[-2000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / 'out').glob('*.json')]
    assert len(records) == 4
    assert all(sum(r['ledger'].values()) == 1000 == r['settings']['budget'] for r in records)
    left = [*(tmp_path / 'out').glob('.*'), *(tmp_path / 'out').glob('*.checkpoint')]
    assert not left


def of_attack(attack):
    "Settings of the notebook: the least that an attack can be run with."
    card = ATTACKS[attack].card
    given = dict(attack=attack, labels=card.labels[-1], attack_settings=card.small, budget=300)
    return given | dict(preset='digits', defense='undefended', victim_settings=dict(epochs=1))


@pytest.mark.parametrize('attack', ['disguide', 'jbda'])
def test_papermill_runs_attacks_of_every_kind(tmp_path, attack):
    "Several clones; real images and hard labels."
    said = papermill(tmp_path / 'o.ipynb', *parameters(**of_attack(attack)))
    assert said.returncode == 0, said.stderr[-2000:]


@pytest.mark.parametrize('attack', ATTACKS)
def test_the_call_that_the_notebook_makes_runs_every_attack(attack):
    assert sum(run(**of_attack(attack)).ledger.values()) == 300


@pytest.mark.parametrize(
    'words, message',
    [
        (['-p', 'defense', 'mecco'], "unknown defense 'mecco', did you mean 'meco'?"),
        (['-p', 'bugdet', '1e3'], "unknown parameter 'bugdet', did you mean 'budget'?"),
        (['-p', 'budget', '0.5'], 'budget must be a valid integer, got 0.5'),
    ],
)
def test_papermill_fails_at_once_on_a_mistake(tmp_path, words, message):
    said = papermill(tmp_path / 'o.ipynb', *words)
    assert said.returncode != 0 and message in said.stderr
