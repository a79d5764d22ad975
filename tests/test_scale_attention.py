"What no notebook can hold of the attention paper: seams at every place, killed runs, gradients, damaged files, odd images"
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from histolab_nb import ledger
from histolab_nb.core import DataError
from histolab_nb.metrics import scores_table
from histolab_nb.phantom import phantom_nuclei, phantom_samples, phantom_slide
from histolab_nb.slides import Slide
from histolab_nb.training import load_model, quiet, save_model
from histolab_nb import scale_attention
from histolab_nb.scale_attention import (AttentionRecipe, LabelledTiles, NucleusNet, ScaleAttention, ScaleTiles, SparseSigmoid, StainGuidedRecipe)
from histolab_nb.scale_attention import (attend, attention_auc, attention_dls, attention_done, attention_fit, attention_learner)
from histolab_nb.scale_attention import attention_map, attention_model, attention_run
from histolab_nb.scale_attention import (equivariance, fills, guided_map, guided_predict, nuclei_model, phantom_auc, prior_nuclei)
from histolab_nb.scale_attention import (receptive_field, sample_tiles, shrink, slide_tiles, smoothness, soft_labels, stain_guided_fit)
from histolab_nb.scale_attention import (taught_loss, variant, variants, views, warm_up)

tiny = AttentionRecipe.at('tiny', width=4, crop=32, batch_size=6, batches=2, epochs=2, tile=64)
guide = StainGuidedRecipe.at('tiny', width=4, crop=32, batch_size=4, batches=2, epochs=1)

@pytest.fixture(scope='module')
def samples(): return phantom_nuclei(2, 160, seed=5)

@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return ScaleAttention(tiny).eval()

# Tiles

def test_tiles_are_cut_once(tmp_path):
    slide = Slide(phantom_slide(tmp_path/'a.tif', 1024, 1024, 0.25, seed=1))
    first = slide_tiles([slide], tiny, tmp_path/'tiles')
    files = {p:p.stat().st_mtime_ns for p in (tmp_path/'tiles').iterdir()}
    assert len(files)==3 and all(len(v[0]) for v in first.values())
    next((tmp_path/'tiles').glob('a_40x_*.npy')).unlink()
    again = slide_tiles([slide], tiny, tmp_path/'tiles')
    assert all(np.array_equal(a, b) for m in first for a,b in zip(first[m], again[m]))
    assert [p.stat().st_mtime_ns==t for p,t in files.items()].count(True)==2

def test_broken_cutting_leaves_nothing(tmp_path, monkeypatch):
    slide = Slide(phantom_slide(tmp_path/'a.tif', 1024, 1024, 0.25, seed=1))
    def stop(*args): raise RuntimeError('power cut')
    monkeypatch.setattr(scale_attention, '_tile_array', stop)
    with pytest.raises(RuntimeError): slide_tiles([slide], tiny, tmp_path/'tiles')
    assert not list((tmp_path/'tiles').iterdir())

def test_a_20x_slide_gives_no_40x_tiles(tmp_path):
    slide = Slide(phantom_slide(tmp_path/'a.tif', 700, 700, 0.5, seed=1))
    with pytest.raises(DataError, match='cannot give tiles of 40x'): slide_tiles([slide], tiny, tmp_path/'tiles')

@settings(max_examples=20, deadline=None)
@given(bs=st.integers(1, 20), batch=st.integers(0, 5))
def test_every_batch_is_balanced(bs, batch):
    items = ScaleTiles({m:[np.zeros((2,40,40,3), np.uint8)] for m in (10,20,40)}, tiny, 200)
    seen = np.bincount([items[i][1] for i in range(batch*bs, (batch+1)*bs)], minlength=3)
    assert np.ptp(seen)<=1

def test_crops_come_from_every_tile_and_stay_inside():
    arrays = [np.full((2,40,50,3), v, np.uint8) for v in (1,2)]
    items = ScaleTiles({10:arrays}, replace(tiny, turn=False), 100)
    assert {int(items[i][0].max()) for i in range(60)}=={1,2}
    assert all(items[i][0].shape==(3,32,32) for i in range(10))

def test_magnification_without_tiles():
    with pytest.raises(DataError, match='no tiles'): ScaleTiles({10:[], 20:[np.zeros((1,40,40,3), np.uint8)]}, tiny, 10)

def test_image_too_small_for_a_crop(samples):
    with pytest.raises(DataError, match='too small'): sample_tiles(samples, replace(tiny, crop=64))

# Model

