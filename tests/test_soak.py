"The long trials of soak.py, in short."

import contextlib

import pytest
import soak
import torch

from meco_nb import oracle


def test_no_schedule_gets_an_answer_too_many():
    total = soak.try_schedules(range(2000))
    assert total['threaded'] > 100 and not total['over'] and not total['broken']


def test_the_schedules_would_notice_a_missing_lock(monkeypatch):
    monkeypatch.setattr(oracle, '_LOCK', contextlib.nullcontext())
    assert soak.try_schedules(range(1000))['broken'] > 0


@pytest.mark.parametrize('kind', ['run', 'writes'])
def test_nothing_is_lost_by_a_kill(tmp_path, kind):
    assert soak.soak_kills(kind, 1, 0, tmp_path)


def test_a_file_that_is_not_whole_is_noticed(tmp_path):
    path = tmp_path / 'state'
    soak.save_state(path, dict(tensor=torch.ones(2), digest=soak.digest_of(torch.zeros(2))))
    assert not soak.is_whole(path)
