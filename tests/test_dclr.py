"What the notebook of DCLR cannot hold: bad input, steps of a real training, a training that is killed, and rows in processes of their own"
import multiprocessing, os, re, shutil, signal, subprocess, sys, time
from copy import deepcopy
from dataclasses import asdict, replace
import numpy as np, pandas as pd, psutil, pytest, torch
from fastai.callback.core import Callback
from PIL import Image
from torch import nn
from torch.nn import functional as F
from histolab_nb import dclr, ledger
from histolab_nb.core import DataError
from histolab_nb.datasets import queensland_colours
from histolab_nb.dclr import DclrRecipe, LinearProbe, MoCo, NTXent, PatchClusters, Patches, Task
from histolab_nb.dclr import cut_patches, dclr_dls, dclr_fit, dclr_grid, dclr_learner, dclr_model, dclr_predict, dclr_row, dclr_systems, dclr_tables
from histolab_nb.dclr import alignment, border_weights, cut_map, info_nce, make_task, method_recipe, missing_rows, patch_canvas, pixel_dls, published, read_idc
from histolab_nb.dclr import row_folder, spread, summary, system_recipe, table_recipe, tissue_kinds, uniformity, view_fields
from histolab_nb.slides import Slide, write_slide
from histolab_nb.training import load_model, quiet, save_model
from helpers import noise

@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    "On any machine: no GPU, one thread"
    monkeypatch.setenv('HISTOLAB_DEVICE', 'cpu')
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

recipe = DclrRecipe.at('tiny', width=4, depth=2)

def row_is_done(system, name, scale, seed, folder=None): return not missing_rows([system], [name], (seed,), scale, folder)

def slide_of(image, path):
    write_slide(image, path, 0.5)
    return Slide(path)

def tissue(h, w): return np.random.default_rng(0).integers(90, 200, (h,w,3), dtype=np.uint8)

def test_white_slide(tmp_path):
    with pytest.raises(DataError, match='tissue'): cut_patches(slide_of(np.full((512,512,3), 250, np.uint8), tmp_path/'white.tif'), recipe, progress=False)

def test_slide_smaller_than_a_patch(tmp_path):
    with pytest.raises(DataError, match='covers'): cut_patches(slide_of(tissue(64, 64), tmp_path/'small.tif'), recipe, progress=False)

def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    slide = slide_of(tissue(512, 512), tmp_path/'slide.tif')
    with pytest.raises(DataError, match='Choose another folder'):
        dclr_predict(dclr_model(recipe), slide, DclrRecipe.at('tiny', width=4, depth=2, background='none'), folder=tmp_path/'file'/'map', progress=False)

@pytest.mark.parametrize('spoil', ['cut', 'pickle', 'other network'])
def test_weights(tmp_path, spoil):
    path = tmp_path/'w.safetensors'
    save_model(dclr_model(recipe), path, recipe)
    make = dclr_model
    if spoil=='cut': path.write_bytes(path.read_bytes()[:-100])
    if spoil=='pickle': torch.save(dclr_model(recipe).state_dict(), path)
    if spoil=='other network': make = lambda r: dclr_model(DclrRecipe.at('tiny', width=8, depth=2))
    with pytest.raises(DataError) as e: load_model(path, make, DclrRecipe)
    assert 'w.safetensors' in str(e.value)

def test_too_few_patches():
    few = Patches(np.zeros((3,32,32,3), np.uint8), pd.DataFrame(dict(label=[0]*3)))
    with pytest.raises(DataError, match='too few'): dclr_dls(few, recipe)

def test_ntxent_is_the_double_loop():
    z,tau = torch.randn(10, 6),0.3
    n = torch.nn.functional.normalize(z, dim=1)
    terms = [-torch.log((n[i]@n[(i+5)%10]/tau).exp()/sum((n[i]@n[k]/tau).exp() for k in range(10) if k!=i)) for i in range(10)]
    torch.testing.assert_close(NTXent(tau)(z), torch.stack(terms).mean())

def test_heads_give_probabilities():
    h = np.random.default_rng(0).normal(size=(60,5)).astype(np.float32)
    table = pd.DataFrame(dict(label=(h[:,0]>0).astype(int)))
    for head in (PatchClusters(5, 4).fit(h, table), LinearProbe(5).fit(h, table)):
        p = head(torch.from_numpy(h))
        assert p.shape==(60,2) and torch.allclose(p.sum(1), torch.ones(60)) and (p>=0).all()

script = '''
import sys
import numpy as np, pandas as pd, torch
from histolab_nb.dclr import *
torch.set_num_threads(1)
r = DclrRecipe.at('tiny', method='MoCo', width=4, depth=2, epochs=6, input=32, view=16, batch_size=16, queue=50)
images = np.random.default_rng(0).integers(0, 255, (160,32,32,3), dtype=np.uint8)
patches = Patches(images, pd.DataFrame(dict(label=[0]*160)))
learn = dclr_learner(dclr_dls(patches, r, 'cpu'), r, folder=sys.argv[1])
class Slow(Callback):
    def after_batch(self):
        if self.training and len(sys.argv)>2:
            print('batch', self.epoch, flush=True)
            import time
            time.sleep(0.05)
learn.add_cb(Slow())
with learn.no_bar(), learn.no_logging(): dclr_fit(learn, r)
def total(o): return float(sum(p.double().sum() for p in o))
m = learn.mo_co
print('weights', total(learn.model.parameters()), total(m.key.state_dict().values()), total(m.queue*torch.arange(len(m.queue))[:,None]), m.at)
'''