@pytest.mark.parametrize('dilations', [(1,), (1,2,3), (1,2,3,5,10,20)])
def test_receptive_field_by_arithmetic(dilations):
    net = scale_attention.AttentionNet(2, dilations)
    assert receptive_field(net)==1+2*(1+2*sum(dilations))

def test_no_gradient_through_the_threshold():
    a = torch.randn(2, 1, 10, 10, requires_grad=True)
    gate = SparseSigmoid(80)
    gate(a).sum().backward()
    A = torch.sigmoid(20*(a.detach()-gate.tau))
    assert torch.allclose(a.grad, 20*A*(1-A), atol=1e-5)

@settings(max_examples=25, deadline=None)
@given(eta=st.integers(1, 99), side=st.integers(4, 20))
def test_share_that_gets_through(eta, side):
    a = torch.randperm(side*side).float().view(1,1,side,side)
    n = (SparseSigmoid(eta, 1e4)(a)>0.5).sum().item()
    assert n==int((100-eta)*side*side/100)

def test_evaluation_uses_the_running_threshold():
    gate = SparseSigmoid()
    gate(torch.arange(100.).view(1,1,10,10))
    tau = gate.tau.clone()
    gate.eval()(torch.arange(100.).view(1,1,10,10)+50)
    assert gate.tau==tau

@pytest.mark.parametrize('fill', fills)
def test_attended_image_lies_in_range(fill):
    x,A = torch.rand(2,3,8,8),torch.rand(2,1,8,8)
    J = attend(x, A, fill)
    assert J.min()>=0 and J.max()<=1
    assert torch.allclose(attend(x, torch.zeros_like(A), fill)[0,:,0,0], torch.tensor(fills[fill]).float())

def test_unknown_words():
    with pytest.raises(DataError, match='no fill'): attend(torch.rand(1,3,4,4), torch.rand(1,1,4,4), 'pink')
    with pytest.raises(DataError, match='no network'): ScaleAttention(replace(tiny, scale_net='resnet35'))
    with pytest.raises(DataError, match='percentile'): SparseSigmoid(100)

@settings(max_examples=12, deadline=None)
@given(h=st.integers(1, 90), w=st.integers(1, 90), side=st.integers(20, 70))
def test_no_seams(h, w, side):
    torch.manual_seed(1)
    net,r = ScaleAttention(replace(tiny, dilations=(1,2))).eval(),replace(tiny, dilations=(1,2), normalise=False, views=1)
    img = np.random.default_rng(0).integers(0, 255, (h,w,3), dtype=np.uint8)
    assert np.allclose(attention_map(net, img, r, side), attention_map(net, img, r), atol=2e-3)

def test_seven_views_turn_with_the_image(model, samples):
    img,r = samples[0].image,replace(tiny, views=7, normalise=False)
    whole = attention_map(model, img, r)
    assert np.abs(attention_map(model, img[:,::-1], r)[:,::-1]-whole).mean()<0.1 # not nought: the six transforms and the identity are no group
    assert abs(attention_map(model, img[:,::-1], r).mean()-whole.mean())<0.02

# Losses

def test_one_side_or_both_learn(model, samples):
    x = torch.rand(2,3,32,32)
    for symmetric in (False, True):
        net = ScaleAttention(tiny)
        A = net.attention(x).detach()
        loss = equivariance(net, x, A, views[0], symmetric)
        assert loss.requires_grad==symmetric

def test_smoothness_by_a_loop():
    A = torch.rand(2,1,5,7)
    a = A[:,0].numpy()
    down = np.mean([abs(a[b,i+1,j]-a[b,i,j]) for b in range(2) for i in range(4) for j in range(7)])
    across = np.mean([abs(a[b,i,j+1]-a[b,i,j]) for b in range(2) for i in range(5) for j in range(6)])
    assert smoothness(A).item()==pytest.approx(down+across, rel=1e-5)

# Training

@pytest.mark.parametrize('name', variants)
def test_every_variant_trains(name, samples, tmp_path):
    r = replace(variant(name, tiny), epochs=1)
    learn = attention_learner(attention_dls(sample_tiles(samples, r), r), r, samples, tmp_path)
    with quiet(learn): learn.fit(1)
    parts = learn.attention_losses.parts
    assert len(parts['smooth'])==(0 if name=='-smooth' else r.batches) and len(parts['equiv'])==(0 if name=='-equiv' else r.batches)
    assert np.isfinite(learn.recorder.values[-1]).all()

class Kill(scale_attention.Callback):
    "Ctrl-C before the second epoch"
    order = 1000
    def before_epoch(self):
        if self.epoch==1: raise KeyboardInterrupt

