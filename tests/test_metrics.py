"Properties of the metrics that hold for any masks, clusters and instance maps, and slow oracles for the scores of objects"
from itertools import combinations, permutations, product

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from histolab_nb.core import DataError
from histolab_nb.ledger import save_result, save_scores
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


# ---- objects: every score against the slowest possible way to compute it

ids = st.sampled_from([0,0,0,1,1,2,3,5,9])
map_pairs = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(lambda s: st.tuples(*[arrays(np.int32, s, elements=ids) for _ in range(2)]))
object_scores = dict(aji=aji, aji_plus=aji_plus, dice2=dice2, pq=lambda t,p: pq(t, p).pq, object_f1=object_f1, object_dice=object_dice)
distance_scores = dict(ahd=ahd, symmetric=lambda t,p: ahd(t, p, True), object_hausdorff=object_hausdorff)

def objects(m): return [m==i for i in np.unique(m) if i]
def iou_of(a, b): return (a&b).sum()/(a|b).sum()
def pairings(n, m):
    "All one-to-one pairings of some of `n` with some of `m`"
    for k in range(min(n, m)+1):
        for a in combinations(range(n), k):
            for b in permutations(range(m), k): yield list(zip(a, b))

def far(a, b):
    "Directed Hausdorff distance over all pairs of pixels"
    a,b = np.argwhere(a),np.argwhere(b)
    return np.sqrt(((a[:,None]-b[None])**2).sum(-1)).min(1).max()
def haus(a, b): return max(far(a, b), far(b, a))

def by_masks(f):
    "An oracle for maps; empty maps as all scores have it"
    def g(t, p):
        G,P = objects(t),objects(p)
        return 1. if not (G or P) else 0. if not (G and P) else f(G, P)
    return g

@by_masks
def slow_aji(G, P):
    inter,union,used = 0,0,set()
    for g in G:
        touching = [j for j,q in enumerate(P) if (g&q).any()]
        if not touching:
            union += g.sum()
            continue
        j = max(touching, key=lambda j: (iou_of(g, P[j]), -j))
        inter,union,used = inter+(g&P[j]).sum(),union+(g|P[j]).sum(),used|{j}
    return inter/(union+sum(q.sum() for j,q in enumerate(P) if j not in used))

def slow_aji_plus(t, p):
    "All values that an optimal pairing can give"
    G,P = objects(t),objects(p)
    if not (G and P): return {1. if not (G or P) else 0.}
    best,res = -1,set()
    for pairs_ in pairings(len(G), len(P)):
        pairs_ = [(i,j) for i,j in pairs_ if (G[i]&P[j]).any()]
        s = round(sum(iou_of(G[i], P[j]) for i,j in pairs_), 9)
        inter = sum((G[i]&P[j]).sum() for i,j in pairs_)
        if s>best: best,res = s,set()
        if s==best: res.add(inter/(sum(g.sum() for g in G)+sum(q.sum() for q in P)-inter))
    return res

@by_masks
def slow_dice2(G, P):
    touching = [(g,q) for g in G for q in P if (g&q).any()]
    return 2*sum((g&q).sum() for g,q in touching)/sum(g.sum()+q.sum() for g,q in touching) if touching else 0.

@by_masks
def slow_pq(G, P):
    ious = [iou_of(g, q) for g in G for q in P if iou_of(g, q)>.5]
    return sum(ious)/((len(G)+len(P))/2)

def partner(a, others):
    "Place of the object with most pixels in common, none if nothing touches"
    shared = [(a&b).sum() for b in others]
    return int(np.argmax(shared)) if max(shared) else None

@by_masks
def slow_object_f1(G, P):
    tp = sum((i:=partner(q, G)) is not None and (q&G[i]).sum()/G[i].sum()>.5 for q in P)
    fp,fn = len(P)-tp,len(G)-tp
    return 2*tp/(2*tp+fp+fn)

@by_masks
def slow_object_dice(G, P):
    def side(A, B):
        total = sum(a.sum() for a in A)
        return sum(a.sum()/total*dice(B[i], a) for a in A if (i:=partner(a, B)) is not None)
    return (side(G, P)+side(P, G))/2

