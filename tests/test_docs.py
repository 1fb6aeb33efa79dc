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
from browser import needs_chromium, title_after
from markdown_katex import wrapper
from markdown_katex.wrapper import KatexError, tex2html

from meco_nb.methods import ATTACKS, DEFENSES

ROOT = Path(__file__).parent.parent
NBS = ROOT / 'nbs'
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(path for path in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
HARMLESS = (
    'output-file is not read',
    'is not built: smalldocs',
    'smalldocs runs no code',
    'thing(s) to look at',
    'page(s);',
    'a citation; smalldocs has no bibliography',
    'bibliography is ignored',
    'link-citations is ignored',
    'grid is ignored',
)


def name_of(path):
    return str(path.relative_to(NBS).with_suffix(''))


def cells_of(path):
    return json.loads(path.read_text())['cells']


def words_of(path):
    return [''.join(c['source']) for c in cells_of(path) if c['cell_type'] == 'markdown']


def shows_figure(cell):
    return any('image/png' in output.get('data', {}) for output in cell.get('outputs', []))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The processed notebooks, and their pages in `_docs`."
    folder = tmp_path_factory.mktemp('site')
    for name in ('settings.ini', 'nbs', '_quarto.yml', 'README.md', 'meco_nb'):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    code = 'from nbdev.serve import proc_nbs; proc_nbs(force=True, n_workers=2)'
    command = [sys.executable, '-W', 'ignore', '-c', code]
    environment = {**os.environ, 'MPLBACKEND': 'agg'}
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr[-3000:]
    made = {
        name_of(NBS / path.relative_to(folder / '_proc'))
        for path in (folder / '_proc').rglob('*.ipynb')
    }
    missing = set(map(name_of, NOTEBOOKS)) - made
    assert not missing, f'not processed: {missing}:\n{said.stdout[-3000:]}{said.stderr[-3000:]}'
    command = [BIN / 'smalldocs', 'render', '.']
    subprocess.run(command, cwd=folder / '_proc', check=True, capture_output=True)
    return folder / '_proc'


def page_of(site, path):
    return site / '_docs' / f'{name_of(path)}.html'


def test_no_link_is_broken_and_nothing_is_ignored(site):
    command = [BIN / 'smalldocs', 'check', '.']
    said = subprocess.run(command, cwd=site, capture_output=True, text=True)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if line.strip()]
    found = [line for line in lines if not any(word in line for word in HARMLESS)]
    assert not found, '\n'.join(found)


def test_every_page_is_in_the_sidebar_once(site):
    page = page_of(site, NBS / 'index.ipynb').read_text()
    sidebar = page[
        page.index('id="quarto-sidebar"') : page.index('</nav>', page.index('id="quarto-sidebar"'))
    ]
    listed = re.findall(r'href="\.?/?([\w/]+)\.html"', sidebar)
    assert sorted(set(listed)) == sorted(map(name_of, NOTEBOOKS)), set(listed) ^ set(
        map(name_of, NOTEBOOKS)
    )
    assert len(listed) == len(set(listed)) and listed[0] == 'index'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_page_has_a_title_its_words_and_its_figures(site, path):
    page = page_of(site, path).read_text()
    title = ''.join(cells_of(path)[0]['source']).splitlines()[0].removeprefix('# ')
    assert re.search(r'<title>[^<]*' + re.escape(title), page)
    outputs = [output for cell in cells_of(path) for output in cell.get('outputs', [])]
    assert page.count('<img') >= sum('image/png' in output.get('data', {}) for output in outputs)


def test_every_figure_has_alternative_text(site):
    for path in NOTEBOOKS:
        page = page_of(site, path).read_text()
        for cell in filter(shows_figure, cells_of(path)):
            code = ''.join(cell['source'])
            text = re.search(r'^#\| fig-alt: "(.{20,})"$', code, re.M)
            assert text, (
                f'{path.name} draws without a word for those who cannot see it: {code[:200]}'
            )
            assert html.escape(text[1], quote=True) in page or text[1] in page, path.name


