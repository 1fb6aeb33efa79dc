"The accounts of a service, in SQLite and in a real Redis: the same tests for both."

import contextlib
import multiprocessing
import shutil
import signal
import subprocess
import time

import pytest
import torch

from meco_nb.accounts import KEPT, OverBudget
from meco_nb.defenses import ModelGuardian
from meco_nb.memory import Memory
from meco_nb.models import build_model
from meco_nb.redis_accounts import RedisAccounts, accounts_at
from meco_nb.service import Service
from meco_nb.users import User, add_user, hashed, read_users

ANNA = User('anna', hashed('a'), 100, 'hour')
NOW = 7_200.0
REDIS = shutil.which('redis-server')


@pytest.fixture(scope='module')
def redis_url(tmp_path_factory):
    "A Redis of these tests, which keeps what it counts."
    if REDIS is None:
        pytest.skip('no redis-server here: apt-get install redis-server')
    folder = tmp_path_factory.mktemp('redis')
    words = [
        '--port',
        '0',
        '--unixsocket',
        'sock',
        '--appendonly',
        'yes',
        '--appendfsync',
        'always',
    ]
    server = subprocess.Popen([REDIS, *words], cwd=folder, stdout=subprocess.DEVNULL)
    while not (folder / 'sock').exists():
        time.sleep(0.05)
    yield f'unix://{folder}/sock'
    server.terminate()
    server.wait()


@pytest.fixture(params=['sqlite', 'redis'])
def place(request, tmp_path):
    "Where accounts are: the path of a file, or a URL."
    if request.param == 'sqlite':
        return str(tmp_path / 'accounts.db')
    url = request.getfixturevalue('redis_url')
    RedisAccounts(url).db.flushall()
    return url


def test_a_budget_ends_at_its_last_image(place):
    accounts = accounts_at(place)
    accounts.charge(ANNA, 60, now=NOW)
    with pytest.raises(OverBudget) as error:
        accounts.charge(ANNA, 41, now=NOW)
    assert (error.value.left, error.value.after) == (40, 3600) and 'nothing was' in str(error.value)
    accounts.charge(ANNA, 40, now=NOW)
    assert accounts_at(place).used(ANNA, NOW) == 100


def test_a_period_begins_anew_and_ever_does_not(place):
    accounts, ever = accounts_at(place), User('ben', hashed('b'), 5, 'ever')
    accounts.charge(ANNA, 100, now=NOW)
    accounts.charge(ANNA, 100, now=NOW + 3600)
    accounts.charge(ever, 5, now=NOW)
    with pytest.raises(OverBudget, match='waiting will not help'):
        accounts.charge(ever, 1, now=NOW + 10**9)
    with pytest.raises(OverBudget, match='waiting will not help'):
        accounts.charge(ANNA, 101, now=NOW + 7200)  # more than any period has


def test_a_ticket_is_counted_once_and_has_one_answer(place):
    first, second = accounts_at(place), accounts_at(place)
    one, two = first.charge(ANNA, 60, 't'), second.charge(ANNA, 60, 't')
    assert first.used(ANNA) == 60 and two.answer is None
    assert second.settle(two, b'two') == b'two' == first.settle(one, b'one')
    assert first.charge(ANNA, 60, 't').answer == b'two' and first.used(ANNA) == 60


def test_what_is_given_back_is_given_back_once_and_never_after_an_answer(place):
    accounts = accounts_at(place)
    one, two = accounts.charge(ANNA, 60, 't'), accounts.charge(ANNA, 60, 't')
    accounts.give_back(one)
    accounts.give_back(two)
    assert accounts.used(ANNA) == 0 and accounts.settle(two, b'late') is None
    paid = accounts.charge(ANNA, 60, 't')
    accounts.settle(paid, b'an answer')
    accounts.give_back(paid)
    assert accounts.used(ANNA) == 60


def test_a_ticket_that_was_refused_is_not_paid(place):
    "Also in a turn that is kept, as that of a defense that remembers."
    accounts = accounts_at(place)
    for _ in range(2):
        with accounts.turn(), contextlib.suppress(OverBudget):
            accounts.charge(ANNA, 101, 't', now=NOW)
            pytest.fail('it was answered')
    assert accounts.used(ANNA, NOW) == 0


