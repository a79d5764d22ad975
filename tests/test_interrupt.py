"Ctrl-C: a real SIGINT in the middle of a long job; what it leaves, and whether the same call goes on. Jobs are forked from one process, so that torch is loaded once"
import gc, itertools, json, os, re, signal, subprocess, sys, tempfile, threading, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, psutil, pytest
from histolab_nb import cli, datasets, slides
from histolab_nb.core import write_json
from histolab_nb.datasets import Card, card, fetch, get_dataset
from histolab_nb.phantom import Phantom, phantom_nuclei, phantom_slide
from histolab_nb.slides import Slide, read_tiles, tile_table, write_slide
from helpers import noise

pytestmark = pytest.mark.skipif(os.name=='nt', reason='Windows has no fork, and no SIGINT for one process')
middle = 'in the middle'

def linger(owner, name, at=2):
    "From its call number `at` on, a function says where it is, and takes its time; gives what puts it right again"
    f,n = getattr(owner, name),itertools.count(1)
    def slow(*args, **kw):
        if next(n)>=at:
            print(middle, flush=True)
            time.sleep(.4)
        return f(*args, **kw)
    setattr(owner, name, slow)
    return lambda: setattr(owner, name, f)

# Jobs: each gives a function of a folder that does the work and returns what must not differ, where to linger, and which files may stay

jobs = {}
def job(f, *args, name=None):
    jobs[name or f.__name__] = partial(f, *args)
    return f

def a_slide(folder): return write_slide(noise(400, 600), folder/'a.tif', .5)

@job
def writing(folder):
    class Blocks:
        @staticmethod
        def of(x, y, w, h): return noise(h, w, x+y)
    def run(out): return [write_slide(lambda *a: Blocks.of(*a), out/'a.tif', .5, dims=(600,900), block=256).read_bytes()]
    return run,(Blocks, 'of', 5),()

@job
def made_tissue(folder):
    def run(out): return [o.read_bytes() for o in (phantom_slide(out/'a.tif', 400, 400, .5), out/'a.truth.png', out/'a.json')]
    return run,(Phantom, 'image', 1),()

def tiles(workers, where, folder):
    table = tile_table(Slide(a_slide(folder)), 64, min_tissue=0)
    def run(out): return [np.concatenate([x for x,_ in read_tiles(table, workers, 4, False)])]
    return run,where,()

for n,where in (0, (Slide, 'read_scaled', 12)),(2, (slides, '_fetch', 3)): job(tiles, n, where, name=f'tiles, {n} workers')

def web(folder, **files):
    "A server of files"
    import http.server
    from test_datasets import Handler
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.files,s.limit,s.asked,s.version,s.ranges,s.status = {f'/{k}':v for k,v in files.items()},None,[],'"1"',True,None
    threading.Thread(target=s.serve_forever, daemon=True).start()
    s.url = f'http://127.0.0.1:{s.server_port}'
    return s

@job
def download(folder):
    from tqdm.auto import tqdm
    s = web(folder, a=noise(300, 300).tobytes())
    def run(out):
        res = [fetch(f'{s.url}/a', out).read_bytes()]
        if out.name=='a': assert s.asked[0] is None and re.fullmatch(r'bytes=\d{5,}-', s.asked[1]) # went on where it was
        return res
    return run,(tqdm, 'update', 3),('.a.part','.a.tag')

@job
def unpacking(folder):
    import zipfile
    from test_datasets import tnbc_zip
    s = web(folder, t=tnbc_zip(folder))
    mine = Card(card('tnbc') | dict(files=[dict(url=f'{s.url}/t', file='t.zip')]))
    def run(out):
        to = get_dataset(mine, out, say=str)
        assert len(s.asked)==1+(out.name=='b') # nothing comes twice
        return [p.read_bytes() for p in sorted(to.rglob('*.png'))]
    return run,(zipfile.ZipExtFile, 'read', 2),('t.zip','downloads.json')

@job
def checking(folder):
    from test_datasets import glas_official
    glas_official(folder/'glas')
    return (lambda out: [datasets.check_dataset('glas', folder/'glas').to_csv().encode()]),(datasets.np, 'unique', 1),()

def whole_slide(workers, where, allowed, folder):
    from histolab_nb.inference import predict_slide
    path = a_slide(folder)
    class Model:
        @staticmethod
        def of(x): return x.mean((1,2,3))[:,None]
    def model(x): return Model.of(x)
    how = dict(batch_size=4, min_tissue=0, mask=np.ones((4,4), bool), workers=workers, progress=False)
    def run(out): return [predict_slide(path, model, 64, .5, out=out if allowed else None, **how).prob]
    return run,(Model, 'of', 4) if where is None else where,allowed

