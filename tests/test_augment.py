"What no notebook can hold of `Warp`: an oracle pixel by pixel, all settings, odd sizes, what it must be equal to"
import math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from histolab_nb.augment import Flip, Warp
from histolab_nb.core import DataError, set_seed
from helpers import coloured, inner, told

seeds,chances = st.integers(0, 999),st.sampled_from([0.,.5,1.])
changes = st.fixed_dictionaries(dict(size=st.integers(1, 40), zoom=st.sampled_from([1.,1.3,8.]), turn=st.booleans(), move=chances, bend=chances,
    shift=st.sampled_from([0.,.1,1.]), scale=st.sampled_from([0.,.1,.9]), rotate=st.sampled_from([0.,45.,180.]), elastic=st.sampled_from([0.,.05,.5]),
    steps=st.sampled_from([0.,.3,.9]), optical=st.sampled_from([0.,.15,.5])))

def batch(n=4, h=64, w=64, seed=0):
    both = [coloured(h, w, seed+i) for i in range(n)]
    return torch.from_numpy(np.stack([a for a,_ in both])).permute(0,3,1,2)/255,torch.from_numpy(np.stack([b for _,b in both])).long()

def where_from(n, h, w):
    "Red tells the column, green the row, both as a share of the side"
    rows,cols = ((torch.arange(o)+.5)/o for o in (h,w))
    return torch.stack([cols.expand(h, w), rows[:,None].expand(h, w), torch.full((h,w), .5)]).expand(n,3,h,w)

def mirrored(v, n):
    "A place in px, mirrored at the outer edges of the first and the last pixel until it lies inside"
    v = (v+.5)%(2*n)
    return min(v, 2*n-v)-.5

def one_by_one(mask, grid):
    "A nearest-pixel sampler as simple as can be; -1 where rounding decides"
    (h,w),out = mask.shape,np.empty(grid.shape[:2], int)
    for i,j in np.ndindex(*out.shape):
        x,y = (mirrored(((float(g)+1)*n-1)/2, n) for g,n in zip(grid[i,j], (w,h)))
        near = [min(max(round(v), 0), n-1) for v,n in ((y,h), (x,w))]
        out[i,j] = -1 if any(abs(v-math.floor(v)-.5)<1e-3 for v in (x,y)) else mask[tuple(near)]
    return out

@settings(max_examples=40, deadline=None)
@given(seed=seeds, h=st.integers(1, 33), w=st.integers(1, 33), kw=changes)
def test_masks_pixel_by_pixel(seed, h, w, kw):
    y = torch.from_numpy(np.random.default_rng(seed).permutation(2*h*w).reshape(2,h,w))
    x,warp = torch.rand(2, 3, h, w),Warp(**kw)
    set_seed(seed)
    grid = warp.grid(x)
    set_seed(seed)
    vx,vy = warp(x, y)
    assert grid.shape==(2,kw['size'],kw['size'],2) and grid.dtype==torch.float32 and vx.shape==(2,3,kw['size'],kw['size']) and vx.isfinite().all()
    for got,m,g in zip(vy.numpy(), y.numpy(), grid.numpy()):
        want = one_by_one(m, g)
        assert ((got==want)|(want<0)).all()

@settings(max_examples=60, deadline=None)
@given(seed=seeds, names=st.sampled_from([(0,),(1,),(0,2),(5,200),(-7,40000)]), kind=st.sampled_from([torch.int16,torch.int32,torch.int64]), kw=changes)
def test_no_class_that_was_not_there(seed, names, kind, kw):
    y = torch.from_numpy(np.random.default_rng(seed).choice(names, (3,20,26))).to(kind)
    set_seed(seed)
    x,vy,again = Warp(**kw)(torch.rand(3,3,20,26), y, y.clone())
    assert vy.dtype==kind and set(vy.unique().tolist())<=set(y.unique().tolist()) and torch.equal(vy, again) and 0<=x.min() and x.max()<=1

@pytest.mark.parametrize('kw', [dict(), dict(zoom=1.333), dict(turn=True), dict(move=1.), dict(bend=1.), dict(zoom=1.2, turn=True, move=.5, bend=.5)], ids=str)
def test_image_and_mask_stay_in_step(kw):
    torch.manual_seed(1)
    x,y = batch(24, 120, 120)
    vx,vy = Warp(80, **kw)(x, y)
    deep = inner(vy.numpy(), 7)
    assert deep.mean()>.25 and (told(vx)==vy.numpy())[deep].mean()>.9999 and vx.shape==(24,3,80,80)

@pytest.mark.parametrize('side', [1,7,64,96,101,513])
def test_nothing_to_change_changes_nothing(side):
    x,y = torch.rand(2, 3, side, side),torch.randint(99, (2,side,side))
    vx,vy = Warp(side)(x, y)
    assert torch.equal(vx, x) and torch.equal(vy, y) and torch.equal(Warp(side)(x), x)

