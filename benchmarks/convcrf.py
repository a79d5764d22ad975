"""ConvCRF: shifts along a line, beside the usual unfold (im2col) and beside shifts whose kernels are kept.

    python benchmarks/convcrf.py                # on the GPU if there is one
    python benchmarks/convcrf.py --device cpu

On the CPU all ways run on one thread (ConvCRF never uses more), and the largest case once more with unfold on all cores.
Every timing has a fresh process of its own and the ways take turns. The memory is the highest that the process (on CUDA: the allocator) ever held, minus what it
held just before the first run: inputs, torch and a warm-up on a small image are not counted. All three compute the same map, which is checked.
"""
import argparse, json, os, resource, subprocess, sys, tempfile, time

import numpy as np, psutil, torch, torch.nn.functional as F

from common import keep
from histolab_nb.postprocess import *
from histolab_nb.postprocess import _kernel, _pairs


class UnfoldCRF(ConvCRF):
    "The window of every pixel copied into a row: kernels once, then one im2col a message. In place where no gradient is asked for"
    logits = ConvCRF.logits.__wrapped__ # on all threads that torch is given

    def cols(self, x): return F.unfold(x, 2*self.span+1, padding=self.span).view(*x.shape[:2], -1, x.shape[2]*x.shape[3])

    def prepare(self, prob, image):
        prob,line = super().prepare(prob, image)
        h,w = coarse(prob[:1,:1], self.blur).shape[-2:]
        f = unflatten_map(line, (len(prob),3,h,w), self.span)
        inplace = not torch.is_grad_enabled()
        d = self.cols(f)
        own = f.flatten(2).unsqueeze(2)
        d = (d.sub_(own).square_() if inplace else (d-own).square()).sum(1)
        k = d.mul_(-0.5).exp_() if inplace else d.mul(-0.5).exp()
        del d
        gap = torch.arange(-self.span, self.span+1, device=f.device)*self.blur
        gy,gx = torch.exp(-0.5*(gap/self.log_theta_pos.exp()[:,None])**2)
        near,(w_pos,w_col) = (gy[:,None]*gx).view(1, -1, 1),self.log_w.exp()
        k = k.mul_(w_col).add_(w_pos*near) if inplace else w_col*k + w_pos*near
        return prob,k.unsqueeze(1)

    def message(self, q, kernel):
        small = coarse(q, self.blur)
        c = self.cols(small)
        res = (c.mul_(kernel) if not torch.is_grad_enabled() else c*kernel).sum(2).view_as(small)
        return fine(res, self.blur, q.shape[-2:])


class KeptCRF(ConvCRF):
    "As ConvCRF, with the kernels of half the window kept over the iterations; without gradient only"
    def prepare(self, prob, image):
        prob,line = super().prepare(prob, image)
        width = coarse(prob[:1,:1], self.blur).shape[-1]
        self.pairs = list(_pairs(line, half_window(self.span, width+self.span)))
        return prob,[_kernel(line, a, b)[0] for a,b in self.pairs]

    def message(self, q, kernels):
        small = coarse(q, self.blur)
        line = flatten_map(small, self.span)
        res = line.clone()
        for (a,b),k in zip(self.pairs, kernels):
            for r,o in zip(res, line): r[a].addcmul_(k, o[b]), r[b].addcmul_(k, o[a])
        w_pos,w_col = self.log_w.exp()
        pos = position_message(small, self.log_theta_pos.exp(), self.span, self.blur)
        return fine(w_pos*pos + w_col*unflatten_map(res, small.shape, self.span), self.blur, q.shape[-2:])


ways = dict(unfold=UnfoldCRF, kept=KeptCRF, convcrf=ConvCRF)


