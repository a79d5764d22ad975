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
