"The pages of the site, built offline with smalldocs from what nbdev hands to Quarto."
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_katex.wrapper import KatexError, tex2html

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('*.ipynb'))
HARMLESS = ('output-file is not read', 'is not built: smalldocs', 'smalldocs runs no code', 'thing(s) to look at', 'page(s);',
            'a citation; smalldocs has no bibliography', 'bibliography is ignored', 'link-citations is ignored')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The processed notebooks, and their pages in `_docs`."
    folder = tmp_path_factory.mktemp('site')
    for name in ('settings.ini', 'nbs', '_quarto.yml', 'README.md', 'meco_nb'):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    code = 'from nbdev.serve import proc_nbs; proc_nbs(force=True, n_workers=2)'
    said = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, 'MPLBACKEND': 'agg'})
    assert said.returncode == 0, said.stderr[-3000:]
    missing = {path.name for path in NOTEBOOKS} - {path.name for path in (folder / '_proc').glob('*.ipynb')}
    assert not missing, f'nbdev could not process {missing}:\n{said.stdout[-3000:]}{said.stderr[-3000:]}'
    subprocess.run([BIN / 'smalldocs', 'render', '.'], cwd=folder / '_proc', check=True, capture_output=True)
    return folder / '_proc'


def test_no_link_is_broken_and_nothing_is_ignored(site):
    said = subprocess.run([BIN / 'smalldocs', 'check', '.'], cwd=site, capture_output=True, text=True)
    found = [line for line in (said.stdout + said.stderr).splitlines() if line.strip() and not any(word in line for word in HARMLESS)]
    assert not found, '\n'.join(found)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_has_a_title_its_words_and_its_figures(site, path):
    page = (site / '_docs' / f'{path.stem}.html').read_text()
    cells = json.loads(path.read_text())['cells']
    title = ''.join(cells[0]['source']).splitlines()[0].removeprefix('# ')
    assert re.search(r'<title>[^<]*' + re.escape(title), page)
    figures = sum('image/png' in output.get('data', {}) for cell in cells for output in cell.get('outputs', []))
    assert page.count('<img') >= figures


def shows_figure(cell): return any('image/png' in output.get('data', {}) for output in cell.get('outputs', []))


def test_every_figure_has_alternative_text(site):
    for path in NOTEBOOKS:
        page = (site / '_docs' / f'{path.stem}.html').read_text()
        for cell in json.loads(path.read_text())['cells']:
            if not shows_figure(cell): continue
            text = re.search(r'^#\| fig-alt: "(.{20,})"$', ''.join(cell['source']), re.M)
            assert text, f"{path.name} draws without a word for those who cannot see it: {''.join(cell['source'])[:200]}"
            assert html.escape(text[1], quote=True) in page or text[1] in page, path.name


def test_pages_hold_no_dead_widgets():
    for path in NOTEBOOKS:
        assert 'widget-view' not in path.read_text() and 'interactive(children' not in path.read_text(), path.name


def test_every_citation_is_in_the_bibliography_and_every_work_in_the_list():
    "Citations, references.bib and the readable list of the index are one thing."
    bib = (ROOT / 'nbs' / 'references.bib').read_text()
    keys, titles = set(re.findall(r'@\w+\{(\w+),', bib)), re.findall(r', title = \{(.+?)\},$', bib, re.M)
    text = {path.stem: '\n'.join(''.join(cell['source']) for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'markdown')
            for path in NOTEBOOKS}
    cited = {key for words in text.values() for key in re.findall(r'\[-?@(\w+)', words)}
    assert cited == keys, (cited - keys, keys - cited)
    assert len(titles) == len(keys)
    for title in titles: assert title in text['index'], title


def formulas(path):
    "Every formula of a notebook's text, without those in code."
    for cell in json.loads(path.read_text())['cells']:
        if cell['cell_type'] != 'markdown': continue
        text = re.sub(r'```.*?```|`[^`]*`', '', ''.join(cell['source']), flags=re.S)
        for display, inline in re.findall(r'\$\$(.+?)\$\$|\$([^$\n]+?)\$', text, re.S): yield display or inline


def test_every_formula_parses():
    "All at once, for each call starts a process; one by one only to say which it was."
    found = [(path.name, formula) for path in NOTEBOOKS for formula in formulas(path)]
    assert len(found) > 100
    untagged = [re.sub(r'\\tag\{[^}]*\}', '', formula) for _, formula in found]  # KaTeX takes one number an equation
    try: tex2html(r'\quad '.join(f'{{{formula}}}' for formula in untagged), {'display-mode': True})
    except KatexError:
        for name, formula in found:
            try: tex2html(formula, {'display-mode': True})
            except KatexError as error: pytest.fail(f'{name}: {formula}\n{error}')


def test_a_broken_formula_is_found():
    with pytest.raises(KatexError): tex2html(r'\frac{a}{', {'display-mode': True})
