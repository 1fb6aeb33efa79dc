"""The same seed gives the same clone as it always did.

A change that only rearranges code must not change the digests. They hold where floating-point
kernels round as on the machine that made them, which a computation in plain PyTorch tells."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from meco_nb.experiment import run
from meco_nb.training import one_thread

STORED = json.loads((Path(__file__).parent / 'same_numbers.json').read_text())


def fingerprint():
    "What this machine's kernels make of a small training without any of our code."
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(288, 10),
        )
        images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        digest = hashlib.sha256()
        for tensor in net.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


@pytest.fixture(scope='module')
def same_kernels():
    return fingerprint() == STORED['fingerprint'] and torch.__version__ == STORED['torch']


@pytest.mark.parametrize('name', STORED['runs'])
def test_a_clone_is_what_it_was(name, same_kernels):
    stored = STORED['runs'][name]
    record = run(**stored['settings'])
    assert record.ledger == stored['ledger'] and record.name == stored['name']
    if not same_kernels:
        pytest.skip('other floating-point kernels than those that made the digests')
    assert record.weights == stored['weights']
