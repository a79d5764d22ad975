"""Write the site into _docs: `python tools/docs.py`

Its pages are the notebooks as they are stored (nothing is run), the API of every module, and a gallery of the figures. Hidden cells, directives and solutions
are left out. The site needs no network: everything it loads is a file of its own, also when it is opened as file://. Beside the page of a notebook stands its
plain Markdown, where the docstrings of the modules point to. At the end every link is followed; a dead one inside the site fails the build."""
import ast, base64, html, importlib, inspect, io, json, os, re, shutil, sys, tempfile, time, warnings
from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
import nbformat
from bs4 import BeautifulSoup
from fastcore.docments import docments
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from histolab_nb.notebooks import for_report, heading

root = Path(__file__).resolve().parent.parent
site = root/'_docs'
home = 'https://github.com/histolab-nb/histolab_nb'
url = 'https://histolab-nb.github.io/histolab_nb/'
sections = dict(papers='Papers', course='Course', foundations='Foundations', api='API')

# a page of the site; `figures` are (picture, alternative text, heading, its anchor), `exports` are (source, (heading, its anchor)) of the exported cells
Page = namedtuple('Page', 'name title about body figures exports', defaults=((), ()))
# what a module defines: `name` may be that of a method, `line` is where; `members` are the methods of a class
Symbol = namedtuple('Symbol', 'name line kind obj members')

# ---- text to HTML

class Renderer(IPythonRenderer):
    "Markdown as Jupyter reads it, with formulas where MathJax looks for them"
    def inline_math(self, body): return f'<span class="math">\\({html.escape(body, False)}\\)</span>'
    def block_math(self, body): return f'<div class="math">\\[{html.escape(body, False)}\\]</div>'
    def latex_environment(self, name, body): return self.block_math(f'\\begin{{{name}}}{body}\\end{{{name}}}')
    def block_code(self, code, info=None): return code_html(code, info or 'text')

def markdown(text): return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(text)

def code_html(code, lang='python'):
    try: lexer = get_lexer_by_name(lang.split()[0])
    except ValueError: lexer = get_lexer_by_name('text')
    return highlight(code.rstrip(), lexer, HtmlFormatter(cssclass='highlight', wrapcode=True))

def head_link(anchor): return f'<a class="headerlink" href="#{quote(anchor)}" title="Link to this place">¶</a>'

def plain(md):
    "The words of a piece of Markdown"
    return ' '.join(BeautifulSoup(markdown(md), 'html.parser').get_text().split())

def page_of(path):
    "The page of a notebook: `foundations/core` for `foundations/00_core.ipynb`"
    p = Path(path)
    return p.with_name(re.sub(r'^\d+_', '', p.stem)).as_posix()

def relative(to, name):
    "A link from the page `name` to a file of the site"
    return quote(Path(os.path.relpath(to, Path(name).parent)).as_posix())

def new_target(href, name, folder):
    "Where a link of the notebook in `folder` leads on the site: notebooks become pages, files of the checkout are on GitHub"
    path,_,anchor = href.removeprefix(f'{home}/blob/main/nbs/').partition('#')
    ours = path.endswith('.ipynb') and not re.match(r'\w+:', path)
    if ours:
        to = os.path.normpath(Path(*([] if href.startswith(home) else [folder]), unquote(path)))
        return relative(f'{page_of(to)}.html', name) + (f'#{anchor}' if anchor else '')
    if re.match(r'\w+:|#|//', href): return href
    return f'{home}/blob/main/' + os.path.normpath(Path('nbs', folder, path)).removeprefix('nbs/') + (f'#{anchor}' if anchor else '')

def polish(text, name, symbols, folder='.', seen=None):
    "HTML of a Markdown cell with the anchors and links of the site; `symbols` are the pages of what code may name"
    soup,seen = BeautifulSoup(text, 'html.parser'),{} if seen is None else seen
    for h in soup.find_all(re.compile('^h[1-6]$')):
        anchor = h.get('id') or re.sub(r'\s+', '-', h.get_text().strip())
        seen[anchor] = seen.get(anchor, 0)+1
        h['id'] = anchor + f'_{seen[anchor]-1}'*(seen[anchor]>1)
        h.append(BeautifulSoup(head_link(h['id']), 'html.parser'))
    for a in soup.find_all('a', href=True):
        if badge := a.find('img', src=re.compile('colab-badge')): badge.replace_with(badge['alt'])
        if 'colab.research' in a['href']: a['class'] = 'badge'
        if 'headerlink' not in a.get('class', []): a['href'] = new_target(a['href'], name, folder)
    for c in soup.find_all('code'):
        to = symbols.get(re.sub(r'\(.*\)$', '', c.get_text()))
        if to and not c.find_parent(['a', 'pre', re.compile('^h[1-6]$')]):
            page,_,anchor = to.partition('#')
            c.wrap(soup.new_tag('a', href=f'{relative(page, name)}#{quote(anchor)}', attrs={'class':'symbol'}))
    for t in soup.find_all('table'): t.wrap(soup.new_tag('div', attrs={'class':'wide'}))
    return str(soup)

