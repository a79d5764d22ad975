"What no notebook can hold of U-Net#: losses and gates by a loop, odd images, killed normalisations, trainings and grids, official layouts"
import json, math, os, time
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, segmentation_models_pytorch as smp, torch
from matplotlib.colors import to_rgb
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import ndimage as ndi
from torch import nn
from torch.nn import functional as F
from histolab_nb import ledger, unet_sharp
from histolab_nb.augment import Warp
from histolab_nb.core import DataError, set_seed
from histolab_nb.datasets import array_sample, shrink_image, shrink_map
from histolab_nb.inference import class_colour, save_nuclei
from histolab_nb.metrics import averaged, class_scores, confusion, interval
from histolab_nb.phantom import phantom_nuclei
from histolab_nb.slides import Slide, write_slide
from histolab_nb.stain import Macenko
from histolab_nb.training import Callback, as_batch, load_model
from histolab_nb.unet_sharp import ASPP, AttentionGate, FocalTversky, ForegroundDice, OneOf, ScaleInput, SharpNode, SharpRecipe, SharpViews, UnetSharp
from histolab_nb.unet_sharp import (adabound, adabound_bounds, class_instances, class_map, class_summary, colour_forest, freeze_norms, mixed_share)
from histolab_nb.unet_sharp import (normalise_samples, pooled_dice, prepare, save_sharp, sharp_board, sharp_changes, sharp_diagram, sharp_fit, sharp_grid)
from histolab_nb.unet_sharp import (sharp_loss, sharp_losses, sharp_map, sharp_net, sharp_nets, sharp_recipe, sharp_row, sharp_rules, sharp_samples)
from histolab_nb.unet_sharp import (sharp_systems, slide_stain, as_trained, trained_parameters, tversky_index, unet_sharp_dls, unet_sharp_evaluate)
from histolab_nb.unet_sharp import sharp_train, unet_sharp_learner, unet_sharp_nuclei, unet_sharp_predict
from helpers import coloured, inner, mtimes, noise, on_cpu, palette, same, told
from test_datasets import put

real = pytest.mark.skipif(not os.environ.get('HISTOLAB_DATA'), reason='no data folder is known: set HISTOLAB_DATA')
tiny = SharpRecipe.at('tiny', encoder='resnet10t', width=4, window=80, crop=64, batch_size=2, batches=2, epochs=1, trees=3, min_size=0)
plain = replace(tiny, macenko=False)
kinds = ('neoplastic','inflammatory','connective','dead','epithelial')
seeds = st.integers(0, 999)
sharps = [k for k,v in sharp_nets.items() if isinstance(v, dict)]

class Told(nn.Module):
    "Tells the class of each pixel by its colour, and looks nowhere else"
    started = 'random'
    def __init__(self, colours=palette):
        super().__init__()
        self.colours = nn.Parameter(torch.from_numpy(colours).float()[:,:,None,None]/255)
    def forward(self, x): return -(x[:,None]-self.colours).square().sum(2)*400

def colour_sample(name, h=64, w=64, seed=0, names=(0,1,2), split='val', **kw):
    "A sample that `Told` gets right"
    image,mask = coloured(h, w, seed, names)
    return array_sample(name, image, class_instances(mask) if kw.pop('instances', True) else None, mask, split=split, class_names=('a','b'), **kw)

def counted(monkeypatch, owner, name):
    "Calls of a function, as they come"
    calls,f = [],getattr(owner, name)
    def watch(*args, **kw):
        calls.append(args)
        return f(*args, **kw)
    monkeypatch.setattr(owner, name, watch)
    return calls

@pytest.fixture(scope='module')
def samples():
    "Three images to learn from and two to watch, all classes in each part"
    places = 'tumour','necrosis','glands','stroma','lymphoid'
    return phantom_nuclei(3, 96, 1, 'train', .5, regions=places)+phantom_nuclei(2, 96, 2, 'val', .5, regions=places)

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return UnetSharp(6, 'resnet10t', 4).eval()

cpu = on_cpu(unet_sharp)

# The recipe

shares = ('balance','noise','blur','move','bend','colour','stain_jitter','anneal','beta')
ones,nones = ('shrink','window','width','batch_size','accumulate','epochs','patience','trees'),('freeze_epochs','batches','min_size')
wrong = [*((k,v) for k in shares for v in (-.01,1.01,math.nan)), *((k,v) for k in ones for v in (0,-3)), *((k,-1) for k in nones)]
wrong += [*((k,v) for k in ('lr','final_lr','bound','focal','mpp') for v in (0.,-1.,math.nan))] + [('crop',v) for v in (0,-32,31,33,100)] + [('zoom',.99),('overlap',1.),('overlap',-.01),('window',63),('net','SegNet'),('net',''),('loss','dice')]

@pytest.mark.parametrize('field,value', wrong)
def test_recipes_there_cannot_be(field, value):
    with pytest.raises(DataError, match=f'^{field} cannot be'): replace(tiny, **{field:value})

def test_every_rule_has_a_test_and_a_default_that_fits():
    assert set(sharp_rules)|{'net','loss'}=={k for k,_ in wrong}
    for k,(fits,_) in sharp_rules.items():
        for r in map(SharpRecipe.at, ('tiny','small','paper')): assert fits(getattr(r, k)), k
    for k in shares: assert {getattr(replace(tiny, **{k:v}), k) for v in (0.,1.)}=={0.,1.}

@pytest.mark.parametrize('scale', ['tiny','small','paper'])
def test_recipes_are_kept(scale, tmp_path):
    r = SharpRecipe.at(scale, net='U-Net++', loss='pooled', seed=7)
    assert SharpRecipe.load(r.save(tmp_path/'r.json'))==r and SharpRecipe.from_dict(json.loads(json.dumps(r.to_dict())))==r
    assert SharpRecipe.at(scale, crop=r.crop)==SharpRecipe.at(scale) and (scale=='paper')==(SharpRecipe.at(scale)==SharpRecipe())

@pytest.mark.parametrize('vals,says', [(dict(crops=64),'no field'), (dict(crop='64'),'of type int'), (dict(crop=48),'cannot be'), (dict(macenko=1),'of type bool')])
def test_recipes_from_files_are_checked(vals, says):
    with pytest.raises(DataError, match=says): SharpRecipe.at('tiny', **vals)
    with pytest.raises(DataError, match=says): SharpRecipe.from_dict(tiny.to_dict()|vals)

# Class maps

def with_classes(m, instances=None, names=kinds): return array_sample('a', np.zeros((*m.shape,3), np.uint8), instances, m, class_names=names)

@settings(max_examples=30, deadline=None)
@given(seed=seeds, kind=st.sampled_from([np.uint8, np.int64, np.float32, np.float64, bool]))
def test_whole_numbers_are_class_maps(seed, kind):
    m = np.random.default_rng(seed).integers(0, 2 if kind is bool else 6, (9,7))
    got = class_map(with_classes(m.astype(kind)))
    assert got.dtype==np.uint8 and np.array_equal(got, m)

@pytest.mark.parametrize('value,says', [(6,'has a class 6'), (255,'has a class 255'), (300,'has a class 300'), (-1,'run from -1'), (.5,'whole numbers'), (1+1e-6,'whole numbers'), (math.nan,'whole numbers'), (math.inf,'.')])
def test_no_class_maps(value, says):
    m = np.zeros((5,6), np.int64 if isinstance(value, int) else np.float64)
    m[2,3] = value
    with pytest.raises(DataError, match=says): class_map(with_classes(m))

def test_class_maps_that_are_not_there():
    with pytest.raises(DataError, match='has no class map'): class_map(array_sample('a', noise(5, 6)))
    with pytest.raises(DataError, match='0 \\(background\\) to 0'): class_map(with_classes(np.ones((5,6), np.uint8), names=()))
    with pytest.raises(DataError, match='picture in colours'): class_map(replace(with_classes(np.zeros((5,6), np.uint8)), load_classes=lambda shape: noise(5, 6)))

