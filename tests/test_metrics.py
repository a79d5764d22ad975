"Properties of the metrics that hold for any masks and any clusters"
from itertools import permutations, product

import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from histolab_nb.core import DataError
from histolab_nb.metrics import *

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
pairs = shapes.flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s)))
settings.register_profile('slow_machine', deadline=None)
settings.load_profile('slow_machine')

@st.composite
def clusterings(draw, max_clusters=4, max_classes=4):
    "Clusters, labels, number of clusters, number of classes"
    n,k,c = draw(st.integers(1, 40)),draw(st.integers(1, max_clusters)),draw(st.integers(1, max_classes))
    return draw(arrays(np.int64, n, elements=st.integers(0, k-1))),draw(arrays(np.int64, n, elements=st.integers(0, c-1))),k,c

def agreement(names, clusters, labels): return int((np.asarray(names)[clusters]==labels).sum())

@given(pairs)
def test_dice_and_iou_are_symmetric_and_bounded(pt):
    p,t = pt
    assert dice(p, t)==dice(t, p) and iou(p, t)==iou(t, p)
    assert 0<=iou(p, t)<=dice(p, t)<=1
    assert dice(p, t)==pytest.approx(2*iou(p, t)/(1+iou(p, t)))

@given(pairs)
def test_a_mask_against_itself_and_its_opposite(pt):
    p = pt[0]
    assert set(scores(p, p).values())=={1.}
    assert dice(p, ~p)==0 and accuracy(p, ~p)==0

@given(pairs)
def test_scores_do_not_depend_on_the_order_of_pixels_or_on_the_type(pt):
    p,t = pt
    want = scores(p, t)
    assert scores(p[::-1], t[::-1])==want and scores(p.T, t.T)==want and scores(p.ravel(), t.ravel())==want
    assert scores(p.astype('uint8'), t.astype(float))==want

@given(pairs)
def test_background_changes_neither_dice_nor_iou(pt):
    p,t = (np.pad(o, 3) for o in pt)
    assert (dice(p, t),iou(p, t))==(dice(*pt),iou(*pt))

@given(pairs)
def test_counts_are_the_confusion_of_two_classes(pt):
    c = counts(*pt)
    assert confusion(*pt, n=2).tolist()==[[c['tn'],c['fp']], [c['fn'],c['tp']]]
    assert sum(c.values())==pt[0].size

@given(st.lists(pairs, min_size=1, max_size=5))
def test_pooled_is_the_score_of_all_images_joined(images):
    joined = [np.concatenate([o[i].ravel() for o in images]) for i in (0,1)]
    assert pooled(image_scores(*zip(*images)))==pytest.approx(scores(*joined))

@given(clusterings())
def test_confusion_rows_and_columns_add_up(cl):
    pred,true,k,c = cl
    n = max(k, c)
    cm = confusion(pred, true, n)
    assert (cm.sum(1)==np.bincount(true, minlength=n)).all() and (cm.sum(0)==np.bincount(pred, minlength=n)).all()
    assert np.trace(cm)/len(true)==pytest.approx(accuracy(pred, true))

@given(clusterings())
def test_no_one_to_one_naming_beats_the_match(cl):
    clusters,labels,k,c = cl
    found = agreement(match_clusters(clusters, labels, c, k, many=False), clusters, labels)
    assert found==max(agreement(p, clusters, labels) for p in permutations(range(max(k, c)), k))

@given(clusterings())
def test_no_naming_at_all_beats_many_to_one(cl):
    clusters,labels,k,c = cl
    found = agreement(match_clusters(clusters, labels, c, k, many=True), clusters, labels)
    assert found==max(agreement(p, clusters, labels) for p in product(range(c), repeat=k))

@given(clusterings(), st.randoms())
def test_the_match_does_not_depend_on_cluster_numbers(cl, rnd):
    clusters,labels,k,c = cl
    new = list(range(k))
    rnd.shuffle(new)
    renamed = np.array(new)[clusters]
    assert agreement(match_clusters(clusters, labels, c, k), clusters, labels)==agreement(match_clusters(renamed, labels, c, k), renamed, labels)

@given(clusterings())
def test_tables_of_images_add_up(cl):
    clusters,labels,k,c = cl
    whole = cluster_table(clusters, labels, c, k)
    cut = len(labels)//2
    if cut: assert (cluster_table(clusters[:cut], labels[:cut], c, k)+cluster_table(clusters[cut:], labels[cut:], c, k)==whole).all()
    assert whole.sum()==len(labels)

@given(arrays(float, st.integers(2, 20), elements=st.floats(0, 1)))
def test_interval_surrounds_a_mean(values):
    ci = interval(values, n=50)
    assert values.min()-1e-9<=ci.low<=ci.high<=values.max()+1e-9
    assert ci==interval(values, n=50)

@pytest.mark.parametrize('call', [lambda: dice([0.3,0.7], [0,1]), lambda: dice([0,255], [0,1]), lambda: dice([], []), lambda: dice([[1]], [1]),
    lambda: dice([float('nan'),1], [0,1]), lambda: confusion([-1,0], [0,0]), lambda: confusion([0,2], [0,1], n=2), lambda: match_clusters([0,-1], [0,1]),
    lambda: match_clusters([0,1], [0,1,1]), lambda: image_scores([], []), lambda: image_scores(iter([[1],[1]]), [[1]]), lambda: interval([])])
def test_bad_input_is_a_data_error(call):
    with pytest.raises(DataError): call()
