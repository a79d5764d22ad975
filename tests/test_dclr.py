"What the notebook of DCLR cannot hold: bad input, and a training that is killed"
import os, signal, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from histolab_nb.core import DataError
from histolab_nb.dclr import DclrRecipe, LinearProbe, NTXent, PatchClusters, Patches, cut_patches, dclr_dls, dclr_model, dclr_predict
from histolab_nb.slides import Slide, write_slide
from histolab_nb.training import load_model, save_model

recipe = DclrRecipe.at('tiny', width=4, depth=2)

def slide_of(image, path):
    write_slide(image, path, 0.5)
    return Slide(path)

def tissue(h, w): return np.random.default_rng(0).integers(90, 200, (h,w,3), dtype=np.uint8)

def test_white_slide(tmp_path):
    with pytest.raises(DataError, match='tissue'): cut_patches(slide_of(np.full((512,512,3), 250, np.uint8), tmp_path/'white.tif'), recipe, progress=False)

def test_slide_smaller_than_a_patch(tmp_path):
    with pytest.raises(DataError, match='covers'): cut_patches(slide_of(tissue(64, 64), tmp_path/'small.tif'), recipe, progress=False)

def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    slide = slide_of(tissue(512, 512), tmp_path/'slide.tif')
    with pytest.raises(DataError, match='Choose another folder'):
        dclr_predict(dclr_model(recipe), slide, DclrRecipe.at('tiny', width=4, depth=2, background='none'), folder=tmp_path/'file'/'map', progress=False)

@pytest.mark.parametrize('spoil', ['cut', 'pickle', 'other network'])
def test_weights(tmp_path, spoil):
    path = tmp_path/'w.safetensors'
    save_model(dclr_model(recipe), path, recipe)
    make = dclr_model
    if spoil=='cut': path.write_bytes(path.read_bytes()[:-100])
    if spoil=='pickle': torch.save(dclr_model(recipe).state_dict(), path)
    if spoil=='other network': make = lambda r: dclr_model(DclrRecipe.at('tiny', width=8, depth=2))
    with pytest.raises(DataError) as e: load_model(path, make, DclrRecipe)
    assert 'w.safetensors' in str(e.value)

def test_too_few_patches():
    few = Patches(np.zeros((3,32,32,3), np.uint8), pd.DataFrame(dict(label=[0]*3)))
    with pytest.raises(DataError, match='too few'): dclr_dls(few, recipe)

def test_ntxent_is_the_double_loop():
    z,tau = torch.randn(10, 6),0.3
    n = torch.nn.functional.normalize(z, dim=1)
    terms = [-torch.log((n[i]@n[(i+5)%10]/tau).exp()/sum((n[i]@n[k]/tau).exp() for k in range(10) if k!=i)) for i in range(10)]
    torch.testing.assert_close(NTXent(tau)(z), torch.stack(terms).mean())

def test_heads_give_probabilities():
    h = np.random.default_rng(0).normal(size=(60,5)).astype(np.float32)
    table = pd.DataFrame(dict(label=(h[:,0]>0).astype(int)))
    for head in (PatchClusters(5, 4).fit(h, table), LinearProbe(5).fit(h, table)):
        p = head(torch.from_numpy(h))
        assert p.shape==(60,2) and torch.allclose(p.sum(1), torch.ones(60)) and (p>=0).all()

script = '''
import sys
import numpy as np, pandas as pd, torch
from histolab_nb.dclr import *
torch.set_num_threads(1)
r = DclrRecipe.at('tiny', width=4, depth=2, epochs=6, input=32, view=16, batch_size=16)
images = np.random.default_rng(0).integers(0, 255, (160,32,32,3), dtype=np.uint8)
patches = Patches(images, pd.DataFrame(dict(label=[0]*160)))
learn = dclr_learner(dclr_dls(patches, r, 'cpu'), r, folder=sys.argv[1])
class Slow(Callback):
    def after_batch(self):
        if self.training and len(sys.argv)>2:
            print('batch', self.epoch, flush=True)
            import time
            time.sleep(0.05)
learn.add_cb(Slow())
with learn.no_bar(), learn.no_logging(): dclr_fit(learn, r)
print('weights', float(sum(p.double().sum() for p in learn.model.parameters())))
'''

def weights(folder): return subprocess.run([sys.executable, '-c', script, folder], capture_output=True, text=True, check=True).stdout.split('weights')[-1]

def test_killed_training_goes_on(tmp_path):
    straight = weights(tmp_path/'a')
    p = subprocess.Popen([sys.executable, '-c', script, tmp_path/'b', 'slow'], stdout=subprocess.PIPE, text=True)
    for line in p.stdout:
        if line.startswith('batch 3'): break
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert p.returncode==-signal.SIGKILL
    assert weights(tmp_path/'b')==straight