@pytest.mark.parametrize('side', [7,64,96,301])
def test_turns_are_permutations(side):
    torch.manual_seed(0)
    x,y = torch.rand(1, 3, side, side).expand(64,-1,-1,-1),torch.arange(side*side).view(1,side,side).expand(64,-1,-1)
    ways = lambda o: [t.rot90(k, (-2,-1)) for t in (o, o.flip(-1)) for k in range(4)]
    vx,vy = Warp(side, turn=True)(x, y)
    drawn = [[i for i,o in enumerate(ways(y[0])) if torch.equal(o, v)] for v in vy]
    assert all(len(o)==1 for o in drawn) and len({o for o, in drawn})==8
    assert all(torch.equal(ways(x[0])[i], v) for (i,),v in zip(drawn, vx))

def test_turns_are_equally_likely():
    torch.manual_seed(0)
    v = Warp(2, turn=True)(torch.zeros(8000,3,2,2), torch.arange(4).view(1,2,2).expand(8000,-1,-1))[1]
    counts = np.unique(v.flatten(1).numpy(), axis=0, return_counts=True)[1]
    assert len(counts)==8 and (abs(counts-1000)<5*math.sqrt(875)).all()

@pytest.mark.parametrize('size,zoom,side', [(64,1.333,96), (96,1.333,128), (64,2.,64), (50,1.2,40), (33,1.,70)])
def test_zoom_alone_is_an_affine_grid(size, zoom, side):
    "The first views of the gland notebook, written out: the same draws and the same pixels"
    x,y = torch.rand(5, 3, side, side),torch.randint(3, (5,side,side))
    torch.manual_seed(4)
    share = (size*zoom**torch.empty(5).uniform_(-1, 1)/side).clamp(max=1)
    start = torch.empty(5, 2).uniform_(-1, 1)*(1-share[:,None])
    after = torch.get_rng_state()
    grid = F.affine_grid(torch.cat([torch.diag_embed(share[:,None].expand(5, 2)), start[...,None]], 2), (5,3,size,size), align_corners=False)
    torch.manual_seed(4)
    vx,vy = Warp(size, zoom)(x, y)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.allclose(vx, F.grid_sample(x, grid, padding_mode='border', align_corners=False), atol=1e-4)
    assert torch.equal(vy, F.grid_sample(y[:,None].float(), grid, 'nearest', 'border', align_corners=False)[:,0].long())

def test_as_much_is_shown_as_should_be():
    torch.manual_seed(0)
    v = Warp(64, zoom=1.333)(where_from(300, 96, 96))
    across,down = (v[:,0,32,60]-v[:,0,32,3])*64/57,(v[:,1,60,32]-v[:,1,3,32])*64/57
    assert across.min()>.64/1.333-.02 and across.max()<=64/96*1.333+.02 and across.std()>.05 and torch.allclose(across, down, atol=.03)
    assert v[:,:2].min()<.01 and v[:,:2].max()>.99
    middle = v[:,:2,32,32]
    assert (middle.mean(0)-.5).abs().max()<.03 and middle.std(0).min()>.05

@pytest.mark.parametrize('h,w', [(64,96), (96,64), (40,300)])
def test_images_that_are_no_squares(h, w):
    "The part shown is a square all the same"
    torch.manual_seed(0)
    v = Warp(32, zoom=1.5, turn=False)(where_from(50, h, w))
    across,down = (v[:,0,16,28]-v[:,0,16,3])*w,(v[:,1,28,16]-v[:,1,3,16])*h
    assert torch.allclose(across, down, rtol=.06) and across.max()<=h+1

def test_small_images_are_shown_as_a_whole():
    x = where_from(20, 40, 40)
    v = Warp(64, zoom=1.1)(x)
    assert torch.allclose(v, F.interpolate(x, (64,64), mode='bilinear'), atol=1e-4)

@pytest.mark.parametrize('kw', [dict(move=1.), dict(bend=1.), dict(move=.5), dict(bend=.5)], ids=str)
def test_probabilities(kw):
    torch.manual_seed(0)
    x = where_from(800, 32, 32)
    changed = (Warp(32, **kw)(x)-x).abs().amax((1,2,3))>1e-4
    p = next(iter(kw.values()))
    assert abs(changed.float().mean()-p)<(.02 if p==1 else 5*.5/math.sqrt(800))
    assert torch.allclose(Warp(32, **{k:0. for k in kw})(x), x, atol=1e-5)

def test_shift_scale_and_rotation():
    "Solved from three places of each image, in px of the part shown"
    torch.manual_seed(0)
    g = Warp(65, move=1., shift=.1, scale=.2, rotate=30.).grid(torch.zeros(2000,3,65,65))
    middle,right,down = g[:,32,32],g[:,32,64]-g[:,32,0],g[:,64,32]-g[:,0,32]
    long = right.norm(dim=1)/(2*64/65)
    angle = torch.rad2deg(torch.atan2(right[:,1], right[:,0]))
    assert middle.abs().max()<=.2 and middle.abs().max()>.19 and middle.mean(0).abs().max()<.02
    assert torch.allclose((right*down).sum(1), torch.zeros(2000), atol=1e-4) and torch.allclose(down.norm(dim=1), right.norm(dim=1), atol=1e-4)
    assert (1/long).min()>=.799 and (1/long).max()<=1.201 and (1/long).std()>.1
    assert angle.abs().max()<=30.01 and angle.min()<-29 and angle.max()>29