# ---- notebooks

def notebooks(root=root):
    "Every notebook without its hidden cells, and its path in `nbs`"
    for p in sorted((root/'nbs').rglob('*.ipynb')):
        rel = p.relative_to(root/'nbs')
        if not any(o.startswith(('.', '_')) for o in rel.parts): yield rel, nbformat.read(p, 4)

def alt_text(source, before, where):
    "What a picture shows: its `fig-alt`, else the end of the text before it, else the chapter"
    if m := re.search(r'^#\|\s*fig-alt:\s*(.+)$', source, re.M): return m[1].strip()
    words = plain(re.sub(r'^#+ .*$', '', before, flags=re.M))
    return words[-200:].partition(' ')[2] if len(words)>200 else words or where

def extract_pictures(c, name, alt):
    "Put the pictures of a cell into files: what is to be written, by path. In the cell an `<img>` and a Markdown image take their place"
    files = {}
    for i,o in enumerate(c.get('outputs', [])):
        kind = next((k for k in ('image/png', 'image/jpeg') if k in o.get('data', {})), None)
        if not kind: continue
        data,path = base64.b64decode(o.data[kind]),f'{Path(name).name}_files/{c.id}_{i}.{kind[6:].replace("jpeg", "jpg")}'
        files[(Path(name).parent/path).as_posix()] = data
        w,h = Image.open(io.BytesIO(data)).size
        want = o.get('metadata', {}).get(kind, {}).get('width', w)
        img = f'<img src="{quote(path)}" alt="{html.escape(alt)}" width="{want}" height="{round(h*want/w)}" loading="lazy">'
        o.data = {'text/html':f'<figure>{img}</figure>', 'text/markdown':f'![{re.sub("[][]", "", alt)}]({path})'}
    return files

def output_html(o, name, symbols, folder):
    "An output of a cell"
    if o.output_type=='stream': return f'<pre class="output">{html.escape(strip_ansi(o.text))}</pre>'
    d = o.get('data', {})
    if 'text/html' in d: return f'<div class="output wide">{d["text/html"]}</div>'
    if 'text/markdown' in d: return f'<div class="output">{polish(markdown(d["text/markdown"]), name, symbols, folder)}</div>'
    if 'image/svg+xml' in d: return f'<div class="output">{d["image/svg+xml"]}</div>'
    return f'<pre class="output">{html.escape(strip_ansi(d["text/plain"]))}</pre>' if d.get('text/plain') else ''

def title_of(nb, name): return next(filter(None, map(heading, nb.cells)), Path(name).name)

def about(nb):
    "The promise under the title"
    m = next(filter(None, (re.search(r'^> ?(.+(?:\n> ?.+)*)', c.source, re.M) for c in nb.cells if c.cell_type=='markdown')), None)
    return plain(re.sub(r'^> ?', '', m[1], flags=re.M)) if m else ''

