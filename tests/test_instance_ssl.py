"What no notebook can hold of the instance-aware paper: geometry at every size, losses by a loop, killed grids, folds, damaged files, odd images"
import os, pickle, signal, subprocess, sys
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from pathlib import Path
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import ndimage as ndi
from skimage.segmentation import find_boundaries
from histolab_nb import instance_ssl, ledger
from histolab_nb.core import DataError
from histolab_nb.datasets import array_sample, cpm
from histolab_nb.phantom import phantom_nuclei
from histolab_nb.training import Callback, quiet, save_model
from histolab_nb.instance_ssl import (ClassHead, Encoder, InstanceLoss, InstanceRecipe, LabelledCrops, ResUNet, Row, TripletHead, Triplets, Windows)
from histolab_nb.instance_ssl import (boundary_map, system_changes, count_ranking_loss, count_table, cut_patches, density_map, fraction_of, gains)
from histolab_nb.instance_ssl import (issl_dls, issl_evaluate, issl_fit, issl_grid, issl_learner, issl_map, issl_predict, issl_pretext, issl_row, issl_samples)
from histolab_nb.instance_ssl import (make_encoder, nuclei_from, permutation_set, pretext_learner, pretext_net, row_name, scale_triplet_loss)
from histolab_nb.instance_ssl import (small_image, small_instances, system_recipe, table_rows, triplet_boxes, triplet_sizes, turned, turned_back)
from helpers import noise as pixels, on_cpu, same
from test_datasets import monuseg_official, put

real = pytest.mark.skipif(not os.environ.get('HISTOLAB_DATA'), reason='no data folder is known: set HISTOLAB_DATA')
tiny = InstanceRecipe.at('tiny', encoder='resnet10t', shrink=1, window=80, size=64, batch_size=2, batches=2, epochs=2, crop=64,
    decoder=(8,8,8,8,8), fit_batch_size=2, fit_batches=2, fit_epochs=2)
one = replace(tiny, epochs=1, fit_epochs=1)

def tissue(n, size=96, seed=5, **kw): return [replace(o, split=s) for o,s in zip(phantom_nuclei(n, size, seed=seed, **kw), ['train']*(n-2)+['val','extra'])]

def noise(h, w, name='a'): return array_sample(name, pixels(h, w), np.zeros((h,w), np.int32), split='train')

@pytest.fixture(scope='module')
def samples(): return tissue(5)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return ResUNet(tiny).eval()

cpu = on_cpu(instance_ssl)

# Triplets

@settings(max_examples=40, deadline=None)
@given(window=st.integers(1, 1500), seed=st.integers(0, 99))
def test_negative_in_positive_in_window(window, seed):
    torch.manual_seed(seed)
    r = replace(tiny, window=window)
    side,pool = triplet_sizes(r)
    b = triplet_boxes(60, r)
    assert (side,*pool)==tuple(max(round(o*window/1000), 1) for o in (768,512,256,128,64))
    assert b[...,:2].min()>=0 and (b[...,:2]+b[...,2:]).max()<=window
    anchor,positive,negative = b.unbind(1)
    assert (anchor[:,2]==side).all() and (positive[:,2]==side).all() and set(negative[:,2].tolist())<=set(pool)
    assert (negative[:,:2]>=positive[:,:2]).all() and (negative[:,:2]+negative[:,2:]<=positive[:,:2]+positive[:,2:]).all()

def test_anchor_and_positive_overlap():
    "Two squares of 768 in 1000 have at least 536 x 536 in common; every place and every side is drawn"
    torch.manual_seed(0)
    b = triplet_boxes(20000, InstanceRecipe())
    common = (768-(b[:,0,:2]-b[:,1,:2]).abs()).prod(1)
    assert common.min()>=536**2
    assert b[:,0,:2].min()==0 and b[:,0,:2].max()==232 and len(b[:,1,0].unique())==233
    assert np.allclose(b[:,2,2].bincount()[[64,128,256,512]]/20000, .25, atol=.02)
    inside = b[b[:,2,2]==512]
    assert (inside[:,2,:2]-inside[:,1,:2]).unique().tolist()==list(range(257))

@pytest.mark.parametrize('change', [dict(pool=()), dict(pool=(800,)), dict(anchor=1100), dict(anchor=100)])
def test_impossible_sides(change):
    with pytest.raises(DataError): triplet_sizes(replace(tiny, **change))

def pil(a, side): return np.stack([np.asarray(Image.fromarray(c).resize((side,side), Image.BILINEAR)) for c in a])

@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 60), size=st.integers(1, 90), y=st.integers(0, 40), x=st.integers(0, 40))
def test_patches_as_pillow_cuts_them(side, size, y, x):
    w = torch.rand(2, 3, 100, 100)
    p = cut_patches(w, torch.tensor([[y,x,side]]*2), size)
    assert p.shape==(2,3,size,size)
    assert np.allclose(p[1], pil(w[1,:,y:y+side,x:x+side].numpy(), size), atol=1e-4)

