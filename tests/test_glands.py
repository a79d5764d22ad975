"What no notebook can hold of the gland proposal: losses by a loop, rays walked one by one, killed stages and grids, official layouts, odd images"
import json, math, os, subprocess, sys, warnings
from dataclasses import replace
import numpy as np, pytest, torch
from pathlib import Path
from hypothesis import given, settings, strategies as st
from scipy import ndimage as ndi
from scipy.spatial.distance import cdist
from skimage.draw import line
from skimage.morphology import opening
from skimage.segmentation import relabel_sequential
from torch.nn import functional as F
from histolab_nb import glands, ledger
from histolab_nb.augment import HEJitter, Warp
from histolab_nb.core import DataError, set_seed
from histolab_nb.datasets import array_sample, crag
from histolab_nb.postprocess import drop_small, fill_small
from histolab_nb.training import Callback, as_batch, quiet
from histolab_nb.glands import (DeepCluster, GlandLoss, GlandNet, GlandRecipe, GlandViews, IIC, PiCIE, Pseudo, ShallowNets)
from histolab_nb.glands import (balanced, border_cue, border_of, centres_layer, colour_groups, diffusion_loss, drop_noise, fit_at_once, gland_board)
from histolab_nb.glands import (gland_grid, gland_instances, gland_mask, gland_row, gland_samples, gland_systems, glands_dls, glands_evaluate, glands_fit)
from histolab_nb.glands import (glands_learner, glands_map, glands_predict, group_learner, group_maps, group_methods, kmeans_layer, mean_iou)
from histolab_nb.glands import (mutual_information, name_groups, next_mask, phantom_glands, plain_masks, object_systems, pooled_miou, pseudo_mask, pseudo_masks)
from histolab_nb.glands import (gland_changes, room_for, score_names, seen_share, self_loss, spatial_loss, stage_one, train_shallow)
from helpers import coloured, inner, mtimes, noise, on_cpu, same, told
from test_datasets import put

real = pytest.mark.skipif(not os.environ.get('HISTOLAB_DATA'), reason='no data folder is known: set HISTOLAB_DATA')
here = Path(__file__).parent.parent
tiny = GlandRecipe.at('tiny', channels=4, steps=2, encoder='resnet10t', width=16, crop=64, batch_size=2, batches=2, epochs=1, group_dim=4, group_epochs=1)
seeds = st.integers(0, 999)

def blobs(h, w, seed, share=.5, sigma=1.5):
    "A random mask with pieces and holes"
    a = ndi.gaussian_filter(np.random.default_rng(seed).random((h,w)), sigma)
    return a>np.quantile(a, 1-share)

@pytest.fixture(scope='module')
def samples():
    "Three images to learn from and two to measure on, with grades"
    made,grades = phantom_glands(5, 80, seed=1),['benign','malignant','benign','malignant','benign']
    return [replace(s, split='train' if i<3 else 'test', info={'grade (GlaS)':g}) for i,(s,g) in enumerate(zip(made, grades))]

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return GlandNet(tiny).eval()

cpu = on_cpu(glands)

# Shallow networks

@settings(max_examples=15, deadline=None)
@given(seed=seeds, c=st.integers(1, 4), h=st.integers(2, 5), w=st.integers(2, 5))
def test_losses_of_the_first_stage_by_a_loop(seed, c, h, w):
    y = 3*np.random.default_rng(seed).normal(size=(2,c,h,w))
    own,near = self_loss(torch.from_numpy(y)),spatial_loss(torch.from_numpy(y))
    for i in range(2):
        entropy = rows = cols = 0.
        for a in range(h):
            for b in range(w):
                p = [math.exp(o) for o in y[i,:,a,b]]
                entropy -= math.log(max(p)/sum(p))/(h*w)
                for k in range(c):
                    if a: rows += abs(y[i,k,a,b]-y[i,k,a-1,b])/(c*(h-1)*w)
                    if b: cols += abs(y[i,k,a,b]-y[i,k,a,b-1])/(c*h*(w-1))
        assert own[i].item()==pytest.approx(entropy, abs=1e-9) and near[i].item()==pytest.approx(rows+cols, abs=1e-9)

@pytest.mark.parametrize('n', [2,5])
def test_images_trained_together_are_trained_alone(n, monkeypatch):
    "In double precision, since the argmax makes much of rounding; the first step in single precision, too"
    images,r = [(ndi.gaussian_filter(noise(24, 30, i), (2,2,0))) for i in range(n)],replace(tiny, steps=8)
    short = [train_shallow(o, replace(r, steps=1))[0] for o in (images, *([o] for o in images))]
    assert (short[0]-torch.cat(short[1:])).abs().mean()<1e-4
    monkeypatch.setattr(glands, 'as_batch', lambda *args: as_batch(*args).double())
    together,seen = train_shallow(images, r, net=ShallowNets(r, n).double())
    alone = [train_shallow([o], r, net=ShallowNets(r).double()) for o in images]
    assert torch.allclose(together, torch.cat([o for o,_ in alone]), atol=1e-7)
    assert np.allclose(seen, np.mean([t.to_numpy() for _,t in alone], 0), atol=1e-7, equal_nan=True)
    assert not torch.allclose(together[0], together[1], atol=.1) and seen.self_loss.iloc[-1]!=seen.self_loss.iloc[0]

def test_shallow_networks_leave_chance_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a,b = ShallowNets(tiny, 2),ShallowNets(tiny, 2)
    assert torch.equal(before, torch.get_rng_state()) and same(a, b) and not same(a, ShallowNets(replace(tiny, seed=1), 2))
    for p in a.parameters(): assert torch.equal(*p.chunk(2))

# The border

def test_border_is_the_darkest_of_the_large_clusters():
    clusters,r = np.zeros((60,60), np.uint8),replace(tiny, cue='grey', least=400, clusters=4, darkest=1)
    clusters[:20],clusters[20:40],clusters[:10,:30] = 1,2,3
    image = np.take(np.uint8([230,90,150,20]), clusters)[...,None].repeat(3, 2)
    assert np.array_equal(border_of(image, clusters, r), clusters==1)
    assert np.array_equal(border_of(image, clusters, replace(r, least=300)), clusters==3)
    assert np.array_equal(border_of(image, clusters, replace(r, shrink=2, least=1600)), clusters==1)
    assert np.array_equal(border_of(image, clusters, replace(r, shrink=2, least=1200)), clusters==3)

def between(cue, border):
    "Otsu's variance between border and rest, as the variance of an image that holds nothing but the two means"
    flat = cue.copy()
    for part in (border,~border):
        if part.any(): flat[part] = cue[part].mean()
    return flat.var()