def notebook_page(nb, rel, symbols):
    "The page of a notebook, its Markdown, and the files of its pictures"
    rel,name = Path(rel),page_of(rel)
    source,before = {c.get('id'):c.source for c in nb.cells},''
    nb,figures,files,parts,seen,exports = for_report(nb, badges=True),[],{},[],{},[]
    where = title_of(nb, name),''
    for c in nb.cells:
        if c.cell_type=='markdown':
            before = c.source
            parts.append(polish(markdown(c.source), name, symbols, rel.parent, seen))
            heads = BeautifulSoup(parts[-1], 'html.parser').find_all(re.compile('^h[1-4]$'))
            if heads: where = heads[-1].get_text().removesuffix('¶'),heads[-1]['id']
        elif c.cell_type=='code':
            alt = alt_text(source[c.id], before, where[0])
            mine = extract_pictures(c, name, alt)
            files |= mine
            if re.search(r'^#\|\s*exports?\b', source[c.id], re.M): exports.append((c.source, where))
            figures += [(f, alt, *where) for f in mine]
            if not c.metadata['transient']['remove_source']: parts.append(code_html(c.source))
            parts += [output_html(o, name, symbols, rel.parent) for o in c.outputs]
    links = f'<p class="origin"><a href="{home}/blob/main/nbs/{quote(rel.as_posix())}">Notebook on GitHub</a></p>'
    if (m := next((re.search(r'^#\|\s*default_exp\s+(\w+)', s) for s in source.values() if 'default_exp' in s), None)):
        links = links.replace('</p>', f' · <a href="{relative(f"api/{m[1]}.html", name)}">API of <code>{m[1]}</code></a></p>')
    body = re.sub(r'(</h1>)', lambda m: m[1]+(links if rel.name!='index.ipynb' else ''), '\n'.join(parts), count=1)
    for c in nb.cells: c.metadata = nbformat.from_dict(dict(transient=c.metadata['transient']))
    for o in (o for c in nb.cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})): o.data.pop('text/html', None)
    text,_ = MarkdownExporter().from_notebook_node(nb)
    return Page(name, title_of(nb, name), about(nb), body, figures, exports), text, files

# ---- API

def module_symbols(mod):
    "What a module defines, in the order of its file, with the methods that `patch` adds to its classes"
    res,path = {},Path(inspect.getsourcefile(mod))
    def add(name, node, obj, kind): res[name] = Symbol(name, node.lineno, kind, obj, [])
    def method(cls, node):
        if cls not in res or node.name.startswith('_') or f'{cls}.{node.name}' in [m.name for m in res[cls].members]: return
        kind = 'property' if isinstance(inspect.getattr_static(res[cls].obj, node.name, None), property) else 'method'
        res[cls].members.append(Symbol(f'{cls}.{node.name}', node.lineno, kind, getattr(res[cls].obj, node.name), []))
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign):
            targets = (o for t in node.targets for o in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(o, ast.Name))
            for t in targets:
                if not t.id.startswith('_') and t.id in getattr(mod, '__all__', [t.id]): add(t.id, node, getattr(mod, t.id), 'value')
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        if any(ast.unparse(d).startswith('patch') for d in node.decorator_list):
            for cls in ast.unparse(node.args.args[0].annotation).split(' | '): method(cls, node)
        elif not node.name.startswith('_'):
            add(node.name, node, getattr(mod, node.name), 'class' if isinstance(node, ast.ClassDef) else 'function')
            for o in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)): method(node.name, o)
    return list(res.values())

def cut(s): return s if len(s)<60 else s[:57]+'…'

def type_text(o):
    "A type without the names of modules"
    if isinstance(o, type) and not hasattr(o, '__args__'): return o.__name__
    return cut(re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])', '', o if isinstance(o, str) else inspect.formatannotation(o)))

def value_text(o):
    "A default or a constant"
    if inspect.isroutine(o) or isinstance(o, type): return o.__name__
    return '…' if 'factory' in repr(o) else cut(re.sub(r' at 0x[0-9a-f]+', '', repr(o)))

def signature(sym):
    "How `sym` is called, without the types that stand in its table; its parameters with their comments"
    obj = inspect.unwrap(sym.obj.fget if sym.kind=='property' else sym.obj)
    try: sig,docs = inspect.signature(obj),docments(obj, full=True)
    except (ValueError, TypeError): return sym.name, {}
    show,star = [],False
    for p in sig.parameters.values():
        if p.name=='self' and sym.kind in ('method', 'property'): continue
        if p.kind is p.KEYWORD_ONLY and not star: show.append('*')
        star = star or p.kind in (p.VAR_POSITIONAL, p.KEYWORD_ONLY)
        show.append({p.VAR_POSITIONAL:'*', p.VAR_KEYWORD:'**'}.get(p.kind, '') + p.name + (f'={value_text(p.default)}' if p.default is not p.empty else ''))
    if sym.kind=='property': return sym.name, docs
    line = f'{sym.name}({", ".join(show)})'
    return (line if len(line)<100 else f'{sym.name}(\n    ' + ',\n    '.join(show) + ')'), docs

def table(heads, rows, cls='list'):
    "A table of HTML that may be wider than the page"
    head,body = ''.join(f'<th>{o}</th>' for o in heads),''.join(f'<tr>{o}</tr>' for o in rows)
    return f'<div class="wide"><table class="{cls}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

def cell(s): return re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(str(s), quote=False))

