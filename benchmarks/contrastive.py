"""Contrastive training on a CPU or a GPU: what does a step cost, and how should a CPU be divided?

    python benchmarks/contrastive.py [--scale tiny|small|paper] [--device cpu] [--steps 6] [--rounds 7] [--threads 2] [--quick]

Three questions of the DCLR notebook. What does a step of MoCo cost beside one of DCLR, with the same encoder, views and batch? What do channels-last weights gain? And, on a CPU: how many steps do
as many processes of one thread as there are threads get done, beside one process with all of them (`dclr_grid` runs its rows that way)?

All take turns, in a new order every round. Printed are milliseconds a step, and the ratio of the same round: median, lowest and highest. `--quick` tries whether everything runs and keeps nothing.
"""
import argparse
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--scale', default='tiny', choices=['tiny','small','paper'])
args.add_argument('--device', help='the best there is by default')
args.add_argument('--steps', type=int, default=6, help='of a timing')
args.add_argument('--rounds', type=int, default=7, help='timings of each')
args.add_argument('--threads', type=int, default=2)
args.add_argument('--quick', action='store_true', help='one step, once')
args = args.parse_args()

import multiprocessing, threading, time, warnings
warnings.simplefilter('ignore')

import numpy as np, torch

from common import in_rounds, keep, ratio
from histolab_nb.core import get_device
from histolab_nb.dclr import DCLR, DclrRecipe, MoCo, NTXent, dclr_aug, info_nce, method_recipe


class Step:
    "A training step of a method on random patches, outside of a learner"
    def __init__(self, method, scale, device, channels_last=True):
        self.recipe = r = method_recipe(method, DclrRecipe.at(scale), views=False)
        self.model,self.aug,self.device = DCLR(r).to(device),dclr_aug(r).to(device),device
        if channels_last: self.model.to(memory_format=torch.channels_last)
        self.opt = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=r.momentum)
        self.x = torch.rand(r.batch_size, 3, r.input, r.input, device=device)
        self.moco = None
        if r.method.startswith('MoCo'):
            self.moco = MoCo(r)
            self.moco.learn = self
            self.dls,self.lock = self,threading.Lock()
            self.moco.before_fit()

    def __call__(self):
        x = self.aug(self.x)
        if self.moco is None: loss = NTXent(self.recipe.tau)(self.model(x))
        else:
            queries,second = x.chunk(2)
            self.moco.follow()
            keys = self.moco.make_keys(second)
            loss = info_nce(self.model(queries), keys, self.moco.queue, self.recipe.tau)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        if self.moco: self.moco.push(keys)


def many(step, n):
    for _ in range(n): step()


def worker(pipe, scale):
    "A process of one thread that makes steps when it is asked to"
    torch.set_num_threads(1)
    step = Step('DCLR', scale, torch.device('cpu'))
    for n in iter(pipe.recv, 0):
        many(step, n)
        pipe.send(n)


class Crew:
    "As many processes as there are threads"
    def __init__(self, n, scale):
        ctx = multiprocessing.get_context('spawn')
        pairs = [ctx.Pipe() for _ in range(n)]
        self.pipes,self.team = [a for a,_ in pairs],[ctx.Process(target=worker, args=(b, scale), daemon=True) for _,b in pairs]
        for p in self.team: p.start()

    def __call__(self, steps):
        "Seconds for so many steps, all processes together"
        start = time.perf_counter()
        for p in self.pipes: p.send(steps)
        for p in self.pipes: p.recv()
        return (time.perf_counter()-start)/len(self.pipes)

    def close(self):
        for p in self.pipes: p.send(0)
        for p in self.team: p.join()


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    if args.quick: args.steps,args.rounds = 1,1
    plain = Step('DCLR', args.scale, device, channels_last=False)
    funcs = {'DCLR': Step('DCLR', args.scale, device), 'MoCo-v2': Step('MoCo-v2', args.scale, device), 'contiguous': plain}
    runs = {k:(lambda f=f: many(f, args.steps)) for k,f in funcs.items()}
    crew = Crew(args.threads, args.scale) if device.type=='cpu' else None
    if crew: runs['processes'] = lambda: crew(args.steps)
    times = in_rounds(runs, args.rounds, device)
    if crew: crew.close()

    ms = {k:round(1000*float(np.median(v))/args.steps, 1) for k,v in times.items()}
    ratios = {f'DCLR / {k}' if k!='contiguous' else 'contiguous / DCLR': ratio(*((times['DCLR'],v) if k!='contiguous' else (v,times['DCLR']))) for k,v in times.items() if k!='DCLR'}
    for k,v in ms.items(): print(f'{k:<12} {v:8.1f} ms a step')
    for k,v in ratios.items(): print(f'{k:<20} {v["median"]:.2f} times [{v["low"]:.2f}, {v["high"]:.2f}]')
    r = funcs['DCLR'].recipe
    facts = dict(device=str(device), scale=args.scale, batch=r.batch_size, view=r.view, width=r.width, steps=args.steps, rounds=args.rounds)
    if not args.quick: keep('contrastive', facts | dict(ms=ms, ratios=ratios), args.threads)
