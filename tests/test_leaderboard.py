"Every entry of the leaderboard says what its records say, and the page's table sorts."

import json
import re
from pathlib import Path

import pytest
from browser import needs_chromium, title_after

from meco_nb.claims import findings
from meco_nb.evidence import BENCHMARKS, DATA_FREE
from meco_nb.judged import VERDICTS
from meco_nb.leaderboard import check_entry, folder_of, leaderboard, read_entry, summary
from meco_nb.methods import DEFENSES

ROOT = Path(__file__).parent.parent
ENTRIES = sorted((ROOT / 'results' / 'leaderboard').rglob('*.json'))
ENTRIES = [path for path in ENTRIES if path.parent.parent.name == 'leaderboard']


@pytest.mark.parametrize('path', ENTRIES, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_an_entry_says_what_its_records_say(path):
    entry = check_entry(path)
    assert entry.name == path.stem and entry.dataset == path.parent.name
    assert set(entry.thieves) == set(BENCHMARKS[entry.dataset].thieves) and len(entry.seeds) >= 3
    assert entry.title and entry.about and entry.code and entry.command
    if entry.name in DEFENSES.own:
        assert entry.ours == DEFENSES[entry.name].card.ours


CHANGES = {
    'utility': lambda entry: entry['utility']['accuracy'].append(1.0),
    'seeds': lambda entry: entry['seeds'].append(99),
    'queries': lambda entry: entry['thieves']['DFME'].update(queries=1),
    'stolen': lambda entry: entry['thieves']['DFME']['stolen'].reverse(),
    'dataset': lambda entry: entry.update(dataset='fashion_mnist'),
    'defense': lambda entry: entry.update(name='another'),
    'patient': lambda entry: entry['patient']['Knockoff, 20,000']['stolen'].reverse(),
    'patient, another': lambda entry: entry['patient'].update(better=another_thief(entry)),
}


def another_thief(entry):
    "A theft of another defense, as if it were a patient one of this one."
    thefts = json.loads((ENTRIES[0].parent / 'undefended.json').read_text())['thieves']['DFME']
    return thefts | dict(queries=10**6)


@pytest.mark.parametrize('change', CHANGES)
def test_a_changed_entry_is_refused(change):
    entry = json.loads(ENTRIES[0].read_text())
    CHANGES[change](entry)
    wrong = ENTRIES[0].with_name(f'wrong-{change}.txt')
    wrong.write_text(json.dumps(entry))
    try:
        with pytest.raises(ValueError, match=f'wrong-{change}'):
            check_entry(wrong)
    finally:
        wrong.unlink()


def test_the_table_is_the_entries():
    board = leaderboard('digits')
    assert len(board) == len(list(folder_of('digits').glob('*.json')))
    for path in folder_of('digits').glob('*.json'):
        line, entry = summary(read_entry(path)), read_entry(path)
        most = max(sum(entry.thieves[t].stolen) / len(entry.seeds) for t in DATA_FREE)
        assert abs(line['clone, no data, %'] - 100 * most) < 0.051
        patient = [sum(t.stolen) / len(t.stolen) for t in entry.patient.values()]
        assert (line['clone, patient, %'] is None) == (not patient)
        assert not patient or abs(line['clone, patient, %'] - 100 * max(patient)) < 0.051


def test_every_claim_has_a_verdict():
    for sentence, (source, finding) in findings().items():
        assert finding.verdict in VERDICTS and source and finding.said, sentence
        assert finding.found, f'nothing was measured of {sentence!r}'


def test_a_claim_names_only_records_that_it_is_about():
    for sentence, (_, finding) in findings().items():
        about = 'Fashion-MNIST' in finding.found
        assert ('fashion_mnist' in finding.records) == about, sentence


CLICK = """<script>addEventListener('load', () => setTimeout(() => {
const table = document.querySelector('table.dataTable');
const heads = [...table.querySelectorAll('thead th')];
const column = heads.findIndex(th => th.innerText.trim().startsWith('accuracy'));
const read = () => [...table.querySelectorAll('tbody tr')].map(
  tr => parseFloat(tr.children[column].innerText));
heads[column].querySelector('.dt-column-order').click();
setTimeout(() => { document.title = 'SORTED ' + read().join(' '); }, 500);
}, 2500))</script></body>"""


@needs_chromium
def test_a_click_on_a_column_sorts_by_it(tmp_path):
    "The page's own outputs, in a browser without a network."
    cells = json.loads((ROOT / 'nbs' / '07e_leaderboard.ipynb').read_text())['cells']
    outputs = [o for c in cells for o in c.get('outputs', []) if 'text/html' in o.get('data', {})]
    html = ''.join(''.join(o['data']['text/html']) for o in outputs)
    page = tmp_path / 'page.html'
    page.write_text(f'<html><head><title>page</title></head><body>{html}{CLICK}</html>')
    found = re.fullmatch('SORTED (.*)', title_after(page))
    assert found, 'the table did not appear'
    accuracies = list(map(float, found[1].split()))
    assert len(accuracies) == len(leaderboard('digits')) and accuracies == sorted(accuracies)
