"""How long a `SlideViewer` takes on a slide of 100,000 x 100,000 px: the first view, a step aside, a zoom, a change of a layer; with and without layers.

    python benchmarks/viewer.py [side in px]

The layers are a mask, a map of probability, and the outlines of 200,000 nuclei (fewer on a small slide: one in 50 x 50 px). The slide is made up of photographed tissue and written once into a temporary folder (some minutes and 2 GB at full size). Times are of Python's part,
from the question of the browser to the pictures on their way. Beside it the plain way: OpenSlide's own thumbnail for the first view, and
`read_region` at the best level, resized with Pillow and saved as JPEG, for a step. `make browser-test` keeps the whole round of a step in
out/browser/drag.json.
"""
import io, sys, tempfile, time
from pathlib import Path

import numpy as np, openslide
from skimage.data import immunohistochemistry

from common import keep
from histolab_nb.inference import Region
from histolab_nb.slides import Slide, tissue_mask, write_slide
from histolab_nb.viewer import SlideViewer

side = int(sys.argv[1]) if len(sys.argv)>1 else 100_000
steps = 40


def made_up(folder):
    "A slide that is tissue from edge to edge"
    a = immunohistochemistry()
    wide = np.tile(np.block([[[a],[a[:,::-1]]], [[a[::-1]],[a[::-1,::-1]]]]), (3,3,1))
    n = a.shape[0]*2
    def block(x, y, w, h): return np.tile(wide[y%n:y%n+h, x%n:x%n+n], (1,w//n+1,1))[:,:w]
    return write_slide(block, Path(folder)/'large.tif', mpp=.25, dims=(side,side), block=1024, progress=True)


def nuclei(n, rng):
    "Outlines of as many nuclei"
    t = np.linspace(0, 2*np.pi, 13)
    ring = np.stack([np.cos(t), np.sin(t)], 1)*16
    return [Region(1, [ring+p]) for p in rng.uniform(0, side, (n,2))]


def timed(f, *args):
    start = time.perf_counter()
    f(*args)
    return time.perf_counter()-start


def first(path):
    "From the path to the first frame"
    v = SlideViewer(path)
    v._heard(v.screen, dict(kind='ready'), [])


def asked(v, x, y, s): v._heard(v.screen, dict(kind='view', x=x, y=y, s=s), [])


def walk(rng, s):
    "Views one after the other, a quarter of the screen apart"
    x,y = rng.uniform(.2, .8, 2)*side
    return [(x+180*s*i, y+50*s*i, s) for i in range(4)]


def plain_step(osr, x, y, s, w=720, h=440):
    k = osr.get_best_level_for_downsample(s)
    d = osr.level_downsamples[k]
    im = osr.read_region((int(x),int(y)), k, (round(w*s/d),round(h*s/d))).convert('RGB').resize((w,h))
    im.save(io.BytesIO(), 'jpeg', quality=82)


def plain_first(path):
    with openslide.OpenSlide(path) as osr: osr.get_thumbnail((720,440)).save(io.BytesIO(), 'jpeg', quality=82)


def ms(seconds): return dict(median=round(1000*float(np.median(seconds)), 1), worst=round(1000*max(seconds), 1))


def main():
    rng,res = np.random.default_rng(0),{}
    with tempfile.TemporaryDirectory() as folder:
        path = made_up(folder)
        res['first view'] = ms([timed(first, path) for _ in range(5)])
        res['first view, OpenSlide'] = ms([timed(plain_first, path) for _ in range(5)])
        slide = Slide(path)
        layers = dict(tissue=np.ones((2000,2000), bool), probability=rng.random((2000,2000)), nuclei=nuclei(min(200_000, side**2//2500), rng))
        bare,full = SlideViewer(slide),SlideViewer(slide, layers)
        views = [o for s in 2.**rng.uniform(-1, 6, steps//4) for o in walk(rng, s)]
        with openslide.OpenSlide(path) as osr: plain = [timed(plain_step, osr, *o) for o in views]
        res['step'],res['step, 3 layers'] = (ms([timed(asked, v, *o) for o in views]) for v in (bare, full))
        res['step, OpenSlide'] = ms(plain)
        res['opacity of a layer'] = ms([timed(lambda o: setattr(full.switches.children[0].children[1], 'value', o), o) for o in (.1,.3,.6,.8,.2)])
        res['tissue mask, for comparison'] = ms([timed(tissue_mask, slide)])
    for k,v in res.items(): print(f'{k:<32}{v["median"]:9.1f} ms, worst {v["worst"]:9.1f}')
    keep('viewer', dict(side=side, milliseconds=res), threads=1)


if __name__=='__main__': main()
