"What several test modules share: pictures, comparisons, a machine without a GPU"
import numpy as np, pytest, torch
from pathlib import Path
from scipy import ndimage as ndi
from scipy.spatial.distance import cdist

palette = np.uint8([[225,225,225],[60,200,90],[90,60,140]])

def noise(h, w, seed=0): return np.random.default_rng(seed).integers(0, 255, (h,w,3), dtype=np.uint8)

def coloured(h, w, seed=0, names=(0,1,2)):
    "An image uint8 (h,w,3) whose colours tell its mask uint8 (h,w), and the mask"
    mask = ndi.zoom(np.random.default_rng(seed).choice(names, (h//16+1,w//16+1)), 16, order=0)[:h,:w].astype(np.uint8)
    return palette[mask],mask

def told(x): return cdist(x.movedim(1, -1).reshape(-1, 3)*255, palette).argmin(1).reshape(len(x), *x.shape[2:]) # float (B,3,H,W) to the mask that colours tell

def inner(masks, side=5): return np.stack([ndi.maximum_filter(m, side)==ndi.minimum_filter(m, side) for m in masks]) # where there is one class all around

def same(a, b): return all(torch.equal(x, y) for x,y in zip(a.state_dict().values(), b.state_dict().values()))

def mtimes(folder): return {p:p.stat().st_mtime_ns for p in Path(folder).rglob('*') if p.is_file()}

def on_cpu(module):
    "A fixture for all tests of a file: `module` finds no GPU, and torch takes one thread"
    @pytest.fixture(autouse=True)
    def cpu(monkeypatch):
        monkeypatch.setattr(module, 'get_device', lambda: torch.device('cpu'))
        n = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(n)
    return cpu
