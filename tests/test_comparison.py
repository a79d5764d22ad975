"What no notebook can hold of the comparison: bad input of every kind, methods that misbehave, resolutions, records that are damaged"
import json
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from histolab_nb import comparison
from histolab_nb.comparison import (Comparison, NucleiMethod, compare_nuclei, comparison_recipes, known_as, load_comparison, match_map, one_class,
    ready_methods, save_comparison, score_columns, show_comparison, trained_methods)
from histolab_nb.core import DataError, read_json
from histolab_nb.datasets import monuseg_table
from histolab_nb.metrics import instance_scores
from histolab_nb.phantom import phantom_nuclei
from helpers import noise, on_cpu

@pytest.fixture(scope='module')
def samples(): return phantom_nuclei(2, 96, 3, regions=('tumour',))

@pytest.fixture
def pair(samples): return [s.image for s in samples],[s.instances for s in samples]

cpu = on_cpu(comparison)

def blank(image): return np.zeros(image.shape[:2], int)
def compare(pair, methods=None, mpp=.25, **kw): return compare_nuclei(*pair, mpp, {'blank':blank} if methods is None else methods, **kw)

# What is handed over

def test_no_images():
    with pytest.raises(DataError, match='no images'): compare_nuclei([], [], .25, {'blank':blank})

def test_lists_of_different_length(pair):
    with pytest.raises(DataError, match='2 images and 1 truths'): compare((pair[0], pair[1][:1]))
    with pytest.raises(DataError, match='2 images and 3 names'): compare(pair, names=['a','b','c'])
    with pytest.raises(DataError, match='2 images and 1 values of mpp'): compare(pair, mpp=[.25])

def test_names_twice(pair):
    with pytest.raises(DataError, match='same name'): compare(pair, names=['a','a'])

@pytest.mark.parametrize('bad', [np.zeros((96,95), int), np.zeros((96,96,1), int), 7])
def test_truth_of_another_shape(pair, bad):
    with pytest.raises(DataError, match="truth of 'image 2'"): compare((pair[0], [pair[1][0], bad]))

@pytest.mark.parametrize('bad,words', [(np.zeros((96,96), int), "no nucleus in the truth of 'second'"), (np.ones((96,96)), 'whole numbers'), (np.full((96,96), -1), 'above 0')])
def test_truth_that_is_none(pair, bad, words):
    with pytest.raises(DataError, match=words): compare((pair[0], [pair[1][0], bad]), names=['first','second'])

@pytest.mark.parametrize('bad', [np.zeros((96,96), np.uint8), np.zeros((96,96,3)), np.zeros((96,96,4), np.uint8)])
def test_no_image(pair, bad):
    with pytest.raises(DataError): compare(([pair[0][0], bad], pair[1]))

@pytest.mark.parametrize('bad', [0, -1., 5., float('nan'), '0.25', None, [.25,None]])
def test_no_resolution(pair, bad):
    with pytest.raises(DataError, match='mpp'): compare(pair, mpp=bad)

def test_nothing_runs_before_all_is_checked(pair):
    called = []
    with pytest.raises(DataError): compare((pair[0], [pair[1][0], pair[1][1][:50]]), {'a':lambda im: called.append(1) or blank(im)})
    with pytest.raises(DataError, match='has seen'): compare(pair, {'a':lambda im: called.append(1) or blank(im), 'b':NucleiMethod(blank, seen=('image 1',))})
    assert not called

# Methods

def test_unknown_methods(pair):
    for bad in ('StarDist', ['Otsu on grey','StarDist']):
        with pytest.raises(DataError, match="no method 'StarDist'.*Otsu on grey"): compare(pair, bad)
    for bad in ({}, []):
        with pytest.raises(DataError, match='no methods'): compare_nuclei(*pair, .25, bad)
    with pytest.raises(DataError, match="'mine' is str"): compare(pair, {'mine':'Otsu on grey'})

def test_one_name_is_a_list_of_one(pair): assert list(compare(pair, 'Otsu on grey').labels)==['Otsu on grey']

def fails(image): raise RuntimeError('out of paint')
wrong = dict(shape=lambda im: blank(im)[1:], floats=lambda im: np.ones(im.shape[:2]), negative=lambda im: blank(im)-1, nothing=lambda im: None,
    image=lambda im: im, raises=fails)

@pytest.mark.parametrize('name', wrong)
def test_a_method_that_misbehaves_is_named(pair, name):
    with pytest.raises(DataError, match=f"the method '{name}' failed on 'image 1'"): compare(pair, {'blank':blank, name:wrong[name]})