@settings(max_examples=40, deadline=None)
@given(seed=seeds, ids=st.integers(0, 5))
def test_mixed_share_by_a_loop(seed, ids):
    rng = np.random.default_rng(seed)
    inst,m = rng.integers(0, ids+1, (4,5))*700,rng.integers(0, 3, (4,5))
    m = np.where(rng.random((4,5))<.8, inst//700%3, m)
    found = [len({int(m[i,j]) for i,j in np.ndindex(4, 5) if inst[i,j]==k})>1 for k in set(inst.ravel().tolist())-{0}]
    assert mixed_share(m, inst)==pytest.approx(np.mean(found) if found else 0)

def disks(h, w, step=24, radius=8):
    yy,xx = np.mgrid[:h,:w]
    near = np.hypot(yy%step-step/2, xx%step-step/2)<radius
    return np.where(near, 1+yy//step*((w-1)//step+1)+xx//step, 0).astype(np.int32)

@pytest.mark.parametrize('size', [(48,48), (100,90), (192,192), (300,200)])
@pytest.mark.parametrize('alone', [False, True])
def test_interpolated_class_maps(size, alone):
    "Resized like a picture a class map is refused, as floats for its values and as bytes for its rims; by the nearest pixel it passes"
    inst = disks(96, 96)
    m = np.where(inst>0, 5 if alone else inst%5+1, 0).astype(np.uint8)
    def sized(a, how): return np.asarray(Image.fromarray(a).resize(size[::-1], how))
    near = sized(inst, Image.Resampling.NEAREST)
    for a in (m.astype(np.float32), m):
        with pytest.raises(DataError, match='interpolation'): class_map(with_classes(sized(a, Image.Resampling.BILINEAR), near))
    assert np.array_equal(class_map(with_classes(sized(m, Image.Resampling.NEAREST), near)), sized(m, Image.Resampling.NEAREST))

def test_one_class_is_never_mixed():
    inst = disks(96, 96)
    m = (inst>0).astype(np.uint8)
    m[::3] = 0
    assert np.array_equal(class_map(with_classes(m, inst, ('nucleus',))), m) and np.array_equal(class_map(with_classes(m)), m)

@real
def test_real_classes_pass():
    for s in sharp_samples('consep')[::9]:
        m = class_map(s)
        assert np.array_equal(m, s.classes) and m.max()<=4 and mixed_share(m, s.instances)<.1

# Stain

def stained(samples, n=3): return samples[:n]

def one_colour(name, value, h=60, w=70, **kw): return array_sample(name, np.full((h,w,3), value, np.uint8), **kw)

@pytest.mark.parametrize('workers', [0,1,3])
@pytest.mark.parametrize('kept', [False, True])
def test_normalised_as_each_alone(samples, tmp_path, workers, kept):
    even,bad = normalise_samples(samples, tmp_path if kept else None, workers, False)
    assert not len(bad) and list(bad.columns)==['name','tissue','why'] and list(even.attrgot('name'))==[s.name for s in samples]
    for a,s in zip(even, samples):
        assert np.array_equal(a.image, Macenko().fit(s.image).transform(s.image))
        assert np.array_equal(a.classes, s.classes) and np.array_equal(a.instances, s.instances)
        assert (a.split, a.class_names, a.shape)==(s.split, s.class_names, s.shape)
    assert len(list(tmp_path.iterdir()))==5*kept

def test_killed_normalisation_goes_on(samples, tmp_path, monkeypatch):
    f,seen = Macenko.fit,[]
    def killed(self, *args):
        seen.append(1)
        if len(seen)>2: raise KeyboardInterrupt
        return f(self, *args)
    with monkeypatch.context() as m:
        m.setattr(Macenko, 'fit', killed)
        with pytest.raises(KeyboardInterrupt): normalise_samples(samples, tmp_path, 1, False)
    done = mtimes(tmp_path)
    assert len(done)==2
    fits = counted(monkeypatch, Macenko, 'fit')
    even,_ = normalise_samples(samples, tmp_path, 1, False)
    assert len(fits)==3 and len(mtimes(tmp_path))==5 and mtimes(tmp_path).items()>=done.items()
    again,_ = normalise_samples(samples[::-1], tmp_path, 2, False)
    assert len(fits)==3 and all(np.array_equal(a.image, b.image) for a,b in zip(even, again[::-1]))

def test_what_a_kept_image_depends_on(samples, tmp_path, monkeypatch):
    "Its pixels, its shape and the settings; not its name"
    fits,(a,b) = counted(monkeypatch, Macenko, 'fit'),samples[:2]
    first = normalise_samples([a], tmp_path, 1, False)[0][0].image
    other = normalise_samples([replace(b, name=a.name)], tmp_path, 1, False)[0][0].image
    assert len(fits)==2 and not np.array_equal(first, other)
    wider = normalise_samples([a], tmp_path, 1, False, alpha=5)[0][0].image
    assert np.array_equal(normalise_samples([replace(a, name='z')], tmp_path, 1, False)[0][0].image, first) and len(fits)==3
    flat = array_sample('flat', a.image.reshape(48, 192, 3))
    assert normalise_samples([flat], tmp_path, 1, False)[0][0].image.shape==(48,192,3) and len(fits)==4
    assert np.array_equal(wider, Macenko(alpha=5).fit(a.image).transform(a.image)) and not np.array_equal(wider, first)

def test_settings_that_no_json_knows(samples, tmp_path):
    target = Macenko().fit(samples[1].image)
    even,_ = normalise_samples(samples[:1], tmp_path, 1, False, target=target)
    assert np.array_equal(even[0].image, Macenko(target=target).fit(samples[0].image).transform(samples[0].image))

def test_tiles_without_two_dyes(samples, tmp_path, monkeypatch, capsys):
    "Reported each time, tried once, passed through; tissues are kept"
    some = [one_colour('glass', 240, organ='Colon'), replace(samples[0], organ='Breast'), one_colour('pink', [220,120,180], organ='Liver'), one_colour('speck', 200, 3, 3)]
    fits = counted(monkeypatch, Macenko, 'fit')
    for folder in (tmp_path, tmp_path, None):
        even,bad = normalise_samples(some, folder, 2, False)
        assert bad.name.tolist()==['glass','pink','speck'] and bad.tissue.dropna().tolist()==['Colon','Liver'] and bad.why.str.len().min()>10
        assert [s.organ for s in even]==['Colon','Breast','Liver',None] and all(np.array_equal(even[i].image, some[i].image) for i in (0,2,3))
        assert '3 of 4 images' in capsys.readouterr().out
    assert len(fits)==8 and len(mtimes(tmp_path))==4

@pytest.mark.parametrize('bad', [b'', b'no picture', None], ids=['empty','text','cut'])
def test_damaged_normalised_image(samples, tmp_path, bad):
    prepare(samples[:1], tiny, tmp_path)
    file, = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:400] if bad is None else bad)
    with pytest.raises(DataError, match=file.name) as e: prepare(samples[:1], tiny, tmp_path)
    assert 'elete' in str(e.value) # there is no copy of it to be had

@pytest.mark.parametrize('glass', [False, True])
def test_the_same_image_many_times(samples, tmp_path, monkeypatch, glass):
    "Threads write the same file at the same time; a slow disk shows it"
    move,some = os.replace,[replace(one_colour('a', 240) if glass else samples[0], name=f'{i}') for i in range(6)]
    def slow(*args):
        time.sleep(.05)
        return move(*args)
    monkeypatch.setattr(os, 'replace', slow)
    even,bad = normalise_samples(some, tmp_path, 6, False)
    assert len(bad)==6*glass and all(np.array_equal(a.image, even[0].image) for a in even) and len(mtimes(tmp_path))==1

def test_a_sample_that_cannot_be_read(samples, tmp_path):
    def broken(): raise DataError('this image cannot be read', 'b.png')
    with pytest.raises(DataError, match='b.png'): normalise_samples([samples[0], replace(samples[1], load_image=broken)], tmp_path, 2, False)

