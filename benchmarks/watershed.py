"""From a map of nuclei to instances, step by step, on an image of 1000 x 1000 px: each step beside other ways to compute the same, and what reuse saves in tuning.

    python benchmarks/watershed.py                                  # on a phantom tile
    python benchmarks/watershed.py --image I.png --labels L.png     # on an image of yours with its instance map

All ways of a step take turns in one process on one thread, so their ratios can be trusted more than their seconds. That they give the same result is checked.
"""
import os
for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
import argparse, sys

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.morphology import disk, isotropic_closing, isotropic_opening, opening, closing
from skimage.segmentation import watershed

from common import in_turn, keep
from histolab_nb.metrics import aji
from histolab_nb.phantom import phantom_samples
from histolab_nb.postprocess import *


def clean_scipy(mask):
    for r in (2, 1): mask = ndimage.binary_closing(ndimage.binary_opening(np.pad(mask, 5, 'reflect'), disk(r)), disk(r))[5:-5,5:-5]
    return mask

def clean_isotropic(mask):
    for r in (2, 1): mask = isotropic_closing(isotropic_opening(mask, r), r)
    return mask

def peaks_footprint(height, mask): return mask & (height==ndimage.maximum_filter(height, footprint=disk(7)))

def peaks_skimage(height, mask):
    res = np.zeros_like(mask)
    res[tuple(peak_local_max(height, footprint=disk(7), labels=mask.astype(int), exclude_border=False).T)] = True
    return res

def usual(mask):
    "The pipeline as one would write it with scikit-image, in double precision"
    for r in (2, 1): mask = closing(opening(mask, disk(r)), disk(r))
    height = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1)
    return watershed(-height, ndimage.label(peaks_skimage(height, mask), np.ones((3,3)))[0], mask=mask)

def one_by_one(mask, truth, grid):
    "What `tune_watershed` does, without reuse"
    import itertools
    return [aji(truth, watershed_instances(mask, **dict(zip(grid, o)))) for o in itertools.product(*grid.values())]

def table(title, seconds, base):
    print(title)
    for k,v in seconds.items(): print(f'    {k:42} {1000*v:8.1f} ms   {seconds[base]/v:5.2f}x')
    return dict(base=base, seconds={k:round(v, 5) for k,v in seconds.items()}, times_as_quick_as_base={k:round(seconds[base]/v, 2) for k,v in seconds.items()})


if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k in ('image', 'labels'): parser.add_argument(f'--{k}', help='8-bit RGB image' if k=='image' else 'its instance map, 16-bit PNG')
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    if bool(args.image)!=bool(args.labels): sys.exit('give both --image and --labels, or none of them')
    if args.image: img,truth = np.asarray(Image.open(args.image).convert('RGB')),np.asarray(Image.open(args.labels)).astype(np.int32)
    else:
        tissue = phantom_samples(1, 1000, mpp=.25, seed=0, regions=('tumour',))[0]
        img,truth = tissue.image,tissue.instances

    mask = haematoxylin_foreground(img)
    s = watershed_steps(mask)
    height,clean,n = s['smoothed'],s['cleaned'],int(s['instances'].max())
    inner = np.s_[20:-20,20:-20]
    assert (clean_isotropic(mask)==clean)[inner].all() and (clean_scipy(mask)==clean)[inner].all()
    assert (find_peaks(height, clean)==peaks_footprint(height, clean)).all() and (find_peaks(height, clean)==peaks_skimage(height, clean)).all()
    print(f'{img.shape[0]} x {img.shape[1]} px, {mask.mean():.0%} nuclei, {n} instances, AJI of this and the usual pipeline {aji(s["instances"], usual(mask)):.4f}')

    t = lambda d: in_turn(d, args.rounds)
    cleaning = dict(clean_mask=lambda: clean_mask(mask), scipy_binary=lambda: clean_scipy(mask), isotropic=lambda: clean_isotropic(mask))
    res = dict(cleaning=table('cleaning', t(cleaning), 'clean_mask'))
    peaks = {k:lambda f=f: f(height, clean) for k,f in dict(peak_local_max=peaks_skimage, maximum_filter=peaks_footprint, find_peaks=find_peaks).items()}
    res['peaks'] = table('peaks in a disk of radius 7', t(peaks), 'peak_local_max')
    parts = dict(all=lambda: watershed_instances(mask), usual=lambda: usual(mask), distance=lambda: mask_distance(clean))
    parts |= dict(gaussian=lambda: ndimage.gaussian_filter(s['distance'], 1.), watershed=lambda: watershed(-height, ndimage.label(s['peaks'])[0], mask=clean))
    parts |= dict(foreground=lambda: haematoxylin_foreground(img), nuclei_table=lambda: nuclei_table(s['instances'], img))
    res['pipeline'] = table('the whole pipeline and other parts of it', t(parts), 'usual')
    grid = dict(coarse=(1,2), fine=(0,1), sigma=(1.,2.), peak=(5,7,9))
    tune = in_turn(dict(one_by_one=lambda: one_by_one(mask, truth, grid), tune_watershed=lambda: tune_watershed([mask], [truth], grid)), 1)
    res['tuning'] = table('tuning over 24 combinations', tune, 'one_by_one')
    keep('watershed', dict(size=list(img.shape[:2]), phantom=not args.image, instances=n, **res), 1)