def until_killed(learn, fit):
    "Train, as far as it gets"
    try:
        with quiet(learn): fit()
    except KeyboardInterrupt: pass
    return learn

def test_killed_training_goes_on(samples, tmp_path):
    def fit(folder, stop=None):
        learn = attention_learner(attention_dls(sample_tiles(samples, tiny), tiny), tiny, samples, folder)
        if stop: learn.add_cb(stop)
        return until_killed(learn, lambda: learn.fit(tiny.epochs))
    whole = fit(tmp_path/'a')
    fit(tmp_path/'b', Kill())
    again = fit(tmp_path/'b')
    for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): assert torch.allclose(a.float(), b.float(), atol=1e-5)

def test_warm_up_uses_as_many_batches_as_it_says(samples):
    r = replace(tiny, warm=5)
    learn = attention_learner(attention_dls(sample_tiles(samples, r), r), r)
    steps = []
    learn.model.look.register_forward_hook(lambda *a: steps.append(learn.model.look.training and torch.is_grad_enabled()))
    before = [p.clone() for p in learn.model.scale.parameters()]
    warm_up(learn, r)
    assert steps==[True]*5+[False]*5
    assert learn.model.gate.seen==5 and any((a!=b).any() for a,b in zip(before, learn.model.scale.parameters()))

def test_training_that_goes_on_is_not_warmed_up_again(samples, tmp_path, monkeypatch):
    r,warmed = replace(tiny, warm=2),[]
    warm = lambda learn, recipe: warmed.append(1) or warm_up(learn, recipe)
    monkeypatch.setattr(scale_attention, 'warm_up', warm)
    def fit(folder, *cbs):
        learn = attention_learner(attention_dls(sample_tiles(samples, r), r), r, samples, folder, cbs)
        return until_killed(learn, lambda: attention_fit(learn, r))
    whole,_,again = fit(tmp_path/'a'),fit(tmp_path/'b', Kill()),fit(tmp_path/'b')
    assert len(warmed)==2
    for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): assert torch.allclose(a.float(), b.float(), atol=1e-5)
    fit(tmp_path/'a')
    assert len(warmed)==2

def test_saved_model_is_the_same(model, samples, tmp_path):
    save_model(model, tmp_path/'m.safetensors', tiny)
    again,r = load_model(tmp_path/'m.safetensors', attention_model, AttentionRecipe)
    assert r==tiny and np.allclose(attention_map(again, samples[0].image, r), attention_map(model, samples[0].image, tiny))

# Measuring

def test_auc_by_a_loop():
    rng = np.random.default_rng(0)
    a,t = rng.integers(0, 5, (6,6)),rng.random((6,6))<0.4
    pairs = [(x>y)+(x==y)/2 for x in a[t] for y in a[~t]]
    assert attention_auc(a, t)==pytest.approx(np.mean(pairs))

def test_a_run_goes_into_the_ledger(samples, tmp_path, monkeypatch):
    monkeypatch.setenv('HISTOLAB_RESULTS', str(tmp_path/'results'))
    monkeypatch.setattr(scale_attention, 'small_grid', dict(peak=(5,7)))
    attention_run('-WSI', variant('-WSI', tiny), samples, {('MoNuSeg','val'):samples}, tmp_path/'run', 'tiny')
    df = ledger.results('scale_attention')
    assert set(df.metric)>={'aji','adc','pq','ahd_symmetric'} and set(df.split)=={'val'} and set(df.scale)=={'tiny'}
    done = lambda *sets, scale='tiny': attention_done('-WSI', sets, scale)
    assert done(('MoNuSeg','val')) and not done(('MoNuSeg','val'), scale='small') and not done(('MoNuSeg','val'), ('CoNSeP','train'))
    assert list(scores_table('scale_attention', 'MoNuSeg', 'val', ('aji','adc'), 'tiny').index)==['-WSI']

def test_auc_of_another_recipe_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv('HISTOLAB_RESULTS', str(tmp_path))
    monkeypatch.setattr(scale_attention, 'attention_learner', lambda *args: 1/0)
    r = variant('warm', AttentionRecipe.at('tiny', seed=3))
    keep = lambda recipe, value: ledger.save_result('scale_attention', 'warm', 'phantom', 'test', 'auc', value, scale='tiny', seed=3, recipe=recipe.to_dict())
    keep(replace(r, epochs=1), .4)
    with pytest.raises(ZeroDivisionError): phantom_auc('warm', 3, {40:[np.zeros((1,99,99,3), np.uint8)]}, [])
    keep(r, .7)
    assert phantom_auc('warm', 3, None, [])==.7