@pytest.mark.parametrize('shrink', [1,2,3])
@pytest.mark.parametrize('shape', [(61,77), (5,3), (1,1), (64,64)])
def test_prepared_at_any_size(shape, shrink):
    s = colour_sample('a', *shape)
    p, = prepare([s], replace(plain, shrink=shrink))
    assert p.name=='a' and p.image.shape[:2]==p.classes.shape==tuple(-(-n//shrink) for n in shape) and p.image.dtype==p.classes.dtype==np.uint8
    assert np.array_equal(p.image, shrink_image(s.image, shrink)) and np.array_equal(p.classes, shrink_map(s.classes, shrink))

# Augmentation

@pytest.mark.parametrize('p', [0.,.3,1.])
def test_only_chosen_images_change(p):
    set_seed(0)
    x = torch.rand(900, 3, 2, 2)*.5+.2
    one = OneOf(nn.Threshold(2., .9), nn.Threshold(2., -4.), nn.Threshold(2., 7.), p=p)
    before = x.clone()
    y = one(x)
    assert torch.equal(x, before)
    changed = (y!=x).flatten(1).any(1)
    assert changed.float().mean().item()==pytest.approx(p, abs=.05) and (p not in (0.,1.) or changed.all()==changed.any()==bool(p))
    assert all((y[changed].flatten(1)==y[changed].flatten(1)[:,:1]).all(1)) and set(y[changed].flatten().tolist())<={torch.tensor(.9).item(),0.,1.}
    for v in (.9,0.,1.): assert torch.isclose(y, torch.tensor(v)).flatten(1).all(1).float().mean().item()==pytest.approx(p/3, abs=.05)

def quiet_views(r): return SharpViews(replace(r, noise=0., blur=0., colour=0., stain_jitter=0.))

@pytest.mark.parametrize('change', [dict(), dict(window=64), dict(zoom=1.5), dict(move=1.), dict(bend=1.), dict(window=64, zoom=2., move=1., bend=1.)])
def test_image_and_mask_in_step(change):
    r = replace(tiny, move=0., bend=0., **change) if not {'move','bend'}&set(change) else replace(tiny, **change)
    set_seed(1)
    image,mask = zip(*[coloured(r.window, r.window, i) for i in range(8)])
    x,y = as_batch(np.stack(image)),torch.from_numpy(np.stack(mask)).long()
    vx,vy = quiet_views(r)(x, y)
    assert vx.shape==(8,3,64,64) and vy.shape==(8,64,64) and vy.dtype==torch.int64 and set(vy.unique().tolist())<={0,1,2}
    deep = inner(vy.numpy())
    assert deep.mean()>.2 and (told(vx)==vy.numpy())[deep].mean()>.995

def test_classes_that_are_not_neighbours_stay_so():
    "Between 0 and 5 nothing appears, however the mask is bent"
    set_seed(2)
    y = 5*(torch.rand(16, 10, 10)>.5).long().repeat_interleave(8, 1).repeat_interleave(8, 2)
    vx,vy = SharpViews(replace(tiny, zoom=1.5, move=1., bend=1., noise=1., blur=1., colour=1., stain_jitter=.5))(y[:,None].expand(-1, 3, -1, -1)/5., y)
    assert set(vy.unique().tolist())=={0,5} and vx.isfinite().all() and vx.min()>=0 and vx.max()<=1

@pytest.mark.parametrize('value', [0., 1., .5])
def test_views_of_one_colour(value):
    set_seed(3)
    views = SharpViews(replace(tiny, move=1., bend=1., noise=1., blur=1., colour=1., stain_jitter=1.))
    for _ in range(3):
        with torch.autocast('cpu', dtype=torch.bfloat16): vx,vy = views(torch.full((8,3,80,80), value), torch.zeros(8, 80, 80, dtype=torch.long))
        assert vx.isfinite().all() and vx.min()>=0 and vx.max()<=1 and vx.shape[2:]==vy.shape[1:] and vx.dtype==torch.float32

def test_colour_steps_leave_the_mask_alone():
    a,b = (SharpViews(replace(tiny, move=.5, bend=.5, **{k:v for k in ('noise','blur','colour')})) for v in (0.,1.))
    x,y = torch.rand(6, 3, 80, 80),torch.randint(6, (6, 80, 80))
    set_seed(4)
    ax,ay = a(x, y)
    set_seed(4)
    bx,by = b(x, y)
    assert torch.equal(ay, by) and not torch.allclose(ax, bx)
    set_seed(4)
    wx,wy = Warp(64, zoom=tiny.zoom, turn=True, move=.5, bend=.5)(x, y)
    assert torch.equal(ax, wx) and torch.equal(ay, wy)

def edges(x): return (x[...,1:]-x[...,:-1]).abs().mean((1,2,3))+(x[...,1:,:]-x[...,:-1,:]).abs().mean((1,2,3))

def test_what_is_sharpened_is_sharper():
    set_seed(5)
    x = F.avg_pool2d(torch.rand(12, 3, 68, 68), 5, 1)
    assert (edges(SharpViews(tiny).colour.some[0](x))>edges(x)).all()

def test_what_is_blurred_is_smoother():
    set_seed(6)
    x = torch.rand(12, 3, 64, 64)
    for f in SharpViews(tiny).blur.some: assert (edges(f(x))<edges(x)).all()

# The network

@settings(max_examples=20, deadline=None)
@given(seed=seeds, train=st.booleans())
def test_gate_by_numpy(seed, train):
    set_seed(seed)
    gate = AttentionGate(3)
    for m in gate.modules():
        if isinstance(m, nn.BatchNorm2d):
            for o in (m.weight, m.bias, m.running_mean): nn.init.normal_(o)
            nn.init.uniform_(m.running_var, .5, 2)
    x,g = torch.randn(2, 3, 4, 5),torch.randn(2, 3, 4, 5)
    def one(f, a):
        conv,norm = f
        y = np.einsum('oi,bihw->bohw', conv.weight.detach().numpy()[:,:,0,0], a)+conv.bias.detach().numpy()[:,None,None]
        mean,var = (y.mean((0,2,3)),y.var((0,2,3))) if train else (norm.running_mean.numpy().copy(),norm.running_var.numpy().copy())
        y = (y-mean[:,None,None])/np.sqrt(var[:,None,None]+norm.eps)
        return y*norm.weight.detach().numpy()[:,None,None]+norm.bias.detach().numpy()[:,None,None]
    want = x.numpy()/(1+np.exp(-one(gate.psi, np.maximum(one(gate.x, x.numpy())+one(gate.g, g.numpy()), 0))))
    with torch.no_grad(): assert np.allclose(gate.train(train)(x, g), want, atol=1e-4)

def test_gates_open_and_close():
    gate,x,g = AttentionGate(8),torch.randn(2, 8, 6, 6),torch.randn(2, 8, 6, 6)
    for bias,share in ((-60.,0.), (60.,1.)):
        nn.init.constant_(gate.psi[1].bias, bias)
        with torch.no_grad(): assert torch.allclose(gate(x, g), share*x, atol=1e-6)

def test_a_closed_gate_shuts_the_encoder_out():
    torch.manual_seed(0)
    node = SharpNode(1, (4,4,4,4,4), 4).eval()
    enc,dec,deep = [torch.randn(1, 4, 16, 16), torch.randn(1, 4, 8, 8)],[torch.randn(1, 20, 4, 4), torch.randn(1, 20, 2, 2)],torch.randn(1, 4, 2, 2)
    other = [torch.randn_like(o) for o in enc]
    with torch.no_grad():
        assert not torch.allclose(node(enc, dec, deep), node(other, dec, deep))
        for gate in node.gates: nn.init.constant_(gate.psi[1].bias, -99.)
        assert torch.allclose(node(enc, dec, deep), node(other, dec, deep), atol=1e-6)

@pytest.mark.parametrize('level', [0,1,2,3])
def test_the_gate_is_led_by_the_next_coarser_input(level):
    "The decoder's of the next level, or the bridge where there is none"
    node,seen = SharpNode(level, (4,)*5, 4).eval(),[]
    enc,dec = [torch.randn(1, 4, 64>>i, 64>>i) for i in range(level+1)],[torch.randn(1, 20, 64>>i, 64>>i) for i in range(level+1, 4)]
    for gate in node.gates: gate.register_forward_pre_hook(lambda m, a: seen.append(a[1]))
    deep = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        node(enc, dec, deep)
        size = enc[-1].shape[2:]
        want = node.dec[0](dec[0], size) if dec else node.deep(deep, size)
    assert len(seen)==level+1 and all(torch.equal(o, want) for o in seen)

@pytest.mark.parametrize('size', [(2,3), (4,6), (8,12), (16,24), (32,48)])
def test_inputs_of_any_scale(size):
    torch.manual_seed(0)
    f,x = ScaleInput(5, 5, conv=False).eval(),torch.randn(1, 5, 8, 12)
    for o,low in ((f.norm.weight,.5), (f.norm.bias,-1.), (f.norm.running_mean,-1.), (f.norm.running_var,.5)): nn.init.uniform_(o, low, 2.)
    with torch.no_grad(): got = f(x, size)
    assert got.shape==(1,5,*size)
    k = 8//size[0]
    if k:
        want = x.numpy().reshape(1, 5, size[0], k, size[1], k).max((3,5))
        w,b,mean,var = (o.detach().numpy()[:,None,None] for o in (f.norm.weight, f.norm.bias, f.norm.running_mean, f.norm.running_var))
        assert np.allclose(got, (want*np.tanh(np.log1p(np.exp(want)))-mean)/np.sqrt(var+f.norm.eps)*w+b, atol=1e-5)

def test_what_the_branches_of_the_bridge_see():
    aspp = ASPP(2, 3, pool=True).eval()
    for f,d in zip(aspp.branches, (0,6,12,18)):
        x = torch.randn(1, 2, 45, 45, requires_grad=True)
        f[0](x)[0,:,22,22].square().sum().backward()
        assert {tuple(o) for o in (x.grad[0].abs().sum(0)>0).nonzero().tolist()}=={(22+a,22+b) for a in (-d,0,d) for b in (-d,0,d)}
    assert len(aspp.branches)==4 and aspp.project[0].in_channels==15 and ASPP(2, 3).project[0].in_channels==12
    x = torch.randn(1, 2, 7, 9)
    y = aspp.pool(x.mean((2,3), keepdim=True)).expand(-1, -1, 7, 9)
    assert torch.allclose(aspp(x), aspp.project(torch.cat([*(f(x) for f in aspp.branches), y], 1)))

@pytest.mark.parametrize('size', [(64,64), (32,96)])
@pytest.mark.parametrize('encoder', ['resnet10t','efficientnet_b0','resnext50_32x4d','mobilenetv3_small_050'])
def test_shapes_for_several_encoders(encoder, size):
    net = UnetSharp(3, encoder, 4).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, *size)).shape==(1,3,*size)
        assert [o.shape for o in net.decoded(torch.rand(1, 3, *size))]==[(1,20,size[0]>>i,size[1]>>i) for i in (1,2,3,4)]

def test_an_image_of_a_batch_does_not_see_the_others(net):
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-5)

@pytest.mark.parametrize('size', [(64,65), (33,64), (16,16), (224,100)])
def test_sides_that_are_no_multiples(net, size):
    with pytest.raises(DataError, match='multiples of 32'): net(torch.rand(1, 3, *size))

@pytest.mark.parametrize('kind', sharps)
@pytest.mark.parametrize('encoder', ['vit_tiny_patch16_224','convnext_atto','resnet_eighteen',''])
def test_encoders_there_cannot_be(kind, encoder):
    with pytest.raises(DataError, match='Take a') as e: sharp_net(replace(tiny, net=kind, encoder=encoder), 6)
    assert repr(encoder) in str(e.value) and '\n' not in str(e.value) and len(str(e.value))<400

@pytest.mark.parametrize('kind', [k for k in sharp_nets if k not in sharps])
def test_encoders_the_others_do_not_know(kind):
    with pytest.raises(DataError, match='resnet18'): sharp_net(replace(tiny, net=kind, encoder='resnet_eighteen'), 6)

def test_parameters_of_the_paper():
    "52,486,116 run, and 57.2 million are declared: the code's four convolutions of the bridge's skips never run"
    with torch.device('meta'):
        full,dead,bare = (UnetSharp(6, 'resnext101_32x4d', **kw) for kw in (dict(image_pool=True), dict(image_pool=True, aspp=False), {}))
        pool = ASPP(2048, 64, pool=True).pool
    count = lambda m: trained_parameters(freeze_norms(m.encoder) and m)
    assert count(full)==52_486_116
    convs = sum(trained_parameters(o.deep.conv) for o in dead.nodes)
    assert convs==4_718_848 and count(full)+convs==57_204_964 and count(dead)==count(full)+convs-trained_parameters(full.bridge)
    assert count(full)-count(bare)==trained_parameters(pool)+64*64
    assert full.head.out_channels==6 and all(n.mix.conv.in_channels==n.mix.conv.out_channels==320 for n in full.nodes)

@pytest.mark.parametrize('pool', [False, True])
@pytest.mark.parametrize('kind', sharps)
def test_every_parameter_learns(kind, pool):
    "But the biases before a batch norm, which takes them away again"
    torch.manual_seed(0)
    net = sharp_net(replace(tiny, net=kind, image_pool=pool, encoder='mobilenetv3_small_050'), 6)
    FocalTversky()(net(torch.rand(4, 3, 64, 64)), torch.randint(6, (4,64,64))).backward()
    named = dict(net.named_parameters())
    pairs = {k:m for k,m in net.named_modules() if isinstance(m, nn.Sequential) and len(m)>1}
    quiet_ones = {f'{k}.0.bias' for k,m in pairs.items() if isinstance(m[0], nn.Conv2d) and isinstance(m[1], nn.BatchNorm2d)}
    for k,p in named.items():
        if not p.requires_grad: assert p.grad is None and k.startswith('encoder.')
        else: assert p.grad is not None and p.grad.isfinite().all() and (k in quiet_ones or p.grad.abs().max()>0), k
    frozen = {id(p) for m in net.encoder.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert {id(p) for p in net.parameters() if not p.requires_grad}==frozen and frozen
    assert any(k.startswith('nodes') and 'gates' in k for k in named)==sharp_nets[kind]['gates'] and isinstance(net.bridge, ASPP)==sharp_nets[kind]['aspp']

@pytest.mark.parametrize('encoder', ['resnet10t','resnet18','resnext50_32x4d','efficientnet_b0'])
def test_a_random_encoder_learns(encoder):
    "Its batch norms are never trained: a residual block that starts with the scale 0 would stay switched off"
    torch.manual_seed(0)
    net = sharp_net(replace(tiny, encoder=encoder), 6)
    FocalTversky()(net(torch.rand(2, 3, 64, 64)), torch.randint(6, (2,64,64))).backward()
    dead = [k for k,p in net.encoder.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not dead

@pytest.mark.parametrize('kind', list(sharp_nets))
def test_networks_of_all_names(kind):
    net = sharp_net(replace(tiny, net=kind), 4).eval()
    with torch.no_grad(): assert net(torch.rand(1, 3, 64, 96)).shape==(1,4,64,96)
    assert net.started=='random'
    if kind in sharps: sharp_diagram(net).figure.clf()

@pytest.mark.parametrize('kind', list(sharp_nets))
def test_training_with_batches_of_one(kind):
    "Either it works, or it is said before that it cannot"
    try: net = sharp_net(replace(tiny, net=kind, batch_size=1, image_pool=True), 4).train()
    except DataError: return
    assert net(torch.rand(1, 3, 64, 64)).isfinite().all()

# The loss

def random_scores(seed, c=4, n=2, h=3, w=4, sharp=2., some=None):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, sharp, (n,c,h,w))),torch.from_numpy(rng.choice(some or range(c), (n,h,w)))

