"What no notebook can hold: a training killed for good and resumed in another process, the corners of `Checkpoint`, squares by chance"
import math, os, signal, subprocess, sys
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.metrics import accuracy
from fastai.optimizer import ranger
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader
from histolab_nb.core import DataError, set_seed
from histolab_nb.training import Checkpoint, MaskWindows, SaveBest, StopOnNaN, Windows, load_model, quiet, read_tensors, save_model
from helpers import coloured, noise, palette

class Noisy(torch.utils.data.Dataset):
    "Points with a label, seen through noise from NumPy's and torch's own generators"
    def __init__(self, n=64): self.x,self.y = torch.randn(n, 6, generator=torch.Generator().manual_seed(0)),torch.arange(n)%2
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i]+self.y[i]+.1*torch.randn(6)+float(.1*np.random.randn()),self.y[i]

def net(): return nn.Sequential(nn.Linear(6,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8,2))

def learner(*cbs, seed=0, workers=0, plain=False, **kwargs):
    set_seed(seed)
    if plain: dls = DataLoaders(DataLoader(Noisy(), 8, shuffle=True, num_workers=workers), DataLoader(Noisy(16), 8), device='cpu')
    else: dls = DataLoaders.from_dsets(Noisy(), Noisy(16), bs=8, num_workers=workers, device='cpu')
    return Learner(dls, net(), nn.CrossEntropyLoss(), metrics=accuracy, cbs=list(cbs), lr=.01, **kwargs)

class Killed(Exception): pass

class KillAt(Callback):
    order = 55
    def __init__(self, epoch, batch): self.at = epoch,batch
    def after_batch(self):
        if self.training and (self.epoch,self.iter)==self.at: raise Killed('killed')

def train(*cbs, n=3, fit='fit_one_cycle', **kwargs):
    learn = learner(*cbs, **kwargs)
    with quiet(learn): getattr(learn, fit)(n)
    return learn

def same(a, b):
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert a.recorder.losses==b.recorder.losses and a.recorder.values==b.recorder.values and a.recorder.lrs==b.recorder.lrs

@pytest.mark.parametrize('kwargs', [dict(), dict(fit='fit'), dict(fit='fine_tune'), dict(fit='fit_flat_cos'), dict(plain=True), dict(workers=1), dict(plain=True, workers=1)], ids=str)
@pytest.mark.parametrize('at', [(0,2), (1,5), (2,7)])
def test_resume_is_exact(tmp_path, kwargs, at):
    straight = train(**kwargs)
    with pytest.raises(Killed): train(Checkpoint(tmp_path, batches=2), KillAt(*at), **kwargs)
    same(straight, train(Checkpoint(tmp_path, batches=2), seed=5, **kwargs))

def test_killed_again_and_again(tmp_path):
    straight = train()
    for seed,at in enumerate([(0,5),(1,3),(2,1)]):
        with pytest.raises(Killed): train(Checkpoint(tmp_path, batches=3), KillAt(*at), seed=seed)
    same(straight, train(Checkpoint(tmp_path, batches=1), seed=8))

def test_same_learner_goes_on_after_an_error(tmp_path):
    straight,learn = train(),learner(Checkpoint(tmp_path, batches=2))
    with quiet(learn):
        with pytest.raises(Killed): learn.fit_one_cycle(3, cbs=KillAt(1, 5))
        learn.fit_one_cycle(3)
    same(straight, learn)

def test_accumulated_gradients_and_training_metrics(tmp_path):
    def run(*cbs, **kwargs):
        learn = learner(GradientAccumulation(24), *cbs, **kwargs)
        learn.recorder.train_metrics = True
        with quiet(learn): learn.fit(3)
        return learn
    straight = run()
    with pytest.raises(Killed): run(Checkpoint(tmp_path, batches=1), KillAt(1, 4))
    same(straight, run(Checkpoint(tmp_path, batches=1), seed=5))