def test_limit_takes_detail_away():
    w,box = torch.rand(1, 3, 96, 96),torch.tensor([[5,5,64]])
    detail = lambda limit: ndi.laplace(cut_patches(w, box, 64, limit and torch.tensor([limit])).numpy()[0,0]).std()
    found = [detail(o) for o in (None,64,32,16,4)]
    assert found[0]==found[1] and all(a>1.5*b for a,b in zip(found[1:], found[2:]))
    assert detail(90)==found[0]
    flat = torch.full((1,3,96,96), .3)
    assert torch.allclose(cut_patches(flat, box, 64, torch.tensor([7])), torch.tensor(.3))

def test_matched_patches_lose_what_the_negative_never_had():
    torch.manual_seed(1)
    w,r = torch.rand(8, 3, 100, 100),replace(tiny, window=100, stain_jitter=0., stain_shift=0., pool=(128,))
    detail = lambda r: [float(np.mean([ndi.laplace(p).std() for p in o.numpy()])) for o in Triplets(r)(w)[0].mean(1).chunk(3)]
    plain,matched = detail(r),detail(replace(r, blur_match=True))
    assert plain[0]>5*plain[2] and matched[0]<2*matched[2]

def test_jitter_of_each_patch_by_itself():
    torch.manual_seed(0)
    x = torch.tensor([.8,.5,.7]).view(1,3,1,1).expand(4,3,80,80)
    out,_ = Triplets(replace(tiny, stain_jitter=.2))(x)
    colours = out.mean((2,3))
    assert (out.std((2,3))<1e-4).all() and torch.pdist(colours).min()>1e-4
    assert torch.allclose(Triplets(replace(tiny, stain_jitter=0., stain_shift=0.))(x)[0], torch.tensor([.8,.5,.7]).view(1,3,1,1), atol=.01)

# Windows

def test_image_too_small_for_a_window(samples):
    for make in (lambda: Windows([noise(80, 80).image, noise(79, 200).image], 80, 4), lambda: LabelledCrops([noise(63, 99)], tiny, 4),
        lambda: pretext_learner('SSL', [noise(70, 90)], samples, tiny), lambda: issl_dls([noise(50, 90)], tiny), lambda: Windows([], 8, 1)):
        with pytest.raises(DataError): make()

def test_windows_come_from_everywhere():
    a = np.arange(9*7*3, dtype=np.uint8).reshape(9,7,3)
    items = Windows([a], 7, 300, seed=3)
    assert len({o[0].numpy().tobytes() for o in items})==3*8
    assert all(np.array_equal(items.draw(i), items.draw(i)) for i in range(9))
    with pytest.raises(IndexError): items[300]

def test_images_are_drawn_by_area():
    items = Windows([np.full((64,64,3), 1, np.uint8), np.full((128,128,3), 2, np.uint8)], 32, 2000, seed=0)
    assert abs(np.mean([items.draw(i)[0,0,0]==2 for i in range(2000)])-.8)<.04

@settings(max_examples=20, deadline=None)
@given(i=st.integers(0, 19), shrink=st.sampled_from([1,2]))
def test_classes_stay_with_their_pixels(i, shrink):
    inst = ndi.label(np.kron(np.random.default_rng(1).random((20,20))<.4, np.ones((8,8))))[0].astype(np.int32)
    s = array_sample('a', np.repeat(np.uint8(200)*(inst>0)[...,None], 3, 2), inst)
    x,y = LabelledCrops([s], replace(tiny, shrink=shrink), 20, seed=0)[i]
    assert torch.equal(x[0]>0, y>0) and x.shape==(3,64,64) and y.dtype==torch.int64

