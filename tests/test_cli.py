"The command line, on a notebook of a second: what a run leaves, what its errors look like, stopping and going on"
import json, os, signal, subprocess, sys, time
import nbformat.v4 as v4, pytest
from histolab_nb import cli
from histolab_nb.core import DataError, read_json

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

def test_doctor_and_version(capsys, clean_env, monkeypatch):
    rc,out,_ = call(capsys, 'doctor')
    assert rc==0 and 'ready' in out and 'cells flagged data' in out and 'set HISTOLAB_DATA' in out
    monkeypatch.setattr(cli, 'check_imports', lambda: [dict(what='torch', mark='bad', found='does not load', todo='pip install torch')])
    rc,out,_ = call(capsys, 'doctor')
    assert rc==1 and '1 to mend' in out and 'pip install torch' in out
    assert call(capsys, '--version')[1].startswith('histolab-nb ')

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
    assert call(capsys, 'data', 'show')[1].count('https://')==7
    rc,out,err = call(capsys, 'data', 'check', 'glas', tmp_path)
    assert rc==1 and out.startswith('bad') and 'there is nothing of GlaS here' in out and err==''
    for args,says in ((('show', 'imagenet'), 'there is no data set'), (('check', 'imagenet', tmp_path), 'there is no data set'), (('get', 'monuseg', tmp_path/'x'), 'cannot be fetched by a program')):
        rc,out,err = call(capsys, 'data', *args)
        assert rc==1 and one_line(err) and says in err
    assert list(tmp_path.iterdir())==[]
