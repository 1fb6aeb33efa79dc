"A defended model over HTTP: asked by our client, by Triton's, by nobody we know, and killed."

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import meco_nb
from meco_nb.defenses import MeCo, ModelGuardS, RandP, Undefended
from meco_nb.oracle import answers_to
from meco_nb.protocol import HEADER, INPUT, read_answer, write_tensor
from meco_nb.redis_accounts import accounts_at
from meco_nb.remote import RemoteOracle
from meco_nb.serve import as_app, main, running
from meco_nb.service import Service, noise_key
from meco_nb.users import User, add_user, hashed

KEY, OPERATOR = 'the key of anna', 'the key of olga'
USERS = [
    User('anna', hashed(KEY), 1000, 'day'),
    User('olga', hashed(OPERATOR), 0, operator=True),
]
INFER = '/v2/models/defended/infer'


@pytest.fixture
def service(victim, tmp_path):
    return Service(Undefended(victim), USERS, accounts_at(tmp_path / 'accounts.db'))


@pytest.fixture
def http(service):
    with TestClient(as_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def images(digits):
    return digits.test.tensors[0]


def ask(http, images, key=KEY, binary=False, path=INFER, **more):
    body, headers = write_tensor('inputs', INPUT, np.asarray(images), binary, **more)
    return http.post(path, content=body, headers=headers | {'Authorization': f'Bearer {key}'})


def spent(service):
    return service.accounts.used(USERS[0])


@pytest.mark.parametrize('binary', [False, True])
def test_an_answer_is_the_model_s(http, service, images, binary):
    said = ask(http, images[:64], binary=binary, id='7')
    answers = read_answer(said.content, said.headers.get(HEADER))
    assert np.allclose(answers, answers_to(service.defense, images[:64]), atol=1e-6)
    assert spent(service) == 64 and b'"id":"7"' in said.content


def test_the_same_request_is_paid_once_and_answered_the_same(victim, images, tmp_path):
    noisy = Service(RandP(victim), USERS, accounts_at(tmp_path / 'accounts.db'))
    with TestClient(as_app(noisy)) as http:
        one, two = ask(http, images[:8], id='1'), ask(http, images[:8], id='1')
        assert one.content == two.content and spent(noisy) == 8
        assert ask(http, images[:8]).json()['outputs'] != one.json()['outputs']
        ask(http, images[8:16], id='1')  # the same id for something else is something else
        assert spent(noisy) == 24


@pytest.mark.parametrize(
    'status, change',
    [
        (401, dict(key='no key of anybody')),
        (404, dict(path='/v2/models/other/infer')),
        (404, dict(path='/v2/models/defended/versions/9/infer')),
        (405, dict(path='/v2/health/live')),
        (404, dict(path='/v3')),
        (400, dict(scale=2.0)),
        (400, dict(scale=float('nan'))),
        (400, dict(crop=7)),
        (413, dict(repeat=20)),
        (429, dict(repeat=16)),
    ],
)
def test_a_refusal_is_one_sentence_and_costs_nothing(http, service, images, status, change):
    sent = images[:64, :, : change.get('crop', 8)].repeat(change.get('repeat', 1), 1, 1, 1)
    given = {k: v for k, v in change.items() if k in ('key', 'path')}
    said = ask(http, sent * change.get('scale', 1.0), **given)
    assert said.status_code == status and isinstance(said.json()['error'], str)
    assert spent(service) == 0
    assert ('Retry-After' in said.headers) is False or status == 429


def test_over_budget_says_what_is_left_and_when_it_is_more(http, service, images):
    for count in (500, 480):
        assert ask(http, images[:1].repeat(count, 1, 1, 1)).status_code == 200
    said = ask(http, images[:21])
    assert said.status_code == 429 and said.json()['left'] == 20
    assert 0 < said.json()['more_in'] <= int(said.headers['Retry-After']) <= 86_400
    assert ask(http, images[:20]).status_code == 200 and spent(service) == 1000
    left = http.get('/v2/account', headers={'Authorization': f'Bearer {KEY}'}).json()
    assert (left['used'], left['left']) == (1000, 0)


def test_a_body_that_is_too_large_is_not_read(victim, tmp_path, images):
    small = Service(Undefended(victim), USERS, accounts_at(tmp_path / 'a.db'), max_bytes=1000)
    with TestClient(as_app(small)) as http:
        assert ask(http, images[:64]).status_code == 413
        headers = {'Authorization': f'Bearer {KEY}', 'Content-Encoding': 'gzip'}
        assert http.post(INFER, content=b'..', headers=headers).status_code == 415


def test_a_model_that_fails_costs_nothing_and_is_not_ready(http, service, images, monkeypatch):
    monkeypatch.setattr(service.defense, 'forward', lambda images: images.flatten(1) * torch.nan)
    said = ask(http, images[:4])
    assert said.status_code == 500 and 'nothing was charged' in said.json()['error']
    assert spent(service) == 0 and http.get('/v2/health/ready').status_code == 503
    assert http.get('/v2/health/live').status_code == 200


def test_a_store_that_is_gone_is_a_503(http, service, images):
    service.accounts.db.close()
    said = ask(http, images[:4])
    assert said.status_code == 503 and said.headers['Retry-After'] == '1'


def test_metrics_are_for_operators_and_logs_have_no_secrets(http, service, images, caplog):
    caplog.set_level('INFO', 'meco_nb.serve')
    ask(http, images[:5])
    ask(http, images[:5], key='nobody has this')
    assert http.get('/metrics').status_code == 401
    assert http.get('/metrics', headers={'Authorization': f'Bearer {KEY}'}).status_code == 403
    page = http.get('/metrics', headers={'Authorization': f'Bearer {OPERATOR}'}).text
    assert 'meco_images_total{user="anna"} 5.0' in page
    assert 'meco_refusals_total{status="401",user=""} 1.0' in page
    facts = [record.facts for record in caplog.records if hasattr(record, 'facts')]
    assert [(f['user'], f['status'], f['images']) for f in facts] == [
        ('anna', 200, 5),
        ('', 401, 0),
    ]
    text = json.dumps(facts)
    assert KEY not in text and 'nobody has this' not in text and 'data' not in text


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / 'noise.key'
    assert noise_key(path, b'sixteen bytes ok') == noise_key(path, b'another key, not taken')
    path.chmod(0o644)
    with pytest.raises(ValueError, match='chmod 600'):
        noise_key(path, b'')


def test_triton_s_client_asks(service, images):
    triton = pytest.importorskip('tritonclient.http')
    with running(service) as url:
        client = triton.InferenceServerClient(url.removeprefix('http://'))
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready('defended') and client.is_model_ready('defended', '1')
        metadata = client.get_model_metadata('defended')
        assert metadata['inputs'][0]['shape'] == [-1, 1, 8, 8]
        for binary in (True, False):
            sent = triton.InferInput('images', [16, 1, 8, 8], 'FP32')
            sent.set_data_from_numpy(images[:16].numpy(), binary_data=binary)
            wanted = triton.InferRequestedOutput('probabilities', binary_data=binary)
            headers = {'Authorization': f'Bearer {KEY}'}
            said = client.infer('defended', [sent], outputs=[wanted], headers=headers)
            answers = said.as_numpy('probabilities')
            assert np.allclose(answers, answers_to(service.defense, images[:16]), atol=1e-6)
        said = client.infer('defended', [sent], headers=headers).as_numpy('probabilities')
        assert said.shape == (16, 10)
        with pytest.raises(triton.InferenceServerException, match='send the key'):
            client.infer('defended', [sent])
        client.close()
    assert spent(service) == 48


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(folder, port, *words):
    "`python -m meco_nb.serve` until it is ready; ended at the end."
    said = [sys.executable, '-m', 'meco_nb.serve', '--model', 'defended', '--users', 'users.toml']
    with open(folder / 'log', 'ab') as log:
        server = subprocess.Popen(
            [*said, '--port', str(port), *words], cwd=folder, stdout=log, stderr=log
        )
    latest = time.monotonic() + 300
    try:
        while True:
            assert server.poll() is None, (folder / 'log').read_text()
            assert time.monotonic() < latest, 'not ready after five minutes'
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f'http://127.0.0.1:{port}/v2/health/ready').status_code == 200:
                    break
            time.sleep(0.1)
        yield server
    finally:
        server.terminate()
        assert server.wait(timeout=60) in (0, -signal.SIGTERM)


