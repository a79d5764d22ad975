"""Write constraints.txt from the environment this runs in: `python tools/constraints.py`

Names and versions of the packages that settings.ini asks for (with the extras dev and docs) and of all that these ask for. What only a CUDA build of
torch pulls in is left out: it is another set on every platform. A package that no longer supports the oldest Python of settings.ini carries a marker."""
import configparser, importlib.metadata as md, re
from pathlib import Path
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
cuda_only = re.compile(r'(nvidia-|cuda-|triton$)')

def closure(reqs):
    "Names of `reqs` and of everything they need here, with the distributions"
    found,todo = {},[(Requirement(r), set()) for r in reqs]
    while todo:
        r,extras = todo.pop()
        if r.marker and not any(r.marker.evaluate(dict(extra=e)) for e in extras | {''}): continue
        name = canonicalize_name(r.name)
        if cuda_only.match(name) or found.get(name, set()) >= r.extras | {''}: continue
        found[name] = found.get(name, set()) | r.extras | {''}
        todo += [(Requirement(o), r.extras) for o in md.requires(name) or []]
    return sorted(found)

def pin(name, oldest):
    "A line of the file; `oldest` is the minor version of the oldest Python"
    fits = SpecifierSet(md.metadata(name).get('Requires-Python') or '')
    first = next(i for i in range(oldest, 99) if fits.contains(f'3.{i}.99'))
    return f'{name}=={md.version(name).split("+")[0]}' + (f' ; python_version >= "3.{first}"' if first>oldest else '')

def main():
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    c = cfg['DEFAULT']
    reqs = [r for k in ('requirements', 'dev_requirements', 'docs_requirements') for r in c[k].split()]
    lines = ['# The exact versions of a known-good environment; written by tools/constraints.py']
    (root/'constraints.txt').write_text('\n'.join(lines+[pin(n, int(c['min_python'].split('.')[1])) for n in closure(reqs)])+'\n', encoding='utf-8')

if __name__=='__main__': main()
