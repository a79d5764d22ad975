"""Macenko normalisation: fitted once and applied with a table and a matrix, beside torchstain, which fits every tile.

    pip install torchstain
    OMP_NUM_THREADS=1 python benchmarks/macenko.py

Both run on one thread. Prints milliseconds a tile and the ratios, and in how far the two agree when they use the same dyes.
"""
import argparse, os
os.environ.setdefault('OMP_NUM_THREADS', '1')

from importlib.metadata import version

import numpy as np, torch, torchstain
from scipy.ndimage import gaussian_filter

from common import in_turn, keep
from histolab_nb.stain import HE_MATRIX, Macenko, od2rgb, stain_angles

sizes = 256,512,1000


def tissue(size, seed=0):
    "Made-up H&E: nuclei of haematoxylin in a cloudy ground of eosin, some glass, the noise of a camera"
    rng = np.random.default_rng(seed)
    def cloud(sigma):
        res = gaussian_filter(rng.normal(size=(size,size)), sigma, mode='wrap')
        return (res-res.mean())/res.std()
    nuclei,glass = cloud(3)>1.2,cloud(18)>1
    amounts = np.stack([nuclei*(1.4+0.3*cloud(1)), ~nuclei*(0.7+0.2*cloud(2))], -1).clip(0)*~glass[...,None]
    img = od2rgb(gaussian_filter(amounts, (0.5,0.5,0))@HE_MATRIX)
    return np.clip(img+rng.normal(0, 2, img.shape), 0, 255).astype(np.uint8)


def timings(size):
    "Seconds a tile of each way"
    img = tissue(size)
    chw = torch.from_numpy(img.transpose(2,0,1).copy())
    theirs_np,theirs_pt = (torchstain.normalizers.MacenkoNormalizer(backend=o) for o in ('numpy','torch'))
    once = Macenko().fit(img)
    return in_turn({'torchstain numpy':lambda: theirs_np.normalize(img, stains=False), 'torchstain torch':lambda: theirs_pt.normalize(chw, stains=False),
        'fit once':lambda: once.transform(img), 'fit every tile':lambda: Macenko().fit(img).transform(img)})


def agreement(size=512):
    "Dyes and grey levels of the two, given the same rules and then the same dyes"
    img = tissue(size)
    fitted = torchstain.normalizers.MacenkoNormalizer(backend='numpy')
    fitted.fit(img)
    ours = Macenko(keep='all', centre=True).fit(img)
    angles = stain_angles(ours.matrix, fitted.HERef.T)
    ours.matrix,ours.max_c = fitted.HERef.T,fitted.maxCRef
    theirs,_,_ = torchstain.normalizers.MacenkoNormalizer(backend='numpy').normalize(img, stains=False)
    diff = theirs.astype(int)-ours.transform(img)
    return dict(angle_between_dyes_degrees=angles.max(), grey_level_difference_mean=diff.mean(),
        grey_level_difference_min=int(diff.min()), grey_level_difference_max=int(diff.max()))


if __name__=='__main__':
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in sizes:
        t = timings(size)
        ratios = {k:round(t[k]/t['fit once'], 1) for k in t if k!='fit once'}
        rows.append(dict(size=size, milliseconds={k:round(1000*v, 3) for k,v in t.items()}, times_slower_than_fit_once=ratios))
        print(f'{size:5d} px  '+'  '.join(f'{k} {1000*v:.2f} ms' for k,v in t.items()))
        print(f'          fit once is quicker than torchstain numpy {ratios["torchstain numpy"]}x, torch {ratios["torchstain torch"]}x')
    same = agreement()
    print('same rules: dyes differ by {angle_between_dyes_degrees:.4f} degrees; same dyes: torchstain minus ours {grey_level_difference_min} to '
        '{grey_level_difference_max} grey levels, mean {grey_level_difference_mean:.2f}'.format(**same))
    keep('macenko', dict(torchstain=version('torchstain'), sizes=rows, agreement=same))
