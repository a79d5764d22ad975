"The command line, on a notebook of a second: what a run leaves, what its errors look like, stopping and going on"
import json, os, re, signal, subprocess, sys, time
import nbformat.v4 as v4, numpy as np, pandas as pd, pytest, tifffile
from PIL import Image
from histolab_nb import cli, inference
from histolab_nb.core import DataError, read_json
from histolab_nb.phantom import Phantom
from histolab_nb.postprocess import otsu_haematoxylin

def write_nb(path, *srcs):
    "A notebook; sources that start with a heading are Markdown"
    cells = [v4.new_markdown_cell(s) if s.startswith(('# ', '## ')) else v4.new_code_cell(s) for s in srcs]
    path.write_text(json.dumps(v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))), encoding='utf-8')
    return path

@pytest.fixture
def clean_env(monkeypatch):
    for k in [k for k in os.environ if k.startswith('HISTOLAB_')]: monkeypatch.delenv(k)

@pytest.fixture
def small(tmp_path, clean_env):
    return write_nb(tmp_path/'10_small.ipynb', '# Small', '## Data', 'from pathlib import Path\nfrom histolab_nb.core import *\nout = Path(setting("out"))',
        '#| data\nprint("real", data_folder().name)', '#| slow\nprint("slowly")', '#| net\n1/0', '#| eval: false\n1/0',
        '## Evaluation', '#| hide\nimport matplotlib.pyplot as plt', 'plt.figure(figsize=(1,1)).gca().plot([0,1]);',
        'write_json(out/"result.json", dict(scale=get_scale(), seed=setting("seed", 0), mpp=setting("mpp", None, float), slide=setting("slide")));',
        '#| hide\nfrom nbdev import nbdev_export\nnbdev_export()')

def call(capsys, *args):
    "Exit code and what was printed"
    with pytest.raises(SystemExit) as e: cli.main([str(a) for a in args])
    said = capsys.readouterr()
    return e.value.code or 0, said.out, said.err

def one_line(err): return err.startswith('histolab-nb: ') and err.count('\n')==1 and 'Traceback' not in err

def test_pictures_of_widgets_are_kept(tmp_path):
    "A widget's static picture is a JPEG, and becomes a file as those of matplotlib do"
    from histolab_nb.cli import save_pictures
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    outputs = [new_output('display_data', {k:'AAAA', 'text/plain':'x'}) for k in ('image/png','image/jpeg','text/html')]
    assert [p.name for p in save_pictures(new_notebook(cells=[new_code_cell('', outputs=outputs)]), tmp_path)]==['01_start.png','02_start.jpeg']

def test_run_leaves_everything(small, tmp_path, capsys):
    slide = tmp_path/'scan.svs'
    slide.touch()
    rc,out,err = call(capsys, 'run', small, '--scale', 'small', '--seed', 3, '--mpp', '0.5', '--slide', slide, '--data', tmp_path, '--out', tmp_path/'out', '--flags', 'slow')
    assert (rc, err)==(0, '') and 'Evaluation' in out and 'report.html' in out
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'small.ipynb', 'report.html', 'result.json', 'run.json', 'pictures'}
    res = read_json(tmp_path/'out'/'result.json')
    assert (res['scale'], res['seed'], res['mpp'], res['slide'])==('small', 3, 0.5, str(slide))
    assert res['run']['paper']=='small' and list(res['run']['left_out'])==['needs the internet: ask for it with HISTOLAB_FLAGS=net']
    assert [p.name for p in (tmp_path/'out'/'pictures').iterdir()]==['01_evaluation.png']
    html = (tmp_path/'out'/'report.html').read_text(encoding='utf-8')
    assert all(s in html for s in ('data:image/png', '<details class="code">', f'real {tmp_path.name}', 'slowly', 'left out: needs the internet'))
    assert not any(s in html for s in ('nbdev_export', '#| ', 'matplotlib', '<link', '<img src="http'))