@settings(max_examples=25, deadline=None)
@given(seed=seeds, cue=st.sampled_from(['grey','haematoxylin']), darkest=st.integers(1, 5), least=st.sampled_from([1,100,600]))
def test_border_of_several_clusters(seed, cue, darkest, least):
    rng = np.random.default_rng(seed)
    clusters = rng.choice(5, (50,60), p=rng.dirichlet(np.full(5, .4))).astype(np.uint8)
    image = (np.take(rng.integers(30, 240, (5,3)), clusters, axis=0)+rng.integers(-9, 10, (50,60,3))).astype(np.uint8)
    shown = border_cue(image, cue)
    ids = sorted([k for k in range(5) if (clusters==k).any() and (clusters==k).sum()>=least], key=lambda k: -shown[clusters==k].mean())
    best = max([np.isin(clusters, ids[:i]) for i in range(1, min(darkest, len(ids))+1)], key=lambda o: between(shown, o))
    got = border_of(image, clusters, replace(tiny, cue=cue, darkest=darkest, least=least, contrast=-1.))
    assert between(shown, got)==pytest.approx(between(shown, best)) and np.array_equal(got, best)

def test_an_empty_cluster_is_no_border():
    clusters = np.repeat(np.uint8([0,1]), 800).reshape(40,40)
    image = np.where(clusters[...,None]>0, np.uint8([200,0,0]), np.uint8([255,250,200]))
    assert all(border_cue(image, 'haematoxylin')[clusters==k].mean()<0 for k in (0,1))
    r = replace(tiny, least=1, darkest=1, contrast=-1.)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(border_of(image, clusters, replace(r, least=0)), border_of(image, clusters, r))

@pytest.mark.parametrize('change', [dict(least=5000), dict(contrast=.9)], ids=['all too small','not dark enough'])
def test_no_border_and_a_warning(change):
    clusters = np.arange(3600).reshape(60,60).astype(np.uint8)%5
    image = np.take(np.uint8([230,90,150,20,60]), clusters)[...,None].repeat(3, 2)
    with pytest.warns(UserWarning, match='slide 7: no cluster'): found = border_of(image, clusters, replace(tiny, **change), 'slide 7')
    assert found.shape==(60,60) and found.dtype==bool and not found.any()

def test_an_empty_cluster_is_no_reason_to_warn():
    clusters = np.repeat(np.uint8([0,2]), 800).reshape(40,40)
    image = np.where(clusters[...,None]>0, np.uint8(60), np.uint8(230)).repeat(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(border_of(image, clusters, tiny), clusters==2)

noise_table = [(.71,34,33,1), (.46,27,26,1), (.26,20,19,1), (.21,10,9,1), (.11,8,7,1), (.71,18,17,2), (.46,15,14,2), (.26,10,9,2), (.21,5,4,2), (.11,4,3,2)]

@pytest.mark.parametrize('share,kept,dropped,shrink', noise_table)
def test_noise_by_coverage(share, kept, dropped, shrink):
    "Squares that are just large enough stay, those a pixel smaller go; above 0.45 both lose a pixel all around"
    border = np.zeros((300,300), bool)
    border[:int(300*share)] = True
    border[255:255+kept,20:20+kept] = border[255:255+dropped,100:100+dropped] = True
    got = drop_noise(border, replace(tiny, shrink=shrink))
    side = kept-2*(share>.45)
    assert got[250:,:90].sum()==side**2 and not got[250:,90:].any() and not (got&~border).any() and got[100*share>40:20].all()==(share<.45)

def test_little_border_is_not_cleaned():
    border = blobs(60, 60, 0, .09, .1)
    assert np.array_equal(drop_noise(border, tiny), border)

# What border surrounds

def walked(border, reach, directions):
    "Every ray of every pixel, step by step; there is no border outside of the image"
    (h,w),res = border.shape,np.zeros(border.shape)
    for y,x in np.ndindex(h, w):
        for k in range(directions):
            a = 2*math.pi*k/directions
            for v,u in zip(*line(y, x, y+round(reach*math.sin(a)), x+round(reach*math.cos(a)))):
                if 0<=v<h and 0<=u<w and border[v,u]:
                    res[y,x] += 1/directions
                    break
    return res

@settings(max_examples=15, deadline=None)
@given(seed=seeds, h=st.integers(1, 9), w=st.integers(1, 9), reach=st.integers(1, 14), directions=st.sampled_from([4,16]), share=st.sampled_from([0.,.1,.4,1.]))
def test_seen_share_ray_by_ray(seed, h, w, reach, directions, share):
    border = np.random.default_rng(seed).random((h,w))<share
    got = seen_share(border, reach, directions)
    assert got.dtype==np.float32 and np.allclose(got, walked(border, reach, directions), atol=1e-6)

def test_seen_share_of_extremes():
    assert (seen_share(np.zeros((5,8), bool), 50)==0).all() and (seen_share(np.ones((5,8), bool), 50)==1).all()
    one = np.zeros((1,9), bool)
    one[0,4] = True
    assert seen_share(one, 3, 4).tolist()==[[0,.25,.25,.25,1,.25,.25,.25,0]]

@settings(max_examples=30, deadline=None)
@given(seed=seeds, radius=st.floats(1, 7), share=st.floats(.01, .5))
def test_room_is_an_opening(seed, radius, share):
    "Opening of the complement with the open disk, d<radius; a frame of border keeps the edge of the image out of it"
    border = np.pad(blobs(30, 34, seed, share), 1, constant_values=True)
    n = math.ceil(radius)
    yy,xx = np.mgrid[-n:n+1,-n:n+1]
    assert np.array_equal(room_for(border, radius), opening(~border, np.hypot(yy, xx)<radius))

def test_room_of_extremes():
    for border,room in ((np.zeros((9,12), bool),True), (np.ones((9,12), bool),False)): assert (room_for(border, 4)==room).all()

drawn = st.builds(lambda s: ndi.zoom(np.random.default_rng(s).integers(0, 5, (12,14)), 6, order=0).astype(np.uint8), seeds)

@settings(max_examples=25, deadline=None)
@given(clusters=drawn, shrink=st.sampled_from([1,2]), hole=st.sampled_from([0,200,1500]))
def test_pseudo_masks_of_random_clusters(clusters, shrink, hole):
    image = np.take(np.uint8([220,60,170,140,190]), clusters)[...,None].repeat(3, 2)
    r = replace(tiny, cue='grey', shrink=shrink, hole=hole, least=40, wide=6*shrink)
    border = border_of(image, clusters, r)
    clean = drop_noise(border, r)
    for change in ({}, dict(dense=.1), dict(reach=0), dict(prior=False), dict(prior=False, reach=0)):
        own = replace(r, **change)
        m = pseudo_mask(image, clusters, own)
        assert m.dtype==np.uint8 and m.shape==clusters.shape and set(np.unique(m))<=({0,1,2} if own.prior else {0,2})
        assert border.any() and not ((m==2)&~border).any()
        if own.prior: assert np.array_equal(fill_small(m>0, hole/shrink**2), m>0)
        else: assert np.array_equal(m==2, clean)
        if own.prior and own.reach: assert np.array_equal(drop_small(m>0, r.wall/shrink**2), m>0)
        if own.prior and not own.reach: assert np.array_equal(m>0, fill_small(clean, hole/shrink**2)) and not ((m==1)&clean).any()

def test_pseudo_mask_without_border():
    clusters,image = np.random.default_rng(0).integers(0, 2, (40,50), dtype=np.uint8),np.full((40,50,3), 240, np.uint8)
    for change in ({}, dict(reach=0), dict(prior=False)):
        with pytest.warns(UserWarning, match='no cluster is dark'): assert not pseudo_mask(image, clusters, replace(tiny, clusters=2, **change)).any()

# A whole data set

def counted(monkeypatch, name):
    "Calls of a function of the module, as they come"
    calls,f = [],getattr(glands, name)
    def watch(*args, **kw):
        calls.append(args)
        return f(*args, **kw)
    monkeypatch.setattr(glands, name, watch)
    return calls

def test_killed_first_stage_goes_on(tmp_path, monkeypatch):
    "Only what is missing is trained, and the clusters are those of a run left in peace"
    images,seen = [noise(30, 30+8*(i%2), i) for i in range(5)],[]
    peace,f = stage_one(images, tiny),glands.cluster_responses
    def killed(*args):
        seen.append(1)
        if len(seen)>2: raise RuntimeError('killed')
        return f(*args)
    with monkeypatch.context() as m:
        m.setattr(glands, 'cluster_responses', killed)
        with pytest.raises(RuntimeError): stage_one(images, tiny, tmp_path)
    assert torch.get_num_threads()==1
    done = mtimes(tmp_path)
    assert len(done)==2 and all(p.suffix=='.png' for p in done)
    trained = counted(monkeypatch, 'train_shallow')
    again = stage_one(images, tiny, tmp_path)
    assert len(trained)==3 and len(mtimes(tmp_path))==5 and mtimes(tmp_path).items()>=done.items()
    assert all(np.array_equal(a, b) and a.shape==o.shape[:2] for a,b,o in zip(peace, again, images))
    stage_one(images[::-1], tiny, tmp_path)
    assert len(trained)==3

def test_one_image_twice(tmp_path, monkeypatch):
    trained,images = counted(monkeypatch, 'train_shallow'),[noise(20, 26), noise(26, 20, 1), noise(20, 26)]
    a,b,c = stage_one(images, tiny, tmp_path)
    assert np.array_equal(a, c) and a.shape==(20,26) and b.shape==(26,20) and len(trained)==len(mtimes(tmp_path))==2

@pytest.mark.parametrize('bad', [b'', b'no picture', None], ids=['empty','text','cut'])
def test_damaged_clusters(tmp_path, bad):
    stage_one([noise(40, 40)], tiny, tmp_path)
    file, = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:60] if bad is None else bad)
    with pytest.raises(DataError, match=file.name): stage_one([noise(40, 40)], tiny, tmp_path)

