"What the notebook of `slides` cannot hold: other processes, damaged files, bounds on memory"
import multiprocessing, os, signal, subprocess, sys, textwrap
import numpy as np, openslide, pytest, tifffile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from histolab_nb.core import DataError
from histolab_nb.slides import Slide, load_table, read_tiles, tile_table, tissue_mask, write_slide

def texture(h, w, seed=0):
    "Smooth coloured noise (h,w,3) uint8"
    coarse = np.random.default_rng(seed).integers(60, 220, (h//8+2, w//8+2, 3))
    a = np.kron(coarse, np.ones((8,8,1)))
    return ((a+np.roll(a, 3, 0)+np.roll(a, 3, 1))/3)[:h,:w].astype(np.uint8)

@pytest.fixture(scope='module')
def path(tmp_path_factory): return write_slide(texture(1101, 1503), tmp_path_factory.mktemp('slides')/'a.tiff', mpp=0.5)

@pytest.fixture(scope='module')
def real():
    folder = os.environ.get('HISTOLAB_DATA')
    if not folder: pytest.skip('HISTOLAB_DATA is not set')
    return Path(folder)/'slides'/'cmu-1-small-region.svs'

def python(code, *args, **env):
    "Run `code` in a Python of its own and return what it prints"
    res = subprocess.run([sys.executable, '-c', textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, timeout=300, env={**os.environ, **env})
    assert res.returncode==0, res.stderr
    return res.stdout

def test_import_is_light():
    out = python("import sys, histolab_nb.slides; print([o for o in ('torch','fastai','matplotlib','kornia') if o in sys.modules])")
    assert out.strip()=='[]'

# Other processes

def _centre(slide): return slide.read(700, 500, 64, 64, mpp=.75), slide._pid

@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
def test_each_process_opens_its_own_handle(path, method):
    slide = Slide(path)
    mine,_ = _centre(slide)
    with multiprocessing.get_context(method).Pool(2) as pool: theirs = pool.map(_centre, [slide]*4)
    assert all(np.array_equal(mine, o) for o,_ in theirs)
    assert os.getpid() not in {pid for _,pid in theirs}

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_a_handle_from_before_the_fork_is_not_used(path):
    slide = Slide(path)
    mine = slide.read(0, 0, 300, 300)
    read,write = os.pipe()
    if not (pid := os.fork()):
        os.write(write, bytes([np.array_equal(slide.read(0, 0, 300, 300), mine) and slide._pid==os.getpid()]))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1)==b'\1'

@pytest.mark.parametrize('fast', (True,False))
def test_threads_read_the_same(path, fast):
    slide,rng = Slide(path, fast=fast),np.random.default_rng(0)
    boxes = [(*rng.integers(-50, 1400, 2).tolist(), 90, 70) for _ in range(60)]
    alone = [slide.read(*b, mpp=.8) for b in boxes]
    with ThreadPoolExecutor(8) as pool: together = list(pool.map(lambda b: slide.read(*b, mpp=.8), boxes))
    assert all(np.array_equal(a, b) for a,b in zip(alone, together))

def test_workers_keep_order_and_end(path):
    table = tile_table(Slide(path), 64, min_tissue=0)
    got = [(b,r) for b,r in read_tiles(table, workers=3, batch_size=7, progress=False)]
    want = [b for b,_ in read_tiles(table, batch_size=7, progress=False)]
    assert all(np.array_equal(a, b) for (a,_),b in zip(got, want)) and len(got)==len(want)
    assert [i for _,r in got for i in r.index]==list(table.index)
    assert not multiprocessing.active_children()

def test_stopping_early_ends_the_workers(path):
    for b,_ in read_tiles(tile_table(Slide(path), 64, min_tissue=0), workers=2, batch_size=4, progress=False): break
    assert not multiprocessing.active_children()

def test_an_error_in_a_worker_reaches_the_caller(path):
    table = tile_table(Slide(path), 64, min_tissue=0).assign(path='/no/such/slide.svs')
    for workers in (0,2):
        with pytest.raises(DataError, match='no such file'): list(read_tiles(table, workers=workers, progress=False))

def test_a_killed_worker_is_an_error_not_a_hang(path):
    it = read_tiles(tile_table(Slide(path), 16, min_tissue=0), workers=1, batch_size=2, progress=False)
    next(it)
    for p in multiprocessing.active_children(): os.kill(p.pid, signal.SIGKILL)
    with pytest.raises(DataError, match='worker process died'): list(it)

# Damaged files

def everything(path):
    with Slide(path, mpp=.5) as s: return s.read(0, 0, *s.dims)

@pytest.mark.parametrize('share', (.001,.1,.5,.9,.999))
def test_cut_off_file(path, tmp_path, share):
    (tmp_path/'cut.tiff').write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])
    with pytest.raises(DataError, match='again'): everything(tmp_path/'cut.tiff')

