"""The gland proposal: what does the first stage cost beside the same network run image by image in a bare loop?

    python benchmarks/glands.py [--scale small|paper] [--device cpu] [--images 4] [--steps 10] [--side 256] [--rounds 5] [--threads 2] [--quick]

The bare loop is what a tutorial would write: one network, one image, cross-entropy to the argmax, mean absolute differences, SGD, K-means at the end, then the next image, with all threads inside of torch.
`stage_one` runs an image on each core, or many images in one grouped network on a GPU. Both train for as many steps and cluster; that they find the same clusters, up to rounding, is checked first.

Both take turns, in a new order every round. Printed are seconds an image, and the ratio of the same round: median, lowest and highest. `--quick` tries whether everything runs and keeps nothing.
"""
import argparse
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--scale', default='small', choices=['tiny','small','paper'])
args.add_argument('--device', help='the best there is by default')
args.add_argument('--images', type=int, default=4)
args.add_argument('--steps', type=int, default=10, help='of the training on an image; the ratio hardly depends on it')
args.add_argument('--side', type=int, default=256, help='of the images, px')
args.add_argument('--rounds', type=int, default=5, help='timings of each')
args.add_argument('--threads', type=int, default=2)
args.add_argument('--quick', action='store_true', help='two small images, once')
args = args.parse_args()

import warnings
warnings.simplefilter('ignore')
from dataclasses import replace

import numpy as np, psutil, torch
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn import functional as F

from common import in_rounds, keep, ratio
from histolab_nb.core import get_device, set_seed
from histolab_nb.glands import GlandRecipe, cluster_responses, phantom_glands, stage_one


def bare(images, r, device):
    "One network after the other"
    res = []
    for image in images:
        set_seed(r.seed)
        convs = [nn.Conv2d(i, r.channels, 3, padding=1) for i in [3]+[r.channels]*(r.layers-1)]
        last = nn.Conv2d(r.channels, r.channels, 1)
        net = nn.Sequential(*[o for conv in convs for o in (conv, nn.ReLU(), nn.BatchNorm2d(r.channels))], last, nn.BatchNorm2d(r.channels)).to(device)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float().to(device)/255
        opt = torch.optim.SGD(net.parameters(), lr=r.rate, momentum=r.momentum)
        for _ in range(r.steps):
            y = net(x)
            near = (y[:,:,1:]-y[:,:,:-1]).abs().mean()+(y[...,1:]-y[...,:-1]).abs().mean()
            opt.zero_grad()
            (F.cross_entropy(y, y.argmax(1))+r.spatial*near).backward()
            opt.step()
        with torch.no_grad(): res.append(cluster_responses(net(x)[0], r))
    return res


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    if args.quick: args.images,args.steps,args.side,args.rounds = 2,2,64,1
    r = replace(GlandRecipe.at(args.scale), steps=args.steps)
    images = [s.image for s in phantom_glands(args.images, args.side)]
    ways = dict(bare=lambda: bare(images, r, device), stage_one=lambda: stage_one(images, r, device=device))
    same = [adjusted_rand_score(a.ravel(), b.ravel()) for a,b in zip(*(f() for f in ways.values()))]
    assert args.quick or np.median(same)>.9, f'the clusters differ: {same}'
    t = {k:v/args.images for k,v in in_rounds(ways, args.rounds, device).items()}
    faster = ratio(t['bare'], t['stage_one'])
    print(f'{device}, {args.threads} threads, {args.images} images of {args.side} px, {r.channels} channels, {args.steps} steps, load of the machine {psutil.getloadavg()[0]:.1f}')
    print('seconds an image: '+', '.join(f'{k} {np.median(v):.2f}' for k,v in t.items()))
    print(f'stage_one is {faster["median"]:.2f} times as fast as the bare loop ({faster["low"]:.2f} to {faster["high"]:.2f}); agreement of the clusters (adjusted Rand index, median) {np.median(same):.3f}')
    name = torch.cuda.get_device_name(device) if device.type=='cuda' else str(device)
    facts = dict(device=name, torch=torch.__version__, images=args.images, steps=args.steps, side=args.side, rounds=args.rounds, faster=faster)
    facts |= dict(load=round(psutil.getloadavg()[0], 1), recipe=r.to_dict(), agreement=[round(o, 4) for o in same])
    facts |= dict(seconds_an_image={k:round(float(np.median(v)), 3) for k,v in t.items()})
    if not args.quick: keep('glands' if device.type=='cpu' else f'glands_{device.type}', facts, args.threads)