def test_an_old_ticket_is_forgotten(tmp_path):
    accounts = accounts_at(tmp_path / 'accounts.db')
    accounts.charge(ANNA, 1, 't', now=NOW)
    accounts.charge(ANNA, 1, 't', now=NOW + KEPT + 1)
    assert accounts.db.execute('SELECT count(*) FROM tickets').fetchone() == (1,)


def ask_on(place, granted):
    accounts, count = accounts_at(place), 0
    try:
        while accounts.charge(ANNA, 3, now=NOW):
            count += 3
    except OverBudget:
        granted.put(count)


def test_processes_that_charge_at_once_never_get_one_image_too_many(place):
    context = multiprocessing.get_context('fork')
    granted = context.Queue()
    workers = [context.Process(target=ask_on, args=(place, granted)) for _ in range(4)]
    for worker in workers:
        worker.start()
    total = sum(granted.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert total == 99 == accounts_at(place).used(ANNA, NOW)


def charge_and_tell(place, told):
    accounts = accounts_at(place)
    for i in range(10**6):
        accounts.charge(User('carl', hashed('c'), 10**9, 'ever'), 1)
        told.send(i + 1)


def test_what_was_counted_survives_a_kill(place):
    context = multiprocessing.get_context('fork')
    heard, told = context.Pipe(duplex=False)
    worker = context.Process(target=charge_and_tell, args=(place, told))
    worker.start()
    while heard.recv() < 20:
        pass
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    last = 20
    while heard.poll():
        last = heard.recv()
    assert accounts_at(place).used(User('carl', hashed('c'), 10**9, 'ever')) - last in (0, 1)


def test_two_workers_agree_on_a_user_and_a_restart_forgets_nothing(place, digits, victim):
    image = digits.test.tensors[0][:4]

    def asked(count):
        guarded = ModelGuardian(victim, sources=('thief',), key=b'the same').eval()
        guarded.detector.threshold.fill_(-1e9)  # everything looks synthetic
        memory = Memory(guarded, accounts_at(place), 'v1')
        for _ in range(count):
            with memory.accounts.turn(), memory.of('anna'), torch.no_grad():
                guarded(image, 'anna')
        return guarded.users['anna']['flagged'], set(guarded.users.records)

    assert [asked(1), asked(2), asked(1)] == [(4, {'anna'}), (12, {'anna'}), (16, {'anna'})]


def test_a_model_of_another_version_begins_anew(place, digits):
    for version in ('v1', 'v2'):
        guarded = ModelGuardian(build_model('lenet5', digits), sources=('thief',))
        memory = Memory(guarded, accounts_at(place), version)
        with memory.accounts.turn(), memory.of('anna'):
            assert guarded.users['anna']['asked'] == 0
            guarded.users.note('anna', torch.ones(3, dtype=torch.bool))


@pytest.mark.skipif(REDIS is None, reason='no redis-server here')
def test_a_redis_that_forgets_is_refused(tmp_path):
    words = ['--port', '0', '--unixsocket', 'sock', '--save', '']
    server = subprocess.Popen([REDIS, *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / 'sock').exists():
        time.sleep(0.05)
    with pytest.raises(ValueError, match='would forget what was spent'):
        RedisAccounts(f'unix://{tmp_path}/sock')
    server.terminate()


@pytest.mark.parametrize('before', ['{}', '{}\n\n\n', '["alice"]\n{}'])
def test_a_user_is_added_to_a_file_however_it_ends(tmp_path, before):
    path, facts = tmp_path / 'users.toml', f'key = "{hashed("a")}"\nbudget = 5'
    head = '' if before.startswith('[') else '[alice]\n'
    path.write_text(head + before.format(facts))
    add_user(path, 'bob', 5)
    assert [user.name for user in read_users(path)] == ['alice', 'bob']
    with pytest.raises(ValueError, match='alice'):
        add_user(path, 'alice', 5)


def test_asking_whether_a_service_is_ready_costs_nobody_his_access(place, digits, victim):
    guarded = ModelGuardian(victim, sources=('thief',), limit=3, window=10).eval()
    guarded.detector.threshold.fill_(-1e9)  # everything looks synthetic
    service = Service(guarded, [ANNA], accounts_at(place))
    assert {service.ready() for _ in range(20)} == {10} and not guarded.users.records