def slow_object_hausdorff(t, p):
    G,P = objects(t),objects(p)
    if not (G and P): return np.inf if G or P else 0.
    def side(A, B):
        total = sum(a.sum() for a in A)
        return sum(a.sum()/total*(min(haus(a, b) for b in B) if (i:=partner(a, B)) is None else haus(a, B[i])) for a in A)
    return (side(G, P)+side(P, G))/2

def slow_ahd(t, p):
    res = []
    for g in objects(t):
        touching = [q&g for q in objects(p) if (q&g).any()]
        if touching: res.append(max(far(g, c) for c in touching))
    return np.mean(res) if res else np.nan

def slow_symmetric(t, p, miss):
    "All values that an optimal pairing can give"
    G,P = objects(t),objects(p)
    if not (G or P): return {0.}
    best,res = -1,set()
    for pairs_ in pairings(len(G), len(P)):
        pairs_ = [(i,j) for i,j in pairs_ if (G[i]&P[j]).any()]
        s = round(sum(iou_of(G[i], P[j]) for i,j in pairs_), 9)
        if s>best: best,res = s,set()
        if s==best: res.add((sum(min(miss, haus(G[i], P[j])) for i,j in pairs_)+miss*(len(G)+len(P)-2*len(pairs_)))/(len(G)+len(P)-len(pairs_)))
    return res

slow = dict(aji=slow_aji, dice2=slow_dice2, pq=slow_pq, object_f1=slow_object_f1, object_dice=slow_object_dice)
def one_of(v, values): return any(v==pytest.approx(o) for o in values)
def has_ties(t, p):
    "Has an object two candidates that are equally good?"
    o = overlaps(t, p)
    for group,score in ((o.t, o.iou), (o.t, o.inter), (o.p, o.inter), (o.p, o.iou)):
        if len(set(zip(group.tolist(), score.tolist())))<len(group): return True
    return False

@given(map_pairs)
def test_the_table_of_overlaps_is_what_counting_gives(tp):
    t,p = tp
    o = overlaps(t, p)
    want = {(i,j):int(((t==i)&(p==j)).sum()) for i in np.unique(t) for j in np.unique(p) if i and j and ((t==i)&(p==j)).any()}
    assert {(o.true_ids[a],o.pred_ids[b]):n for a,b,n in zip(o.t, o.p, o.inter)}==want
    assert dict(zip(o.true_ids, o.true_areas))=={i:(t==i).sum() for i in np.unique(t) if i}
    assert dict(zip(o.pred_ids, o.pred_areas))=={i:(p==i).sum() for i in np.unique(p) if i}

@pytest.mark.parametrize('name', slow)
@given(tp=map_pairs)
@settings(max_examples=150)
def test_scores_are_those_of_the_oracle(name, tp): assert object_scores[name](*tp)==pytest.approx(slow[name](*tp))

@given(map_pairs)
@settings(max_examples=100)
def test_aji_plus_is_the_best_of_all_pairings(tp): assert one_of(aji_plus(*tp), slow_aji_plus(*tp))

@given(map_pairs)
@settings(max_examples=100)
def test_distances_are_those_of_the_oracle(tp):
    t,p = tp
    assert ahd(t, p)==pytest.approx(slow_ahd(t, p), nan_ok=True)
    assert object_hausdorff(t, p)==pytest.approx(slow_object_hausdorff(t, p))
    assert one_of(ahd(t, p, True, miss=2.5), slow_symmetric(t, p, 2.5))

@given(map_pairs)
def test_hausdorff_of_masks(tp):
    a,b = (o>0 for o in tp)
    if a.any() and b.any(): assert hausdorff(a, b)==pytest.approx(haus(a, b)) and hausdorff(a, b, directed=True)==pytest.approx(far(a, b))
    else: assert hausdorff(a, b)==(np.inf if a.any() or b.any() else 0)

@given(map_pairs, st.sampled_from([.2,.5,.7]), st.booleans())
def test_pq_matches_as_many_as_can_be_matched(tp, threshold, strict):
    G,P = (objects(o) for o in tp)
    good = [[(iou_of(g, q)>threshold if strict else iou_of(g, q)>=threshold) for q in P] for g in G]
    most = max((sum(good[i][j] for i,j in k) for k in pairings(len(G), len(P))), default=0)
    q = pq(*tp, threshold=threshold, strict=strict)
    assert (q.tp,q.fp,q.fn)==(most,len(P)-most,len(G)-most)

