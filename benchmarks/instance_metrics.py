"""Scores of nuclei: AJI and PQ from one sparse table, beside StarDist's matching and a loop over instances (timed once, it is slow); and a whole slide with its peak of memory.

    pip install --no-deps stardist csbdeep && pip install numba     # optional; its matching needs no tensorflow
    OMP_NUM_THREADS=1 python benchmarks/instance_metrics.py

All on one thread, on made-up nuclei: 1000 x 1000 with 600, 2000 x 2000 with 2500, 20,000 x 20,000 with 200,000. The slide is scored in a fresh process that
reads its own peak of memory from /proc/self/status (Linux). Prints seconds and ratios, and asserts that all ways give the same numbers.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')

import argparse, json, re, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from common import in_turn, keep
from histolab_nb.metrics import ahd, aji, aji_plus, dice2, object_dice, object_f1, overlaps, pq

sizes = (1000,600),(2000,2500)
slide = 20_000,200_000


def nuclei(side, n, seed=0, found=None):
    "Disks on a jittered grid; with `found`, a prediction of them: a share is found, moved and drawn too large, some reach into a neighbour, and there are false alarms"
    rng = np.random.default_rng(seed)
    k = int(np.ceil(np.sqrt(n)))
    step = side/k
    cell = np.sort(rng.permutation(k*k)[:n])
    mid,radius = (np.stack(np.divmod(cell, k), 1)+rng.uniform(.4, .6, (n,2)))*step,rng.uniform(.25, .45, n)*step
    if found is not None:
        rng = np.random.default_rng(seed+1)
        mid,radius = mid+rng.normal(0, step/12, (n,2)),radius*rng.uniform(.85, 1.25, n)
        ok = rng.random(n)<found
        mid,radius = np.concatenate([mid[ok], rng.uniform(0, side, (n//20,2))]),np.concatenate([radius[ok], rng.uniform(.1, .3, n//20)*step])
    res = np.zeros((side,side), np.int32)
    for i,((y,x),r) in enumerate(zip(mid.tolist(), radius.tolist())):
        y0,y1,x0,x1 = (int(np.clip(v, 0, side)) for v in (y-r, y+r+1, x-r, x+r+1))
        box = res[y0:y1,x0:x1]
        box[((np.arange(y0, y1)-y)**2)[:,None]+(np.arange(x0, x1)-x)**2<=r*r] = i+1
    return res


def with_stardist():
    "StarDist's matching, if it can be imported"
    try: from stardist.matching import matching
    except Exception as e: return print(f'StarDist is left out: {type(e).__name__}: {e}')
    return matching


def loop(t, p):
    "AJI and PQ with a whole mask for each instance, as code in circulation has them"
    masks_t,masks_p = ({i:m==i for i in np.unique(m) if i} for m in (t, p))
    inter,union,used,ious = 0,0,set(),[]
    for g in masks_t.values():
        best,found = 0.,None
        for j in np.unique(p[g]):
            if not j: continue
            both = np.count_nonzero(g & masks_p[j])
            either = np.count_nonzero(g | masks_p[j])
            if both/either>best: best,found = both/either,(both,either,j)
        if found is None: found = 0,np.count_nonzero(g),None
        inter,union = inter+found[0],union+found[1]
        used.add(found[2])
        if best>.5: ious.append(best)
    union += sum(np.count_nonzero(m) for j,m in masks_p.items() if j not in used)
    return inter/union,2*sum(ious)/(len(masks_t)+len(masks_p))


def compare(side, n, rounds=5):
    "Seconds of each way, and that they agree"
    t,p = nuclei(side, n),nuclei(side, n, found=.9)
    matching = with_stardist()
    start = time.perf_counter()
    want = loop(t, p)
    loop_s = time.perf_counter()-start
    assert np.allclose(want, (aji(t, p),pq(t, p).pq))
    ways = dict(aji=lambda: aji(t, p), pq=lambda: pq(t, p), aji_plus=lambda: aji_plus(t, p))
    ways['one dense bincount, the table alone'] = lambda: np.bincount(t.ravel()*(int(p.max())+1)+p.ravel(), minlength=(int(t.max())+1)*(int(p.max())+1))
    ways['overlaps, the table alone'] = lambda: overlaps(t, p)
    if matching:
        assert np.isclose(matching(t, p).panoptic_quality, pq(t, p, strict=False).pq)
        ways['StarDist matching'] = lambda: matching(t, p)
    if side<1500: ways['ahd'],ways['ahd symmetric'] = lambda: ahd(t, p),lambda: ahd(t, p, True)
    secs = in_turn(ways, rounds=rounds)
    secs['loop over instances, aji and pq'] = loop_s
    ratio = {k:v/secs['pq'] for k,v in secs.items()}
    print(f'\n{side} x {side}, {len(np.unique(t))-1} nuclei, {len(np.unique(p))-1} predicted: AJI {want[0]:.5f}, PQ {want[1]:.5f}, StarDist\'s PQ {pq(t, p, strict=False).pq:.5f}')
    for k,v in secs.items(): print(f'  {k:36s} {1000*v:9.1f} ms   {ratio[k]:7.1f} x pq')
    return dict(side=side, nuclei=len(np.unique(t))-1, predicted=len(np.unique(p))-1, aji=want[0], pq=want[1], pq_stardist_rule=pq(t, p, strict=False).pq,
        milliseconds={k:1000*v for k,v in secs.items()}, ratio_to_pq=ratio)


def peak(): return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])/1024


def whole_slide():
    "In a process of its own: seconds of table and scores, MB at the start, with both maps, and at the end"
    res = dict(side=slide[0], megabytes=dict(start=peak()))
    t,p = nuclei(*slide),nuclei(*slide, found=.9)
    res['megabytes'] |= dict(both_maps=(t.nbytes+p.nbytes)/2**20, peak_with_maps=peak())
    start = time.perf_counter()
    o = overlaps(t, p)
    res['seconds'] = dict(table=time.perf_counter()-start)
    res |= dict(nuclei=len(o.true_ids), predicted=len(o.pred_ids), pairs=len(o.t), scores={})
    for f in (aji, aji_plus, dice2, pq, object_f1, object_dice):
        start = time.perf_counter()
        v = f(o)
        res['seconds'][f.__name__],res['scores'][f.__name__] = time.perf_counter()-start,v.pq if f is pq else v
    res['megabytes']['peak'] = peak()
    print(json.dumps(res))


if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--slide', action='store_true', help='only the whole slide, as JSON; what the fresh process is called with')
    if parser.parse_args().slide: whole_slide()
    else:
        rows = [compare(*o) for o in sizes]
        big = json.loads(subprocess.run([sys.executable, __file__, '--slide'], check=True, capture_output=True, text=True).stdout)
        print('\n{side} x {side}, {nuclei} nuclei, {predicted} predicted, {pairs} pairs'.format(**big))
        for k,v in big['seconds'].items(): print(f'  {k:32s} {v:9.2f} s   {big["scores"].get(k, "")}')
        for k,v in big['megabytes'].items(): print(f'  {k:32s} {v:9.0f} MB')
        try: stardist = version('stardist')
        except Exception: stardist = None
        keep('instance_metrics', dict(stardist=stardist, images=rows, slide=big))
