"""A service under load, on this machine: how long an answer takes, how many there are in a second,
and a minute of 32 users while a worker is killed and the service is begun anew. It is run as
`python tests/load.py`, or in part as `python tests/load.py minute`, keeping results/serve.json."""

import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from test_serve import free_port, process, workers_of

import meco_nb
from meco_nb.data import load_data
from meco_nb.defenses import MeCo, Undefended
from meco_nb.files import load_json, save_json
from meco_nb.models import build_model
from meco_nb.oracle import AccessEnded, Patient, answers_to
from meco_nb.protocol import HEADER, INPUT, OUTPUT, read_answer, read_question, write_tensor
from meco_nb.records import project_path
from meco_nb.redis_accounts import accounts_at
from meco_nb.remote import Bought, Client, Journal
from meco_nb.training import fit
from meco_nb.users import User, add_user, hashed

BATCH, TIMES = 64, 400


def defenses():
    data = load_data('digits')
    victim = fit(build_model('lenet5', data, seed=0), data, epochs=3)
    return {'the bare victim': Undefended(victim), 'MeCo': MeCo(victim, width=8)}


def images(count=BATCH):
    return load_data('digits').test.tensors[0][:count]


def median_ms(*functions, times=TIMES):
    "The median milliseconds of functions that are called in turn."
    took = [[] for _ in functions]
    for _ in range(times):
        for function, seconds in zip(functions, took, strict=True):
            started = time.perf_counter()
            function()
            seconds.append(1000 * (time.perf_counter() - started))
    return [round(statistics.median(seconds), 3) for seconds in took]


def by_json(binary):
    "A function that does all the reading and writing of one question and its answer, and no more."
    batch, answers = images().numpy(), torch.full((BATCH, 10), 0.1234567).numpy()

    def there_and_back():
        body, headers = write_tensor('inputs', INPUT, batch, binary, id='7')
        read_question(body, headers.get(HEADER))
        body, headers = write_tensor('outputs', OUTPUT, answers, binary, id='7')
        read_answer(body, headers.get(HEADER))

    return there_and_back


def clients(url, key):
    "Three clients: JSON, bytes, and bytes with a ticket for each question."
    asked = [Client(url, 'defended', key) for _ in range(3)]
    for client, binary in zip(asked, (False, True, True), strict=True):
        client.facts()
        client.binary = binary
    return asked


def latency(folder, defense):
    "Median milliseconds for a batch, in process and served by one worker; one thread each."
    batch, numbers = images(), iter(range(10**9))
    accounts, anybody = accounts_at(folder / 'charges.db'), User('a', hashed('a'), 10**9, 'ever')
    with served(folder, defense, ['key']) as (url, (key,), _):
        plain, binary, ticket = clients(url, key)
        names = 'in process', 'JSON', 'bytes', 'bytes and ticket'
        names += 'of it JSON', 'of it bytes', 'of it the charge'
        took = median_ms(
            lambda: answers_to(defense, batch),
            lambda: plain(batch, None),
            lambda: binary(batch, None),
            lambda: ticket(batch, f'{next(numbers)}'),
            by_json(False),
            by_json(True),
            lambda: accounts.charge(anybody, BATCH),
        )
    return dict(zip(names, took, strict=True))


def processor(folder, defense, times=200):
    "Milliseconds of processor time for a batch, in process and of the worker that serves it."
    batch, found = images(), {}
    started = time.process_time()
    for _ in range(times):
        answers_to(defense, batch)
    found['in process'] = time.process_time() - started
    with served(folder, defense, ['key']) as (url, (key,), server):
        for name, client in zip(('JSON', 'bytes'), clients(url, key), strict=False):
            before = psutil.Process(server.pid).cpu_times()
            for _ in range(times):
                client(batch, None)
            after = psutil.Process(server.pid).cpu_times()
            found[name] = after.user + after.system - before.user - before.system
    return {name: round(1000 * seconds / times, 2) for name, seconds in found.items()}


@contextlib.contextmanager
def served(folder, defense, users, budget=10**9, workers=1):
    "A defense in a service of its own; yields its URL, the keys, and the process."
    folder = Path(tempfile.mkdtemp(dir=folder))
    meco_nb.save(folder / 'defended', defense)
    keys, port = (
        [add_user(folder / 'users.toml', user, budget, 'ever') for user in users],
        free_port(),
    )
    with process(folder, port, '--workers', str(workers)) as server:
        yield f'http://127.0.0.1:{port}', keys, server


def ask_for(seconds, ask):
    "How many batches are answered in some seconds, and the seconds of processor that it took here."
    batch, end, count = images(), time.monotonic() + seconds, 0
    torch.set_num_threads(1)
    started = time.process_time()
    while time.monotonic() < end:
        ask(batch)
        count += 1
    return count, time.process_time() - started


def ask_in_process(defense):
    return ask_for(10, lambda batch: answers_to(defense, batch))


def ask_served(place):
    client = Client(place[0], 'defended', place[1])
    client.facts()
    return ask_for(10, lambda batch: client(batch, None))


