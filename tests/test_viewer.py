"The viewer without a browser: what is painted where, what bad input says, what the browser may ask"
import io, json
import ipywidgets as W, numpy as np, pytest
from dataclasses import replace
from PIL import Image
from helpers import noise
from histolab_nb.core import DataError
from histolab_nb.inference import Nuclei, Region, SlideMap
from histolab_nb.plots import bar_length
from histolab_nb.slides import Slide, write_slide
from histolab_nb.viewer import *

@pytest.fixture(scope='module')
def slide(tmp_path_factory): return Slide(write_slide(noise(600, 900), tmp_path_factory.mktemp('slide')/'noise.tif', .5))

@pytest.fixture
def heard(slide):
    "A viewer, and what it sends"
    v,sent = SlideViewer(slide, width=300, height=200),[]
    v.screen.send = lambda said, files=None: sent.append((said, files))
    return v,sent

def decoded(b): return np.asarray(Image.open(io.BytesIO(b)))

@pytest.mark.parametrize('seed', range(5))
def test_cut_out_is_where_the_array_is(seed):
    "Every pixel of the screen shows the value that lies under its middle, and 0 outside"
    rng = np.random.default_rng(seed)
    values,box = rng.integers(1, 200, (7,11), dtype=np.uint8),(10.,20.,340.,230.)
    view = View(*rng.uniform(-50, 150, 2), rng.uniform(.5, 9), 40, 30, rng.uniform(.8, 1.3))
    x,y = view.x+(np.arange(40)+.5)*view.s,view.y+(np.arange(30)+.5)*view.s*view.ratio
    i,j = np.floor((y-20)/30).astype(int),np.floor((x-10)/30).astype(int)
    inside = ((i>=0) & (i<7))[:,None] & ((j>=0) & (j<11))[None]
    want = np.where(inside, values[i.clip(0, 6)][:,j.clip(0, 10)], 0)
    assert (cut_out(values, box, view)!=want).mean()<.01

@pytest.mark.parametrize('s', [.3, 1., 2.5])
def test_pyramid_reads_like_a_slide(slide, s):
    "An image in memory and the same image as a slide look alike"
    image = np.asarray(Image.fromarray(noise(60, 90)).resize((900,600), Image.Resampling.BICUBIC))
    a,part = ImagePyramid(image, .5).read_scaled(100, 50, 80, 60, s, s),Image.fromarray(image).crop((100, 50, 100+round(80*s), 50+round(60*s)))
    assert np.abs(a.astype(float)-np.asarray(part.resize((80,60), Image.Resampling.BOX))).mean()<8

def test_outside_is_white(slide):
    for o in (slide, ImagePyramid(noise(60, 90))): assert (as_viewable(o).read_scaled(-50, -50, 20, 20, 1, 1)>250).all()

def test_pixels_that_are_not_square():
    "A slide with px twice as high as wide: the view is as wide as it is high in micrometres"
    class Odd:
        dims,mpp_xy,path = (1000,500),(.5,1.),None
    v = whole_view(Odd(), 200, 200)
    assert v.ratio==.5 and v.box[2]-v.box[0]==pytest.approx(2*(v.box[3]-v.box[1]))

def test_screen_is_told_frames_and_errors(heard, monkeypatch):
    v,sent = heard
    v._heard(v.screen, dict(kind='ready'), [])
    said,files = sent[-1]
    assert said['force'] and not said['answer'] and decoded(files[0]).shape==(200,300,3) and decoded(files[1]).shape==(200,300,4)
    json.dumps(said)
    v._heard(v.screen, dict(kind='view', x=0, y=0, s=2), [])
    assert sent[-1][0]['view']==dict(x=0, y=0, s=2) and sent[-1][0]['answer']
    for bad in (dict(kind='view'), dict(kind='view', x='a', y=0, s=1)):
        v._heard(v.screen, bad, [])
        assert sent[-1][0]['kind']=='error'
    assert v.view.s==2

