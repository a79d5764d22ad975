"Data sets: official layouts in small, input that is wrong or damaged, splits, downloads over a bad line, archives that attack"
import concurrent.futures, hashlib, http.server, io, os, pickle, re, tarfile, threading, tracemalloc, warnings, zipfile
import numpy as np, pytest, scipy.io, tifffile
from pathlib import Path
from hypothesis import given, settings, strategies as st
from PIL import Image
from histolab_nb import datasets as ds
from histolab_nb.core import DataError, read_json
from histolab_nb.datasets import *

real = pytest.mark.skipif(not os.environ.get('HISTOLAB_DATA'), reason='no data folder is known: set HISTOLAB_DATA')
H,W = 40,60
rgb = np.random.default_rng(0).integers(0, 255, (H,W,3), dtype=np.uint8)
lab = np.zeros((H,W), np.int32)
lab[5:15,5:15],lab[5:15,15:25],lab[25:35,40:50] = 1,2,700

def put(path, a):
    "Write `a` in the format that the ending of `path` asks for"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix=='.npy': np.save(path, a)
    elif path.suffix in ('.tif', '.tiff'): tifffile.imwrite(path, a)
    elif path.suffix=='.mat': scipy.io.savemat(path, a)
    elif path.suffix=='.txt': path.write_text('\n'.join(map(str, [a.shape[1], a.shape[0], *a.ravel()])))
    else: Image.fromarray(a.astype(np.uint16) if a.dtype==np.int32 else a).save(path)
    return path

def region(points): return '<Region NegativeROA="0"><Vertices>' + ''.join(f'<Vertex X="{x}" Y="{y}"/>' for x,y in points) + '</Vertices></Region>'
def box(x, y, s): return [(x,y), (x+s,y), (x+s,y+s), (x,y+s)]

def write_xml(path, *regions):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1"><Regions>{"".join(regions)}</Regions></Annotation><Annotation Id="2"/></Annotations>')
    return path

def fails(says, f, *args, **kw):
    "`f` answers with one `DataError` that says `says`"
    with pytest.raises(DataError) as e: f(*args, **kw)
    assert says in str(e.value) and '\n' not in str(e.value), str(e.value)

# Official layouts

def monuseg_official(root):
    train,test = root/'MoNuSeg 2018 Training Data'/'MoNuSeg 2018 Training Data',root/'MoNuSegTestData'
    for s in ('TCGA-18-5592-01Z-00-DX1', 'TCGA-KB-A93J-01A-01-TS1', 'TCGA-UZ-A9PJ-01Z-00-DX1', 'TCGA-HE-7128-01Z-00-DX1'):
        put(train/'Tissue Images'/f'{s}.tif', rgb)
        write_xml(train/'Annotations'/f'{s}.xml', region(box(5,5,10)), region(box(30,20,8)))
    put(test/'TCGA-2Z-A9J9-01A-01-TS1.tif', rgb)
    write_xml(test/'TCGA-2Z-A9J9-01A-01-TS1.xml', region(box(5,5,10)))
    return root

def test_monuseg_official(tmp_path):
    ss = monuseg(monuseg_official(tmp_path))
    assert sorted((s.patient, s.organ, s.split, s.mpp) for s in ss)==[('TCGA-18-5592', 'liver', 'train', .25), ('TCGA-2Z-A9J9', 'kidney', 'test', .25),
        ('TCGA-HE-7128', 'kidney', 'train', .5), ('TCGA-KB-A93J', 'stomach', 'train', .25)]
    assert (ss[0].image==rgb).all() and ss[0].instances.dtype==np.int32 and len(np.unique(ss[0].instances))==3
    assert {s.patient:s.split for s in monuseg(tmp_path, 'attention', extra=True)}=={'TCGA-18-5592':'val', 'TCGA-KB-A93J':'train', 'TCGA-HE-7128':'train', 'TCGA-UZ-A9PJ':'extra', 'TCGA-2Z-A9J9':'test'}
    assert set(monuseg(tmp_path, mpp=.3).attrgot('mpp'))=={.3}
    for p in (tmp_path/'MoNuSeg 2018 Training Data'/'MoNuSeg 2018 Training Data', tmp_path/'MoNuSegTestData'): assert len(monuseg(p))

def test_monuseg_labels_in_any_format(tmp_path):
    for end,a in (('png', lab), ('npy', lab), ('tif', lab.astype(np.uint16)), ('mat', dict(inst_map=lab.astype(float)))):
        put(tmp_path/end/'images'/'x.png', rgb)
        put(tmp_path/end/'labels'/f'x.{end}', a)
        s, = monuseg(tmp_path/end)
        assert (s.instances==lab).all() and s.patient is None and s.split=='train'

def test_splits_of_the_papers():
    t = ds.monuseg_table()
    count = lambda col, v: sum(r[col]==v for r in t.values())
    assert (count('set', 'train'), count('set', 'extra'), count('set', 'test'))==(30, 7, 14)
    assert (count('attention', 'train'), count('attention', 'val'))==(19, 11) and (count('issl', 'train'), count('issl', 'val'))==(24, 6)
    assert (count('kumar', 'train'), count('kumar', 'test same'), count('kumar', 'test different'))==(16, 8, 6)
    assert all(bool(r[k])==(r['set']=='train') for r in t.values() for k in ds.monuseg_splits)
    assert all(bool(r['organ'])==(r['set']!='extra') for r in t.values())

def test_consep_official(tmp_path):
    for part in ('Train', 'Test'):
        put(tmp_path/'CoNSeP'/part/'Images'/f'{part.lower()}_1.png', np.dstack([rgb, np.full((H,W), 255, np.uint8)]))
        put(tmp_path/'CoNSeP'/part/'Labels'/f'{part.lower()}_1.mat', dict(inst_map=lab.astype(float), type_map=np.select([lab==1, lab==2, lab==700], [2., 4., 7.]),
            inst_type=np.array([[2.], [4.], [7.]]), inst_centroid=np.zeros((3,2))))
    ss = by_split(consep(tmp_path))
    assert set(ss)=={'train', 'test'}
    s = ss['train'][0]
    assert (s.image==rgb).all() and (s.instances==lab).all() and list(np.unique(s.classes))==[0, 2, 3, 4] and s.classes.dtype==np.uint8
    assert list(np.unique(consep(tmp_path, merge=False)[0].classes))==[0, 2, 4, 7] and len(s.class_names)==4
    put(tmp_path/'CoNSeP'/'Train'/'Labels'/'train_1.mat', dict(inst_map=lab, type_map=lab))
    fails('train_1.mat: there is a class 700', lambda: by_split(consep(tmp_path))['train'][0].classes)

