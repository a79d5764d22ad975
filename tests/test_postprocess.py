"ConvCRF against unfold, for any size, batch, window and blur; the watershed against scikit-image, its mirror image and what can be drawn by hand"
import numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.morphology import disk

from histolab_nb.core import DataError
from histolab_nb.metrics import aji, dice
from histolab_nb.phantom import phantom_samples
from histolab_nb.postprocess import *

settings.register_profile('slow_machine', deadline=None)
settings.load_profile('slow_machine')

def unfold_message(crf, q, image):
    "K*q by copying the window of every pixel"
    n = 2*crf.span+1
    def cols(x): return F.unfold(x, n, padding=crf.span).view(*x.shape[:2], n*n, -1)
    small,f = coarse(q, crf.blur),coarse(image, crf.blur)/13
    alike = torch.exp(-0.5*(cols(f)-f.flatten(2)[:,:,None]).square().sum(1))
    d = torch.arange(-crf.span, crf.span+1).double()*crf.blur
    near = torch.exp(-0.5*(d[:,None]**2+d**2)/3**2).view(1, -1, 1)
    res = (cols(small)*(3*near+10*alike)[:,None]).sum(2).view_as(small)
    return fine(res, crf.blur, q.shape[2:])

@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(1, 3), st.integers(0, 99))
def test_message_is_that_of_unfold(b, c, h, w, span, blur, seed):
    rng = torch.Generator().manual_seed(seed)
    q = torch.rand(b, c, h, w, generator=rng, dtype=torch.double).softmax(1)
    image = 2+40*torch.rand(b, 3, h, w, generator=rng, dtype=torch.double)
    crf = ConvCRF(c, 2*span+1, blur, literal=True).double()
    with torch.no_grad(): assert torch.allclose(crf(q, image), unfold_message(crf, q, image), rtol=1e-5)

@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_the_result_is_a_distribution(c, h, w, normalise):
    q = torch.rand(2, c, h, w).mul(8).softmax(1)
    with torch.no_grad(): res = ConvCRF(c, normalise=normalise)(q, torch.rand(2, 3, h, w)*255+1)
    assert res.shape==q.shape and res.min()>=0 and torch.allclose(res.sum(1), torch.ones(2, h, w), atol=1e-5)

def test_images_of_a_batch_do_not_see_each_other():
    q,image = torch.rand(3, 2, 17, 23).softmax(1),torch.rand(3, 3, 17, 23)*255
    crf = ConvCRF(blur=2)
    with torch.no_grad(): assert torch.allclose(crf(q, image), torch.cat([crf(q[i:i+1], image[i:i+1]) for i in range(3)]), atol=1e-5)

def test_long_lines_in_pieces():
    "More than one piece of the line, so that pairs reach across its cuts"
    q,image = torch.rand(1, 2, 300, 301).softmax(1).double(),torch.rand(1, 3, 300, 301).double()*255
    crf = ConvCRF(blur=1, filter_size=5, literal=True).double()
    with torch.no_grad(): assert torch.allclose(crf(q, image), unfold_message(crf, q, image), rtol=1e-5)

@pytest.mark.parametrize('normalise,literal', [(False,False), (True,False), (False,True)])
def test_every_parameter_learns_and_threads_are_as_before(normalise, literal):
    threads = torch.get_num_threads()
    q,image = torch.rand(1, 2, 24, 24).softmax(1),torch.rand(1, 3, 24, 24)*255
    crf = ConvCRF(blur=2, normalise=normalise, literal=literal)
    loss, = crf.fit(q, image, torch.ones(1, 24, 24), epochs=1)
    assert 0<loss<1 and torch.get_num_threads()==threads
    used = [p for n,p in crf.named_parameters() if not (literal and n=='mix_logit')]
    assert all(p.grad is not None and p.grad.abs().sum()>0 for p in used)

def test_threads_are_as_before_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(DataError): ConvCRF()(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4)*9)
    assert torch.get_num_threads()==threads


# watershed

def disks(*places, shape=(48,64)):
    y,x = np.mgrid[:shape[0],:shape[1]]
    return np.any([np.hypot(y-a, x-b)<r for a,b,r in places], axis=0)

def blobs(seed, h=90, w=70, sigma=2.5):
    "A map of probabilities with round and odd shapes, some at the edge"
    o = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(h,w)), sigma)
    return ((o-o.min())/max(np.ptp(o), 1e-6)).astype(np.float32)

@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 60), st.floats(.2, .8), st.integers(0, 4), st.integers(0, 2),
    st.sampled_from([0,.7,2.]), st.integers(1, 9), st.integers(0, 40))
