"""The widgets in a real browser: JupyterLab is started, a notebook opened and run, the slide dragged, the sliders moved; pictures are kept in out/browser.

Needs Chromium or Chrome (HISTOLAB_CHROMIUM names another one) and the package playwright: `make browser-test`."""
import hashlib, json, os, shutil, socket, subprocess, sys, time
from pathlib import Path
from urllib.request import urlopen
import nbformat, pytest
from playwright.sync_api import sync_playwright

root = Path(__file__).resolve().parent.parent.parent
shots = root/'out'/'browser'
patience = 120_000 # ms that anything may take

setup = """import tempfile, numpy as np
from pathlib import Path
from histolab_nb.phantom import Phantom, phantom_slide
from histolab_nb.postprocess import watershed_instances
from histolab_nb.slides import Slide, tissue_mask
from histolab_nb.viewer import SlideViewer, compare, playground
slide = Slide(phantom_slide(Path(tempfile.mkdtemp())/'phantom.tif', 3000, 2000, mpp=.5, seed=3))
tile = Phantom(400, 400, seed=4).read(60, 60, 240, 160, mpp=.5)
darkness = (1-tile.image.mean(-1)/255).clip(0, 1)"""
cells = [setup, 'viewer = SlideViewer(slide, dict(tissue=tissue_mask(slide)), width=640, height=400)\nviewer',
    'compare(tile.image, tile.instances, darkness)', 'playground(watershed_instances, darkness, tile.image, tile.instances, threshold=(0.,1.,.05), peak=(1,20))',
    'from ipywidgets import Box\nBox([viewer], layout=dict(width="300px"))']

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def chromium():
    names = (os.environ.get('HISTOLAB_CHROMIUM'), 'chromium', 'chromium-browser', 'google-chrome', 'chrome')
    return next((p for p in map(shutil.which, filter(None, names)) if p), None)

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab in a folder with one notebook; its address"
    folder,port = tmp_path_factory.mktemp('lab'),free_port()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3')))
    nbformat.write(nb, folder/'look.ipynb')
    keep = dict(JUPYTER_CONFIG_DIR=str(folder/'.config'), JUPYTERLAB_SETTINGS_DIR=str(folder/'.settings'), JUPYTERLAB_WORKSPACES_DIR=str(folder/'.workspaces'))
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.port={port}', '--IdentityProvider.token=look',
        '--ServerApp.port_retries=0', f'--ServerApp.root_dir={folder}', '--LabApp.news_url=None']
    with (folder/'lab.log').open('w') as log:
        p = subprocess.Popen(cmd, cwd=folder, env=os.environ | keep, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(120):
                if p.poll() is not None: pytest.fail((folder/'lab.log').read_text())
                try:
                    urlopen(f'http://127.0.0.1:{port}/api?token=look', timeout=1)
                    break
                except OSError: time.sleep(.5)
            yield f'http://127.0.0.1:{port}/lab/tree/look.ipynb?token=look&reset'
        finally:
            p.terminate()
            p.wait(30)

@pytest.fixture(scope='module')
def page(lab):
    "The notebook in the browser, all its cells run"
    path = chromium()
    assert path, 'there is no Chromium or Chrome here: install one, or name it in HISTOLAB_CHROMIUM'
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1300, height=1100))
        page.set_default_timeout(patience)
        page.goto(lab)
        page.locator('.jp-Notebook .jp-Cell').nth(len(cells)-1).wait_for(state='attached')
        page.get_by_text('| Idle').wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        try:
            page.wait_for_function("Number(document.querySelector('.histolab-viewer canvas')?.dataset.frames || 0) > 0")
            yield page
        finally:
            keep(page, 'last')
            browser.close()

def canvas(page): return page.locator('.histolab-viewer canvas').first

def seen(page):
    "What the viewer shows: a hash of its pixels, and its view"
    c = canvas(page)
    c.scroll_into_view_if_needed()
    return hashlib.sha256(c.evaluate('c => c.toDataURL()').encode()).hexdigest(), json.loads(c.get_attribute('data-view'))

def after(page, act):
    "Do something with the viewer and wait for the frame that answers it"
    n = int(canvas(page).get_attribute('data-frames'))
    act()
    page.wait_for_function("n => Number(document.querySelector('.histolab-viewer canvas').dataset.frames) > n", arg=n)
    page.wait_for_timeout(200)
    return seen(page)

