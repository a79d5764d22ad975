"""Augmentations of a batch, beside those of kornia with the same settings, and beside the training step that they feed.

    OMP_NUM_THREADS=1 python benchmarks/augment.py [--size 96] [--batch 64] [--device cpu] [--threads 1]

Images of the given size in, images of the same size out. Prints images/s of each augmentation and of the whole chain, and the ratios.
"""
import argparse, os
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--size', type=int, default=96, help='side of the images, px')
args.add_argument('--batch', type=int, default=64, help='images in a batch')
args.add_argument('--device', default='cpu')
args.add_argument('--threads', type=int, default=1)
args = args.parse_args()
os.environ.setdefault('OMP_NUM_THREADS', str(args.threads))

import kornia, timm, torch
import kornia.augmentation as K
from torch import nn

from common import in_turn, keep
from histolab_nb.augment import Blur, ColourDrop, ColourJitter, Crop, Cutout, Flip, HEJitter, Sobel, contrastive_aug
from histolab_nb.core import get_device, set_seed

s,r = 0.6,(3/4,4/3) # jitter strength, ratio of the sides of a crop
sigma = 0.1,max(0.1, args.size/112)
k = 2*int(-(-3*sigma[1]//1))+1 # side of kornia's blur kernel: as far as ours reaches


def pairs(size):
    "Name: (ours, kornia's)"
    theirs = dict(crop=K.RandomResizedCrop((size,size), scale=(0.2,1.), ratio=r), flip=nn.Sequential(K.RandomHorizontalFlip(), K.RandomVerticalFlip()),
        jitter=K.ColorJitter(0.8*s, 0.8*s, 0.8*s, 0.2*s, p=0.8), grey=K.RandomGrayscale(p=0.2),
        blur=K.RandomGaussianBlur((k,k), sigma, p=0.5), cutout=K.RandomErasing(scale=(0.02,0.2), ratio=(0.5,2.), p=0.5))
    ours = dict(crop=Crop(size, ratio=r), flip=Flip(), jitter=ColourJitter(0.8*s, 0.8*s, 0.8*s, 0.2*s), grey=ColourDrop(), blur=Blur(sigma), cutout=Cutout())
    res = {n:(ours[n],theirs[n]) for n in ours}
    return res | dict(chain=(contrastive_aug(size), nn.Sequential(*theirs.values())))


def step_of(net, x):
    "One training step of a network on `x`"
    net = net.to(x.device).train()
    def f():
        net.zero_grad()
        net(x).square().mean().backward()
    return f


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    set_seed()
    x = torch.rand(args.batch, 3, args.size, args.size, device=device)
    def timed(f):
        def call():
            f(x)
            if device.type=='cuda': torch.cuda.synchronize()
        return call
    rows = []
    for name,(ours,theirs) in pairs(args.size).items():
        t = in_turn(dict(ours=timed(ours), kornia=timed(theirs)), rounds=7)
        a,b = (args.batch/t[o] for o in ('ours','kornia'))
        rows.append(dict(augmentation=name, images_per_s=dict(ours=round(a), kornia=round(b)), times_quicker=round(a/b, 1)))
        print(f'{name:8s} {a:9.0f} images/s, kornia {b:9.0f} images/s: {a/b:.1f} times')
    chain = contrastive_aug(args.size)
    alone = dict(he=HEJitter(), sobel=Sobel())
    net = step_of(timm.create_model('resnet18', num_classes=0), x)
    t = in_turn(dict(chain=timed(chain), step=timed(lambda _: net()), **{n:timed(f) for n,f in alone.items()}), rounds=5)
    for n in alone: print(f'{n:8s} {args.batch/t[n]:9.0f} images/s')
    share = t['chain']/t['step']
    print(f'the chain takes {100*share:.1f} % of the time of a training step of a ResNet-18')
    keep('augment', dict(kornia=kornia.__version__, torch=torch.__version__, device=str(device), size=args.size, batch=args.batch, against_kornia=rows,
        images_per_s={n:round(args.batch/t[n]) for n in alone}, chain_share_of_resnet18_step=round(share, 4)), args.threads)
