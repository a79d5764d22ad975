"""The instance-aware paper: does the device wait for triplets, and what does a Learner cost beside a bare torch loop?

    OMP_NUM_THREADS=1 python benchmarks/instance_ssl.py [--scale small|paper] [--device cpu] [--batches 3] [--rounds 5] [--threads 1] [--quick]

Pretext: patches/s that the loader delivers; that loader and `Triplets` deliver together; that encoder, head and loss take in on a batch that lies ready (forward, backward, step of the optimiser); and those of
the real training, its validation left out. The device is *busy* for the share of the training's time that the network alone would need; for the rest it waits, cuts patches or runs callbacks. On a CPU cutting
and network share the processor, so nothing really waits there.

Target: a ResUNet through `issl_learner`, with and without checkpoints, beside a bare loop with the same network, batches, augmentation, loss, optimiser (fastai's Adam) and validation, and beside that loop with
torch's AdamW. Goal: 95 % of the first. On CUDA all use bfloat16 and channels-last.

All take turns, in a new order every round. Printed are medians, and the ratios of the same round: median, lowest and highest. `--quick` tries whether everything runs and keeps nothing.
"""
import argparse, os
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--scale', default='small', choices=['tiny','small','paper'])
args.add_argument('--device', help='the best there is by default')
args.add_argument('--batches', type=int, default=3, help='batches of one timing')
args.add_argument('--rounds', type=int, default=5, help='timings of each')
args.add_argument('--threads', type=int, default=1)
args.add_argument('--quick', action='store_true', help='a very small network, once')
args = args.parse_args()
os.environ.setdefault('OMP_NUM_THREADS', str(args.threads))

import contextlib, tempfile, warnings
warnings.simplefilter('ignore')
from dataclasses import replace
from functools import partial

import fastai, numpy as np, psutil, torch
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam

from common import in_rounds, keep, ratio
from histolab_nb import instance_ssl
from histolab_nb.augment import HEJitter
from histolab_nb.core import get_device, set_seed
from histolab_nb.instance_ssl import InstanceRecipe, ResUNet, issl_dls, issl_learner, pretext_learner
from histolab_nb.phantom import phantom_nuclei
from histolab_nb.training import as_batch, quiet


def fast(model, device):
    "The network as `speedups` would have it, and the context it runs in"
    cuda = device.type=='cuda'
    auto = partial(torch.autocast, 'cuda', torch.bfloat16) if cuda else contextlib.nullcontext
    return model.to(device, memory_format=torch.channels_last if cuda else torch.preserve_format),auto


def pretext(r, samples, device):
    "Patches/s of loader, task, network and training"
    learn = pretext_learner('SSL', samples, samples, r)
    task,loss_func = learn.device_augment.aug.to(device),learn.loss_func
    net,auto = fast(learn.model, device)
    opt = Adam(net.parameters(), lr=r.lr, wd=r.wd)
    ready,_ = task(as_batch(next(iter(learn.dls.train))[0], device))
    def loader():
        for o in learn.dls.train: pass
    def triplets():
        for x,_ in learn.dls.train: task(as_batch(x, device))
    def network():
        net.train()
        for _ in range(r.batches):
            with auto(): loss = loss_func(net(ready))
            loss.backward()
            opt.step()
            opt.zero_grad()
    def training():
        with quiet(learn): learn.fit(1)
        return learn.monitor.table.seconds.sum()
    t = in_rounds(dict(loader=loader, triplets=triplets, network=network, training=training), args.rounds, device)
    n = 3*r.batches*r.batch_size
    busy = ratio(t['network'], t['training'])
    waits = {k:round(1-busy[o], 4) for k,o in dict(median='median', low='high', high='low').items()}
    return dict(patches_per_s={k:round(n/float(np.median(v)), 1) for k,v in t.items()}, busy=busy, waits=waits, delivered_per_needed=ratio(t['network'], t['triplets']))