def test_instances_are_numbered_connected_and_within_the_mask(seed, h, w, threshold, coarse, fine, sigma, peak, min_size):
    p = Watershed(threshold, coarse, fine, sigma, peak, min_size)
    s = watershed_steps(blobs(seed, h, w), p)
    res = s['instances']
    assert res.dtype==np.int32 and res.shape==(h,w)
    assert (np.unique(res[res>0])==np.arange(1, res.max()+1)).all()
    assert not (res.astype(bool) & ~s['cleaned']).any()
    for i in range(1, res.max()+1):
        one = res==i
        assert ndimage.label(one, np.ones((3,3)))[1]==1 and one.sum()>=min_size and (one & s['peaks']).any()
    assert (watershed_instances(blobs(seed, h, w), p)==res).all()

@given(st.integers(0, 999), st.integers(1, 12))
def test_peaks_are_those_of_peak_local_max(seed, radius):
    h,mask = blobs(seed),blobs(seed+1)>.5
    theirs = np.zeros_like(mask)
    theirs[tuple(peak_local_max(np.where(mask, h, 0), min_distance=1, footprint=disk(radius), labels=mask.astype(int), exclude_border=False).T)] = True
    assert (find_peaks(np.where(mask, h, 0), mask, radius)==theirs).all()

@pytest.mark.parametrize('seed', range(4))
def test_mirror_images(seed):
    prob = blobs(seed, 200, 160)
    res = watershed_instances(prob)
    for turn,back in ((np.flipud,)*2, (np.fliplr,)*2, (np.transpose,)*2, (np.rot90, lambda o: np.rot90(o, -1))):
        other = back(watershed_instances(turn(prob)))
        assert ((other>0)==(res>0)).mean()>.999 and abs(int(other.max())-int(res.max()))<=1 and aji(res, other)>.98

def test_disks_at_the_edge():
    "Nuclei that are cut by the edge count, keep their straight side and are split like others"
    mask = disks((0,10,9), (24,0,9), (47,40,9), (24,40,9), (0,63,7))
    res = watershed_instances(mask)
    assert res.max()==5 and res[0,10] and res[24,0] and res[47,40] and res[0,63]
    assert dice(res>0, mask)>.97
    assert watershed_instances(disks((0,20,10), (0,36,10))).max()==2

@pytest.mark.parametrize('angle', range(0, 180, 15))
def test_a_pair_is_split_and_an_ellipse_is_not(angle):
    y,x = np.mgrid[:80,:80]-39.7
    a = np.deg2rad(angle)
    u,v = x*np.cos(a)+y*np.sin(a),y*np.cos(a)-x*np.sin(a)
    pair = (np.hypot(u-11, v)<12) | (np.hypot(u+11, v)<12)
    assert watershed_instances(pair).max()==2
    assert watershed_instances((u/22)**2+(v/13)**2<1).max()==1