def test_the_cause_is_kept(pair):
    with pytest.raises(DataError, match='RuntimeError: out of paint') as e: compare(pair, {'raises':fails})
    assert isinstance(e.value.__cause__, RuntimeError)

def test_a_stop_is_no_failure(pair):
    def stop(image): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compare(pair, {'stop':stop})

def test_mask_and_method_that_finds_nothing(pair, samples):
    res = compare(pair, {'blank':blank, 'mask':lambda im: next(s.instances for s in samples if s.image is im or (s.image==im).all())>0})
    assert (res.scores.loc['blank'][['dice','aji','pq']]==0).to_numpy().all() and (res.scores.loc['blank'].count_error==1).all()
    assert (res.scores.loc['mask'].dice==1).all() and (res.scores.loc['mask'].aji<1).any()

def test_mpp_is_told_to_those_who_ask(pair):
    told = []
    def asks(image, mpp):
        told.append(mpp)
        return blank(image)
    compare(pair, {'asks':asks, 'blank':blank}, mpp=[.25,.5])
    assert told==[.25,.5]

def test_seen_by_patient(pair):
    m = NucleiMethod(blank, seen=('TCGA-18-5592-01Z-00-DX1',))
    assert known_as('TCGA-18-5592-01A')=='TCGA-18-5592'
    with pytest.raises(DataError, match="'net' has seen TCGA-18-5592"): compare(pair, {'net':m}, names=['TCGA-18-5592-01A-01-TS1','other'])
    compare(pair, {'net':m}, names=['TCGA-21-5784-01Z-00-DX1','other'])

def test_shipped_network_knows_its_images():
    seen = set(ready_methods()['scale attention, shipped'].seen)
    table = monuseg_table()
    assert seen=={k for k,o in table.items() if o['set']=='train' and (o['attention']=='val' or o['mpp']=='0.25')}
    assert not seen & {k for k,o in table.items() if o['set']!='train'}

def test_networks_know_what_they_were_trained_on(monkeypatch, samples):
    r,q = comparison_recipes('tiny')
    short = replace(r, fit_epochs=1, fit_batches=1, fit_batch_size=2, crop=32, decoder=(4,4,4,4,4))
    quick = replace(q, epochs=1, batches=1, batch_size=2, window=40, crop=32, width=2)
    monkeypatch.setattr(comparison, 'comparison_recipes', lambda *a: (short,quick))
    nets = trained_methods(samples[:1], samples[1:], 'tiny')
    n = len(np.unique(samples[0].instances))-1
    assert {m.labels for m in nets.values()}=={f'1 images, {n} outlines'}
    for k in nets:
        with pytest.raises(DataError, match='has seen'): compare_nuclei([samples[1].image], [samples[1].instances], .25, {k:nets[k]}, [samples[1].name])
    fresh = phantom_nuclei(1, 70, 9, regions=('tumour',))[0]
    res = compare_nuclei([fresh.image], [fresh.instances], .3, nets, ['fresh'])
    assert all(o[0].shape==(70,70) for o in res.found.values())

def test_one_class_keeps_the_outlines(samples):
    s = one_class(samples[0])
    assert s.class_names==('nucleus',) and ((s.classes==1)==(samples[0].instances>0)).all() and (s.instances==samples[0].instances).all()

# Results

def test_scores_are_those_of_metrics(pair):
    res = compare(pair, ['Otsu on haematoxylin'])
    for i,(t,name) in enumerate(zip(pair[1], ('image 1','image 2'))):
        s,row = instance_scores(t, res.found['Otsu on haematoxylin'][i]),res.scores.loc[('Otsu on haematoxylin',name)]
        assert row.aji==s['aji'] and row.pq==s['pq'] and row.found==s['tp']+s['fp'] and row.true==s['tp']+s['fn']==len(np.unique(t))-1

def test_one_image_has_no_interval(pair):
    res = compare((pair[0][:1], pair[1][:1]))
    assert res.numbers.low.isna().all() and '[' not in res.table.loc['blank','aji']
    with pytest.raises(DataError, match='at least 2 images'): res.gain('blank', 'blank')

def test_gain(pair):
    res = compare(pair, ['Otsu on grey','Otsu on haematoxylin'])
    assert res.gain('Otsu on grey', 'Otsu on grey', 'pq')==(0,0,0)
    assert res.gain('Otsu on grey', 'Otsu on haematoxylin').value==-res.gain('Otsu on haematoxylin', 'Otsu on grey').value
    with pytest.raises(DataError, match="no method 'U-Net'"): res.gain('U-Net', 'Otsu on grey')
    with pytest.raises(DataError, match="no score 'f1'"): res.gain('Otsu on grey', 'Otsu on grey', 'f1')

