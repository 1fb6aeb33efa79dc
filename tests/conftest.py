"What the tests share."

import os
import signal

os.environ['MECO_PROGRESS'] = '0'  # also for the processes that tests start
os.environ['OMP_NUM_THREADS'] = '1'  # two processes with two threads each wait for one another

import pytest
import torch

from meco_nb.data import load_data
from meco_nb.models import build_model
from meco_nb.training import fit

torch.set_num_threads(1)
# A shell that runs tests in the background has Ctrl-C ignored by all they start; some wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def digits():
    return load_data('digits')


@pytest.fixture(scope='session')
def victim(digits):
    return fit(build_model('lenet5', digits, seed=0), digits, epochs=3)


LONGEST = ('experiment', 'notebooks', 'cluster', 'trained_defenses', 'soak', 'attacks', 'serve')


def pytest_collection_modifyitems(items):
    "Files that take minutes begin first: else one process ends alone with them."
    names = [f'test_{name}' for name in LONGEST]
    items.sort(key=lambda item: names.index(n) if (n := item.path.stem) in names else len(names))