def start(*args): return subprocess.Popen([sys.executable, '-c', script, *map(str, args)], stdout=subprocess.PIPE, text=True)
def weights(p): return p.communicate(timeout=300)[0].split('weights')[1]

def test_killed_training_goes_on(tmp_path):
    "The same weights, key encoder, queue and place in it"
    straight,p = start(tmp_path/'a'),start(tmp_path/'b', 'slow')
    for line in p.stdout:
        if line.startswith('batch 3'): break
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert p.returncode==-signal.SIGKILL
    again = start(tmp_path/'b').communicate(timeout=300)[0]
    assert 'going on in epoch' in again and again.split('weights')[1]==weights(straight)

# ---- the losses

def test_info_nce_is_the_double_loop():
    q,keys,queue,tau = torch.randn(5, 4),F.normalize(torch.randn(5, 4)),F.normalize(torch.randn(7, 4)),0.3
    n = F.normalize(q)
    terms = [-torch.log((n[i]@keys[i]/tau).exp()/((n[i]@keys[i]/tau).exp()+sum((n[i]@o/tau).exp() for o in queue))) for i in range(5)]
    torch.testing.assert_close(info_nce(q, keys, queue, tau), torch.stack(terms).mean())

def test_info_nce_teaches_the_queries_only():
    q = torch.randn(5, 4, requires_grad=True)
    info_nce(q, F.normalize(torch.randn(5, 4)), F.normalize(torch.randn(7, 4))).backward()
    assert q.grad.abs().sum()>0

@pytest.mark.parametrize('f', [NTXent(0.1), alignment, spread])
def test_views_can_be_exchanged(f):
    z = torch.randn(16, 5)
    torch.testing.assert_close(f(z.roll(8, 0)), f(z))
    assert not torch.isclose(NTXent(0.1)(z[torch.randperm(16)]), NTXent(0.1)(z))

@pytest.mark.parametrize('f', [NTXent(0.2), alignment, uniformity, spread, lambda z: info_nce(z, F.normalize(z.float()), F.normalize(z.float()))])
@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
def test_half_precision(f, kind):
    "As if the same numbers had been float32: nothing is lost or overflows on the way"
    z = (torch.randn(12, 64)*60).to(kind)
    assert f(z).dtype==torch.float32
    torch.testing.assert_close(f(z), f(z.float()))

def test_measures_of_a_collapsed_and_of_an_empty_network():
    for z in (torch.ones(8, 4), torch.zeros(8, 4)):
        for f in (alignment, uniformity, spread): assert abs(float(f(z)))<1e-5
    two = torch.eye(2).repeat(2, 1)
    torch.testing.assert_close(torch.stack([alignment(two), uniformity(two)]), torch.tensor([0.,-4.]))
    one = torch.tensor([[1.,0],[0,1]])
    assert alignment(one)==2 and abs(float(spread(one))-1)<1e-5

# ---- MoCo, step by step

small = DclrRecipe.at('tiny', width=4, depth=2, epochs=2, input=32, view=16, batch_size=16, queue=50, key_momentum=0.9)

def patches_of(n=80, side=32): return Patches(noise(n*side, side).reshape(n, side, side, 3), pd.DataFrame(dict(label=np.arange(n)%2, slide='a')))

def learner_of(r, n=80, cbs=None, **kw): return dclr_learner(dclr_dls(patches_of(n), r, 'cpu'), r, cbs=cbs, **kw)

class Copy(Callback):
    "Follows along, on its own: an average of the weights, a list of all keys"
    order = MoCo.order+1
    def before_fit(self):
        self.mine = [p.detach().clone() for p in self.model.parameters()]
        self.steps,self.keys,self.lost,self.bad = 0,[],[],[]
        self.first = self.mo_co.queue.clone()

    def before_batch(self):
        if not self.training: return
        self.steps += 1
        with torch.no_grad(): self.mine = [0.9*a+0.1*b for a,b in zip(self.mine, self.model.parameters())]
        self.keys.append(self.mo_co.keys)
        self.lost.append(max(float((a-b).abs().max()) for a,b in zip(self.mine, self.mo_co.key.parameters())))
        self.bad.append(self.mo_co.keys.requires_grad or self.mo_co.queue.requires_grad)

    def after_backward(self): self.bad.append(any(p.grad is not None or p.requires_grad for p in self.mo_co.key.parameters()))

@pytest.fixture(scope='module')
def trained():
    learn = learner_of(replace(small, method='MoCo-v2'), cbs=Copy(), n=85)
    with quiet(learn): dclr_fit(learn, small)
    return learn

def test_momentum_encoder_is_the_average(trained):
    moco,copy = trained.mo_co,trained.copy
    assert copy.steps==8 and max(copy.lost)<1e-6 and not any(copy.bad)
    apart = max(float((a-b).detach().abs().max()) for a,b in zip(moco.key.parameters(), trained.model.parameters()))
    assert apart>1e-3 and moco.key.training

def test_momentum_encoder_is_not_trained(trained):
    key,own = ({id(p) for p in o.parameters()} for o in (trained.mo_co.key, trained.model))
    taught = {id(p) for ps in trained.opt.all_params()[:] for p in ps[:1]}
    assert taught==own and not taught&key
    assert not any(p.grad is not None for p in trained.mo_co.key.parameters())

def test_momentum_encoder_has_its_own_batch_norm(trained):
    "It counts a batch for each group, and sees other views"
    norms = [[o for o in m.modules() if isinstance(o, nn.BatchNorm2d)] for m in (trained.mo_co.key, trained.model)]
    for k,q in zip(*norms):
        assert k.num_batches_tracked==8*small.bn_groups and q.num_batches_tracked==8
        assert not torch.equal(k.running_mean, q.running_mean)