@settings(max_examples=25, deadline=None)
@given(h=st.integers(4, 40), w=st.integers(4, 40), k=st.integers(1, 4))
def test_small_image_and_its_truth_have_one_size(h, w, k):
    r,img = replace(tiny, shrink=k),np.random.default_rng(0).integers(0, 255, (h,w,3), dtype=np.uint8)
    a,b = small_image(img, r),small_instances(np.arange(h*w).reshape(h,w), r)
    assert a.shape==(*b.shape,3)==(h//k,w//k,3)

def test_permutations_are_distinct():
    for n,parts in ((24,9), (100,9), (6,3), (1,9)):
        p = permutation_set(n, parts)
        assert len(set(map(tuple, p.tolist())))==n and (p.sort(1).values==torch.arange(parts)).all()
    p = permutation_set(9)
    assert min((a!=b).sum() for i,a in enumerate(p) for b in p[:i])>=8

# Networks

def test_networks_that_cannot_be_an_encoder():
    for name in ('resnet35', 'vit_tiny_patch16_224', 'mixer_s16_224', ''):
        with pytest.raises(DataError): Encoder(name)

def test_weights_that_cannot_be_had(monkeypatch, capsys):
    get = instance_ssl.smp.encoders.get_encoder
    def offline(name, weights=None, **kw):
        if weights: raise OSError('no line')
        return get(name, weights=None, **kw)
    monkeypatch.setattr(instance_ssl.smp.encoders, 'get_encoder', offline)
    assert Encoder('resnet10t', True).started=='random' and 'it starts at random' in capsys.readouterr().out
    monkeypatch.setattr(instance_ssl.smp.encoders, 'get_encoder', lambda name, weights=None: get(name, weights=None))
    assert Encoder('resnet10t', True).started=='imagenet'

def test_take_over(model):
    torch.manual_seed(3)
    enc,net = make_encoder(tiny),ResUNet(tiny)
    dec = {k:v.clone() for k,v in net.state_dict().items() if not k.startswith('encoder.')}
    assert not same(enc, net.encoder)
    assert net.take_over(enc, 'SSL') is net and net.started=='SSL' and same(enc, net.encoder)
    assert all(torch.equal(net.state_dict()[k], v) for k,v in dec.items())
    x = torch.rand(1,3,64,64)
    assert all(torch.equal(a, b) for a,b in zip(enc.eval()(x), net.encoder.eval()(x)))
    with torch.no_grad(): next(enc.parameters()).add_(1)
    assert not same(enc, net.encoder)
    for other in ('resnet18', 'resnet26t'):
        with pytest.raises(DataError, match='another encoder'): ResUNet(tiny).take_over(Encoder(other))

@pytest.mark.parametrize('normalise', [True, False])
@pytest.mark.parametrize('size', [(96,96), (70,130)])
def test_mean_of_the_density_is_the_score(samples, normalise, size):
    learn,img = pretext_learner('SSL', samples, samples, replace(tiny, normalise=normalise)),noise(*size).image
    with torch.no_grad(): score = learn.model.eval()(torch.from_numpy(img).permute(2,0,1)[None]/255)[1].item()
    assert density_map(learn.model, img).mean()==pytest.approx(score, abs=1e-4)

def test_embeddings_have_length_one():
    feats = [torch.rand(5,8,3,3)]
    for normalise in (True, False):
        z,s = TripletHead([8], replace(tiny, normalise=normalise))(feats)
        assert z.shape==(5,128) and s.shape==(5,) and torch.allclose(z.norm(dim=1), torch.ones(5))==normalise
    assert ClassHead([8], tiny, 24, 9)([torch.rand(18,8,3,3)]).shape==(2,24)

# Losses

@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9), m=st.floats(.01, 3), seed=st.integers(0, 99))
def test_losses_by_a_loop(n, m, seed):
    rng = np.random.default_rng(seed)
    za,zp,zn = rng.normal(size=(3,n,5))
    sp,sn = rng.normal(size=(2,n))
    triplet = ranking = 0.
    for i in range(n):
        near = far = 0.
        for d in range(5):
            near += (za[i,d]-zp[i,d])**2
            far += (za[i,d]-zn[i,d])**2
        triplet += max(near-far+m, 0)/n
        ranking += max(sn[i]-sp[i]+m, 0)/n
    t = torch.from_numpy
    assert scale_triplet_loss(t(za), t(zp), t(zn), m).item()==pytest.approx(triplet, abs=1e-6)
    assert count_ranking_loss(t(sp), t(sn), m).item()==pytest.approx(ranking, abs=1e-6)
    out = t(np.concatenate([za,zp,zn])),t(np.concatenate([rng.normal(size=n), sp, sn]))
    loss = InstanceLoss(replace(tiny, margin_triplet=m, margin_ranking=m, triplet=2., ranking=.5))
    assert loss(out).item()==pytest.approx(2*triplet+.5*ranking, abs=1e-4)

# Classes and instances

labels = st.integers(0, 999).map(lambda s: ndi.zoom(np.random.default_rng(s).integers(0, 3, (7,9)), 3, order=0).astype(np.int32))

@settings(max_examples=30, deadline=None)
@given(inst=labels)
def test_thin_boundary_as_skimage_finds_it(inst):
    b = boundary_map(inst)
    assert np.array_equal(b==2, find_boundaries(inst, connectivity=2, mode='inner')) and np.array_equal(b>0, inst>0)

@settings(max_examples=10, deadline=None)
@given(inst=labels, width=st.sampled_from([1,2,3]))
def test_boundary_by_brute_force(inst, width):
    h,w = inst.shape
    near = lambda y,x: any(inst[v,u]!=inst[y,x] for v in range(h) for u in range(w) if np.hypot(v-y, u-x)<width+.5)
    want = [[0 if not inst[y,x] else 2 if near(y, x) else 1 for x in range(w)] for y in range(h)]
    assert np.array_equal(boundary_map(inst, width), want)