@given(map_pairs, st.permutations([1,2,3,5,9]), st.permutations([1,2,3,5,9]), st.sampled_from([np.uint16, np.int64, np.uint32, np.uint64]))
def test_ids_mean_nothing(tp, new_t, new_p, dtype):
    def renamed(m, new): return np.array([0,new[0],new[1],new[2],0,new[3],0,0,0,new[4]])[m].astype(dtype)
    again = renamed(tp[0], new_t),renamed(tp[1], new_p)
    free_of_ties = not has_ties(*tp) and len(slow_aji_plus(*tp))==1
    for name,f in object_scores.items():
        if free_of_ties or name in ('dice2','pq'): assert f(*again)==pytest.approx(f(*tp)), name
    assert ahd(*again)==pytest.approx(ahd(*tp), nan_ok=True)
    if not has_ties(*tp): assert object_hausdorff(*again)==pytest.approx(object_hausdorff(*tp))

@given(map_pairs)
def test_ids_with_gaps_and_far_apart_change_nothing(tp):
    big = [np.array([0,40,7_000,2**31+5,0,2**40,0,0,0,2**62])[o] for o in tp]
    for name,f in (object_scores|distance_scores).items(): assert f(*big)==pytest.approx(f(*tp), nan_ok=True), name

@given(map_pairs)
def test_a_map_against_itself_and_against_nothing(tp):
    t,none = tp[0],np.zeros_like(tp[0])
    for name,f in object_scores.items():
        assert f(t, t)==1 and f(none, none)==1, name
        if t.any(): assert f(t, none)==f(none, t)==0, name
    assert ahd(t, t, True)==0 and object_hausdorff(t, t)==0
    if t.any():
        assert ahd(t, t)==0 and np.isnan(ahd(t, none))
        assert ahd(t, none, True, miss=3)==ahd(none, t, True, miss=3)==pytest.approx(3)
        assert object_hausdorff(t, none)==object_hausdorff(none, t)==np.inf

@given(map_pairs)
def test_what_is_symmetric_and_what_is_bounded(tp):
    t,p = tp
    for f in (dice2, lambda t,p: pq(t, p).pq, object_dice): assert f(t, p)==pytest.approx(f(p, t))
    assert object_hausdorff(t, p)==pytest.approx(object_hausdorff(p, t))
    assert all(0<=f(t, p)<=1 for f in object_scores.values())
    assert 0<=ahd(t, p, True, miss=2)<=2

@given(map_pairs, st.integers(1, 9))
def test_bands_change_nothing(tp, pixels):
    import histolab_nb.metrics as m
    want,was = overlaps(*tp),m.band_pixels
    try:
        m.band_pixels = pixels
        got = overlaps(*tp)
    finally: m.band_pixels = was
    assert all((getattr(got, k)==getattr(want, k)).all() for k in want.__dataclass_fields__)

@given(st.lists(map_pairs, min_size=1, max_size=4))
def test_joined_tables_are_maps_laid_side_by_side(images):
    joined = join(overlaps(*o) for o in images)
    h = max(t.shape[0] for t,_ in images)
    def beside(k): return np.hstack([np.pad(np.where(o[k]>0, o[k]+20*i, 0), [(0,h-o[k].shape[0]), (0,0)]) for i,o in enumerate(images)])
    assert instance_scores(joined)==pytest.approx(instance_scores(beside(0), beside(1)))

@given(map_pairs)
def test_all_scores_at_once_are_the_single_ones(tp):
    res = instance_scores(*tp, distances=True)
    for name,f in object_scores.items(): assert res[name]==f(*tp)
    assert res['dice']==pytest.approx(dice(tp[1]>0, tp[0]>0)) and res['iou']==pytest.approx(iou(tp[1]>0, tp[0]>0))
    assert res['object_hausdorff']==object_hausdorff(*tp) and res['ahd_symmetric']==ahd(*tp, symmetric=True)
    assert res['tp']+res['fn']==len(objects(tp[0])) and res['tp']+res['fp']==len(objects(tp[1]))

def test_single_pixels_and_objects_that_touch():
    t = np.arange(1, 17).reshape(4, 4)
    assert all(f(t, t[::-1])==1 for f in (aji, aji_plus, object_dice)) and ahd(t, t.T, True)==0
    merged = np.ones_like(t)
    assert pq(t, merged).pq==0 and aji(t, merged)==1/16 and dice(merged>0, t>0)==1