def test_pages_hold_no_dead_widgets():
    for path in NOTEBOOKS:
        text = path.read_text()
        assert 'widget-view' not in text and 'interactive(children' not in text, path.name


# Every page in a frame of one page: each tells how many of its blocks are wider than they show.
MEASURE = '''<script>addEventListener('load', () => {
  const wide = [...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth + 1);
  parent.postMessage([document.title, wide.map(e => e.innerText.slice(0, 60))], '*');
})</script></body>'''

COLLECT = '''<title>nothing</title><script>
const wide = {};
addEventListener('message', e => {
  wide[e.data[0]] = e.data[1];
  document.title = JSON.stringify(wide);
});
</script>'''


@needs_chromium
def test_no_code_scrolls_sideways(site):
    "In a browser: every block of code and of output is as wide as what is in it."
    frames = site / '_docs' / 'frames.html'
    page = COLLECT
    for number, path in enumerate(NOTEBOOKS):
        text = page_of(site, path).read_text().replace('</body>', MEASURE)
        text = re.sub('<title>.*?</title>', f'<title>{name_of(path)}</title>', text, flags=re.S)
        measured = page_of(site, path).with_name(f'measured-{number}.html')
        measured.write_text(text)
        where = measured.relative_to(frames.parent)
        page += f'<iframe src="{where}" width="1600" height="1000"></iframe>'
    frames.write_text(page)
    wide = json.loads(title_after(frames))
    assert sorted(wide) == sorted(map(name_of, NOTEBOOKS)), 'a page was not measured'
    assert not {name: blocks for name, blocks in wide.items() if blocks}


def test_every_citation_is_in_the_bibliography_and_every_work_in_the_list():
    "Citations, cards, references.bib and the readable list of the index are one thing."
    bib = (NBS / 'references.bib').read_text()
    keys, titles = (
        set(re.findall(r'@\w+\{(\w+),', bib)),
        re.findall(r', title = \{(.+?)\},$', bib, re.M),
    )
    text = {name_of(path): '\n'.join(words_of(path)) for path in NOTEBOOKS}
    cited = {key for words in text.values() for key in re.findall(r'\[-?@(\w+)', words)}
    cards = {
        key
        for registry in (ATTACKS, DEFENSES)
        for cls in registry.own.values()
        for key in cls.card.cite
    }
    assert cited | cards == keys, ((cited | cards) - keys, keys - (cited | cards))
    assert len(titles) == len(keys)
    for title in titles:
        assert title in text['index'], title


def formulas(path):
    "Every formula of a notebook's text, without those in code."
    for words in words_of(path):
        text = re.sub(r'```.*?```|`[^`]*`', '', words, flags=re.S)
        for display, inline in re.findall(r'\$\$(.+?)\$\$|\$([^$\n]+?)\$', text, re.S):
            yield display or inline


@pytest.fixture(autouse=True)
def own_katex(monkeypatch):
    "The KaTeX that comes with markdown-katex: before every formula it would ask npx for another."
    monkeypatch.setattr(wrapper, '_get_usr_parts', lambda: None)


def parses(formulas):
    "Whether formulas parse, one after the other in one call: each call starts a process."
    joined = r'\quad '.join(f'{{{formula}}}' for formula in formulas)
    try:
        tex2html(joined, {'display-mode': True})
    except KatexError:
        return False
    return True


def test_every_formula_parses():
    "Fifty in a call, for KaTeX expands a thousand macros at most; one in a call to say which."
    found = [(path.name, formula) for path in NOTEBOOKS for formula in formulas(path)]
    assert len(found) > 100
    for at in range(0, len(found), 50):
        part = [
            (name, re.sub(r'\\tag\{[^}]*\}', '', formula)) for name, formula in found[at : at + 50]
        ]
        if not parses(formula for _, formula in part):  # without tags: a formula has one at most
            wrong = [(name, formula) for name, formula in part if not parses([formula])]
            assert not wrong, wrong


def test_a_broken_formula_is_found():
    assert parses(['a', r'\frac{a}{b}']) and not parses(['a', r'\frac{a}{'])
