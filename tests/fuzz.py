"""Requests that nobody thought of, made by schemathesis from the service's own OpenAPI.
`python tests/fuzz.py` tries two thousand and prints what was answered."""

import tempfile
import warnings
from collections import Counter
from pathlib import Path

import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from meco_nb.data import load_data
from meco_nb.defenses import Undefended
from meco_nb.models import build_model
from meco_nb.redis_accounts import accounts_at
from meco_nb.serve import as_app
from meco_nb.service import Service
from meco_nb.users import User, hashed

KEYS = [{}, {'Authorization': 'Bearer boss'}, *[{'Authorization': 'Bearer key'}] * 6]
KEYS += [{'Authorization': word} for word in ('Bearer', 'Basic a2V5', 'Bearer \xfc')]
IMAGE = dict(name='images', shape=[1, 1, 8, 8], datatype='FP32', data=[0.5] * 64)


def near(case, random):
    "The same request, a little nearer to one that is answered."
    if 'name' in (case.path_parameters or {}) and random.random() < 0.8:
        case.path_parameters = dict(case.path_parameters, name='defended')
        case.path_parameters |= {'version': '1'} if 'version' in case.path_parameters else {}
        case.query = {} if random.random() < 0.5 else case.query
    body = case.body
    if isinstance(body, dict) and isinstance(body.get('inputs'), list) and random.random() < 0.8:
        right = {k: v for k, v in IMAGE.items() if random.random() < 0.9}
        first = body['inputs'][0] if body['inputs'] else {}
        tensor = (first if isinstance(first, dict) else {}) | right
        if random.random() < 0.8:
            tensor.pop('parameters', None)
        case.body = body | dict(inputs=[tensor], outputs=[])
    return case


def images_in(answer, seen):
    "How many images an answer is about; 0 where it is about none, or was paid for before."
    if answer.status_code != 200 or b'"model_version"' not in answer.content:
        return 0
    said = answer.json()
    ticket = answer.request.headers['Authorization'], answer.request.body
    if 'id' in said and ticket in seen:
        return 0
    seen.add(ticket)
    return said['outputs'][0]['shape'][0]


def fuzz(app, cases=200):
    "Ask `cases` times and more: statuses, 5xx answers, and images that were answered."
    schema = schemathesis.openapi.from_asgi('/openapi.json', app)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    found = {'cases': 0, 'statuses': Counter(), 'failures': [], 'images answered': 0, 'seen': set()}
    asked = [o for o in operations if o.path.endswith('infer')]
    for operation in operations:
        try_operation(operation, cases // 2 if operation in asked else cases // 10, found)
    return found


def try_operation(operation, times, found):
    "Ask one path `times` times."
    quiet = settings(
        max_examples=times,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(0)
    @quiet
    @given(operation.as_strategy(), st.sampled_from(KEYS), st.randoms(use_true_random=False))
    def one(case, key, random):
        answer = near(case, random).call(headers=key)
        found['cases'] += 1
        found['statuses'][answer.status_code] += 1
        found['images answered'] += images_in(answer, found['seen'])
        if answer.status_code >= 500:
            found['failures'].append((operation.label, str(case.body)[:200], answer.text[:200]))

    one()


def main():
    torch.set_num_threads(1)
    data, users = load_data('digits'), [User('thief', hashed('key'), 10**9, 'ever')]
    users += [User('boss', hashed('boss'), 10**9, 'ever', operator=True)]
    accounts = accounts_at(Path(tempfile.mkdtemp()) / 'accounts.db')
    service = Service(Undefended(build_model('lenet5', data)), users, accounts)
    found = fuzz(as_app(service), 2000)
    paid = sum(map(accounts.used, users))
    statuses = dict(sorted(found['statuses'].items()))
    print(f"{found['cases']} requests, answered {statuses}; 5xx: {found['failures']}")
    print(f"images answered: {found['images answered']}, images paid: {paid}")


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()