def test_claims_of_the_table():
    df = ledger.claims('scale_attention')
    of = lambda system, data, metric: df[(df.system==system)&(df.dataset==data)&(df.metric==metric)].value.item()
    assert (of('proposed', 'MoNuSeg', 'aji'), of('-WSI', 'MoNuSeg', 'aji'), of('proposed', 'TNBC', 'adc'))==(0.5354, 0.3025, 0.5139)
    assert len(df)==48

# The extension

def test_labels_between_touching_objects():
    img = np.zeros((60,90))
    yy,xx = np.mgrid[:60,:90]
    two = (np.hypot(yy-30, xx-32)<15)|(np.hypot(yy-30, xx-57)<15)
    lab = soft_labels(np.where(two, 1., -1.), 0.3, guide)
    assert (lab[30,[32,57]]==1).all() and (lab[30,40:50]==0).any() and (lab[~two]==0).all()

@pytest.mark.parametrize('image', [np.full((40,40,3), 255, np.uint8), np.zeros((40,40,3), np.uint8), np.full((1,1,3), 90, np.uint8)], ids=['white','black','one pixel'])
def test_odd_images_have_no_nuclei(image):
    assert prior_nuclei(image).max()==0
    assert nuclei_model()(image).max()==0

def test_labels_stay_with_their_pixels():
    img = np.random.default_rng(0).integers(0, 255, (40,40,3), dtype=np.uint8)
    t,l = LabelledTiles([img], [img[...,0]], guide, 4)[1]
    assert torch.equal(t[0], l)

def test_rounds_that_are_done_are_kept(samples, tmp_path):
    first = stain_guided_fit(samples, guide, folder=tmp_path)
    (tmp_path/'round_1.safetensors').unlink()
    kept = (tmp_path/'round_0.safetensors').stat().st_mtime_ns
    again = stain_guided_fit(samples, guide, folder=tmp_path)
    assert (tmp_path/'round_0.safetensors').stat().st_mtime_ns==kept
    for a,b in zip(first[1].parameters(), again[1].parameters()): assert torch.allclose(a, b, atol=1e-4)

def test_rounds_of_another_recipe_are_refused(samples, tmp_path):
    stain_guided_fit(samples, replace(guide, rounds=1), folder=tmp_path)
    with pytest.raises(DataError, match='another recipe'): stain_guided_fit(samples, replace(guide, rounds=1, holes=9), folder=tmp_path)

def test_images_of_lower_magnification_are_refused(samples):
    with pytest.raises(DataError, match='no image of 40x'): stain_guided_fit([replace(s, mpp=0.5) for s in samples], guide)

@pytest.mark.parametrize('shape', [(33,47), (7,5), (1,1)])
def test_map_of_any_size(shape):
    net = NucleusNet(guide)
    img = np.random.default_rng(0).integers(0, 255, (*shape,3), dtype=np.uint8)
    assert guided_map(net, img, guide).shape==shape and guided_predict(net, img, guide).instances.shape==shape

def test_shipped_model_at_another_resolution():
    t = phantom_samples(1, 320, 0.25, seed=3)[0]
    find = nuclei_model()
    fine,coarse = find(t.image).max(),find(shrink(t.image, 2), mpp=0.5).max()
    assert 0.6<coarse/fine<1.5

def test_wrong_weights(model, tmp_path):
    save_model(model, tmp_path/'m.safetensors', tiny)
    for bad in (tmp_path/'m.safetensors', tmp_path/'none.safetensors'):
        with pytest.raises(DataError): nuclei_model(bad)
    (tmp_path/'text.safetensors').write_text('not weights')
    with pytest.raises(DataError): nuclei_model(tmp_path/'text.safetensors')

def test_shipped_weights_are_small(): assert (Path(scale_attention.__file__).parent/'data'/'nuclei.safetensors').stat().st_size<2e6

def test_shared_functions_come_along():
    "What moved to lower floors is still there for `from histolab_nb.scale_attention import *`"
    names = {'phantom_nuclei','middle','chance_nuclei','all_nucleus','nuclei_baselines','compare_methods','method_scores','save_scores','is_done','scores_table','paired_gain'}
    assert names<=set(scale_attention.__all__)

def test_nothing_taught_costs_nothing():
    a = torch.randn(1,1,4,4, requires_grad=True)
    taught_loss(a, torch.full((1,4,4), 255)).backward()
    assert (a.grad==0).all()
