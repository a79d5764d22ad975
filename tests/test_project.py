"The project as a whole: library and notebooks in step, floors kept, light imports, what an installation carries"
import json, subprocess, sys, zipfile
from pathlib import Path
import pytest, check
from fastcore.nbio import mk_cell, new_nb, write_nb

root = Path(__file__).resolve().parent.parent
light = [m for f in (0, 1) for m in check.floors[f].split() if (root/'histolab_nb'/f'{m}.py').exists()] + ['cli']

@pytest.mark.parametrize('f', check.checks, ids=lambda f: f.__name__)
def test_check(f):
    said = f()
    assert not said, f.__doc__ + '\n' + '\n'.join(said)

@pytest.mark.parametrize('name', light)
def test_light_import(name):
    "Reading a slide, a metric or a table must not cost the seconds that torch takes to load"
    code = f'import sys, histolab_nb.{name}; print(*sorted({check.heavy} & {{m.split(".")[0] for m in sys.modules}}))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split()==[]

def test_floors_are_complaints(tmp_path, monkeypatch):
    "The check of the floors sees both kinds of slip"
    (tmp_path/'histolab_nb').mkdir()
    (tmp_path/'histolab_nb'/'stain.py').write_text('from .dclr import *\nimport torch\ndef f(): import fastai\n')
    monkeypatch.setattr(check, 'root', tmp_path)
    said = check.check_floors()
    assert len(said)==2 and 'imports dclr (floor 5)' in said[0] and 'imports torch at once' in said[1]

def test_exercises_are_complaints(tmp_path, monkeypatch):
    "The check of the exercises sees what is not there, not folded, and not said"
    folded = dict(metadata=dict(jupyter=dict(source_hidden=True)))
    one = [mk_cell('### Exercise 1: A', 'markdown'), mk_cell('#| exercise 1\na = None'), mk_cell('#| solution 1\na = 1', **folded), mk_cell('#| check 1\nassert a, "one is asked for"', **folded)]
    two = [mk_cell('#| exercise 2\nb = None'), mk_cell('#| solution 2\nb = 1'), mk_cell('#| check 2\nassert b', **folded)]
    path = tmp_path/'nbs'/'papers'/'10_a.ipynb'
    path.parent.mkdir(parents=True)
    write_nb(new_nb(one+two), path)
    monkeypatch.setattr(check, 'root', tmp_path)
    said = check.check_exercises()
    assert len(said)==4 and all(s in o for s,o in zip(('there should be 1, 2, 3', 'exercise 2 lacks title, task', 'each with a sentence', 'solution of exercise 2 is not folded'), said))

def test_wheel_carries_notebooks_and_claims(tmp_path):
    "What is installed with pip holds all that the command line needs"
    for d in ('nbs', 'histolab_nb'): check.shutil.copytree(root/d, tmp_path/d)
    for f in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'): check.shutil.copy(root/f, tmp_path)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', 'dist', '.'], cwd=tmp_path, check=True)
    names = zipfile.ZipFile(next((tmp_path/'dist').glob('*.whl'))).namelist()
    assert {'histolab_nb/data/claims.csv', 'histolab_nb/data/report.html.j2', 'histolab_nb/data/course.md.j2', 'histolab_nb/notebooks.py'} <= set(names)
    assert {f'histolab_nb/nbs/{p.relative_to(root/"nbs").as_posix()}' for p in check.notebooks()} <= set(names)

def test_results_are_whole():
    "Every record of a measurement can be read, and says what it is about"
    for p in (root/'results').rglob('*.json'): assert isinstance(json.loads(p.read_text(encoding='utf-8')), dict), p