def test_two_trainings_of_one_learner(tmp_path):
    def run(*cbs, **kwargs):
        learn = learner(*cbs, **kwargs)
        with quiet(learn):
            learn.fit(2)
            learn.fit_one_cycle(2)
        return learn
    straight = run()
    same(straight, run(Checkpoint(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['fit-0.safetensors', 'fit-1.safetensors']
    same(straight, run(Checkpoint(tmp_path), seed=5))

def test_validation_and_lr_find_are_no_trainings(tmp_path):
    learn = learner(Checkpoint(tmp_path/'run'))
    with quiet(learn):
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=6, show_plot=False)
        assert list((tmp_path/'run').iterdir()) == []
        learn.fit(1)
        weights = {k:v.clone() for k,v in learn.model.state_dict().items()}
        learn.validate()
    for k,v in weights.items(): assert torch.equal(v, learn.model.state_dict()[k])

def test_best_weights_and_lookahead(tmp_path):
    "Another wrapper of an optimiser, and callbacks that load at the end"
    def run(*cbs, **kwargs):
        name = 'b' if cbs else 'a'
        learn = learner(SaveBest(tmp_path/f'{name}.safetensors', 'accuracy'), *cbs, opt_func=ranger, **kwargs)
        with quiet(learn): learn.fit_one_cycle(3)
        return learn
    straight = run()
    with pytest.raises(Killed): run(Checkpoint(tmp_path/'run', batches=3), KillAt(1, 7))
    same(straight, run(Checkpoint(tmp_path/'run', batches=3), seed=5))

def test_with_progress_bars(tmp_path, capsys):
    def run(*cbs, seed=0):
        learn = learner(*cbs, seed=seed)
        learn.fit(3)
        return learn
    straight = run()
    with pytest.raises(Killed): run(Checkpoint(tmp_path, batches=3), KillAt(1, 4))
    capsys.readouterr()
    for said in 'going on in epoch 1, batch 3','this training is finished':
        same(straight, run(Checkpoint(tmp_path, batches=3), seed=5))
        out = capsys.readouterr().out
        assert said in out and all(f'{row[0]:.6f}' in out for row in straight.recorder.values)

def test_start_anew(tmp_path):
    train(Checkpoint(tmp_path))
    same(train(seed=3), train(Checkpoint(tmp_path, resume=False), seed=3))

def test_other_network_and_damage_are_refused(tmp_path):
    train(Checkpoint(tmp_path))
    learn = learner(Checkpoint(tmp_path))
    learn.model = nn.Sequential(nn.Linear(6,2), nn.BatchNorm1d(2))
    with quiet(learn), pytest.raises(DataError, match='is of another training: weights'): learn.fit_one_cycle(3)
    file = tmp_path/'fit-0.safetensors'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match='not a whole safetensors file'): train(Checkpoint(tmp_path))
    save_model(net(), file)
    with pytest.raises(DataError, match='this is not a checkpoint'): train(Checkpoint(tmp_path))

def test_leftovers_of_a_kill_are_swept(tmp_path):
    (tmp_path/'.fit-0.safetensors.123.part.safetensors').write_bytes(b'half')
    train(Checkpoint(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ['fit-0.safetensors']

def test_broken_weights_do_not_replace_good_ones(tmp_path):
    class Break(Callback):
        def before_train(self):
            if self.epoch==1: next(self.model.parameters()).data.fill_(float('nan'))
    with pytest.raises(DataError, match='the loss is nan in epoch 1, batch 0'): train(Checkpoint(tmp_path, batches=1), StopOnNaN(), Break())
    tensors = read_tensors(tmp_path/'fit-0.safetensors')[1]
    assert all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())

def test_late_look_for_nan(tmp_path):
    class Break(Callback):
        def before_batch(self):
            if self.training and self.iter==3: self.learn.xb = (self.xb[0]*float('inf'),)
    with pytest.raises(DataError, match='in epoch 0, batch 3'): train(StopOnNaN(every=100), Break())

def test_tied_weights(tmp_path):
    def tied():
        m = nn.Sequential(nn.Linear(4,4), nn.ReLU(), nn.Linear(4,4))
        m[2].weight = m[0].weight
        return m
    m = tied()
    save_model(m, tmp_path/'m.safetensors')
    x = torch.randn(3, 4)
    assert torch.equal(m(x), load_model(tmp_path/'m.safetensors', tied)[0](x))

SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_training import *
class Tick(Callback):
    order = 90
    def after_batch(self):
        if self.training: print('batch', self.epoch, self.iter, flush=True)
learn = learner(Tick(), *([] if sys.argv[1]=='-' else [Checkpoint(sys.argv[1], batches=1)]), seed=int(sys.argv[4]))
with quiet(learn): learn.fit_one_cycle(6)
save_model(learn.model, sys.argv[3])
"""

def start(folder, out, seed): return subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder), os.path.dirname(__file__), str(out), str(seed)],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_kill_9_and_resume(tmp_path):
    "Killed without warning, twice, a checkpoint being written at every batch: ends with the weights of a training left in peace"
    p = start('-', tmp_path/'straight.safetensors', 0)
    assert p.communicate()[1].count('Error')==0 and p.returncode==0
    for n,seed in (7,0),(17,1):
        p = start(tmp_path/'run', tmp_path/'resumed.safetensors', seed)
        for _ in range(n): assert p.stdout.readline()
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert p.returncode == -signal.SIGKILL and not (tmp_path/'resumed.safetensors').exists()
        read_tensors(tmp_path/'run'/'fit-0.safetensors')
    p = start(tmp_path/'run', tmp_path/'resumed.safetensors', 2)
    out,err = p.communicate()
    assert p.returncode==0, err
    assert 'going on in epoch' in out and out.count('batch') < 48
    a,b = (read_tensors(tmp_path/f'{o}.safetensors')[1] for o in ('straight', 'resumed'))
    for k in a: assert torch.equal(a[k], b[k]), k

# Squares of images and masks

def pairs(sizes): return (list(o) for o in zip(*(coloured(h, w, i) for i,(h,w) in enumerate(sizes))))

many = [[(150,130)], [(40,50)], [(10,200),(200,10),(96,96)], [(1,1),(97,95)]]

@pytest.mark.parametrize('focus', [0.,.5,1.])
@pytest.mark.parametrize('sizes', many, ids=['large','small','mixed','single'])
def test_squares_keep_image_and_mask_in_step(sizes, focus):
    images,masks = pairs(sizes)
    items = MaskWindows(images, masks, 96, 16, seed=3, focus=focus)
    x,y = (torch.stack(o) for o in zip(*(items[i] for i in range(16))))
    assert x.shape==(16,3,96,96) and x.dtype==torch.uint8 and y.dtype==torch.int64 and len(items)==16
    assert torch.equal(x, torch.from_numpy(palette)[y].movedim(-1, 1))
    with pytest.raises(IndexError): items[16]

def first_version(images, masks, side, i, seed, turn):
    "How the gland notebook drew its crops when they were its own"
    both = [np.pad(np.dstack(o), (*[(0, max(side-n, 0)) for n in o[1].shape], (0,0)), 'symmetric') for o in zip(images, masks)]
    area = np.array([o.shape[0]*o.shape[1] for o in both], float)
    g = None if seed is None else torch.Generator().manual_seed(seed*100_003+i)
    o = both[int(np.searchsorted(np.cumsum(area/area.sum()), float(torch.rand(1, generator=g)), side='right'))]
    y,x,k = (int(torch.randint(n, (1,), generator=g)) for n in (o.shape[0]-side+1, o.shape[1]-side+1, 8 if turn else 1))
    o = np.rot90(o[y:y+side,x:x+side], k%4)
    return o[:,::-1] if k>3 else o

@pytest.mark.parametrize('turn', [True,False])
@pytest.mark.parametrize('seed', [None,0,7])
@pytest.mark.parametrize('sizes', many, ids=['large','small','mixed','single'])
def test_squares_are_those_of_the_first_version(sizes, seed, turn):
    images,masks = [noise(h, w, i) for i,(h,w) in enumerate(sizes)],[noise(h, w, 9+i)[...,0] for i,(h,w) in enumerate(sizes)]
    items = MaskWindows(images, masks, 96, 20, seed, turn=turn)
    torch.manual_seed(5)
    want = [first_version(images, masks, 96, i, seed, turn) for i in range(20)]
    torch.manual_seed(5)
    for i,o in enumerate(want):
        x,y = items[i]
        assert np.array_equal(x.permute(1,2,0), o[...,:3]) and np.array_equal(y, o[...,3])

def test_squares_are_those_of_windows():
    images,masks = pairs([(150,130),(96,200)])
    a,b = Windows(images, 96, 20, 3),MaskWindows(images, masks, 96, 20, 3)
    assert all(torch.equal(a[i][0], b[i][0]) for i in range(20))

def near(counts, p, n): return (abs(np.asarray(counts)-n*np.asarray(p))<5*np.sqrt(n*np.asarray(p)*(1-np.asarray(p)))+1).all() # five standard deviations

def speckled():
    "Three images of very different sizes; each pixel has a colour of its own; classes 1, 7 and 255 with 4000, 40 and 3 pixels"
    rng,sizes = np.random.default_rng(0),[(100,120),(30,40),(9,8)]
    flat = rng.permutation(np.repeat([0,1,7,255], [sum(h*w for h,w in sizes)-4043,4000,40,3])).astype(np.uint8)
    code = np.arange(len(flat))
    code = np.stack([code%256, code//256, 0*code], 1).astype(np.uint8)
    ends = np.cumsum([h*w for h,w in sizes])[:-1]
    return [a.reshape(*s,3) for a,s in zip(np.split(code, ends), sizes)],[a.reshape(s) for a,s in zip(np.split(flat, ends), sizes)],flat

def test_classes_and_their_pixels_are_equally_likely():
    images,masks,flat = speckled()
    n = 6000
    items = [o for o in MaskWindows(images, masks, 1, n, seed=1, focus=1.)]
    drawn = np.array([int(y) for _,y in items])
    place = np.array([int(x[0])+256*int(x[1]) for x,_ in items])
    assert near([(drawn==c).sum() for c in (1,7,255)], [1/3]*3, n) and np.array_equal(flat[place], drawn)
    for c in (7,255):
        where = np.flatnonzero(flat==c)
        assert near([(place==o).sum() for o in where], [1/len(where)]*len(where), (drawn==c).sum())
    half = [(place[drawn==1]<o).sum() for o in (3000,9000,12000)]
    assert near(half, [(flat[:o]==1).mean()*o/4000 for o in (3000,9000,12000)], (drawn==1).sum())

@pytest.mark.parametrize('focus', [.2,.5,.9])
def test_share_of_items_in_focus(focus):
    "Of items drawn by area hardly one in a thousand holds the class"
    mask = np.zeros((300,300), np.uint8)
    mask[150,150] = 3
    n = 2000
    found = sum(bool((y==3).any()) for _,y in MaskWindows([np.zeros((300,300,3), np.uint8)], [mask], 8, n, seed=2, focus=focus))
    assert near([found], [focus+(1-focus)*64/293**2], n)

@pytest.mark.parametrize('at', [(20,20), (0,0), (39,3)])
def test_square_lies_anywhere_around_the_pixel(at):
    mask = np.zeros((40,40), np.uint8)
    mask[at] = 1
    n = 4000
    items = MaskWindows([np.zeros((40,40,3), np.uint8)], [mask], 8, n, seed=3, turn=False, focus=1.)
    where = [tuple(np.argwhere(y.numpy())[0]) for _,y in items]
    rows,cols = ([k for k in range(8) if 0<=p-k<=32] for p in at)
    assert set(where)=={(a,b) for a in rows for b in cols} and near([where.count(o) for o in set(where)], [1/len(rows)/len(cols)]*len(set(where)), n)

@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 40), side=st.integers(1, 50), seed=st.integers(0, 99))
def test_continued_by_the_mirror_image(h, w, side, seed):
    "Each pixel of a square is the one that mirrors at the edges show, found by walking"
    def walk(i, n): return i%(2*n) if i%(2*n)<n else 2*n-1-i%(2*n)
    image,mask = noise(h, w, seed),noise(h, w, seed+1)[...,0]
    x,y = MaskWindows([image], [mask], max(side, h, w), 1, seed, turn=False)[0]
    rows,cols = ([walk(i, n) for i in range(len(y))] for n in (h,w))
    assert np.array_equal(x.permute(1,2,0), image[np.ix_(rows, cols)]) and np.array_equal(y, mask[np.ix_(rows, cols)])

def test_the_same_seed_the_same_items():
    images,masks = pairs([(150,130),(40,50)])
    a,b,c = (MaskWindows(images, masks, 64, 30, s, focus=.5) for s in (1,1,2))
    key = lambda o: [(x.numpy().tobytes(),y.numpy().tobytes()) for x,y in o]
    assert key(a)==key(b)==key(a) and key(a)!=key(c)
    free = MaskWindows(images, masks, 64, 30, focus=.5)
    assert key(free)!=key(free)

@pytest.mark.parametrize('dtype', [bool,np.int8,np.uint16,np.int64])
def test_masks_of_any_integer_type(dtype):
    images,masks = pairs([(40,50)])
    kept = images[0].copy()
    a,b = (MaskWindows(images, [m], 64, 4, 1, focus=.5) for m in ((masks[0]>0).astype(dtype), (masks[0]>0).astype(np.uint8)))
    assert all(torch.equal(a[i][1], b[i][1]) for i in range(4)) and np.array_equal(images[0], kept)

def test_large_images_are_not_copied():
    images,masks = pairs([(150,130),(40,50)])
    items = MaskWindows(images, masks, 96, 4)
    assert items.images[0] is images[0] and np.shares_memory(items.masks[0], masks[0]) and not hasattr(items, 'counts')

def whole(v, *shape): return np.full(shape or (40,50), v)

bad_masks = dict(float=whole(0.), complex=whole(0j), nan=whole(np.nan), negative=whole(-1), large=whole(256))
bad_masks |= dict(turned=whole(0, 50, 40), axis=whole(0, 40, 50, 1), none=None)

@pytest.mark.parametrize('bad', bad_masks.values(), ids=bad_masks)
def test_masks_that_are_none(bad):
    good = np.zeros((40,50), np.uint8)
    with pytest.raises(DataError, match='slide 7'): MaskWindows([noise(40, 50)]*2, [good,bad], 32, 4, names=['slide 6','slide 7'])

def test_what_cannot_be_drawn():
    image,mask = noise(40, 50),np.zeros((40,50), np.uint8)
    for images,masks in (([image],[]), ([],[]), ([image[:0]],[mask[:0]])):
        with pytest.raises(DataError): MaskWindows(images, masks, 32, 4)
    for focus in (-.1, 1.5, math.nan, .5):
        with pytest.raises(DataError): MaskWindows([image], [mask], 32, 4, focus=focus)

def test_one_pixel_is_a_square(): assert all(Windows([noise(3, 4)], 1, 40, seed=0)[i][0].shape==(3,1,1) for i in range(40))