@pytest.mark.parametrize('s', [0, -3, 1e-9, 1e9, float('inf')])
def test_no_view_is_lost(heard, s):
    "However far the browser goes, something of the slide is seen"
    v,_ = heard
    v._heard(v.screen, dict(kind='view', x=-1e6, y=1e6, s=s), [])
    x0,y0,x1,y1 = v.view.box
    assert x0<900 and y0<600 and x1>0 and y1>0 and v.limits()[0]<=v.view.s<=v.limits()[1]

def test_one_frame_a_layer_change(heard):
    "A switch sends a new frame without reading the slide again"
    v,sent = heard
    v.add('a', np.ones((6,9), bool))
    reads = []
    v.slide = type('Spy', (), dict(dims=v.slide.dims, mpp_xy=(.5,.5), path=None, read_scaled=lambda self, *a: reads.append(a)))()
    before = sent[-1][1][0]
    v.switches.children[0].children[1].value = .9
    assert not reads and sent[-1][1][0]!=before and not sent[-1][0]['force']
    v.switches.children[0].children[0].value = False
    assert not v.layers[0].on

def test_a_layer_can_be_laid_again(heard):
    v,_ = heard
    v.add('a', np.ones((6,9), bool)).add('b', np.zeros((6,9), bool)).add('a', np.zeros((6,9), bool))
    assert [l.name for l in v.layers]==['b','a'] and [o.children[0].description for o in v.switches.children]==['b','a']

def test_layers_of_every_kind(slide):
    box = Region(2, [np.array([[10,10],[200,10],[200,200],[10,200],[10,10]])])
    own,map = Layer('x', lambda v: np.full((v.h,v.w,4), 99, np.uint8)),SlideMap(np.full((2,6,9), .5), (100,100), (900,600), .5)
    for o in (np.ones((6,9), bool), np.full((6,9), .5), np.eye(6, 9, dtype=int), map, [box], Nuclei(None, [box], (900,600)), own):
        l = as_layer('a', o, slide.dims)
        assert l.name=='a' and l.paint(whole_view(slide, 90, 60)).shape==(60,90,4) and l.paint(whole_view(slide, 90, 60))[...,3].any()
    assert as_layer('a', [], slide.dims).paint(whole_view(slide, 90, 60)).max()==0

@pytest.mark.parametrize('thing,says', [(np.zeros((2,3,4)), 'array (H,W)'), (np.full((2,3), 7.), 'lie in [0,1]'), (np.zeros((0,3), bool), 'array (H,W)'),
    ('nothing.geojson', 'no such file'), (np.array([['a']]), 'array (H,W)'), (SlideMap(np.zeros((2,3,4)), (8,8), (32,24), .5), 'the map is of a slide')])
def test_bad_layers_say_why(slide, thing, says):
    with pytest.raises(DataError) as e: as_layer('mine', thing, slide.dims)
    assert says in str(e.value)

def test_many_regions_are_dots(slide):
    "A thousand nuclei of 3 px on the screen become a dot each"
    at = np.stack(np.meshgrid(np.arange(40)*20, np.arange(25)*20), -1).reshape(-1, 2)
    l = region_layer('n', [Region(1, [np.array([[0,0],[6,0],[6,6],[0,6],[0,0]])+p]) for p in at])
    assert (l.paint(View(-2, -2, 4, 250, 160))[...,3]>0).sum()==1000

