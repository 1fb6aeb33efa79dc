"Many runs on Ray, as two nodes on this machine, give what one process gives; killed or not."

import os
import shlex
import signal
import sys
import threading
import time
from functools import partial

import pytest

from meco_nb.cluster import on_ray
from meco_nb.experiment import stored
from meco_nb.grid import RunsFailed, attempt, finished, run_all
from meco_nb.settings import resolve

ray = pytest.importorskip('ray')
SHORT = dict(preset='digits', defense='meco', attack='dfme', budget=3_000)
QUICK = dict(victim_settings=dict(epochs=2), defense_settings=dict(epochs=1))


def runs(out, **more):
    kinds = [dict(labels='soft'), dict(labels='hard'), dict(seed=1)]
    return [resolve(**SHORT, **QUICK, **kind, **more, out=str(out)) for kind in kinds]


@pytest.fixture(scope='module')
def cluster():
    "Two nodes with a core each."
    from ray.cluster_utils import Cluster

    os.environ['MECO_PROGRESS'] = '0'
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')])
    node = dict(num_cpus=1, include_dashboard=True, dashboard_port=0)  # jobs come in there
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1)
    own = dict(runtime_env=dict(env_vars=dict(MECO_PROGRESS='0', PYTHONPATH=paths)))
    ray.init(address=cluster.address, log_to_driver=False, **own)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "The records that one process makes."
    return run_all(runs(tmp_path_factory.mktemp('here')), workers=0)


def the_same(records, others):
    return [r.weights for r in records] == [r.weights for r in others] and all(
        r.clone == o.clone and r.curve == o.curve and r.ledger == o.ledger
        for r, o in zip(records, others, strict=True)
    )


def test_two_nodes_give_the_same_records(cluster, here, tmp_path):
    assert len(ray.nodes()) == 2
    assert the_same(run_all(runs(tmp_path), engine='ray'), here)
    assert len(list((tmp_path / 'models').glob('*.safetensors'))) == 4  # two victims, two MeCos


def ended(client, job):
    "How a submitted job ended."
    while not client.get_job_status(job).is_terminal():
        time.sleep(1)
    return client.get_job_status(job)


def test_a_submitted_job_runs_on_the_cluster(cluster, here, tmp_path):
    "What `ray job submit` does, without a terminal that stays open."
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(f'http://{cluster.head_node.webui_url}')
    code = 'from meco_nb.grid import run_all; from test_cluster import runs; '
    code += f'run_all(runs({str(tmp_path)!r}), engine="ray")'
    words = ['env', f'PYTHONPATH={os.path.dirname(__file__)}', sys.executable, '-c', code]
    job = client.submit_job(entrypoint=shlex.join(words))
    assert ended(client, job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    assert the_same(run_all(runs(tmp_path, resume=True), workers=0), here)


def killed_once(folder, s):
    "A run whose process is killed in the middle, the first time."
    mark = os.path.join(folder, f'{stored(s).stem}.killed')
    if not os.path.exists(mark):
        open(mark, 'w').close()
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return finished(s)


def test_workers_that_are_killed_lose_nothing(cluster, here, tmp_path):
    task = partial(killed_once, str(tmp_path))
    errors = [error for _, _, error in on_ray(attempt, [(task, runs(tmp_path))])]
    assert errors == [None] * 3 and len(list(tmp_path.glob('*.killed'))) == 3
    assert the_same(run_all(runs(tmp_path, resume=True), workers=0), here)


def test_a_run_that_fails_on_ray_is_named_and_the_others_go_on(cluster, here, tmp_path):
    first, *others = runs(tmp_path)
    stored(first).with_suffix('.checkpoint').write_bytes(b'half a file')
    with pytest.raises(RunsFailed, match=r'1 of 3 runs failed(?s:.*)cannot go on from') as error:
        run_all([resolve(**(vars(s) | dict(resume=True))) for s in (first, *others)], engine='ray')
    assert list(error.value.failed) == [stored(first).stem]
    assert all(stored(s).exists() for s in others)
