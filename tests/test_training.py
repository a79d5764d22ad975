"What no notebook can hold: a training killed for good and resumed in another process, and the corners of `Checkpoint`"
import os, signal, subprocess, sys
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.metrics import accuracy
from fastai.optimizer import ranger
from torch import nn
from torch.utils.data import DataLoader
from histolab_nb.core import DataError, set_seed
from histolab_nb.training import Checkpoint, SaveBest, StopOnNaN, load_model, quiet, read_tensors, save_model

class Noisy(torch.utils.data.Dataset):
    "Points with a label, seen through noise from NumPy's and torch's own generators"
    def __init__(self, n=64): self.x,self.y = torch.randn(n, 6, generator=torch.Generator().manual_seed(0)),torch.arange(n)%2
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i]+self.y[i]+.1*torch.randn(6)+float(.1*np.random.randn()),self.y[i]

def net(): return nn.Sequential(nn.Linear(6,8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8,2))

def learner(*cbs, seed=0, workers=0, plain=False, **kwargs):
    set_seed(seed)
    if plain: dls = DataLoaders(DataLoader(Noisy(), 8, shuffle=True, num_workers=workers), DataLoader(Noisy(16), 8), device='cpu')
    else: dls = DataLoaders.from_dsets(Noisy(), Noisy(16), bs=8, num_workers=workers, device='cpu')
    return Learner(dls, net(), nn.CrossEntropyLoss(), metrics=accuracy, cbs=list(cbs), lr=.01, **kwargs)

class Killed(Exception): pass

class KillAt(Callback):
    order = 55
    def __init__(self, epoch, batch): self.at = epoch,batch
    def after_batch(self):
        if self.training and (self.epoch,self.iter)==self.at: raise Killed('killed')

def train(*cbs, n=3, fit='fit_one_cycle', **kwargs):
    learn = learner(*cbs, **kwargs)
    with quiet(learn): getattr(learn, fit)(n)
    return learn

def same(a, b):
    for k,v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k
    assert a.recorder.losses==b.recorder.losses and a.recorder.values==b.recorder.values and a.recorder.lrs==b.recorder.lrs

@pytest.mark.parametrize('kwargs', [dict(), dict(fit='fit'), dict(fit='fine_tune'), dict(fit='fit_flat_cos'), dict(plain=True), dict(workers=1), dict(plain=True, workers=1)], ids=str)
@pytest.mark.parametrize('at', [(0,2), (1,5), (2,7)])
def test_resume_is_exact(tmp_path, kwargs, at):
    straight = train(**kwargs)
    with pytest.raises(Killed): train(Checkpoint(tmp_path, batches=2), KillAt(*at), **kwargs)
    same(straight, train(Checkpoint(tmp_path, batches=2), seed=5, **kwargs))

def test_killed_again_and_again(tmp_path):
    straight = train()
    for seed,at in enumerate([(0,5),(1,3),(2,1)]):
        with pytest.raises(Killed): train(Checkpoint(tmp_path, batches=3), KillAt(*at), seed=seed)
    same(straight, train(Checkpoint(tmp_path, batches=1), seed=8))

def test_same_learner_goes_on_after_an_error(tmp_path):
    straight,learn = train(),learner(Checkpoint(tmp_path, batches=2))
    with quiet(learn):
        with pytest.raises(Killed): learn.fit_one_cycle(3, cbs=KillAt(1, 5))
        learn.fit_one_cycle(3)
    same(straight, learn)

def test_accumulated_gradients_and_training_metrics(tmp_path):
    def run(*cbs, **kwargs):
        learn = learner(GradientAccumulation(24), *cbs, **kwargs)
        learn.recorder.train_metrics = True
        with quiet(learn): learn.fit(3)
        return learn
    straight = run()
    with pytest.raises(Killed): run(Checkpoint(tmp_path, batches=1), KillAt(1, 4))
    same(straight, run(Checkpoint(tmp_path, batches=1), seed=5))