def parameter_table(docs, cls=False):
    "The comments of parameters (docments) as a table; nothing if there are none"
    docs = {k:v for k,v in docs.items() if k!='self' and not (k=='return' and cls)}
    if not any(v.get('docment') for v in docs.values()): return ''
    rows = []
    for k,v in docs.items():
        anno,default = ('' if v.get(o, inspect._empty) is inspect._empty else text(v[o]) for o,text in (('anno', type_text), ('default', value_text)))
        if k=='return' and not (anno or v.get('docment')): continue
        nm = '<em>returns</em>' if k=='return' else f'<code>{html.escape(k)}</code>'
        cols = [nm, *(f'<code>{html.escape(o)}</code>' if o else '' for o in (anno, default)), cell(v.get('docment') or '')]
        rows.append(''.join(f'<td>{o}</td>' for o in cols))
    return table(['parameter', 'type', 'default', 'meaning'], rows, 'parameters')

def chapter_of(page, name):
    "Heading and anchor of the chapter of a notebook's page that defines `name`"
    cls,_,short_name = name.rpartition('.')
    pat = rf'^@?patch.*\n(?:async )?def {short_name}\(\s*self:{cls}\b|^class {cls}\b(?s:.*?)\n +(?:async )?def {short_name}\b' if cls else \
        rf'^(?:(?:async )?def|class) {name}\b|^[\w, ]*\b{name}\b[\w, ]*=[^=]'
    return next((where for src,where in page.exports if re.search(pat, src, re.M)), None)

def symbol_html(sym, page, mod, level=2):
    "Heading, signature, docstring and parameters of a symbol, with links to chapter and source"
    line,docs = (sym.name, {}) if sym.kind=='value' else signature(sym)
    links = [f'<a href="{home}/blob/main/histolab_nb/{mod}.py#L{sym.line}">source</a>']
    if where := chapter_of(page, sym.name): links.insert(0, f'<a href="{relative(page.name, "api/x")}.html#{quote(where[1])}">{html.escape(where[0])}</a>')
    doc = '' if sym.kind=='value' else inspect.getdoc(sym.obj) or ''
    if sym.kind=='class' and doc.startswith(f'{sym.name}('): doc = ''
    if sym.kind=='value': line = f'{sym.name} = {value_text(sym.obj)}'
    head = f'<h{level} id="{html.escape(sym.name)}">{html.escape(sym.name)}{head_link(sym.name)}</h{level}>'
    head += f'<p class="origin">{sym.kind} · {" · ".join(links)}</p>'
    return f'<div class="symbol">{head}{code_html(line)}{markdown(doc)}{parameter_table(docs, sym.kind=="class")}</div>' + ''.join(symbol_html(m, page, mod, level+1) for m in sym.members)

def api_page(mod, page, symbols):
    "The page of a module; `page` is that of its notebook"
    short_name = mod.__name__.split('.')[-1]
    doc = re.sub(r'\n*^Docs: \S+$', '', mod.__doc__ or '', flags=re.M).strip()
    links = f'<a href="{relative(page.name, "api/x")}.html">Notebook: {html.escape(page.title)}</a> · <code>from {mod.__name__} import *</code>'
    body = f'<h1 id="{short_name}">{short_name}</h1><p class="origin">{links}</p>' + polish(markdown(doc), f'api/{short_name}', symbols)
    return Page(f'api/{short_name}', short_name, plain(doc.split('\n\n')[0]), body + ''.join(symbol_html(s, page, short_name) for s in module_symbols(mod)))

def api_index(pages):
    "All modules and what they are for"
    rows = [f'<td><a href="{p.title}.html"><code>{p.title}</code></a></td><td>{html.escape(p.about)}</td>' for p in pages]
    lead = 'Every public function and class, from the modules themselves. The notebooks show them at work.'
    return Page('api/index', 'Overview', lead, f'<h1 id="API">API</h1><p>{lead}</p>' + table(['module', 'what it does'], rows))

def gallery(pages):
    "All figures, each with a link to its page and chapter"
    parts = []
    for p in (p for p in pages if p.figures):
        img = lambda f,alt: f'<img src="{quote(f)}" alt="{html.escape(alt)}" loading="lazy">'
        items = [f'<figure><a href="{p.name}.html#{quote(anchor)}">{img(f, alt)}</a><figcaption>{html.escape(where)}</figcaption></figure>'
            for f,alt,where,anchor in p.figures]
        anchor = p.name.replace('/', '-')
        head = f'<h2 id="{anchor}"><a href="{p.name}.html">{html.escape(p.title)}</a>{head_link(anchor)}</h2>'
        parts.append(f'{head}<div class="gallery">{"".join(items)}</div>')
    lead = 'Every figure of the notebooks, as its cell drew it. A click leads to the chapter.'
    return Page('gallery', 'Gallery', lead, f'<h1 id="Gallery">Gallery</h1><p>{lead}</p>{"".join(parts)}')

