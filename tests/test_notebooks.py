"""Every notebook is a test: it runs from top to bottom in a process of its own, two at a time, through nbdev's runner.

Cells flagged `gpu` run where torch finds a GPU, `data` where HISTOLAB_DATA names a folder, `slow` and `net` where HISTOLAB_FLAGS asks for them."""
import json, os, re, shutil, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest
from histolab_nb.notebooks import flags_here

root = Path(__file__).resolve().parent.parent
at_once = 2
limit = float(os.environ.get('HISTOLAB_TEST_LIMIT', 1800)) # seconds for one notebook
notebooks = [n for n in sorted(p.relative_to(root/'nbs').as_posix() for p in (root/'nbs').rglob('*.ipynb')) if not re.search(r'(^|/)[._]', n)]

class Runner:
    "Runs notebooks with these flags and ends them all when told to"
    def __init__(self, tmp, flags):
        self.tmp,self.flags,self.procs,self.lock,self.stopped = tmp,flags,set(),threading.Lock(),False
        self.env = os.environ | dict(OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1)//at_once)), HISTOLAB_RESULTS=str(tmp/'results'))
        if 'data' in flags: self.env['HISTOLAB_DATA'] = str(Path(self.env['HISTOLAB_DATA']).expanduser().resolve())
        if (root/'results').is_dir(): shutil.copytree(root/'results', tmp/'results')

    def run(self, path):
        "Run one notebook: whether it passed, what the runner said, seconds"
        start,env = time.time(),self.env | dict(HISTOLAB_OUT=str(self.tmp/path.stem))
        cmd = [shutil.which('nbdev-test', path=Path(sys.executable).parent), str(path), '--n-workers', '0', '--flags', ' '.join(self.flags)]
        with self.lock:
            if self.stopped: return False, 'stopped', 0.
            p = subprocess.Popen(cmd, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8', errors='replace')
            self.procs.add(p)
        try: said = p.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            p.kill()
            said = p.communicate()[0] + f'\nended after {limit:.0f} s'
        self.procs.discard(p)
        return p.returncode==0, said, time.time()-start

    def stop(self):
        with self.lock: self.stopped = True
        for p in list(self.procs): p.kill()

def failing_cell(path, said):
    "Source of the cell that the runner names in what it said"
    m = re.search(r'While Executing Cell #(\d+)', said)
    if not m: return ''
    src = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][int(m[1])-1]['source'])
    return '\n'.join([f'the cell that failed, number {m[1]}:', *('    '+l for l in src.splitlines())])

@pytest.fixture(scope='session')
def runs(request, tmp_path_factory):
    "The results to come of all chosen notebooks; the papers, which take longest, start first"
    runner = Runner(tmp_path_factory.mktemp('notebooks'), [k for k,v in flags_here().items() if not v])
    names = [o.callspec.params['name'] for o in request.session.items if o.name.startswith('test_notebook[')]
    with ThreadPoolExecutor(at_once) as pool:
        try: yield {n:pool.submit(runner.run, root/'nbs'/n) for n in sorted(names, key=lambda n: not n.startswith('papers/'))}
        finally: runner.stop()

@pytest.mark.parametrize('name', notebooks)
def test_notebook(name, runs, record_property):
    ok,said,seconds = runs[name].result()
    record_property('seconds', seconds)
    if not ok: pytest.fail(f'nbs/{name}\n{failing_cell(root/"nbs"/name, said)}\n{said}', pytrace=False)

def test_failing_cell_is_shown(tmp_path):
    "A notebook that fails is reported with the cell that did, and cells with a flag that is not asked for are left out"
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(root/f, tmp_path)
    code = ['#| gpu\n1/0', 'fine = 1', 'fine/0 # here it goes wrong']
    cells = [dict(cell_type='code', id=f'c{i}', metadata={}, source=o, execution_count=None, outputs=[]) for i,o in enumerate(code)]
    path = tmp_path/'nbs'/'fails.ipynb'
    path.parent.mkdir()
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)))
    ok,said,_ = Runner(tmp_path, []).run(path)
    assert not ok and 'ZeroDivisionError' in said
    assert 'fine/0 # here it goes wrong' in failing_cell(path, said)