job(whole_slide, 0, None, ('job.json','tiles.bin'), name='whole slide with notes')
job(whole_slide, 2, None, (), name='whole slide, in the model')
def stitched(folder):
    from histolab_nb import inference
    return whole_slide(2, (inference.Stitcher, 'add', 3), (), folder)
job(stitched, name='whole slide, while stitching')

@job
def nuclei(folder):
    from PIL import Image
    from histolab_nb import inference
    img = phantom_nuclei(1, 256)[0].image
    Image.fromarray(img).save(folder/'n.png')
    def run(out): return [p.read_bytes() for p in inference.segment_file(folder/'n.png', out, progress=False, core=96)[1] if p.suffix!='.geojson']
    return run,(inference, 'check_nuclei', 3),()

@job
def nuclei_while_writing(folder):
    run,_,_ = nuclei(folder)
    from histolab_nb import inference
    return run,(inference.Image.Image, 'save', 2),('n_overlay.jpg','n.geojson','n_nuclei.csv')

@job
def tuning(folder):
    from histolab_nb import postprocess
    made = phantom_nuclei(3, 96)
    def run(out): return [postprocess.tune_watershed([s.instances>0 for s in made], [s.instances for s in made], dict(peak=(5,7)))[1].to_csv().encode()]
    return run,(postprocess, '_tune_image', 2),()

@job
def shallow_networks(folder):
    import torch
    from test_glands import tiny
    from histolab_nb.glands import ShallowNets, stage_one
    torch.set_num_threads(2)
    r = replace(tiny, steps=12)
    return (lambda out: stage_one([noise(40, 40, i) for i in range(6)], r, out, 'cpu')),(ShallowNets, 'forward', 30),('*.png',)

@job
def normalising(folder):
    from histolab_nb import unet_sharp
    made = phantom_nuclei(5, 96)
    def run(out): return [s.image for s in unet_sharp.normalise_samples(made, out, 2, False)[0]]
    return run,(unet_sharp.Macenko, 'fit', 3),('*.png',)

def weights(net): return [o.detach().cpu() for o in net.state_dict().values()]

def one_learner(at, folder):
    "The same `Learner` is trained again in the same session"
    from torch import nn
    from test_training import learner
    from histolab_nb.training import Checkpoint, history, quiet
    made = {}
    def run(out):
        learn = made[out] = made.get(out) or learner(Checkpoint(out, batches=3))
        assert not learn.lock.locked() and all(cb.run for cb in learn.cbs)
        with quiet(learn): learn.fit_one_cycle(3)
        return [*weights(learn.model), history(learn).to_numpy()]
    return run,(nn.CrossEntropyLoss, 'forward', at),('fit-0.safetensors',)

job(one_learner, 13, name='training, in a batch')
job(one_learner, 19, name='training, in a validation batch')

@job
def training_without_a_folder(folder):
    "The `Learner` stays as good as it was: it can be asked and trained"
    import torch
    from torch import nn
    from test_training import learner
    from histolab_nb.training import quiet
    learn = learner()
    def run(out):
        assert torch.is_grad_enabled() and not learn.lock.locked()
        with quiet(learn): learn.fit(2)
        assert len(learn.recorder.values)==2 and np.isfinite(learn.validate()).all() and learn.logger is print
        return []
    return run,(nn.CrossEntropyLoss, 'forward', 13),()

def paper(train, at, allowed, folder):
    from histolab_nb import training
    return train(folder),(training.StopOnNaN, 'after_loss', at),allowed

def train_glands(folder):
    from test_glands import phantom_glands, tiny
    from histolab_nb.glands import glands_fit
    made = [replace(s, split='train') for s in phantom_glands(2, 80, seed=1)]
    return lambda out: weights(glands_fit(made, replace(tiny, epochs=2), out).model)

def train_sharp(folder):
    from test_unet_sharp import plain
    from histolab_nb.unet_sharp import sharp_fit
    made = phantom_nuclei(2, 96, 1, 'train', .5)+phantom_nuclei(1, 96, 2, 'val', .5)
    return lambda out: weights(sharp_fit(made, replace(plain, epochs=2, crop=32, window=48), out).model)

def train_issl(folder):
    from test_instance_ssl import tiny, tissue
    from histolab_nb.instance_ssl import Row, issl_fit
    made = [replace(s, split='train') for s in tissue(3)]
    return lambda out: weights(issl_fit(Row('SSL', 1., 42), made, tiny, out)[0].model)

def train_attention(folder):
    from test_scale_attention import tiny
    from histolab_nb import scale_attention as sa
    made = phantom_nuclei(2, 160, seed=5)
    r = replace(tiny, source='images', warm=2)
    def run(out):
        learn = sa.attention_run('ours', r, made, {('made','val'):made}, out)
        return weights(learn.model)+list(np.load(out/'ours'/'maps.npz').values())
    return run

