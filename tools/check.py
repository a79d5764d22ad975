"""Is the library in step with its notebooks, and are both in style? `python tools/check.py`

Every function whose name starts with `check_` returns a list of complaints. The tests call the same functions."""
import ast, base64, json, re, shutil, statistics, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
bin_dir = Path(sys.executable).parent

floors = {0:'core ledger', 1:'slides stain metrics plots datasets notebooks', 2:'phantom augment postprocess', 3:'training', 4:'inference',
    5:'dclr scale_attention instance_ssl glands unet_sharp', 6:'viewer comparison cli'}
floor_of = {m:f for f,ms in floors.items() for m in ms.split()}
heavy = {'torch', 'torchvision', 'fastai', 'kornia', 'timm'}

def notebooks(): return [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not any(o.startswith(('.', '_')) for o in p.relative_to(root).parts)]
def modules(): return [p for p in sorted((root/'histolab_nb').glob('*.py')) if not p.name.startswith('_')]
def name(p): return p.relative_to(root).as_posix()
def cells(p): return json.loads(p.read_text(encoding='utf-8'))['cells']
def source(c): return ''.join(c['source'])

def tool(cmd, *args, cwd=root):
    "What a command of the environment prints"
    done = subprocess.run([shutil.which(cmd, path=bin_dir) or cmd, *args], cwd=cwd, capture_output=True, text=True)
    return done.returncode, (done.stdout+done.stderr).strip()