def test_merged_consep_cannot_be_unmerged(tmp_path):
    for d,a in (('images', rgb), ('labels', lab), ('types', (lab>0).astype(np.uint8))): put(tmp_path/d/'train_1.png', a)
    assert consep(tmp_path)[0].classes.max()==1
    fails('merged already', consep, tmp_path, merge=False)
    put(tmp_path/'types'/'train_1.png', (lab>0).astype(np.uint8)*5)
    fails('there is a class 5, and the classes are 1 to 4', lambda: consep(tmp_path)[0].classes)
    (tmp_path/'types'/'train_1.png').unlink()
    fails('there is no class map', consep, tmp_path)

def test_tnbc_official(tmp_path):
    root = tmp_path/'TNBC_NucleiSegmentation'
    for p,n in (('01', 2), ('11', 1)):
        for i in range(n):
            put(root/f'Slide_{p}'/f'{p}_{i+1}.png', rgb)
            put(root/f'GT_{p}'/f'{p}_{i+1}.png', (lab>0).astype(np.uint8)*255)
    put(tmp_path/'__MACOSX'/'Slide_01'/'01_1.png', rgb)
    ss = tnbc(tmp_path)
    assert ss.attrgot('patient')==['01', '01', '11'] and len(np.unique(ss[0].instances))==3
    put(root/'GT_11'/'11_1.png', lab)
    assert (tnbc(tmp_path)[2].instances==lab).all()

def glas_official(root, grade=True):
    d = root/'Warwick QU Dataset (Released 2016_07_08)'
    for s in ('train_1', 'train_2', 'train_10', 'testA_1', 'testB_1'):
        put(d/f'{s}.bmp', rgb)
        put(d/f'{s}_anno.bmp', np.minimum(lab, 3).astype(np.uint8))
    rows = ['name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)', 'train_1,1, benign, adenomatous', 'train_2,1, benign, healthy', 'train_10,3, malignant, poorly differentiated',
        'testA_1,3, malignant, poorly differentiated', 'testB_1,4, benign, healthy']
    if grade: (d/'Grade.csv').write_text('\r\n'.join(rows)+'\r\n')
    return root

def test_glas_official(tmp_path):
    ss = by_split(glas(glas_official(tmp_path)))
    assert {k:len(v) for k,v in ss.items()}==dict(train=3, testA=1, testB=1) and ss['train'].attrgot('name')==['train_1', 'train_2', 'train_10']
    assert ss['train'][2].info['grade (GlaS)']=='malignant' and shared_patients(glas(tmp_path))=={'3':['testA', 'train']}
    found = check_dataset('glas', tmp_path)
    assert 'patients' in set(found.what) and (found[found.what=='images (train)'].mark=='bad').all()
    (next(tmp_path.iterdir())/'Grade.csv').write_text('a,b\n1,2\n')
    fails('Grade.csv: this table should have columns', glas, tmp_path)

def test_glas_without_grades(tmp_path): assert set(glas(glas_official(tmp_path, grade=False)).attrgot('patient'))=={None}

def test_crag_official(tmp_path):
    for part,s in (('train', 'train_1'), ('test', 'test_1')):
        for d,a in (('Images', rgb), ('Annotation', np.minimum(lab, 3).astype(np.uint8)), ('Overlay', rgb)): put(tmp_path/'CRAG'/part/d/f'{s}.png', a)
    assert {k:len(v) for k,v in by_split(crag(tmp_path)).items()}=={'train':1, 'test':1} and crag(tmp_path)[0].instances.max()==3
    put(tmp_path/'CRAG'/'test'/'Annotation'/'test_9.png', lab)
    fails('test_9.png: there is no image for it', crag, tmp_path)

def test_cpm_in_both_layouts(tmp_path):
    for i in (1, 8):
        put(tmp_path/'cpm15'/f'image{i:02d}.png', rgb)
        put(tmp_path/'cpm15'/f'image{i:02d}_poly.png', rgb)
        put(tmp_path/'cpm15'/f'image{i:02d}_mask.txt', lab)
    for part,n in (('train', 4), ('test', 4)):
        for i in range(n):
            put(tmp_path/'cpm17'/part/'Images'/f'image_{i:02d}.png', rgb)
            put(tmp_path/'cpm17'/part/'Labels'/f'image_{i:02d}.mat', dict(inst_map=lab.astype(float)))
    assert cpm(tmp_path, 15).attrgot('mpp')==[.5, .25] and all((s.instances==lab).all() for s in cpm(tmp_path))
    assert {k:len(v) for k,v in by_split(cpm(tmp_path, 17)).items()}=={'train':4, 'test':4}
    folds = by_split(cpm(tmp_path, folds=5))
    assert {k:len(v) for k,v in folds.items()}=={f'fold {i}':2 for i in range(1, 6)}
    assert {s.name+str(s.path):s.split for s in cpm(tmp_path, folds=5)}=={s.name+str(s.path):k for k,v in folds.items() for s in v}

def pannuke_official(root, n=3, kind=float):
    rng = np.random.default_rng(0)
    for f in (1, 2):
        m = np.zeros((n,32,32,6), kind)
        m[0,:8,:8,0],m[0,4:12,4:12,4],m[0,20:25,20:25,2] = 5,5,9
        d = root/f'Fold {f}'
        put(d/'masks'/f'fold{f}'/'masks.npy', m)
        put(d/'images'/f'fold{f}'/'images.npy', rng.integers(0, 256, (n,32,32,3)).astype(kind))
        put(d/'images'/f'fold{f}'/'types.npy', np.array(['Breast', 'Colon', 'HeadNeck'][:n]))
    return root

def test_pannuke_official(tmp_path):
    ss = pannuke(pannuke_official(tmp_path))
    assert {k:len(v) for k,v in by_split(ss).items()}=={'fold 1':3, 'fold 2':3} and ss[2].organ=='HeadNeck'
    s = ss[0]
    assert s.image.dtype==np.uint8 and s.instances.dtype==np.int32 and s.classes.dtype==np.uint8 and s.shape==(32,32)
    assert len(np.unique(s.instances))==4 and ((s.classes>0)==(s.instances>0)).all() and (s.classes[6,6], s.classes[0,0], s.classes[22,22])==(5, 1, 3)
    assert s.instances[6,6]==s.instances[10,10]!=s.instances[0,0]
    assert not ss[1].instances.any() and not ss[1].classes.any()
    assert len(pannuke(tmp_path/'Fold 2'))==3 and pannuke(tmp_path/'Fold 2')[0].split=='fold 2'
    assert (pickle.loads(pickle.dumps(s)).instances==s.instances).all()