def workers_of(server):
    "The process ids of a service's workers."
    said = subprocess.run(['ps', '-axwwo', 'pid=,ppid=,args='], capture_output=True, text=True)
    lines = [line.split(None, 2) for line in said.stdout.splitlines()]
    mine = [line for line in lines if line[1] == str(server.pid)]
    return [int(pid) for pid, _, words in mine if 'spawn_main' in words]


def test_two_workers_one_of_them_killed_and_a_restart(tmp_path, victim, images):
    "From the command line: what ModelGuard-S has answered, what was paid, what was counted."
    meco_nb.save(tmp_path / 'defended', ModelGuardS(victim, l1=2.0))
    key = add_user(tmp_path / 'users.toml', 'anna', 10_000, 'ever')
    operator = add_user(tmp_path / 'users.toml', 'olga', 0, operator=True)
    port, answers = free_port(), []
    url, metrics = f'http://127.0.0.1:{port}', {'Authorization': f'Bearer {operator}'}
    with process(tmp_path, port, '--workers', '2') as server:
        for i in range(6):
            oracle = RemoteOracle(url, key)  # a connection of its own
            answers.append(oracle(images[:16]))
            if i == 2:
                os.kill(workers_of(server)[0], signal.SIGKILL)
        page = httpx.get(f'{url}/metrics', headers=metrics).text
        counted = [line for line in page.splitlines() if line.startswith('meco_images_total')]
    with process(tmp_path, port):
        oracle = RemoteOracle(url, key)
        answers.append(oracle(images[:16]))
        assert oracle.account()['used'] == 7 * 16
    assert all(answer.equal(answers[0]) for answer in answers)
    assert counted == ['meco_images_total{user="anna"} 96.0']


def test_a_worker_has_time_to_begin(tmp_path, victim, monkeypatch):
    "Five seconds, which uvicorn gives it, pass while a busy machine imports PyTorch."
    meco_nb.save(tmp_path / 'defended', MeCo(victim, width=2))
    add_user(tmp_path / 'users.toml', 'anna', 10)
    late = "import sys, time\ntime.sleep(7 * any('spawn_main' in word for word in sys.orig_argv))\n"
    (tmp_path / 'sitecustomize.py').write_text(late)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=os.pathsep)
    with process(tmp_path, free_port(), '--workers', '2'):
        assert 'died' not in (tmp_path / 'log').read_text()


def test_a_mistake_at_the_start_is_one_sentence(tmp_path, victim, capsys):
    path = str(meco_nb.save(tmp_path / 'defended', MeCo(victim, width=2)))
    (tmp_path / 'users.toml').write_text('[anna]\nkey = "plain"\nbudget = 5\n')
    for words in (['--model', path, '--users', str(tmp_path / 'users.toml')],):
        with pytest.raises(SystemExit, match='mend it, or make its entries by'):
            main([*words, '--accounts', str(tmp_path / 'a.db')])