def keep(page, name):
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots/f'{name}.png')

def panel(page, i): return page.locator('.jp-Cell').nth(i).locator('.jp-OutputArea')

def number(page, i, name): return panel(page, i).locator(f'[data-now="{name}"]').inner_text()

def drag(page, dx, dy):
    box = canvas(page).bounding_box()
    x,y = box['x']+box['width']/2,box['y']+box['height']/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x+dx/2, y+dy/2)
    page.mouse.move(x+dx, y+dy)
    page.mouse.up()

def test_first_view(page):
    "The whole slide is seen: most of the canvas has the colour of tissue under a green mask"
    c = canvas(page)
    c.scroll_into_view_if_needed()
    count = "c => {const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i=0; i<d.length; i+=4) n += d[i+1]-d[i]>20; return n/d.length*4}"
    keep(page, 'whole')
    assert c.evaluate(count)>.4, 'hardly a pixel has the green of the mask'

def test_drag_moves_the_slide(page):
    pixels,view = seen(page)
    new,there = after(page, lambda: drag(page, -120, 60))
    (shots/'drag.json').write_text(json.dumps(dict(milliseconds=int(canvas(page).get_attribute('data-ms')))))
    assert new!=pixels
    assert there['x']-view['x']==pytest.approx(120*view['s'], abs=3*view['s']) and there['y']<view['y'] and there['s']==view['s']

def test_zoom_with_wheel_keys_and_buttons(page):
    _,view = seen(page)
    box = canvas(page).bounding_box()
    page.mouse.move(box['x']+200, box['y']+200)
    _,wheel = after(page, lambda: page.mouse.wheel(0, -200))
    assert wheel['s']<view['s']
    _,button = after(page, lambda: page.get_by_role('button', name='zoom in').first.click())
    assert button['s']==pytest.approx(wheel['s']/2)
    canvas(page).focus()
    _,key = after(page, lambda: page.keyboard.press('ArrowRight'))
    assert key['x']>button['x']
    keep(page, 'zoomed')
    _,back = after(page, lambda: page.keyboard.press('0'))
    assert back['s']>key['s']

def test_overview_jumps(page):
    after(page, lambda: page.get_by_role('button', name='zoom in').first.click())
    _,view = seen(page)
    box = canvas(page).bounding_box()
    _,there = after(page, lambda: page.mouse.click(box['x']+box['width']-20, box['y']+25))
    assert there['x']>view['x'] and there['s']==view['s']

def test_layer_is_switched_off(page):
    pixels,view = seen(page)
    box = panel(page, 1).get_by_role('checkbox')
    assert box.is_checked()
    new,there = after(page, box.click)
    assert new!=pixels and there==view
    assert after(page, box.click)[0]==pixels

def slide_to(page, i, handle, key, times):
    "Move a slider with the keyboard"
    h = panel(page, i).locator('.noUi-handle').nth(handle)
    h.scroll_into_view_if_needed()
    h.focus()
    for _ in range(times): page.keyboard.press(key)

@pytest.mark.parametrize('cell,handle,name', [(2, 1, 'dice'), (3, 0, 'aji')], ids=['compare','playground'])
def test_slider_moves_picture_and_number(page, cell, handle, name):
    panel(page, cell).locator(f'[data-now="{name}"]').wait_for()
    image = panel(page, cell).locator('img').last
    was,picture = number(page, cell, name),image.get_attribute('src')
    slide_to(page, cell, handle, 'ArrowLeft', 2)
    page.wait_for_function("a => document.querySelectorAll('.jp-Cell')[a[0]].querySelector(`[data-now='${a[1]}']`).innerText != a[2]", arg=[cell, name, was])
    page.wait_for_timeout(300)
    assert image.get_attribute('src')!=picture
    keep(page, f'cell{cell}')
    panel(page, cell).get_by_role('button', name='back to the start').click()
    page.wait_for_function("a => document.querySelectorAll('.jp-Cell')[a[0]].querySelector(`[data-now='${a[1]}']`).innerText == a[2]", arg=[cell, name, was])

def run_with(page, i, text):
    "Run a cell again, with something more at its end"
    page.locator('.jp-Cell').nth(i).locator('.cm-content').click()
    page.keyboard.press('Control+End')
    page.keyboard.type(text)
    page.keyboard.press('Control+Enter')

