"The site: API pages, links, pictures and what is not shown. The whole build is `make docs`; here its parts run on small things"
import base64, importlib.util, io, json, sys
import nbformat.v4 as v4, pytest
from bs4 import BeautifulSoup
from PIL import Image
import docs

def png():
    f = io.BytesIO()
    Image.new('RGB', (4,3), 'red').save(f, 'PNG')
    return base64.b64encode(f.getvalue()).decode()

def cell(src, *outputs, **metadata): return v4.new_code_cell(src, outputs=list(outputs), metadata=metadata)

def picture(): return v4.new_output('display_data', {'image/png':png(), 'text/plain':'<Figure>'})

@pytest.fixture
def nb():
    return v4.new_notebook(cells=[cell('#| default_exp toy'), v4.new_markdown_cell('# Toy: a title\n\n> It promises `much`.'),
        v4.new_markdown_cell('[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x)\n\nSee [stain](../foundations/03_stain.ipynb#Optical-density), '
            '[how](../../CONTRIBUTING.md) and `grow`.\n* one\n* two'),
        v4.new_markdown_cell('## The idea\n\nA formula $a<b$ and\n\n$$\\frac{1}{2}$$\n\nThree cells are drawn.'), cell('#| export\ndef grow(x): return x'),
        cell('draw()', picture()), v4.new_markdown_cell('## The idea'), cell('#| echo: false\n#| fig-alt: A red square\nsecret()', picture()),
        cell('#| hide\nhidden()'), cell('shown()', v4.new_output('stream', text='1 < 2\x1b[0m')), v4.new_markdown_cell('`grow` again')])

symbols = dict(grow='api/toy.html#grow')

def test_page_of_a_notebook(nb):
    page,text,files = docs.notebook_page(nb, 'papers/10_toy.ipynb', symbols)
    assert (page.name, page.title, page.about)==('papers/toy', 'Toy: a title', 'It promises much.')
    soup = BeautifulSoup(page.body, 'html.parser')
    links = {a.get_text():a['href'] for a in soup.find_all('a')}
    assert links['stain']=='../foundations/stain.html#Optical-density' and links['how']==f'{docs.home}/blob/main/CONTRIBUTING.md'
    assert links['grow']=='../api/toy.html#grow' and links['Notebook on GitHub'].endswith('/nbs/papers/10_toy.ipynb')
    assert soup.find('a', class_='badge').get_text()=='Open In Colab' and not soup.find('img', src=lambda s: 'colab' in s)
    assert soup.find('span', class_='math').get_text()=='\\(a<b\\)' and soup.find('div', class_='math').get_text()=='\\[\\frac{1}{2}\\]'
    assert len(soup.find_all('li'))==2 and '1 &lt; 2</pre>' in page.body
    assert not any(s in soup.get_text() for s in ('secret', 'hidden', '#|')) and 'shown' in soup.get_text()
    assert [h['id'] for h in soup.find_all('h2')]==['The-idea', 'The-idea_1']

def test_pictures_are_files_with_words(nb):
    page,text,files = docs.notebook_page(nb, 'papers/10_toy.ipynb', symbols)
    soup = BeautifulSoup(page.body, 'html.parser')
    imgs = soup.find_all('img')
    assert [i['alt'] for i in imgs]==['A formula \\(a<b\\) and \\[\\frac{1}{2}\\] Three cells are drawn.', 'A red square']
    assert {f'papers/{i["src"]}' for i in imgs}==set(files) and all(v.startswith(b'\x89PNG') for v in files.values())
    assert all(f'({i["src"]})' in text for i in imgs) and (imgs[0]['width'], imgs[0]['height'])==('4', '3')
    assert [f[2:] for f in page.figures]==[('The idea', 'The-idea'), ('The idea', 'The-idea_1')]
    shown = docs.gallery([page]).body
    assert 'href="papers/toy.html#The-idea_1"' in shown and all(f'src="{f}"' in shown for f in files)

def test_solutions_are_not_shown(nb):
    "Needs `for_report` to leave out the cells of a solution and of its checks"
    nb.cells += [v4.new_markdown_cell('### Exercise 1: grow'), cell('#| exercise 1\nanswer = None'), cell('#| solution 1\nanswer = 42'), cell("#| check 1\nassert answer==42, 'count again'")]
    page,text,_ = docs.notebook_page(nb, 'papers/10_toy.ipynb', symbols)
    for said in (BeautifulSoup(page.body, 'html.parser').get_text(), text): assert 'answer = None' in said and '42' not in said and 'count again' not in said

toy = '''"""What it is for.

Docs: https://histolab-nb.github.io/histolab_nb/papers/toy.html.md"""
from fastcore.basics import patch
from pathlib import Path
__all__ = ['limit', 'grow', 'Cell']
limit = 3
def _secret(): pass
def grow(
    x:int, # pixels, `uint8`, 0 < x
    *,
    mode:str='a|b', # how
    path:Path|None=None,
)->int: # pixels
    "Grow `x`"
class Cell:
    "A cell"
    def __init__(self, r:float=1.): self.r = r # micrometres
    @property
    def area(self): return self.r
@patch
def move(
    self:Cell,
    dx:float, # to the right
):
    "Move it"
'''