def train_guided(folder):
    from test_scale_attention import guide
    from histolab_nb.scale_attention import stain_guided_fit
    made = phantom_nuclei(2, 160, seed=5)
    return lambda out: [o for m in stain_guided_fit(made, guide, folder=out) for o in weights(m)]

def train_dclr(folder):
    import pandas as pd
    from histolab_nb.dclr import DclrRecipe, Patches, dclr_dls, dclr_fit, dclr_learner
    from histolab_nb.training import quiet
    r = DclrRecipe.at('tiny', method='MoCo', width=4, depth=2, epochs=3, input=32, view=16, batch_size=16, queue=50)
    images = np.random.default_rng(0).integers(0, 255, (64,32,32,3), dtype=np.uint8)
    def run(out):
        learn = dclr_learner(dclr_dls(Patches(images, pd.DataFrame(dict(label=[0]*64))), r, 'cpu'), r, folder=out)
        with quiet(learn): dclr_fit(learn, r)
        return weights(learn.model)
    return run

for f,at in (train_glands, 4),(train_sharp, 4),(train_issl, 6),(train_attention, 4),(train_guided, 4),(train_dclr, 8): job(paper, f, at, ('*.safetensors','*.json','*.png'), name=f.__name__)

# Commands: each gives its words, where to linger, which files may stay, and what it says in the end

commands = {}
def command(f): commands[f.__name__] = f

@command
def segment(folder, out):
    from PIL import Image
    from histolab_nb import inference
    for i in range(2): Image.fromarray(phantom_nuclei(1, 128, i)[0].image).save(folder/f'{i}.png')
    return ['segment', folder/'0.png', folder/'1.png', '--classical', '--out', out],(inference, 'check_nuclei', 2),('0_*','0.geojson'),f'files in {out}'

@command
def data_get(folder, out):
    import zipfile
    from test_datasets import tnbc_zip
    s = web(folder, t=tnbc_zip(folder))
    card('tnbc')['files'] = [dict(url=f'{s.url}/t', file='t.zip')]
    return ['data', 'get', 'tnbc', out],(zipfile.ZipExtFile, 'read', 2),('t.zip','downloads.json'),f'done: {out}'

@command
def data_check(folder, out):
    from test_datasets import glas_official
    return ['data', 'check', 'glas', glas_official(folder/'glas') or folder/'glas'],(datasets.np, 'unique', 1),(),'3 of 85'

# In the process of a job

def threads(): return [t.name for t in threading.enumerate() if 'Pool' in t.name]

def found(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())

def stopped(name, folder):
    "Do a job until SIGINT comes, look around as one would in a notebook, where the traceback stays; then do it again, and once undisturbed"
    run,where,may_stay = jobs[name](folder)
    tempfile.tempdir = str(folder/'tmp')
    for o in 'a','b','tmp': (folder/o).mkdir()
    undo = linger(*where)
    try: run(folder/'a')
    except KeyboardInterrupt as e:
        print('stopped', flush=True)
        undo()
        left = dict(children=[' '.join(p.cmdline()) for p in psutil.Process().children(True)], threads=threads(), temporary=os.listdir(folder/'tmp'),
            files=[o for o in found(folder/'a') if not any(Path(o).match(m) for m in may_stay) or '.part' in o and o not in may_stay])
        again = run(folder/'a')
    peace = run(folder/'b')
    same = len(again)==len(peace) and all(np.asarray(x).tobytes()==np.asarray(y).tobytes() for x,y in zip(again, peace))
    write_json(folder/'left.json', left|dict(differs=not same))

def commanded(name, out, disturbed, folder):
    "A command, as its process would run it"
    words,where,may_stay,says = commands[name](folder, folder/out)
    write_json(folder/'expected.json', dict(may_stay=may_stay, says=says))
    if disturbed: linger(*where)
    try: cli.main([str(o) for o in words])
    finally:
        if disturbed: gc.unfreeze() # for a quiet end; it takes seconds

jupyter = """
import sys, time
print('in the middle', flush=True)
try: time.sleep(60)
except KeyboardInterrupt: time.sleep(1)
print('kernels shut down', *sys.argv, flush=True)"""

def opened(folder):
    "`lab` with a JupyterLab that takes a second to end"
    (folder/'jupyterlab.py').write_text(jupyter)
    os.environ['PYTHONPATH'] = os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')])
    cli.main(['lab', '--no-browser'])