def test_queue_after_training_holds_the_last_keys(trained):
    "8 batches of 16 keys in a queue of 50"
    moco,copy,want = trained.mo_co,trained.copy,trained.copy.first.clone()
    for i,k in enumerate(torch.cat(copy.keys)): want[i%50] = k
    assert moco.at==8*16%50 and torch.equal(moco.queue, want)
    torch.testing.assert_close(moco.queue.norm(dim=1), torch.ones(50))

@pytest.mark.parametrize('size, batch', [(7,3), (5,5), (4,3), (10,1)])
def test_queue_is_a_ring(size, batch):
    moco,want = MoCo(replace(small, queue=size)),[-1.]*size
    moco.queue,moco.at = torch.full((size,1), -1.),0
    for i in range(0, 11*batch, batch):
        moco.push(torch.arange(i, i+batch)[:,None].float())
        for k in range(i, i+batch): want[k%size] = k
        assert moco.queue[:,0].tolist()==want

@pytest.mark.parametrize('n, groups', [(16,2), (7,3), (2,4), (5,1)])
def test_keys_come_back_in_order(n, groups):
    moco,x = MoCo(replace(small, bn_groups=groups)),torch.rand(n, 3, 4, 4)
    moco.key = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    keys = moco.make_keys(x)
    torch.testing.assert_close(keys, F.normalize(moco.key(x)))
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(n))
    assert not keys.requires_grad

def test_keys_are_computed_in_groups_drawn_anew():
    seen = []
    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x[:,0,0,0].tolist())
            return torch.ones(len(x), 2)
    moco,x = MoCo(replace(small, bn_groups=2)),torch.arange(16.)[:,None,None,None].expand(-1, 3, 2, 2)
    moco.key = Spy()
    for _ in range(2): moco.make_keys(x)
    assert [len(o) for o in seen]==[8]*4 and sorted(seen[0]+seen[1])==list(range(16)) and set(seen[0])!=set(seen[2])

def test_batch_longer_than_the_queue():
    learn = learner_of(replace(small, method='MoCo', queue=15))
    with quiet(learn), pytest.raises(DataError, match='a queue of 15 keys is shorter than a batch of 16'): learn.fit(1)

def test_queue_error_is_plain():
    learn = learner_of(replace(small, method='MoCo', queue=15))
    with quiet(learn), pytest.raises(DataError) as e: learn.fit(1)
    assert str(e.value)=='a queue of 15 keys is shorter than a batch of 16. Use a longer queue'

@pytest.mark.parametrize('method', published)
def test_every_method_trains_and_validates(method):
    "Before training, after it, and with the same question for all"
    r = replace(method_recipe(method, small), epochs=1)
    learn = learner_of(r, n=40)
    with quiet(learn):
        before = learn.validate()
        dclr_fit(learn, r)
        after = learn.validate()
    assert len(before)==len(after)==5 and np.isfinite(list(before)+list(after)).all() and (before[1:]!=after[1:])
    z = torch.randn(12, r.out)
    learn.training = False
    torch.testing.assert_close(learn.loss_func(z), NTXent(r.tau)(z))

def test_validation_leaves_the_queue_alone():
    learn = learner_of(replace(small, method='MoCo', epochs=1), n=40)
    with quiet(learn): dclr_fit(learn, replace(small, epochs=1))
    queue,key = learn.mo_co.queue.clone(),deepcopy(learn.mo_co.key)
    with quiet(learn): learn.validate()
    assert torch.equal(learn.mo_co.queue, queue) and all(torch.equal(a, b) for a,b in zip(key.parameters(), learn.mo_co.key.parameters()))

def test_checkpoint_holds_queue_and_momentum_encoder(tmp_path):
    r = replace(small, method='MoCo', epochs=1)
    learn = learner_of(r, n=40, folder=tmp_path)
    with quiet(learn): dclr_fit(learn, r)
    again = learner_of(r, n=40, folder=tmp_path)
    with quiet(again): dclr_fit(again, r)
    a,b = learn.mo_co,again.mo_co
    assert torch.equal(a.queue, b.queue) and a.at==b.at==2*16%50
    for o,p in ((a.key, b.key), (learn.model, again.model)): assert all(torch.equal(v, w) for v,w in zip(o.state_dict().values(), p.state_dict().values()))

def test_methods_differ_in_what_is_published():
    ds = {m: asdict(method_recipe(m, small)) for m in published}
    for m,d in ds.items():
        assert {k for k in d if d[k]!=asdict(small)[k]} <= {'method', *published[m]} and all(d[k]==v for k,v in published[m].items())
        kept = asdict(method_recipe(m, small, views=False))
        assert all(kept[k]==asdict(small)[k] for k in view_fields)
        assert system_recipe(m, small)==method_recipe(m, small)
        if m!='DCLR': assert system_recipe(f'{m} with the views of DCLR', small)==method_recipe(m, small, views=False)
    with pytest.raises(DataError, match='there is no method'): method_recipe('BYOL', small)

def test_methods_share_everything_else():
    "The same start, optimiser and callbacks; and without what is published the same training, step by step"
    learns = {m: learner_of(replace(small, method=m)) for m in published}
    one = learns.pop('DCLR')
    for o in learns.values():
        assert all(torch.equal(a, b) for a,b in zip(one.model.state_dict().values(), o.model.state_dict().values()))
        assert {c.name for c in o.cbs}^{c.name for c in one.cbs}<={'sim_clr','mo_co'} and o.opt_func.keywords==one.opt_func.keywords
    with quiet(one), quiet(learns['SimCLR']):
        for o in (one, learns['SimCLR']):
            torch.manual_seed(0)
            o.fit(1)
    assert one.recorder.values==learns['SimCLR'].recorder.values

