"The stored studies are what the pages show."

import json
import re
from pathlib import Path

import pytest

from meco_nb.ablations import ROWS
from meco_nb.claims import MIMIC_ROWS
from meco_nb.comparison import read_stored
from meco_nb.evidence import BENCHMARKS, long_rows, rows_of
from meco_nb.found import in_short, with_findings
from meco_nb.frontier import ROWS as FRONTIER
from meco_nb.ours import ROWS as OURS
from meco_nb.readings import BASES, STUDIED
from meco_nb.records import read_record
from meco_nb.studies import read_study
from meco_nb.two_networks import ROWS as GATED
from meco_nb.utility import is_stale, read_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / 'results'
STORED = sorted(path for path in RESULTS.glob('*-*') if path.is_dir())
HELD_BACK = dict(frontier=FRONTIER, mimic=MIMIC_ROWS, ours=OURS, gates=GATED)


def stored(folder):
    "The records that a page reads from a folder."
    study, preset = folder.name.split('-', 1)
    if study == 'ablations':
        budget = dict(digits=100_000, fashion_mnist16=250_000)[preset]
        records = read_study(ROWS, folder, preset=preset, budget=budget)
    elif study == 'evidence':
        benchmark = BENCHMARKS[preset]
        records = read_study(rows_of(benchmark), folder, **benchmark.base)
    elif study == 'long':
        records = read_study(long_rows(preset), folder, **BENCHMARKS[preset].unscaled)
    elif study in BASES:
        records = read_study(STUDIED[study], folder, **BASES[study])
    elif study in HELD_BACK:
        records = read_study(HELD_BACK[study], folder, preset=preset, held_back=0.02)
    else:
        records = read_stored(study, preset, RESULTS)
    return [record for rs in records.values() for record in rs]


@pytest.mark.parametrize('folder', STORED, ids=lambda path: path.name)
def test_every_record_is_read_and_adds_up(folder):
    records = stored(folder)
    assert {record.name for record in records} == {path.stem for path in folder.glob('*.json')}
    for record in records:
        asked, budget = sum(record.ledger.values()), record.settings['budget']
        assert asked <= budget and record.made_by['commit']
        if record.settings.get('held_back') and not record.chosen:
            assert asked < budget  # access ended before there was a choice


@pytest.mark.parametrize('preset', ['digits', 'fashion_mnist16'])
def test_no_utility_row_was_measured_with_other_settings(preset):
    "A defense that is not measured yet is no mistake; one that changed since is."
    rows = read_table(RESULTS / f'utility-{preset}.json')['rows']
    assert 'undefended' in rows and not [
        name for name in rows if is_stale(rows[name], name, preset)
    ]


def test_a_record_holds_no_path_of_the_machine_that_made_it():
    for path in RESULTS.glob('*-*/*.json'):
        read_record(path)
        assert not re.search(r'"/\w+/', path.read_text()), path  # an absolute path


def test_readme_and_index_say_what_the_records_say():
    readme = (ROOT / 'README.md').read_text()
    assert readme == with_findings(readme) and in_short() in readme
    cells = json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells']
    shown = [
        ''.join(o.get('data', {}).get('text/markdown', ''))
        for c in cells
        for o in c.get('outputs', [])
    ]
    assert in_short('') in shown, 'run make refresh NOTEBOOKS=index'