def test_pannuke_is_mapped_and_not_read(tmp_path):
    "Large folds are listed at once: the files are sparse, and nothing of them is read"
    d = tmp_path/'fold1'
    d.mkdir()
    n = 20000
    for k,c in (('images', 3), ('masks', 6)): np.lib.format.open_memmap(d/f'{k}.npy', 'w+', np.float64, (n,64,64,c)).flush()
    ss = pannuke(tmp_path)
    assert len(ss)==n and not ss[-1].instances.any() and ss[-1].organ is None

def test_pannuke_wrong(tmp_path):
    f1 = pannuke_official(tmp_path)/'Fold 1'
    put(f1/'images'/'fold1'/'types.npy', np.array(['Breast']))
    fails('there are 1 tissues for 3 images', pannuke, tmp_path)
    np.save(f1/'images'/'fold1'/'types.npy', np.array(['a', None, 'b'], object), allow_pickle=True)
    fails('types.npy: this array cannot be read', pannuke, tmp_path)
    (f1/'images'/'fold1'/'types.npy').unlink()
    put(f1/'masks'/'fold1'/'masks.npy', np.zeros((2,32,32,6)))
    fails('masks should be an array (3, 32, 32, 6)', pannuke, tmp_path)
    (f1/'masks'/'fold1'/'masks.npy').unlink()
    fails('there is no masks.npy', pannuke, tmp_path)
    put(f1/'masks'/'fold1'/'masks.npy', np.full((3,32,32,6), .5))
    fails('masks.npy: labels should be whole numbers', lambda: pannuke(tmp_path)[0].instances)
    put(f1/'images'/'fold1'/'images.npy', np.full((3,32,32,3), 256.))
    fails('values outside 0 to 255', lambda: pannuke(tmp_path)[0].image)

# Skin, painted in colours

tissue = np.select([lab==1, lab==2, lab==700], [1, 4, 9]).astype(np.uint8)
painted = np.array([*queensland_colours.values()], np.uint8)[tissue]

def skin(root, names=('BCC_2', 'BCC_10', 'IEC_1', 'SCC_1'), a=painted):
    for s in names:
        put(root/'Images'/f'{s}.tif', rgb)
        put(root/'Masks'/f'{s}.png', a)
    return root

def skin_mask(root, a): return put(skin(root, ('BCC_1',))/'Masks'/'BCC_1.png', a)

def test_queensland_official(tmp_path):
    for root in (tmp_path, skin(tmp_path/'a'/'Data').parent, tmp_path/'a'/'Data'):
        ss = queensland(root)
        assert ss.attrgot('name')==['BCC_2', 'BCC_10', 'IEC_1', 'SCC_1'] and [s.info for s in ss]==[dict(cancer=c) for c in ('BCC', 'BCC', 'IEC', 'SCC')]
    s = ss[0]
    assert s.classes.dtype==np.uint8 and (s.classes==tissue).all() and (s.image==rgb).all() and s.shape==(H,W)
    assert (s.instances, s.load_instances, s.mpp, s.patient, s.split, s.organ)==(None, None, None, None, None, 'skin')
    assert set(queensland(root, mpp=.7).attrgot('mpp'))=={.7} and (pickle.loads(pickle.dumps(s)).classes==tissue).all()
    assert middle(s, 20).instances is None and (middle(s, 20).classes==tissue[10:30,20:40]).all() and (shrunk(s, 2).classes==tissue[1::2,1::2]).all()

def test_order_of_the_tissues(tmp_path):
    "Who trains on the numbers relies on them"
    assert queensland_classes==('epidermis', 'glands', 'inflammation', 'reticular dermis', 'hair follicles', 'papillary dermis', 'hypodermis', 'keratin',
        'basal cell carcinoma', 'squamous cell carcinoma', 'intraepidermal carcinoma')
    colours = [(0,0,0), (73,0,106), (108,0,115), (145,1,122), (181,9,130), (216,47,148), (236,85,157), (254,246,242), (248,123,168),
        (127,255,255), (127,255,142), (255,127,127)]
    assert list(queensland_colours.values())==colours
    skin_mask(tmp_path, np.array([colours]*5, np.uint8).repeat(5, 1).repeat(8, 0))
    s, = queensland(tmp_path)
    assert (s.classes==np.arange(12, dtype=np.uint8).repeat(5)).all() and s.class_names==queensland_classes

def test_queensland_copies(tmp_path):
    for k in (10, 5, 2): skin(tmp_path/'all'/f'{k}x', a=painted)
    fails('there are sections in several folders: 2x, 5x, 10x. Choose one of them', queensland, tmp_path/'all')
    fails('which is not a magnification', queensland, tmp_path/'all')
    assert 'several folders' in check_dataset('queensland', tmp_path/'all').found[0]
    assert len(queensland(tmp_path/'all'/'5x'))==4
    skin(tmp_path/'all', ('BCC_7',))
    assert queensland(tmp_path/'all').attrgot('name')==['BCC_7'] # the pair in the folder itself is the one that is meant

def test_queensland_beside_empty_folders(tmp_path):
    for d in ('Images', 'Masks'): put(skin(tmp_path)/'more'/'__MACOSX'/d/'._BCC_1.png', rgb)
    skin(tmp_path/'more'/'Data')
    assert len(queensland(tmp_path/'more'))==4
    for p in (tmp_path/'Images').iterdir(): p.unlink()
    fails('there is no image for it', queensland, tmp_path)

def test_queensland_names(tmp_path):
    put(tmp_path/'images'/'x.tif', rgb).rename(tmp_path/'images'/'bcc_1.TIF')
    put(tmp_path/'MASKS'/'BCC_1.png', painted).rename(tmp_path/'MASKS'/'BCC_1.PNG')
    s, = queensland(tmp_path)
    assert s.name=='bcc_1' and s.info==dict(cancer='BCC') and (s.classes==tissue).all()
    put(tmp_path/'images'/'BCC_1.tiff', rgb)
    fails('are two files for one sample', queensland, tmp_path)
    for name in ('slide_1', 'BCCX_1', '1_BCC'):
        fails(f'{name}.tif: the name of a section begins with BCC, SCC or IEC', queensland, skin(tmp_path/name, (name,)))

