"What the benchmarks share: timing functions in turn, and saying what they ran on."
import os, platform, time

import numpy as np, torch

from histolab_nb.core import write_json
from histolab_nb.ledger import git_commit, results_folder
import histolab_nb


def in_turn(
    funcs, # name:function without arguments
    rounds=9, # how often each is timed
    min_s=0.05, # a timing repeats its function until it lasts that long, seconds
):
    "Median seconds of each function. They take turns, so that a busy moment of the machine meets all of them"
    counts,times = {},{k:[] for k in funcs}
    for k,f in funcs.items():
        f()
        start = time.perf_counter()
        f()
        counts[k] = max(1, int(min_s/(time.perf_counter()-start)))
    for _ in range(rounds):
        for k,f in funcs.items():
            start = time.perf_counter()
            for _ in range(counts[k]): f()
            times[k].append((time.perf_counter()-start)/counts[k])
    return {k:float(np.median(v)) for k,v in times.items()}


def wait(device):
    if device.type=='cuda': torch.cuda.synchronize(device)


def timed(func, device):
    "Seconds of one call, or those that it tells itself"
    wait(device)
    start = time.perf_counter()
    told = func()
    wait(device)
    return told if isinstance(told, float) else time.perf_counter()-start


def in_rounds(funcs, rounds, device):
    "Seconds of each function in each round. They take turns, so that a busy moment of the machine meets all of them"
    for f in funcs.values(): f()
    res = {k:np.zeros(rounds) for k in funcs}
    for r in range(rounds):
        for k in np.random.permutation(list(funcs)): res[k][r] = timed(funcs[k], device)
    return res


def ratio(a, b):
    "Median, lowest and highest of a/b, round by round"
    q = a/b
    return dict(median=round(float(np.median(q)), 4), low=round(float(q.min()), 4), high=round(float(q.max()), 4))


def machine(threads):
    "What a timing was measured on"
    cpu = platform.processor()
    try: cpu = next(l.split(':',1)[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): pass
    return dict(cpu=cpu, cores=os.cpu_count(), threads=threads, system=platform.system(), python=platform.python_version())


def keep(
    name, # results/benchmark_NAME.json
    res, # what was measured
    threads=1, # threads it ran on
):
    "Write a benchmark's result, with machine, version and commit"
    path = results_folder()/f'benchmark_{name}.json'
    write_json(path, dict(benchmark=name, machine=machine(threads), version=histolab_nb.__version__, commit=git_commit(), **res))
    print(f'kept in {path}')