def test_removing_or_adding_what_is_wrong():
    t = np.zeros((30,30), int)
    t[2:8,2:8],t[12:18,2:8] = 1,2
    p = t*(t==1)
    worse = p.copy()
    worse[25,25] = 7
    assert ahd(t, worse, True)>ahd(t, p, True)>ahd(t, t, True)==0
    assert ahd(t, worse)==ahd(t, p)==0

@given(map_pairs)
def test_one_more_false_alarm_never_helps(tp):
    t,p = (np.pad(o, [(0,2), (0,0)]) for o in tp)
    more = p.copy()
    more[-1,0] = 77
    assert all(f(t, more)<=f(t, p)+1e-12 for f in object_scores.values())
    assert ahd(t, more, True, miss=2)>=ahd(t, p, True, miss=2)-1e-12

def test_a_long_chain_of_overlaps_needs_no_dense_matrix():
    n = 30_000
    t = np.repeat(np.arange(1, n+1), 10)[None]
    p = np.repeat(np.arange(1, n+2), 10)[None,3:10*n+3]
    o = overlaps(t, p)
    assert len(o.t)==2*n and pq(o).tp==n and aji_plus(o)==pytest.approx(7*n/(20*n-7*n))

def test_maps_are_cut_and_never_read_whole(tmp_path):
    m = np.lib.format.open_memmap(tmp_path/'m.npy', 'w+', np.int32, (50,40))
    m[10:20,10:20] = 3
    class Cut:
        "An array that can only be read in bands"
        shape,dtype = m.shape,m.dtype
        def __getitem__(self, i): return np.asarray(m[i])
    assert aji(Cut(), Cut())==aji(m, m)==1

def test_pannuke_skips_what_the_truth_lacks():
    t,p = np.zeros((2,9,9), int)
    t[:3,:3] = p[:3,:3] = 1
    p[5:,5:] = 2
    tc,pc = np.where(t, 1, 0),np.array([0,1,4])[p]
    assert mpq(by_class(t, tc), by_class(p, pc))==1 and mpq(by_class(t, tc), by_class(p, pc), 'zero')==.5
    table = pannuke_table([(t,tc)]*3+[(t*0,tc*0)], [(p,pc)]*2+[(t*0,tc*0)]+[(p,pc)], ['a','a','b','b'])
    assert table.mpq.tolist()[:3]==[1,1,0] and np.isnan(table.mpq[3])
    assert tissue_means(table).mpq.to_dict()=={'a':1, 'b':0, 'all tissues':.5}

def test_summary_keeps_groups_together_and_says_what_is_missing():
    import pandas as pd
    table = pd.DataFrame(dict(aji=[.1,.2,.9,np.nan], tp=[1,2,3,4]))
    res = summary_table(table)
    assert list(res.index)==['aji'] and res.images.aji==3 and res['mean'].aji==pytest.approx(.4)
    assert np.isnan(summary_table(table, ['x']*4).low.aji) and np.isnan(summary_table(table[:1]).low.aji)
    grouped = summary_table(table, ['x','x','y','y'])
    assert (grouped.low.aji,grouped.high.aji)==(pytest.approx(.15),pytest.approx(.9))

@given(clusterings())
def test_miou_of_classes_is_the_mean_of_their_iou(cl):
    clusters,labels,k,c = cl
    n = max(k, c)
    there = np.union1d(clusters, labels)
    want = np.mean([iou(clusters==i, labels==i) for i in there])
    assert miou(cluster_table(clusters, labels, n, n), names=range(n))==pytest.approx(want)
    assert iou(clusters, labels, 'macro', range(n))==pytest.approx(want)
    assert miou(cluster_table(clusters, labels, n, n))==miou(clusters, labels, match_clusters(clusters, labels, n, n), n) if k==n else True

@given(clusterings())
def test_micro_adds_counts_up(cl):
    clusters,labels,k,c = cl
    tp = sum(((clusters==i)&(labels==i)).sum() for i in range(1, 9))
    wrong = sum(((clusters==i)^(labels==i)).sum() for i in range(1, 9))
    assert iou(clusters, labels, 'micro')==pytest.approx(tp/(tp+wrong) if tp+wrong else 1)

