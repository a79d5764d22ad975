"What no notebook can hold: a prediction killed for good and resumed in another process, memory, and slides of odd shapes"
import os, signal, subprocess, sys
import numpy as np, pandas as pd, pytest, tifffile, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from PIL import Image
from skimage.measure import label
from torch import nn
from torch.nn import functional as F
from histolab_nb.core import DataError, read_json
from histolab_nb.inference import (Nuclei, SlideMap, TileLog, at_mpp, class_colour, haematoxylin_model, overlay_nuclei, predict_slide, read_picture, regions,
    ring_area, save_nuclei, segment_file, segment_image, sliding_map, vote_classes, window_starts, write_geojson)
from histolab_nb.phantom import Phantom
from histolab_nb.plots import palette
from histolab_nb.slides import Slide, write_slide

def grey(x): return F.avg_pool2d(x.mean(1, keepdim=True), 8)
def grey2(x): return torch.cat([1-grey(x), grey(x)], 1).mean((2,3))

@pytest.fixture(scope='session')
def path(tmp_path_factory):
    "A slide of coloured noise, 810 x 610 px: no multiple of any tile"
    rng = np.random.default_rng(0)
    img = rng.integers(60, 200, (61,81,3), np.uint8).repeat(10, 0).repeat(10, 1)
    return write_slide(img, tmp_path_factory.mktemp('slide')/'noise.tiff', 0.5, quality=95)

everywhere = dict(mask=np.ones((8,8), bool), progress=False, device='cpu')

@pytest.mark.parametrize('size,stride', [(64,64), (64,32), (64,48), (128,40), (96,8)])
def test_every_pixel_in_its_place(path, size, stride):
    "The map of a model that returns the picture is the picture"
    with Slide(path) as slide: truth = slide.read(0, 0, 810, 610).mean(-1)/255
    m = predict_slide(path, grey, size, 0.5, stride, min_tissue=0, **everywhere)
    assert m.prob.shape==(1,77,102) and m.covered.all()
    pooled = truth[:608,:808].reshape(76,8,101,8).mean((1,3))
    assert np.abs(m.prob[0,:76,:101]-pooled).max()<1e-5

def test_coarser_scale_and_whole_tiles(path):
    "At half the scale a map pixel is 16 level-0 px; answers of whole tiles fill the pixels they share"
    m = predict_slide(path, grey, 64, 1.0, min_tissue=0, **everywhere)
    assert m.scale==16 and m.prob.shape==(1,39,51)
    a,b = (predict_slide(path, grey2, 64, 0.5, s, min_tissue=0, **everywhere) for s in (64,48))
    assert a.scale==64 and b.scale==16 and a.prob.shape==(2,10,13)
    assert np.allclose(np.nansum(b.prob, 0), 1)

def test_shrink_is_a_mean(path):
    fine,coarse = (predict_slide(path, grey, 64, 0.5, shrink=k, min_tissue=0, **everywhere) for k in (1,4))
    assert coarse.scale==4*fine.scale
    assert np.allclose(fine.prob[0,:76,:100].reshape(19,4,25,4).mean((1,3)), coarse.prob[0,:19,:25], atol=1e-5)
    with pytest.raises(DataError, match='cannot be divided by 3'): predict_slide(path, grey, 64, 0.5, shrink=3, min_tissue=0, **everywhere)

def test_network_is_put_into_evaluation_mode_and_tagged(path, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3,2,3), nn.BatchNorm2d(2), nn.Dropout(.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))
    a = predict_slide(path, net, 64, 0.5, out=tmp_path/'net', min_tissue=0, **everywhere)
    b = predict_slide(path, net, 64, 0.5, min_tissue=0, batch_size=7, **everywhere)
    assert np.allclose(a.prob, b.prob, atol=1e-6, equal_nan=True)
    nn.init.zeros_(net[0].weight)
    with pytest.raises(DataError, match='model was Sequential'): predict_slide(path, net, 64, 0.5, out=tmp_path/'net', min_tissue=0, **everywhere)
    predict_slide(path, net, 64, 0.5, out=tmp_path/'net', resume=False, min_tissue=0, **everywhere)

def test_another_slide_of_the_same_name_is_refused(path, tmp_path):
    predict_slide(path, grey, 64, 0.5, out=tmp_path/'notes', **everywhere)
    (tmp_path/'other').mkdir()
    other = write_slide(np.full((610,810,3), 120, np.uint8), tmp_path/'other'/'noise.tiff', 0.5)
    with pytest.raises(DataError, match='bytes was'): predict_slide(other, grey, 64, 0.5, out=tmp_path/'notes', **everywhere)

