"""A theft from a server that nobody here wrote: MLServer, with a model of scikit-learn.
`python tests/mlserver_trial.py PYTHON`, where PYTHON is that of an environment of its own with
`pip install mlserver mlserver-sklearn`."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import joblib
import torch
from test_serve import free_port

from meco_nb.attacks import Knockoff
from meco_nb.data import load_data
from meco_nb.models import build_model
from meco_nb.remote import RemoteOracle
from meco_nb.training import evaluate

VICTIM = '''
import sys, joblib
from sklearn.linear_model import LogisticRegression
rows, labels = joblib.load(sys.argv[1])
joblib.dump(LogisticRegression(max_iter=1000).fit(rows, labels), sys.argv[2])
'''


def model_settings():
    "What MLServer is told of the model: rows of 64 pixels, and probabilities."
    pixels = dict(name='pixels', datatype='FP32', shape=[-1, 64])
    answer = dict(name='predict_proba', datatype='FP64', shape=[-1, 10])
    runtime = 'mlserver_sklearn.SKLearnModel'
    own = dict(name='digits', implementation=runtime, inputs=[pixels], outputs=[answer])
    return own | dict(parameters=dict(uri='./model.joblib'))


def prepare(python, folder, data):
    "Train the victim in MLServer's environment, and write its settings."
    rows = data.train.tensors[0].flatten(1).numpy(), data.train.tensors[1].numpy()
    joblib.dump(rows, folder / 'rows')
    words = [python, '-c', VICTIM, folder / 'rows', folder / 'model.joblib']
    subprocess.run(words, check=True)
    (folder / 'model-settings.json').write_text(json.dumps(model_settings()))
    ports = dict(http_port=free_port(), grpc_port=free_port(), metrics_port=free_port())
    (folder / 'settings.json').write_text(json.dumps(ports | dict(parallel_workers=0)))
    return f"http://127.0.0.1:{ports['http_port']}"


def wait_for(url):
    "Until the server is ready."
    for _ in range(600):
        try:
            if httpx.get(f'{url}/v2/health/ready').status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(url)


def steal(url, data):
    "The oracle, and the accuracy of a clone."
    oracle = RemoteOracle(
        url, model='digits', output='predict_proba', shape=data.shape, budget=2_000
    )
    clone = build_model('lenet5', oracle, batch_norm=True, seed=1)
    attack = Knockoff(clone, source='shapes', batch_size=50, epochs=20)
    for _ in attack.run(oracle):
        pass
    return oracle, evaluate(attack.clone, data.test)['accuracy']


def main(python):
    torch.set_num_threads(1)
    data = load_data('digits')
    with tempfile.TemporaryDirectory() as folder:
        url = prepare(python, Path(folder), data)
        mlserver = str(Path(python).with_name('mlserver'))
        with open(Path(folder) / 'log', 'wb') as log:
            server = subprocess.Popen([mlserver, 'start', '.'], cwd=folder, stdout=log, stderr=log)
        try:
            wait_for(url)
            about = httpx.get(f'{url}/v2').json()
            print(f"{about['name']} {about['version']}, extensions {about['extensions']}")
            oracle, accuracy = steal(url, data)
            right = (oracle.client(data.test.tensors[0], 'x').argmax(1) == labels_of(data)).mean()
            print(f'its model: {right:.1%}; a clone from {oracle.used} shapes: {accuracy:.1%}')
        finally:
            server.terminate()
            server.wait()


def labels_of(data):
    return data.test.tensors[1].numpy()


if __name__ == '__main__':
    main(sys.argv[1])