@pytest.fixture
def mod(tmp_path, monkeypatch):
    (tmp_path/'toy.py').write_text(toy)
    spec = importlib.util.spec_from_file_location('histolab_nb.toy', tmp_path/'toy.py')
    m = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'histolab_nb.toy', m)
    spec.loader.exec_module(m)
    return m

def test_api_page(mod, nb):
    page = docs.api_page(mod, docs.notebook_page(nb, 'papers/10_toy.ipynb', symbols)[0], symbols)
    soup = BeautifulSoup(page.body, 'html.parser')
    assert page.about=='What it is for.' and 'Docs:' not in page.body
    assert [h['id'] for h in soup.find_all(['h2', 'h3'])]==['limit', 'grow', 'Cell', 'Cell.area', 'Cell.move']
    code = [p.get_text().strip() for p in soup.find_all('pre')]
    assert code==['limit = 3', "grow(x, *, mode='a|b', path=None)", 'Cell(r=1.0)', 'Cell.area', 'Cell.move(dx)']
    rows = [[td.get_text() for td in tr.find_all('td')] for tr in soup.find_all('table')[0].find_all('tr')[1:]]
    assert rows==[['x', 'int', '', 'pixels, uint8, 0 < x'], ['mode', 'str', "'a|b'", 'how'], ['path', 'Path | None', 'None', ''], ['returns', 'int', '', 'pixels']]
    links = [a['href'] for a in soup.find('h2', id='grow').find_next('p').find_all('a')]
    line = toy.split('\n').index('def grow(')+1
    assert links==['../papers/toy.html#The-idea', f'{docs.home}/blob/main/histolab_nb/toy.py#L{line}']

def test_headings_make_the_contents():
    toc = docs.toc_tokens('<h1 id="a">A</h1><h3 id="b">B &amp; b<a class="headerlink" href="#b">¶</a></h3><h2 id="c"><a href="x">C</a></h2>')
    assert [(t['id'], [(c['id'], c['name']) for c in t['children']]) for t in toc]==[('a', [('b', 'B &amp; b'), ('c', 'C')])]

@pytest.mark.parametrize('html, says', [('<a href="b.html#gone">', 'b.html#gone, which has no such anchor'), ('<a href="#gone">', '#gone, which has no such anchor'),
    ('<a href="lost.html">', 'lost.html, which is not there'), ('<img src="lost.png">', 'lost.png, which is not there'), ('<a href="/repo/c/">', 'which is not there'),
    ('<script src="https://cdn.net/x.js"></script>', 'from elsewhere'), ('<link rel="stylesheet" href="//fonts.net/x.css">', 'from elsewhere'), ('<img src="https://badge.net/x.svg">', 'from elsewhere')])
def test_dead_links_are_found(html, says, tmp_path):
    (tmp_path/'a.html').write_text(html)
    (tmp_path/'b.html').write_text('<h2 id="here">')
    bad,_ = docs.check_links(tmp_path, 'https://site.org/repo/')
    assert len(bad)==1 and bad[0].startswith('a.html ') and says in bad[0]

def test_good_links_pass(tmp_path):
    (tmp_path/'d').mkdir()
    (tmp_path/'d'/'a.html').write_text('<p id="x%y"><a href="#x%25y"><a href="../b.html#h%C3%A9"><a href="https://site.org/repo/b.html"><a href="/repo/"><a href="https://out.org#z"><a href="mailto:x@y"><img src="data:x">')
    (tmp_path/'b.html').write_text('<h2 id="hé">')
    (tmp_path/'index.html').touch()
    assert docs.check_links(tmp_path, 'https://site.org/repo/')==([], ['https://out.org#z'])

def test_sections_in_their_order():
    names = ['index', 'foundations/core', 'papers/dclr', 'course/one', 'api/core', 'gallery']
    nav = docs.navigation([docs.Page(n, n.title(), '', '') for n in names])
    assert [next(iter(o)) for o in nav]==['Start', 'Papers', 'Course', 'Foundations', 'API', 'Gallery']
    assert [next(iter(o)) for o in docs.navigation([docs.Page(n, n, '', '') for n in names[:2]])]==['Start', 'Foundations']

def test_config_can_be_written_down(tmp_path):
    cfg = docs.config(tmp_path, [])
    assert cfg==json.loads(json.dumps(cfg)) and cfg['theme']['font'] is False and 'offline' in cfg['plugins']

def test_every_notebook_has_a_title_and_a_promise():
    for rel,nb in docs.notebooks(): assert docs.title_of(nb, '') and docs.about(nb), rel

def test_alternative_text_is_short():
    assert docs.alt_text('draw()', '# A\n\n' + 'many words '*60, 'A').count(' ')<40 and docs.alt_text('draw()', '# A', 'A')=='A'
    assert docs.alt_text('#| echo: false\n#| fig-alt: Two cells\ndraw()', 'text', 'A')=='Two cells'

def test_markdown_keeps_its_code():
    html = docs.markdown('```python\nx = "<b>"\n```\n\n```\nplain\n```\n\n| a | b |\n|---|---|\n| $x$ | `y` |')
    assert '&lt;b&gt;' in html and 'plain' in html and '<table>' in html and '\\(x\\)' in html

def test_unknown_language_is_text(): assert '<code>' in docs.code_html('x', 'nolanguage')