def maps(body, boundary=None):
    "Certain probabilities of a mask of bodies and one of boundaries"
    boundary = np.zeros_like(body) if boundary is None else boundary
    return np.stack([~(body|boundary), body, boundary]).astype(np.float32)

@pytest.mark.parametrize('split', ['bodies','middles'])
def test_nuclei_of_extreme_maps(split):
    r,none,full = replace(tiny, split=split),np.zeros((50,60), bool),np.ones((50,60), bool)
    empty = nuclei_from(maps(none), r)
    assert empty.dtype==np.int32 and empty.shape==(50,60) and empty.max()==0
    assert (nuclei_from(maps(full), r)==1).all()
    assert nuclei_from(np.full((3,50,60), 1/3, np.float32), r).shape==(50,60)

@pytest.mark.parametrize('split', ['bodies','middles'])
def test_touching_nuclei_are_two(split):
    yy,xx = np.mgrid[:50,:80]
    inst = np.where(np.hypot(yy-25, xx-25)<13, 1, np.where(np.hypot(yy-25, xx-50)<13, 2, 0))
    b = boundary_map(inst, 2)
    got = nuclei_from(maps(b==1, b==2), replace(tiny, split=split))
    assert got.max()==2 and np.array_equal(got>0, inst>0)
    assert (got[inst==1]==got[25,25]).mean()>.97 and (got[inst==2]==got[25,50]).mean()>.97
    with pytest.raises(DataError, match='split cannot be'): nuclei_from(maps(b==1), replace(tiny, split='halves'))

def test_eight_views_and_back():
    x = torch.rand(2,3,6,6)
    assert all(torch.equal(turned_back(turned(x, i), i), x) for i in range(8))
    assert len({turned(x, i).numpy().tobytes() for i in range(8)})==8

def test_eight_views_turn_with_the_image(model, samples):
    r,img = replace(tiny, views=8),samples[0].image[:64,:64]
    whole = issl_map(model, img, r)
    for t in (lambda a: np.rot90(a, axes=(-2,-1)), lambda a: a[...,::-1]):
        turned = issl_map(model, np.ascontiguousarray(np.moveaxis(t(np.moveaxis(img, 2, 0)), 0, 2)), r)
        assert np.allclose(turned, t(whole), atol=1e-4)

@pytest.mark.parametrize('shape', [(100,130), (33,47), (7,5), (1,1)])
@pytest.mark.parametrize('shrink', [1,2])
def test_maps_of_any_size(model, shape, shrink):
    got = issl_predict(model, noise(*shape).image, replace(tiny, shrink=shrink, reinhard=shape[0]>50))
    assert got.prob.shape==(3,*shape) and got.instances.shape==shape
    assert np.allclose(got.prob.sum(0), 1, atol=1e-3)

@pytest.mark.parametrize('image', [np.zeros((64,64,3)), np.zeros((64,64,4), np.uint8), np.zeros((64,64,3), np.int32)], ids=['float','RGBA','int'])
def test_images_of_another_kind(model, image):
    with pytest.raises(DataError, match='not uint8'): issl_predict(model, image, tiny)

# Shares of the data

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), parts=st.tuples(st.floats(.05, 1), st.floats(.05, 1)), seed=st.integers(0, 9))
def test_shares_grow(n, parts, seed):
    images,r = [noise(70, 70, f'{i}') for i in range(n)],replace(tiny, seed=seed, crop=32)
    small,large = ([] if f*n<.25 else fraction_of(images, f, r) for f in sorted(parts))
    for res,f in zip((small,large), sorted(parts)):
        area,whole = sum(np.prod(o.shape)/4900 for o in res),[o for o in res if o.shape==(70,70)]
        assert len({o.name for o in res})==len(res) and len(whole)-1e-6<=f*n<len(whole)+1 and f*n-.25<area<f*n+1e-6
    assert {o.name for o in small}<={o.name for o in large}
    assert {o.name for o in small if o.shape==(70,70)}<={o.name for o in large if o.shape==(70,70)}

def test_another_seed_draws_other_images():
    images = [noise(70, 70, f'{i}') for i in range(20)]
    drawn = [frozenset(o.name for o in fraction_of(images, .3, replace(tiny, seed=s))) for s in range(5)]
    assert len(set(drawn))==5 and all(len(o)==6 for o in drawn)

@pytest.mark.parametrize('fraction', [0, -.1, 1.01, float('nan'), .05])
def test_shares_that_cannot_be_drawn(fraction):
    with pytest.raises(DataError): fraction_of([noise(70, 70), noise(70, 70)], fraction, tiny)

# Training

