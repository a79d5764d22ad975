"""The cell behind the Colab badge, run as it stands where torch and NumPy are there already and histolab_nb is not.

The stand-in for Colab is a virtual environment. What is large is the running environment's, by links in a folder beside it, which pip cannot change; NumPy and
ipywidgets are older ones and its own; some packages are missing, as they are in Colab."""
import importlib.metadata as md, json, os, subprocess, sys, sysconfig, venv, zipfile
from pathlib import Path
import pytest, check
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

source = 'git+https://github.com/histolab-nb/histolab_nb'
missing = {'histolab-nb', 'imagecodecs', 'kornia', 'openslide-bin', 'openslide-python', 'pytorch-optimizer', 'segmentation-models-pytorch'}
own = {'ipywidgets':'==7.7.1', 'widgetsnbextension':'<4', 'jupyterlab-widgets':'<4'}

def the_cell(asked=source): return check.badge_of(next((check.root/'nbs'/'papers').glob('*.ipynb')))[1].replace(source, asked)

def needed(name, extras=(), found=None):
    "Names of the distributions that `name` with its extras needs here, itself included; those with the extras they were seen with"
    found,name = {} if found is None else found,canonicalize_name(name)
    new = {'', *extras} - found.setdefault(name, set())
    found[name] |= new
    for r in map(Requirement, md.requires(name) or []) if new else []:
        if not r.marker or any(r.marker.evaluate(dict(extra=e)) for e in new): needed(r.name, r.extras, found)
    return found

def link(name, folder):
    "Links to all that the distribution `name` has in this environment"
    dist = md.distribution(name)
    for top in {Path(f).parts[0] for f in dist.files or []} - {'..', '__pycache__'}:
        if not (folder/top).exists(): (folder/top).symlink_to(Path(dist.locate_file('')).resolve()/top)

def run(python, *args, **env):
    kept = {k:v for k,v in os.environ.items() if not k.startswith(('PYTHON', 'HISTOLAB_', 'VIRTUAL_ENV'))}
    return subprocess.run([str(python), *map(str, args)], capture_output=True, text=True, env=kept | env)

@pytest.fixture(scope='module')
def index(tmp_path_factory):
    "Skips where pip reaches no package index"
    done = run(sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--timeout', 20, '--retries', 0, '-d', tmp_path_factory.mktemp('index'), 'defusedxml')
    if done.returncode: pytest.skip(f'pip reaches no package index: {done.stderr.strip().splitlines()[-1]}')

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "histolab_nb of this checkout"
    tmp = tmp_path_factory.mktemp('wheel')
    for d in ('nbs', 'histolab_nb'): check.shutil.copytree(check.root/d, tmp/d)
    for f in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'): check.shutil.copy(check.root/f, tmp)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', 'dist', '.'], cwd=tmp, check=True)
    return next((tmp/'dist').glob('*.whl'))

class Colab:
    "A machine on which much is installed, and a kernel that knows `google.colab`"
    def __init__(self, tmp):
        self.home,self.there,self.fake = tmp/'venv',tmp/'there',tmp/'fake'
        venv.create(self.home, with_pip=True)
        self.python = self.home/'bin'/'python' if os.name!='nt' else self.home/'Scripts'/'python.exe'
        self.site = Path(sysconfig.get_path('purelib', vars=dict(base=str(self.home), platbase=str(self.home))))
        (self.fake/'google'/'colab').mkdir(parents=True)
        (self.fake/'google'/'colab'/'__init__.py').touch()
        self.there.mkdir()
        for name in sorted(set(needed('histolab_nb')) - missing - {'numpy', 'pip', *own}): link(name, self.there)
        (self.site/'there.pth').write_text(f'{self.there}\n')
        self.pip('uninstall', '-q', '-y', 'setuptools') # of a venv of Python 3.11; that of the links is newer
        major,minor = md.version('numpy').split('.')[:2]
        done = self.pip('install', '-q', '--no-deps', f'numpy<{major}.{minor}', *(f'{k}{v}' for k,v in own.items()))
        assert done.returncode==0, done.stderr

    def pip(self, *args): return run(self.python, '-m', 'pip', *args, '--disable-pip-version-check')
    def versions(self): return {canonicalize_name(o['name']):o['version'] for o in json.loads(self.pip('list', '--format=json').stdout)}

    def run_cell(self, asked):
        "What the cell prints in a fresh kernel"
        (self.fake/'cell.py').write_text('import google.colab\n' + the_cell(asked))
        return run(self.python, self.fake/'cell.py')

    def places(self):
        "Where torch and NumPy come from, and how old their files are"
        code = 'import json, os, numpy, torch; print(json.dumps([[m.__version__, m.__file__, os.stat(m.__file__).st_mtime_ns] for m in (numpy, torch)]))'
        return run(self.python, '-W', 'ignore', '-c', code).stdout