def test_queensland_without_partner(tmp_path):
    (skin(tmp_path)/'Masks'/'BCC_10.png').unlink()
    fails('BCC_10.tif: there is no mask for it', queensland, tmp_path)
    put(tmp_path/'Masks'/'BCC_10.jpg', painted)
    fails('BCC_10.jpg: classes in a JPEG are not exact', lambda: queensland(tmp_path)[1].classes)
    (tmp_path/'Images'/'IEC_1.tif').unlink()
    fails('IEC_1.png: there is no image for it', queensland, tmp_path)

def test_strange_colours(tmp_path):
    a = painted.copy()
    a[0,:5],a[1,:2] = (1,2,3),(72,0,106)
    p = skin_mask(tmp_path, a)
    says = '7 pixels have a colour that stands for no class, most often (1, 2, 3) (5 pixels). Was the mask resized with interpolation, or saved as JPEG'
    fails(f'{p}: {says}', lambda: queensland(tmp_path)[0].classes)
    for mode in (Image.BILINEAR, Image.BICUBIC):
        fails('stands for no class', read_colours, put(p, np.asarray(Image.fromarray(painted).resize((90,60), mode))), queensland_colours.values())
    Image.fromarray(painted).save(tmp_path/'a.jpg', quality=95)
    fails('stands for no class', read_colours, put(p, read_rgb(tmp_path/'a.jpg')), queensland_colours.values())
    fails('most often (255, 255, 255) (100 pixels)', read_colours, put(p, np.dstack([(lab==1).astype(np.uint8)*255]*3)), queensland_colours.values())

def test_kinds_of_masks(tmp_path):
    def classes(a):
        skin_mask(tmp_path, a)
        return queensland(tmp_path)[0].classes
    alpha = (lab!=1).astype(np.uint8)*255
    assert (classes(np.dstack([painted, alpha]))==tissue).all()
    assert not classes(painted*0).any()
    im = Image.frombytes('P', (W,H), tissue.tobytes())
    im.putpalette([v for c in queensland_colours.values() for v in c])
    for kw in ({}, dict(transparency=1), dict(bits=4)):
        im.save(tmp_path/'Masks'/'BCC_1.png', **kw)
        assert (queensland(tmp_path)[0].classes==tissue).all()
    two = np.dstack([tissue, alpha])
    for a,kind in ((tissue, "pixels of kind 'L'"), (lab, '16 bits a channel'), (lab>0, "pixels of kind '1'"), (two, "pixels of kind 'LA'")):
        fails(f'classes should be colours of 8 bits, and this picture has {kind}', classes, a)
    for end in ('bmp', 'tif'): assert (read_colours(put(tmp_path/f'a.{end}', painted), queensland_colours.values())==tissue).all()
    fails('this picture has 16 bits a channel', read_colours, put(tmp_path/'deep.tif', painted.astype(np.uint16)), queensland_colours.values())

def test_masks_of_another_size(tmp_path):
    for a in (painted[:-1], painted.swapaxes(0, 1), painted[::2,::2]):
        skin_mask(tmp_path, np.ascontiguousarray(a))
        fails(f'BCC_1.png: class map and image differ in size: {a.shape[:2]} and (40, 60)', lambda: queensland(tmp_path)[0].classes)