# ---- maps and labels of pixels

@pytest.mark.parametrize('shape, dims, side', [((30,50), (500,300), 7), ((13,8), (90,210), 4), ((40,40), (40,40), 16)])
def test_cut_map_is_the_double_loop(shape, dims, side):
    "Also where a box sticks out over the edges of the slide"
    rng = np.random.default_rng(0)
    m,(h,w) = rng.integers(0, 99, shape),shape
    t = pd.DataFrame(dict(x=rng.integers(-20, dims[0], 12), y=rng.integers(-20, dims[1], 12), w0=rng.integers(5, 60, 12), h0=rng.integers(5, 60, 12)))
    got = cut_map(m, t, dims, side)
    assert got.shape==(12,side,side)
    def at(start, i, length, n, full): return min(max(int((start+(i+0.5)*length/side)*n/full), 0), n-1)
    for k,o in t.iterrows():
        for i in range(side):
            for j in range(side): assert got[k,i,j]==m[at(o.y, i, o.h0, h, dims[1]),at(o.x, j, o.w0, w, dims[0])]

def test_patch_canvas_does_not_mind_the_order():
    n,order = 12,np.random.default_rng(0).permutation(12)
    table = pd.DataFrame(dict(slide='a', x=np.arange(n)%4*50+1001, y=np.arange(n)//4*50+51, w0=50., h0=50., label=np.arange(n)%2))[:11] # one place is empty
    source,prob = Patches(noise(8*11, 8).reshape(11, 8, 8, 3), table),np.random.default_rng(1).dirichlet((1,1), 11)
    order = order[order<11]
    one,two = patch_canvas(source, prob, 3),patch_canvas(source[order], prob[order], 3)
    for a,b in zip(one, two): assert np.array_equal(a, b)
    p,there,picture,truth = one
    assert p.shape==(2,9,12) and there.sum()==11*9 and not there[6:,9:].any() and (p[:,6:,9:]==0.5).all() and (picture[6:,9:]==255).all()
    assert np.allclose(p[:,4,4], prob[5]) and truth[4,4] and not truth[4,7]

def test_patch_canvas_with_a_place_taken_twice():
    table = pd.DataFrame(dict(slide='a', x=[0,50,50], y=[0,0,0], w0=50., label=[0,1,0]))
    p,there,_,truth = patch_canvas(Patches(noise(24, 8).reshape(3, 8, 8, 3), table), np.array([[.9,.1],[.2,.8],[.7,.3]]), 2)
    assert p.shape==(2,2,4) and there.all() and not truth.any() and np.allclose(p[1,0], [.1,.1,.3,.3])

def slide_task(tmp_path, truth, side=256, name='phantom nests', **kw):
    "Two noisy slides with a truth each"
    sizes = dict(width=4, depth=2, epochs=1, patch=64, stride=32, predict_stride=64, input=64, view=32, batch_size=16, valid=0.2, coherent=2)
    r = DclrRecipe.at('tiny', background='none', **sizes | kw)
    samples = [dclr.slide_sample(slide_of(noise(side, side, i), tmp_path/f's{i}.tif').path, truth, r) for i in range(2)]
    return Task(name, r, samples[:1], samples[1:], 'test')

def gaps(side=256):
    m = np.zeros((side,side), np.int32)
    for i,(y,x) in enumerate([(20,20),(20,60),(150,90)]): m[y:y+30,x:x+30] = (7,3,900)[i]
    return m

@pytest.mark.parametrize('truth', [np.zeros((64,64), bool), np.ones((64,64), bool), gaps(), gaps().astype(np.uint16), np.zeros((64,64), np.int32)], ids=['none','all','gaps','uint16','no instance'])
@pytest.mark.parametrize('w0', [0., 10.])
def test_pixel_dls(tmp_path, truth, w0):
    task = slide_task(tmp_path, truth, w0=w0)
    dls = pixel_dls(task, task.recipe)
    px,pc,pw = dls.one_batch()
    assert px.shape==(16,3,32,32) and pc.dtype==torch.int64 and pc.shape==pw.shape==(16,32,32) and torch.isfinite(pw).all() and (pw>0).all()
    assert set(pc.unique().tolist())<={0,1} and 0<=px.min() and px.max()<=1
    if not truth.any(): assert not pc.any()
    if truth.all(): assert pc.all() and (pw==pw[0,0,0]).all()
    if w0 and truth.max()>1: assert pw.max()>pw.min()*2

def test_border_weights_with_gaps_in_the_ids():
    m = gaps()
    even = np.searchsorted(np.unique(m), m)
    assert np.array_equal(border_weights(m), border_weights(even)) and border_weights(m)[35,55]>2*border_weights(m)[200,20]

def test_windows_turn_picture_classes_and_weights_together():
    truth = np.random.default_rng(0).integers(0, 2, (1,16,16))
    parts = [np.repeat(truth[...,None]*200, 3, 3).astype(np.uint8), truth>0, truth.astype(np.float32)]
    for im,c,w in [dclr._Windows(parts, 6, True)[0] for _ in range(20)]: assert (im==c*200).all() and (w==c).all()

@pytest.mark.parametrize('system', ['supervised patches', 'supervised pixels, class balance', 'supervised pixels, border weights', 'DCLR', 'no tumour', 'colour', 'untrained'])
def test_every_kind_of_row(system, tmp_path):
    truth = np.zeros((128,128), bool)
    truth[:,:64] = True
    done = dclr_row(system, slide_task(tmp_path, truth), tmp_path/'rows', 'tiny', tmp_path/'ledger')
    df = ledger.results('dclr', tmp_path/'ledger')
    assert len(df)==5*len(done) and df.value.between(0, 1).all() and set(df.metric)=={'accuracy','dice','dice_pooled'}
    assert {dclr.row_parts(o)[:2] for o in df.system}=={(system, k) for k in done}

def test_pixels_with_views_as_large_as_the_patch(tmp_path):
    task = slide_task(tmp_path, np.ones((64,64), bool), view=0)
    assert pixel_dls(task, task.recipe).one_batch()[0].shape==(16,3,64,64)

def test_too_few_patches_for_pixels(tmp_path):
    task = slide_task(tmp_path, np.ones((64,64), bool), side=100)
    with pytest.raises(DataError, match='too few'): pixel_dls(task, task.recipe)

def checks(side=256):
    m = np.zeros((side,side), bool)
    for y in range(0, side, 32): m[y:y+16] = True
    return m

def test_no_pure_patch_in_a_test_sample(tmp_path):
    "A sample without a pure patch has no accuracy, and takes part in the Dice"
    task = slide_task(tmp_path, checks())
    half = np.zeros((64,64), bool)
    half[:32] = True
    good = dclr.slide_sample(tmp_path/'s0.tif', half, task.recipe)
    task = replace(task, train=[good], test=[*task.test, good])
    assert (task.test[0][2].labels==-1).all()
    table = dclr_row('colour', task, None, 'tiny', tmp_path/'ledger')['probe']
    assert np.isnan(table.accuracy[0]) and table.patches[0]==0 and table.patches[1]>0 and summary(table)['accuracy']==table.accuracy[1]
    saved = ledger.results('dclr', tmp_path/'ledger').query('metric=="accuracy" and system=="colour, probe"').per_image.iloc[0]
    assert list(saved)==[table.slide[1]]

def test_no_pure_patch_anywhere(tmp_path):
    with pytest.raises(DataError): dclr_row('all tumour', slide_task(tmp_path, checks()), None, 'tiny', tmp_path/'ledger')

@pytest.mark.parametrize('system', ['colour', 'supervised patches'])
def test_no_pure_patch_to_learn_from(tmp_path, system):
    with pytest.raises(DataError): dclr_row(system, slide_task(tmp_path, checks()), None, 'tiny', tmp_path/'ledger')

def test_probe_with_labels_of_one_kind(tmp_path):
    with pytest.raises(DataError): LinearProbe(3).fit(np.random.default_rng(0).normal(size=(20,3)), pd.DataFrame(dict(label=[0]*20)))

# ---- IDC and Queensland as they come

def make_idc(folder, patients=8, grid=6, seed=0, first=8863):
    "Patients with a pale and a dark half, in the folders of the download"
    rng = np.random.default_rng(seed)
    for p in range(patients):
        for i in range(grid*grid):
            x,y,label = i%grid*50+1001,i//grid*50+51,int(i%grid*2>=grid)
            f = folder/'idc'/f'{first+p}'/str(label)/f'{first+p}_idx5_x{x}_y{y}_class{label}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((rng.integers(0, 90, (50,50,3))+(60 if label else 140)).astype(np.uint8)).save(f)
    return folder

@pytest.fixture(scope='module')
def idc_data(tmp_path_factory): return make_idc(tmp_path_factory.mktemp('data'))

idc_recipe = table_recipe('IDC', 'tiny')

def test_read_idc(idc_data):
    p = read_idc(idc_recipe, idc_data/'idc')
    assert p.images.shape==(288,48,48,3) and (p.table.w0==50).all() and p.table.slide.nunique()==8 and p.labels.sum()==144
    t = p.table[p.table.slide=='8865']
    assert len(t)==36 and set(t.x)==set(range(1001, 1300, 50)) and ((t.x>1101).astype(int)==t.label).all()
    dark = p.images.mean((1,2,3))<150
    assert (dark==p.labels).all()

def test_read_idc_leaves_out_what_is_cut_off(tmp_path):
    make_idc(tmp_path, 1, 2)
    files = sorted(tmp_path.rglob('*.png'))
    for f,size in zip(files, [(50,31),(17,50),(51,51)]): Image.open(f).resize(size).save(f)
    (tmp_path/'idc'/'notes_class1.png').write_text('no patch')
    assert len(read_idc(idc_recipe, tmp_path/'idc'))==1

def test_read_idc_counts_a_patch_once(tmp_path):
    "The usual download holds the whole set twice: beside itself, and again in IDC_regular_ps50_idx5"
    make_idc(tmp_path, 4, 2)
    shutil.copytree(tmp_path/'idc', tmp_path/'idc'/'IDC_regular_ps50_idx5')
    assert len(read_idc(idc_recipe, tmp_path/'idc'))==16


@pytest.mark.parametrize('how', ['empty', 'lost', 'cut', 'text', 'small'])
def test_idc_that_cannot_be_used(tmp_path, how):
    folder,says = tmp_path/'idc','.'
    if how=='empty':
        folder.mkdir()
        says = 'there is nothing of IDC here'
    if how=='lost': says = 'there is no such folder'
    if how in ('cut','text','small'):
        make_idc(tmp_path, 1, 2)
        f = sorted(folder.rglob('*.png'))[1]
        if how=='cut': f.write_bytes(f.read_bytes()[:300])
        if how=='text': f.write_text('no image')
        if how=='small': [Image.new('RGB', (49,50)).save(o) for o in folder.rglob('*.png')]
        if how!='small': says = re.escape(f.name)
    with pytest.raises(DataError, match=says): read_idc(idc_recipe, folder)

def test_idc_task_keeps_patients_apart(idc_data, monkeypatch):
    monkeypatch.setenv('HISTOLAB_DATA', str(idc_data))
    task = make_task('IDC', idc_recipe, 'unused')
    train,test = ([p.table.slide.unique().tolist() for *_,p in o] for o in (task.train, task.test))
    assert len(train)==6 and len(test)==2 and all(len(o)==1 for o in train+test) and not {o[0] for o in train}&{o[0] for o in test}
    assert [o[0] for o in test]==[p.table.slide[0] for *_,p in dclr.idc_task(replace(idc_recipe, seed=7), idc_data/'idc').test]

def test_idc_of_too_few_patients(tmp_path):
    make_idc(tmp_path, 2, 2)
    with pytest.raises(DataError): dclr.idc_task(idc_recipe, tmp_path/'idc')

def test_idc_has_no_outlines(idc_data, tmp_path):
    with pytest.raises(DataError, match='no outlines'): dclr_row('supervised pixels, class balance', dclr.idc_task(idc_recipe, idc_data/'idc'), None, 'tiny', tmp_path)

def make_queensland(folder, n=6, side=384):
    "Sections of keratin, carcinoma in the lower half, with glass at the left"
    names = {'BCC':'basal cell carcinoma', 'SCC':'squamous cell carcinoma'}
    for d in ('Images','Masks'): (folder/'queensland'/d).mkdir(parents=True)
    for c,name in names.items():
        for i in range(1, n+1 if c=='BCC' else 5):
            mask = np.empty((side,side,3), np.uint8)
            mask[:] = queensland_colours['keratin']
            mask[side//2:] = queensland_colours[name]
            mask[:,:side//12] = queensland_colours['background']
            image = (noise(side, side, i)//4+np.uint8([150,60,120])).astype(np.uint8)
            image[side//2:] -= 40
            image[:,:side//12] = 245
            Image.fromarray(image).save(folder/'queensland'/'Images'/f'{c}_{i}.tif')
            Image.fromarray(mask).save(folder/'queensland'/'Masks'/f'{c}_{i}.png')
    return folder

@pytest.fixture(scope='module')
def skin(tmp_path_factory): return make_queensland(tmp_path_factory.mktemp('skin'))

def skin_task(skin, monkeypatch, out, name='BCC', mpp=1.):
    monkeypatch.setenv('HISTOLAB_DATA', str(skin))
    return make_task(name, table_recipe(name, 'tiny'), out, mpp)

def test_queensland_is_divided(skin, monkeypatch, tmp_path):
    task = skin_task(skin, monkeypatch, tmp_path)
    names = [[p.table.slide[0] for *_,p in o] for o in (task.train, task.test)]
    assert (len(names[0]), len(names[1]))==(5,1) and sorted(names[0]+names[1])==[f'BCC_{i}' for i in range(1, 7)]
    slide,truth,known = task.test[0]
    assert truth.shape==(384,384) and slide.mpp==1. and len(known)

def test_queensland_knows_its_tumours(skin, monkeypatch, tmp_path):
    task = skin_task(skin, monkeypatch, tmp_path)
    for _,truth,known in task.train+task.test:
        assert truth[192:,32:].all() and not truth[:192].any() and not truth[:,:32].any()
        assert set(known.labels)=={-1,0,1}

def test_queensland_row(skin, monkeypatch, tmp_path):
    task = skin_task(skin, monkeypatch, tmp_path)
    done = dclr_row('colour', task, tmp_path/'rows', 'tiny', tmp_path/'ledger')
    assert summary(done['probe'])['accuracy']==1 and summary(done['probe'])['dice_before']>0.8

def test_queensland_in_another_resolution(skin, monkeypatch, tmp_path):
    "The small slides of a run with another mpp are not taken for those of this one"
    for mpp in (1., 2.): assert skin_task(skin, monkeypatch, tmp_path, mpp=mpp).test[0][0].mpp==mpp

def test_queensland_that_cannot_be_used(skin, monkeypatch, tmp_path):
    for says,kw in (('the resolution of the Queensland sections', dict(mpp=None)), ('there are 4 sections of .SCC., too few', dict(name='SCC')), ('there are 0 sections', dict(name='IEC'))):
        with pytest.raises(DataError, match=says): skin_task(skin, monkeypatch, tmp_path, **kw)
    with pytest.raises(DataError, match='there is no data set'): make_task('skin', idc_recipe, tmp_path)

# ---- rows of the tables

@pytest.mark.parametrize('scale', ['tiny', 'small', 'paper'])
def test_every_recipe_is_possible(scale):
    "Sides that can be halved so often, a learning rate that follows the batch, all that JSON knows"
    for name in tissue_kinds:
        base = table_recipe(name, scale, 7)
        for system,(_,changes) in dclr_systems.items():
            r = system_recipe(system, base)
            assert DclrRecipe.from_dict(r.to_dict())==r and r.seed==7
            assert {k for k in asdict(r) if asdict(r)[k]!=asdict(base)[k]}<={*changes, *(('lr',) if 'batch_size' in changes else ())}
            assert r.lr/base.lr==pytest.approx(r.batch_size/base.batch_size)
            side = r.view or r.input
            assert min(side, r.input)>=2**r.depth and r.queue>=r.batch_size and isinstance(dclr.method_callback(r), MoCo if 'MoCo' in r.method else dclr.SimCLR)
            if scale=='tiny': assert dclr.dclr_aug(r)(torch.rand(1, 3, r.input, r.input)).shape==(2,3,side,side)

def test_bad_names(tmp_path):
    rest = dict(seeds=(42,), scale='tiny', folder=tmp_path, results=tmp_path/'ledger', workers=1)
    for systems,names,says in ((['ResNet'], ['IDC'], 'there is no system .ResNet.'), (['colour'], ['CIFAR'], 'there is no data set .CIFAR.'), (['colour'], ['BCC'], 'the resolution of the Queensland')):
        with pytest.raises(DataError, match=says): dclr_grid(systems, names, **rest)
    with pytest.raises(DataError, match='there is no scale'): dclr_grid(['colour'], ['IDC'], **rest|dict(scale='huge'))
    assert not (tmp_path/'ledger').exists()

def test_rows_of_one_grid_have_folders_of_their_own():
    "Two processes must not train in the same folder at once"
    for name in tissue_kinds:
        task = Task(name, table_recipe(name, 'tiny'), [], [], 'test')
        names = [row_folder(k, task) for k,(how,_) in dclr_systems.items() if how in ('contrast','labels','pixels')]
        assert len(set(names))==len(names)

systems,columns = ('colour','all tumour'),['paper','system','dataset','split','metric','value','per_image','scale','seed','recipe']

def ledger_of(path):
    df = ledger.results('dclr', path)
    return df.sort_values(['system','metric'])[columns].reset_index(drop=True)

@pytest.fixture
def grid(idc_data, monkeypatch, tmp_path):
    "`dclr_grid` on a small IDC, and what it said"
    monkeypatch.setenv('HISTOLAB_DATA', str(idc_data))
    monkeypatch.setattr(dclr, '_tasks', {})
    said = []
    def run(systems=systems, workers=1, results='ledger', names=('IDC',), say=said.append, **kw):
        return dclr_grid(systems, list(names), **dict(seeds=(42,), scale='tiny', folder=tmp_path/'out', results=tmp_path/results, workers=workers, say=say)|kw)
    run.said,run.ledger = said,tmp_path/'ledger'
    return run

def test_row_is_done(grid, monkeypatch):
    assert not row_is_done('colour', 'IDC', 'tiny', 42, grid.ledger)
    assert grid()==2 and len(grid.said)==2
    for s in systems: assert row_is_done(s, 'IDC', 'tiny', 42, grid.ledger)
    assert not any(row_is_done(*o, grid.ledger) for o in [('colour','GlaS','tiny',42), ('colour','IDC','small',42), ('colour','IDC','tiny',43), ('no tumour','IDC','tiny',42)])
    assert grid()==0 and len(grid.said)==2
    monkeypatch.setitem(dclr.task_changes, 'IDC', dclr.task_changes['IDC']|dict(crf_theta=2.4))
    assert not row_is_done('colour', 'IDC', 'tiny', 42, grid.ledger) and grid()==2 and grid()==0

def test_interrupted_row_is_not_done(grid, monkeypatch):
    "A row of which only the first half is in the ledger is run again"
    save,n = dclr.save_result,[]
    def few(*args, **kw):
        n.append(0)
        if len(n)>7: raise KeyboardInterrupt
        return save(*args, **kw)
    monkeypatch.setattr(dclr, 'save_result', few)
    with pytest.raises(KeyboardInterrupt): grid(['colour'])
    assert len(ledger_of(grid.ledger))==7 and not row_is_done('colour', 'IDC', 'tiny', 42, grid.ledger)

def test_grid_reads_the_data_set_it_is_told(grid, monkeypatch, tmp_path):
    "In one session: first one folder, then another"
    grid(['all tumour'])
    monkeypatch.setenv('HISTOLAB_DATA', str(make_idc(tmp_path/'other', 4, 2, first=100)))
    grid(['all tumour'], results='second')
    assert set(ledger_of(tmp_path/'second').query('metric=="accuracy"').per_image.iloc[0])<={'100','101','102','103'}

def test_another_mpp_is_another_row(grid, monkeypatch, skin, tmp_path):
    monkeypatch.setenv('HISTOLAB_DATA', str(skin))
    assert [grid(['all tumour'], names=['BCC'], mpp=o) for o in (1., 1., 1.25)]==[1, 0, 1]

def test_grid_in_two_processes(grid, tmp_path):
    "The same numbers as in one, and nothing is run in this one"
    seen = []
    assert grid(workers=2, say=lambda s: seen.append((s, len(multiprocessing.active_children()))))==2
    assert not dclr._tasks and seen[0][1]==2 and [s[:6] for s,_ in seen]==['1 of 2', '2 of 2'] and not multiprocessing.active_children()
    assert grid(results='one')==2
    pd.testing.assert_frame_equal(ledger_of(grid.ledger), ledger_of(tmp_path/'one'))

def test_error_in_a_process_is_plain(grid):
    with pytest.raises(DataError) as e: grid(['all tumour', 'colour'], names=['BCC'], workers=2)
    assert type(e.value) is DataError and str(e.value).startswith('the resolution of the Queensland sections does not stand in their files') and '--mpp' in e.value.fix
    assert not multiprocessing.active_children()

def test_no_outlines_without_slides(grid):
    "Rows that a data set cannot have are left out"
    assert grid(['supervised pixels, border weights', 'all tumour'])==1

# ---- boards

def fake(folder, system, dataset, metric, value, seed=42, scale='tiny'): ledger.save_result('dclr', system, dataset, 'test', metric, value, seed=seed, scale=scale, folder=folder)

def test_board_without_results(tmp_path):
    board = dclr.dclr_board(scale='tiny', results=tmp_path)
    assert board.shape==(0,4) and list(board.columns)==list(published)
    assert all(v.shape==(0,4) for v in dclr.dclr_boards(scale='tiny', results=tmp_path).values())

def test_board(tmp_path):
    "One seed, several seeds, systems without heads, other scales and data sets"
    for seed,v in ((42,.5),(43,.7),(44,.9)): fake(tmp_path, 'DCLR, probe', 'IDC', 'accuracy', v, seed)
    fake(tmp_path, 'DCLR, clusters', 'IDC', 'accuracy', .1)
    fake(tmp_path, 'DCLR, probe', 'IDC', 'accuracy', .2, 42, 'small')
    fake(tmp_path, 'DCLR, probe', 'other', 'accuracy', .2)
    fake(tmp_path, 'all tumour', 'GlaS', 'accuracy', .25)
    fake(tmp_path, 'all tumour + ConvCRF', 'GlaS', 'dice', .35)
    fake(tmp_path, 'DCLR, clusters + ConvCRF, filter 3', 'GlaS', 'dice', .45)
    cols = ('DCLR','MoCo','all tumour')
    def board(*args): return dclr.dclr_board(*args, cols, 'tiny', tmp_path)
    for head in ('probe','clusters'):
        b = board('accuracy', head, '')
        assert list(b.index)==['GlaS','IDC'] and list(b.columns)==list(cols) and b.loc['GlaS'].tolist()==['not run','not run','0.250']
        assert b.loc['IDC'].tolist()==['0.700 (0.500 to 0.900)' if head=='probe' else '0.100', 'not run', 'not run']
    assert board('dice', 'probe', 'recipe').loc['GlaS'].tolist()==['not run','not run','0.350']
    assert board('dice', 'clusters', 'filter 3').to_dict('index')=={'GlaS': {'DCLR':'0.450', 'MoCo':'not run', 'all tumour':'not run'}}
    assert len(board('dice', 'probe', 'filter 3'))==0

@pytest.mark.filterwarnings('error')
def test_board_warns_of_nothing(tmp_path):
    fake(tmp_path, 'DCLR, probe', 'IDC', 'accuracy', .5)
    assert dclr.dclr_board(scale='tiny', results=tmp_path).loc['IDC'].tolist()==['0.500','not run','not run','not run']

@pytest.mark.parametrize('system', dclr_systems)
def test_names_of_rows_can_be_taken_apart(system):
    for head in ('', 'clusters', 'probe'):
        name = f'{system}, {head}' if head else system
        assert [dclr.row_parts(name+o) for o in ('', ' + ConvCRF', ' + ConvCRF, no colour')]==[(system, head, o) for o in ('', 'recipe', 'no colour')]

def test_tables_are_written(grid, tmp_path):
    boards = dclr_tables('tiny', (42,43), ['IDC'], systems, tmp_path/'out', grid.ledger, 1, say=grid.said.append)
    files = sorted((tmp_path/'out'/'tables').iterdir())
    assert len(grid.said)==4 and [f.name for f in files]==sorted(f'{re.sub("[^a-z0-9]+", "_", k.lower())}.csv' for k in boards) and len(files)==6
    back = pd.read_csv(tmp_path/'out'/'tables'/'table_1_accuracy_probe.csv', index_col=0)
    assert back.to_dict()==boards['Table 1, accuracy, probe'].to_dict() and back.index.tolist()==['IDC'] and back['colour'].iloc[0]=='1.000 (1.000 to 1.000)'
    assert all(v in back['all tumour'].iloc[0] for v in ('0.500', ' to '))

# ---- Ctrl-C

command = """
from histolab_nb import cli, dclr
dclr.data_sets_here = lambda mpp=None: ['IDC']
cli.main()
"""

def group(pid):
    "The other processes that were started with `pid`, and live"
    def in_group(p):
        try: return p.pid!=pid and os.getpgid(p.pid)==pid and p.status()!=psutil.STATUS_ZOMBIE
        except (OSError, psutil.Error): return False
    return list(filter(in_group, psutil.process_iter()))

@pytest.fixture
def tables(idc_data, tmp_path):
    "`histolab-nb run dclr --tables` on IDC alone, until its first row is done"
    env = os.environ|dict(HISTOLAB_RESULTS=str(tmp_path/'ledger'), HISTOLAB_DEVICE='cpu')
    args = [sys.executable, '-c', command, 'run', 'dclr', '--tables', '--scale', 'tiny', '--data', str(idc_data), '--out', str(tmp_path/'out')]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env)
    p.said = ''
    for line in p.stdout:
        p.said += line
        if ' of 12: ' in line: break
    yield p
    for o in group(p.pid): o.kill()
    if p.poll() is None: p.kill()
    p.communicate()

def alone(pid, seconds=20):
    "No process of the group is left, soon"
    for _ in range(seconds*10):
        if not group(pid): return True
        time.sleep(0.1)
    return False

@pytest.mark.skipif(os.name=='nt', reason='Windows has no signal for a group of processes')
def test_ctrl_c(tables, tmp_path):
    os.killpg(tables.pid, signal.SIGINT)
    out,err = tables.communicate(timeout=60)
    assert tables.returncode==130 and 'Traceback' not in err and alone(tables.pid)
    done = re.findall(r' of 12: IDC, ([\w-]+), seed (\d+)', tables.said+out)
    assert 1<=len(done)<12
    for s,seed in done: assert row_is_done(s, 'IDC', 'tiny', int(seed), tmp_path/'ledger')

@pytest.mark.skipif(os.name=='nt', reason='Windows has no such signals')
def test_workers_do_not_outlive_the_command(tables):
    tables.terminate()
    tables.wait(timeout=60)
    assert tables.returncode==-signal.SIGTERM and alone(tables.pid)