def made_up(size, device, seed=0):
    "A noisy patchy map (1,2,H,W) and its image (1,3,H,W): two shades of pink with texture"
    rng = torch.Generator().manual_seed(seed)
    def cloud(n): return F.interpolate(torch.randn(1, 1, n, n, generator=rng), (size,size), mode='bicubic')
    truth = (cloud(6)>0).float()
    dye = 14*truth + 6*cloud(size//3) + 4*torch.randn(1, 3, size, size, generator=rng)
    image = (torch.tensor([215.,150.,190.]).view(1,3,1,1) - dye*torch.tensor([2.,1.2,.6]).view(1,3,1,1)).clamp(0, 255)
    p = F.interpolate(F.avg_pool2d(truth, 16)*.7+.15 + .25*torch.randn(1, 1, size//16, size//16, generator=rng), (size,size)).clamp(.02, .98)
    return torch.cat([1-p, p], 1).to(device),image.to(device)


def run_one(way, size, blur, train, device, out):
    "In a process of its own: seconds a run, peak memory in MB, and the map"
    def sync(): torch.cuda.synchronize() if device=='cuda' else None
    crf = ways[way](blur=blur).to(device)
    def once(prob, image):
        with torch.set_grad_enabled(train):
            x = crf.logits(prob, image)
            if train:
                crf.zero_grad()
                x[:,1].sigmoid().mean().backward()
        sync()
        return x.detach().softmax(1)
    once(*made_up(64, device))
    data = made_up(size, device)
    if device=='cuda': torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device=='cuda' else psutil.Process().memory_info().rss
    res = once(*data)
    peak = torch.cuda.max_memory_allocated() if device=='cuda' else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform=='darwin' else 1024)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        once(*data)
        times.append(time.perf_counter()-start)
    grads = [p.grad.tolist() for p in crf.parameters()] if train else []
    np.save(out, res.cpu().numpy())
    print(json.dumps(dict(seconds=float(np.median(times)), megabytes=(peak-before)/2**20, grads=grads)))


def compare(size, blur, train, threads, args, folder):
    "The ways in turn, `args.rounds` fresh processes each: a row of the table"
    rows,names = {},list(ways) if threads==1 and not train else ['unfold', 'convcrf']
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    for i in range(args.rounds):
        for way in names:
            cmd = [sys.executable, __file__, '--one', way, '--size', str(size), '--blur', str(blur), '--device', args.device, '--out', f'{folder}/{way}.npy'] + ['--train']*train
            res = subprocess.run(cmd, env=env, capture_output=True, text=True)
            if res.returncode: sys.exit(f'{way} failed:\n{res.stderr}')
            rows.setdefault(way, []).append(json.loads(res.stdout.splitlines()[-1]))
    maps = {w:np.load(f'{folder}/{w}.npy') for w in names}
    worst = max(float(np.abs(maps[w]-maps['unfold']).max()) for w in names)
    flipped = max(float(((maps[w]>.5)!=(maps['unfold']>.5)).mean()) for w in names)
    med = {w:{k:float(np.median([o[k] for o in rows[w]])) for k in ('seconds','megabytes')} for w in names}
    def ratio(k, w): return [a[k]/b[k] for a,b in zip(rows['unfold'], rows[w])]
    row = dict(size=size, blur=blur, train=train, threads=threads, **{w:{k:round(v, 4) for k,v in med[w].items()} for w in names}, largest_difference=worst,
        share_of_pixels_that_flip=flipped, times_quicker_than_unfold={w:round(float(np.median(ratio('seconds', w))), 2) for w in names[1:]},
        times_quicker_each_round=[round(o, 2) for o in ratio('seconds', 'convcrf')],
        times_less_memory_than_unfold={w:round(float(np.median(ratio('megabytes', w))), 1) for w in names[1:]})
    if train:
        g = [np.concatenate([np.ravel(o) for o in rows[w][0]['grads']]) for w in names]
        row['largest_relative_difference_of_gradients'] = float(np.abs(g[0]-g[1]).max()/np.abs(g[0]).max())
    print(f'{size} px, blur {blur}{", with gradient" if train else ""}, {threads} threads: ' + '; '.join(f'{w} {med[w]["seconds"]:.3f} s, {med[w]["megabytes"]:.0f} MB' for w in names))
    print(f'    convcrf is {row["times_quicker_than_unfold"]["convcrf"]}x as quick as unfold with 1/{row["times_less_memory_than_unfold"]["convcrf"]} of its memory; '
        f'maps differ by {worst:.1e} at most, {flipped:.1e} of the pixels flip', flush=True)
    return row


if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=3)
    for k in ('one','out'): parser.add_argument(f'--{k}', help=argparse.SUPPRESS)
    for k in ('size','blur'): parser.add_argument(f'--{k}', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--train', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: run_one(args.one, args.size, args.blur, args.train, args.device, args.out)
    else:
        cases = [(1024,1,False,1), (1024,4,False,1), (512,1,True,1)] + [(1024,1,False,os.cpu_count())]*(args.device=='cpu')
        with tempfile.TemporaryDirectory() as folder: rows = [compare(*o, args, folder) for o in cases]
        device = torch.cuda.get_device_name() if args.device=='cuda' else 'cpu'
        keep('convcrf' if args.device=='cpu' else f'convcrf_{args.device}', dict(device=device, torch=torch.__version__, filter_size=11, iterations=5, classes=2, rows=rows), 1)
