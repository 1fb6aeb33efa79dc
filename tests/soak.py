"""The two promises that everything rests on, tried at length: python tests/soak.py

No schedule of questions gets one answer over the budget, and the ledger is what was answered.
Whatever is killed, and whenever: what goes on from there ends as if nothing had happened.
Needs Linux, whose /proc tells the children of a process.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from meco_nb.files import load_json, load_state, load_tensors, save_json, save_state, save_tensors
from meco_nb.oracle import AccessEnded, Averaged, BudgetExceeded, HardLabels, Oracle, Unanswered

# Schedules of questions

THREADS = 8


class Purpose(str):
    "A word that lets other threads go first whenever a ledger looks it up."

    def __hash__(self):
        time.sleep(0)
        return super().__hash__()


PURPOSES = tuple(map(Purpose, ('clone', 'generator', 'held back')))
BRIGHTNESS = [i / 64 for i in range(32)]  # of images that are answered
MARKS = {  # brightness of an image that is not: what its whole chunk ends with
    0.6875: Unanswered,
    0.75: AccessEnded,
    0.8125: RuntimeError,
    0.875: KeyboardInterrupt,
    0.9375: ValueError,  # the defense answers, but not with probabilities
}
WRAPS = {
    'none': lambda oracle, n: oracle,
    'hard': lambda oracle, n: HardLabels(oracle),
    'mean': Averaged,
    'hard mean': lambda oracle, n: HardLabels(Averaged(oracle, n)),
    'mean of hard': lambda oracle, n: Averaged(HardLabels(oracle), n),
}


class Batch(NamedTuple):
    "One question."

    pixels: list  # the brightness of each image of one pixel
    purpose: str
    error: type | None  # that it meets, if it is let in
    place: int  # of the image that meets it


class Schedule(NamedTuple):
    "Questions to one oracle."

    budget: int
    chunk_size: int
    labels: str
    wrap: str  # a key of WRAPS
    copies: int  # of each image
    threaded: bool
    batches: list


def a_batch(r):
    "A random question; one in six meets an error."
    pixels = r.choices(BRIGHTNESS, k=r.randint(1, 20))
    place, mark = r.randrange(len(pixels)), r.choice(list(MARKS)) if r.random() < 1 / 6 else None
    pixels[place] = pixels[place] if mark is None else mark
    return Batch(pixels, r.choice(PURPOSES), MARKS.get(mark), place)


def a_schedule(seed):
    "A random schedule; one in ten is asked by many threads at once."
    r = random.Random(seed)
    threaded = r.random() < 0.1
    wrap = r.choice(['none'] * 5 + list(WRAPS))
    return Schedule(
        budget=r.randint(0, 60),
        chunk_size=r.choice([*range(1, 21), 4096]),
        labels=r.choice(['soft', 'hard']),
        wrap=wrap,
        copies=r.randint(1, 3) if 'mean' in wrap else 1,
        threaded=threaded,
        batches=[a_batch(r) for _ in range(r.randint(1, 16 if threaded else 6))],
    )


class Defense:
    "Two classes by brightness; counts the images it answered, and those it failed on."

    def __init__(self):
        self.lock, self.answered, self.failed = threading.Lock(), 0, 0

    def __call__(self, images):
        bright = images.flatten()
        error = MARKS.get(bright.max().item())
        if error not in (None, ValueError):
            self.count(failed=0 if issubclass(error, Unanswered) else len(images))
            raise error
        self.count(answered=len(images))
        return (
            torch.stack([bright, 1 - bright], -1) if error is None else images[:, 0, 0] * math.nan
        )

    def count(self, answered=0, failed=0):
        with self.lock:
            self.answered, self.failed = self.answered + answered, self.failed + failed


def outcome(view, batch):
    "The class of the error that a question ends with, or None where all of it is answered."
    images = torch.tensor(batch.pixels).view(-1, 1, 1, 1)
    try:
        answers = view(images, batch.purpose)
    except BaseException as error:
        return type(error)
    return None if answers.shape == (len(images), 2) else AssertionError


@functools.cache
def pool():
    "Threads that are started once, and where they wait for each other."
    sys.setswitchinterval(1e-5)
    return ThreadPoolExecutor(THREADS), threading.Barrier(THREADS)


def ask_at_once(view, batches):
    "The outcomes of questions that many threads take from one list."
    (threads, barrier), found = pool(), [None] * len(batches)
    walk = iter(list(enumerate(batches)))

    def ask(_):
        barrier.wait()
        for i, batch in walk:
            found[i] = outcome(view, batch)

    list(threads.map(ask, range(THREADS)))
    return found


def owed(schedule, batch, found):
    "What a question with such an outcome costs."
    whole, size = len(batch.pixels) * schedule.copies, schedule.chunk_size
    if found in (None, BudgetExceeded):
        return 0 if found else whole
    before = batch.place * schedule.copies // size * size
    return before if issubclass(found, Unanswered) else min(before + size, whole)


def broken(schedule, oracle, defense, found):
    "The promises that were not kept, in words."
    charged, asked = Counter(), 0
    for batch, end in zip(schedule.batches, found, strict=True):
        charged[batch.purpose] += owed(schedule, batch, end)
        asked += 0 if end is BudgetExceeded else len(batch.pixels) * schedule.copies
    refused = [b for b, end in zip(schedule.batches, found, strict=True) if end is BudgetExceeded]
    least = min((len(b.pixels) * schedule.copies for b in refused), default=math.inf)
    ended = AccessEnded in found
    after = found[found.index(AccessEnded) + 1 :] if ended and not schedule.threaded else []
    expected = [{b.error, BudgetExceeded} for b in schedule.batches]
    promises = {
        'more is answered than the budget': defense.answered <= schedule.budget,
        'more is charged than the budget': oracle.used <= schedule.budget,
        'used is not the sum of the ledger': oracle.used == sum(oracle.ledger.values()),
        'used is not what was answered': oracle.used == defense.answered + defense.failed,
        'the ledger is not what is owed': oracle.ledger == dict(+charged),
        'a question ended otherwise': all(map(set.__contains__, expected, found)),
        'refused though there was room': ended or asked + least > schedule.budget,
        'something remains after the end': not ended or oracle.remaining == 0,
        'let in after the end': set(after) <= {BudgetExceeded},
    }
    return [text for text, kept in promises.items() if not kept]


def try_schedule(seed):
    "One schedule: its threads, its questions, the images over its budget, its broken promises."
    schedule, defense = a_schedule(seed), Defense()
    oracle = Oracle(
        defense, schedule.budget, schedule.labels, num_classes=2, chunk_size=schedule.chunk_size
    )
    view = WRAPS[schedule.wrap](oracle, schedule.copies)
    if schedule.threaded:
        found = ask_at_once(view, schedule.batches)
    else:
        found = [outcome(view, batch) for batch in schedule.batches]
    wrong = broken(schedule, oracle, defense, found)
    if wrong:
        print(f'schedule {seed}: {"; ".join(wrong)}', flush=True)
    return Counter(
        schedules=1,
        threaded=schedule.threaded,
        questions=len(schedule.batches),
        over=max(defense.answered - schedule.budget, 0),
        broken=bool(wrong),
    )


def try_schedules(seeds):
    "What many schedules add up to."
    torch.set_num_threads(1)
    total = Counter()
    for seed in seeds:
        total.update(try_schedule(seed))
    return total


def soak_schedules(count, seed, processes=2):
    "Random schedules; whether all promises were kept."
    first, total, started = seed * 10**9, Counter(), time.monotonic()
    parts = [range(i, min(i + 1000, first + count)) for i in range(first, first + count, 1000)]
    with multiprocessing.get_context('spawn').Pool(processes) as workers:
        for part in workers.imap_unordered(try_schedules, parts):
            total.update(part)
    print(
        f'{total["schedules"]:,} schedules ({total["threaded"]:,} with {THREADS} threads), '
        f'{total["questions"]:,} questions, {total["over"]:,} images over budget, '
        + (
            f'{total["broken"]:,} BROKEN'
            if total['broken']
            else 'ledgers equal to what was answered'
        )
        + f'; {time.monotonic() - started:,.0f} s',
        flush=True,
    )
    return not total['broken']


# Processes that are killed

SHORT = dict(
    preset='digits',
    defense='meco',
    budget=15_000,
    victim_settings=dict(epochs=2),
    defense_settings=dict(epochs=1),
    resume=True,
)
FOUR = [
    dict(defense=defense, labels=labels, defense_settings=own, budget=3_000)
    for defense, own in (('meco', dict(epochs=1)), ('undefended', {}))
    for labels in ('soft', 'hard')
]
RUN = 'import json, sys; from meco_nb.experiment import run; run(**json.loads(sys.argv[1]))'
RUN_ALL = """
import json, sys
from meco_nb.grid import run_all
from meco_nb.settings import resolve
run_all([resolve(**s) for s in json.loads(sys.argv[1])], workers=2)
"""
PATIENCE = 20  # seconds within which an orphan has to end: it imports, and takes one step


def started(code, *arguments):
    "A new process."
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = dict(os.environ, MECO_PROGRESS='0', PYTHONPATH=paths)
    command = [sys.executable, '-c', code, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)


def one_run(out):
    return started(RUN, json.dumps(dict(SHORT, out=str(out))))


def four_runs(out, **settings):
    return started(RUN_ALL, json.dumps([SHORT | s | settings | dict(out=str(out)) for s in FOUR]))


def end_of(process):
    "Wait for its good end; the seconds from now to there."
    before = time.monotonic()
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said.decode())
    return time.monotonic() - before


def kill_after(process, seconds):
    "Kill it then, if it is still there."
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()


def kept(out):
    "What runs have left, but for their time and commit: records, weights, and what was asked."
    left = {}
    for path in sorted(Path(out).glob('*.json')):
        record = load_json(path)
        del record['seconds'], record['made_by']
        left[path.name] = record, path.with_suffix('.safetensors').read_bytes()
    return left


def with_models(whole, out):
    "A new folder for runs, in which everything is trained."
    shutil.copytree(Path(whole) / 'models', Path(out) / 'models')
    return out


def report(what, moments, equal, more=''):
    "Say how it went; whether all was well."
    span = f'{min(moments):.0%} to {max(moments):.0%}'
    print(
        f'{what}: killed {len(moments)} times at {span}, {equal} equal to the bit{more}', flush=True
    )
    return equal == len(moments)


def soak_run(count, r, folder):
    "Kill an experiment, sometimes again, and let it end; every fifth has to train its models too."
    whole, again = folder / 'whole', folder / 'again'
    slow = end_of(one_run(whole))
    fast = end_of(one_run(with_models(whole, again)))
    equal, moments, going_on, extra = 0, [], 0, 0
    for i in range(count):
        out, span = folder / str(i), slow if i % 5 == 0 else fast
        if i % 5:
            with_models(whole, out)
        moments.append(r.random())
        kill_after(one_run(out), moments[-1] * span)
        going_on += bool([*out.glob('*.checkpoint'), *out.glob('models/*.training')])
        while r.random() < 1 / 3:
            kill_after(one_run(out), r.random() * span)
            extra += 1
        end_of(one_run(out))
        equal += kept(out) == kept(whole)
    more = f' ({going_on} left a checkpoint, {extra} kills more on the way)'
    return report('run', moments, equal, more) and kept(again) == kept(whole)


def state_of(pid):
    "The letter that Linux gives it; Z where it has ended, or has never been."
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return 'Z'


def workers_of(process):
    "The children of a process that live."
    try:
        pids = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(pid) for pid in pids if state_of(pid) != 'Z' and not is_tracker(pid)]


def is_tracker(pid):
    "Whether a process is the one of loky that cleans up, and no worker."
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b'resource_tracker' in Path(f'/proc/{pid}/cmdline').read_bytes()
    return False


def wait_for_worker(process):
    "Until it has one, or has ended."
    while not workers_of(process) and process.poll() is None:
        time.sleep(0.01)
    return process


def four_whole(folder):
    "Several runs that nobody has killed; made once for all that kill such."
    if not folder.exists():
        end_of(four_runs(folder))
    return folder


def pause(process, seconds):
    "Wait, but not past its end."
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill_worker(r, out, moment, span):
    "Kill one worker at a moment of their work; whether there was one, and the parent went on."
    process = wait_for_worker(four_runs(out))
    pause(process, moment * span)
    workers = workers_of(process)
    if workers:
        os.kill(r.choice(workers), signal.SIGKILL)
    process.communicate()
    return bool(workers), process.returncode == 0


def soak_workers(count, r, folder):
    "Kill one worker of several runs: the others go on, and it too."
    whole = four_whole(folder.parent / 'four')
    span = end_of(wait_for_worker(four_runs(with_models(whole, folder / 'again'))))
    equal, moments, tries = 0, [], 0
    while len(moments) < count:
        out, moment, tries = with_models(whole, folder / str(tries)), r.random(), tries + 1
        hit, went_on = kill_worker(r, out, moment, span)
        if hit:
            moments.append(moment)
            equal += went_on and kept(out) == kept(whole)
    return report('worker', moments, equal) and kept(folder / 'again') == kept(whole)


def orphans_of(process):
    "Kill it; the workers that it leaves."
    process.send_signal(signal.SIGSTOP)  # that it starts no other meanwhile
    workers = workers_of(process)
    process.kill()
    process.communicate()
    return workers


def outlived(workers):
    "The workers that have not ended by themselves in time; they are killed then."
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and any(state_of(pid) != 'Z' for pid in workers):
        time.sleep(0.01)
    left = [pid for pid in workers if state_of(pid) != 'Z']
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def soak_parent(count, r, folder):
    "Kill the parent of several runs; its workers end, and all goes on."
    whole = four_whole(folder.parent / 'four')
    span = end_of(four_runs(with_models(whole, folder / 'again')))
    equal, moments, orphans = 0, [], 0
    for i in range(count):
        out = with_models(whole, folder / str(i))
        moments.append(r.random())
        process = four_runs(out)
        pause(process, moments[-1] * span)
        workers = orphans_of(process)
        orphans, alone = orphans + len(workers), not outlived(workers)
        end_of(four_runs(out))
        equal += alone and kept(out) == kept(whole)
    return report('parent', moments, equal, f' ({orphans} workers left alone)')


def soak_orphans(count, r, folder):
    "Kill the parent of endless runs soon after it has started them; its workers end."
    whole, orphans, left = four_whole(folder.parent / 'four'), [], []
    for i in range(count):
        process = four_runs(with_models(whole, folder / str(i)), budget=10**9)
        time.sleep(4 * r.random() if workers_of(wait_for_worker(process)) else 0)
        mine = orphans_of(process)
        orphans, left = orphans + mine, left + outlived(mine)
    ended = len(orphans) - len(left)
    print(f'orphans: {len(orphans)} of endless runs, {ended} ended by themselves', flush=True)
    return not left


# Files that are being written

WRITE = 'import soak, sys; soak.write_for_ever(sys.argv[1])'


def digest_of(tensor):
    "What a tensor holds, in a word."
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def write_for_ever(folder):
    "Files of three kinds, one after another."
    folder, i = Path(folder), 0
    while True:
        i += 1
        tensor = torch.rand(50_000 * (1 + i % 2))
        save_state(folder / 'state', dict(tensor=tensor, digest=digest_of(tensor)))
        save_json(folder / 'value.json', dict(numbers=[i] * 50_000, total=i * 50_000))
        save_tensors(folder / f'{i}.safetensors', dict(t=tensor), dict(digest=digest_of(tensor)))


def check_state(path):
    state = load_state(path)
    assert digest_of(state['tensor']) == state['digest']


def check_json(path):
    value = load_json(path)
    assert value.get('sha256') or sum(value['numbers']) == value['total']


def check_tensors(path):
    tensors, facts = load_tensors(path)
    assert digest_of(tensors['t']) == facts['digest']


CHECKS = {'': check_state, '.json': check_json, '.safetensors': check_tensors}


def is_whole(path):
    "Whether a file says what it should."
    try:
        CHECKS[path.suffix](path)
        return True
    except Exception as error:
        print(f'{path.name}: {type(error).__name__}: {error}', flush=True)
        return False


def soak_writes(count, r, folder):
    "Kill a process that writes; what is there under its own name is whole."
    moments, files, parts, whole = [], 0, 0, 0
    for i in range(count):
        out = folder / str(i)
        out.mkdir()
        process = started(WRITE, str(out))
        while not (out / '1.safetensors').exists() and process.poll() is None:
            time.sleep(0.001)
        moments.append(r.random())
        kill_after(process, moments[-1])
        named = [path for path in out.iterdir() if not path.name.startswith('.')]
        files, parts = files + len(named), parts + len(list(out.glob('.*')))
        whole += len(named) >= 4 and all(list(map(is_whole, named)))
    more = f' ({files:,} files read, {parts} left half written under hidden names)'
    return report('writes', moments, whole, more)


KILLS = dict(
    run=soak_run,
    worker=soak_workers,
    parent=soak_parent,
    orphans=soak_orphans,
    writes=soak_writes,
)


def soak_kills(kind, count, seed, folder):
    "Kill one kind of process so often; whether nothing was lost."
    own = Path(folder) / kind
    own.mkdir()
    before = time.monotonic()
    well = KILLS[kind](count, random.Random(f'{kind} {seed}'), own)
    print(f'{kind}: {"well" if well else "BROKEN"}; {time.monotonic() - before:,.0f} s', flush=True)
    shutil.rmtree(own)
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--schedules', type=int, default=1_000_000)
    parser.add_argument('--kills', type=int, default=20, help='of each kind')
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    well = [soak_schedules(given.schedules, given.seed)] if given.schedules else []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KILLS if given.kills else []:
            well.append(soak_kills(kind, given.kills, given.seed, folder))
    sys.exit(not all(well))


if __name__ == '__main__':
    main()