def throughput(folder, defense, times=3):
    "The median of some trials, and the lowest and the highest share."
    trials = [trial(folder, defense) for _ in range(times)]
    found = {name: statistics.median(one[name] for one in trials) for name in trials[0]}
    shares = sorted(one['share'] for one in trials)
    return found | {'lowest share': shares[0], 'highest share': shares[-1]}


def trial(folder, defense):
    """Images a second: in one process, and by two workers that four clients ask; and in a second
    of processor, of that process and of the workers alone, since the clients share the cores."""
    context = multiprocessing.get_context('spawn')
    with context.Pool(4) as pool:
        ((alone, own),) = pool.map(ask_in_process, [defense])
        with served(folder, defense, ['key'], workers=2) as (url, (key,), server):
            before = processor_of(workers_of(server))
            counts, theirs = zip(*pool.map(ask_served, [(url, key)] * 4, chunksize=1), strict=True)
            workers = processor_of(workers_of(server)) - before
    found = {'in process': alone * BATCH / 10, 'two workers': sum(counts) * BATCH / 10}
    found |= {'in process, per processor second': alone * BATCH / own}
    found |= {'workers, per processor second': sum(counts) * BATCH / workers}
    shares = {
        'share': sum(counts) / alone,
        'share per processor second': sum(counts) / workers / (alone / own),
        "clients' part of the processor": sum(theirs) / (sum(theirs) + workers),
    }
    return {k: int(v) for k, v in found.items()} | {k: round(v, 2) for k, v in shares.items()}


def processor_of(pids):
    "Seconds of processor that some processes have used."
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def use(url, key, seed, end, found):
    "One user: asks for batches of all sizes until the end, also when nothing is left."
    client = Client(url, 'defended', key, longest=0)
    client.binary, client.input, client.shape = True, INPUT, [-1, 1, 8, 8]
    ask = Patient(Bought(client, Journal()), retries=12, wait=0.05)
    random_sizes, batch = random.Random(seed), images()
    while time.monotonic() < end:
        count = random_sizes.randint(1, BATCH)
        try:
            found['images'] += len(ask(batch[:count]))
            found['answers'] += 1
        except AccessEnded:
            found['refusals'] += 1
            time.sleep(0.05)
        except Exception as error:
            found['lost'].append(f'{type(error).__name__}: {error}')


def minute(folder, defense, users=32, seconds=60, budget=2_000):
    "Users at once; a worker is killed after a third, the service is begun anew after two."
    folder = Path(tempfile.mkdtemp(dir=folder))
    meco_nb.save(folder / 'defended', defense)
    names = [f'user{i}' for i in range(users)]
    keys = [add_user(folder / 'users.toml', name, budget, 'ever') for name in names]
    port, end = free_port(), time.monotonic() + seconds
    url, found = f'http://127.0.0.1:{port}', [new_count() for _ in keys]
    with process(folder, port, '--workers', '2') as server:
        end = time.monotonic() + seconds
        told = [
            threading.Thread(target=use, args=(url, key, i, end, one))
            for i, (key, one) in enumerate(zip(keys, found, strict=True))
        ]
        for thread in told:
            thread.start()
        time.sleep(seconds / 3)
        os.kill(workers_of(server)[0], signal.SIGKILL)
        time.sleep(seconds / 3)
    with process(folder, port, '--workers', '2'):
        for thread in told:
            thread.join()
    return summed(found, accounts_at(folder / 'accounts.db'), names, budget)


def new_count():
    return dict(images=0, answers=0, refusals=0, lost=[])


def summed(found, accounts, names, budget):
    "What the users have seen, and what the accounts say."
    spent = [accounts.used(User(name, hashed(name), budget, 'ever')) for name in names]
    answered = [one['images'] for one in found]
    return {
        'users': len(names),
        'questions answered': sum(one['answers'] for one in found),
        'images answered': sum(answered),
        'images in the accounts': sum(spent),
        'users whose account differs': sum(a != b for a, b in zip(spent, answered, strict=True)),
        'most that a user has spent': max(spent),
        'budget of each': budget,
        'refused over budget': sum(one['refusals'] for one in found),
        'questions lost': sum(len(one['lost']) for one in found),
    }


PARTS = dict(
    latency=lambda folder, own: {name: latency(folder, own[name]) for name in own},
    processor=lambda folder, own: {name: processor(folder, own[name]) for name in own},
    throughput=lambda folder, own: {name: throughput(folder, own[name]) for name in own},
    minute=lambda folder, own: minute(folder, own['MeCo']),
)


def main(parts):
    "Measure some parts, and keep them beside the others."
    torch.set_num_threads(1)
    own, path = defenses(), project_path('results/serve.json')
    for part in parts or PARTS:
        found, load = load_json(path) if path.exists() else {}, round(os.getloadavg()[0], 1)
        with tempfile.TemporaryDirectory() as folder:
            measured = PARTS[part](Path(folder), own)
        print(part, measured, f'load {load}')
        loads = found.get('load', {}) | {part: load}
        save_json(path, found | {part: measured, 'load': loads, 'cores': os.cpu_count()})


if __name__ == '__main__':
    main(sys.argv[1:])