@pytest.mark.parametrize('what', ['empty', 'noise', 'cut'])
@pytest.mark.parametrize('kind', ['Images', 'Masks'])
def test_damaged_sections(kind, what, tmp_path):
    p = next((skin(tmp_path, ('BCC_1',), np.random.default_rng(0).permutation(painted))/kind).iterdir())
    p.write_bytes(dict(empty=b'', noise=b'noise'*99, cut=p.read_bytes()[:len(p.read_bytes())//2])[what])
    s, = queensland(tmp_path)
    fails(f'{p.name}: this image cannot be read', lambda: s.image if kind=='Images' else s.classes)
    found = check_dataset('queensland', tmp_path)
    assert list(found.what)==['images', 'BCC_1', 'classes'] and list(found.mark)==['bad']*3 and p.name in found.found[1]

def test_check_of_classes_without_objects(tmp_path):
    found = check_dataset('queensland', skin(tmp_path))
    assert list(found.mark)==['bad', 'ok'] and list(found.found)==['4 of 290', '3 of 11 in 4 images']
    assert 'glands' in found.todo[1] and 'epidermis' not in found.todo[1]
    put(tmp_path/'Masks'/'BCC_2.png', painted[:,:-1].copy())
    put(tmp_path/'Masks'/'IEC_1.png', painted+np.uint8(1))
    put(tmp_path/'Masks'/'SCC_1.png', painted*0)
    found = check_dataset('queensland', tmp_path).set_index('what')
    assert dict(found.mark)==dict(images='bad', BCC_2='bad', IEC_1='bad', SCC_1='note', classes='bad')
    assert 'differ in size' in found.found['BCC_2'] and 'stands for no class' in found.found['IEC_1'] and found.found['SCC_1']=='all of it is background'
    assert list(check_dataset('pannuke', pannuke_official(tmp_path/'p')).what)[-1]=='objects'

@pytest.mark.parametrize('colours', [[], [(0,0,0), (0,0,0)], [(0,0)], [(0,0,256)], [(-1,0,0)], [(i,0,0) for i in range(256)]])
def test_colours_that_are_none(colours, tmp_path): fails('each class needs a colour of its own', read_colours, put(tmp_path/'a.png', painted), colours)

def test_sections_need_little_memory(tmp_path):
    "One byte a pixel for the classes, and three for the image, beside what PIL holds"
    big = tissue.repeat(50, 0).repeat(50, 1)
    p = put(tmp_path/'Masks'/'BCC_1.png', np.array([*queensland_colours.values()], np.uint8)[big])
    read_colours(put(tmp_path/'small.png', painted), queensland_colours.values()) # makes the table
    for f,a in ((lambda: read_colours(p, queensland_colours.values()), 1), (lambda: read_rgb(p), 3)):
        tracemalloc.start()
        res = f()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert res.shape[:2]==big.shape and most<a*big.size+20*2**20, most/2**20
    assert (read_colours(p, queensland_colours.values())==big).all()

def test_sections_that_pil_refuses(tmp_path, monkeypatch):
    skin_mask(tmp_path, painted.repeat(40, 0).repeat(40, 1))
    put(tmp_path/'Images'/'BCC_1.tif', rgb.repeat(40, 0).repeat(40, 1))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_800_000)
    with pytest.raises(Image.DecompressionBombError): Image.open(tmp_path/'Images'/'BCC_1.tif')
    s, = queensland(tmp_path)
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(4) as ex:
        warnings.simplefilter('error')
        for shape in ex.map(lambda f: f().shape, [lambda: s.image, lambda: s.classes]*4): assert shape[:2]==(40*H,40*W)
    assert Image.MAX_IMAGE_PIXELS==1_800_000 and not ds._usual
    fails('this image cannot be read', read_rgb, write_xml(tmp_path/'a.xml'))
    assert Image.MAX_IMAGE_PIXELS==1_800_000

# Wrong and damaged input

def own(root, ims=('a', 'b'), labs=('a', 'b'), a=lab, end='png'):
    for s in ims: put(root/'images'/f'{s}.png', rgb)
    for s in labs: put(root/'labels'/f'{s}.{end}', a)
    return root

@pytest.mark.parametrize('reader', ['monuseg', 'consep', 'glas', 'image_folder'])
def test_missing_pairs(reader, tmp_path):
    f = getattr(ds, reader)
    fails('b.png: there is no label file for it', f, own(tmp_path/'1', labs='a')) if reader!='consep' else None
    fails('z.png: there is no image for it', f, own(tmp_path/'2', labs='abz')) if reader!='consep' else None
    fails('there is no such folder', f, tmp_path/'lost')
    (tmp_path/'empty').mkdir()
    fails(str(tmp_path/'empty'), f, tmp_path/'empty')

@pytest.mark.parametrize('name', list(readers))
def test_an_empty_folder_is_told(name, tmp_path):
    fails('there is nothing of', readers[name], tmp_path)
    assert list(check_dataset(name, tmp_path).mark)==['bad']

@pytest.mark.parametrize('a, end, says', [
    (lab.T.copy(), 'png', 'labels and image differ in size: (60, 40) and (40, 60)'),
    (lab.astype(np.float32), 'tif', 'labels should be whole numbers, these are float32'),
    (lab/3, 'npy', 'labels should be whole numbers'),
    (np.where(lab, np.nan, 0), 'npy', 'labels should be whole numbers'),
    (-lab, 'npy', 'labels run from -700 to 0'),
    (lab.astype(np.int64)*2**40, 'npy', 'labels run from'),
    (np.array(['x']), 'npy', 'labels should be an array (H,W)'),
    (rgb, 'png', 'this is a picture in colours'),
    (rgb, 'jpg', 'there is no label file'),
    (np.zeros((H,W), np.uint8), 'png', 'there is no object in the annotation'),
    ((lab>0).astype(np.uint8)*255, 'png', 'this is a mask of 0 and 255'),
    (dict(other=lab), 'mat', "there is no 'inst_map' in it, only other"),
    (dict(inst_map=lab/3), 'mat', 'labels should be whole numbers')])
def test_wrong_labels(a, end, says, tmp_path):
    def go(): return image_folder(own(tmp_path, 'a', 'a', a, end))[0].instances
    fails(says, go)
    if end!='jpg': fails(f'a.{end}', go)

def test_labels_in_a_jpeg(tmp_path): fails('labels in a JPEG', read_labels, put(tmp_path/'a.jpg', rgb))

def test_objects_that_numpy_would_unpickle(tmp_path):
    np.save(tmp_path/'a.npy', np.array([dict(a=1)], object), allow_pickle=True)
    fails('this array cannot be read', read_labels, tmp_path/'a.npy')

def test_equal_channels_are_labels(tmp_path):
    small = np.minimum(lab, 3).astype(np.uint8)
    assert (read_labels(put(tmp_path/'a.png', np.dstack([small]*3)))==small).all()
    assert (read_labels(put(tmp_path/'b.png', np.dstack([small]*3+[np.full_like(small, 255)])))==small).all()
    im = Image.new('P', (W,H))
    im.putdata([int(v) for v in small.ravel()])
    im.putpalette([i*37%256 for i in range(768)])
    im.save(tmp_path/'c.png')
    assert (read_labels(tmp_path/'c.png')==small).all()

@pytest.mark.parametrize('end', ['png', 'tif', 'npy', 'mat', 'txt', 'xml'])
@pytest.mark.parametrize('what', ['empty', 'noise', 'cut'])
def test_damaged_labels(end, what, tmp_path):
    if end=='xml': p = write_xml(tmp_path/'a.xml', region(box(5,5,10)))
    else: p = put(tmp_path/f'a.{end}', dict(inst_map=lab) if end=='mat' else lab.astype(np.uint16) if end=='tif' else lab)
    raw = p.read_bytes()
    p.write_bytes(dict(empty=b'', noise=np.random.default_rng(1).bytes(500), cut=raw[:len(raw)//2])[what])
    fails(f'a.{end}', read_labels, p, (H,W))

@pytest.mark.parametrize('what', ['empty', 'noise', 'cut'])
def test_damaged_images(what, tmp_path):
    p = put(own(tmp_path, 'a', 'a')/'images'/'a.png', rgb)
    p.write_bytes(dict(empty=b'', noise=b'noise'*99, cut=p.read_bytes()[:1500])[what])
    fails('a.png: this image cannot be read', lambda: image_folder(tmp_path)[0].image)

def test_kinds_of_images(tmp_path):
    assert (read_rgb(put(tmp_path/'grey.png', rgb[...,0]))==rgb[...,:1]).all()
    assert (read_rgb(put(tmp_path/'a.bmp', rgb))==rgb).all()
    fails("pixels of kind 'F'", read_rgb, put(tmp_path/'float.tif', rgb[...,0].astype(np.float32)))
    fails('16 bits a channel', read_rgb, put(tmp_path/'deep.png', lab))
    fails('deep.tif: this image has 16 bits a channel', read_rgb, put(tmp_path/'deep.tif', rgb.astype(np.uint16)*256))

def test_two_files_for_one_sample(tmp_path):
    own(tmp_path)
    put(tmp_path/'images'/'a.bmp', rgb)
    fails('a.bmp and a.png are two files for one sample', image_folder, tmp_path)

def test_folder_options(tmp_path):
    own(tmp_path, ('s1_1', 's1_2', 's2_1'), ('s1_1', 's1_2', 's2_1'), (lab>0).astype(np.uint8)*255)
    for s in ('s1_1', 's1_2', 's2_1'): put(tmp_path/'kinds'/f'{s}.png', (lab>0).astype(np.uint8)*2)
    ss = image_folder(tmp_path, types='kinds', class_names=('a', 'b'), mask=True, patient=lambda s: s[:2], organ='skin', split='train', mpp=.5)
    assert ss.attrgot('patient')==['s1', 's1', 's2'] and ss[0].classes.max()==2 and len(np.unique(ss[0].instances))==3 and ss[0].organ=='skin'
    assert image_folder(tmp_path, labels=None)[0].instances is None and ss[0].class_names==('a', 'b')
    fails('there is a class 2, and the classes are 1 to 1', lambda: image_folder(tmp_path, types='kinds', class_names=('a',))[0].classes)
    put(tmp_path/'labels'/'s1_1.png', lab*0)
    assert not image_folder(tmp_path, empty=True)[0].instances.any()
    fails('there is no such folder', image_folder, tmp_path, types='lost')

def test_listing_opens_nothing(tmp_path, monkeypatch):
    own(tmp_path)
    monkeypatch.setattr(ds.Image, 'open', lambda *a: 1/0)
    assert len(image_folder(tmp_path))==len(monuseg(tmp_path))==2

# Polygons

def test_unsafe_xml(tmp_path):
    lol = ''.join(f'<!ENTITY l{i} "{f"&l{i-1};"*10 if i else "lol"}">' for i in range(10))
    for i,(head,body) in enumerate(((f'<!DOCTYPE x [{lol}]>', '&l9;'), ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', '&e;'), ('<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;]>', ''))):
        p = tmp_path/f'{i}.xml'
        p.write_text(f'<?xml version="1.0"?>{head}<Annotations>{body}</Annotations>')
        fails(f'{i}.xml: this XML', imagescope_regions, p)

@pytest.mark.parametrize('vertex, says', [('<Vertex X="1"/>', 'without X and Y'), ('<Vertex X="a" Y="1"/>', 'without X and Y'), ('<Vertex X="nan" Y="1"/>', 'that is no number'), ('<Vertex X="1e999" Y="1"/>', 'that is no number')])
def test_wrong_vertices(vertex, says, tmp_path):
    p = write_xml(tmp_path/'a.xml', region(box(1,1,5)), f'<Region><Vertices>{vertex*3}</Vertices></Region>')
    fails('region 2', imagescope_regions, p)
    fails(says, imagescope_regions, p)

def test_annotations_without_nuclei(tmp_path):
    put(tmp_path/'Tissue Images'/'a.tif', rgb)
    write_xml(tmp_path/'Annotations'/'a.xml')
    fails('a.xml: there is no region', lambda: monuseg(tmp_path)[0].instances)
    write_xml(tmp_path/'Annotations'/'a.xml', region([(1,1)]), region(box(500,500,9)))
    fails('a.xml: there is no object', lambda: monuseg(tmp_path)[0].instances)

def test_regions_of_several_annotations_and_within_regions(tmp_path):
    inner = region(box(40,5,6))
    p = tmp_path/'a.xml'
    p.write_text(f'<Annotations><Annotation><Regions>{region(box(5,5,8)).replace("</Region>", inner+"</Region>")}</Regions></Annotation><Annotation><Regions>{region(box(5,25,8))}</Regions></Annotation></Annotations>')
    m = read_imagescope(p, (H,W))
    assert [m[8,8], m[8,43], m[28,8]]==[1, 2, 3]

def test_who_owns_a_pixel():
    m = draw_regions([np.array(o, float) for o in (box(5,5,20), box(15,15,20), box(8,8,4), box(5,5,20), box(58,38,9))], (H,W))
    assert [m[10,6], m[20,20], m[33,33], m[10,10], m[39,59]]==[1, 1, 2, 3, 5] and 4 not in m

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(-20, 80), st.floats(-20, 60)), min_size=0, max_size=7), min_size=1, max_size=8))
def test_any_polygons_can_be_drawn(polys):
    regs = [np.array(p, float).reshape(-1, 2) for p in polys]
    m = draw_regions(regs, (H,W))
    assert m.shape==(H,W) and m.dtype==np.int32 and 0<=m.min() and m.max()<=len(regs)
    alone = [draw_regions([r], (H,W))>0 for r in regs]
    assert ((m>0)==np.any(alone, 0)).all()
    for k in set(np.unique(m)) - {0}: assert not (m==k)[~alone[k-1]].any()

@real
def test_monuseg_xml_gives_the_nuclei_of_the_label_files(tmp_path):
    from histolab_nb.core import data_folder
    unpack(data_folder('monuseg', 'train')/'xml_annotations.zip', tmp_path/'xml')
    ss,wrong = [s for s in monuseg(extra=True) if (tmp_path/'xml'/f'{s.name}.xml').exists()],0
    assert len(ss)==20
    for s in ss:
        a,b = read_imagescope(tmp_path/'xml'/f'{s.name}.xml', s.shape),s.instances
        assert (np.unique(a)==np.unique(b)).all(), s.name
        wrong += (a!=b).sum()
    assert wrong<=1

@real
def test_counts_of_real_data():
    def objects(ss): return sum(len(np.unique(s.instances))-1 for s in ss)
    assert (len(monuseg()), objects(monuseg()), len(monuseg(extra=True)))==(30, 16959, 37)
    assert {k:len(v) for k,v in by_split(monuseg(split='attention')).items()}=={'train':19, 'val':11}
    assert objects(by_split(glas())['train'])==769 and len(consep())==27

# Splits

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(['colon', 'lung', None])), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 99))
def test_patients_stay_together(rows, k, seed):
    ss = [Sample(str(i), Path(f'{i}'), None, patient=str(p) if p else None, organ=o) for i,(p,o) in enumerate(rows)]
    groups = len({o.patient or ('image', o.name) for o in ss})
    if groups<k: return fails('cannot be split', by_patient, ss, k, seed)
    parts = by_patient(ss, k, seed)
    assert len(parts)==k and sorted(o.name for p in parts for o in p)==sorted(o.name for o in ss)
    for o in {o.patient for o in ss} - {None}: assert sum(any(s.patient==o for s in p) for p in parts)==1
    again = by_patient(ss[::-1], k, seed)
    assert [sorted(o.name for o in p) for p in parts]==[sorted(o.name for o in p) for p in again]