@pytest.mark.parametrize('system', ['SSL','SSL matched','ST','CR','RotNet','Jigsaw','ColorMe'])
def test_every_pretext_learns_from_as_many_patches(system, samples):
    learn,seen = pretext_learner(system, samples, samples, one),[]
    learn.model.encoder.register_forward_hook(lambda m, x, o: seen.append(len(x[0])) if m.training else None)
    before = [p.clone() for p in learn.model.encoder.parameters()]
    with quiet(learn): learn.fit(1)
    assert sum(seen)//(9 if system=='Jigsaw' else 1)==one.batches*one.batch_size*3
    assert any((a!=b).any() for a,b in zip(before, learn.model.encoder.parameters())) and np.isfinite(learn.recorder.values[-1]).all()

def test_weights_of_a_loss_that_is_left_out(samples):
    out = torch.rand(6,128, requires_grad=True),torch.rand(6, requires_grad=True)
    for system,i in (('ST',1), ('CR',0)):
        g = torch.autograd.grad(InstanceLoss(system_recipe(system, tiny))(out), out)
        assert (g[i]==0).all() and (g[1-i]!=0).any()

@pytest.mark.parametrize('freeze', [True, False])
def test_frozen_encoder(freeze, samples):
    r = replace(one, freeze=freeze)
    learn = issl_learner(issl_dls(samples, r, samples, 'cpu'), r)
    before = {k:v.clone() for k,v in learn.model.named_parameters()}
    with quiet(learn): learn.fit_one_cycle(1, 1e-2)
    moved = {k for k,v in learn.model.named_parameters() if not torch.equal(v, before[k])}
    convs = {k for k,v in before.items() if k.startswith('encoder.') and v.ndim==4}
    assert (not convs&moved)==freeze and any(k.startswith('decoder.') for k in moved) and any(k.startswith('head.') for k in moved)

class Kill(Callback):
    "Stops a training before its second epoch"
    order = 1000
    def before_epoch(self):
        if self.epoch==1: raise KeyboardInterrupt

@pytest.mark.parametrize('make', [
    lambda s, folder, cbs=None: issl_learner(issl_dls(s, tiny, s, 'cpu'), tiny, None, folder, cbs),
    lambda s, folder, cbs=None: issl_learner(issl_dls(s, tiny, s, 'cpu'), replace(tiny, freeze=True), None, folder, cbs),
    lambda s, folder, cbs=None: pretext_learner('SSL', s, s, tiny, folder, cbs)], ids=['target','frozen','pretext'])
def test_killed_training_goes_on(make, samples, tmp_path):
    def fit(*args):
        learn = make(samples, *args)
        try:
            with quiet(learn): learn.fit_one_cycle(2, 1e-3)
        except KeyboardInterrupt: pass
        return learn
    whole,half,again = fit(tmp_path/'a'),fit(tmp_path/'b', Kill()),fit(tmp_path/'b')
    assert same(whole.model, again.model) and not same(whole.model, half.model)
    assert np.allclose(whole.recorder.values, again.recorder.values)

def test_pretexts_are_kept_and_looked_at(samples, tmp_path, monkeypatch):
    first = issl_pretext('SSL', samples, samples, one, tmp_path)
    file = tmp_path/'SSL-42'/'pretext.safetensors'
    monkeypatch.setattr(instance_ssl, 'pretext_learner', lambda *args: 1/0)
    assert same(first, issl_pretext('SSL', samples, samples, one, tmp_path)) and (file.parent/'history.json').exists()
    assert issl_pretext('scratch', None, None, one) is None and issl_pretext('ImageNet', None, None, one) is None
    for r in (replace(one, lr=.5), replace(one, encoder='resnet18')):
        with pytest.raises(DataError, match='another recipe'): issl_pretext('SSL', samples, samples, r, tmp_path)
    with pytest.raises(ZeroDivisionError): issl_pretext('SSL', samples, samples, replace(one, seed=1), tmp_path)
    for bad in (b'not weights', pickle.dumps(dict(a=1)), b'', file.read_bytes()[:-99]):
        file.write_bytes(bad)
        with pytest.raises(DataError, match='pretext.safetensors'): issl_pretext('SSL', samples, samples, one, tmp_path)
    save_model(first, file)
    with pytest.raises(DataError, match='no recipe'): issl_pretext('SSL', samples, samples, one, tmp_path)
    save_model(pretext_net('RotNet', one).net, file, one)
    with pytest.raises(DataError, match='not weights of this'): issl_pretext('SSL', samples, samples, one, tmp_path)

def test_nothing_to_train_on(samples):
    for row,ss in ((Row('scratch'), samples[-1:]), (Row('scratch', fold=3), samples), (Row('scratch'), [])):
        with pytest.raises(DataError, match='nothing to train on'): issl_fit(row, ss, one)
    with pytest.raises(DataError, match='no system'): issl_fit(Row('SLS'), samples, one)