def test_bad_answers(path):
    for f,said in ((lambda x: x.mean((2,3))*float('nan'), 'NaN or infinity'), (lambda x: x.mean(), 'classes'), (lambda x: 5*grey(x), 'no probabilities'), (lambda x: grey(x)[...,:4], 'classes')):
        with pytest.raises(DataError, match=said): predict_slide(path, f, 64, 0.5, **everywhere)
    with pytest.raises(DataError, match='leaves gaps'): predict_slide(path, grey, 64, 0.5, stride=65, **everywhere)
    with pytest.raises(DataError, match='multiple of 8'): predict_slide(path, grey, 64, 0.5, stride=12, **everywhere)

def test_no_resolution(path, tmp_path):
    import tifffile
    tifffile.imwrite(tmp_path/'bare.tiff', np.full((300,300,3), 150, np.uint8), tile=(256,256), photometric='rgb')
    with pytest.raises(DataError, match='mpp=0.5'): predict_slide(tmp_path/'bare.tiff', grey, 64, 0.5, **everywhere)

def test_damaged_notes(path, tmp_path):
    predict_slide(path, grey, 64, 0.5, out=tmp_path, **everywhere)
    (tmp_path/'map.npz').write_bytes((tmp_path/'map.npz').read_bytes()[:500])
    with pytest.raises(DataError, match='not a whole map'): predict_slide(path, grey, 64, 0.5, out=tmp_path, **everywhere)
    with pytest.raises(DataError, match='follow some of'): TileLog(tmp_path, read_json(tmp_path/'job.json')['job']).append(np.zeros((1,3), np.float32))
    (tmp_path/'job.json').write_text('[1]')
    with pytest.raises(DataError, match='not the notes'): predict_slide(path, grey, 64, 0.5, out=tmp_path, **everywhere)
    (tmp_path/'job.json').write_text('{"job"')
    with pytest.raises(DataError, match='not JSON'): predict_slide(path, grey, 64, 0.5, out=tmp_path, **everywhere)