def test_two_trainings_of_one_learner(tmp_path):
    def run(*cbs, **kwargs):
        learn = learner(*cbs, **kwargs)
        with quiet(learn):
            learn.fit(2)
            learn.fit_one_cycle(2)
        return learn
    straight = run()
    same(straight, run(Checkpoint(tmp_path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['fit-0.safetensors', 'fit-1.safetensors']
    same(straight, run(Checkpoint(tmp_path), seed=5))

def test_validation_and_lr_find_are_no_trainings(tmp_path):
    learn = learner(Checkpoint(tmp_path/'run'))
    with quiet(learn):
        learn.validate()
        learn.get_preds()
        learn.lr_find(num_it=6, show_plot=False)
        assert list((tmp_path/'run').iterdir()) == []
        learn.fit(1)
        weights = {k:v.clone() for k,v in learn.model.state_dict().items()}
        learn.validate()
    for k,v in weights.items(): assert torch.equal(v, learn.model.state_dict()[k])

def test_best_weights_and_lookahead(tmp_path):
    "Another wrapper of an optimiser, and callbacks that load at the end"
    def run(*cbs, **kwargs):
        name = 'b' if cbs else 'a'
        learn = learner(SaveBest(tmp_path/f'{name}.safetensors', 'accuracy'), *cbs, opt_func=ranger, **kwargs)
        with quiet(learn): learn.fit_one_cycle(3)
        return learn
    straight = run()
    with pytest.raises(Killed): run(Checkpoint(tmp_path/'run', batches=3), KillAt(1, 7))
    same(straight, run(Checkpoint(tmp_path/'run', batches=3), seed=5))

def test_with_progress_bars(tmp_path, capsys):
    def run(*cbs, seed=0):
        learn = learner(*cbs, seed=seed)
        learn.fit(3)
        return learn
    straight = run()
    with pytest.raises(Killed): run(Checkpoint(tmp_path, batches=3), KillAt(1, 4))
    capsys.readouterr()
    for said in 'going on in epoch 1, batch 3','this training is finished':
        same(straight, run(Checkpoint(tmp_path, batches=3), seed=5))
        out = capsys.readouterr().out
        assert said in out and all(f'{row[0]:.6f}' in out for row in straight.recorder.values)

def test_start_anew(tmp_path):
    train(Checkpoint(tmp_path))
    same(train(seed=3), train(Checkpoint(tmp_path, resume=False), seed=3))

def test_other_network_and_damage_are_refused(tmp_path):
    train(Checkpoint(tmp_path))
    learn = learner(Checkpoint(tmp_path))
    learn.model = nn.Sequential(nn.Linear(6,2), nn.BatchNorm1d(2))
    with quiet(learn), pytest.raises(DataError, match='is of another training: weights'): learn.fit_one_cycle(3)
    file = tmp_path/'fit-0.safetensors'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match='not a whole safetensors file'): train(Checkpoint(tmp_path))
    save_model(net(), file)
    with pytest.raises(DataError, match='this is not a checkpoint'): train(Checkpoint(tmp_path))

def test_leftovers_of_a_kill_are_swept(tmp_path):
    (tmp_path/'.fit-0.safetensors.123.part.safetensors').write_bytes(b'half')
    train(Checkpoint(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ['fit-0.safetensors']

def test_broken_weights_do_not_replace_good_ones(tmp_path):
    class Break(Callback):
        def before_train(self):
            if self.epoch==1: next(self.model.parameters()).data.fill_(float('nan'))
    with pytest.raises(DataError, match='the loss is nan in epoch 1, batch 0'): train(Checkpoint(tmp_path, batches=1), StopOnNaN(), Break())
    tensors = read_tensors(tmp_path/'fit-0.safetensors')[1]
    assert all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())

def test_late_look_for_nan(tmp_path):
    class Break(Callback):
        def before_batch(self):
            if self.training and self.iter==3: self.learn.xb = (self.xb[0]*float('inf'),)
    with pytest.raises(DataError, match='in epoch 0, batch 3'): train(StopOnNaN(every=100), Break())

def test_tied_weights(tmp_path):
    def tied():
        m = nn.Sequential(nn.Linear(4,4), nn.ReLU(), nn.Linear(4,4))
        m[2].weight = m[0].weight
        return m
    m = tied()
    save_model(m, tmp_path/'m.safetensors')
    x = torch.randn(3, 4)
    assert torch.equal(m(x), load_model(tmp_path/'m.safetensors', tied)[0](x))

SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_training import *
class Tick(Callback):
    order = 90
    def after_batch(self):
        if self.training: print('batch', self.epoch, self.iter, flush=True)
learn = learner(Tick(), *([] if sys.argv[1]=='-' else [Checkpoint(sys.argv[1], batches=1)]), seed=int(sys.argv[4]))
with quiet(learn): learn.fit_one_cycle(6)
save_model(learn.model, sys.argv[3])
"""

def start(folder, out, seed): return subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder), os.path.dirname(__file__), str(out), str(seed)],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_kill_9_and_resume(tmp_path):
    "Killed without warning, twice, a checkpoint being written at every batch: ends with the weights of a training left in peace"
    p = start('-', tmp_path/'straight.safetensors', 0)
    assert p.communicate()[1].count('Error')==0 and p.returncode==0
    for n,seed in (7,0),(17,1):
        p = start(tmp_path/'run', tmp_path/'resumed.safetensors', seed)
        for _ in range(n): assert p.stdout.readline()
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert p.returncode == -signal.SIGKILL and not (tmp_path/'resumed.safetensors').exists()
        read_tensors(tmp_path/'run'/'fit-0.safetensors')
    p = start(tmp_path/'run', tmp_path/'resumed.safetensors', 2)
    out,err = p.communicate()
    assert p.returncode==0, err
    assert 'going on in epoch' in out and out.count('batch') < 48
    a,b = (read_tensors(tmp_path/f'{o}.safetensors')[1] for o in ('straight', 'resumed'))
    for k in a: assert torch.equal(a[k], b[k]), k
