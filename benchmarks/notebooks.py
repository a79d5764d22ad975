"""How long the notebooks take: each is run from top to bottom by the package's own executor, at scale tiny and without data, and timed chapter by chapter.

    python benchmarks/notebooks.py [NAME ...] [--threads 2] [--scale tiny] [--quick]

NAME is a notebook without its suffix, such as 10_dclr, or a folder of them: papers, course, foundations; all three folders if none. What is measured is kept after each notebook, beside what
was measured of the others before, so a run that was killed can go on with the names that are missing. Every notebook has its own version, commit and date in the record. Seconds are of this machine
and include the start of the kernel, the imports and the making of phantom tissue. `--quick` runs and prints, and keeps nothing.
"""
import argparse
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('names', nargs='*', help='notebooks or folders')
args.add_argument('--threads', type=int, default=2, help='of the kernel')
args.add_argument('--scale', default='tiny')
args.add_argument('--quick', action='store_true', help='keep nothing')
args = args.parse_args()

import datetime, os, sys, tempfile, time
from pathlib import Path

import nbformat

import histolab_nb
from common import keep
from histolab_nb.notebooks import execute, flags_here, left_out, notebooks_folder
from histolab_nb.core import DataError, get_device, get_scale, read_json
from histolab_nb.ledger import git_commit, results_folder

folders = 'foundations', 'papers', 'course'


def wanted(names):
    "Paths of the notebooks that were asked for"
    root = notebooks_folder()
    known = {p.stem:p for f in folders for p in sorted((root/f).glob('*.ipynb'))}
    res = []
    for n in names or folders:
        some = [p for p in known.values() if p.parent.name==n] if n in folders else [known[n]] if n in known else []
        if not some: raise DataError(f'there is no notebook {n!r}', fix=f'Name some of {", ".join(known)}, or a folder: {", ".join(folders)}')
        res += some
    return list(dict.fromkeys(res))


def seconds_of(lines):
    "Seconds of each chapter, from the lines that the executor says"
    res = {}
    for l in lines:
        name,t,_ = l.strip().rsplit(None, 2)
        res[name] = round(res.get(name, 0)+float(t), 1)
    return res


def timed(path):
    "Run a notebook; what is kept of it"
    nb,lines,here = nbformat.read(path, 4),[],flags_here()
    with tempfile.TemporaryDirectory() as d:
        mine = dict(HISTOLAB_SCALE=args.scale, HISTOLAB_OUT=str(Path(d)/'out'), HISTOLAB_RESULTS=str(Path(d)/'results'), OMP_NUM_THREADS=str(args.threads))
        start = time.perf_counter()
        execute(nb, Path(d), here, {k:v for k,v in os.environ.items() if not k.startswith('HISTOLAB_')} | mine, say=lines.append)
        seconds = round(time.perf_counter()-start, 1)
    code = [c for c in nb.cells if c.cell_type=='code']
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    return dict(seconds=seconds, chapters=seconds_of(lines), code_cells=len(code), left_out=sum(bool(left_out(c, here)) for c in code),
        threads=args.threads, device=str(get_device()), version=histolab_nb.__version__, commit=git_commit(), when=when)


if __name__=='__main__':
    for k in ('DATA','FLAGS','SLIDE'): os.environ.pop(f'HISTOLAB_{k}', None)
    scale,root,failed = get_scale(args.scale),notebooks_folder(),[]
    record = results_folder()/'benchmark_notebooks.json'
    old = read_json(record) if record.exists() else {}
    kept = old['notebooks'] if old.get('scale')==scale else {}
    for p in wanted(args.names):
        name = p.relative_to(root).with_suffix('').as_posix()
        try: kept[name] = timed(p)
        except DataError as e:
            failed.append(f'{name}: {e}')
            print(failed[-1], file=sys.stderr)
            continue
        slowest = max(kept[name]['chapters'].items(), key=lambda o: o[1])
        print(f'{name:34} {kept[name]["seconds"]:6.1f} s, of it {slowest[1]:.1f} s in "{slowest[0]}"')
        if not args.quick: keep('notebooks', dict(scale=scale, notebooks=dict(sorted(kept.items()))), args.threads)
    if failed: sys.exit(f'{len(failed)} notebooks failed')
