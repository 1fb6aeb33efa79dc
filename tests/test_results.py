"The stored studies are what the pages show."
import json
import re
from pathlib import Path

import pytest

from meco_nb.comparison import read_study
from meco_nb.experiment import Record
from meco_nb.utility import missing, read

RESULTS = Path(__file__).parent.parent / 'results'
STORED = sorted(path for study in ('attacks', 'defenses') for path in RESULTS.glob(f'{study}-*') if path.is_dir())


@pytest.mark.parametrize('folder', STORED, ids=lambda path: path.name)
def test_every_record_is_read_and_adds_up(folder):
    study, preset = folder.name.split('-', 1)
    read = [record for records in read_study(study, folder, preset=preset).values() for record in records]
    assert {record.name for record in read} == {path.stem for path in folder.glob('*.json')} and read
    for record in read:
        assert sum(record.ledger.values()) <= record.settings['budget'] and record.made_by['commit']
        assert record.chosen or sum(record.ledger.values()) < record.settings['budget']  # access ended before there was a choice


@pytest.mark.parametrize('preset', ['digits', 'fashion_mnist16'])
def test_every_utility_row_has_the_settings_of_today(preset):
    assert missing(read(RESULTS / f'utility-{preset}.json'), preset) == []


@pytest.mark.parametrize('path', sorted(RESULTS.glob('*-*/*.json')), ids=lambda path: path.stem)
def test_a_record_holds_no_path_of_the_machine_that_made_it(path):
    text = path.read_text()
    Record(**json.loads(text))
    assert not re.search(r'"/\w+/', text)  # an absolute path