# ---- the site

def toc_tokens(body):
    "The headings of a page as MkDocs wants them: each with its own below it"
    res,open_ = [],[]
    for level,anchor,text in re.findall(r'<h([1-6])[^>]*?\bid="([^"]*)"[^>]*>(.*?)</h\1>', body, re.S):
        text = re.sub(r'<a class="headerlink".*?</a>|</?a\b[^>]*>', '', text, flags=re.S)
        tok = dict(level=int(level), id=html.unescape(anchor), name=text, children=[])
        while open_ and open_[-1]['level']>=tok['level']: open_.pop()
        (open_[-1]['children'] if open_ else res).append(tok)
        open_.append(tok)
    return res

def navigation(pages):
    "Start, then the folders that are there in their order, then the gallery"
    nav = [{p.title if p.name!='index' else 'Start':f'{p.name}.md'} for p in pages if p.name=='index']
    for k,v in sections.items():
        inside = [{p.title:f'{p.name}.md'} for p in pages if p.name.startswith(f'{k}/')]
        if inside: nav.append({v:inside})
    return nav + [{p.title:f'{p.name}.md'} for p in pages if '/' not in p.name and p.name!='index']

def config(folder, nav):
    "Settings of MkDocs"
    look = lambda prefers,icon,to: dict(media=f'(prefers-color-scheme{prefers})', primary='deep purple', accent='pink', toggle=dict(icon=icon, name=f'Switch to {to}'))
    palette = [look('', 'material/brightness-auto', 'light'), look(': light', 'material/brightness-7', 'dark') | dict(scheme='default'),
        look(': dark', 'material/brightness-4', 'the setting of the system') | dict(scheme='slate')]
    features = ['navigation.tabs', 'navigation.top', 'navigation.footer', 'navigation.indexes', 'toc.follow', 'search.highlight', 'search.suggest', 'content.code.copy']
    theme = dict(name='material', custom_dir=str(root/'tools'/'site'/'overrides'), font=False, features=features, palette=palette,
        icon=dict(logo='material/microscope', repo='fontawesome/brands/github'))
    words = r'''[\s\-.,:;!=?*+/|\[\](){}<>"'`]+|&[lg]t;''' # what separates the words of the search
    return dict(site_name='histolab_nb', site_url=url, site_description='Five histology papers you can read, run and change',
        docs_dir=str(folder), site_dir=str(site), use_directory_urls=False, nav=nav, theme=theme, repo_url=home, repo_name='histolab_nb',
        copyright='Apache License 2.0. For teaching and research, never for diagnosis.', extra_css=['assets/site.css'],
        extra=dict(generator=False, polyfills=['assets/iframe-worker.js']), plugins=[dict(search=dict(separator=words)), 'offline'])

def build(pages, folder):
    "Let MkDocs put the pages into the site; `folder` is for its files"
    import mathjax
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config
    from mkdocs.plugins import BasePlugin
    from mkdocs.structure.toc import get_toc
    by_name = {p.name:p for p in pages}
    class Bodies(BasePlugin):
        "The pages come as HTML"
        def on_page_content(self, _, page, config, files):
            p = by_name[page.file.src_uri.removesuffix('.md')]
            page.toc = get_toc(toc_tokens(p.body))
            return p.body
    docs = folder/'pages'
    for p in pages:
        (docs/f'{p.name}.md').parent.mkdir(parents=True, exist_ok=True)
        meta = dict(title=p.title, description=p.about, math='class="math"' in p.body) | (dict(hide=['navigation']) if '/' not in p.name else {})
        (docs/f'{p.name}.md').write_text(f'---\n{json.dumps(meta)}\n---\n', encoding='utf-8')
    shutil.copytree(root/'tools'/'site'/'assets', docs/'assets')
    shutil.copy(Path(mathjax.__file__).parent/'static'/'mathjax'/'es5'/'tex-svg.js', docs/'assets')
    (folder/'mkdocs.yml').write_text(json.dumps(config(docs, navigation(pages))), encoding='utf-8')
    cfg = load_config(str(folder/'mkdocs.yml'))
    cfg.plugins['bodies'] = Bodies()
    shutil.rmtree(site, ignore_errors=True)
    mkdocs_build(cfg)