def test_a_finished_row_is_only_measured_again(samples, tmp_path, capsys):
    row = Row('SSL', .5)
    first = issl_row(row, samples, one, 'made', tmp_path/'run', 'tiny', tmp_path/'a')
    capsys.readouterr()
    again = issl_row(row, samples, one, 'made', tmp_path/'run', 'tiny', tmp_path/'b')
    assert 'this training is finished' in capsys.readouterr().out
    assert list(first)==list(again)==[('made','val'),('made','extra')]
    for k in first: pd.testing.assert_frame_equal(first[k], again[k])
    df = ledger.results('instance_ssl', tmp_path/'b')
    assert set(df.metric)<={'aji','dice','dice2','pq'} and set(df.system)=={'SSL 50%'} and set(df.started)=={'SSL'} and (df.peak_memory>0).all()
    assert InstanceRecipe.from_dict(df.recipe[0])==one

# Grids

script = '''
import sys, time, torch
from dataclasses import replace
from histolab_nb import instance_ssl
from histolab_nb.instance_ssl import *
from test_instance_ssl import tiny, tissue
torch.set_num_threads(1)
out,slow = sys.argv[1:]
class Say(Callback):
    def __init__(self, what): self.what = what
    def after_batch(self):
        if not self.training: return
        print(self.what, self.epoch, flush=True)
        if slow==self.what and self.epoch==1: time.sleep(60)
instance_ssl.get_device = lambda: torch.device('cpu')
for name in ('pretext_learner','issl_learner'):
    def make(*args, f=getattr(instance_ssl, name), name=name): return f(*args).add_cb(Say(name))
    setattr(instance_ssl, name, make)
print('run', issl_grid([Row('scratch'), Row('SSL')], tissue(5), tiny, 'made', f'{out}/run', 'tiny', f'{out}/results'), flush=True)
'''

def start(out, slow=''):
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get('PYTHONPATH')])])
    env = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', script, str(out), slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_killed_grid_goes_on(tmp_path, samples):
    "Killed in the second row's pretext or in its target training: no step is taken twice, and the numbers are those of a grid left in peace"
    files = lambda: {p:p.stat().st_mtime_ns for p in (tmp_path/'results').iterdir()}
    def kill(stage):
        p,lines = start(tmp_path, stage),[]
        for line in p.stdout:
            lines.append(line.strip())
            if lines[-1]==f'{stage} 1' and 'SSL 100%, seed 42' in lines: break
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert p.returncode==-signal.SIGKILL
        return lines
    first = kill('pretext_learner')
    done = files()
    assert first.count('issl_learner 0')==first.count('issl_learner 1')==2 and len(ledger.results('instance_ssl', tmp_path/'results').system.unique())==1
    second = kill('issl_learner')
    assert not any(o.startswith('scratch 100%') for o in second) and any('going on in epoch 1' in o for o in second)
    assert second.count('pretext_learner 0')==0 and second.count('pretext_learner 1')==2
    p = start(tmp_path)
    out,err = p.communicate()
    lines = out.split('\n')
    assert p.returncode==0, err
    assert not any('pretext_learner' in o or o.startswith('scratch 100%') for o in lines) and lines.count('issl_learner 0')==0 and lines.count('issl_learner 1')==2
    assert "system='scratch'" not in out.split('run [')[1] and "system='SSL'" in out
    assert files().items()>=done.items()
    rows = [Row('scratch'), Row('SSL')]
    assert issl_grid(rows, samples, tiny, 'made', tmp_path/'run', 'tiny', tmp_path/'results')==[]
    assert issl_grid(rows, samples, tiny, 'made', None, 'tiny', tmp_path/'peace')==rows
    a,b = (ledger.results('instance_ssl', tmp_path/o).set_index(['system','split','metric']).sort_index() for o in ('results','peace'))
    assert list(a.index)==list(b.index) and set(a.index.droplevel('metric'))=={(s,k) for s in ('scratch 100%','SSL 100%') for k in ('val','extra')}
    assert np.allclose(a.value, b.value)

def cpm_official(root, small=True):
    "CPM-15, and CPM-17 with its train and test folders, of phantom tissue"
    made = phantom_nuclei(10, 64, seed=3)
    for i,s in enumerate(made[:7 if small else 4]):
        put(root/'cpm15'/f'image{i+1:02d}.png', s.image)
        put(root/'cpm15'/f'image{i+1:02d}_mask.txt', s.instances)
    for i,s in enumerate(made[7:] if small else made[4:]):
        part = root/'cpm17'/('train' if small or i<3 else 'test')
        put(part/'Images'/f'image_{i%3:02d}.png', s.image)
        put(part/'Labels'/f'image_{i%3:02d}.mat', dict(inst_map=s.instances.astype(float)))
    return root