def bare(dls, r, make_opt, device):
    "The loop that a tutorial would write"
    set_seed(r.seed)
    model,auto = fast(ResUNet(r), device)
    aug,weight = HEJitter(r.stain_jitter, r.stain_shift).to(device),torch.tensor([1.,1.,r.boundary_weight], device=device)
    loss_func = CrossEntropyLossFlat(axis=1, weight=weight)
    opt = make_opt(list(model.parameters()))
    def run():
        model.train()
        for x,y in dls.train:
            with torch.no_grad(): x = aug(as_batch(x))
            with auto(): loss = loss_func(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
        model.eval()
        losses,both,sizes = [],np.zeros(3),np.zeros(3)
        with torch.no_grad(), auto():
            for x,y in dls.valid:
                out = model(as_batch(x))
                losses.append(float(loss_func(out, y)))
                p,y = out.argmax(1).flatten().cpu(),y.flatten().cpu()
                both += torch.bincount(y[p==y], minlength=3).numpy()
                sizes += (torch.bincount(p, minlength=3)+torch.bincount(y, minlength=3)).numpy()
        run.seen = np.mean(losses),np.nanmean(2*both/sizes)
    return run


def ours(dls, r, folder=None):
    "The same through a Learner"
    learn = issl_learner(dls, r, folder=folder)
    def run():
        with quiet(learn): learn.fit(1)
        run.seen = learn.recorder.values[-1][1:]
    return run


def agreement(*runs):
    "Validation loss and Dice of each after the same batches; `AssertionError` if the loops do not train alike"
    for f in runs:
        set_seed(1)
        f()
    a,b = (f.seen for f in runs)
    assert np.allclose(a, b, rtol=.02, atol=.02), f'validation loss and Dice: {a} and {b}'
    return dict(loss=[float(o[0]) for o in (a,b)], dice=[float(o[1]) for o in (a,b)])


def target(r, samples, device):
    "Crops/s of the Learner and of bare loops"
    dls = issl_dls(samples, r, samples, device)
    adam,adamw = partial(Adam, lr=r.fit_lr, wd=r.wd),partial(torch.optim.AdamW, lr=r.fit_lr, weight_decay=r.wd)
    same = agreement(bare(dls, r, adam, device), ours(dls, r))
    with tempfile.TemporaryDirectory() as folder:
        ways = dict(bare=bare(dls, r, adam, device), bare_adamw=bare(dls, r, adamw, device), learner=ours(dls, r), checkpoints=ours(dls, r, folder))
        t = in_rounds(ways, args.rounds, device)
    n = r.fit_batches*r.fit_batch_size
    return dict(agreement=same, crops_per_s={k:round(n/float(np.median(v)), 1) for k,v in t.items()}, share_of_bare={k:ratio(t['bare'], t[k]) for k in ('learner','checkpoints')},
        share_of_bare_adamw={k:ratio(t['bare_adamw'], t[k]) for k in ('learner','checkpoints')})


def percent(q): return f'{100*q["median"]:.1f} % ({100*q["low"]:.1f} to {100*q["high"]:.1f})'


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    instance_ssl.get_device = lambda: device
    r = replace(InstanceRecipe.at(args.scale), batches=args.batches, fit_batches=args.batches)
    if args.quick:
        r = replace(r, encoder='resnet10t', window=80, size=64, crop=64, decoder=(8,8,8,8,8), batches=2, batch_size=2, fit_batches=2, fit_batch_size=2)
        args.rounds = 1
    samples = phantom_nuclei(2, max(r.window, r.crop)*r.shrink+40)
    p,t = pretext(r, samples, device),target(r, samples, device)
    print(f'{device}, {r.encoder}, {args.rounds} rounds of {r.batches} batches, load of the machine {psutil.getloadavg()[0]:.1f}')
    print('pretext, patches/s: '+', '.join(f'{k} {v}' for k,v in p['patches_per_s'].items()))
    print(f'the device is busy {percent(p["busy"])} of the time and waits {percent(p["waits"])}; loader and task deliver {p["delivered_per_needed"]["median"]:.1f} times what the network takes in')
    print('target, crops/s: '+', '.join(f'{k} {v}' for k,v in t['crops_per_s'].items()))
    for k,v in t['share_of_bare'].items(): print(f'share of the bare loop, {k}: {percent(v)}; with torch\'s AdamW in the loop: {percent(t["share_of_bare_adamw"][k])}')
    name = torch.cuda.get_device_name(device) if device.type=='cuda' else str(device)
    facts = dict(device=name, torch=torch.__version__, fastai=fastai.__version__, scale=args.scale, rounds=args.rounds)
    facts |= dict(load=round(psutil.getloadavg()[0], 1), recipe=r.to_dict())
    if not args.quick: keep('instance_ssl' if device.type=='cpu' else f'instance_ssl_{device.type}', dict(facts, pretext=p, target=t), args.threads)
