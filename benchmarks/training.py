"""Training through fastai's Learner with all our callbacks, beside a bare torch loop with the same network, augmentation, optimiser and batches.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--device cpu] [--size 48] [--batch 32] [--batches 40] [--threads 1] [--rounds 7]

Both train a ResNet-18 for the same epochs and validate after each. The bare loop writes nothing down and looks at no loss; the Learner augments, watches, stops on NaN, records the losses and saves a
checkpoint every epoch. On CUDA both use bfloat16 and channels-last. The two take turns. Prints images/s of each and the ratio.
"""
import argparse, os
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--device', default='cpu')
args.add_argument('--size', type=int, default=48, help='side of the images, px')
args.add_argument('--batch', type=int, default=32, help='images in a batch')
args.add_argument('--batches', type=int, default=40, help='batches in an epoch')
args.add_argument('--epochs', type=int, default=1, help='epochs of one timing')
args.add_argument('--rounds', type=int, default=7, help='timings of each')
args.add_argument('--threads', type=int, default=1)
args = args.parse_args()
os.environ.setdefault('OMP_NUM_THREADS', str(args.threads))

import contextlib, tempfile, warnings
warnings.simplefilter('ignore')
from functools import partial

import fastai, timm, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn

from common import in_turn, keep
from histolab_nb.augment import contrastive_aug
from histolab_nb.core import get_device, set_seed
from histolab_nb.training import Checkpoint, DeviceAugment, Monitor, StopOnNaN, quiet, speedups


class Batches:
    "`n` batches of uint8 images in memory, as a loader would hand them over"
    def __init__(self, n, device):
        pin = device.type=='cuda'
        x = torch.randint(0, 256, (4,args.batch,3,args.size,args.size), dtype=torch.uint8)
        y = torch.randint(0, 2, (4,args.batch))
        self.data,self.n = [(a.pin_memory(),b.pin_memory()) if pin else (a,b) for a,b in zip(x,y)],n
    def __len__(self): return self.n
    def __iter__(self): return (self.data[i%4] for i in range(self.n))
    def to(self, device): pass


def network(): return timm.create_model('resnet18', num_classes=2)
def optimiser(params, **kwargs): return torch.optim.SGD(params, momentum=.9, **kwargs)


def bare(train, valid, device):
    "The loop that a tutorial would write"
    set_seed()
    model,aug,loss_func = network().to(device),contrastive_aug(args.size).to(device),nn.CrossEntropyLoss()
    fast = device.type=='cuda'
    if fast: model.to(memory_format=torch.channels_last)
    auto = partial(torch.autocast, 'cuda', torch.bfloat16) if fast else contextlib.nullcontext
    opt = optimiser(model.parameters(), lr=1e-3)
    def images(x): return x.to(device, non_blocking=True).float().div_(255)
    def run():
        for _ in range(args.epochs):
            model.train()
            for x,y in train:
                with torch.no_grad(): x = aug(images(x))
                with auto(): loss = loss_func(model(x), y.to(device, non_blocking=True))
                loss.backward()
                opt.step()
                opt.zero_grad()
            model.eval()
            total = 0
            with torch.no_grad(), auto():
                for x,y in valid: total += loss_func(model(images(x)), y.to(device, non_blocking=True))
        return float(total)
    return run


def ours(train, valid, device, folder):
    "The same through a Learner"
    set_seed()
    cbs = [DeviceAugment(contrastive_aug(args.size)), Monitor(), StopOnNaN(), *speedups(device), Checkpoint(folder)]
    learn = Learner(DataLoaders(train, valid, device=device), network(), nn.CrossEntropyLoss(), opt_func=partial(OptimWrapper, opt=optimiser), lr=1e-3, cbs=cbs)
    def run():
        with quiet(learn): learn.fit(args.epochs)
    return run


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    set_seed()
    train,valid = Batches(args.batches, device),Batches(max(1, args.batches//8), device)
    with tempfile.TemporaryDirectory() as folder:
        t = in_turn(dict(bare=bare(train, valid, device), learner=ours(train, valid, device, folder)), rounds=args.rounds)
    n = args.epochs*args.batches*args.batch
    share = t['bare']/t['learner']
    print(f'{device}: bare loop {n/t["bare"]:.0f} images/s, Learner with all callbacks {n/t["learner"]:.0f} images/s: {100*share:.1f} %')
    name = torch.cuda.get_device_name(device) if device.type=='cuda' else 'cpu'
    keep('training' if device.type=='cpu' else f'training_{device.type}', dict(device=name, torch=torch.__version__, fastai=fastai.__version__, network='resnet18',
        size=args.size, batch=args.batch, batches=args.batches, epochs=args.epochs, rounds=args.rounds,
        images_per_s=dict(bare=round(n/t['bare'], 1), learner=round(n/t['learner'], 1)), share_of_bare=round(share, 4)), args.threads)