def views(page):
    "Where each display of the viewer is, and how many frames each has been sent"
    page.wait_for_timeout(1500)
    return [(json.loads(c.get_attribute('data-view')), int(c.get_attribute('data-frames'))) for c in page.locator('.histolab-viewer canvas').all()]

def test_two_displays_show_the_same(page):
    "The second display, in a narrow column, follows the first, and then there is silence"
    seen(page)
    drag(page, 80, 40)
    (a,n),(b,m) = views(page)
    assert a==b and views(page)==[(a,n),(b,m)]
    narrow = page.locator('.histolab-viewer canvas').nth(1)
    narrow.scroll_into_view_if_needed()
    box = narrow.bounding_box()
    assert box['width']<=300 and box['height']==pytest.approx(box['width']*400/640, abs=2)
    page.mouse.move(box['x']+100, box['y']+100)
    page.mouse.down()
    page.mouse.move(box['x']+130, box['y']+100)
    page.mouse.up()
    (c,_),(d,_) = views(page)
    assert c==d and b['x']-d['x']==pytest.approx(30*640/box['width']*d['s'], abs=4*d['s'])

def test_keys_are_no_shortcuts(page):
    "Keys with a meaning to JupyterLab do nothing to its cells; keys of the browser are not the viewer's"
    n,(_,view) = page.locator('.jp-Cell').count(),seen(page)
    for focus in (canvas(page).focus, page.get_by_role('button', name='zoom in').first.focus):
        focus()
        for k in ('d','d','a','x','Control+ArrowRight'): page.keyboard.press(k)
    page.wait_for_timeout(500)
    assert page.locator('.jp-Cell').count()==n and seen(page)[1]==view

def test_only_the_first_finger_and_the_left_button_drag(page):
    _,view = seen(page)
    box = canvas(page).bounding_box()
    x,y = box['x']+300,box['y']+200
    page.mouse.move(x, y)
    page.mouse.down()
    canvas(page).evaluate("(c, [x, y]) => c.dispatchEvent(new PointerEvent('pointermove', {pointerId: 99, clientX: x, clientY: y}))", [x-200, y])
    page.mouse.up()
    page.mouse.down(button='middle')
    page.mouse.move(x-100, y)
    page.mouse.up(button='middle')
    page.mouse.move(x, y)
    page.wait_for_timeout(300)
    assert seen(page)[1]==view

def test_wheel_scrolls_the_page_before_a_click(page):
    _,view = seen(page)
    page.locator('.jp-Cell').nth(0).locator('.cm-content').click()
    seen(page)
    box = canvas(page).bounding_box()
    page.mouse.move(box['x']+300, box['y']+200)
    page.mouse.wheel(0, 150)
    page.wait_for_timeout(500)
    assert canvas(page).bounding_box()['y']<box['y'] and seen(page)[1]==view

def test_python_moves_the_browser(page):
    "What Python says is seen without a click in the viewer"
    run_with(page, 1, '.go(1500, 1000, magnification=20)')
    page.wait_for_function("JSON.parse(document.querySelector('.histolab-viewer canvas')?.dataset.view || '{}').s == 1")
    keep(page, 'moved')
    assert seen(page)[1]['s']==1

def test_a_late_answer_does_not_move_the_reader_back(page):
    "A slide that is read so slowly that the viewer asks twice"
    _,view = seen(page)
    run_with(page, len(cells)-1, '; import time; read = viewer.slide.read_scaled; viewer.slide.read_scaled = lambda *a: time.sleep(7) or read(*a)')
    seen(page)
    drag(page, -60, 0)
    page.wait_for_timeout(5500)
    page.get_by_text('the kernel is busy').first.wait_for()
    drag(page, -60, 0)
    page.get_by_text('the kernel is busy').first.wait_for(state='hidden')
    page.wait_for_timeout(8000)
    assert seen(page)[1]['x']-view['x']==pytest.approx(120*view['s'], abs=4*view['s'])

def test_a_kernel_that_was_restarted_is_told(page):
    seen(page)
    page.keyboard.press('Escape')
    page.get_by_role('menuitem', name='Kernel', exact=True).click()
    page.get_by_role('menuitem', name='Restart Kernel…').click()
    page.get_by_role('button', name='Confirm Kernel Restart').click()
    page.wait_for_timeout(3000)
    seen(page)
    drag(page, -60, 0)
    page.get_by_text('run this cell again').first.wait_for()
    keep(page, 'restarted')