def serve():
    "Read lines with a function of this file and its arguments; fork a process that calls it, and keep what it says and how it ends"
    import torch
    for o in 'datasets','dclr','glands','instance_ssl','scale_attention','training','unet_sharp': __import__(f'test_{o}')
    torch.set_num_threads(1)
    gc.freeze() # what is loaded stays shared with the jobs
    print('ready', flush=True)
    for line in sys.stdin:
        do,folder,*args = json.loads(line)
        folder = Path(folder)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            (folder/'rc').write_text(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
            continue
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd,path in (0, os.devnull),(1, folder/'out.txt'),(2, folder/'err.txt'): os.dup2(os.open(path, os.O_RDWR|os.O_CREAT|os.O_TRUNC), fd)
        return globals()[do](*args, folder)

# In the process of pytest

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    code = 'import sys; sys.path.insert(0, sys.argv[1]); import test_interrupt; test_interrupt.serve()'
    env = {k:v for k,v in os.environ.items() if not k.startswith('HISTOLAB_')}|dict(HISTOLAB_DEVICE='cpu', OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore',
        HISTOLAB_RESULTS=str(tmp_path_factory.mktemp('results')),
        no_proxy='*', OBJC_DISABLE_INITIALIZE_FORK_SAFETY='YES') # a Mac wants both after a fork
    p = subprocess.Popen([sys.executable, '-c', code, os.path.dirname(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert p.stdout.readline()=='ready\n'
    yield p
    p.stdin.close()
    p.wait(20)

def text(path): return path.read_text() if path.exists() else ''

def until(what, seconds=60):
    end = time.time()+seconds
    while not what():
        assert time.time()<end, 'it takes too long'
        time.sleep(.02)

def start(server, folder, *call):
    "Have a function called in a process of its own; its id"
    for o in 'rc','out.txt','err.txt': (folder/o).unlink(missing_ok=True)
    print(json.dumps([call[0], str(folder), *call[1:]]), file=server.stdin, flush=True)
    return int(server.stdout.readline())

def interrupt(server, folder, *call, whole=False):
    "SIGINT in the middle, to the process or its whole group; its id, and a function that tells whether it has ended"
    pid = start(server, folder, *call)
    def over(): return bool(text(folder/'rc'))
    until(lambda: middle in text(folder/'out.txt') or over())
    assert not over(), text(folder/'err.txt')
    (os.killpg if whole else os.kill)(pid, signal.SIGINT)
    return pid,over

@pytest.mark.parametrize('name', jobs)
def test_ctrl_c_leaves_things_in_order(name, server, tmp_path):
    _,over = interrupt(server, tmp_path, 'stopped', name)
    until(lambda: 'stopped\n' in text(tmp_path/'out.txt') or over(), 10)
    until(over)
    assert text(tmp_path/'rc')=='0', text(tmp_path/'err.txt')
    assert json.loads(text(tmp_path/'left.json'))==dict(children=[], threads=[], temporary=[], files=[], differs=False)

def group(pid): return [p.pid for p in psutil.process_iter() if p.status()!=psutil.STATUS_ZOMBIE and os.getpgid(p.pid)==pid]

@pytest.mark.parametrize('name', commands)
def test_ctrl_c_ends_a_command(name, server, tmp_path):
    "One line, 130, nothing half-done; the same command does the rest, and a third process does all of it elsewhere"
    pid,over = interrupt(server, tmp_path, 'commanded', name, 'a', True)
    until(over, 10)
    assert text(tmp_path/'rc')=='130' and text(tmp_path/'err.txt').strip()=='stopped, with nothing half-written; the same command goes on from its last checkpoint, or starts anew'
    expected = json.loads(text(tmp_path/'expected.json'))
    assert not group(pid) and all(any(Path(o).match(m) for m in expected['may_stay']) for o in found(tmp_path/'a'))
    for out in 'a','b':
        start(server, tmp_path, 'commanded', name, out, False)
        until(over)
        says = json.loads(text(tmp_path/'expected.json'))['says']
        assert says in text(tmp_path/'out.txt') and text(tmp_path/'rc')==str(int(name=='data_check')) and 'Traceback' not in text(tmp_path/'err.txt')
    a,b = ({o:(tmp_path/d/o).read_bytes() for o in found(tmp_path/d) if Path(o).suffix in ('.png','.jpg','.csv')} for d in 'ab')
    assert a==b

def test_ctrl_c_is_left_to_jupyter(server, tmp_path):
    "It ends in its own time, with what it was told"
    pid,over = interrupt(server, tmp_path, 'opened', whole=True)
    until(over, 20)
    assert text(tmp_path/'rc')=='0' and not group(pid)
    assert 'kernels shut down' in text(tmp_path/'out.txt') and '--no-browser' in text(tmp_path/'out.txt')