def test_wrong_parts():
    for parts in (0, -1, (.5, 0), ()): fails('are no parts', by_patient, [Sample('a', Path(), None)], parts)

# Cards and checks

def test_cards_are_complete():
    assert set(cards().index)==set(readers)
    for name in readers:
        c = card(name)
        assert {'what', 'images', 'licence', 'citation', 'layout', 'resolution'} <= {o[0] for o in c['facts']} and c['page'].startswith('https://') and c['notes']
        assert all(o[-1] for o in c['facts']+c['notes']) and (c['files'] or c['how']) and c['facts'][-1][0]=='layout'
        for f in c['files']: assert f['url'].startswith('https://') and (not f.get('hash') or f['hash_from'])
        assert c._repr_markdown_().count('\n')>8

def test_check_finds_what_is_wrong(tmp_path):
    monuseg_official(tmp_path)
    found = check_dataset('monuseg', tmp_path)
    assert found.set_index('what').mark['images (train)']=='bad' and found.set_index('what').found['images (train)']=='3 of 30'
    p = next(tmp_path.rglob('TCGA-KB*.tif'))
    put(p, rgb[:20])
    p.write_bytes(p.read_bytes()[:900])
    assert (check_dataset('monuseg', tmp_path).what=='TCGA-KB-A93J-01A-01-TS1').any()