@pytest.mark.parametrize('shape', [(1,1), (1,9), (9,1), (3,3), (40,50)])
def test_empty_full_and_one_pixel(shape):
    empty = np.zeros(shape, bool)
    assert watershed_instances(empty).shape==shape and watershed_instances(empty).max()==0
    assert (watershed_instances(~empty)==1).all() and (watershed_instances(np.ones(shape))==1).all()
    one = empty.copy()
    one[shape[0]//2,shape[1]//2] = True
    res = watershed_instances(one, coarse=0, fine=0)
    assert res.sum()==1 and (res>0).sum()==1
    if min(shape)>2: assert watershed_instances(one).max()==0

def test_small_instances_go_and_the_others_are_numbered_anew():
    mask = disks((10,10,3), (24,30,10), (40,55,4))
    areas = np.bincount(watershed_instances(mask, peak=3).ravel())[1:]
    assert len(areas)==3
    for n in (areas.min(), areas.min()+1, areas.max()+1):
        res = watershed_instances(mask, peak=3, min_size=int(n))
        assert res.max()==(areas>=n).sum() and (np.bincount(res.ravel())[1:]==areas[areas>=n]).all()

def test_any_kind_of_array():
    prob = blobs(5)
    want = watershed_instances(prob)
    mask = prob>.5
    maps = [torch.from_numpy(prob), torch.from_numpy(prob).double().requires_grad_(), np.asfortranarray(prob), prob.tolist(), tuple(map(tuple, prob.tolist()))]
    for o in (*maps, mask, mask.astype(np.uint8), torch.from_numpy(mask)): assert (watershed_instances(o)==want).all()
    assert watershed_instances(torch.from_numpy(prob).half()).shape==prob.shape
    frozen = prob[::-1]
    frozen.flags.writeable = False
    before = frozen.copy()
    watershed_instances(frozen)
    assert (frozen==before).all()

@pytest.mark.parametrize('bad', [np.zeros((0,4)), np.zeros(5), np.zeros((2,4,4)), np.full((4,4), np.nan), np.array([[0,np.inf]]), np.array([[-.1,1]]),
    np.array([[0,1.2]]), np.array([[0,255]], np.uint8), np.array([['a','b']]), np.array([[1j,0]]),
    np.array([[None,1]], object), [[0.,1.],[0.]], None, 'map.png', torch.full((3,3), float('nan'))])
def test_maps_that_are_refused(bad):
    with pytest.raises(DataError): watershed_instances(bad)
    with pytest.raises(DataError): boundary_instances(bad)
    with pytest.raises(DataError): tune_watershed([bad], [np.zeros((4,4), int)])

@pytest.mark.parametrize('bad', [dict(threshold=1.1), dict(threshold=-.1), dict(threshold=float('nan')), dict(coarse=-1), dict(coarse=51), dict(fine=1.5),
    dict(fine='1'), dict(sigma=-1.), dict(sigma=float('inf')), dict(peak=0), dict(peak=7.), dict(peak=10**6), dict(min_size=-1), dict(size=3), dict(peak=None)])
def test_parameters_that_are_refused(bad):
    with pytest.raises(DataError): watershed_instances(blobs(0), **bad)
    if 'size' not in bad:
        with pytest.raises(DataError): Watershed(**bad)
    if bad!=dict(peak=None):
        with pytest.raises(DataError): tune_watershed([blobs(0)], [blobs(0)>.5], {k:(v,) for k,v in bad.items()})

def test_parameters_of_another_kind():
    with pytest.raises(DataError): watershed_instances(blobs(0), 7)
    with pytest.raises(DataError): watershed_instances(blobs(0), dict(peak=7))

def test_recipe_round_trip(tmp_path):
    p = Watershed(threshold=.4, peak=5)
    assert Watershed.load(p.save(tmp_path/'w.json'))==p and Watershed.at('tiny', peak=9).peak==9

# tuning

def test_tuning_is_what_one_by_one_gives():
    probs,truths = [blobs(i) for i in range(2)],[watershed_instances(blobs(i), threshold=.55, peak=4) for i in range(2)]
    grid = dict(peak=(3,4,8), threshold=np.array([.5,.55]), coarse=[0,2], sigma=(1.,), min_size=(0,30), fine=1)
    best,df = tune_watershed(iter(probs), (t for t in truths), grid)
    assert len(df)==24 and list(df)==['threshold','coarse','fine','sigma','peak','min_size','score','lowest']
    for r in df.to_dict('records'):
        r,score,low = {k:v for k,v in r.items() if k not in ('score','lowest')},r['score'],r['lowest']
        each = [aji(t, watershed_instances(p, **r)) for p,t in zip(probs, truths)]
        assert np.isclose(np.mean(each), score) and np.isclose(min(each), low)
    assert df.score.is_monotonic_decreasing and all(getattr(best, k)==df.iloc[0][k] for k in grid)
    again,_ = tune_watershed(tuple(probs), tuple(truths), grid)
    assert again==best

def test_tuning_leaves_the_rest_alone_and_equals_go_to_the_first():
    best,df = tune_watershed([blobs(1)], [np.zeros((90,70), int)], dict(peak=(9,5)), params=Watershed(coarse=1, sigma=0.), score=lambda t,p: 1)
    assert best==Watershed(coarse=1, sigma=0., peak=9) and df.peak.tolist()==[9,5]

def test_tuning_refuses():
    p,t = blobs(0),np.zeros((90,70), int)
    lengths = ([p],[t[1:]],None),([p,p],[t],dict(peak=(7,))),([p],[t,t],dict(peak=(7,))),([],[],None)
    grids = ([p],[t],{}),([p],[t],dict(peak=())),([p],[t],dict(wrong=(1,)))
    for probs,truths,grid in lengths+grids:
        with pytest.raises(DataError): tune_watershed(probs, truths, grid)

def test_an_error_of_the_score_is_not_hidden():
    def score(t, p): raise ValueError('mine')
    with pytest.raises(ValueError, match='mine'): tune_watershed([blobs(0)], [np.zeros((90,70), int)], dict(peak=(7,)), score=score)

# baselines, table, boundaries

def test_baselines_on_phantom():
    tissue = phantom_samples(1, 256, seed=2, regions=('tumour',))[0]
    scores = [aji(tissue.instances, f(tissue.image)) for f in (otsu_grey, otsu_haematoxylin)]
    assert scores[1]>.4 and scores[1]>scores[0]
    assert (otsu_haematoxylin(tissue.image, watershed=Watershed(min_size=200)).max() < otsu_haematoxylin(tissue.image).max())
    for f in (grey_foreground, haematoxylin_foreground): assert f(tissue.image).dtype==bool and f(tissue.image[:1,:1]).shape==(1,1)

def test_chance_depends_on_the_seed_alone():
    img = np.zeros((80,90,3), np.uint8)
    one,same,other = chance_nuclei(img, seed=1),chance_nuclei(img+9, seed=1),chance_nuclei(img, seed=2)
    assert np.array_equal(one, same) and not np.array_equal(one, other)

@pytest.mark.parametrize('func', [otsu_grey, otsu_haematoxylin])
def test_baselines_edges(func):
    for v in (0, 128, 255): assert func(np.full((20,30,3), v, np.uint8)).max()==0
    for bad in (np.zeros((4,4), np.uint8), np.zeros((4,4,4), np.uint8), np.zeros((4,4,3)), np.zeros((0,4,3), np.uint8), None):
        with pytest.raises(DataError): func(bad)
    with pytest.raises(DataError): func(np.zeros((4,4,3), np.uint8), holes=-1)

@given(st.integers(0, 99), st.integers(0, 60))
def test_small_pieces_and_holes(seed, size):
    mask = blobs(seed, 60, 50, 1.)>.5
    labels,n = ndimage.label(mask)
    assert (drop_small(mask, size)==np.isin(labels, [i for i in range(1, n+1) if (labels==i).sum()>=size])).all()
    holes,n = ndimage.label(~mask)
    open_to_border = np.concatenate([holes[[0,-1]].ravel(), holes[:,[0,-1]].ravel()])
    small = [i for i in range(1, n+1) if i not in open_to_border and (holes==i).sum()<=size]
    assert (fill_small(mask, size)==(mask | np.isin(holes, small))).all() and (fill_small(mask, 0)==mask).all()

def test_table_by_hand():
    y,x = np.mgrid[:60,:60]
    inst = np.zeros((60,60), np.int32)
    inst[10:14,20:40] = 5
    inst[(y-40)**2+(x-30)**2<=100] = 9
    inst[59,59] = 2
    img = np.random.default_rng(0).integers(0, 255, (60,60,3), np.uint8)
    df = nuclei_table(inst, img, mpp=.5).set_index('id')
    assert df.index.tolist()==[2,5,9] and df.area.tolist()==[1,80,(inst==9).sum()]
    assert np.allclose(df.loc[5,['y','x','y_um','x_um','area_um2','solidity']].astype(float), [11.5,29.5,5.75,14.75,20,1])
    assert df.eccentricity[9]<.1 and df.eccentricity[5]>.95 and abs(df.major_um[9]-10)<.3
    from histolab_nb.stain import separate
    dye = separate(img)[...,0]
    assert np.allclose(df.haematoxylin, [dye[inst==i].mean() for i in df.index], atol=1e-4)
    assert list(nuclei_table(inst, img).columns)==['id','y','x','area','major','minor','eccentricity','solidity','haematoxylin']

def test_table_edges():
    img = np.zeros((6,8,3), np.uint8)
    for mpp in (None, .25):
        none = nuclei_table(np.zeros((6,8), np.uint16), img, mpp)
        some = nuclei_table(np.ones((6,8), np.uint16), img, mpp)
        assert len(none)==0 and list(none)==list(some) and len(some)==1
    for inst in (np.zeros((6,8)), np.zeros((6,8), bool), -np.ones((6,8), int), np.zeros((6,7), int), np.zeros((1,6,8), int)):
        with pytest.raises(DataError): nuclei_table(inst, img)
    for mpp in (0, -1, float('nan'), float('inf')):
        with pytest.raises(DataError): nuclei_table(np.ones((6,8), int), img, mpp)

def classes_of(inst, width=2):
    inner = ndimage.minimum_filter(inst, 2*width+1)==ndimage.maximum_filter(inst, 2*width+1)
    return np.stack([inst==0, (inst>0) & inner, (inst>0) & ~inner]).astype(float)

def test_boundaries_give_back_the_phantom():
    for region in ('tumour','lymphoid'):
        inst = phantom_samples(1, 256, seed=1, regions=(region,))[0].instances
        res = boundary_instances(classes_of(inst))
        assert aji(inst, res)>.9 and (np.unique(res)==np.arange(res.max()+1)).all() and res.dtype==np.int32
        assert not (res.astype(bool) & (inst==0)).any()
        assert aji(res[::-1], boundary_instances(classes_of(inst[::-1])))>.97

def test_boundaries_edges():
    for k,n in ((0,0), (1,1), (2,0)):
        prob = np.zeros((3,5,6))
        prob[k] = 1
        assert boundary_instances(prob).max()==n
    prob = classes_of(disks((20,20,9), (20,50,6)).astype(int), 1)
    assert boundary_instances(prob).max()==2 and boundary_instances(prob, min_body=100).max()==1
    with pytest.raises(DataError): boundary_instances(prob, min_body=-1)
    with pytest.raises(DataError): boundary_instances(np.zeros((4,5,5)))
