"What no notebook can hold of the phantom: memory, seams at every place, other processes, interrupted writing"
import os, pickle, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from histolab_nb.phantom import Optics, Phantom, phantom_nuclei, phantom_slide

ph = Phantom(3000, 3000, seed=11)

def fresh(code):
    "What a new Python prints"
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONHASHSEED='random')
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout.strip()

@settings(max_examples=12, deadline=None)
@given(y=st.integers(-200, 11_800), x=st.integers(-200, 11_800), dy=st.integers(0, 90), dx=st.integers(0, 90), mpp=st.sampled_from([0.25, 0.5, 0.62, 1.0]))
def test_overlapping_windows_agree(y, x, dy, dx, mpp):
    y,x = int(y*0.25/mpp),int(x*0.25/mpp)
    big = ph.read(x*mpp, y*mpp, 150, 140, mpp)
    small = ph.read((x+dx)*mpp, (y+dy)*mpp, 60, 50, mpp)
    for n in ('image', 'instances', 'classes', 'glands', 'tumour', 'regions', 'concentrations'):
        assert np.array_equal(getattr(big, n)[dy:dy+50,dx:dx+60], getattr(small, n)), n

def test_blocks_leave_no_seam(monkeypatch):
    whole = ph.image(700, 900, 700, 300, 0.5)
    def small(self, iy, ix, h, w, mpp, side=128):
        for a in range(0, h, side):
            for b in range(0, w, side):
                n,m = min(side,h-a),min(side,w-b)
                yield np.s_[a:a+n,b:b+m],self._block(iy+a, ix+b, n, m, mpp)
    monkeypatch.setattr(Phantom, '_blocks', small)
    assert np.array_equal(Phantom(3000, 3000, seed=11).image(700, 900, 700, 300, 0.5), whole)

def test_order_of_reading_does_not_matter():
    one,two = Phantom(2000, 2000, seed=5),Phantom(2000, 2000, seed=5)
    a = one.image(400, 400, 200, 200, 0.5)
    two.image(1500, 300, 100, 100, 0.25), two.image(500, 500, 100, 100, 1.)
    assert np.array_equal(two.image(400, 400, 200, 200, 0.5), a)

def test_other_process_same_pixels():
    code = 'import hashlib; from histolab_nb.phantom import Phantom; print(hashlib.sha256(Phantom(900, 900, seed=3).image(100, 100, 200, 200, .5).tobytes()).hexdigest())'
    assert fresh(code)==fresh(code)

def test_jpeg_windows_agree():
    p = Phantom(900, 900, seed=3, optics=Optics(jpeg=40))
    assert np.array_equal(p.image(100, 100, 120, 120, 0.5)[21:80,33:90], p.image(116.5, 110.5, 57, 59, 0.5))

def test_nuclei_are_whole_and_have_one_class():
    t = ph.read(900, 900, 400, 400, 0.5)
    for k in np.unique(t.instances[t.instances>0]): assert len(np.unique(t.classes[t.instances==k]))==1
    assert ((t.instances>0)==(t.classes>0)).all()

def test_glands_are_apart():
    g = ph._glands_near(0, 3000, 0, 3000)
    widest = g['radius']*np.sqrt(g['stretch'])*(1+g['a2']+g['a3']+g['a4'])
    d = np.hypot(g['y'][:,None]-g['y'], g['x'][:,None]-g['x'])+1e6*np.eye(len(g))
    assert len(g)>20 and (d>widest[:,None]+widest).all() and widest.max()<78

def test_coarse_truth_is_the_fine_one():
    p = Phantom(1200, 1000, seed=2)
    coarse = p.region_map(8.)
    fine = p.read(0, 0, 150, 125, 8.).regions
    assert (coarse==fine).mean()>0.97

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the peak of a process from /proc')
def test_memory_of_a_large_slide():
    """Every cache full, as it is in the middle of a 20,000 x 20,000 slide, and a row of blocks read.
    The peak is that of the new program alone: `ru_maxrss` would count what the test process held when it started it."""
    said = fresh('import re; from pathlib import Path; from histolab_nb.phantom import Phantom; p = Phantom(10_000, 10_000)\n'
        'for i in range(170): p._plan_tile(i//14, i%14)\nfor i in range(4): p._cell_tile(5, i); p.image(3000, 3000+512*i, 1024, 1024, .5)\n'
        'print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])')
    assert 50_000<int(said)<1_000_000 # kB

def test_failed_slide_leaves_nothing(tmp_path, monkeypatch):
    def broken(*args): raise RuntimeError('power cut')
    monkeypatch.setattr(Phantom, 'image', broken)
    with pytest.raises(RuntimeError): phantom_slide(tmp_path/'a.tiff', 1024, 1024, mpp=1.)
    assert not list(tmp_path.iterdir())

def test_samples_travel_to_workers():
    a = phantom_nuclei(2, 96, seed=4, regions=('fat','tumour'))
    b = pickle.loads(pickle.dumps(a))
    assert all(np.array_equal(x.image, y.image) and np.array_equal(x.instances, y.instances) and np.array_equal(x.classes, y.classes) for x,y in zip(a, b))
    assert {o.classes.max() for o in a}<=set(range(len(a[0].class_names)+1))