def tversky_by_loop(scores, y, beta, focal):
    (n,c,h,w),total = scores.shape,0.
    p = np.exp(scores.numpy())
    p /= p.sum(1, keepdims=True)
    for k in range(c):
        hit = false = miss = 0.
        for b,i,j in np.ndindex(n, h, w):
            there = y[b,i,j]==k
            hit += p[b,k,i,j] if there else 0
            false += 0 if there else p[b,k,i,j]
            miss += 1-p[b,k,i,j] if there else 0
        if (y==k).any(): total += (1-hit/(hit+beta*false+(1-beta)*miss))**focal
    return total

betas,focals = st.floats(0, 1),st.sampled_from([.75,1.,4/3,2.])

@settings(max_examples=40, deadline=None)
@given(seed=seeds, beta=betas, focal=focals, some=st.sampled_from([(0,),(0,3),(1,2,3),(0,1,2,3)]))
def test_loss_of_each_class_by_a_loop(seed, beta, focal, some):
    scores,y = random_scores(seed, some=some)
    assert FocalTversky(beta, focal)(scores, y).item()==pytest.approx(tversky_by_loop(scores, y, beta, focal), abs=1e-5)

@settings(max_examples=40, deadline=None)
@given(seed=seeds, beta=betas, focal=focals)
def test_pooled_loss_is_the_mean_of_the_right_probability(seed, beta, focal):
    "Whatever beta: there are as many false positives as misses"
    scores,y = random_scores(seed)
    right = scores.softmax(1).gather(1, y[:,None]).mean().item()
    assert FocalTversky(beta, focal, True)(scores, y).item()==pytest.approx((1-right)**focal, abs=1e-5)

@settings(max_examples=30, deadline=None)
@given(seed=seeds, beta=st.floats(.05, .95), some=st.sampled_from([(0,),(0,2),(0,1,2,3)]))
def test_loss_of_each_class_beside_smp(seed, beta, some):
    "smp takes the mean over all classes, absent ones too, and its power over that mean"
    scores,y = random_scores(seed, some=some)
    theirs = smp.losses.TverskyLoss('multiclass', alpha=beta, beta=1-beta, eps=1e-9)(scores.float(), y).item()
    assert FocalTversky(beta, 1.)(scores, y).item()==pytest.approx(4*theirs, abs=1e-4)

@settings(max_examples=30, deadline=None)
@given(seed=seeds, order=st.permutations(range(4)), pooled=st.booleans(), beta=betas)
def test_classes_may_be_renamed(seed, order, pooled, beta):
    (scores,y),order = random_scores(seed, some=(0,1,3)),torch.tensor(order)
    f = FocalTversky(beta, pooled=pooled)
    assert f(scores[:,order], order.argsort()[y]).item()==pytest.approx(f(scores, y).item(), abs=1e-6)

@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('focal', [.75, 1., 4/3])
@pytest.mark.parametrize('pooled', [False, True])
@pytest.mark.parametrize('some', [(0,), (0,1,2,3)], ids=['background','all'])
def test_gradients_are_finite(kind, focal, pooled, some):
    "Perfect, hopeless and undecided; in half precision and for a batch of one"
    for n in (1,2):
        _,y = random_scores(0, n=n, some=some)
        t = F.one_hot(y, 4).movedim(-1, 1).to(kind)
        for s in (300*t, 30*t, -300*t, 0*t, 300*(1-t)):
            s = s.clone().requires_grad_()
            loss = FocalTversky(.7, focal, pooled)(s, y)
            loss.backward()
            assert loss.isfinite() and loss>=0 and s.grad.isfinite().all() and loss.dtype==torch.float32

def test_all_background_wants_background():
    y = torch.zeros(2, 4, 4, dtype=torch.long)
    for pooled in (False, True):
        s = torch.zeros(2, 3, 4, 4, requires_grad=True)
        FocalTversky(pooled=pooled)(s, y).backward()
        assert (s.grad[:,0]<0).all() and (s.grad[:,1:]>0).all()

@settings(max_examples=15, deadline=None)
@given(seed=seeds, beta=st.floats(0, 1), pooled=st.booleans())
def test_gradient_of_the_loss(seed, beta, pooled):
    scores,y = random_scores(seed, h=2, w=2, n=1)
    loss = FocalTversky(beta, pooled=pooled)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.Tensor, 'float', lambda o: o)
        assert torch.autograd.gradcheck(lambda s: loss(s, y), scores.requires_grad_())

def test_beta_weighs_inventions():
    "Of two answers equally far off, the one that invents costs more above one half and less below"
    t = torch.tensor([1.,1.,0.,0.]).view(1, 1, 1, 4)
    false,miss = torch.tensor([1.,1.,.5,0.]).view(1, 1, 1, 4),torch.tensor([.5,1.,0.,0.]).view(1, 1, 1, 4)
    for beta in (.6,.7,1.):
        assert tversky_index(false, t, beta).item()==pytest.approx(2/(2+beta*.5)) and tversky_index(miss, t, beta).item()==pytest.approx(1.5/(1.5+(1-beta)*.5))
    assert tversky_index(false, t, .9)<tversky_index(miss, t, .9) and tversky_index(false, t, .1)>tversky_index(miss, t, .1)

@pytest.mark.parametrize('loss', sharp_losses)
def test_losses_of_a_recipe(loss):
    scores,y = random_scores(3)
    f = sharp_loss(replace(tiny, loss=loss, beta=.3, focal=2.))
    if loss=='cross-entropy + Dice':
        want = F.cross_entropy(scores.float(), y)+smp.losses.DiceLoss('multiclass')(scores.float(), y)
        assert f(scores, y).item()==pytest.approx(want.item())
    else: assert (f.beta, f.focal, f.pooled)==(.3, 2., loss=='pooled')
    assert f(scores.bfloat16(), y).isfinite()

# The optimiser

def by_hand(p, grads, lr=1e-3, final=.1, gamma=1e-2, b1=.9, b2=.999, eps=1e-8):
    "AdaBound as its paper has it"
    m,v = np.zeros_like(p),np.zeros_like(p)
    for t,g in enumerate(grads, 1):
        m,v = b1*m+(1-b1)*g,b2*v+(1-b2)*g*g
        step = lr*math.sqrt(1-b2**t)/(1-b1**t)/(np.sqrt(v)+eps)
        p = p-np.clip(step, final*(1-1/(gamma*t+1)), final*(1+1/(gamma*t)))*m
    return p

@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(1, 30), gamma=st.sampled_from([1e-3,1e-1]), final=st.sampled_from([.1,.01]))
def test_adabound_by_hand(seed, n, gamma, final):
    rng = np.random.default_rng(seed)
    start,grads = rng.normal(size=5),rng.normal(0, 10.**rng.uniform(-2, 1), (n,5))
    p = nn.Parameter(torch.from_numpy(start.copy()))
    opt = adabound(replace(tiny, final_lr=final, bound=gamma))([p], lr=1e-3)
    for g in grads:
        p.grad = torch.from_numpy(g)
        opt.step()
        opt.zero_grad()
    assert np.allclose(p.detach().numpy()-start, by_hand(start, grads, 1e-3, final, gamma)-start, rtol=1e-4, atol=1e-7)

def test_bounds_close_in():
    t = np.arange(1, 5001)
    low,high = adabound_bounds(t, .1, 1e-3)
    assert np.allclose(low, .1*(1-1/(1e-3*t+1))) and np.allclose(high, .1*(1+1/(1e-3*t))) and (low<.1).all() and (high>.1).all()
    assert (np.diff(low)>0).all() and (np.diff(high)<0).all() and adabound_bounds(42*50)==pytest.approx((.0677,.1476), abs=2e-4)

def test_the_rate_can_be_set():
    p = nn.Parameter(torch.ones(3))
    opt = adabound(tiny)([p], lr=1e-3)
    assert opt.hypers[0]['lr']==1e-3
    opt.set_hyper('lr', 5e-4)
    assert opt.opt.param_groups[0]['lr']==5e-4 and opt.hypers[0]['lr']==5e-4
    assert {k:opt.opt.param_groups[0][k] for k in ('final_lr','gamma','weight_decay','betas')}==dict(final_lr=tiny.final_lr, gamma=tiny.bound, weight_decay=0., betas=(.9,.999))

# Training

class Kill(Callback):
    "Stops a training before an epoch"
    order = 1000
    def __init__(self, epoch=1): self.at = epoch
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

class Watch(Callback):
    "What the encoder is after each epoch"
    order = 90
    def before_fit(self): self.seen = []
    def after_train(self): self.seen.append({k:v.clone() for k,v in self.model.encoder.state_dict().items()})

def fit(samples, r, folder=None, cb=None):
    learn = unet_sharp_learner(unet_sharp_dls(samples, r), r, folder)
    if cb: learn.add_cb(cb)
    try: sharp_train(learn)
    except KeyboardInterrupt: pass
    return learn

@pytest.mark.parametrize('kind', ['U-Net#','U-Net++'])
def test_the_encoder_is_frozen_at_first(samples, kind):
    r = replace(plain, net=kind, freeze_epochs=2, epochs=4, batches=1, encoder='mobilenetv3_small_050')
    set_seed(r.seed)
    watch,start = Watch(),{k:v.clone() for k,v in sharp_net(r, 6).encoder.state_dict().items()}
    learn = fit(samples, r, cb=watch)
    enc = learn.model.encoder
    affine = {f'{k}.{o}' for k,m in enc.named_modules() if isinstance(m, nn.BatchNorm2d) for o in ('weight','bias')}
    weights,running = {k for k,_ in enc.named_parameters()}-affine,{k for k in start if k.endswith(('running_mean','running_var'))}
    changed = [{k for k in o if not torch.equal(o[k], was[k])} for was,o in zip([start,*watch.seen], watch.seen)]
    for i,c in enumerate(changed): assert not affine&c and running<=c and (not weights&c if i<2 else weights<=c), i
    assert affine and all(torch.equal(enc.state_dict()[k], start[k]) for k in affine)

@pytest.mark.parametrize('kind,accumulate,freeze,anneal', [('U-Net#',1,1,.5), ('U-Net#',3,0,0.), ('UNet 3+',3,2,1.), ('DeepLabV3+',1,1,0.)])
@pytest.mark.parametrize('at', [1,2])
def test_killed_training_goes_on(samples, tmp_path, kind, accumulate, freeze, anneal, at):
    "With three batches a step there are some left over at the end of an epoch"
    r = replace(plain, net=kind, accumulate=accumulate, freeze_epochs=freeze, anneal=anneal, epochs=3, batches=4, patience=9, crop=32, window=48)
    whole,half,again = fit(samples, r, tmp_path/'a'),fit(samples, r, tmp_path/'b', Kill(at)),fit(samples, r, tmp_path/'b')
    assert same(whole.model, again.model) and len(half.recorder.values)==at
    assert np.allclose([list(o) for o in whole.recorder.values], [list(o) for o in again.recorder.values])
    a,b = (o.opt.opt.state_dict() for o in (whole, again))
    assert a['param_groups'][0]['step']==b['param_groups'][0]['step']==(12 if accumulate==1 else 4)