def test_data_cells_need_a_folder(small, tmp_path, capsys):
    rc,*_ = call(capsys, 'run', small, '--out', tmp_path/'out')
    assert rc==0 and read_json(tmp_path/'out'/'result.json')['run']['left_out'].keys() >= {'no data folder is known: set HISTOLAB_DATA or pass --data'}

@pytest.mark.parametrize('args, says', [
    (['resnet'], "there is no paper 'resnet'"),
    (['lost.ipynb'], 'there is no such notebook'),
    (['SMALL', '--scale', 'huge'], 'Choose one of tiny, small, paper'),
    (['SMALL', '--slide', 'lost.svs'], 'there is no such slide'),
    (['SMALL', '--data', 'lost'], 'there is no such folder'),
    (['SMALL', '--mpp', '0'], 'is not possible'),
    (['SMALL', '--seed', '-1'], 'is no seed'),
    (['SMALL', '--out', 'SMALL/out'], 'cannot write here')])
def test_bad_input_is_one_line(args, says, small, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rc,out,err = call(capsys, 'run', *[a.replace('SMALL', str(small)) for a in args])
    assert rc==1 and out=='' and one_line(err) and says in err
    assert [p.name for p in tmp_path.iterdir()]==[small.name]

def test_usage_errors_are_short(capsys, clean_env):
    for args in (['run'], ['run', 'dclr', '--seed', 'three'], ['fly']):
        rc,_,err = call(capsys, *args)
        assert rc==2 and 'Traceback' not in err

@pytest.mark.parametrize('src, says', [('1/0', 'the chapter "Model" ended with ZeroDivisionError: division by zero'),
    ('from histolab_nb.core import *\nraise DataError("no tissue", "a.svs", "Look at it")', 'a.svs: no tissue. Look at it'),
    ('import os\nos._exit(9)', 'the kernel died in the chapter "Model"')])
def test_a_cell_that_fails(src, says, tmp_path, capsys, clean_env):
    nb = write_nb(tmp_path/'fails.ipynb', '## Model', src)
    rc,out,err = call(capsys, 'run', nb, '--out', tmp_path/'out')
    assert rc==1 and one_line(err) and says in err
    assert not (tmp_path/'out'/'report.html').exists() and (tmp_path/'out'/'fails.ipynb').exists()

def test_debug_shows_the_traceback(tmp_path, capsys, clean_env):
    nb = write_nb(tmp_path/'fails.ipynb', '## Model', 'def deep(): 1/0\ndeep()')
    with pytest.raises(DataError): cli.main(['run', str(nb), '--out', str(tmp_path/'out'), '--debug'])
    assert 'deep()' in capsys.readouterr().err

def test_an_old_report_does_not_outlive_a_failure(small, tmp_path, capsys):
    assert call(capsys, 'run', small, '--out', tmp_path/'out')[0]==0
    write_nb(small, '## Data', '1/0')
    assert call(capsys, 'run', small, '--out', tmp_path/'out')[0]==1
    assert not {'report.html', 'result.json'} & {p.name for p in (tmp_path/'out').iterdir()}

steps = '''import time
from pathlib import Path
from histolab_nb.core import *
path = Path(setting("out"))/"checkpoint"/"step.json"
first = read_json(path)["step"] if path.exists() else 0
for i in range(first, 4):
    write_json(path, dict(step=i+1))
    if not first: time.sleep(2)
write_json(path.parent.parent/"result.json", dict(first=first));'''

@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL] if os.name!='nt' else [])
def test_stop_and_go_on(how, tmp_path, capsys, clean_env):
    "A run that is interrupted or killed leaves no report, and the same command goes on from its checkpoint"
    nb,out = write_nb(tmp_path/'steps.ipynb', '## Training', steps),tmp_path/'out'
    p = subprocess.Popen([sys.executable, '-c', 'from histolab_nb.cli import main; main()', 'run', str(nb), '--out', str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(600):
        if (out/'checkpoint'/'step.json').exists() or p.poll() is not None: break
        time.sleep(.1)
    p.send_signal(how)
    _,err = p.communicate(timeout=60)
    assert 'Traceback' not in err and p.returncode==(130 if how==signal.SIGINT else -signal.SIGKILL)
    assert not {'report.html', 'result.json'} & {o.name for o in out.iterdir()} and not list(out.glob('.*.part*'))
    rc,_,err = call(capsys, 'run', nb, '--out', out, '--seed', 5)
    assert rc==1 and 'unfinished run of other settings' in err
    assert call(capsys, 'run', nb, '--out', out)[0]==0
    assert read_json(out/'result.json')['first']>0 and not (out/'checkpoint').exists()

def test_ctrl_c_says_that_it_can_go_on(small, tmp_path, capsys, monkeypatch):
    def stop(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'run_notebook', stop)
    rc,_,err = call(capsys, 'run', small, '--out', tmp_path/'out')
    assert rc==130 and 'stopped, with nothing half-written; the same command goes on' in err

# ---- tables

@pytest.mark.parametrize('args, says', [
    (['glands', '--tables'], "there are no tables to run for 'glands'"),
    (['dclr', '--tables', '--slide', 'SLIDE'], 'tables are made of data sets'),
    (['dclr', '--tables', '--data', 'lost'], 'there is no such folder'),
    (['dclr', '--tables', '--mpp', '-1'], 'is not possible'),
    (['dclr', '--tables', '--out', 'SLIDE/out'], 'cannot write here')])
def test_tables_bad_input_is_one_line(args, says, capsys, tmp_path, monkeypatch, clean_env):
    monkeypatch.chdir(tmp_path)
    slide = tmp_path/'scan.svs'
    slide.touch()
    rc,out,err = call(capsys, 'run', *[a.replace('SLIDE', str(slide)) for a in args])
    assert rc==1 and out=='' and one_line(err) and says in err and list(tmp_path.iterdir())==[slide]

@pytest.mark.parametrize('more, seeds, mpp', [([], (42,43,44), None), (['--seed', 5, '--mpp', .5], (5,), .5)])
def test_tables_are_asked_for_and_shown(more, seeds, mpp, capsys, tmp_path, monkeypatch, clean_env):
    asked = []
    def tables(scale, seeds, folder, mpp, say):
        asked.append((scale, seeds, folder, mpp, os.environ['HISTOLAB_DATA']))
        say('1 of 1')
        return {'Table 9': pd.DataFrame(dict(DCLR=['0.500']), index=['IDC'])}
    monkeypatch.setenv('HISTOLAB_DATA', 'old') # put back afterwards
    monkeypatch.setattr('histolab_nb.dclr.dclr_tables', tables)
    rc,out,err = call(capsys, 'run', 'dclr', '--tables', '--scale', 'small', '--data', tmp_path, '--out', tmp_path/'out', *more)
    assert (rc, err)==(0, '') and asked==[('small', seeds, tmp_path/'out', mpp, str(tmp_path))]
    assert out.index('1 of 1')<out.index('Table 9')<out.index('IDC')<out.index(str(tmp_path/'out'/'tables'))

def test_doctor_and_version(capsys, clean_env, monkeypatch):
    rc,out,_ = call(capsys, 'doctor')
    assert rc==0 and 'ready' in out and 'cells flagged data' in out and 'set HISTOLAB_DATA' in out
    monkeypatch.setattr(cli, 'check_imports', lambda: [dict(what='torch', mark='bad', found='does not load', todo='pip install torch')])
    rc,out,_ = call(capsys, 'doctor')
    assert rc==1 and '1 to mend' in out and 'pip install torch' in out
    assert call(capsys, '--version')[1].startswith('histolab-nb ')

def test_doctor_in_a_notebook_prints_and_returns(capsys, clean_env, monkeypatch):
    "Called as a function it never raises; brief says only what must be mended"
    assert cli.doctor(brief=True) is None and capsys.readouterr().out==''
    monkeypatch.setattr(cli, 'check_imports', lambda: [dict(what='torch', mark='bad', found='does not load', todo='pip install torch')])
    assert cli.doctor() is None and '1 to mend' in (out := capsys.readouterr().out) and 'ok    packages' in out
    cli.doctor(brief=True)
    assert '1 to mend' in (out := capsys.readouterr().out) and 'pip install torch' in out and 'ok  ' not in out and 'note ' not in out

def test_doctor_reports_versions_and_machine(capsys, clean_env):
    cli.doctor()
    out = capsys.readouterr().out
    for what in ('numpy', 'torch', 'torchvision', 'fastai', 'openslide', 'widgets', 'device', 'cores', 'memory', 'disk', 'cells flagged gpu'): assert re.search(rf'^(ok|note) +{what} ', out, re.M), what
    assert 'with library' in out and f'Python {sys.version.split()[0]}' in out and 'in Colab' not in out

def test_doctor_names_the_command(monkeypatch):
    "What is missing and what is too old, each with its bound, in one command"
    monkeypatch.setattr(cli.importlib.metadata, 'requires', lambda name: ['numpy>=99', 'nosuchpackage', 'pytest>=99; extra == "dev"', 'spacy>=99; extra == "other"'])
    bad,dev = cli.check_packages()
    assert bad['mark']=='bad' and bad['todo']=='pip install "numpy>=99" "nosuchpackage"' and 'nosuchpackage (missing)' in bad['found']
    assert dev['mark']=='note' and dev['todo'].endswith('pip install "pytest>=99"') and 'spacy' not in dev['found']

def test_doctor_sees_what_does_not_load(monkeypatch):
    def broken(name):
        if name=='openslide': raise OSError('libopenslide.so.1: cannot open')
        return sys
    monkeypatch.setattr(cli.importlib, 'import_module', broken)
    found = {o['what']:o for o in cli.check_imports()}
    assert found['torch']['mark']=='ok' and found['openslide']['mark']=='bad' and 'OSError: libopenslide' in found['openslide']['found']
    assert found['openslide']['todo']=='pip install --force-reinstall --no-deps openslide-python openslide-bin'

@pytest.mark.parametrize('colab, have, lab, mark, says', [(True, '7.7.1', '3.0.16', 'ok', ''), (True, '8.1.9', '3.0.16', 'note', '%pip install -q "ipywidgets<8"'), (True, '7.7.1', None, 'ok', ''),
    (False, '8.1.9', '3.0.16', 'ok', ''), (False, '8.1.9', '1.1.0', 'note', 'pip install -U'), (False, '7.7.1', '1.1.0', 'ok', ''), (False, '8.1.9', None, 'note', 'pip install -U'), (False, None, None, 'note', 'pip install ipywidgets')])
def test_doctor_on_widgets(colab, have, lab, mark, says, monkeypatch):
    monkeypatch.setattr(cli, '_have', dict(ipywidgets=have, jupyterlab_widgets=lab).get)
    if colab: monkeypatch.setitem(sys.modules, 'google.colab', sys)
    o = cli.check_widgets()[0]
    assert o['mark']==mark and says in o['todo'] and bool(o['todo'])==(mark=='note')

def test_doctor_on_a_gpu_that_is_not_used(monkeypatch, clean_env):
    monkeypatch.setattr(cli, 'device_name', lambda: 'cpu, 2 threads')
    monkeypatch.setattr(cli.shutil, 'which', lambda name: None)
    assert cli.check_device()[0]['mark']=='ok'
    monkeypatch.setattr(cli.shutil, 'which', lambda name: '/usr/bin/nvidia-smi')
    assert 'NVIDIA driver' in cli.check_device()[0]['todo']
    monkeypatch.setitem(sys.modules, 'google.colab', sys)
    assert cli.check_device()[0]['mark']=='note' and 'Change runtime type' in cli.check_device()[0]['todo']
    monkeypatch.setattr(cli, 'device_name', lambda: 'cuda, T4, 15 GiB')
    assert cli.check_device()[0]['todo']==''
    monkeypatch.setenv('HISTOLAB_DEVICE', 'cpu') # asked for: no advice
    monkeypatch.setattr(cli, 'device_name', lambda: 'cpu, 2 threads')
    assert cli.check_device()[0]['mark']=='ok'

def test_device_in_words(monkeypatch):
    "A GPU with its name and memory, without one being there"
    import torch
    from types import SimpleNamespace
    monkeypatch.setattr(cli, 'get_device', lambda: torch.device('cuda', 0))
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda d: SimpleNamespace(name='Tesla T4', total_memory=15*2**30))
    assert cli.device_name()=='cuda:0, Tesla T4, 15 GiB'
    monkeypatch.setattr(cli, 'get_device', lambda: torch.device('mps'))
    assert cli.device_name().startswith('mps, the GPU of Apple')

def test_every_paper_is_found_by_name():
    for name,path in cli.paper_notebooks().items(): assert cli.find_notebook(name)==path

def test_lab_copies_the_notebooks_of_an_installed_package(tmp_path, monkeypatch):
    "Outside a checkout the notebooks are copied once, and a copy that was changed is left alone"
    folder = tmp_path/'installed'
    write_nb(out := folder/'a.ipynb' if folder.mkdir() is None else None, '# A')
    monkeypatch.setattr(cli, 'repo_folder', lambda: None)
    monkeypatch.setattr(cli, 'notebooks_folder', lambda: folder)
    copy = cli.working_copy(tmp_path/'mine')
    assert (copy/'a.ipynb').read_bytes()==out.read_bytes()
    (copy/'a.ipynb').write_text('mine')
    assert (cli.working_copy(tmp_path/'mine')/'a.ipynb').read_text()=='mine'

def test_data_commands(tmp_path, capsys, clean_env):
    rc,out,_ = call(capsys, 'data', 'show', 'glas')
    assert rc==0 and '0.62005' in out and '[official page' in out and 'https://glas.grand-challenge.org' in out
    assert call(capsys, 'data', 'show')[1].count('https://')==8
    rc,out,err = call(capsys, 'data', 'check', 'glas', tmp_path)
    assert rc==1 and out.startswith('bad') and 'there is nothing of GlaS here' in out and err==''
    for args,says in ((('show', 'imagenet'), 'there is no data set'), (('check', 'imagenet', tmp_path), 'there is no data set'), (('get', 'monuseg', tmp_path/'x'), 'cannot be fetched by a program')):
        rc,out,err = call(capsys, 'data', *args)
        assert rc==1 and one_line(err) and says in err
    assert list(tmp_path.iterdir())==[]

def test_data_set_of_classes(tmp_path, capsys, clean_env):
    "Sections with a class for every pixel, and no objects"
    from PIL import Image
    from histolab_nb.datasets import queensland_colours
    rc,out,_ = call(capsys, 'data', 'show', 'queensland')
    assert rc==0 and 'Texts that use the set take it for a magnification' in ' '.join(out.split()) and 'UQ:8be4bd0' in out
    for d,end in (('Images', 'tif'), ('Masks', 'png')):
        (tmp_path/d).mkdir()
        Image.new('RGB', (30,20), queensland_colours['keratin']).save(tmp_path/d/f'SCC_1.{end}')
    rc,out,err = call(capsys, 'data', 'check', 'queensland', tmp_path)
    assert rc==1 and '1 of 290' in out and '1 of 11 in 1 images' in out and err==''

# ---- segment

@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    "An image with nuclei, as it is, grey, transparent, broken, tiny and empty; a slide without mpp"
    folder = tmp_path_factory.mktemp('pictures')
    img = Phantom(120, 120, seed=3).read(10, 10, 300, 220, mpp=.25).image
    im = Image.fromarray(img)
    im.save(folder/'good.png')
    im.convert('RGBA').save(folder/'alpha.png')
    im.convert('L').save(folder/'grey.png')
    Image.fromarray(img.astype(np.uint16)[...,0]*200).save(folder/'deep.png')
    (folder/'cut.png').write_bytes((folder/'good.png').read_bytes()[:3000])
    (folder/'text.jpg').write_text('no image')
    Image.fromarray(img[:1,:1]).save(folder/'dot.png')
    Image.new('RGB', (50,40), 'white').save(folder/'glass.png')
    tifffile.imwrite(folder/'bare.tiff', np.pad(img, ((0,300),(0,300),(0,0)), 'reflect'), tile=(256,256), photometric='rgb')
    (folder/'some').mkdir()
    (folder/'empty').mkdir()
    for i in range(12): (folder/'some'/f'{i:02d}.png').touch()
    return folder

def test_segment_is_quiet_about_its_packages(pictures, tmp_path):
    "One line a picture, on stdout; nothing else, in a process of its own"
    done = subprocess.run([sys.executable, '-c', 'from histolab_nb.cli import main; main()', 'segment', pictures/'good.png', '--classical', '--out', tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.count('\n'))==(0, '', 2)

def test_segment_leaves_four_files(pictures, tmp_path, capsys, clean_env):
    rc,out,err = call(capsys, 'segment', pictures/'good.png', '--out', tmp_path, '--mpp', .25, '--classical')
    assert (rc, err)==(0, '') and 'nuclei, median area' in out and 'assumed' not in out
    assert {p.name for p in tmp_path.iterdir()}=={'good_instances.png', 'good_overlay.jpg', 'good.geojson', 'good_nuclei.csv'}
    ids,df = np.asarray(Image.open(tmp_path/'good_instances.png')),pd.read_csv(tmp_path/'good_nuclei.csv')
    assert ids.dtype==np.uint16 and ids.shape==(220,300) and (np.unique(ids)[1:]==df.id).all() and len(df)>20
    assert {'area','x','y','eccentricity','haematoxylin','area_um2','x_um'} <= set(df) and (df.haematoxylin>0).all()
    assert np.array_equal(ids>0, otsu_haematoxylin(np.asarray(Image.open(pictures/'good.png')))>0)
    assert len(read_json(tmp_path/'good.geojson')['features'])==len(df) and Image.open(tmp_path/'good_overlay.jpg').size==(600,440)

def test_segment_says_what_it_assumes(pictures, tmp_path, capsys, clean_env):
    rc,out,_ = call(capsys, 'segment', pictures/'good.png', '--out', tmp_path, '--classical')
    assert rc==0 and '0.25 um/px assumed' in out and '--mpp' in out

def test_segment_goes_on_after_a_failure(pictures, tmp_path, capsys, clean_env):
    names = ['lost.png', 'cut.png', 'good.png', 'text.jpg', 'grey.png', 'deep.png', 'bare.tiff', 'some', 'empty', 'alpha.png']
    rc,out,err = call(capsys, 'segment', *[pictures/o for o in names], '--out', tmp_path, '--classical')
    lines = err.splitlines()
    says = ['there is no such file', 'cannot be read', 'cannot be read', 'this image is grey', '16 bits', 'does not say its resolution', 'folder with 12 images: 00.png, 01.png', 'folder without images', '8 of 10']
    assert rc==1 and len(lines)==len(says) and 'Traceback' not in err
    for l,s in zip(lines, says): assert l.startswith('histolab-nb: ') and s in l
    assert 'and 2 more' in lines[6] and 'some/*.png' in lines[6] and out.count(' nuclei, median')==2
    assert (tmp_path/'good_nuclei.csv').read_text()==(tmp_path/'alpha_nuclei.csv').read_text()
    assert len(list(tmp_path.iterdir()))==8 # nothing half-written

def test_segment_without_nuclei_is_no_error(pictures, tmp_path, capsys, clean_env):
    rc,out,err = call(capsys, 'segment', pictures/'dot.png', pictures/'glass.png', '--out', tmp_path, '--classical')
    assert (rc, err)==(0, '') and out.count('no nuclei')==2 and len(list(tmp_path.iterdir()))==8
    assert not np.asarray(Image.open(tmp_path/'glass_instances.png')).any()

def test_segment_a_slide(pictures, tmp_path, capsys, clean_env):
    rc,out,_ = call(capsys, 'segment', pictures/'bare.tiff', '--out', tmp_path, '--mpp', .5, '--classical')
    assert rc==0 and 'assumed' not in out and {p.name for p in tmp_path.iterdir()}=={'bare_overlay.jpg', 'bare.geojson', 'bare_nuclei.csv'}
    df = pd.read_csv(tmp_path/'bare_nuclei.csv')
    assert df.x.max()<600 and df.y.max()<520 and np.allclose(df.x_um, df.x*.5, atol=1e-3)

@pytest.mark.parametrize('args, says', [
    (['good.png', 'some/../good.png'], 'would have the names of those of'),
    (['good.png', '--classical', '--weights', 'w.safetensors'], 'the classical model has no weights'),
    (['good.png', '--classical', '--out', 'good.png/out'], 'cannot write here'),
    (['good.png', '--classical', '--mpp', '9', '--out', 'OUT'], 'nuclei cannot be outlined at 9 um/px')])
def test_segment_errors_are_one_line(args, says, pictures, tmp_path, capsys, clean_env, monkeypatch):
    monkeypatch.chdir(pictures)
    rc,out,err = call(capsys, 'segment', *[a.replace('OUT', str(tmp_path)) for a in args])
    assert rc==1 and out=='' and err.splitlines()[0].startswith('histolab-nb: ') and says in err and 'Traceback' not in err
    assert not list(tmp_path.iterdir())

def test_segment_survives_a_model_that_breaks(pictures, tmp_path, capsys, clean_env, monkeypatch):
    "Any error of a model is a line, too, and --debug shows where it came from"
    def broken(*args, **kw): raise MemoryError('out of memory')
    monkeypatch.setattr('histolab_nb.inference.haematoxylin_model', lambda *args: broken)
    rc,_,err = call(capsys, 'segment', pictures/'good.png', '--out', tmp_path, '--classical')
    assert rc==1 and 'good.png: MemoryError: out of memory' in err and err.count('\n')==1
    with pytest.raises(MemoryError): cli.main(['segment', str(pictures/'good.png'), '--out', str(tmp_path), '--classical', '--debug'])
    assert not list(tmp_path.iterdir())

def test_segment_starts_from_the_weights_of_the_package(pictures, tmp_path, capsys, clean_env, monkeypatch):
    "Without --classical the trained model is asked for, with the weights that were named"
    asked = []
    def nuclei_model(weights=None):
        asked.append(weights)
        return lambda image, mpp=.25: asked.append(mpp) or otsu_haematoxylin(image)
    monkeypatch.setattr('histolab_nb.scale_attention.nuclei_model', nuclei_model, raising=False)
    assert call(capsys, 'segment', pictures/'good.png', pictures/'alpha.png', '--out', tmp_path, '--mpp', .5, '--weights', 'w.safetensors')[0]==0
    assert asked==['w.safetensors', .5, .5] and len(list(tmp_path.iterdir()))==8

def test_segment_shows_the_network_more_than_the_classical_model(pictures, tmp_path, capsys, clean_env, monkeypatch):
    "The halo is 100 px for the network and 64 px without one"
    halos,whole = [],inference.segment_image
    monkeypatch.setattr(inference, 'segment_image', lambda *args, halo, **kw: halos.append(halo) or whole(*args, halo=halo, **kw))
    monkeypatch.setattr('histolab_nb.scale_attention.nuclei_model', lambda weights=None: otsu_haematoxylin, raising=False)
    for more in ((), ('--classical',)): assert call(capsys, 'segment', pictures/'good.png', '--out', tmp_path, *more)[0]==0
    assert halos==[100, 64]