def test_a_fold_is_not_trained_on(tmp_path, monkeypatch):
    known,seen = cpm(cpm_official(tmp_path), folds=5),[]
    small = replace(one, window=64)
    for name in ('pretext_learner','issl_dls'):
        def watch(*args, f=getattr(instance_ssl, name)):
            seen.append([o for a in args if isinstance(a, list) or hasattr(a, 'attrgot') for o in a])
            return f(*args)
        monkeypatch.setattr(instance_ssl, name, watch)
    sets = issl_row(Row('SSL', 1., 1, fold=2), known, small, 'CPM', tmp_path/'run', 'tiny', tmp_path/'results')
    out = {o.name for o in known if o.split=='fold 2'}
    assert len(seen)==2 and all(o and not out&{s.name for s in o} for o in seen)
    assert list(sets)==[('CPM fold 2','fold 2')] and set(sets['CPM fold 2','fold 2'].index)==out
    df = ledger.results('instance_ssl', tmp_path/'results')
    assert set(df.split)=={'fold 2'} and set(df.seed)=={1} and set(df.dataset)=={'CPM fold 2'}
    seen.clear()
    assert issl_grid([Row('SSL', 1., 1, fold=2)], known, small, 'CPM', tmp_path/'run', 'tiny', tmp_path/'results')==[] and not seen

def test_another_fold_has_its_own_encoder(tmp_path):
    known,small = cpm(cpm_official(tmp_path), folds=5),replace(one, window=64)
    kept = [issl_fit(Row('SSL', fold=f), known, small, tmp_path/'run')[0].model for f in (1,2)]
    assert len(list((tmp_path/'run').glob('fold */pretext/SSL-42/pretext.safetensors')))==2 and not same(*kept)

# Tables and gains

def test_rows_cover_the_claims():
    df = ledger.claims('instance_ssl')
    df = df[~df.comment.fillna('').str.contains('leaderboard')]
    for t in (1,2,3): assert {row_name(o) for o in table_rows(t)}==set(df[df.table==str(t)].system), t
    folds = df[(df.table=='4')&df.dataset.str.contains('fold')]
    assert {(row_name(o), f'CPM fold {o.fold}') for o in table_rows(4)}==set(zip(folds.system, folds.dataset))
    for t,n in ((1,15),(2,6),(3,4),(4,10)):
        rows = table_rows(t, (1,2,3))
        assert len(rows)==len(set(rows))==3*n and {o.seed for o in rows}=={1,2,3} and {o.system for o in rows}<=set(system_changes)

def test_claims_of_the_tables():
    df = ledger.claims('instance_ssl')
    of = lambda system, data, metric, table: df[(df.system==system)&(df.dataset==data)&(df.metric==metric)&(df.table==table)].value.item()
    assert (of('SSL 100%', 'MoNuSeg', 'aji %', '1'), of('scratch 10%', 'MoNuSeg', 'aji %', '1'), of('CR 100%', 'MoNuSeg', 'aji %', '3'))==(70.63, 43.58, 70.09)
    assert (of('SSL 100%', 'CPM', 'dice %', '4'), of('scratch 100%', 'CPM', 'aji %', '4'))==(86.36, 73.33)

def scored(folder, system, *values, split='extra', dataset='MoNuSeg', seed=42):
    table = pd.DataFrame(dict(aji=values), index=[f'i{k}' for k in range(len(values))])
    ledger.save_scores(table, 'instance_ssl', system, dataset, split, scale='small', seed=seed, folder=folder)

def test_gains_by_hand(tmp_path):
    for s,d in ((42,0.), (43,.02)):
        scored(tmp_path, 'scratch 50%', .3+d, .4+d, .5+d, seed=s)
        scored(tmp_path, 'SSL 50%', .4+d, .5+d, .6+d, seed=s)
    scored(tmp_path, 'SSL matched 10%', .4, .5)
    scored(tmp_path, 'SSL 50%', .9, .9, .9, split='val')
    g, = gains(folder=tmp_path).itertuples()
    assert (g.system, g.labels, g.seeds)==('SSL','50%','+10.0, +10.0') and g.gain==pytest.approx(10) and g.paper==pytest.approx(62.34-51.45)

def test_the_split_of_the_paper(tmp_path):
    root = monuseg_official(tmp_path)
    assert 'test' not in issl_samples(root).attrgot('split')
    ss = issl_samples(root, test=True)
    assert {s.patient:s.split for s in ss}.items()>={'TCGA-UZ-A9PJ':'extra', 'TCGA-2Z-A9J9':'test'}.items()
    assert len({s.name for s in ss})==len(ss) and set(ss.attrgot('split'))<={'train','val','extra','test'}

@real
def test_the_split_of_the_paper_on_the_data():
    parts = {}
    for s in issl_samples(): parts.setdefault(s.split, set()).add(s.patient)
    assert len(parts['train'])==24 and len(parts['val'])==6 and 0<len(parts['extra'])<=7
    assert not parts['train']&parts['val'] and not parts['extra']&(parts['train']|parts['val'])

