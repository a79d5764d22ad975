"""U-Net# beside U-Net++ and the other networks of its protocol: images/s forward and in training, and the memory that a batch of 8 keeps.

    python benchmarks/unet_sharp.py [--encoder resnet18] [--width 16] [--size 128] [--batch 8] [--rounds 5] [--device cpu] [--threads 2] [--quick]

All networks have the same encoder and take turns, in a new order every round. Printed are images/s, and the ratio to U-Net++ of segmentation-models-pytorch in the same round: median, lowest and highest. Memory is
what autograd keeps between the forward and the backward pass, counted tensor by tensor, each storage once; it does not depend on the device. On a GPU the peak is given as well, and U-Net# is timed in mixed precision, with
channels last, and compiled. `normalise_samples` is timed with one thread and with all. The paper's size: `--encoder resnext101_32x4d --width 64 --size 224`. `--quick` tries whether everything runs and keeps nothing.
"""
import argparse
args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
args.add_argument('--encoder', default='resnet18')
args.add_argument('--width', type=int, default=16, help='channels of each input of a node; 64 in the paper')
args.add_argument('--size', type=int, default=128, help='side of the images, px')
args.add_argument('--batch', type=int, default=8)
args.add_argument('--rounds', type=int, default=5, help='timings of each')
args.add_argument('--device', help='the best there is by default')
args.add_argument('--threads', type=int, default=2)
args.add_argument('--quick', action='store_true', help='small, once')
args = args.parse_args()

import contextlib, warnings
warnings.simplefilter('ignore')

import numpy as np, segmentation_models_pytorch as smp, torch

from common import in_rounds, keep, ratio
from histolab_nb.core import get_device, set_seed
from histolab_nb.unet_sharp import FocalTversky, SharpRecipe, normalise_samples, phantom_nuclei, sharp_net, sharp_nets

beside = 'U-Net++'


def step(net, x, y, loss, device, amp=False):
    "One training step without the optimiser"
    net.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16) if amp else contextlib.nullcontext(): out = net(x)
    loss(out, y).backward()


def forward(net, x):
    with torch.no_grad(): net(x)


def kept_mb(net, x, y, loss):
    "MB that autograd keeps for the backward pass, weights not counted"
    own,seen = {p.untyped_storage().data_ptr() for p in net.parameters()},{}
    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = loss(net(x), y)
    out.backward()
    return sum(v for k,v in seen.items() if k not in own)/2**20


if __name__=='__main__':
    torch.set_num_threads(args.threads)
    device = get_device(args.device)
    if args.quick: args.encoder,args.width,args.size,args.batch,args.rounds = 'resnet10t',4,64,2,1
    set_seed()
    x,y,loss = torch.rand(args.batch, 3, args.size, args.size, device=device),torch.randint(6, (args.batch,args.size,args.size), device=device),FocalTversky()
    recipe = SharpRecipe(encoder=args.encoder, width=args.width, pretrained=False)
    nets = {k:sharp_net(SharpRecipe(**{**recipe.__dict__, 'net':k}), 6).to(device) for k in sharp_nets}
    jobs = dict(forward=lambda n: forward(n, x), training=lambda n: step(n, x, y, loss, device))
    both = {what:in_rounds({k:(lambda n=n: f(n)) for k,n in nets.items()}, args.rounds, device) for what,f in jobs.items()}
    rows = {}
    for k,net in nets.items():
        row = {what:dict(images_per_s=round(args.batch/float(np.median(t[k])), 2), against=ratio(t[beside], t[k])) for what,t in both.items()}
        row |= dict(kept_mb=round(kept_mb(net, x, y, loss), 1), parameters=sum(p.numel() for p in net.parameters()))
        if device.type=='cuda':
            torch.cuda.reset_peak_memory_stats()
            step(net, x, y, loss, device)
            row['peak_mb'] = round(torch.cuda.max_memory_allocated()/2**20, 1)
        rows[k] = row
        print(f"{k:14s} forward {row['forward']['images_per_s']:8.1f} images/s ({row['forward']['against']['median']:.2f} times {beside}), training {row['training']['images_per_s']:8.1f} ({row['training']['against']['median']:.2f}), keeps {row['kept_mb']:.0f} MB")
    fast = {}
    if device.type=='cuda':
        net = nets['U-Net#']
        last = sharp_net(recipe, 6).to(device, memory_format=torch.channels_last)
        xl = x.to(memory_format=torch.channels_last)
        ways = {'full precision':lambda: step(net, x, y, loss, device), 'bfloat16':lambda: step(net, x, y, loss, device, True), 'bfloat16, channels last':lambda: step(last, xl, y, loss, device, True)}
        compiled = torch.compile(last)
        ways['bfloat16, channels last, compiled'] = lambda: step(compiled, xl, y, loss, device, True)
        t = in_rounds(ways, args.rounds, device)
        fast = {k:dict(images_per_s=round(args.batch/float(np.median(v)), 1), against=ratio(t['full precision'], v)) for k,v in t.items()}
        for k,v in fast.items(): print(f"U-Net#, {k}: {v['images_per_s']} images/s, {v['against']['median']:.2f} times full precision")
    tiles = phantom_nuclei(4 if args.quick else 24, 256, 7)
    for s in tiles: s.load_image = (lambda im: lambda: im)(s.image)
    t = in_rounds({n:(lambda n=n: normalise_samples(tiles, workers=n, progress=False)) for n in (1,args.threads)}, args.rounds, device)
    macenko = dict(tiles_per_s=round(len(tiles)/float(np.median(t[args.threads])), 1), threads_against_one=ratio(t[1], t[args.threads]))
    print(f"Macenko: {macenko['tiles_per_s']} tiles of 256 px a second with {args.threads} threads, {macenko['threads_against_one']['median']:.2f} times one thread")
    about = {k:getattr(args, k) for k in ('encoder','width','size','batch','rounds')} | dict(torch=torch.__version__, smp=smp.__version__, device=str(device))
    if not args.quick: keep('unet_sharp', dict(about, beside=beside, networks=rows, faster=fast, macenko=macenko), args.threads)