later = dict(hole=9, reach=0, sides=.1, wall=1, wide=3, rim=2, around=1., dense=.1, prior=False, cue='grey', least=1, contrast=.2, darkest=1)
later |= dict(merge=True, crop=96, epochs=7, diffusion=0.)

def test_clusters_are_kept_by_what_they_depend_on(tmp_path):
    r,image = replace(tiny, steps=1),noise(16, 16)
    stage_one([image], r, tmp_path)
    for k,v in later.items(): stage_one([image], replace(r, **{k:v}), tmp_path)
    assert len(mtimes(tmp_path))==1
    first = dict(spatial=0., seed=1, channels=5, layers=2, steps=2, rate=.1, momentum=0., clusters=3)
    for n,(k,v) in enumerate(first.items()):
        stage_one([image], replace(r, **{k:v}), tmp_path)
        assert len(mtimes(tmp_path))==n+2, k

def test_there_is_always_room_for_one(monkeypatch):
    assert fit_at_once((10**6,10**6), tiny, torch.device('cpu'))==1
    for free,n in ((0,1), (64*4*100*100*10/.8+1,10)):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (free,10**12))
        assert fit_at_once((100,100,3), tiny, torch.device('cuda'))==n

# Crops and views

@pytest.mark.parametrize('names', [(0,1,2), (0,2)])
@pytest.mark.parametrize('sizes', [[(120,130)], [(40,50)], [(10,200),(200,10),(96,96)]], ids=['large','small','mixed'])
def test_views_keep_image_and_mask_in_step(sizes, names):
    "Away from edges, where colours mix; and no label is there that was not there before"
    torch.manual_seed(1)
    both = [coloured(h, w, i, names) for i,(h,w) in enumerate(sizes)]
    dls = glands_dls([Pseudo(f'{i}', *o) for i,o in enumerate(both)], replace(tiny, batch_size=16, batches=1))
    x,y = next(iter(dls.train))
    assert x.shape==(16,3,96,96) and x.dtype==torch.uint8 and y.dtype==torch.int64 and np.array_equal(told(as_batch(x)), y)
    vx,vy = GlandViews(replace(tiny, stain_jitter=0., stain_shift=0.))(as_batch(x), y)
    assert vx.shape==(16,3,64,64) and vy.shape==(16,64,64) and set(vy.unique().tolist())<=set(names)
    deep = inner(vy.numpy())
    assert deep.mean()>.3 and (told(vx)==vy.numpy())[deep].mean()>.999
    got = GlandViews(tiny)(as_batch(x), y)
    assert got[0].min()>=0 and got[0].max()<=1

def test_crops_of_other_images_than_masks():
    with pytest.raises(DataError, match='slide 7'): glands_dls([Pseudo('slide 7', noise(99, 120), np.zeros((120,99), np.uint8))], tiny)

def test_views_are_warp_and_jitter():
    torch.manual_seed(0)
    x,y = torch.rand(4,3,96,96),torch.randint(3, (4,96,96))
    set_seed(3)
    vx,vy = GlandViews(tiny)(x, y)
    set_seed(3)
    wx,wy = Warp(tiny.crop, zoom=tiny.zoom)(x, y)
    assert torch.equal(vx, HEJitter(tiny.stain_jitter, tiny.stain_shift)(wx)) and torch.equal(vy, wy)

# The network and its loss

def by_loop(f, y, per):
    "The diffusion loss, pixel by pixel, and its gradient where the vector is a fixed target"
    (n,d,h,w),g = f.shape,np.zeros_like(f)
    places = [(b,i,j) for b,i,j in np.ndindex(n, h, w)]
    parts = [[o for o in places if o[0]==b] for b in range(n)] if per=='image' else [places]
    known = [p for p in parts if {1,2}<={y[o] for o in p}]
    total = 0.
    for p in known:
        inner,outer = ([o for o in p if y[o]==k] for k in (1,2))
        for k in range(d):
            mean = sum(f[b,k,i,j] for b,i,j in outer)/len(outer)
            for b,i,j in inner:
                total += (f[b,k,i,j]-mean)**2/(d*len(inner)*len(known))
                g[b,k,i,j] += 2*(f[b,k,i,j]-mean)/(d*len(inner)*len(known))
    return total,g

