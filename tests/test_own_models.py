"The README's own-model example, with five models of different make."

import json
import math
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import timm
import torch
import torchvision
from torch import nn

import meco_nb
from meco_nb.answers import AsLogits
from meco_nb.data import make_data
from meco_nb.defenses import MeCoPlain, RandP, Undefended
from meco_nb.experiment import run
from meco_nb.oracle import Patient, Unanswered
from meco_nb.training import evaluate, fit


@pytest.fixture(scope='module')
def data(digits):
    "Digits as somebody else may have them: in colour, 32 pixels a side, fewer of them."

    def colour(part, count):
        images, labels = part[:count]
        images = nn.functional.interpolate(images, 32).expand(-1, 3, -1, -1)
        return torch.utils.data.TensorDataset(images, labels)

    return make_data('my digits', colour(digits.train, 500), colour(digits.test, 100))


def of_torchvision():
    return torchvision.models.mobilenet_v3_small(num_classes=10, width_mult=0.5)


def of_timm():
    return timm.create_model('resnet10t', num_classes=10)


def convolutional():
    layers = [nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10)]
    return nn.Sequential(*layers)


class Softmaxed(nn.Module):
    "A network that ends in a softmax."

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images).softmax(-1)


@pytest.fixture(scope='module')
def network(data):
    torch.manual_seed(0)
    return fit(convolutional(), data, epochs=15, lr=5e-3)


@pytest.fixture
def server(network):
    "A model behind HTTP that is busy every fifth time, and answers with three decimals."
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            requests.append(len(body))
            busy = len(requests) % 5 == 0
            self.send_response(429 if busy else 200)
            self.end_headers()
            with torch.no_grad():
                answers = network(torch.tensor(body)).softmax(-1).numpy().round(3).tolist()
            self.wfile.write(b'' if busy else json.dumps(answers).encode())

        def log_message(self, *_):
            pass

    service = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{service.server_port}'
    service.shutdown()
    service.server_close()


def client(address):
    "What an engineer writes to ask a server."

    def ask(images):
        body = json.dumps(images.tolist()).encode()
        try:
            with urllib.request.urlopen(address, body) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise Unanswered(str(error), after=0) from error

    return ask


FEW = dict(quick=True, budget=200, rows=['Knockoff, shapes'], clone='lenet5')


@pytest.mark.parametrize('make', [of_torchvision, of_timm])
def test_a_network_of_a_library_is_trained_defended_saved_and_graded(make, data, tmp_path):
    torch.manual_seed(0)
    victim = fit(make(), data, epochs=1, lr=3e-3)
    defense = MeCoPlain(victim, channels=3, width=8, strength=0.1).fit(data, epochs=1)
    grade = meco_nb.grade(defense, data, **FEW)
    assert not grade.failed and sum(grade['Knockoff, shapes'].ledger.values()) == 200
    path = meco_nb.save(tmp_path / 'mine', defense)
    there = meco_nb.load(path, victim=make())
    for one in (defense, there):
        one.randomness = type(one.randomness)(0)
    images = data.test.tensors[0][:16]
    with torch.no_grad():
        assert torch.equal(there(images), defense.eval()(images))


def test_a_network_that_ends_in_a_softmax(network, data):
    with pytest.raises(ValueError, match='AsLogits'):
        meco_nb.grade(RandP(Softmaxed(network)), data, **FEW)
    defense = RandP(AsLogits(Softmaxed(network), (3, 32, 32)), seeding=0)
    price = evaluate(defense, data.test, Undefended(network))
    assert price['agreement'] == 1 and price['l1'] > 0.7
    assert not meco_nb.grade(defense, data, **FEW).failed


def test_a_network_in_bfloat16(network, data):
    half = convolutional()
    half.load_state_dict(network.state_dict())
    defense = RandP(half.bfloat16(), seeding=0)
    assert evaluate(defense, data.test, Undefended(network))['agreement'] > 0.95
    trained = MeCoPlain(half, channels=3, width=8).fit(data, epochs=1)
    assert evaluate(trained, data.test)['accuracy'] > 0.3
    assert not meco_nb.grade(defense, data, **FEW).failed


def test_a_server_that_is_asked_over_http(server, network, data):
    plain = meco_nb.grade(client(server), data, **FEW)
    assert 'Unanswered' in plain.failed['Knockoff, shapes']
    grade = meco_nb.grade(Patient(client(server), retries=5), data, **FEW)
    assert not grade.failed and grade.evaluation.ledger['the test set'] == len(data.test)
    accuracy = evaluate(network, data.test)['accuracy']
    assert abs(grade.evaluation.price()['accuracy'] - accuracy) < 0.03


def with_softmax(shape, num_classes):
    "A function that a stranger could write: it ends in a softmax."
    layers = nn.Linear(math.prod(shape), num_classes), nn.Softmax(-1)
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize('role', ['victim', 'clone'])
def test_a_network_by_path_that_ends_in_a_softmax_is_told_before_anything_is_trained(role):
    with pytest.raises(ValueError, match='builds no classifier.*gives probabilities'):
        run(preset='digits', defense='undefended', budget=50, **{role: f'{__name__}:with_softmax'})
