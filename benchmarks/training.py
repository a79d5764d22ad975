"""Training through fastai's Learner with all our callbacks, beside a bare torch loop with the same network, augmentation, optimiser and batches.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--device cpu] [--size 48] [--batch 32] [--batches 64] [--threads 1] [--rounds 5]

All train a ResNet-18 for the same epochs and validate after each. The bare loop writes nothing down and looks at no loss; the Learner augments, watches, stops on NaN, records the losses and saves a
checkpoint (90 MB) at the start of every epoch and at the end. On CUDA all use bfloat16 and channels-last. They take turns, in a new order every round. Prints images/s (the median), and the speed of the
Learner as a share of the bare loop's in the same round (the median), by the clock and by processor time, with and without checkpoints.
"""
import argparse, os
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--device', default='cpu')
args.add_argument('--size', type=int, default=48, help='side of the images, px')
args.add_argument('--batch', type=int, default=32, help='images in a batch')
args.add_argument('--batches', type=int, default=64, help='batches in an epoch')
args.add_argument('--epochs', type=int, default=1, help='epochs of one timing')
args.add_argument('--rounds', type=int, default=5, help='timings of each')
args.add_argument('--threads', type=int, default=1)
args = args.parse_args()
os.environ.setdefault('OMP_NUM_THREADS', str(args.threads))

import contextlib, tempfile, time, warnings
warnings.simplefilter('ignore')
from functools import partial

import fastai, numpy as np, timm, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn

from common import keep
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


def ours(train, valid, device, *cbs):
    "The same through a Learner"
    set_seed()
    cbs = [DeviceAugment(contrastive_aug(args.size)), Monitor(), StopOnNaN(), *speedups(device), *cbs]
    learn = Learner(DataLoaders(train, valid, device=device), network(), nn.CrossEntropyLoss(), opt_func=partial(OptimWrapper, opt=optimiser), lr=1e-3, cbs=cbs)
    def run():
        with quiet(learn): learn.fit(args.epochs)
    return run


def in_pairs(funcs, rounds):
    "Wall and processor seconds of each function: (rounds, functions, 2). They take turns, so that a busy moment of the machine meets all of them"
    for f in funcs: f()
    res = np.zeros((rounds,len(funcs),2))
    for r in range(rounds):
        for i in np.random.permutation(len(funcs)):
            wall,cpu = time.perf_counter(),time.process_time()
            funcs[i]()
            if args.device!='cpu': torch.cuda.synchronize()
            res[r,i] = time.perf_counter()-wall,time.process_time()-cpu
    return res


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    set_seed()
    train,valid = Batches(args.batches, device),Batches(max(1, args.batches//8), device)
    with tempfile.TemporaryDirectory() as folder:
        t = in_pairs([bare(train, valid, device), ours(train, valid, device, Checkpoint(folder)), ours(train, valid, device)], args.rounds)
    n = args.epochs*args.batches*args.batch
    wall,cpu = np.median(t[:,:1]/t, 0).T
    names = 'bare','all_callbacks','without_checkpoints'
    speed = dict(zip(names, (n/np.median(t[...,0], 0)).round(1).tolist()))
    print(f'{device}: images/s ' + ', '.join(f'{k} {v}' for k,v in speed.items()))
    for what,v in dict(wall=wall, processor=cpu).items(): print(f'share of the bare loop, {what} time: all callbacks {100*v[1]:.1f} %, without checkpoints {100*v[2]:.1f} %')
    name = torch.cuda.get_device_name(device) if device.type=='cuda' else 'cpu'
    facts = dict(device=name, torch=torch.__version__, fastai=fastai.__version__, network='resnet18', **{k:getattr(args, k) for k in ('size','batch','batches','epochs','rounds')})
    shares = {f'share_of_bare_{what}':dict(zip(names[1:], v[1:].round(4).tolist())) for what,v in dict(wall=wall, processor=cpu).items()}
    keep('training' if device.type=='cpu' else f'training_{device.type}', dict(facts, images_per_s=speed, **shares), args.threads)