@settings(max_examples=40, deadline=None)
@given(seed=seeds, per=st.sampled_from(['image','batch']), kinds=st.lists(st.sampled_from([(0,),(0,1),(0,2),(1,),(2,),(0,1,2),(1,2)]), min_size=1, max_size=4))
def test_diffusion_loss_by_a_loop(seed, per, kinds):
    rng = np.random.default_rng(seed)
    f,y = rng.normal(size=(len(kinds),3,2,4)),np.stack([rng.choice(k, (2,4)) for k in kinds])
    t,labels = torch.from_numpy(f).requires_grad_(),torch.from_numpy(y)
    want,g = by_loop(f, y, per)
    loss = diffusion_loss(t, labels, per)
    loss.backward()
    assert loss.item()==pytest.approx(want, abs=1e-9) and np.allclose(t.grad, g)
    assert diffusion_loss(t, labels, per, False).item()==pytest.approx(want, abs=1e-9)
    assert torch.autograd.gradcheck(lambda o: diffusion_loss(o, labels, per, False), t)

@pytest.mark.parametrize('per', ['image','batch'])
@pytest.mark.parametrize('detach', [True, False])
@pytest.mark.parametrize('label', [0,1,2])
def test_nothing_to_diffuse(per, detach, label):
    f = torch.rand(2,3,4,4, requires_grad=True)
    loss = diffusion_loss(f, torch.full((2,4,4), label), per, detach)
    loss.backward()
    assert loss.item()==0 and (f.grad==0).all()