@pytest.fixture(scope='module')
def colab(index, tmp_path_factory): return Colab(tmp_path_factory.mktemp('colab'))

def impossible(folder):
    "A wheel of histolab_nb that no NumPy is new enough for"
    path,info = folder/'histolab_nb-0-py3-none-any.whl','histolab_nb-0.dist-info'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: histolab_nb\nVersion: 0\nRequires-Dist: numpy>=99\n')
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{info}/RECORD', '')
    return path.as_uri()

def test_versions_that_cannot_be_held_are_explained(colab, tmp_path):
    done = colab.run_cell(asked := impossible(tmp_path))
    assert done.returncode==1 and 'histolab-nb 0 depends on numpy>=99' in done.stderr and 'histolab_nb does not go with the versions that are here' in done.stderr
    assert f'%pip install -q "histolab_nb @ {asked}", then Runtime > Restart session' in done.stderr and 'histolab-nb' not in colab.versions()

def test_cell_installs_beside_what_is_there(colab, wheel):
    before,places = colab.versions(),colab.places()
    assert not missing & set(before) and before['numpy']!=md.version('numpy') and before['torch']==md.version('torch') and str(colab.there) in places
    done = colab.run_cell(wheel.as_uri())
    assert done.returncode==0, done.stdout+done.stderr
    assert done.stdout.startswith('installing histolab_nb') and 'in Colab' in done.stdout and 'ready' in done.stdout and 'bad ' not in done.stdout
    after = colab.versions()
    assert missing <= set(after) and {k:after[k] for k in before}==before and colab.places()==places
    again = colab.run_cell(wheel.as_uri())
    assert again.returncode==0 and 'installing' not in again.stdout and 'ready' in again.stdout and colab.versions()==after

def test_cell_is_silent_where_the_package_is():
    done = run(sys.executable, '-c', the_cell('nowhere'), PYTHONPATH=str(check.root))
    assert (done.returncode, done.stdout)==(0, ''), done.stderr

def test_badges_are_checked(tmp_path, monkeypatch):
    badge = '[![Open In Colab](https://x/colab-badge.svg)]({})'
    cell = dict(cell_type='code', metadata={}, outputs=[], source="find_spec('histolab_nb')\ndoctor()")
    (tmp_path/'nbs'/'papers').mkdir(parents=True)
    for n,to,after in (('a', check.colab+'nbs/papers/a.ipynb', [cell]), ('b', check.colab+'nbs/papers/a.ipynb', [cell]), ('c', check.colab+'nbs/papers/c.ipynb', []), ('d', '', [])):
        cs = [dict(cell_type='markdown', metadata={}, source=badge.format(to) if to else '# no badge'), *after]
        (tmp_path/'nbs'/'papers'/f'{n}.ipynb').write_text(json.dumps(dict(cells=cs)))
    monkeypatch.setattr(check, 'root', tmp_path)
    said = check.check_colab()
    assert len(said)==3 and 'd.ipynb has no Colab badge' in said[0] and 'the badge of nbs/papers/b.ipynb leads to' in said[1] and 'c.ipynb has another cell' in said[2]