def test_geojson_of_qupath(tmp_path):
    "Multipolygons, holes, names, colours; points are left out; what is broken is told"
    ring = [[0,0],[9,0],[9,9],[0,9],[0,0]]
    def feature(kind, coords, **props): return dict(type='Feature', geometry=dict(type=kind, coordinates=coords), properties=props)
    features = [feature('Polygon', [ring, [[2,2],[4,2],[4,4],[2,2]]], classification=dict(name='Tumor', color=[200,0,0])), feature('MultiPolygon', [[ring],[ring]]), feature('Point', [1,2])]
    (tmp_path/'q.geojson').write_text(json.dumps(dict(type='FeatureCollection', features=features)))
    found,names,hues = read_geojson(tmp_path/'q.geojson')
    assert [len(r.rings) for r in found]==[2,1,1] and names=={1:'Tumor', 2:'region'} and hues=={1:(200/255,0,0)}
    (tmp_path/'list.geojson').write_text(json.dumps(features[:1]))
    assert len(read_geojson(tmp_path/'list.geojson')[0])==1
    for text,says in (('{"a": 1}', 'no GeoJSON'), ('[1]', 'feature 0'), ('[{"geometry": {"type": "Polygon", "coordinates": [[1]]}}]', 'feature 0'), ('{', 'not JSON')):
        (tmp_path/'bad.geojson').write_text(text)
        with pytest.raises(DataError, match=says): read_geojson(tmp_path/'bad.geojson')

@pytest.mark.parametrize('um', [3.7, 50, 51, 1234])
def test_scale_bar_is_as_long_as_it_says(um):
    "The bar on the glass is `bar_length` micrometres long to the pixel"
    image = ImagePyramid(noise(40, 40), mpp=um*4/300)
    g = glass(image, View(0, 0, 1, 300, 200))
    row = g[200-13,150:]
    n = ((row[:,3]==255) & (row[:,:3].max(1)<30)).sum()
    assert abs(n-1-bar_length(um)/(um*4/300))<=1

def test_static_picture_without_a_kernel(heard):
    "What a page without Python gets: a picture, and no widget that nobody could answer"
    v,_ = heard
    kinds = v._repr_mimebundle_()
    assert set(kinds)=={'text/plain','image/jpeg'} and decoded(kinds['image/jpeg']).shape[:2]==(200,300)
    v.add('mine', np.ones((6,9), bool))
    assert decoded(v._repr_mimebundle_()['image/jpeg']).shape[:2]==(222,300)

def test_captions_wrap():
    names = [(f'a class with a long name {i}', '#ff0000') for i in range(6)]
    assert captioned(np.zeros((10,300,3), np.uint8), names).shape==(10+6*22,300,3)