square = np.ones((4,4), int)
@pytest.mark.parametrize('call', [lambda f: f(square*1., square), lambda f: f(square, -square), lambda f: f(np.ones((4,4,3), int), np.ones((4,4,3), int)),
    lambda f: f(square, square[:2]), lambda f: f(square[:0], square[:0]), lambda f: f(square>0, square>0),
    lambda f: f(square[0], square[0]), lambda f: f(square, None)])
@pytest.mark.parametrize('name', object_scores|distance_scores)
def test_what_is_no_instance_map_is_a_data_error(name, call):
    with pytest.raises(DataError): call((object_scores|distance_scores)[name])

@pytest.mark.parametrize('call', [lambda: instance_table([square], []), lambda: instance_table([], []), lambda: join([]), lambda: by_class(square, square*9),
    lambda: by_class(square, square[:2]), lambda: mpq([square], [square], absent='no'), lambda: mpq([square], [square]*2), lambda: iou([0,1], [0,1], 'mean'),
    lambda: miou([[1,2]], names=[0,1]), lambda: instance_scores(overlaps(square, square), distances=True), lambda: instance_table([square], [square], ['a','b']),
    lambda: hausdorff(square*2, square), lambda: iou([0,1], [0,1], 'macro', [-1])])
def test_bad_tables_are_data_errors(call):
    with pytest.raises(DataError): call()

# results of the ledger

part = dict(dataset='phantom', split='test', scale='tiny')

def put(folder, system, values, seed=42, **kw):
    table = pd.DataFrame(dict(aji=values), index=[f'image {i}' for i in range(len(values))])
    save_scores(table, 'glands', system, seed=seed, folder=folder, **part, **kw)

def test_seeds_are_averaged_image_by_image(tmp_path):
    put(tmp_path, 'net', [.1,.3,.8], 42)
    put(tmp_path, 'net', [.3,.5,.6], 1)
    put(tmp_path, 'otsu', [.4,.4,.4], 42)
    board = scores_table('glands', **part, metrics=('aji',), folder=tmp_path)
    assert list(board.index)==['net','otsu'] and list(board.seeds)==[2,1]
    assert board.aji['net']=='{:.3f} [{:.3f}, {:.3f}]'.format(*interval([.2,.4,.7]))
    gain = paired_gain('glands', 'net', 'otsu', **part, folder=tmp_path)
    assert gain==interval(np.array([.1,.3,.8])-.4)
    put(tmp_path, 'otsu', [.4,.4,.1], 1)
    assert paired_gain('glands', 'net', 'otsu', **part, folder=tmp_path).value==pytest.approx((-.2+0+.45)/3)

def test_only_images_of_both_are_compared(tmp_path):
    put(tmp_path, 'a', [.5,np.nan,.7,.9])
    put(tmp_path, 'b', [.4,.9,.5,np.nan])
    assert paired_gain('glands', 'a', 'b', **part, folder=tmp_path)==interval(np.array([.5,.7])-[.4,.5])

def test_runs_without_seed_and_without_images(tmp_path):
    for system in 'ab': put(tmp_path, system, [.5,.7] if system=='a' else [.4,.4], None)
    save_result('glands', 'whole', 'phantom', 'test', 'aji', .25, scale='tiny', folder=tmp_path)
    board = scores_table('glands', **part, metrics=('aji','pq'), folder=tmp_path)
    assert board.aji['whole']=='0.250' and list(board.seeds)==[1,1,1] and set(board.pq)=={'not run'}
    assert paired_gain('glands', 'a', 'b', **part, folder=tmp_path).value==pytest.approx(.2)

def test_distances_are_measured_only_where_asked_for(monkeypatch):
    from types import SimpleNamespace
    from histolab_nb import metrics
    sample = SimpleNamespace(name='one', image=np.zeros((8,8,3), np.uint8), instances=np.eye(8, dtype=np.int32))
    monkeypatch.setattr(metrics, 'ahd', lambda *args: 1/0)
    assert compare_methods({'same':lambda img: sample.instances}, [sample], ('aji',)).aji['same']==1
    with pytest.raises(ZeroDivisionError): compare_methods({'same':lambda img: sample.instances}, [sample])