def test_map_keeps_its_place_at_any_resolution():
    "A tumour of one third of the slide is where it was, and as large, at every resolution"
    prob = np.zeros((2,60,90), np.float32)
    prob[1,:,:30] = 1
    prob[0] = 1-prob[1]
    m = SlideMap(prob, (16.,16.), (1440,960), .5)
    for mpp in (2,3,5,8,11,30,100):
        k = m.at(mpp)
        assert abs(k.mpp-mpp)<1e-9 and k.prob.shape[1:]==(-(-960//(2*mpp)), -(-1440//(2*mpp)))
        assert np.allclose(k.prob.sum(0), 1, atol=1e-5)
        edge = (k.probability(1)>.5).mean(0).sum()*k.scale
        assert abs(edge-480)<=k.scale

def inside(ring, x, y):
    "Is the point inside the ring? By the number of edges that a ray to the right crosses"
    (x0,y0),(x1,y1) = ring[:-1].T,ring[1:].T
    cross = (y0>y)!=(y1>y)
    return bool((cross & (x<x0+(y-y0)/np.where(cross, y1-y0, 1)*(x1-x0))).sum()%2)

@settings(max_examples=40, deadline=None)
@given(arrays(np.int8, st.tuples(st.integers(1,9), st.integers(1,9)), elements=st.integers(0,2)))
def test_regions_are_the_pixels(labels):
    "A pixel's centre lies in exactly the region of its class, whatever the map"
    found = regions(labels, 10)
    assert sum(r.area for r in found)==pytest.approx(100*(labels>0).sum())
    for y,x in np.ndindex(labels.shape):
        hits = [r.label for r in found if inside(r.rings[0], 10*x+5, 10*y+5) and not any(inside(h, 10*x+5, 10*y+5) for h in r.rings[1:])]
        assert hits==([labels[y,x]] if labels[y,x] else [])
    for r in found:
        assert all((o[0]==o[-1]).all() for o in r.rings)
        assert ring_area(r.rings[0])>0 and all(ring_area(o)<0 for o in r.rings[1:])
        assert all(len(np.unique(o[:-1], axis=0))==len(o)-1 for o in r.rings) # no ring touches itself

def test_geojson_is_what_qupath_reads(tmp_path):
    labels = np.array([[1,1,1,0],[1,0,1,0],[1,1,1,2]])
    for names,colours in ((dict([(1,'tumour'),(2,'stroma')]),{1:'red',2:(0,0,1.)}), (('other','tumour','stroma'),('k','red','blue'))):
        d = read_json(write_geojson(tmp_path/'a.geojson', regions(labels, 100), names, colours, slide_mpp=.5))
        f = d['features'][0]
        assert d['type']=='FeatureCollection' and f['type']=='Feature' and f['geometry']['type']=='Polygon'
        assert f['properties']==dict(objectType='annotation', classification=dict(name='tumour', color=[255,0,0]), measurements={'Area um^2':80000*.25})
        assert len(f['geometry']['coordinates'])==2 and d['features'][1]['properties']['classification']==dict(name='stroma', color=[0,0,255])
    assert read_json(write_geojson(tmp_path/'b.geojson', []))['features']==[]
    with pytest.raises(DataError, match='cannot write here'): write_geojson(tmp_path/'a.geojson'/'x.geojson', [])

def test_log_of_another_batch_size(tmp_path):
    log = TileLog(tmp_path, dict(a=1), batch=4)
    for _ in range(3): log.append(np.ones((4,2), np.float32))
    log.append(np.ones((2,2), np.float32))
    assert TileLog(tmp_path, dict(a=1), batch=4).done==12
    assert TileLog(tmp_path, dict(a=1), batch=5).done==10

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
import time
from test_inference import *
torch.set_num_threads(1)
def slow(x):
    print('batch', flush=True)
    time.sleep(.05)
    return grey(x)
m = predict_slide(sys.argv[1], slow, 64, 0.5, 32, batch_size=16, out=sys.argv[2], min_tissue=0, **everywhere)
m.save(sys.argv[2]+'.npz')
"""

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_kill_9_and_resume(path, tmp_path):
    "Killed without warning, twice: the map is that of a prediction left in peace, and no batch is asked for again that was answered"
    def start(): return subprocess.Popen([sys.executable, '-c', SCRIPT, str(path), str(tmp_path/'notes'), os.path.dirname(__file__)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    straight = predict_slide(path, grey, 64, 0.5, 32, batch_size=16, min_tissue=0, **everywhere)
    asked = 0
    for n in (5,9):
        p = start()
        seen = 0
        while seen<n:
            line = p.stdout.readline()
            assert line, p.stderr.read()
            seen += line.startswith('batch')
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert p.returncode==-signal.SIGKILL and not (tmp_path/'notes'/'map.npz').exists()
        asked += n-1
    with (tmp_path/'notes'/'tiles.bin').open('ab') as f: f.write(b'torn')
    p = start()
    out,err = p.communicate()
    assert p.returncode==0, err
    m = SlideMap.load(tmp_path/'notes.npz')
    assert np.array_equal(m.prob, straight.prob) and sorted(o.name for o in (tmp_path/'notes').iterdir())==['job.json', 'map.npz']
    assert 'going on after' in out and out.count('batch\n')<=-(-26*20//16)-asked+1

# ---- nuclei, window by window

def dark(im):
    "A model that is local: connected pixels darker than a threshold"
    return label(im.mean(-1)<110, connectivity=1)

@pytest.fixture(scope='session')
def tissue(): return Phantom(300, 300, seed=3).read(20, 20, 431, 317, mpp=.5)

@settings(max_examples=12, deadline=None)
@given(core=st.integers(60, 500), x=st.integers(0, 60), y=st.integers(0, 60))
def test_windows_neither_lose_nor_double(tissue, core, x, y):
    "With a model that looks no farther than the halo, windows of any size at any offset give what the whole gives: pixels, numbers, table, polygons"
    image = np.ascontiguousarray(tissue.image[y:, x:])
    whole,parts = (segment_image(image, dark, .5, core=c, halo=60, progress=False) for c in (1000,core))
    assert whole.cut==parts.cut==0 and len(whole)==dark(image).max()>50
    assert np.array_equal(whole.instances, parts.instances)
    pd.testing.assert_frame_equal(whole.table, parts.table, atol=1e-6, check_exact=False)
    for a,b in zip(whole.polygons, parts.polygons): assert sorted(map(tuple, a.rings[0][:-1]))==sorted(map(tuple, b.rings[0][:-1]))
    assert np.array_equal(parts.instances>0, dark(image)>0)

def test_row_map_and_polygon_are_one(tissue):
    "The id of a row is the number in the map, and its polygon lies around it"
    res = segment_image(tissue.image, dark, .5, core=150, halo=60, corners=True, progress=False)
    areas = np.bincount(res.instances.ravel())[1:]
    assert res.table.id.tolist()==list(range(1, len(res)+1)) and np.allclose(res.table.area, areas) and np.allclose([p.area for p in res.polygons], areas)
    for i,p in zip(res.table.id, res.polygons):
        ys,xs = np.nonzero(res.instances==i)
        assert (p.rings[0].min(0)==(xs.min(),ys.min())).all() and (p.rings[0].max(0)==(xs.max()+1,ys.max()+1)).all()
    assert np.allclose(res.table.y_um, res.table.y*.5) and (res.table.y.diff().dropna()>=-1e-6).all()

def test_touching_nuclei_stay_apart():
    labels = np.zeros((40,60), np.int32)
    labels[5:30,10:30],labels[5:30,30:50] = 7,3
    res = segment_image(np.full((40,60,3), 200, np.uint8), lambda im: labels, corners=True, progress=False)
    assert len(res)==2 and [p.area for p in res.polygons]==[500,500] and res.mpp is None and 'area_um2' not in res.table

def test_a_wobbling_model_counts_once():
    "A model that sees a nucleus a pixel to the left or right, depending on the window: once in the table, no pixel twice"
    image = np.full((100,200,3), 220, np.uint8)
    image[40:60,90:110] = 60 # its centroid is on the seam of two cores
    for shift in (-3,-1,0,1,3):
        def predict(im, first=[]):
            first.append(0)
            return label(np.roll(im[...,0]<100, shift if len(first)%2 else -shift, 1))
        res = segment_image(image, predict, core=100, halo=60, progress=False)
        assert len(res)==1 and set(np.unique(res.instances))=={0,1}

def test_objects_larger_than_the_halo_are_told():
    image = np.full((60,300,3), 220, np.uint8)
    image[20:40,20:280] = 60
    res = segment_image(image, dark, core=100, halo=20, progress=False)
    assert res.cut and 'cut by a window' in repr(res) and (res.instances>0).sum()==20*260

def test_pieces_of_one_nucleus():
    "What a model leaves in pieces is one nucleus, its largest piece"
    labels = np.zeros((30,30), np.int32)
    labels[2:4,2:4],labels[10:20,10:20] = 5,5
    res = segment_image(np.full((30,30,3), 200, np.uint8), lambda im: labels, progress=False)
    assert len(res)==1 and res.table.area[0]==100

def test_slide_like_image(tissue, tmp_path):
    "A slide gives the nuclei of the same pixels as an image; places and sizes in level-0 px also where it is read at another scale"
    path = write_slide(tissue.image, tmp_path/'a.tiff', .5, quality=100, subsampling='4:4:4')
    with Slide(path) as s: image = s.read(0, 0, *s.dims)
    everywhere = np.ones((4,4), bool)
    a,b = segment_image(image, dark, .5, progress=False),segment_image(path, dark, .5, core=200, halo=60, mask=everywhere, progress=False)
    assert b.instances is None and b.mpp==.5
    pd.testing.assert_frame_equal(a.table, b.table, atol=1e-6, check_exact=False)
    c = segment_image(path, dark, core=500, halo=100, mask=everywhere, progress=False) # at 0.25 um/px
    assert abs(c.table.area.sum()/a.table.area.sum()-1)<.05 and abs(c.table.area_um2.sum()/c.table.area.sum()-.25)<1e-6
    big = c.table[c.table.area>60]
    dx,dy = (big[k].to_numpy()[:,None]-a.table[k].to_numpy() for k in 'xy')
    i = np.arange(len(big)),np.hypot(dx, dy).argmin(1)
    assert np.median(np.hypot(dx[i], dy[i]))<.3 and max(abs(np.median(dx[i])), abs(np.median(dy[i])))<.1 # in place, and not to one side

def test_only_tissue_is_looked_at(tmp_path):
    "Windows without tissue are not read, and a slide without tissue is an error"
    rng = np.random.default_rng(0)
    img = np.full((1200,1200,3), 245, np.uint8)
    img[100:500,100:500] = np.clip(rng.normal((190,110,170), 12, (400,400,3)), 0, 255)
    path,seen = write_slide(img, tmp_path/'a.tiff', .5),[]
    def predict(im, mpp):
        seen.append(mpp)
        return np.zeros(im.shape[:2], int)
    res = segment_image(path, predict, .5, core=300, progress=False)
    assert seen==[.5]*4 and len(res)==0
    assert list(res.table.columns)==list(segment_image(img[:9,:9], predict, .5, progress=False).table.columns)
    with pytest.raises(DataError, match='no tissue'): segment_image(write_slide(np.full((300,300,3), 245, np.uint8), tmp_path/'b.tiff', .5), predict, progress=False)

def test_the_model_is_told_the_resolution(tissue):
    told = []
    def predict(im, mpp=.25): return told.append(mpp) or np.zeros(im.shape[:2], int)
    for mpp in (None,.5): segment_image(tissue.image, predict, mpp, progress=False)
    assert told==[.25,.5]

def test_no_nuclei_and_tiny_images(tmp_path):
    for img in (np.full((50,40,3), 255, np.uint8), np.full((1,1,3), 120, np.uint8), np.full((1,900,3), (120,60,150), np.uint8)):
        res = segment_image(img, haematoxylin_model(img), .25, core=200, progress=False)
        assert len(res)==0 and res.instances.shape==img.shape[:2] and not res.instances.any()
        files = save_nuclei(res, img, tmp_path, 'x')
        assert len(files)==4 and read_json(files[2])['features']==[] and len(pd.read_csv(files[3]))==0 and 'area_um2' in pd.read_csv(files[3])

def test_bad_models_and_sources(tissue):
    for f in (lambda im: im, lambda im: np.zeros((3,3), int), lambda im: im[...,0]/255, lambda im: -np.ones(im.shape[:2], int)):
        with pytest.raises(DataError, match='no instance map'): segment_image(tissue.image, f, progress=False)
    for bad,said in ((dict(mpp=5.), 'cannot be outlined'), (dict(core=0), 'not possible'), (dict(mask=np.zeros((3,3), bool)), 'nowhere to look')):
        with pytest.raises(DataError, match=said): segment_image(tissue.image, dark, progress=False, **bad)

def test_many_instances_and_old_maps(tmp_path):
    "More than 65,535 nuclei go into a 32-bit TIFF, and the map of an earlier run does not stay beside it"
    many = np.arange(300*300, dtype=np.int32).reshape(300, 300)
    for ids,name in ((many,'x_instances.tif'), (many%9,'x_instances.png')):
        res = Nuclei(pd.DataFrame(dict(eccentricity=[], solidity=[], haematoxylin=[])), [], (300,300), .25, ids)
        path = save_nuclei(res, np.full((300,300,3), 200, np.uint8), tmp_path, 'x')[0]
        assert path.name==name and np.array_equal(tifffile.imread(path) if name.endswith('tif') else np.asarray(Image.open(path)), ids)
    assert [p.name for p in tmp_path.glob('*_instances*')]==['x_instances.png']

def test_transparent_is_glass(tissue, tmp_path):
    rgba = np.dstack([tissue.image, np.full(tissue.image.shape[:2], 255, np.uint8)])
    rgba[:,:100] = 0
    Image.fromarray(rgba).save(tmp_path/'a.png')
    img = read_picture(tmp_path/'a.png')
    assert (img[:,:100]==255).all() and np.array_equal(img[:,100:], tissue.image[:,100:])

def test_detections_for_qupath(tmp_path):
    d = read_json(write_geojson(tmp_path/'a.geojson', regions(np.array([[1,0,2]]), 10), kind='detection', measures=pd.DataFrame(dict(Solidity=[1.,float('nan')]))))
    assert [f['properties']['objectType'] for f in d['features']]==['detection']*2
    assert d['features'][0]['properties']['measurements']=={'Solidity':1.} and d['features'][1]['properties']['measurements']=={}
    with pytest.raises(DataError, match="no kind 'cell'"): write_geojson(tmp_path/'b.geojson', [], kind='cell')
    with pytest.raises(DataError, match='2 rows'): write_geojson(tmp_path/'b.geojson', [], measures=pd.DataFrame(dict(a=[1,2])))
    assert not (tmp_path/'b.geojson').exists()

# ---- nuclei that have classes

type_names = ('background','red','blue')

def dark_typed(im):
    "A model that is local: dark pixels, where redder than blue of class 1, else of class 2; few of their neighbours have a class, too"
    classes = np.where(im[...,0]>im[...,2], 1, 2)
    return dark(im),np.where((im.sum(-1)%7>0) & (im.mean(-1)<120), classes, 0)

@pytest.fixture(scope='session')
def coloured(tissue):
    "The tissue with nuclei of two colours, sharply divided: some nuclei are red and blue"
    image,xs = tissue.image.copy(),np.arange(tissue.image.shape[1])//31%2
    inside = dark(image)>0
    image[inside] = np.where(xs[None,:,None], [120,40,60], [60,40,120]).repeat(image.shape[0], 0)[inside] + (image[inside]>>4)
    return image

def slow_votes(labels, classes):
    "The class of every nucleus, pixel by pixel"
    res = []
    for i in range(1, labels.max(initial=0)+1):
        votes = {}
        for y,x in zip(*np.nonzero(labels==i)):
            if classes[y,x]: votes[int(classes[y,x])] = votes.get(int(classes[y,x]), 0)+1
        res.append(min((-n,k) for k,n in votes.items())[1] if votes else 0)
    return res

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_most_pixels_decide(data):
    shape = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    labels = np.unique(data.draw(arrays(np.int32, shape, elements=st.integers(0, 5))), return_inverse=True)[1].reshape(shape)
    classes = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0,1,2,3,255])))
    assert vote_classes(labels, classes).tolist()==slow_votes(labels, classes)
    assert vote_classes(labels.astype(np.int32)*0, classes).tolist()==[]

@settings(max_examples=12, deadline=None)
@given(core=st.integers(60, 500), halo=st.integers(60, 200), x=st.integers(0, 60), y=st.integers(0, 60))
def test_windows_keep_classes(coloured, core, halo, x, y):
    "With a local model, windows of any size give every nucleus the class that the whole gives it; in table, polygon and map the same"
    image = np.ascontiguousarray(coloured[y:, x:])
    whole,parts = (segment_image(image, dark_typed, .5, core=c, halo=halo, names=type_names, progress=False) for c in (1000,core))
    assert parts.cut==0 and min(list(parts.counts.values())[1:])>10 and parts.counts==whole.counts and sum(parts.counts.values())==len(parts)
    assert np.array_equal(whole.instances, parts.instances) and np.array_equal(whole.classes, parts.classes)
    pd.testing.assert_frame_equal(whole.table, parts.table, atol=1e-6, check_exact=False)
    assert parts.table['class'].tolist()==[o.label for o in parts.polygons]==slow_votes(parts.instances, dark_typed(image)[1])
    assert np.array_equal(parts.classes, np.append(0, parts.table['class'])[parts.instances]) and parts.classes.dtype==np.uint8

def test_a_nucleus_on_a_seam_has_one_class():
    "Windows that see a nucleus in different places and take it for another class: once in the table, in the class of the first"
    image = np.full((100,200,3), 220, np.uint8)
    image[40:60,90:110] = 60
    for shift in (-3,0,3):
        def predict(im, seen=[]):
            seen.append(0)
            labels = label(np.roll(im[...,0]<100, shift if len(seen)%2 else -shift, 1))
            return labels,np.full(labels.shape, len(seen))
        res = segment_image(image, predict, core=100, halo=60, progress=False)
        kept = int(res.table['class'][0])
        assert len(res)==1 and set(np.unique(res.classes))=={0,kept} and res.polygons[0].label==kept and res.names[kept]==f'class {kept}'

def test_only_owned_pixels_vote():
    "What an earlier window has taken has no voice in a later one, and neither have the smaller pieces of a nucleus"
    labels,classes = np.zeros((30,30), int),np.full((30,30), 2)
    labels[2:4,2:4],labels[10:14,10:14] = 5,5
    classes[2:4,2:4],classes[10:14,10:11] = 7,0
    res = segment_image(np.full((30,30,3), 200, np.uint8), lambda im: (labels,classes), progress=False)
    assert res.table['class'].tolist()==[2] and res.names==('background',*(f'class {i}' for i in (1,2))) and res.counts=={'background':0,'class 1':0,'class 2':1}
    assert repr(res)=='Nuclei(1 on 30 x 30 px: 1 class 2)' and (res.classes>0).sum()==16

def test_plain_maps_are_as_before(coloured, tmp_path):
    "A model without classes gives the same columns and the same files as ever; the same model with classes the same numbers beside them"
    plain,typed = (segment_image(coloured, f, .5, core=150, halo=60, progress=False) for f in (dark,dark_typed))
    assert plain.names is None and plain.classes is None and plain.counts=={} and {o.label for o in plain.polygons}=={1}
    assert list(plain.table)==['id','y','x','area','major','minor','eccentricity','solidity','haematoxylin','y_um','x_um','major_um','minor_um','area_um2']
    assert list(typed.table)==['id','class',*list(plain.table)[1:]] and typed.table['class'].dtype.kind=='i'
    pd.testing.assert_frame_equal(plain.table, typed.table.drop(columns='class'))
    assert repr(plain)==f'Nuclei({len(plain)} on 431 x 317 px)'
    files = save_nuclei(plain, coloured, tmp_path, 'p')
    assert [o.name for o in files]==['p_instances.png','p_overlay.jpg','p.geojson','p_nuclei.csv'] and len(list(tmp_path.iterdir()))==4
    assert list(pd.read_csv(files[3]))==list(plain.table)
    assert {o['properties']['classification']['name'] for o in read_json(files[2])['features']}=={'nucleus'}

def test_files_of_classes(coloured, tmp_path):
    Image.fromarray(coloured).save(tmp_path/'a.png')
    res,files,_ = segment_file(tmp_path/'a.png', tmp_path/'out', dark_typed, .5, names=list(type_names), progress=False)
    assert [o.name for o in files]==['a_instances.png','a_overlay.jpg','a.geojson','a_nuclei.csv','a_classes.png'] and len(list((tmp_path/'out').iterdir()))==5
    with Image.open(files[4]) as im: assert im.mode=='L' and np.array_equal(np.asarray(im), res.classes)
    df = pd.read_csv(files[3])
    assert list(df)[:3]==['id','class','class_name'] and df.class_name.tolist()==[type_names[i] for i in res.table['class']] and 'class_name' not in res.table
    assert df.class_name.value_counts().to_dict()=={k:n for k,n in res.counts.items() if n}
    objects = [o['properties'] for o in read_json(files[2])['features']]
    assert [o['classification']['name'] for o in objects]==df.class_name.tolist() and all(o['objectType']=='detection' for o in objects)
    for o,c in zip(objects, df['class']): assert o['classification']['color']==[round(255*v) for v in to_rgb(palette[(c-1)%len(palette)])] and 'Solidity' in o['measurements']
    drawn = overlay_nuclei(coloured, res)
    for c in (1,2): assert (drawn==[round(255*v) for v in to_rgb(class_colour(c))]).all(-1).any()
    for c in (3,4): assert not (drawn==[round(255*v) for v in to_rgb(class_colour(c))]).all(-1).any()

def test_slide_with_classes(coloured, tmp_path):
    "A slide gives the classes of the same pixels as an image, and no map of them"
    path = write_slide(coloured, tmp_path/'a.tiff', .5, quality=100, subsampling='4:4:4')
    with Slide(path) as s: image = s.read(0, 0, *s.dims)
    a,b = segment_image(image, dark_typed, .5, progress=False),segment_image(path, dark_typed, .5, core=200, halo=60, mask=np.ones((4,4), bool), progress=False)
    assert b.instances is None and b.classes is None and b.counts==a.counts and a.table['class'].tolist()==b.table['class'].tolist()
    with Slide(path) as s: files = save_nuclei(b, s, tmp_path, 'a')
    assert [o.name for o in files]==['a_overlay.jpg','a.geojson','a_nuclei.csv'] and pd.read_csv(files[2]).class_name.tolist()==[b.names[i] for i in b.table['class']]

def test_no_nuclei_but_classes(tmp_path):
    img = np.full((50,40,3), 255, np.uint8)
    for names in (None,type_names):
        res = segment_image(img, lambda im: (np.zeros(im.shape[:2], int),np.zeros(im.shape[:2], int)), .25, names=names, progress=False)
        files = save_nuclei(res, img, tmp_path, 'x')
        assert res.table['class'].dtype.kind=='i' and res.names==(names or ('background',)) and repr(res)=='Nuclei(0 on 40 x 50 px)'
        assert len(files)==5 and 'class_name' in pd.read_csv(files[3]) and not np.asarray(Image.open(files[4])).any()

def test_a_nucleus_without_class():
    "Background all over: class 0, in table, polygon, map and counts"
    labels = np.zeros((30,30), int)
    labels[5:9,5:9] = 1
    img = np.full((30,30,3), 200, np.uint8)
    res = segment_image(img, lambda im: (labels,labels*0), names=type_names, progress=False)
    assert res.table['class'].tolist()==[0]==[o.label for o in res.polygons] and res.counts['background']==1 and not res.classes.any()
    assert overlay_nuclei(img, res).shape==(60,60,3)

@settings(max_examples=15, deadline=None)
@given(mpp=st.floats(.1, 1), flat=st.booleans())
def test_pairs_at_any_resolution(coloured, mpp, flat):
    "Both maps of a pair come back in the size of the image, the class map by the nearest pixel: no class is made up, and it fits the instances"
    def predict(im):
        labels = dark(im)
        return labels,np.where(labels, 1 if flat else 1+labels%5*50, 0)
    labels,classes = at_mpp(predict, .25)(coloured, mpp=mpp)
    assert labels.shape==classes.shape==coloured.shape[:2]
    assert np.array_equal(classes, np.where(labels, 1 if flat else 1+labels%5*50, 0))
    assert np.array_equal(at_mpp(dark, .25)(coloured, mpp=mpp), labels)

def test_what_comes_back_is_checked_at_any_resolution(coloured):
    for f,said in ((lambda im: dark(im)/2, 'no instance map'), (lambda im: (dark(im),dark(im)/2), 'no class map'), (lambda im: (dark(im),dark(im)[1:]), 'no class map')):
        with pytest.raises(DataError, match=said): at_mpp(f, .25)(coloured, mpp=.5)
    whole = at_mpp(lambda im: im.mean(-1)<110, .25)(coloured, mpp=.5)
    assert whole.max()>50 # a mask is taken apart before it is resampled

def test_bad_classes(coloured):
    def pair(f): return lambda im: (dark(im),f(dark(im)))
    for f,said in ((lambda o: o[1:], 'no class map'), (lambda o: o/9., 'no class map'), (lambda o: o[None], 'no class map'), (lambda o: None, 'no class map'), (lambda o: -(o>0).astype(int), 'class -1, and classes go from 0 to 2'),
        (lambda o: 3*(o>0), 'class 3, and classes go from 0 to 2'), (lambda o: 300*(o>0), 'class 300')):
        with pytest.raises(DataError, match=said): segment_image(coloured, pair(f), names=type_names, progress=False)
    with pytest.raises(DataError, match='class 300, and classes go from 0 to 255'): segment_image(coloured, pair(lambda o: 300*(o>0)), progress=False)
    with pytest.raises(DataError, match='tuple of 3'): segment_image(coloured, lambda im: (dark(im),)*3, progress=False)
    with pytest.raises(DataError, match='no instance map'): segment_image(coloured, lambda im: (dark(im)/1,dark(im)), progress=False)
    for names in ('tumour', ('background',), ('a','b','a'), ('a',1), tuple(map(str, range(257)))):
        with pytest.raises(DataError, match='no names of classes'): segment_image(coloured, dark_typed, names=names, progress=False)
    with pytest.raises(DataError, match='no classes for the names'): segment_image(coloured, dark, names=type_names, progress=False)
    for first in (0,1):
        def sometimes(im, n=[first]):
            n[0] += 1
            return dark_typed(im) if n[0]%2 else dark(im)
        with pytest.raises(DataError, match='some windows and none for others'): segment_image(coloured, sometimes, core=200, progress=False)

# One image in overlapping windows

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300), size=st.integers(1, 300), overlap=st.floats(0, .99))
def test_windows_cover_and_end_at_the_border(n, size, overlap):
    size = min(n, size)
    at = window_starts(n, size, overlap)
    assert at[0]==0 and at[-1]==n-size and at==sorted(set(at))
    assert all(b-a<=max(1, np.ceil(size*(1-overlap))) for a,b in zip(at, at[1:]))

@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 70), w=st.integers(1, 70), size=st.integers(1, 40), overlap=st.sampled_from([0, .1, .5, .8]), batch=st.integers(1, 5))
def test_image_comes_back_from_windows(h, w, size, overlap, batch):
    img = np.random.default_rng(h*71+w).integers(0, 256, (h,w,3), dtype=np.uint8)
    back = sliding_map(lambda x: x, img, size, overlap, batch, 'cpu')
    assert back.dtype==np.float32 and back.shape==(3,h,w) and np.abs(back-img.transpose(2,0,1)/255).max()<1e-5

def test_network_keeps_its_mode_when_it_fails():
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Hardtanh(2, 3)).train()
    with pytest.raises(DataError, match='Apply a softmax'): sliding_map(net, np.zeros((9,9,3), np.uint8), 16, device='cpu')
    assert net.training

def test_classes_that_change_between_batches():
    with pytest.raises(DataError, match='same classes'): sliding_map(lambda x: x[:,:len(x)], np.zeros((16,40,3), np.uint8), 16, batch_size=3, device='cpu')