def test_the_best_epoch_is_kept(samples, tmp_path):
    r = replace(plain, epochs=3, crop=32, window=48)
    learn = fit(samples, r, tmp_path)
    net,recipe = load_model(tmp_path/'best.safetensors', lambda o: sharp_net(o, 6), SharpRecipe)
    assert recipe==r and same(net, learn.model) and learn.names==('background',*kinds) and learn.recipe==r

def test_training_stops_early_and_stays_stopped(samples, tmp_path, monkeypatch):
    r = replace(plain, epochs=6, patience=2, crop=32, window=48, batches=1)
    class Worse(Callback):
        order = 45 # before the recorder looks
        def after_loss(self):
            if not self.training: self.learn.loss = self.learn.loss_grad = self.learn.loss*0+1.+self.epoch
    first,second = (fit(samples, r, tmp_path, Worse()) for _ in range(2))
    assert len(first.recorder.values)==len(second.recorder.values)==3 and same(first.model, second.model)

def test_same_seed_same_training(samples):
    a,b,c = (fit(samples, replace(plain, crop=32, window=48, seed=s)) for s in (1,1,2))
    assert same(a.model, b.model) and not same(a.model, c.model)

@pytest.mark.parametrize('anneal', [0.,.5,1.])
def test_the_rate_falls_at_the_end(samples, anneal):
    "And the bounds with it"
    class Rates(Callback):
        def before_fit(self): self.seen = []
        def after_batch(self):
            if self.training: self.seen.append(self.opt.hypers[-1]['lr'])
    rates,r = Rates(),replace(plain, anneal=anneal, epochs=4, crop=32, window=48)
    learn,v = fit(samples, r, cb=rates),np.array(rates.seen)
    assert len(v)==8 and v[0]==pytest.approx(r.lr) and (v[:round(8*(1-anneal))]==pytest.approx(r.lr)) and (np.diff(v)<=1e-12).all()
    assert v[-1]<.3*r.lr if anneal else v[-1]==pytest.approx(r.lr)
    assert learn.opt.opt.base_lrs==[r.lr]

@settings(max_examples=20, deadline=None)
@given(seed=seeds, n=st.integers(1, 4), c=st.integers(2, 5))
def test_watched_dice_is_pooled(seed, n, c):
    rng,m,table = np.random.default_rng(seed),ForegroundDice(),0
    m.reset()
    for _ in range(n):
        y,pred = rng.integers(0, rng.integers(1, c+1), (2,4,5)),rng.integers(0, c, (2,4,5))
        m.accumulate(SimpleNamespace(pred=torch.from_numpy(np.moveaxis(np.eye(c)[pred], -1, 1)), y=torch.from_numpy(y)))
        table = table+confusion(pred, y, c)
    assert m.value==pytest.approx(averaged(class_scores(table))['dice']) and m.name=='dice'
    m.reset()
    assert np.isscalar(m.table)

# Loaders

def test_loaders_of_incomplete_samples(samples):
    for part,says in ((samples[:3],"'val'"), (samples[3:],"'train'"), ([],"'train'"), ([replace(s, split=None) for s in samples],"'train'")):
        with pytest.raises(DataError, match=says): unet_sharp_dls(part, tiny)
    with pytest.raises(DataError, match='differ in their classes'): unet_sharp_dls([*samples, replace(samples[0], class_names=kinds[::-1])], tiny)
    with pytest.raises(DataError, match='has no class map'): unet_sharp_dls([*samples[1:], replace(samples[0], load_classes=None)], tiny)