@pytest.mark.parametrize('share', (.01,.3,.6,.8))
def test_cut_off_svs(real, tmp_path, share):
    (tmp_path/'cut.svs').write_bytes(real.read_bytes()[:int(real.stat().st_size*share)])
    with pytest.raises(DataError, match='cut.svs.*again'): everything(tmp_path/'cut.svs')

@pytest.mark.parametrize('seed', range(12))
def test_damaged_bytes_give_pixels_or_a_data_error(path, tmp_path, seed):
    rng,raw = np.random.default_rng(seed),bytearray(path.read_bytes())
    for i in rng.integers(0, len(raw), 40): raw[i] = rng.integers(256)
    (tmp_path/'bad.tiff').write_bytes(raw)
    try: assert everything(tmp_path/'bad.tiff').dtype==np.uint8
    except DataError as e: assert 'bad.tiff' in str(e)

@pytest.mark.parametrize('content', (b'', b'x', b'II*\0', b'II*\0'+bytes(100), bytes(1000), b'\xff\xd8\xff\xe0'+bytes(50)))
def test_not_a_slide(tmp_path, content):
    (tmp_path/'a.svs').write_bytes(content)
    with pytest.raises(DataError, match='a.svs'): Slide(tmp_path/'a.svs')

def test_a_folder_is_not_a_slide(tmp_path):
    with pytest.raises(DataError, match='no such file'): Slide(tmp_path)

def test_a_tile_that_is_damaged_is_named(path, tmp_path):
    with tifffile.TiffFile(path) as t: at = t.pages[0].dataoffsets[3]
    raw = bytearray(path.read_bytes())
    raw[at:at+2] = b'no'
    (tmp_path/'bad.tiff').write_bytes(raw)
    with pytest.raises(DataError, match='tile 3 of level 0 is damaged|reading failed'): everything(tmp_path/'bad.tiff')

@pytest.mark.parametrize('name,content', (('t.csv',b''), ('t.csv',b'\xff\xfe\0'), ('t.parquet',b'PAR1'), ('t.parquet',b''), ('t.csv',b'x,y\n1,2\n')))
def test_a_damaged_table(tmp_path, name, content):
    (tmp_path/name).write_bytes(content)
    with pytest.raises(DataError, match=name): load_table(tmp_path/name)

# Odd slides

def test_missing_tiles_are_white_and_left_to_openslide(tmp_path):
    tiles = [texture(256, 256), None, None, texture(256, 256, 1)]
    tifffile.imwrite(tmp_path/'sparse.tif', iter(tiles), shape=(512,512,3), dtype=np.uint8, tile=(256,256), compression='jpeg', photometric='rgb')
    slide = Slide(tmp_path/'sparse.tif', mpp=.5)
    assert slide.reader.name=='openslide'
    assert (slide.read(256, 0, 256, 256)==255).all()

def test_pixels_that_are_not_square(tmp_path):
    yy,xx = np.mgrid[:1024,:1024]
    oval = np.where(np.hypot((xx-512)*.5, (yy-512)*.25)<60, 40, 240).astype(np.uint8)[...,None].repeat(3, -1)
    tifffile.imwrite(tmp_path/'a.tif', oval, tile=(256,256), compression='jpeg', photometric='rgb', resolution=(20000,40000), resolutionunit='CENTIMETER')
    slide = Slide(tmp_path/'a.tif')
    assert slide.mpp_xy==(.5,.25)
    dark = slide.read(0, 0, 512, 256, mpp=1)[...,0]<140
    assert abs(np.ptp(np.nonzero(dark)[0])-np.ptp(np.nonzero(dark)[1]))<=1 and abs(np.ptp(np.nonzero(dark)[0])-119)<=2

def test_both_readers_agree_anywhere(path):
    (a,b),rng = (Slide(path),Slide(path, fast=False)),np.random.default_rng(1)
    assert (a.reader.name,b.reader.name)==('jpeg-tiff','openslide')
    for x,y,w,h in rng.integers((-300,-300,1,1), (1600,1200,300,300), (60,4)).tolist():
        assert np.abs(a.read(x, y, w, h).astype(int)-b.read(x, y, w, h)).max()<=1