def test_match_map_by_a_loop():
    rng = np.random.default_rng(0)
    t,p = (np.kron(rng.integers(0, 4, (6,6)), np.ones((4,4), int)) for _ in range(2))
    p = np.where(rng.random(t.shape)<.8, t, p)
    got = match_map(t, p)
    good = [(i,j) for i in range(1,4) for j in range(1,4) if ((t==i)&(p==j)).sum()>.5*((t==i)|(p==j)).sum()]
    for y,x in np.ndindex(*t.shape):
        miss,hit = t[y,x]>0 and t[y,x] not in [i for i,_ in good],p[y,x] in [j for _,j in good]
        false = p[y,x]>0 and not hit
        assert got[y,x]==(4 if miss and false else 1 if hit else 2 if miss else 3 if false else 0)
    with pytest.raises(DataError): match_map(t, p[1:])

def test_pictures(pair):
    import matplotlib.pyplot as plt
    res = compare(pair, ['Otsu on grey','Otsu on haematoxylin'])
    assert show_comparison(res, ['Otsu on grey'], rows=[1], side=50).shape==(1,1)
    assert show_comparison(res, side=999).shape==(2,2)
    with pytest.raises(DataError, match="no method 'U-Net'"): show_comparison(res, ['U-Net'])
    plt.close('all')

# Records

def test_kept_and_read(pair, tmp_path):
    res = compare(pair, ['Otsu on grey','Otsu on haematoxylin'])
    path = save_comparison(res, 'My Data', 'test, part 1', 'tiny', 7, tmp_path, device='cpu')
    d = json.loads(path.read_text())
    assert path.name=='comparison-my_data-test_part_1-tiny-7.json' and d['device']=='cpu' and {'version','commit','when'}<=set(d)
    again = load_comparison('My Data', 'test, part 1', 'tiny', 7, tmp_path)
    pd.testing.assert_frame_equal(again.scores, res.scores.round(4))
    assert again.labels==res.labels and again.table.shape==res.table.shape

@pytest.mark.parametrize('text,words', [('{', 'not JSON'), ('{"labels":{}}', 'lacks mpps'), ('[]', 'lacks labels')])
def test_damaged_record(tmp_path, text, words):
    (tmp_path/'comparison-a-b-tiny-42.json').write_text(text)
    with pytest.raises(DataError, match=words): load_comparison('a', 'b', 'tiny', folder=tmp_path)

def test_noise_and_glass_are_survived():
    t = np.zeros((64,64), int)
    t[10:20,10:20] = 1
    for im in (noise(64, 64), np.full((64,64,3), 255, np.uint8)):
        res = compare_nuclei([im], [t], .25)
        assert res.scores[score_columns].notna().to_numpy().all() and isinstance(res, Comparison)

# ---- what users hand over

def one_nucleus(size=40):
    image,truth = np.full((size,size,3), 200, np.uint8),np.zeros((size,size), int)
    image[10:20,10:20],truth[10:20,10:20] = 40,1
    return image,truth

def test_a_method_cannot_spoil_the_image_of_the_next():
    image,truth = one_nucleus()
    def draws(im):
        im[:] = 0
        return truth
    res = compare_nuclei([image], [truth], .25, dict(a=draws, b=lambda im: (im.mean(-1)<100).astype(int)))
    assert res.scores.dice.tolist()==[1,1] and image.max()==200

def test_ids_of_any_size_count():
    image,truth = one_nucleus()
    assert compare_nuclei([image], [truth], np.float32(.25), dict(a=lambda im: truth*2**40), names=[7]).scores.dice.tolist()==[1]

@pytest.mark.parametrize('change,says', [(dict(methods=len), 'dict of names and functions'), (dict(images=['x.png']), 'is'), (dict(mpp='0.25'), 'the mpp of'), (dict(names=['a','b']), '2 names')])
def test_bad_words_are_told(change, says):
    image,truth = one_nucleus()
    with pytest.raises(DataError, match=says): compare_nuclei(**dict(images=[image], truths=[truth], mpp=.25, methods=dict(a=lambda im: truth)) | change)

def test_pictures_and_files_that_are_none(tmp_path):
    image,truth = one_nucleus()
    res = compare_nuclei([image], [truth], .25, dict(a=lambda im: truth))
    assert show_comparison(res, 'a').shape==(1,1)
    for rows in ([7], []):
        with pytest.raises(DataError, match='there are no images'): show_comparison(res, rows=rows)
    path = save_comparison(res, 'd', 's', folder=tmp_path)
    for rows in ([], [dict(a=1)]):
        path.write_text(json.dumps(read_json(path) | dict(scores=rows)))
        with pytest.raises(DataError, match='lacks'): load_comparison('d', 's', folder=tmp_path)