@pytest.mark.parametrize('shrink,balance', [(1,0.), (2,.5), (1,1.)])
def test_squares_of_the_loaders(samples, shrink, balance):
    r = replace(plain, shrink=shrink, balance=balance, batches=3, crop=32, window=48)
    a,b = (unet_sharp_dls(samples, r) for _ in range(2))
    x,y = a.one_batch()
    assert x.shape==(2,3,48,48) and y.shape==(2,48,48) and x.dtype==torch.uint8 and y.dtype==torch.int64 and len(a.train)==3
    first = list(a.valid)
    for again in (b.valid, a.valid): assert all(torch.equal(u, v) for o,p in zip(first, again) for u,v in zip(o, p))
    assert sum(len(o[0]) for o in first)==2*((96//shrink)**2//32**2) and first[0][0].shape[2:]==(32,32) and a.names==('background',*kinds)
    other = list(unet_sharp_dls(samples, replace(r, seed=5)).valid)
    assert not all(torch.equal(u[0], v[0]) for u,v in zip(first, other))

def test_an_epoch_covers_all_images_once():
    some = [colour_sample('a', 96, 192, 0, split='train'), colour_sample('b', 20, 30, 1, split='train'), colour_sample('c', 48, 48, 2)]
    dls = unet_sharp_dls(some, replace(plain, batches=0, crop=32, window=48, batch_size=4))
    x = torch.cat([o[0] for o in dls.train])
    assert len(x)==12 and len(dls.train)==3 and all(len(o[0])==4 for o in dls.train) # 8 squares and 1, in whole batches
    for x,y in dls.train: assert np.array_equal(told(as_batch(x)), y)

def test_samples_may_be_a_generator(samples):
    dls = unet_sharp_dls((s for s in samples), plain)
    assert len(dls.train)==2

# Prediction

@pytest.mark.parametrize('shrink', [1,2,3])
@pytest.mark.parametrize('shape', [(1,1), (17,300), (64,64), (65,130), (3,200)])
def test_maps_of_any_size(net, shape, shrink):
    for r in (replace(tiny, shrink=shrink), replace(plain, shrink=shrink, overlap=0.)):
        prob,classes,inst = unet_sharp_predict(net, noise(*shape), r)
        assert prob.shape==(6,*shape) and prob.dtype==np.float32 and np.allclose(prob.sum(0), 1, atol=1e-4) and prob.min()>=0
        assert classes.dtype==np.uint8 and inst.dtype==np.int32 and np.array_equal(classes, prob.argmax(0)) and np.array_equal(inst>0, classes>0)

@pytest.mark.parametrize('shrink', [1,2])
def test_colours_are_found_where_they_are(shrink):
    for shape in ((131,97), (64,64), (50,201)):
        image,mask = coloured(*shape)
        got = unet_sharp_predict(Told(), image, replace(plain, shrink=shrink)).classes
        assert np.array_equal(got, mask) if shrink==1 else (got==mask)[inner([mask], 7)[0]].all()

@pytest.mark.parametrize('shrink', [2,3])
def test_small_maps_are_enlarged_smoothly(net, shrink):
    image = ndi.gaussian_filter(noise(61, 77), (4,4,0))
    small = sharp_map(net, shrink_image(image, shrink), plain)
    h,w = (n*shrink for n in small.shape[1:])
    want = np.stack([np.asarray(Image.fromarray(o).resize((w,h), Image.Resampling.BILINEAR)) for o in small])[:,:61,:77]
    assert np.allclose(sharp_map(net, image, replace(plain, shrink=shrink)), want, atol=1e-5)

def test_an_image_in_the_dyes_of_its_slide(net, samples):
    stain,image = Macenko().fit(samples[0].image),samples[1].image
    got = sharp_map(net, image, tiny, stain)
    assert np.array_equal(got, sharp_map(net, stain.transform(image), plain)) and not np.allclose(got, sharp_map(net, image, tiny))

def test_dyes_are_looked_for_once(samples, monkeypatch):
    "For all windows together; where there are none, the windows do not look for their own"
    image = np.tile(samples[0].image, (1,2,1))
    fits,maps = counted(monkeypatch, Macenko, 'fit'),counted(monkeypatch, unet_sharp, 'sharp_map')
    unet_sharp_nuclei(Told(), image, tiny, core=64, progress=False)
    assert len(fits)==1 and len(maps)==6 and len({id(o[3]) for o in maps})==1 and np.array_equal(maps[0][3].matrix, Macenko().fit(image).matrix)
    monkeypatch.setattr(unet_sharp, 'slide_stain', lambda slide: None)
    unet_sharp_nuclei(Told(), image, tiny, core=64, progress=False)
    assert len(fits)==2

def test_how_an_image_lies_in_memory_does_not_matter(net):
    image = noise(70, 90)
    want = sharp_map(net, image, tiny)
    other = np.asfortranarray(image)
    assert np.array_equal(sharp_map(net, other, tiny), want)
    both = np.zeros((140,180,3), np.uint8)
    both[::2,::2] = image
    assert np.array_equal(sharp_map(net, both[::2,::2], tiny), want) and np.array_equal(sharp_map(net, image[::-1][::-1], tiny), want)
    held = image.copy()
    held.flags.writeable = False
    assert np.array_equal(sharp_map(net, held, tiny), want)

odd_images = dict(grey=np.zeros((64,64), np.uint8), RGBA=np.zeros((64,64,4), np.uint8), float=np.zeros((64,64,3)), list=[[1,2]], none=None)
odd_images |= dict(empty=np.zeros((0,4,3), np.uint8))

@pytest.mark.parametrize('macenko', [False, True])
@pytest.mark.parametrize('shrink', [1,2])
@pytest.mark.parametrize('image', odd_images.values(), ids=odd_images)
def test_images_of_another_kind(net, image, shrink, macenko):
    r = replace(tiny, shrink=shrink, macenko=macenko)
    with pytest.raises(DataError): unet_sharp_predict(net, image, r)
    with pytest.raises(DataError): sharp_map(net, image, r)

def test_what_a_model_was_trained_with(net, samples):
    with pytest.raises(DataError, match='Pass its recipe'): as_trained(net)
    learn = unet_sharp_learner(unet_sharp_dls(samples, plain), plain)
    assert as_trained(learn)==(learn.model, plain, ('background',*kinds)) and as_trained(net, tiny)==(net, tiny, None)
    assert as_trained(learn, tiny, ['a','b'])==(learn.model, tiny, ('a','b'))

@settings(max_examples=40, deadline=None)
@given(seed=seeds, classes=st.integers(1, 4), least=st.integers(0, 8), share=st.floats(0, 1))
def test_instances_by_scipy(seed, classes, least, share):
    rng = np.random.default_rng(seed)
    m = np.where(rng.random((12,15))<share, rng.integers(1, classes+1, (12,15)), 0)
    got = class_instances(m, least)
    want = set()
    for c in range(1, classes+1):
        pieces,n = ndi.label(m==c)
        want |= {o.tobytes() for o in (pieces==i for i in range(1, n+1)) if o.sum()>=least}
    assert got.dtype==np.int32 and {(got==i).tobytes() for i in range(1, got.max()+1)}==want and len(want)==got.max()

everywhere = dict(mask=np.ones((1,1), bool), progress=False)

def slide_of(image, path, mpp=.5): return write_slide(image, path, mpp, quality=100, subsampling='4:4:4')

@pytest.mark.parametrize('opened', [False, True])
@pytest.mark.parametrize('shrink', [1,2])
def test_classes_of_a_slide(tmp_path, shrink, opened):
    image,mask = coloured(310, 420)
    path = slide_of(image, tmp_path/'a.tif')
    names = ('background','a','b')
    found = unet_sharp_predict(Told(), Slide(path) if opened else path, replace(plain, shrink=shrink), names, shrink=1, min_tissue=0., **everywhere)
    k = mask.shape[0]/found.prob.shape[1]
    assert found.names==names and found.covered.all() and k==pytest.approx(shrink, rel=.02) and np.allclose(found.prob.sum(0), 1, atol=1e-3)
    small = mask[shrink//2::shrink,shrink//2::shrink]
    got = found.labels()[:small.shape[0],:small.shape[1]]
    assert (got==small)[inner([small], 5)[0]].mean()>.99

def test_slides_of_one_colour(tmp_path, net):
    path = slide_of(np.full((200,260,3), [200,120,170], np.uint8), tmp_path/'a.tif')
    assert slide_stain(Slide(path)) is None
    found = unet_sharp_predict(net, path, tiny, **everywhere)
    assert np.isfinite(found.prob).all() and found.prob.shape[0]==6
    assert slide_stain(np.full((50,50,3), 240, np.uint8)) is None

def test_a_kept_map_of_another_recipe(tmp_path, samples):
    "What is predicted with the stain as it is, is not taken for what was predicted with normalised stain"
    image = np.tile(samples[0].image, (2,3,1))
    path = slide_of(image, tmp_path/'a.tif')
    model = Told(np.uint8([[225,225,225], [160,90,150], [90,60,140]]))
    def found(r, out): return unet_sharp_predict(model, path, r, out=out, **everywhere).prob
    a,b = (found(r, None) for r in (tiny, plain))
    assert not np.allclose(a, b, equal_nan=True) and np.allclose(found(tiny, tmp_path/'out'), a, equal_nan=True)
    try: again = found(plain, tmp_path/'out')
    except DataError: return
    assert np.allclose(again, b, equal_nan=True)

def scattered(h, w, seed=0, radius=(3,6)):
    "Disks of classes 1 and 2 that do not touch; their image and their classes"
    rng,m = np.random.default_rng(seed),np.zeros((h,w), np.uint8)
    yy,xx = np.mgrid[:h,:w]
    for y in range(10, h-9, 18):
        for x in range(10, w-9, 18): m[np.hypot(yy-y-rng.uniform(-2, 2), xx-x-rng.uniform(-2, 2))<rng.uniform(*radius)] = rng.integers(1, 3)
    return palette[m],m

@pytest.mark.parametrize('shrink', [1,2])
@pytest.mark.parametrize('core', [37,64,100,4096])
def test_nuclei_do_not_depend_on_windows(core, shrink):
    image,m = scattered(150, 210)
    r = replace(plain, shrink=shrink)
    found = unet_sharp_nuclei(Told(), image, r, ('background','a','b'), core=core, halo=24, progress=False)
    n,want = ndi.label(m)[1],dict(background=0, a=ndi.label(m==1)[1], b=ndi.label(m==2)[1])
    assert len(found)==n and found.counts==want and not found.cut
    if shrink==1: assert np.array_equal(found.classes, m)
    assert (found.instances>0)[m==0].sum()<(0 if shrink==1 else .1*m.size)+1

def test_nuclei_have_colours_and_names(tmp_path):
    image,m = scattered(100, 120)
    names = ('background','tumour','immune')
    found = unet_sharp_nuclei(Told(), image, plain, names, progress=False)
    save_nuclei(found, image, tmp_path, 'a')
    seen = [f['properties']['classification'] for f in json.loads((tmp_path/'a.geojson').read_text())['features']]
    colours = {names[c]:[round(255*v) for v in to_rgb(class_colour(c))] for c in (1,2)}
    assert all(o['color']==colours[o['name']] for o in seen) and pd.Series([o['name'] for o in seen]).value_counts().to_dict()=={k:ndi.label(m==i)[1] for i,k in ((1,'tumour'), (2,'immune'))}
    assert unet_sharp_nuclei(Told(), image, plain, progress=False).names==('background','class 1','class 2')

def test_nuclei_of_a_file_and_of_one_colour(tmp_path, net):
    image,m = scattered(90, 110)
    Image.fromarray(image).save(tmp_path/'a.png')
    assert len(unet_sharp_nuclei(Told(), tmp_path/'a.png', plain, progress=False))==ndi.label(m)[1]
    assert not len(unet_sharp_nuclei(Told(), np.full((50,60,3), 225, np.uint8), tiny, progress=False))
    with pytest.raises(DataError): unet_sharp_nuclei(Told(), np.zeros((50,60,4), np.uint8), tiny, progress=False)
    with pytest.raises(DataError): unet_sharp_predict(Told(), str(tmp_path/'none.tif'), tiny)

@pytest.mark.parametrize('kind', [str, lambda o: o])
def test_an_image_file_as_any_picture(tmp_path, kind):
    "Handed to unet_sharp_predict it is predicted, or it is said what is wrong"
    Image.fromarray(coloured(80, 90)[0]).save(tmp_path/'a.png')
    try: found = unet_sharp_predict(Told(), kind(tmp_path/'a.png'), plain)
    except DataError as e: assert 'a.png' in str(e)
    else: assert np.array_equal(found.classes, coloured(80, 90)[1])

def test_min_size_is_in_pixels_of_the_image():
    image,m = scattered(110, 130, radius=(2,8))
    sizes = np.bincount(ndi.label(m)[0].ravel())[1:]
    for k in (0,60,120):
        r,n = replace(plain, min_size=k),(sizes>=k).sum()
        assert class_instances(m, k).max()==unet_sharp_predict(Told(), image, r).instances.max()==len(unet_sharp_nuclei(Told(), image, r, progress=False))==n

# Evaluation

def random_case(seed, h=14, w=16, classes=3, instances=True):
    rng = np.random.default_rng(seed)
    def drawn():
        m = np.where(rng.random((h//2,w//2))<.4, rng.integers(1, rng.integers(2, classes+2), (h//2,w//2)), 0).repeat(2, 0).repeat(2, 1).astype(np.uint8)
        return m,class_instances(m)
    (t,ti),(p,pi) = drawn(),drawn()
    p = np.where(rng.random(p.shape)<.6, t, p).astype(np.uint8)
    return array_sample(f's{seed}', np.zeros((h,w,3), np.uint8), ti if instances else None, t, class_names=('a','dead','c')),p,class_instances(p)

def pq_by_loop(t, ti, p, pi, c):
    def masks(inst, m): return [o for o in ((inst==i)&(m==c) for i in range(1, inst.max()+1)) if o.any()]
    true,pred = masks(ti, t),masks(pi, p)
    if not true: return math.nan
    hits = [v for v in ((a&b).sum()/(a|b).sum() for a in true for b in pred) if v>.5]
    return sum(hits)/(len(hits)+(len(true)-len(hits))/2+(len(pred)-len(hits))/2)

def score(tp, fp, fn, a): return a*tp/(a*tp+fp+fn) if tp+fp+fn else math.nan # Dice for a=2, IoU for a=1

@settings(max_examples=25, deadline=None)
@given(first=seeds)
def test_scores_by_loops(first):
    cases = [random_case(first*3+i) for i in range(3)]
    given = iter([p for _,p,_ in cases])
    table = unet_sharp_evaluate(lambda im: next(given), [s for s,_,_ in cases])
    total = np.zeros((4,3), int)
    qualities = {c:[] for c in range(1, 4)}
    for s,p,pi in cases:
        for c,k in enumerate(('background','a','dead','c')):
            tp = fp = fn = 0
            for i,j in np.ndindex(14, 16):
                t,q = s.classes[i,j]==c,p[i,j]==c
                tp,fp,fn = tp+(t and q),fp+(q and not t),fn+(t and not q)
            row = table.loc[(s.name,k)]
            assert (row.tp, row.fp, row.fn)==(tp,fp,fn)
            for got,a in ((row.dice,2), (row.iou,1)): assert got==pytest.approx(score(tp, fp, fn, a), nan_ok=True)
            total[c] += tp,fp,fn
            want = pq_by_loop(s.classes, s.instances, p, pi, c) if c else math.nan
            assert row.pq==pytest.approx(want, nan_ok=True)
            if c: qualities[c].append(want)
    summary = class_summary(table)
    for metric,a in (('dice',2), ('iou',1)):
        each = [score(*o, a) for o in total]
        assert np.allclose(summary[metric].iloc[:4], each, equal_nan=True)
        assert summary[metric].micro==pytest.approx(score(*total[1:].sum(0), a), nan_ok=True)
        assert summary[metric].macro==pytest.approx(np.nanmean(each[1:])) and summary[metric]['macro without dead']==pytest.approx(np.nanmean([each[1],each[3]]))
    means = pd.DataFrame(qualities).mean()
    assert np.allclose(summary.pq.iloc[1:4], means, equal_nan=True) and summary.pq.macro==pytest.approx(means.mean(), nan_ok=True)
    assert summary.pq['macro without dead']==pytest.approx(means[[1,3]].mean(), nan_ok=True) and np.isnan(summary.pq.micro) and np.isnan(summary.pq.background)

def test_perfect_predictions():
    ss = [colour_sample('x', 64, 64, 0), colour_sample('y', 40, 90, 1, (0,1)), colour_sample('z', 70, 50, 2, (0,))]
    table = unet_sharp_evaluate(Told(), ss, plain)
    assert (table[['dice','iou']].stack().dropna()==1).all() and (table.pq.dropna()==1).all() and np.isnan(table.loc[('z','a')].dice) and np.isnan(table.loc[('y','b')].pq)
    summary = class_summary(table)
    assert (summary[['dice','iou']].stack().dropna()==1).all() and list(summary.index)==['background','a','b','micro','macro'] and summary.pq.macro==1

def test_scores_without_instances_or_nuclei():
    s,p,_ = random_case(1, instances=False)
    table = unet_sharp_evaluate(lambda im: p, [s])
    assert table.pq.isna().all() and table.dice.notna().any() and np.isnan(class_summary(table).pq.macro)
    empty = with_classes(np.zeros((8,9), np.uint8), np.zeros((8,9), np.int32))
    none = class_summary(unet_sharp_evaluate(lambda im: np.zeros((8,9), np.uint8), [empty]))
    assert none.dice.background==1 and none.dice[list(kinds)].isna().all()
    with pytest.raises(DataError, match='nothing to measure'): unet_sharp_evaluate(Told(), [], plain)

@pytest.mark.parametrize('answer', [np.full((14,16), 4), np.full((14,16), -1), np.zeros((14,15), int), np.zeros((14,16)), np.zeros((3,14,16), int)], ids=['class','negative','shape','float','3d'])
def test_answers_of_another_kind(answer):
    with pytest.raises(DataError): unet_sharp_evaluate(lambda im: answer, [random_case(0)[0]])

def test_functions_are_measured_as_networks_are():
    "Small pieces are no nuclei, whoever found them"
    s = colour_sample('a', 64, 80)
    speckled = s.image.copy()
    speckled[4::16,4::16] = palette[2-(s.classes[4::16,4::16]==2)*1]
    s = replace(s, load_image=lambda: speckled)
    r = replace(plain, min_size=20)
    net = Told()
    assert unet_sharp_evaluate(lambda im: sharp_map(net, im, r).argmax(0), [s], r).equals(unet_sharp_evaluate(net, [s], r))

def test_images_of_one_name(tmp_path):
    "Two images of one name are not one image: refused, or told apart"
    ss = [colour_sample('a', 64, 64, 0), colour_sample('a', 64, 64, 1), colour_sample('b', 64, 64, 2)]
    table = unet_sharp_evaluate(Told(), ss, plain)
    try: save_sharp(table, 'U-Net#', 'made', 'val', scale='tiny', seed=1, folder=tmp_path)
    except DataError: return
    own = ledger.results('unet_sharp', tmp_path)
    assert len(own[own.metric=='dice_macro'].counts.iloc[0])==3

def test_tissues_are_kept():
    table = unet_sharp_evaluate(Told(), [colour_sample('x', organ='Colon'), colour_sample('y')], plain)
    assert table.loc['x'].tissue.eq('Colon').all() and table.loc['y'].tissue.isna().all()

# The colour forest

@pytest.mark.parametrize('shrink', [1,2])
def test_the_forest_sees_colours(shrink):
    r = replace(plain, shrink=shrink, trees=10)
    train,(x,m) = [colour_sample(f'{i}', 96, 96, i, split='train') for i in range(3)],coloured(61, 75, 9)
    a,b = (colour_forest(train, r)(x) for _ in range(2))
    assert a.shape==(61,75) and a.dtype==np.uint8 and np.array_equal(a, b) and (a==m)[inner([m], 9)[0]].mean()>.9

def test_the_forest_beats_chance(samples):
    r = replace(tiny, trees=10)
    table = class_summary(unet_sharp_evaluate(colour_forest(samples[:3], r, 1500), samples[3:]))
    rng = np.random.default_rng(0)
    share = np.bincount(np.concatenate([s.classes.ravel() for s in samples[:3]]), minlength=6)/sum(s.classes.size for s in samples[:3])
    chance = class_summary(unet_sharp_evaluate(lambda im: rng.choice(6, im.shape[:2], p=share), samples[3:]))
    assert table.dice.micro>chance.dice.micro+.1
    other = colour_forest(samples[:3], replace(r, seed=1), 1500)(samples[3].image)
    assert not np.array_equal(other, colour_forest(samples[:3], r, 1500)(samples[3].image))

def test_the_forest_of_nothing(samples):
    with pytest.raises(DataError, match='learn from|train'): colour_forest([], tiny)
    with pytest.raises(DataError): colour_forest(samples[:1], tiny)(np.zeros((20,20,4), np.uint8))

# Official layouts

def folds_of(root, folds=(1,2,3), n=2, kind=float):
    for k in folds:
        m = np.zeros((n,32,32,6), kind)
        m[0,:8,:8,0],m[0,20:25,20:25,3],m[:,10:14,2:9,k%5] = 5,9,7
        put(root/f'Fold {k}'/'masks'/f'fold{k}'/'masks.npy', m)
        put(root/f'Fold {k}'/'images'/f'fold{k}'/'images.npy', np.stack([noise(32, 32, 9*k+i) for i in range(n)]).astype(kind))
        put(root/f'Fold {k}'/'images'/f'fold{k}'/'types.npy', np.array(['Breast','Colon'][:n]))
    return root

def test_pannuke_as_it_is_handed_out(tmp_path):
    ss = sharp_samples('pannuke', folds_of(tmp_path))
    assert [(s.split, s.organ) for s in ss]==[(k,o) for k in ('train','val','test') for o in ('Breast','Colon')]
    assert np.unique(class_map(ss[0])).tolist()==[0,1,2,4] and class_map(ss[1])[11,5]==2 and ss[0].class_names==kinds and ss[0].image.dtype==np.uint8
    dls = unet_sharp_dls(ss, replace(tiny, crop=32, window=32), tmp_path/'even')
    assert len(list((tmp_path/'even').iterdir()))==4 and next(iter(dls.train))[0].shape==(2,3,32,32)
    even,_ = normalise_samples(ss, progress=False)
    assert list(even.attrgot('organ'))==list(ss.attrgot('organ'))

@pytest.mark.parametrize('folds,splits', [((1,2),{'train','val'}), ((1,3),{'train','test'}), ((2,),{'val'})])
def test_pannuke_in_part(tmp_path, folds, splits):
    ss = sharp_samples('pannuke', folds_of(tmp_path, folds))
    assert set(ss.attrgot('split'))==splits
    if splits!={'train','val'}:
        with pytest.raises(DataError, match='no sample of the split'): unet_sharp_dls(ss, tiny)

def test_pannuke_that_is_wrong(tmp_path):
    with pytest.raises(DataError, match='of no fold'): sharp_samples('pannuke', folds_of(tmp_path/'a', (1,2,4)))
    put(folds_of(tmp_path/'b')/'Fold 2'/'masks'/'fold2'/'masks.npy', np.zeros((1,32,32,6)))
    with pytest.raises(DataError, match='masks should be'): sharp_samples('pannuke', tmp_path/'b')
    (tmp_path/'c').mkdir()
    with pytest.raises(DataError, match='nothing of PanNuke'): sharp_samples('pannuke', tmp_path/'c')
    with pytest.raises(DataError, match='no protocol'): sharp_samples('glas', tmp_path)
    for k in ('imgs','masks'): (tmp_path/'d'/k).mkdir(parents=True)
    put(tmp_path/'d'/'imgs'/'p.png', noise(32, 32))
    put(tmp_path/'d'/'masks'/'p.mat', dict(inst_map=np.eye(32), type_map=np.eye(32)))
    with pytest.raises(DataError, match='of no fold'): sharp_samples('pannuke', tmp_path/'d')

def consep_official(root, train=6, test=2):
    for part,n in (('Train',train), ('Test',test)):
        for i in range(1, n+1):
            inst = disks(48, 60)
            put(root/'CoNSeP'/part/'Images'/f'{part.lower()}_{i}.png', noise(48, 60, i+100*test))
            put(root/'CoNSeP'/part/'Labels'/f'{part.lower()}_{i}.mat', dict(inst_map=inst.astype(float), type_map=np.where(inst>0, (inst+i)%7+1, 0).astype(float)))
    return root

@pytest.mark.parametrize('test', [0,2])
def test_consep_as_it_is_handed_out(tmp_path, test):
    ss = sharp_samples('consep', consep_official(tmp_path, test=test))
    splits = pd.Series(list(ss.attrgot('split'))).value_counts().to_dict()
    assert splits==dict(train=4, val=2)|(dict(test=2) if test else {}) and len({s.name for s in ss})==6+test
    assert all((s.split=='test')==s.name.startswith('test') for s in ss)
    assert all(class_map(s).max()<=4 and mixed_share(class_map(s), s.instances)==0 for s in ss)
    again,other = sharp_samples('consep', tmp_path),[sharp_samples('consep', tmp_path, seed) for seed in range(5)]
    of = lambda o: [(s.name, s.split) for s in o]
    assert of(again)==of(ss) and any(of(o)!=of(ss) for o in other)

@real
def test_consep_is_drawn_once_for_all():
    ss = [s for s in sharp_samples('consep') if s.split!='test']
    assert pd.Series([s.split for s in ss]).value_counts().to_dict()==dict(train=20, val=7) and len({s.name for s in ss})==27

# Rows, grids and the board

def fake_fit(monkeypatch):
    "Training is replaced by a model that tells colours; the recipes that it was asked for"
    asked = []
    def fit(samples, recipe, folder):
        asked.append(recipe)
        return SimpleNamespace(model=Told(), recipe=recipe, names=('background','a','b'), recorder=SimpleNamespace(values=[1,2]))
    monkeypatch.setattr(unet_sharp, 'sharp_fit', fit)
    return asked

@pytest.fixture
def colours(): return [colour_sample(f'{k} {i}', 64, 80, i+9*(k=='test'), split=k) for k,n in (('train',2), ('val',3), ('test',2)) for i in range(n)]

def test_all_systems_in_a_grid(colours, tmp_path, monkeypatch):
    "Each is run once, none overwrites another, and what is done is not run again"
    asked = fake_fit(monkeypatch)
    grid = lambda r=plain: sharp_grid(sharp_systems, colours, r, 'made', None, 'tiny', tmp_path)
    assert grid()==sharp_systems and len(asked)==len(sharp_systems)-1 and asked==[sharp_recipe(o, plain) for o in sharp_systems[1:]]
    df = ledger.results('unet_sharp', tmp_path)
    assert set(df.system)==set(sharp_systems) and set(df.split)=={'val','test'}
    assert df.groupby(['system','split']).size().nunique()==1
    assert grid()==[] and grid(replace(plain, lr=5e-4))==sharp_systems
    assert set(sharp_board('test', 'made', 'tiny', tmp_path).index)==set(sharp_systems)

@pytest.mark.parametrize('a,b', [('U-Net#','U-Net'), ('U-Net','U-Net++'), ('U-Net#','U-Net++')])
def test_systems_do_not_overwrite_each_other(tmp_path, a, b):
    table = unet_sharp_evaluate(Told(), [colour_sample('x'), colour_sample('y', seed=1)], plain)
    for k in (a, b): save_sharp(table, k, 'made', 'val', scale='tiny', seed=1, folder=tmp_path, recipe=plain.to_dict())
    assert set(ledger.results('unet_sharp', tmp_path).system)=={a,b}

def test_changes_are_recipes_of_their_own():
    recipes = [sharp_recipe(k, plain) for k in sharp_changes]
    same_as = {k:[o for o in sharp_changes if sharp_recipe(o, SharpRecipe())==sharp_recipe(k, SharpRecipe())] for k in sharp_changes}
    assert all(len(v)<=2 for v in same_as.values()) and len(recipes)==len(sharp_changes) and sharp_recipe('colour forest', plain)==plain
    with pytest.raises(DataError, match='no system'): sharp_recipe('SegNet', plain)

def test_the_ledger_holds_what_was_measured(colours, tmp_path):
    done = sharp_row('colour forest', colours, plain, 'made', None, 'tiny', tmp_path)
    df = ledger.results('unet_sharp', tmp_path).set_index(['split','metric'])
    assert list(done)==['val','test'] and df.index.is_unique
    for split,t in done.items():
        part = [s for s in colours if s.split==split]
        assert t.equals(unet_sharp_evaluate(colour_forest(colours[:2], plain), part, plain))
        summary = class_summary(t)
        for k,row in summary.iterrows():
            for metric,v in row.items():
                key = (split,f'{metric}_{k}')
                assert (key in df.index)==(v==v)
                if v==v: assert df.loc[key].value==pytest.approx(v)
        own = df.loc[(split,'dice_macro')]
        assert own.per_image=={s.name:round(float(class_summary(t.loc[[s.name]]).dice.macro), 4) for s in part} and own.classes==['background','a','b']
        assert own.counts=={s.name:t.loc[s.name, ['tp','fp','fn']].values.tolist() for s in part}
        assert pooled_dice(list(own.counts.values()))==pytest.approx(own.value)
    assert SharpRecipe.from_dict(df.recipe.iloc[0])==plain

def test_a_row_of_the_network(samples, tmp_path):
    r = replace(plain, crop=32, window=48)
    done = sharp_row('U-Net#, pooled loss', samples, r, 'made', tmp_path/'fit', 'tiny', tmp_path/'results')
    df = ledger.results('unet_sharp', tmp_path/'results')
    assert set(df.split)=={'val'} and set(df.started)=={'random'} and set(df.epochs)=={1} and df.recipe.iloc[0]['loss']=='pooled'
    learn = sharp_fit(samples, sharp_recipe('U-Net#, pooled loss', r), tmp_path/'fit')
    assert unet_sharp_evaluate(learn, samples[3:]).equals(done['val'])

def test_killed_grid_goes_on(colours, tmp_path, monkeypatch):
    systems,f = ['colour forest','U-Net#','UNet 3+'],unet_sharp.sharp_row
    fake_fit(monkeypatch)
    def killed(system, *args):
        if system=='U-Net#': raise KeyboardInterrupt
        return f(system, *args)
    grid = lambda r=plain: sharp_grid(systems, colours, r, 'made', None, 'tiny', tmp_path)
    with monkeypatch.context() as m:
        m.setattr(unet_sharp, 'sharp_row', killed)
        with pytest.raises(KeyboardInterrupt): grid()
    done = mtimes(tmp_path)
    assert grid()==systems[1:] and mtimes(tmp_path).items()>=done.items() and grid()==[] and grid(replace(plain, seed=1))==systems
    assert sharp_board('val', 'made', 'tiny', tmp_path).seeds.tolist()==[2,2,2]

@pytest.mark.parametrize('split', ['val','test'])
def test_a_split_that_is_missing(colours, tmp_path, split):
    grid = lambda: sharp_grid(['colour forest'], colours, plain, 'made', None, 'tiny', tmp_path)
    grid()
    for p in tmp_path.glob(f'*-{split}-*'): p.unlink()
    assert grid()==['colour forest'] and set(ledger.results('unet_sharp', tmp_path).split)=={'val','test'} and grid()==[]

metrics = ['dice_background','dice_b','dice_micro','dice_macro','iou_macro','pq_macro']

@pytest.mark.parametrize('split', ['val','test'])
@pytest.mark.parametrize('metric', metrics)
def test_killed_within_a_row(metric, split, colours, tmp_path, monkeypatch):
    "What is half written is measured again, and the board does not stumble over it"
    f = ledger.save_result
    def save(paper, system, dataset, part, m, *args, **kw):
        if (part,m)==(split,metric): raise KeyboardInterrupt
        return f(paper, system, dataset, part, m, *args, **kw)
    fake_fit(monkeypatch)
    row = lambda k: sharp_grid([k], colours, plain, 'made', None, 'tiny', tmp_path)
    row('without gates')
    whole = len(ledger.results('unet_sharp', tmp_path))
    with monkeypatch.context() as m:
        m.setattr(unet_sharp, 'save_result', save)
        with pytest.raises(KeyboardInterrupt): row('UNet 3+')
    assert 'without gates' in sharp_board(split, 'made', 'tiny', tmp_path).index
    assert row('UNet 3+')==['UNet 3+'] and len(ledger.results('unet_sharp', tmp_path))==2*whole

def test_rows_there_are_not(colours, tmp_path):
    grid = lambda system, some: sharp_grid([system], some, plain, 'made', None, 'tiny', tmp_path)
    with pytest.raises(DataError, match='no system'): grid('SegNet', colours)
    with pytest.raises(DataError, match='nothing to measure'): grid('U-Net#', colours[:2])
    for system in ('U-Net#','colour forest'):
        with pytest.raises(DataError, match='learn from|train'): grid(system, colours[2:])
    with pytest.raises(DataError, match='nothing was measured'): sharp_board('val', 'made', 'tiny', tmp_path)
    assert not list(tmp_path.iterdir())

def test_a_folder_of_other_images(samples, tmp_path):
    r = replace(plain, crop=32, window=48, batches=1)
    for some in (samples[3:], samples[:3]):
        with pytest.raises(DataError, match='no sample of the split'): sharp_fit(some, r, tmp_path)
    first = sharp_fit(samples, r, tmp_path)
    assert same(sharp_fit(samples[::-1], r, tmp_path).model, first.model)
    with pytest.raises(DataError, match='other images'): sharp_fit(samples[1:], r, tmp_path)
    with pytest.raises(DataError, match='other images'): sharp_fit([*samples[:3], replace(samples[3], name='z')], r, tmp_path)

def test_what_does_not_change_the_training(samples, tmp_path):
    "Another size of nuclei or another overlap is no reason to train again"
    r = replace(plain, crop=32, window=48, batches=1)
    sharp_fit(samples, r, tmp_path)
    n = len(list(tmp_path.glob('*/best.safetensors')))
    for k,v in dict(min_size=9, overlap=.1, trees=7, mpp=.3).items(): sharp_fit(samples, replace(r, **{k:v}), tmp_path)
    assert n==len(list(tmp_path.glob('*/best.safetensors')))==1

def written(folder, system, images, seed=42, split='val', scale='small', dataset='CoNSeP', names=('background','a','b')):
    "A made-up row: tp, fp, fn of each class of each image"
    rows = [dict(image=f'i{i}', **{'class':k}, tissue=None, tp=tp, fp=fp, fn=fn, dice=2*tp/max(2*tp+fp+fn, 1), iou=tp/max(tp+fp+fn, 1), pq=.5 if k!='background' else np.nan)
        for i,image in enumerate(images) for k,(tp,fp,fn) in zip(names, image)]
    save_sharp(pd.DataFrame(rows).set_index(['image','class']), system, dataset, split, scale=scale, seed=seed, folder=folder)

def test_board_by_hand(tmp_path):
    a = [[(90,5,5),(10,5,5),(1,3,0)], [(80,9,1),(20,0,4),(0,0,3)], [(70,1,1),(5,5,5),(6,0,0)]]
    b = [[(90,5,5),(12,3,3),(2,2,0)], [(80,9,1),(22,1,2),(1,1,2)], [(70,1,1),(3,7,7),(4,1,2)]]
    written(tmp_path, 'U-Net#', a)
    written(tmp_path, 'U-Net#', b, 43)
    written(tmp_path, 'colour forest', a[:1])
    for kw in (dict(split='test'), dict(scale='tiny'), dict(dataset='PanNuke')): written(tmp_path, 'U-Net#', b[:1], **kw)
    board = sharp_board(folder=tmp_path)
    assert set(board.index)=={'U-Net#','colour forest'} and board.macro.is_monotonic_decreasing
    def hand(images, c):
        tp,fp,fn = np.sum(images, 0)[c]
        return 2*tp/(2*tp+fp+fn)
    u,f = board.loc['U-Net#'],board.loc['colour forest']
    for k,c in (('a',1), ('b',2)): assert u[k]==pytest.approx((hand(a, c)+hand(b, c))/2, abs=6e-4) and f[k]==pytest.approx(hand(a[:1], c), abs=6e-4)
    assert u.macro==pytest.approx((u.a+u.b)/2, abs=2e-3) and (u.seeds, f.seeds, u.pq)==(2,1,.5)
    def micro(images):
        tp,fp,fn = np.sum(images, 0)[1:].sum(0)
        return 2*tp/(2*tp+fp+fn)
    assert u.micro==pytest.approx((micro(a)+micro(b))/2, abs=6e-4)
    low,high = map(float, u.interval.split(' to '))
    assert (low, high)==pytest.approx(interval(np.mean([a,b], 0), pooled_dice)[1:], abs=6e-4) and low<u.macro<high and 'nan' in f.interval

def test_board_of_images_without_nuclei(tmp_path):
    "Draws of nothing but empty images do not spoil the interval"
    written(tmp_path, 'U-Net#', [[(90,5,5),(10,5,5),(1,3,0)], [(100,0,0),(0,0,0),(0,0,0)], [(100,0,0),(0,0,0),(0,0,0)]])
    low,high = map(float, sharp_board(folder=tmp_path).interval['U-Net#'].split(' to '))
    assert low<=high

@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_pooled_dice_by_hand(seed):
    c = np.random.default_rng(seed).integers(0, 4, (3,4,3))
    tp,fp,fn = c.sum(0)[1:].T
    known = [2*t/(2*t+p+n) for t,p,n in zip(tp, fp, fn) if t+p+n]
    assert not known or pooled_dice(c)==pytest.approx(np.mean(known))

def test_claims_of_the_paper():
    "Every Dice follows from its IoU, which pooled numbers do; the printed averages are micro"
    v = ledger.claims('unet_sharp').set_index('metric').value
    for k in (*kinds,'background','micro'): assert v[f'dice_{k}']==pytest.approx(2*v[f'iou_{k}']/(1+v[f'iou_{k}']), abs=2e-4), k
    each = v[[f'iou_{k}' for k in kinds]]
    assert each.mean()==pytest.approx(.4121, abs=1e-4) and each.drop('iou_dead').mean()==pytest.approx(.5151, abs=1e-4)
    assert v[[f'dice_{k}' for k in kinds]].mean()==pytest.approx(.5407, abs=1e-4)
    assert set(ledger.claims('unet_sharp').system)<=set(sharp_systems)
