"""Write the pages of the notebooks into _docs: `python tools/docs.py`

The pages hold what is stored in the notebooks, nothing is run for them. Hidden cells and directives are left out. Beside every page stands its plain Markdown,
where the docstrings of the modules point to."""
import json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from histolab_nb.notebooks import for_report, heading

root = Path(__file__).resolve().parent.parent
site = root/'_docs'

def pages(root=root):
    "Every notebook without its hidden cells, by the path of its page: `foundations/core`"
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        rel = p.relative_to(root/'nbs')
        if any(o.startswith(('.', '_')) for o in rel.parts): continue
        nb = for_report(nbformat.read(p, 4), badges=True)
        for c in nb.cells: c.metadata = dict(transient=c.metadata['transient'])
        yield rel.with_name(re.sub(r'^\d+_', '', rel.stem)).as_posix(), nb

def config(folder, nav):
    "Settings of MkDocs"
    menu = nav.pop('.', []) + [{k.capitalize(): nav[k]} for k in sorted(nav, reverse=True)]
    return dict(site_name='histolab_nb', docs_dir=str(folder), site_dir=str(site), use_directory_urls=False, nav=menu,
        theme=dict(name='material', features=['navigation.sections']), repo_url='https://github.com/histolab-nb/histolab_nb',
        plugins=['search', {'mkdocs-jupyter': dict(execute=False, ignore_h1_titles=True)}])

def write_markdown(name, nb):
    "The page as Markdown, with its pictures beside it"
    text,res = MarkdownExporter().from_notebook_node(nb, resources=dict(unique_key=Path(name).name, output_files_dir=f'{Path(name).name}_files'))
    (site/f'{name}.html.md').write_text(text, encoding='utf-8')
    for k,v in res['outputs'].items():
        (site/name).parent.joinpath(k).parent.mkdir(exist_ok=True)
        (site/name).parent.joinpath(k).write_bytes(v)

def main():
    nbs,nav = dict(pages()),{}
    with tempfile.TemporaryDirectory() as tmp:
        for name,nb in nbs.items():
            path = Path(tmp)/'pages'/f'{name}.ipynb'
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(nb, path)
            nav.setdefault(Path(name).parent.as_posix(), []).append({next(filter(None, map(heading, nb.cells)), name): f'{name}.ipynb'})
        (Path(tmp)/'mkdocs.yml').write_text(json.dumps(config(Path(tmp)/'pages', nav)), encoding='utf-8')
        shutil.rmtree(site, ignore_errors=True)
        cmd = [sys.executable, '-m', 'mkdocs', 'build', '-q', '-f', str(Path(tmp)/'mkdocs.yml')]
        if subprocess.call(cmd, cwd=tmp, env=os.environ | dict(NO_MKDOCS_2_WARNING='1')): sys.exit(1)
    for name,nb in nbs.items(): write_markdown(name, nb)

if __name__=='__main__': main()