# Downloads

class Handler(http.server.BaseHTTPRequestHandler):
    "Sends `files`; breaks off after `limit` bytes; `version` is the ETag"
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        if s.status: return self.send_error(s.status)
        body = s.files.get(self.path.split('?')[0])
        if body is None: return self.send_error(404)
        m = re.match(r'bytes=(\d+)-', self.headers.get('Range') or '')
        start = int(m[1]) if m and s.ranges and self.headers.get('If-Range')==s.version else 0
        if start and start>=len(body): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', len(body)-start)
        if s.version: self.send_header('ETag', s.version)
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[:s.limit] if s.limit else rest)
        if s.limit and s.limit<len(rest): self.close_connection = True

    def log_message(self, *a): pass

@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.files,s.limit,s.asked,s.version,s.ranges,s.status = {},None,[],'"1"',True,None
    threading.Thread(target=s.serve_forever, daemon=True).start()
    s.url = f'http://127.0.0.1:{s.server_port}'
    yield s
    s.shutdown()
    s.server_close()

body = np.random.default_rng(2).bytes(300_000)
sha = hashlib.sha256(body).hexdigest()
quick = dict(tries=1, wait=0)

def files(d): return sorted(p.name for p in d.iterdir())

def test_download_and_lock(server, tmp_path):
    server.files['/a.bin'] = body
    p = fetch(f'{server.url}/a.bin?download=1', tmp_path)
    assert p.read_bytes()==body and files(tmp_path)==['a.bin', 'downloads.json'] and read_json(tmp_path/'downloads.json')['a.bin']['sha256']==sha
    fetch(f'{server.url}/a.bin', tmp_path)
    assert len(server.asked)==1
    p.write_bytes(b'damaged')
    assert fetch(f'{server.url}/a.bin', tmp_path).read_bytes()==body
    fetch(f'{server.url}/a.bin', tmp_path/'md5', hash='md5:'+hashlib.md5(body).hexdigest())

def test_wrong_hash(server, tmp_path):
    server.files['/a.bin'] = body
    fails('is not the one that was expected', fetch, f'{server.url}/a.bin', tmp_path, hash='0'*64)
    assert files(tmp_path)==[]
    fetch(f'{server.url}/a.bin', tmp_path, hash=sha)
    server.files['/a.bin'] = body[::-1]
    (tmp_path/'a.bin').unlink()
    fails('is not the one that was expected', fetch, f'{server.url}/a.bin', tmp_path)
    assert files(tmp_path)==['downloads.json']

def test_resume_after_a_broken_connection(server, tmp_path):
    server.files['/a.bin'],server.limit = body,100_000
    fails('the connection broke after 100,000 bytes', fetch, f'{server.url}/a.bin', tmp_path, **quick)
    assert not (tmp_path/'a.bin').exists()
    assert fetch(f'{server.url}/a.bin', tmp_path, hash=sha, tries=4, wait=0).read_bytes()==body
    assert server.asked==[None, 'bytes=100000-', 'bytes=200000-'] and files(tmp_path)==['a.bin', 'downloads.json']

def test_resume_when_the_file_has_changed(server, tmp_path):
    server.files['/a.bin'],server.limit = body,100_000
    fails('the connection broke', fetch, f'{server.url}/a.bin', tmp_path, **quick)
    server.files['/a.bin'],server.version,server.limit = body[::-1],'"2"',None
    assert fetch(f'{server.url}/a.bin', tmp_path, **quick).read_bytes()==body[::-1]

@pytest.mark.parametrize('how', ['no ranges', 'no etag'])
def test_servers_that_cannot_resume(how, server, tmp_path):
    server.files['/a.bin'],server.limit = body,100_000
    if how=='no ranges': server.ranges = False
    else: server.version = None
    fails('the connection broke', fetch, f'{server.url}/a.bin', tmp_path, **quick)
    server.limit = None
    assert fetch(f'{server.url}/a.bin', tmp_path, **quick).read_bytes()==body

def test_leftover_that_is_too_long(server, tmp_path):
    server.files['/a.bin'] = body
    (tmp_path/'.a.bin.part').write_bytes(body+b'more')
    (tmp_path/'.a.bin.tag').write_text('"1"')
    assert fetch(f'{server.url}/a.bin', tmp_path, tries=2, wait=0).read_bytes()==body

def test_servers_that_refuse(server, tmp_path):
    fails('the server answers 404', fetch, f'{server.url}/lost.zip', tmp_path, **quick)
    server.status = 503
    fails('the connection broke', fetch, f'{server.url}/a.bin', tmp_path, tries=2, wait=0)
    assert len(server.asked)==3
    fails('the connection broke after 0 bytes', fetch, 'http://127.0.0.1:9/a.bin', tmp_path, **quick)
    fails('this is no address', fetch, 'file:///etc/passwd', tmp_path)
    fails('this is no address', fetch, 'ftp://x/y', tmp_path)
    assert files(tmp_path)==[]

def test_a_login_page_is_no_archive(server, tmp_path):
    server.files['/a.zip'] = b'<html>log in</html>'
    fails('perhaps a page that asks for a login', fetch, f'{server.url}/a.zip', tmp_path, archive=True)
    assert files(tmp_path)==[]

def zipped(**members):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
        for k,v in members.items(): z.writestr(k, v)
    return f.getvalue()