def test_level_zero_is_the_array(tmp_path):
    img = texture(700, 901)
    slide = Slide(write_slide(img, tmp_path/'a.tiff', mpp=.25, quality=98, subsampling='4:4:4'))
    assert np.abs(slide.read(0, 0, 901, 700).astype(int)-img).mean()<1
    for l in slide.levels[1:]:
        n = int(l.downsample)
        mean = img[:l.h*n,:l.w*n].reshape(l.h, n, l.w, n, 3).mean((1,3))
        assert np.abs(slide.read_scaled(0, 0, l.w, l.h, n).astype(int)-mean).mean()<1.5

@pytest.mark.parametrize('w,h', ((1,1), (16,16), (255,257), (513,3), (5,1300)))
def test_any_size_can_be_written(tmp_path, w, h):
    img = texture(h, w)
    slide = Slide(write_slide(img, tmp_path/'a.tiff', mpp=.5, quality=95, subsampling='4:4:4'))
    assert slide.dims==(w,h) and np.abs(slide.read(0, 0, w, h).astype(int)-img).mean()<3

def test_the_file_says_what_it_is(tmp_path):
    o = openslide.OpenSlide(write_slide(texture(600, 600), tmp_path/'a.tiff', mpp=.2525, magnification=40))
    p = o.properties
    assert (p['openslide.vendor'],p['openslide.mpp-x'],p['openslide.mpp-y'],p['openslide.objective-power'])==('aperio','0.2525','0.2525','40')
    assert Slide(tmp_path/'a.tiff').scale(magnification=20)==(2,2)

def test_a_thumbnail_of_one_large_level_is_read_in_parts(tmp_path):
    img = texture(1500, 2000)
    tifffile.imwrite(tmp_path/'a.tif', img, tile=(256,256), compression='jpeg', photometric='rgb')
    s = Slide(tmp_path/'a.tif')
    parts = s._region(0, 0, 200, 150, 10, 10, limit=100_000)
    assert np.abs(parts.astype(int)-s.thumbnail(200)).mean()<.5

# Bounds

@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak of a process from /proc')
def test_writing_needs_memory_for_a_band_only(tmp_path):
    code = '''
        import re, sys, numpy as np
        from pathlib import Path
        from histolab_nb.slides import Slide, write_slide
        def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])/1024
        line = np.random.default_rng(0).integers(90, 230, (1,1024,3), dtype=np.uint8)
        def block(x, y, w, h): return np.broadcast_to(line[:,:w], (h,w,3))
        before = peak()
        path = write_slide(block, sys.argv[1], mpp=.5, dims=(50_000,int(sys.argv[2])), block=512)
        assert Slide(path).dims==(50_000,int(sys.argv[2]))
        print(peak()-before)'''
    low,high = (float(python(code, tmp_path/f'{h}.tiff', h)) for h in (1024,4096))
    assert high<low+60 and high<300, (low,high)

@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak of a process from /proc')
def test_streaming_needs_memory_for_a_few_batches_only(tmp_path):
    write_slide(lambda x,y,w,h: np.full((h,w,3), 200, np.uint8), tmp_path/'a.tiff', mpp=.5, dims=(8192,8192))
    code = '''
        import re, sys
        from pathlib import Path
        from histolab_nb.slides import Slide, read_tiles, tile_table
        table = tile_table(Slide(sys.argv[1]), 256, min_tissue=0, overlap=int(sys.argv[2]))
        for b,_ in read_tiles(table, batch_size=16, progress=False): pass
        print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])/1024)'''
    few,many = (float(python(code, tmp_path/'a.tiff', o)) for o in (0,128))
    assert many<few+80, (few,many)

def test_a_writer_that_is_killed_leaves_no_slide(tmp_path):
    code = '''
        import sys, time, numpy as np
        from histolab_nb.slides import write_slide
        def block(x, y, w, h):
            if y>500: print('half', flush=True), time.sleep(60)
            return np.zeros((h,w,3), np.uint8)
        write_slide(block, sys.argv[1], mpp=.5, dims=(600,2000), block=256)'''
    p = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), str(tmp_path/'a.tiff')], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='half\n'
    p.kill()
    p.wait()
    assert not list(tmp_path.iterdir())

def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(DataError, match='Choose another folder'): write_slide(texture(50, 50), tmp_path/'file'/'a.tiff', mpp=.5)

def test_white_slide_has_no_tissue(tmp_path):
    slide = Slide(write_slide(np.full((1000,1000,3), 245, np.uint8), tmp_path/'a.tiff', mpp=.5))
    assert not tissue_mask(slide).any() and not tissue_mask(slide, method='otsu').any()
    with pytest.raises(DataError, match='no tile has 50% tissue'): tile_table(slide, 128)