def test_the_benchmark_runs(tmp_path):
    "Both loops train alike, or it stops; tried once, nothing is kept"
    path,env = Path(__file__).parent.parent/'benchmarks'/'instance_ssl.py',dict(os.environ, HISTOLAB_RESULTS=str(tmp_path), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, path, '--quick', '--device', 'cpu'], capture_output=True, text=True, env=env)
    assert done.returncode==0, done.stderr
    assert 'share of the bare loop, learner' in done.stdout and not list(tmp_path.iterdir())

# What a user may get wrong

@pytest.mark.parametrize('image', [np.zeros((64,64), np.uint8), [[1,2]]], ids=['grey','list'])
def test_images_that_are_no_colour_array(model, image):
    with pytest.raises(DataError): issl_predict(model, image, tiny)

@pytest.mark.parametrize('views', [0, 9])
def test_views_there_are_not(model, samples, views):
    with pytest.raises(DataError): issl_map(model, samples[0].image, replace(tiny, views=views))

def test_a_model_without_its_recipe(model, samples):
    with pytest.raises(DataError): issl_evaluate(model, samples)

@pytest.mark.parametrize('system', ['scratch','ImageNet'])
def test_systems_without_a_pretext(system, samples, monkeypatch):
    monkeypatch.setitem(system_changes, 'ImageNet', {}) # no weights are fetched
    with pytest.raises(DataError): pretext_learner(system, samples, samples, tiny)

def test_pretext_of_an_unknown_name():
    with pytest.raises(DataError): pretext_net('RotNte', tiny)

def test_no_pyramid_with_weights():
    with pytest.raises(DataError): Encoder('vit_tiny_patch16_224', True)

def test_encoder_of_one_image_size():
    with pytest.raises(DataError): ResUNet(replace(tiny, encoder='swin_tiny_patch4_window7_224'))(torch.rand(1,3,64,64))

def test_more_permutations_than_there_are():
    with pytest.raises(DataError): permutation_set(7, 3)

@pytest.mark.parametrize('row', [Row('scratch'), Row('scratch', fold=7)], ids=['nothing to measure','no such fold'])
def test_grid_that_would_measure_nothing(row, samples, tmp_path):
    with pytest.raises(DataError): issl_grid([row], samples[:3], one, 'made', None, 'tiny', tmp_path)

def test_grid_of_another_recipe(samples, tmp_path):
    run = lambda r: issl_grid([Row('scratch')], samples, r, 'made', None, 'tiny', tmp_path)
    assert run(one) and run(replace(one, fit_lr=1e-4))

def test_images_of_one_name_in_a_fold(tmp_path):
    "CPM-17 calls an image of its training part as one of its test part"
    known = cpm(cpm_official(tmp_path, small=False))
    for s in known: s.split = 'fold 1' if 'cpm17' in s.path.parts else 'fold 2'
    issl_row(Row('scratch', fold=1), known, one, 'CPM', None, 'tiny', tmp_path/'results')

def test_names_of_rows_tell_them_apart(): assert row_name(Row('SSL', .125))!=row_name(Row('SSL', .12))

def test_share_of_an_oblong_image():
    part, = fraction_of([noise(100, 200)], .5, tiny)
    assert np.prod(part.shape)==pytest.approx(10000, rel=.05)

def test_pieces_of_a_split_are_not_too_small():
    yy,xx = np.mgrid[:60,:80]
    mask = (np.hypot(yy-30, xx-25)<12)|(np.hypot(yy-30, xx-41)<3.2)|((yy==30)&(xx>30)&(xx<41))
    sizes = np.bincount(nuclei_from(maps(mask), replace(tiny, sigma=.5, peak=3, min_size=45)).ravel())[1:]
    assert len(sizes) and sizes.min()>=45

def test_small_nucleus_beside_a_large_one():
    yy,xx = np.mgrid[:40,:60]
    mask = (np.hypot(yy-20, xx-20)<12)|((yy>=18)&(yy<28)&(xx>=34)&(xx<38))
    assert nuclei_from(maps(mask), tiny).max()==ndi.label(mask)[1]==2

def test_a_patch_without_background_is_counted(samples):
    inst = np.ones((96,96), np.int32)
    learn = pretext_learner('SSL', samples, samples, tiny)
    assert count_table(learn.model, [array_sample('a', noise(96, 96).image, inst)], tiny, 4)['count'].min()>=1

def test_gains_of_cpm_are_not_those_of_monuseg(tmp_path):
    for system in ('scratch 100%','SSL 100%'): scored(tmp_path, system, .5, .6, dataset='CPM fold 1', split='fold 1')
    g, = gains('fold 1', 'CPM fold 1', folder=tmp_path).itertuples()
    assert g.paper==pytest.approx(76.34-74.43)

def test_gains_without_a_common_seed(tmp_path):
    scored(tmp_path, 'scratch 10%', .5, .6)
    scored(tmp_path, 'SSL 10%', .5, .6, seed=43)
    assert not len(gains(folder=tmp_path))