def test_panel_survives_its_function():
    def draw(a): return shown(np.zeros((9,9,3), np.uint8), np.full((9,9), 6//a>2), 'mask')
    p = Panel(draw, dict(a=knob('a', (0,9), 1)))
    picture = p.screen.value
    p.knobs['a'].value = 0
    assert 'zero' in p.says.value and p.screen.value==picture
    p.knobs['a'].value = 2
    assert 'share' in p.says.value

def test_a_name_cannot_write_html():
    p = Panel(lambda a: shown(np.zeros((9,9,3), np.uint8), np.full((9,9), 1), 'classes', names=['b','<script>x</script>']), dict(a=knob('a', (0,9))))
    assert '<script>' not in p.says.value

kinds = [((0,9), None, W.IntSlider), ((0,9), 2.5, W.FloatSlider), ((0.,1.), .2, W.FloatSlider), (['a','b'], 'b', W.Dropdown), (False, None, W.Checkbox)]

@pytest.mark.parametrize('spec,value,kind', kinds)
def test_knobs(spec, value, kind):
    k = knob('k', spec, value)
    assert isinstance(k, kind) and (value is None or k.value==value)

@pytest.mark.parametrize('spec', [(1,), (1,1), (2,1), ('a','b'), 7, None])
def test_bad_knobs(spec):
    with pytest.raises(DataError, match='no range'): knob('k', spec)

def test_compare_takes_what_networks_return():
    import torch
    image,truth = noise(20, 30),np.zeros((20,30), int)
    truth[5:10,5:10] = 1
    c = compare(torch.from_numpy(image).movedim(2, 0)/255, truth, torch.from_numpy(truth).float()*.8)
    assert c.drawn.numbers['dice']==1 and c.set(threshold=.9).drawn.numbers['dice']==0
    for bad in (truth[:5], truth[None]):
        with pytest.raises(DataError): compare(image, truth, bad)

def test_objects_and_pixels_differ():
    "One nucleus found as two: all pixels hit, no object"
    truth,found = np.zeros((10,20), int),np.zeros((10,20), int)
    truth[2:8,2:18] = 1
    truth[0,0] = 2
    found[2:8,2:10],found[2:8,10:18] = 1,2
    found[0,0] = 3
    marks = object_marks(truth, found)
    assert marks[4,5]==3 and marks[0,0]==1 and 2 in marks
    assert compare(noise(10, 20), truth, found).drawn.numbers|dict(hits=1, misses=1)==compare(noise(10, 20), truth, found).drawn.numbers

def test_no_object_at_all():
    empty = np.zeros((9,9), int)
    assert object_marks(empty, empty).max()==0
    assert shown(noise(9, 9), empty, 'instances', empty).numbers['hits']==0
    assert class_numbers(empty, empty)['dice']==1

def test_playground_of_a_function():
    def post(prob, limit=.4, grow=False): return prob>limit-.2*grow
    prob = np.linspace(0, 1, 81).reshape(9, 9)
    p = playground(post, prob, noise(9, 9), prob>.6, limit=(0.,1.), grow=False)
    assert p.drawn.numbers['recall']==1 and p.drawn.numbers['precision']<1
    assert p.set(limit=.6).drawn.numbers['dice']==1 and p.recipe() is None
    with pytest.raises(DataError, match='no parameter'): playground(post, prob, noise(9, 9), size=(0,9))
    with pytest.raises(DataError, match='nothing to turn'): playground(post, prob, noise(9, 9))
    with pytest.raises(DataError, match='has shape'): playground(post, prob, noise(9, 9), prob[:4]>.6, limit=(0.,1.))

@pytest.mark.parametrize('paper', paper_knobs)
def test_knobs_of_papers_are_fields_of_their_recipes(paper):
    "Each knob can take both ends of its range in the recipe"
    post = paper_post(paper)
    for k,(spec,value,meaning) in post.knobs.items():
        assert value==getattr(post.recipe, k) and meaning
        for end in spec if isinstance(spec, list) else spec[:2]: replace(post.recipe, **{k:end})

def test_words_of_a_view(slide):
    assert said_of(slide, view_at(slide, 0, 0, mpp=2.))=='5x   2 µm/px'
    with pytest.raises(DataError, match='both'): view_at(slide, 0, 0, mpp=1, magnification=2)
    with pytest.raises(DataError, match='above 0'): view_at(slide, 0, 0, mpp=-1)
    assert blend(np.full((2,2,3), 9, np.uint8), [raster_layer('m', np.ones((2,2), bool), (0,0,2,2), opacity=0)], View(0, 0, 1, 2, 2)).max()==9
    assert instance_layer('i', np.ones((4,4), bool), (0,0,4,4)).paint(View(0, 0, 1, 8, 8))[...,3].any()

# ---- what users hand over

image,ids = noise(60, 80),np.zeros((60,80), int)
ids[5:15,5:15],ids[30:40,40:55] = 1,2

@pytest.mark.parametrize('truth,found,says', [(None, ids, 'the truth has shape'), (ids, None, 'the prediction has shape'), (ids-1, ids, 'the id -1'), (ids>0, -ids, 'the id -2'),
    (ids>0, (ids>0)*5.-2, 'Apply sigmoid'), (ids, np.full((60,80), 'a'), 'hold numbers')])
def test_compare_says_what_is_wrong(truth, found, says):
    with pytest.raises(DataError) as e: compare(image, truth, found)
    assert says in str(e.value)

def test_a_mask_of_255_is_no_instance():
    "A mask that was read from a PNG file is compared by pixels, also with instances"
    mask = np.uint8(255*(ids>0))
    for a,b in ((mask,mask), (mask,ids), (ids,mask)): assert list(compare(image, a, b).knobs)==['opacity']

def test_tensors_of_every_kind_are_layers():
    import torch
    v = SlideViewer(image)
    for t in (torch.tensor(ids>0), torch.tensor(ids), torch.rand(60, 80).bfloat16(), torch.rand(60, 80).half(), torch.rand(60, 80, requires_grad=True)):
        assert v.add('t', t).layers[0].paint(v.view)[...,3].any()
    assert compare(image, torch.tensor(ids>0), torch.tensor((ids>0)*.7).bfloat16().requires_grad_()).drawn.numbers['dice']==1

@pytest.mark.parametrize('top', [1, 2**31, 2**40, 2**61])
def test_ids_of_any_size_have_an_outline(top):
    v = View(0, 0, .25, 320, 240)
    assert (instance_layer('i', ids*top, (0,0,80,60)).paint(v)[...,3]==instance_layer('i', ids, (0,0,80,60)).paint(v)[...,3]).all()

@pytest.mark.parametrize('kw,says', [(dict(colour='nope'), 'is no colour'), (dict(colour=(255,0,0)), 'is no colour'), (dict(opacity=2), 'between 0 and 1'), (dict(opacity=float('nan')), 'between 0 and 1'),
    (dict(box=(10,10,0,0)), 'a box is'), (dict(box=(1,2,3)), 'a box is'), (dict(box='all'), 'a box is')])
def test_bad_words_on_a_layer(kw, says):
    with pytest.raises(DataError, match=says): as_layer('mine', ids>0, (80,60), **kw)
    assert as_layer('mine', ids>0, (80,60), box=np.array([0,0,40,30])).paint(View(0, 0, 1, 80, 60))[...,3].any()

@pytest.mark.parametrize('kw,says', [(dict(mpp=-1), 'above 0'), (dict(mpp='0.5'), 'above 0'), (dict(mpp=0), 'above 0'), (dict(mpp=float('nan')), 'above 0'), (dict(width='100%'), 'of no use'), (dict(layers=[ids]), 'a dict of names')])
def test_bad_words_on_a_viewer(kw, says):
    with pytest.raises(DataError, match=says): SlideViewer(image, **kw)
    for place in ((float('nan'),1), ('a',1), (None,1)):
        with pytest.raises(DataError, match='a place is two numbers'): SlideViewer(image).go(*place)

paints = [lambda v: 1/0, lambda v: None, lambda v: np.zeros((v.h,v.w,3), np.uint8), lambda v: np.zeros((3,3,4), np.uint8), lambda v: np.zeros((v.h,v.w,4))]

@pytest.mark.parametrize('paint', paints)
def test_a_layer_that_fails_is_not_kept(paint):
    v = SlideViewer(image).add('a', ids>0)
    with pytest.raises((DataError,ZeroDivisionError)): v.add('b', Layer('b', paint, opacity=0, on=False))
    assert [l.name for l in v.layers]==['a'] and len(v.switches.children)==1 and v.picture().any()

def test_names_of_any_kind():
    v = SlideViewer(image)
    for name in (3, None, '', '<b>"x"</b>\n\r', '🧬', 3): v.add(name, ids>0)
    assert v.picture().any() and [l.name for l in v.layers]==['None','','<b>"x"</b>\n\r','🧬','3'] and len(v.switches.children)==5

def test_a_layer_laid_again_and_again_leaves_nothing_behind():
    from ipywidgets.widgets.widget import _instances
    v = SlideViewer(image).add('a', ids>0)
    n = len(_instances)
    for _ in range(3): v.add('a', ids>0)
    assert len(_instances)==n

def test_geojson_as_it_comes(tmp_path):
    "Objects without a place, empty rings, height, class and colour in every way that QuPath has written them"
    ring = [[0,0],[9,0],[9,9],[0,9],[0,0]]
    square = dict(type='Polygon', coordinates=[[[*p,7] for p in ring],[]])
    geometries = [None, square, dict(type='Polygon', coordinates=[]), dict(type='Polygon', coordinates=[[]]), dict(type='GeometryCollection', geometries=[None, square])]
    red = [dict(name='a', colorRGB=-3670016), dict(name='b', color=-3670016), dict(names=['c','d'], color=[200,0,0])]
    kinds = [*red, 'e', dict(name='f', color=None), dict(name='g', color=[300,0,0]), None]
    features = [dict(type='Feature', geometry=g) for g in geometries] + [dict(type='Feature', geometry=square, properties=dict(classification=k)) for k in kinds]
    (tmp_path/'q.geojson').write_text(json.dumps(features), encoding='utf-8-sig')
    found,names,hues = read_geojson(tmp_path/'q.geojson')
    assert [[o.shape for o in r.rings] for r in found]==[[(5,2)]]*9 and list(names.values())==['region','a','b','c: d','e','f','g']
    assert hues=={k:(200/255,0,0) for k in (2,3,4)}
    for name,text,says in (('a.geojson.gz', '', 'Unpack it first'), ('b.geojson', '['*100_000, 'not JSON'), ('c.geojson', json.dumps([dict(geometry=dict(type='Polygon', coordinates=[[[float('nan'),0],[1,1],[2,2]]]))]), 'feature 0')):
        (tmp_path/name).write_text(text)
        with pytest.raises(DataError, match=says): read_geojson(tmp_path/name)
    assert region_layer('r', [Region(1, []), Region(1, [np.zeros((0,2))])]).paint(View(0, 0, 1, 9, 9)).max()==0

def test_images_of_whole_numbers_keep_their_brightness():
    dark = np.full((4,4,3), 100)
    assert to_rgb8(dark).max()==100 and to_rgb8(dark.astype(np.uint16)*300).max()==255 and to_rgb8(-dark).max()==0

@pytest.mark.parametrize('bad', [None, np.zeros((4,4,3), np.uint8), (np.zeros((4,4,3), np.uint8),{}), Drawn(np.zeros((4,4,3), np.uint8), None)])
def test_a_panel_survives_what_its_function_returns(bad):
    p = Panel(lambda a: bad if a==2 else Drawn(np.full((4,4,3), a/9), dict(a=a)), dict(a=knob('a', (0,9), 1)))
    p.knobs['a'].value = 2
    assert 'returns Drawn' in p.says.value and p.drawn.numbers==dict(a=1) and p.picture().any()
    with pytest.raises(DataError, match='a cannot be'): p.set(a='x')
    p.knobs['a'].value = 3
    assert p.drawn.numbers==dict(a=3)

def test_bad_words_on_a_playground():
    prob = np.linspace(0, 1, 64).reshape(8, 8)
    for f,kw,says in ((3, dict(a=(0,1)), 'nor a function'), (lambda m, a, b: m>a, dict(a=(0.,1.)), 'needs b, too'), (lambda m, a=1: m>a, dict(a=[]), 'among the choices'), (lambda m, a=1: m>a, dict(a=[2,3]), 'among the choices'),
        (lambda m, a=1: m>a, dict(a=(0,9,-1)), 'is no range'), (lambda m, a=1: -(m>.5).astype(int), dict(a=(0,1)), 'the id -1')):
        with pytest.raises(DataError, match=says): playground(f, prob, noise(8, 8), **kw)
    for paper in ('dclr','instance_ssl','glands','unet_sharp'):
        with pytest.raises(DataError, match='should be'): playground(paper, prob, noise(8, 8))
    assert playground(lambda m, a=1: m>a, prob, noise(8, 8), a=(np.int64(0),np.int64(5))).values==dict(a=1)

def test_an_answer_bears_the_mark_of_its_question(heard):
    "Two displays of a viewer are sent the same frames, and each has to know its own"
    v,sent = heard
    v._heard(v.screen, dict(kind='view', mark='mine/3', x=0, y=0, s=2), [])
    assert sent[-1][0]['answer']=='mine/3'