@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('depth', [3,4,5])
def test_shapes_of_the_network(depth, merge):
    r = replace(tiny, depth=depth, merge=merge)
    net,x = GlandNet(r),torch.rand(2,3,64,96)
    scores,f = net(x)
    assert scores.shape==(2,2 if merge else 3,64,96) and f.shape==(2,16,64//2**depth,96//2**depth) and net.started=='random'
    y = torch.randint(3, (2,64,96))
    own,near = GlandLoss(r).parts((scores,f), y)
    middle,half = 2**depth,2**(depth-1)
    small = np.array([[[y[b,i*middle+half,j*middle+half] for j in range(f.shape[-1])] for i in range(f.shape[-2])] for b in range(2)])
    assert near.item()==pytest.approx(by_loop(f.detach().numpy(), small, 'image')[0], rel=1e-4)
    assert own.item()==pytest.approx(F.cross_entropy(scores, (y>0).long() if merge else y).item())

@pytest.mark.parametrize('name', ['resnet35','','vit_tiny_patch16_224'])
def test_encoder_that_cannot_be(name):
    with pytest.raises(DataError, match='resnet18'): GlandNet(replace(tiny, encoder=name))

class Kill(Callback):
    "Stops a training before its second epoch"
    order = 1000
    def before_epoch(self):
        if self.epoch==1: raise KeyboardInterrupt

def test_killed_training_goes_on(samples, tmp_path):
    source,r = pseudo_masks(samples[:2], tiny),replace(tiny, epochs=2)
    def fit(folder, cbs=None):
        learn = glands_learner(glands_dls(source, r), r, folder, cbs)
        try:
            with quiet(learn): learn.fit_one_cycle(2, 1e-3)
        except KeyboardInterrupt: pass
        return learn
    whole,half,again = fit(tmp_path/'a'),fit(tmp_path/'b', Kill()),fit(tmp_path/'b')
    assert same(whole.model, again.model) and not same(whole.model, half.model)
    assert len(again.diffusion_trace.table)==4 and np.allclose(whole.diffusion_trace.table, again.diffusion_trace.table)

# Prediction

@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('shape', [(101,75), (40,130), (7,5), (1,1)])
def test_maps_of_any_size(shape, merge):
    r = replace(tiny, merge=merge, views=3)
    prob = glands_map(GlandNet(r), noise(*shape), r)
    assert prob.shape==(2 if merge else 3,*shape) and np.allclose(prob.sum(0), 1, atol=1e-4) and prob.min()>=0

@pytest.mark.parametrize('merge', [False, True])
@pytest.mark.parametrize('shrink', [1,2,3])
@pytest.mark.parametrize('shape', [(131,77), (33,40), (5,3)])
def test_predictions_have_the_size_of_the_image(shape, shrink, merge):
    r = replace(tiny, shrink=shrink, merge=merge, threshold=.3, min_size=20)
    prob,mask,inst = glands_predict(GlandNet(r), noise(*shape), r)
    assert prob.shape==mask.shape==inst.shape==shape and mask.dtype==bool and inst.dtype==np.int32 and prob.dtype==np.float32
    assert not inst[~mask].any() and prob.min()>=0 and prob.max()<=1+1e-5

def test_eight_views_turn_with_the_image(model, samples):
    r,img = replace(tiny, views=8),samples[0].image[:64,:64]
    whole = glands_map(model, img, r)
    assert np.allclose(glands_map(model, np.ascontiguousarray(np.rot90(img)), r), np.rot90(whole, axes=(1,2)), atol=1e-4)
    assert np.allclose(glands_map(model, np.ascontiguousarray(img[:,::-1]), r), whole[...,::-1], atol=1e-4)

@pytest.mark.parametrize('shrink', [1,2])
@pytest.mark.parametrize('image', [np.zeros((64,64), np.uint8), np.zeros((64,64,4), np.uint8), np.zeros((64,64,3)), [[1,2]]], ids=['grey','RGBA','float','list'])
def test_images_of_another_kind(model, image, shrink):
    with pytest.raises(DataError): glands_predict(model, image, replace(tiny, shrink=shrink))
    with pytest.raises(DataError): plain_masks['Otsu and holes'](image)

@pytest.mark.parametrize('shrink', [1,2])
def test_glands_with_a_neck_are_parted(shrink):
    "Two disks and the neck between them, and a thin piece that has no core"
    yy,xx = np.mgrid[:120,:200]
    two = [np.hypot(yy-60, xx-c)<36 for c in (50,140)]
    k = shrink
    mask = (two[0]|two[1]|((abs(yy-60)<5)&(abs(xx-95)<30))|((abs(yy-60)<3)&(xx>180)))[::k,::k]
    inst = gland_instances(mask, replace(tiny, shrink=k, neck=12, min_size=60))
    assert inst.max()==3 and np.array_equal(inst>0, mask) and len(set(inst[60//k,[50//k,140//k,190//k]]))==3
    for a,c in zip(two, (50,140)): assert (inst[a[::k,::k]]==inst[60//k,c//k]).all()

@pytest.mark.parametrize('apart', [40,38])
def test_touching_glands_are_parted(apart):
    yy,xx = np.mgrid[:60,:100]
    mask = (np.hypot(yy-30, xx-28)<20.5)|(np.hypot(yy-30, xx-28-apart)<20.5)
    inst = gland_instances(mask, replace(tiny, neck=10, min_size=60))
    assert ndi.label(mask)[1]==1 and inst.max()==2 and np.array_equal(inst>0, mask) and inst[30,28]!=inst[30,28+apart]

@settings(max_examples=30, deadline=None)
@given(seed=seeds, share=st.floats(.05, .9), shrink=st.sampled_from([1,2]), neck=st.integers(0, 6), least=st.integers(0, 60))
def test_instances_are_pieces_of_the_mask(seed, share, shrink, neck, least):
    "Each is one piece and large enough; a piece of the mask with one place that is far from its rim, or none, is one gland"
    mask,least = blobs(40, 50, seed, share, 3),least/shrink**2
    inst = gland_instances(mask, replace(tiny, shrink=shrink, neck=neck, min_size=least*shrink**2))
    assert inst.dtype==np.int32 and not (inst[~mask]).any()
    sizes = np.bincount(inst.ravel(), minlength=1)[1:]
    assert (sizes>0).all() and (sizes>=least).all() and all(ndi.label(inst==i+1)[1]==1 for i in range(len(sizes)))
    far = np.zeros(mask.shape)
    far[mask] = cdist(np.argwhere(mask), np.argwhere(~mask)).min(1)
    pieces,n = ndi.label(mask)
    for i in range(1, n+1):
        piece = pieces==i
        found,cores = set(inst[piece]),ndi.label(piece&(far>neck/shrink))[1]
        if least==0: assert len(found)==max(cores, 1)
        if cores<2: assert len(found)==1 and (0 not in found)==(piece.sum()>=least)

def test_no_mask_no_glands():
    none = np.zeros((30,40), bool)
    assert not gland_instances(none, tiny).any() and gland_instances(~none, tiny).max()==1
    for k in (0,1):
        prob = np.stack([np.full((30,40), 1.-k), np.full((30,40), k/2), np.full((30,40), k/2)]).astype(np.float32)
        assert (gland_mask(prob, tiny)==bool(k)).all()

def test_masks_of_a_further_round(model, samples):
    for merge in (False, True):
        r = replace(tiny, merge=merge, threshold=.3)
        prob = glands_map(model, samples[0].image, tiny)
        m = next_mask(prob[:2] if merge else prob, r)
        assert m.dtype==np.uint8 and set(np.unique(m))<=({0,2} if merge else {0,1,2}) and np.array_equal(m>0, gland_mask(prob, r))

# Evaluation

def drawn_sample(name, truth, **kw): return array_sample(name, np.full((*truth.shape,3), 200, np.uint8), truth.astype(np.int32), split='test', **kw)

def test_pooled_miou_by_hand():
    "Intersections and unions are added up over images of different sizes, then divided"
    rng = np.random.default_rng(0)
    shapes = [(40,50),(20,30),(64,64)]
    truths,preds = ([rng.random(s)<p for s,p in zip(shapes, ps)] for ps in ((.3,0.,.8), (.5,.2,.7)))
    given = iter(preds)
    t = glands_evaluate(lambda _: next(given), [drawn_sample(f'{i}', o) for i,o in enumerate(truths)], tiny, False)
    inter,union = (np.array([sum(f(p==k, o==k).sum() for p,o in zip(preds, truths)) for k in (True,False)]) for f in (np.logical_and, np.logical_or))
    ci = pooled_miou(t)
    assert ci.value==pytest.approx((inter/union).mean()) and ci.low<=ci.value<=ci.high and abs(ci.value-t.miou.mean())>.01
    for i,(p,o) in enumerate(zip(preds, truths)):
        both = [(p&o).sum()/(p|o).sum(), (~p&~o).sum()/(~p|~o).sum()]
        assert t.miou.iloc[i]==pytest.approx(np.mean(both)) and t[['tp','fp','fn','tn']].iloc[i].sum()==o.size
    assert not {'object_hausdorff','object_f1','object_dice'}&set(t)
    alone = pooled_miou(t[:1])
    assert alone.value==pytest.approx(t.miou.iloc[0]) and np.isnan([alone.low, alone.high]).all()

def test_scores_of_extremes():
    some = np.zeros((60,80), bool)
    some[20:40,20:50] = True
    for truth,pred,far,f1 in ((some,some,0,1), (some,~(some|True),100,0), (~(some|True),some,100,0), (~(some|True),~(some|True),0,1)):
        row = glands_evaluate(lambda _: pred, [drawn_sample('a', truth, info={'grade (GlaS)':'benign'})], tiny).loc['a']
        assert row.object_hausdorff==far and row.object_f1==f1 and row.object_dice==f1 and row.grade=='benign'
    assert mean_iou([[0,0,0,9]])==1 and mean_iou([[5,0,0,0]])==1 and mean_iou([[0,5,0,0]])==0
    assert glands_evaluate(lambda _: some, [drawn_sample('a', some)], tiny).grade.isna().all()

def test_functions_answer_at_full_size():
    "A recipe for small images cuts a function's mask as one for large images does"
    yy,xx = np.mgrid[:60,:100]
    mask = (np.hypot(yy-30, xx-28)<20.5)|(np.hypot(yy-30, xx-68)<20.5)|((yy<3)&(xx<30))
    f = lambda k, neck: glands_evaluate(lambda _: mask, [drawn_sample('a', ndi.label(mask)[0])], replace(tiny, shrink=k, neck=neck, min_size=100))
    assert f(1, 10).equals(f(2, 10)) and not f(1, 10).equals(f(1, 0))

# What it is compared with

@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(2, 5))
def test_mutual_information_by_a_loop(seed, k):
    rng = np.random.default_rng(seed)
    p,q = (torch.from_numpy(rng.normal(0, rng.uniform(.1, 9), (2,k,3,4))).softmax(1) for _ in range(2))
    P = np.zeros((k,k))
    for b,i,j in np.ndindex(2, 3, 4):
        for a,c in np.ndindex(k, k): P[a,c] += (p[b,a,i,j]*q[b,c,i,j]+q[b,a,i,j]*p[b,c,i,j])/48
    want = sum(P[a,c]*math.log(P[a,c]/(P[a].sum()*P[:,c].sum())) for a,c in np.ndindex(k, k) if P[a,c]>0)
    got = mutual_information(p, q).item()
    assert got==pytest.approx(want, abs=1e-6) and -1e-6<got<=math.log(k)+1e-6 and got==pytest.approx(mutual_information(q, p).item())

def test_mutual_information_at_its_bounds():
    p = F.one_hot(torch.arange(12).view(1,3,4)%3).movedim(-1, 1).double()
    assert mutual_information(p, p).item()==pytest.approx(math.log(3), abs=1e-6)
    assert mutual_information(p, torch.full_like(p, 1/3)).item()==pytest.approx(0, abs=1e-6)

@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 6), d=st.integers(1, 5))
def test_nearest_centre(seed, k, d):
    rng = np.random.default_rng(seed)
    centres,f = rng.normal(size=(k,d)),rng.normal(size=(2,d,4,3)).astype(np.float32)
    layer = centres_layer(centres)
    assert np.array_equal(layer(torch.from_numpy(f)).argmax(1), cdist(np.moveaxis(f, 1, -1).reshape(-1, d), centres).argmin(1).reshape(2,4,3))
    assert not any(p.requires_grad for p in layer.parameters())

def test_kmeans_of_features_finds_what_is_apart():
    f = torch.randn(3,2,6,6, generator=torch.Generator().manual_seed(0))*.1
    f[:,:,:2] += 9
    y = kmeans_layer([f[:1],f[1:]], 2)(f).argmax(1)
    assert (y[:,:2]==y[0,0,0]).all() and (y[:,2:]==1-y[0,0,0]).all()

@settings(max_examples=20, deadline=None)
@given(seed=seeds, k=st.integers(2, 4))
def test_groups_weigh_the_same(seed, k):
    rng = np.random.default_rng(seed)
    s,y = rng.normal(size=(2,k,3,3)).astype(np.float32),rng.choice(k, (2,3,3), p=[.8,*[.2/(k-1)]*(k-1)])
    groups = {}
    for b,i,j in np.ndindex(2, 3, 3): groups.setdefault(y[b,i,j], []).append(np.log(np.exp(s[b,:,i,j]).sum())-s[b,y[b,i,j],i,j])
    assert balanced(torch.from_numpy(s), torch.from_numpy(y)).item()==pytest.approx(np.mean([np.mean(v) for v in groups.values()]), rel=1e-4)

@pytest.mark.parametrize('system', list(group_methods))
def test_every_method_learns_and_gives_maps(system, samples):
    r = replace(tiny, shrink=2)
    learn = group_learner(system, glands_dls(pseudo_masks(samples[:2], tiny), tiny), r)
    fresh = group_methods[system](r)
    assert len(learn.recorder.values if learn.model.trained else [])==int(fresh.trained) and learn.monitor.table.images.sum()==4*fresh.trained
    if fresh.trained: assert np.isfinite(learn.recorder.values[-1]).all()
    odd = array_sample('odd', samples[0].image[:61,:77], samples[0].instances[:61,:77])
    maps = group_maps(learn.model, [odd,samples[4]], r)
    assert [m.shape for m in maps]==[(61,77),(80,80)] and all(set(np.unique(m))<={0,1} for m in maps)
    assert not learn.model.training

@pytest.mark.parametrize('system', ['DeepCluster','IIC','PiCIE'])
def test_training_moves_the_features(system, samples):
    dls = glands_dls(pseudo_masks(samples[:2], tiny), tiny)
    set_seed(tiny.seed)
    a,b = group_methods[system](tiny),group_learner(system, dls, tiny).model
    for part in ('body','embed'): assert not same(getattr(a, part), getattr(b, part)), part

def test_masks_are_not_looked_at(samples):
    "The compared methods are the same whatever the masks of their crops say"
    a,b = ([Pseudo(s.name, s.image, np.full((80,80), k, np.uint8)) for s in samples[:2]] for k in (0,2))
    assert same(*(group_learner('PiCIE', glands_dls(o, tiny), tiny).model for o in (a,b)))

def test_the_old_network_stands_still():
    torch.manual_seed(0)
    model,x = DeepCluster(tiny),torch.rand(2,3,64,64)
    model.eval().regroup([x])
    old = model.old[0]
    kept = {k:v.clone() for k,v in old.state_dict().items()}
    opt = torch.optim.SGD(model.parameters(), .1)
    model.train()
    for _ in range(2):
        opt.zero_grad()
        model(x).backward()
        opt.step()
    assert all(p.grad is None and not p.requires_grad for p in old.parameters()) and not old.training
    assert all(torch.equal(v, kept[k]) for k,v in old.state_dict().items())
    assert not {id(p) for p in old.parameters()}&{id(p) for p in model.parameters()}
    assert model.head.weight.grad.abs().sum()>0 and model.embed.weight.grad.abs().sum()>0 and not torch.equal(old[1].weight, model.embed.weight)

def test_the_head_of_deepcluster_learns(samples, monkeypatch):
    made,f = [],DeepCluster.regroup
    def watch(self, batches):
        f(self, batches)
        made.append(self.head.weight.detach().clone())
    monkeypatch.setattr(DeepCluster, 'regroup', watch)
    model = group_learner('DeepCluster', glands_dls(pseudo_masks(samples[:2], tiny), tiny), tiny).model
    assert made[-1].shape==model.head.weight.shape and not torch.equal(made[-1], model.head.weight)

def test_iic_gives_the_groups_it_was_trained_on(monkeypatch):
    "The bias is such that it matters how sharp the features are"
    torch.manual_seed(0)
    model,x,seen = IIC(tiny).eval(),torch.rand(2,3,64,64),[]
    model.jitter = torch.nn.Identity()
    monkeypatch.setattr(glands, 'mutual_information', lambda p, q: seen.append(p.log()) or p.sum())
    with torch.no_grad():
        model(x)
        model.head.bias[0] -= (seen[0][:,0]-seen[0][:,1]).median()
        model(x)
        want = F.interpolate(seen[1], (64,64), mode='bilinear').argmax(1)
        assert .1<want.float().mean()<.9 and (model.groups(x).argmax(1)==want).float().mean()>.98

def test_views_of_picie_lie_upon_each_other():
    torch.manual_seed(0)
    model = PiCIE(replace(tiny, stain_jitter=0., stain_shift=0.)).eval()
    x = torch.rand(1,3,64,64)
    with torch.no_grad(): pairs = [model.views(x, i) for i in range(8)]
    assert torch.allclose(*pairs[0], atol=1e-4) and all(f.shape==g.shape for f,g in pairs)
    seen = []
    model.features = lambda o: (seen.append(o) or o)
    for i in range(8): assert torch.allclose(*model.views(x, i), atol=.02)

def test_one_matching_for_all_images():
    "An image that has its groups the other way round is wrong, though a matching of its own would make it right"
    truth = np.zeros((30,40), np.int32)
    truth[:10] = 1
    a,b = truth.copy(),truth[:20,:30]
    maps = [1-a,1-a,b]
    ss = [drawn_sample('1', a), drawn_sample('2', a), drawn_sample('3', b)]
    together = name_groups(maps, ss)
    assert [(m==(s.instances>0)).mean() for m,s in zip(together, ss)]==[1,1,0]
    assert np.array_equal(name_groups(maps[2:], ss[2:])[0], b>0)

def test_groups_of_colours(samples):
    dark = array_sample('a', np.where(np.indices((50,60))[1][...,None]<30, np.uint8([90,60,140]), np.uint8([230,200,210])), np.zeros((50,60), np.int32))
    for k in (1,2):
        g = colour_groups([dark], replace(tiny, shrink=k))(dark.image)
        assert g.shape==(50,60) and (g[:,:24]==g[0,0]).all() and (g[:,36:]==1-g[0,0]).all()

# Both stages

def steps_taken(monkeypatch):
    "Batches that each network of the second stage was trained on, by the folder of its checkpoint"
    seen,f = {},glands.glands_learner
    class Count(Callback):
        def __init__(self, key): self.key = key
        def after_batch(self):
            if self.training: seen[self.key] += 1
    def make(dls, recipe, folder=None, cbs=None):
        key = folder and Path(folder).name
        seen[key] = 0
        return f(dls, recipe, folder, [Count(key)])
    monkeypatch.setattr(glands, 'glands_learner', make)
    return seen

def test_a_second_round_goes_on_from_the_first(samples, tmp_path, monkeypatch):
    seen,train = steps_taken(monkeypatch),samples[:3]
    first = glands_fit(train, tiny, tmp_path)
    assert seen=={'round 1':2}
    done = mtimes(tmp_path)
    trained = counted(monkeypatch, 'train_shallow')
    sources = counted(monkeypatch, 'glands_dls')
    second = glands_fit(train, replace(tiny, rounds=2), tmp_path)
    assert seen=={'round 1':0, 'round 2':2} and not trained and mtimes(tmp_path).items()>=done.items()
    assert len(list(tmp_path.glob('*/round 1')))==len(list(tmp_path.glob('*/round 2')))==1 and not same(first.model, second.model)
    for s,o in zip(train, sources[1][0]): assert np.array_equal(o.mask, next_mask(glands_map(first, s.image, tiny), tiny)) and o.name==s.name
    glands_fit(train, replace(tiny, rounds=2), tmp_path)
    assert seen=={'round 1':0, 'round 2':0}
    glands_fit(train, replace(tiny, lr=1e-4), tmp_path)
    assert seen['round 1']==2 and len(list(tmp_path.glob('*/round 1')))==2

def test_a_folder_of_other_images(samples, tmp_path):
    glands_fit(samples[:2], tiny, tmp_path)
    glands_fit(samples[1::-1], tiny, tmp_path)
    for other in (samples[:3], samples[1:2], [replace(samples[0], name='b'), samples[1]]):
        with pytest.raises(DataError, match='other images'): glands_fit(other, tiny, tmp_path)

def test_annotation_is_not_opened(samples):
    blind = [array_sample(s.name, s.image, split='train') for s in samples[:2]]
    assert same(glands_fit(blind, tiny).model, glands_fit(samples[:2], tiny).model)

# Rows, grids and the board

def test_all_systems_in_a_grid(samples, tmp_path):
    "Each is run once, none overwrites another, and each image is clustered once for all that share its clusters"
    run = gland_grid(gland_systems, samples, tiny, 'made', tmp_path/'run', 'tiny', tmp_path/'results')
    df = ledger.results('glands', tmp_path/'results')
    assert run==gland_systems==list(dict.fromkeys(gland_systems)) and set(df.system)==set(gland_systems)
    for (system,_),o in df.groupby(['system','split']): assert set(o.metric)=={'miou', *(score_names if system in object_systems else [])}, system
    assert len(list((tmp_path/'run'/'stage1').glob('*.png')))==5+3
    own = df[df.metric=='miou']
    assert all(mean_iou(list(v.values()))==pytest.approx(m) for v,m in zip(own.pixels, own.value))
    assert set(own[own.started.notna()].system)=={*group_methods, *gland_changes}
    board = gland_board('test', 'made', 'tiny', tmp_path/'results')
    assert set(board.index)==set(gland_systems) and board.miou.is_monotonic_decreasing
    assert gland_grid(gland_systems, samples, tiny, 'made', tmp_path/'run', 'tiny', tmp_path/'results')==[]

def test_the_ledger_holds_what_was_measured(samples, tmp_path):
    tables = gland_row('Otsu and holes', samples, tiny, 'made', None, 'tiny', tmp_path)
    df = ledger.results('glands', tmp_path).set_index(['split','metric'])
    assert list(tables)==['train','test'] and len(df)==8
    for split,t in tables.items():
        part = [s for s in samples if s.split==split]
        assert t.equals(glands_evaluate(plain_masks['Otsu and holes'], part, tiny))
        assert df.loc[(split,'miou')].value==pytest.approx(pooled_miou(t).value) and df.loc[(split,'miou')].per_image==t.miou.round(4).to_dict()
        for k in ('object_f1','object_dice','object_hausdorff'): assert df.loc[(split,k)].value==pytest.approx(t[k].mean())
        assert df.loc[(split,'miou')].pixels=={s.name:t.loc[s.name, ['tp','fp','fn','tn']].tolist() for s in part}
        assert df.loc[(split,'miou')].grades=={s.name:s.info['grade (GlaS)'] for s in part}
    assert GlandRecipe.from_dict(df.recipe.iloc[0])==tiny

def test_killed_grid_goes_on(samples, tmp_path, monkeypatch):
    systems,f = ['all gland','chance','stage 1'],glands.gland_row
    def killed(system, *args):
        if system=='chance': raise KeyboardInterrupt
        return f(system, *args)
    grid = lambda r=tiny, some=systems: gland_grid(some, samples, r, 'made', tmp_path/'run', 'tiny', tmp_path/'results')
    with monkeypatch.context() as m:
        m.setattr(glands, 'gland_row', killed)
        with pytest.raises(KeyboardInterrupt): grid()
    done = mtimes(tmp_path/'results')
    assert set(ledger.results('glands', tmp_path/'results').system)=={'all gland'}
    assert grid()==['chance','stage 1'] and mtimes(tmp_path/'results').items()>=done.items() and grid()==[]
    assert grid(replace(tiny, least=300))==systems and grid(replace(tiny, seed=1, least=300))==systems
    assert len(ledger.results('glands', tmp_path/'results').seed.unique())==2

def killed_at(split, metric):
    f = ledger.save_result
    def save(paper, system, dataset, part, m, *args, **kw):
        if (part,m)==(split,metric): raise KeyboardInterrupt
        return f(paper, system, dataset, part, m, *args, **kw)
    return save

@pytest.mark.parametrize('metric', ['miou','object_f1','object_dice','object_hausdorff'])
def test_killed_within_a_row(metric, samples, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        for module in (ledger, glands): m.setattr(module, 'save_result', killed_at('test', metric))
        with pytest.raises(KeyboardInterrupt): gland_row('Otsu and holes', samples, tiny, 'made', None, 'tiny', tmp_path)
    assert gland_grid(['Otsu and holes'], samples, tiny, 'made', None, 'tiny', tmp_path)==['Otsu and holes']
    assert len(ledger.results('glands', tmp_path))==8

def test_rows_there_are_not(samples, tmp_path):
    with pytest.raises(DataError, match='no system'): gland_grid(['finale'], samples, tiny, 'made', None, 'tiny', tmp_path)
    for system in ('chance','stage 1','PiCIE','final','colour K-means'):
        with pytest.raises(DataError, match='nothing to learn from'): gland_grid([system], samples[3:], tiny, 'made', None, 'tiny', tmp_path)
    with pytest.raises(DataError, match='no method'): group_learner('SimCLR', None, tiny)
    with pytest.raises(DataError, match='nothing was measured'): gland_board('test', 'made', 'tiny', tmp_path)
    assert not list(tmp_path.iterdir())

def written(folder, system, pixels, seed=42, grades=(), split='test', scale='small', dataset='GlaS', **scores):
    "A made-up row of the ledger"
    px = {f'i{k}':list(o) for k,o in enumerate(pixels)}
    about = dict(scale=scale, seed=seed, folder=folder)
    ledger.save_result('glands', system, dataset, split, 'miou', mean_iou(pixels), pixels=px, grades={f'i{k}':g for k,g in enumerate(grades)}, **about)
    for k,v in scores.items(): ledger.save_result('glands', system, dataset, split, k, v, **about)

def test_board_by_hand(tmp_path):
    a,b = [(50,10,20,20),(30,0,0,70),(10,40,30,20)],[(40,20,10,30),(30,10,0,60),(30,20,10,40)]
    grades = ['benign','malignant','malignant']
    written(tmp_path, 'final', a, 42, grades, object_f1=.4, object_dice=.5, object_hausdorff=30.)
    written(tmp_path, 'final', b, 43, grades, object_f1=.6, object_dice=.8, object_hausdorff=50.)
    written(tmp_path, 'chance', [(1,1,1,1)], object_f1=.1)
    written(tmp_path, 'final', a[:1], split='train')
    written(tmp_path, 'final', a[:1], scale='tiny')
    written(tmp_path, 'final', a[:1], dataset='CRAG')
    board = gland_board(folder=tmp_path)
    assert list(board.index)==['final','chance'] and board.seeds.tolist()==[2,1]
    f,c = board.loc['final'],board.loc['chance']
    def by_hand(images):
        tp,fp,fn,tn = np.sum(images, 0)
        return (tp/(tp+fp+fn)+tn/(tn+fp+fn))/2
    assert f.miou==pytest.approx((by_hand(a)+by_hand(b))/2, abs=6e-4) and c.miou==pytest.approx(1/3, abs=6e-4)
    assert (f.object_f1, f.object_dice, f.object_hausdorff)==(.5,.65,40.) and c.object_f1==.1 and np.isnan(c.object_dice)
    mean = np.mean([a,b], 0)
    assert f.benign==pytest.approx(by_hand(mean[:1]), abs=6e-4) and f.malignant==pytest.approx(by_hand(mean[1:]), abs=6e-4) and np.isnan(c.benign)
    low,high = map(float, f.interval.split(' to '))
    each = [by_hand([o]) for o in mean]
    assert min(each)-.05<=low<f.miou<high<=max(each)+.05 and 'nan' in c.interval
    assert gland_board('train', folder=tmp_path).index.tolist()==['final']
    written(tmp_path, 'PiCIE', a[:1])
    written(tmp_path, 'PiCIE', a[:2], 43)
    assert 'nan' not in gland_board(folder=tmp_path).interval['PiCIE']

# Official layouts

def bytes_of(s): return relabel_sequential(s.instances)[0].astype(np.uint8) # the annotation as the files hold it

def glas_official(root, made):
    d = root/'Warwick QU Dataset (Released 2016_07_08)'
    for n,s in zip(('testA_1','testB_1','train_1','train_2'), made):
        put(d/f'{n}.bmp', s.image)
        put(d/f'{n}_anno.bmp', bytes_of(s))
    rows = ['testA_1,2, malignant, moderately differentiated','testB_1,3, benign, healthy','train_1,1, benign, adenomatous','train_2,1, malignant, poorly differentiated']
    (d/'Grade.csv').write_text('\r\n'.join(['name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)', *rows])+'\r\n')
    return root

def test_glas_as_it_is_handed_out(samples, tmp_path):
    ss = gland_samples(glas_official(tmp_path/'glas', samples))
    assert list(ss.attrgot('split'))==['train','train','testA','testB'] and np.array_equal(ss[2].instances, bytes_of(samples[0]))
    tables = gland_row('Otsu and holes', ss, tiny, results=tmp_path/'results', scale='tiny')
    assert {k:list(t.grade) for k,t in tables.items()}==dict(train=['benign','malignant'], testA=['malignant'], testB=['benign'])
    board = {k:gland_board(k, scale='tiny', folder=tmp_path/'results').loc['Otsu and holes'] for k in tables}
    assert board['testA'].malignant==board['testA'].miou and board['testB'].benign==board['testB'].miou and 'benign' not in board['testA']
    t = tables['train']
    assert board['train'].benign==pytest.approx(t.miou.iloc[0], abs=6e-4) and board['train'].malignant==pytest.approx(t.miou.iloc[1], abs=6e-4)
    assert gland_grid(['Otsu and holes'], ss, tiny, scale='tiny', results=tmp_path/'results')==[]

def test_crag_as_it_is_handed_out(samples, tmp_path):
    for part,n,s in zip(('train','train','valid'), ('train_1','train_2','test_1'), samples):
        for d,a in (('Images', s.image), ('Annotation', bytes_of(s)), ('Overlay', s.image)): put(tmp_path/'CRAG'/part/d/f'{n}.png', a)
    ss = crag(tmp_path)
    assert sorted(ss.attrgot('split'))==['test','train','train']
    assert list(gland_row('Otsu and holes', ss, tiny, 'CRAG', None, 'tiny', tmp_path/'results'))==list(dict.fromkeys(ss.attrgot('split')))
    board = gland_board('test', 'CRAG', 'tiny', tmp_path/'results')
    assert board.index.tolist()==['Otsu and holes'] and not {'benign','malignant'}&set(board)

def test_claims_of_the_proposal():
    df = ledger.claims('glands')
    of = df[df.metric=='miou %'].set_index('system').value
    assert of['final']-of['PiCIE']==pytest.approx(17) and (of['stage 1'], of['stage 1 + prior'], of['final'])==(41.1,49.3,56.3)
    assert of['random init']<of['PiCIE']<of['stage 1']<of['stage 1 + prior']<of['final'] and of[['DeepCluster','IIC']].isna().all()
    assert set(df.system)<=set(gland_systems) and set(df.dataset)=={'GlaS'} and of.index.is_unique

kept = here/'results'/'glands-glas-otsu_and_holes-train-miou-small-42.json'

@real
@pytest.mark.skipif(not kept.exists(), reason='the classical baseline was not measured yet')
def test_the_classical_baseline_on_the_data():
    pixels,some = json.loads(kept.read_text())['pixels'],[s for s in gland_samples() if s.split=='train'][:3]
    table = glands_evaluate(plain_masks['Otsu and holes'], some, GlandRecipe.at('small'), False)
    assert len(some)==3 and {k:row.tolist() for k,row in table[['tp','fp','fn','tn']].iterrows()}=={s.name:pixels[s.name] for s in some}

def test_the_benchmark_runs(tmp_path):
    "Both ways are trained, or it stops; tried once, nothing is kept"
    env = dict(os.environ, HISTOLAB_RESULTS=str(tmp_path), OMP_NUM_THREADS='1')
    run = [sys.executable, here/'benchmarks'/'glands.py', '--quick', '--scale', 'tiny', '--device', 'cpu', '--threads', '1']
    done = subprocess.run(run, capture_output=True, text=True, env=env)
    assert done.returncode==0, done.stderr
    assert 'times as fast as the bare loop' in done.stdout and not list(tmp_path.iterdir())