def project_copy(folder):
    "The parts of the project that nbdev works on, copied to `folder`"
    for d in ('nbs', 'histolab_nb'): shutil.copytree(root/d, folder/d, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for f in ('settings.ini', 'pyproject.toml', 'README.md'): shutil.copy(root/f, folder)
    return folder

def differing(copy, pattern):
    "Files that are not the same in the copy and here"
    here,there = ({p.relative_to(r):p.read_bytes() for p in r.glob(pattern) if '.ipynb_checkpoints' not in p.parts} for r in (root,copy))
    return sorted(str(k.as_posix()) for k in {*here, *there} if here.get(k)!=there.get(k))

def check_export():
    "Is the library what nbdev-export writes from the notebooks?"
    with tempfile.TemporaryDirectory() as tmp:
        copy = project_copy(Path(tmp))
        rc,said = tool('nbdev-export', cwd=copy)
        return [said]*bool(rc) + [f'{f} is not what its notebook exports: run nbdev-export' for f in differing(copy, 'histolab_nb/*.py')]

def check_clean():
    "Do the notebooks hold nothing that nbdev-clean removes?"
    with tempfile.TemporaryDirectory() as tmp:
        copy = project_copy(Path(tmp))
        rc,said = tool('nbdev-clean', cwd=copy)
        return [said]*bool(rc) + [f'{f} is not clean: run nbdev-clean' for f in differing(copy, 'nbs/**/*.ipynb')]

def check_style():
    "Is chkstyle silent?"
    places = [d for d in ('nbs', 'tools', 'tests', 'benchmarks', 'setup.py') if (root/d).exists()]
    said = tool('chkstyle', *places)[1]
    return [] if 'found 0 potential violation' in said else [said.split('Style guidance')[0]]

def check_readme():
    "Is README.md what tools/readme.py writes?"
    import readme
    text,files = readme.render(root)
    same = (root/'README.md').read_text(encoding='utf-8')==text and all((root/k).is_file() and (root/k).read_bytes()==v for k,v in files.items())
    unknown = [p for p in notebooks() if p.parent.name=='papers' and name(p) not in text]
    return ([] if same else ['README.md is not what nbs/index.ipynb says: run make readme']) + [
        f'README.md does not know {name(p)}: run nbdev-test nbs/index.ipynb --save, then make readme' for p in unknown]

def imports(path, top_only=False):
    "Modules that a file imports; with `top_only` those imported as soon as it is"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    late = {id(o) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for o in ast.walk(f)} if top_only else set()
    for o in ast.walk(tree):
        if id(o) in late: continue
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        elif isinstance(o, ast.ImportFrom):
            base = '.'.join(filter(None, ['histolab_nb' if o.level else '', o.module]))
            yield base
            if base=='histolab_nb': yield from (f'{base}.{a.name}' for a in o.names)

def check_floors():
    "Does every module import from floors below its own only (from `core` all may), and are floors 0 and 1 light?"
    bad = []
    for p in modules():
        mine = floor_of.get(p.stem)
        if mine is None:
            bad.append(f'{name(p)} has no floor')
            continue
        for m in (i.split('.')[1] for i in imports(p) if i.startswith('histolab_nb.')):
            if m!='core' and floor_of.get(m, -1)>=mine: bad.append(f'{name(p)} (floor {mine}) imports {m} (floor {floor_of[m]})')
        slow = heavy & {i.split('.')[0] for i in imports(p, top_only=True)}
        if mine<2 and slow: bad.append(f'{name(p)} (floor {mine}) imports {", ".join(sorted(slow))} at once')
    return bad

def tracked():
    "Text files of the project"
    rc,said = tool('git', 'ls-files', '--cached', '--others', '--exclude-standard')
    files = [root/f for f in said.splitlines()] if not rc else [p for p in root.rglob('*') if '.venv' not in p.parts]
    return [p for p in files if p.is_file() and p.suffix not in ('.png', '.jpg', '.webp', '.npz')]

def check_paths():
    "Does no file name a folder of somebody's machine?"
    pat = re.compile('|'.join([r'/ho'+r'me/\w', r'/Us'+r'ers/\w', r'/ro'+r'ot/', r'\bC:\\\\?Us'+'ers', r'(?<![\w.])/wo'+r'rk/']))
    found = ((p, i, l) for p in tracked() for i,l in enumerate(p.read_text(encoding='utf-8', errors='ignore').splitlines(), 1) if pat.search(l))
    return [f'{name(p)}:{i}: {l.strip()[:120]}' for p,i,l in found]

def check_version():
    "Does the version stand in one place?"
    version = re.search(r"__version__ = ['\"](.+?)['\"]", (root/'histolab_nb'/'__init__.py').read_text(encoding='utf-8'))
    if not version: return ['histolab_nb/__init__.py has no __version__']
    files = ['settings.ini', 'setup.py', 'pyproject.toml', *map(name, modules())]
    pat = re.compile(rf'__version__\s*=\s|^version\s*=\s*[\'"]?\d|[\'"]{re.escape(version[1])}[\'"]', re.M)
    return [f'{f} names a version' for f in files if pat.search((root/f).read_text(encoding='utf-8'))]

def check_outputs():
    "Are the notebooks small, with small pictures and without stored errors?"
    bad = []
    for p in notebooks():
        if p.stat().st_size>1_000_000: bad.append(f'{name(p)} has {p.stat().st_size/1e6:.1f} MB')
        for i,c in enumerate(cells(p)):
            if 'skip_exec' in source(c).split('\n---')[0] and c['cell_type']=='raw': bad.append(f'{name(p)} is skipped whole')
            for o in c.get('outputs', []):
                if o['output_type']=='error': bad.append(f'{name(p)} cell {i} stores an error')
                sizes = {k:len(base64.b64decode(''.join(v))) for k,v in o.get('data', {}).items() if k in ('image/png', 'image/jpeg')}
                bad += [f'{name(p)} cell {i} stores a picture of {v/1000:.0f} kB' for v in sizes.values() if v>100_000]
    return bad

def code_lines(src): return [l for l in src.splitlines() if l.strip() and not l.lstrip().startswith('#|')]

def figures(p):
    "Shape of a notebook: lines of its code cells, words of its prose, exported and asserting cells"
    cs = cells(p)
    code = [source(c) for c in cs if c['cell_type']=='code']
    n = sorted(len(code_lines(s)) for s in code if code_lines(s)) or [0]
    exported = [s for s in code if re.search(r'^#\|\s*exports?\b', s, re.M)]
    asserting = [s for s in code if s not in exported and re.search(r'\btest_\w+\(|\bassert\b|expect_fail\(', s)]
    words = sum(len(source(c).split()) for c in cs if c['cell_type']=='markdown')
    longest = max((len(code_lines(s)) for s in exported), default=0)
    return dict(median=statistics.median(n), p90=n[min(len(n)-1, int(.9*len(n)))], max=n[-1], longest_exported=longest,
        words=words, lines=sum(n), exported=len(exported), asserting=len(asserting))

def check_shape():
    "Are the code cells short (median at most 4 lines, no exported one above 50), and is there more prose than code?"
    bad = []
    for p in notebooks():
        f = figures(p)
        if f['median']>4: bad.append(f'{name(p)}: the median code cell has {f["median"]} lines')
        if f['longest_exported']>50: bad.append(f'{name(p)}: an exported cell has {f["longest_exported"]} lines')
        if f['words']<f['lines']: bad.append(f'{name(p)}: {f["words"]} words of prose for {f["lines"]} lines of code')
    return bad

def check_exercises():
    "Has every paper three whole exercises, with folded solutions and checks, and a sentence for everything a check finds?"
    from histolab_nb.notebooks import exercise_part, exercises, read_notebook
    bad = []
    for p in notebooks():
        if p.parent.name!='papers': continue
        nb = read_notebook(p)
        found = exercises(nb)
        if list(found)!=[1,2,3]: bad.append(f'{name(p)} has the exercises {", ".join(map(str, found)) or "none"}: there should be 1, 2, 3')
        for e in found.values():
            lost = [k for k in ('title', 'task', 'starter', 'solution', 'check') if not getattr(e, k)]
            if lost: bad.append(f'{name(p)}: exercise {e.number} lacks {", ".join(lost)}')
            claims = [o for o in ast.walk(ast.parse(e.check)) if isinstance(o, ast.Assert)]
            if not claims or not all(o.msg for o in claims): bad.append(f'{name(p)}: the check of exercise {e.number} needs assertions, each with a sentence')
        for c in nb.cells:
            part,n = exercise_part(c)
            if part in ('solution', 'check') and not c.metadata.get('jupyter', {}).get('source_hidden'): bad.append(f'{name(p)}: the {part} of exercise {n} is not folded')
    return bad

colab = 'https://colab.research.google.com/github/histolab-nb/histolab_nb/blob/main/'

def badge_of(p):
    "Where the Colab badge of a notebook leads and the cell after it; none if it has no badge"
    cs = cells(p)
    for c,after in zip(cs, [*cs[1:], None]):
        m = re.search(r'\[!\[[^]]*\]\([^)]*colab-badge[^)]*\)\]\(([^)]*)\)', source(c)) if c['cell_type']=='markdown' else None
        if m: return m[1], source(after) if after else ''

def check_colab():
    "Does every Colab badge open its own notebook, with the same cell behind it that makes the package work there?"
    found = {p:badge_of(p) for p in notebooks()}
    bad = [f'{name(p)} has no Colab badge' for p,b in found.items() if p.parent.name=='papers' and not b]
    bad += [f'the badge of {name(p)} leads to {b[0]}' for p,b in found.items() if b and b[0]!=colab+name(p)]
    setup = {p:b[1] for p,b in found.items() if b}
    want = next((s for s in setup.values() if "find_spec('histolab_nb')" in s and 'doctor(' in s), None)
    return bad + [f'{name(p)} has another cell behind its badge than the other notebooks, or none' for p,s in setup.items() if s!=want]

checks = [v for k,v in sorted(globals().items()) if k.startswith('check_')]

def main():
    bad = 0
    for f in checks:
        said = f()
        bad += len(said)
        print(f'{"bad" if said else "ok ":4}{f.__doc__}')
        for s in said: print('    '+s.replace('\n', '\n    '))
    print(f'\n{"":34}code lines: median p90 max   total | words of prose | cells: exported asserting')
    for p in notebooks():
        f = figures(p)
        print(f'{name(p):<46}{f["median"]:6.1f}{f["p90"]:4d}{f["max"]:4d}{f["lines"]:8d} |{f["words"]:15d} |{f["exported"]:16d}{f["asserting"]:10d}')
    if bad: sys.exit(f'\n{bad} complaints')

if __name__=='__main__': main()