@pytest.mark.parametrize('steps', [.3,.9])
def test_bands_keep_their_order(steps):
    "Rows and columns stay straight, in order, between the edges; a band is narrow where another is wide"
    torch.manual_seed(0)
    g = Warp(100, bend=1., elastic=0, optical=0, steps=steps).grid(torch.zeros(300,3,100,100))
    assert g.abs().max()<1 and (g[:,:,1:,0]>g[:,:,:-1,0]).all() and (g[:,1:,:,1]>g[:,:-1,:,1]).all()
    assert torch.allclose(g[...,0], g[:,:1,:,0].expand(-1,100,-1), atol=1e-5) and torch.allclose(g[...,1], g[:,:,:1,1].expand(-1,-1,100), atol=1e-5)
    wide = g[:,0,1:,0].diff(dim=1).abs().amax(1)
    assert .2<((wide-.02)>1e-3).float().mean()<.5

def test_lens_keeps_the_middle():
    torch.manual_seed(0)
    plain,g = (Warp(65, bend=p, elastic=0, steps=0, optical=.2).grid(torch.zeros(300,3,65,65)) for p in (0.,1.))
    k = ((g-plain)/(plain*plain.square().sum(-1, keepdim=True)).clamp_min(1e-9))[:,40:,40:].flatten(1)
    assert g[:,32,32].abs().max()<1e-6 and k.std(1).max()<1e-3 and k.abs().max()<.2001 and .2<(k.abs().amax(1)>1e-4).float().mean()<.5

def test_soft_bends_are_soft():
    torch.manual_seed(0)
    plain,g = (Warp(101, bend=p, elastic=.03, steps=0, optical=0).grid(torch.zeros(300,3,101,101)) for p in (0.,1.))
    d = g-plain
    some = d.abs().amax((1,2,3))>1e-4
    assert .2<some.float().mean()<.5 and d[:,::20,::20].abs().max()<=.0601 and d.abs().max()<.12 and d[some].abs().amax((1,2,3)).min()>.02
    assert (g.diff(dim=2)[...,0]>0).float().mean()>.9999

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16,torch.float64])
def test_types_and_autocast(dtype):
    x,y = batch(2)
    warp = Warp(48, zoom=1.3, turn=True, move=1., bend=1.)
    set_seed(0)
    vx,vy = warp(x, y)
    set_seed(0)
    with torch.autocast('cpu', torch.bfloat16): ax,ay = warp(x, y)
    set_seed(0)
    hx,hy = warp(x.to(dtype), y.bool())
    assert torch.equal(vx, ax) and torch.equal(vy, ay) and hx.dtype==dtype and hy.dtype==torch.bool
    set_seed(0)
    gx = warp(x.clone().requires_grad_())
    assert not gx.requires_grad and torch.equal(gx, vx)

def test_many_masks_none_and_other_transforms():
    x,y = batch(3)
    warp = Warp(32, zoom=1.2)
    assert isinstance(warp(x), torch.Tensor) and len(warp(x, y, y+1, y.int()))==4
    set_seed(0)
    _,a,b = warp(x, y, y+1)
    assert torch.equal(a+1, b)
    with pytest.raises(TypeError): Flip()(x, y)
    assert 'zoom=1.2' in repr(warp)

bad_masks = dict(float=lambda y: y.float(), complex=lambda y: y.cfloat(), few=lambda y: y[:1], small=lambda y: y[:,:60], axis=lambda y: y[:,None])
bad_masks |= dict(array=lambda y: y.numpy(), none=lambda y: None)

@pytest.mark.parametrize('bad', bad_masks.values(), ids=bad_masks)
def test_bad_masks(bad):
    x,y = batch(2)
    with pytest.raises(DataError) as e: Warp(32)(x, y, bad(y))
    assert e.value.fix and 'mask' in e.value.what

def test_bad_batches():
    x,y = batch(2)
    for o in (x[0], x*255, (x*255).byte(), x[:,:2]):
        with pytest.raises(DataError): Warp(32)(o, y)

@pytest.mark.parametrize('kw', [dict(size=0), dict(zoom=.9), dict(zoom=math.nan), dict(move=1.1), dict(bend=-.1), dict(shift=2), dict(scale=1.), dict(rotate=200),
    dict(elastic=-1), dict(steps=1.), dict(optical=3)], ids=str)
def test_settings_that_make_no_sense(kw):
    with pytest.raises(DataError): Warp(**dict(size=32)|kw)