def tnbc_zip(tmp_path):
    put(tmp_path/'z'/'Slide_01'/'01_1.png', rgb)
    put(tmp_path/'z'/'GT_01'/'01_1.png', lab)
    return zipped(**{f'TNBC/{p.relative_to(tmp_path/"z").as_posix()}':p.read_bytes() for p in (tmp_path/'z').rglob('*.png')}, **{'__MACOSX/TNBC/x':b'x'})

def test_get_dataset(server, tmp_path):
    raw = tnbc_zip(tmp_path)
    server.files['/t.zip'] = raw
    mine,said = Card(card('tnbc') | dict(files=[dict(url=f'{server.url}/t.zip', file='t.zip')])),[]
    assert len(tnbc(get_dataset(mine, tmp_path/'out', say=said.append)))==1
    assert 'licence' in said[0] and 'not published: kept in downloads.json' in said[1] and not list((tmp_path/'out').rglob('__MACOSX'))
    get_dataset(mine, tmp_path/'out', say=said.append)
    assert said[-1]=='t: there already' and len(server.asked)==1
    fails(card('tnbc')['page'], get_dataset, mine, tmp_path/'other', sha256='0'*64, say=said.append)
    get_dataset(mine, tmp_path/'third', sha256=hashlib.sha256(raw).hexdigest(), say=said.append)
    assert 'compared with yours' in said[-1]

def test_data_that_no_program_may_fetch(tmp_path):
    for name in ('monuseg', 'cpm', 'crag', 'queensland'):
        fails('cannot be fetched by a program', get_dataset, name, tmp_path/'x')
        fails(card(name)['page'], get_dataset, name, tmp_path/'x')
    assert not (tmp_path/'x').exists()
    fails('so one hash cannot be meant', get_dataset, 'pannuke', tmp_path/'x', sha256=sha)

# Archives that attack

@pytest.mark.parametrize('name', ['../evil', 'a/../../evil', '/etc/evil', '\\\\server\\evil', '..\\evil', 'C:\\evil', 'C:evil'])
@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_members_that_lead_outside(name, kind, tmp_path):
    p = tmp_path/f'a.{kind}'
    if kind=='zip':
        with zipfile.ZipFile(p, 'w') as z:
            z.writestr('good', 'x')
            i = zipfile.ZipInfo('x')
            i.filename = name
            z.writestr(i, 'boo')
    else:
        with tarfile.open(p, 'w') as t:
            i = tarfile.TarInfo(name)
            i.size = 3
            t.addfile(i, io.BytesIO(b'boo'))
    fails('outside its folder', unpack, p, tmp_path/'in'/'out')
    assert not any('evil' in o.name for o in tmp_path.rglob('*')) and not (tmp_path/'in'/'out').exists()

@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_in_a_tar(kind, tmp_path):
    with tarfile.open(tmp_path/'a.tar.gz', 'w:gz') as t:
        i = tarfile.TarInfo('data')
        i.type,i.linkname = kind,str(tmp_path)
        t.addfile(i)
        j = tarfile.TarInfo('data/evil')
        j.size = 3
        t.addfile(j, io.BytesIO(b'boo'))
    fails('is a link or a device', unpack, tmp_path/'a.tar.gz', tmp_path/'out')
    assert not (tmp_path/'out').exists() and not (tmp_path/'evil').exists()

def test_links_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        i = zipfile.ZipInfo('data')
        i.create_system,i.external_attr = 3,0o120777<<16
        z.writestr(i, str(tmp_path))
    fails('is a link or a device', unpack, tmp_path/'a.zip', tmp_path/'out')

def test_sizes_that_lie(tmp_path, monkeypatch):
    (tmp_path/'a.zip').write_bytes(zipped(a=b'x'*100_000))
    old = ds._zip_members
    monkeypatch.setattr(ds, '_zip_members', lambda z: ((n, k, 10, o) for n,k,s,o in old(z)))
    fails('is larger than the archive says', unpack, tmp_path/'a.zip', tmp_path/'out')
    monkeypatch.setattr(ds, '_zip_members', lambda z: ((n, k, 2**60, o) for n,k,s,o in old(z)))
    fails('GiB are free', unpack, tmp_path/'a.zip', tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_broken_archives(tmp_path):
    raw = bytearray(zipped(a=np.random.default_rng(0).bytes(5000), b='x'))
    raw[200:300] = b'\0'*100
    (tmp_path/'a.zip').write_bytes(raw)
    fails('a.zip: this archive cannot be unpacked', unpack, tmp_path/'a.zip', tmp_path/'out')
    with tarfile.open(tmp_path/'t.tar.gz', 'w:gz') as t:
        i = tarfile.TarInfo('a')
        i.size = 50_000
        t.addfile(i, io.BytesIO(np.random.default_rng(0).bytes(50_000)))
    (tmp_path/'t.tar.gz').write_bytes((tmp_path/'t.tar.gz').read_bytes()[:30_000])
    fails('t.tar.gz: this archive cannot be unpacked', unpack, tmp_path/'t.tar.gz', tmp_path/'out')
    assert not (tmp_path/'out').exists() and not list(tmp_path.glob('.*part*'))

@pytest.mark.parametrize('kind', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_good_archives(kind, tmp_path):
    with tarfile.open(tmp_path/'t.tar', kind) as t:
        i = tarfile.TarInfo('d/a')
        i.size = 3
        t.addfile(i, io.BytesIO(b'yes'))
    assert (unpack(tmp_path/'t.tar', tmp_path/'out')/'d'/'a').read_bytes()==b'yes'
    (tmp_path/'empty').mkdir()
    assert (unpack(tmp_path/'t.tar', tmp_path/'empty')/'d'/'a').exists()

# samples in memory

@settings(max_examples=30, deadline=None)
@given(side=st.integers(1, 70), empty=st.booleans())
def test_middle_of_everything(side, empty):
    a = array_sample('a', rgb, lab*0 if empty else lab, (lab>0).astype(np.uint8))
    m = pickle.loads(pickle.dumps(middle(a, side)))
    assert m.shape==(min(side, H),min(side, W))==m.image.shape[:2]==m.instances.shape==m.classes.shape
    y,x = max((H-side)//2, 0),max((W-side)//2, 0)
    assert np.array_equal(m.image, rgb[y:y+side,x:x+side]) and np.array_equal(m.classes, lab[y:y+side,x:x+side]>0)

def test_middle_without_annotation():
    m = middle(array_sample('a', rgb), 10)
    assert m.instances is None and m.classes is None and m.image.shape==(10,10,3)