class _Links(HTMLParser):
    "Anchors, links and loaded files of a page"
    def __init__(self):
        super().__init__()
        self.ids,self.links,self.loads = set(),[],[]

    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {d[k] for k in ('id', 'name') if d.get(k)}
        if tag in ('a', 'area') and 'href' in d: self.links.append(d['href'] or '')
        if tag=='link' and {'stylesheet', 'preload', 'icon', 'preconnect'} & set((d.get('rel') or '').split()): self.loads.append(d.get('href') or '')
        if tag in ('script', 'img', 'iframe', 'source', 'video', 'audio') and d.get('src'): self.loads.append(d['src'])

def check_links(folder, base=url):
    "Complaints about dead links and files from elsewhere in the pages under `folder`, and the links that lead out"
    folder,pages,bad,out = Path(folder),{},[],set()
    for p in sorted(folder.rglob('*.html')):
        pages[p] = _Links()
        pages[p].feed(p.read_text(encoding='utf-8'))
    for p,page in pages.items():
        for href,load in [(o, False) for o in page.links] + [(o, True) for o in page.loads]:
            if href.startswith('data:') or not load and re.match(r'(mailto|javascript):', href): continue
            if re.match(r'(\w+:)?//', href) and not href.startswith(base):
                if load: bad.append(f'{p.relative_to(folder)} loads {href} from elsewhere')
                out.add(href)
                continue
            at = urlsplit(href.removeprefix(base) if href.startswith(base) else href)
            top = href.startswith(base) or at.path.startswith(urlsplit(base).path)
            path = unquote(at.path.removeprefix(urlsplit(base).path) if top else at.path)
            to = p if not path and not top else Path(os.path.normpath((folder if top else p.parent)/path))
            if to.is_dir(): to = to/'index.html'
            if not to.is_file(): bad.append(f'{p.relative_to(folder)} links to {href}, which is not there')
            elif at.fragment and to in pages and unquote(at.fragment) not in pages[to].ids and not at.fragment.startswith('__'):
                bad.append(f'{p.relative_to(folder)} links to {href}, which has no such anchor')
    return list(dict.fromkeys(bad)), sorted(out)

def all_pages(root=root):
    "Every page of the site, the Markdown of the notebooks, and the pictures"
    nbs = dict(notebooks(root))
    sources = {m[1]:rel for rel,nb in nbs.items() for c in nb.cells[:3] if (m := re.match(r'#\|\s*default_exp\s+(\w+)', c.source))}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        mods = {k:importlib.import_module(f'histolab_nb.{k}') for k in sorted(sources)}
    symbols = {o.name:f'api/{k}.html#{o.name}' for k,m in mods.items() for s in module_symbols(m) for o in (s, *s.members)}
    own = {rel:symbols | {o.name:f'api/{k}.html#{o.name}' for s in module_symbols(mods[k]) for o in (s, *s.members)} for k,rel in sources.items()}
    pages,texts,files = [],{},{}
    for rel,nb in nbs.items():
        page,text,pics = notebook_page(nb, rel, own.get(rel, symbols))
        pages.append(page)
        texts[page.name],files = text,files|pics
    by_name = {p.name:p for p in pages}
    api = [api_page(mods[k], by_name[page_of(rel)], own[rel]) for k,rel in sorted(sources.items())]
    order = ['index', *sections]
    pages.sort(key=lambda p: order.index(p.name.split('/')[0]))
    return [*pages, api_index(api), *api, gallery(pages)], texts, files

def main():
    start,(pages,texts,files) = time.time(),all_pages()
    os.environ['NO_MKDOCS_2_WARNING'] = '1'
    with tempfile.TemporaryDirectory() as tmp: build(pages, Path(tmp))
    for k,v in files.items():
        (site/k).parent.mkdir(parents=True, exist_ok=True)
        (site/k).write_bytes(v)
    for k,v in texts.items(): (site/f'{k}.html.md').write_text(v, encoding='utf-8')
    bad,out = check_links(site)
    print('links that lead out, not followed:', *out, sep='\n  ')
    size = sum(p.stat().st_size for p in site.rglob('*') if p.is_file())/1e6
    print(f'\n{len(pages)} pages, {len(files)} figures, {size:.0f} MB in {time.time()-start:.0f} s: open {site/"index.html"}')
    if bad: sys.exit('\n'.join(bad))

if __name__=='__main__': main()
