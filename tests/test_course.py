"The exercises of the papers, and what hands them out and grades them: on the papers, and on a lesson of a second that takes every kind of answer"
import os, re, signal, subprocess, sys, time, warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path
import nbformat, nbformat.v4 as v4, pandas as pd, psutil, pytest
from histolab_nb import cli, notebooks
from histolab_nb.core import DataError
from histolab_nb.notebooks import *

here = Path(__file__).resolve().parent

def write_nb(path, *srcs, **meta):
    "A notebook; sources that start with a heading are Markdown"
    cells = [v4.new_markdown_cell(s) if re.match('#+ ', s) else v4.new_code_cell(s) for s in srcs]
    nbformat.write(v4.new_notebook(cells=cells, metadata=meta), path)
    return path

def student(source, path, *changes, name=None):
    "The notebook of a student, with `(old, new)` text changed in its code cells"
    nb = student_notebook(read_notebook(source), name or str(source))
    for c in nb.cells:
        for a,b in changes: c.source = c.source.replace(a, b)
    nbformat.write(nb, path)
    return path

# ---- the papers

def wrong_answers(paper):
    "What stands in tests/wrong_answers: by exercise, pairs of code and a part of the sentence it must get"
    spec = util.spec_from_file_location(f'wrong_{paper}', here/'wrong_answers'/f'{paper}.py')
    mod = util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod.answers

@pytest.mark.parametrize('paper', paper_notebooks())
def test_untouched_notebook_of_a_paper(paper, tmp_path):
    "A student's notebook has three exercises and no solution, and as it is handed out nothing in it is answered"
    nb = read_notebook(find_notebook(paper))
    known = exercises(nb)
    assert list(known)==[1,2,3] and all(v.title and v.task and v.starter and v.solution and v.check for v in known.values())
    given = student_notebook(nb, paper)
    text = '\n'.join(c.source for c in given.cells)
    assert not any(bare(s) in text for v in known.values() for s in (v.solution, v.check))
    assert not re.search(r'#\| *(export|hide|solution|check)|nbdev_export|default_exp', text)
    nbformat.write(given, tmp_path/'given.ipynb')
    assert set(grade_notebook(tmp_path/'given.ipynb').says)=={'nothing is answered yet'}
    for c in given.cells:
        if exercise_part(c)[1]: c.source = known[exercise_part(c)[1]].solution.replace('solution', 'exercise', 1)
    assert {k:[bare(s) for s in v] for k,v in answers_in(given, known, exercise_imports(paper, paper)).items()}=={k:[bare(v.solution)] for k,v in known.items()}

def tries(paper):
    "Solutions, starters and wrong answers of a paper, by exercise: number, code, part of what must be said"
    known,_ = source_exercises(paper)
    wrong = wrong_answers(paper)
    assert set(known)==set(wrong)=={1,2,3} and all(wrong.values())
    return [o for n,v in known.items() for o in ((n, v.solution, None), (n, v.starter, ''), *((n, code, words) for code,words in wrong[n]))]

@pytest.fixture(scope='module')
def judged(request):
    "What is said of all the tries of the chosen papers, two papers at a time"
    papers = [o.callspec.params['paper'] for o in request.session.items if o.name.startswith('test_answers_of_a_paper[')]
    judge = lambda p: judge_answers(p, [(n, [code]) for n,code,_ in tries(p)], again=False)
    with ThreadPoolExecutor(2) as pool: yield {p:pool.submit(judge, p) for p in papers}

@pytest.mark.parametrize('paper', paper_notebooks())
def test_answers_of_a_paper(paper, judged):
    "Every solution holds, every starter fails, and every wrong answer gets its sentence"
    bad = [f'exercise {n}: {"holds" if ok else why} is said of\n{code}' for (n,code,words),(ok,why) in zip(tries(paper), judged[paper].result())
        if (ok, why)!=(True, '') and words is None or words is not None and (ok or words not in why)]
    assert not bad, '\n\n'.join(bad)

# ---- a lesson

@pytest.fixture(scope='module')
def lesson(tmp_path_factory):
    return write_nb(tmp_path_factory.mktemp('lesson')/'lesson.ipynb', '#| default_exp core', '# A lesson', '#| export\nwidth = 50', '#| hide\nimport math', '#| slow\nlong = 1',
        '## Your turn\n\nTwo of them.', '#| hide\nmpp,sizes = 0.5,[1,2]',
        '### Exercise 1: Pixels\n\nHow wide is a gland of 50 µm? Call it `answer`.', '#| exercise 1\nanswer = None', '#| solution 1\nanswer = 50/mpp',
        '#| check 1\nassert answer is not None, "a number is asked for"\nassert answer==50/mpp, "divide by the width of a pixel"',
        '### Exercise 2: Double\n\nWrite `double(o)`.', 'offset = 0', '#| exercise 2\ndef double(o):\n    "Twice o"\n    ...', '#| solution 2\ndef double(o): return 2*o',
        '#| check 2\nassert double(3)==6+offset, "twice is the sum with itself"\nassert sizes==[1,2] and len(sizes)==2, "the sizes are not yours to change"',
        '#| hide\n#| export\n__all__ = []', '#| hide\nfrom nbdev import nbdev_export\nnbdev_export()')

right = {1:'answer = 50/mpp', 2:'def double(o): return o+o'}

answers = [ # exercise, code, part of what must be said; none if it holds
    (1, '%time answer = 50/mpp', None),
    (1, 'helper = 50\nanswer = helper/mpp', None),
    (1, 'print("Exercise 1 holds.")\nanswer = 25', 'divide by the width of a pixel'),
    (1, 'answer = None', 'a number is asked for'),
    (1, 'pass', 'a number is asked for'),
    (1, 'del answer', "name 'answer' is not defined: the grader runs this chapter alone"),
    (1, 'answer = width/mpp', "name 'width' is not defined: the grader runs this chapter alone"),
    (1, 'answer = (50/mpp', 'it ends with SyntaxError'),
    (1, 'answer = 1/0', 'it ends with ZeroDivisionError: division by zero'),
    (1, 'assert mpp>1, "mine"', 'it ends with AssertionError: mine'),
    (1, 'answer = int(input("how wide?"))', 'it ends with StdinNotImplementedError'),
    (1, 'raise ValueError("\\x1b[31mred")', 'it ends with ValueError: red'),
    (1, 'raise KeyboardInterrupt', 'it ends with KeyboardInterrupt'),
    (1, 'import sys\nsys.exit()', 'it ends Python'),
    (1, 'del mpp\nsizes.clear()\nanswer = 1', "name 'mpp' is not defined"),
    (2, 'def double(o): return o*factor', "name 'factor' is not defined: the grader runs this chapter alone"),
    (2, 'def double(o, p): return 2*o', 'your answer runs, but using it ends with TypeError'),
    (2, 'def double(o): raise SystemExit', 'it ends Python'),
    (2, 'sizes.append(3)\ndef double(o): return 2*o', 'the sizes are not yours to change'),
    (2, 'def len(o): return 0\ndef double(o): return 2*o', 'the sizes are not yours to change'),
    (2, 'exit()', 'using it ends with TypeError|twice is the sum|it ended the whole kernel'),
    (2, 'import os\ndef double(o): os._exit(1)', 'it ended the whole kernel'),
    (2, 'while True: print("holds"*1000)', 'does a loop never end?'),
    (2, 'def double(o):\n    while True: pass', 'does a loop never end?')]

def test_every_kind_of_answer(lesson):
    "What is said of an answer, and that the right ones hold whatever came before them"
    tries = [(k, [s]) for n,code,_ in answers for k,s in ((n, code), (1, right[1]), (2, right[2]))]
    res = judge_answers(str(lesson), tries, limit=2, again=False)
    assert all(o==(True, '') for i,o in enumerate(res) if i%3)
    for (ok,why),(_,code,words) in zip(res[::3], answers): assert (ok and words is None) or (not ok and re.search(words, why)), f'{why!r} is said of\n{code}'

def test_nobody_fails_for_what_another_answer_did(lesson):
    "A change inside Python outlives the clean slate, and an answer that fails because of it is tried in a new kernel"
    spoil,fine = (2, ['import builtins\nbuiltins.sum = None\ndef double(o): return 0']),(2, ['def double(o): return sum((o,o))'])
    assert [ok for ok,_ in judge_answers(str(lesson), [fine, spoil, fine])]==[True,False,True]
    assert [ok for ok,_ in judge_answers(str(lesson), [spoil, fine], again=False)]==[False,False]

def test_the_limit_is_for_answers(lesson, tmp_path):
    "The import of a module may take longer; a limit that is none is told"
    with AnswerKernel("import time; time.sleep(1.5)", limit=.5) as kernel:
        kernel.start()
        assert kernel.run('1') is None and kernel.run('time.sleep(1.5)')[0]=='Timeout'
    for limit in (0, -1, float('nan'), float('inf')):
        with pytest.raises(DataError, match='Give a number above 0'): AnswerKernel('', limit)

def test_what_a_student_gets(lesson):
    nb = student_notebook(read_notebook(lesson), 'lesson')
    assert [c.source for c in nb.cells]==['# A lesson', 'width = 50', 'import math', '#| slow\nlong = 1', '## Your turn\n\nTwo of them.', exercise_imports('lesson', 'core'), 'mpp,sizes = 0.5,[1,2]',
        '### Exercise 1: Pixels\n\nHow wide is a gland of 50 µm? Call it `answer`.', '#| exercise 1\nanswer = None', "check_exercise('lesson', 1)",
        '### Exercise 2: Double\n\nWrite `double(o)`.', 'offset = 0', '#| exercise 2\ndef double(o):\n    "Twice o"\n    ...', "check_exercise('lesson', 2)"]
    assert [c.source for c in nb.cells if c.metadata]==['import math', 'mpp,sizes = 0.5,[1,2]'] and nb.cells[2].metadata==dict(jupyter=dict(source_hidden=True))
    assert nb.metadata.histolab_nb==dict(notebook='lesson', version=notebooks.histolab_nb.__version__)
    assert nbformat.writes(nb)==nbformat.writes(student_notebook(read_notebook(lesson), 'lesson'))
    nbformat.validate(nb)

def test_badges_and_flags_of_a_student(tmp_path):
    "The badge leads to the source, with its solutions; flags tell what a cell needs, outputs stay"
    nb = v4.new_notebook(cells=[v4.new_markdown_cell('#| export\n# T\n\n[![Open in Colab](https://a/b.svg)](https://c)\n\nText'),
        v4.new_code_cell('#| slow\n#| data\n#| echo: false\n1', outputs=[v4.new_output('stream', text='1')]), v4.new_code_cell('#| eval: false\n#| exporti\nx')])
    a,b,c = student_notebook(nb, 't').cells
    assert '](https' not in a.source and a.source.startswith('# T') and (b.source, c.source)==('#| slow\n#| data\n1', '#| eval: false\nx')
    assert b.outputs[0].text=='1' and b.metadata.jupyter.source_hidden and len(nb.cells[1].source.splitlines())==4

def given(lesson, edit):
    nb = student_notebook(read_notebook(lesson), str(lesson))
    edit(nb.cells)
    known,module = source_exercises(str(lesson))
    return answers_in(nb, known, exercise_imports(str(lesson), module))

def cell(cells, text): return next(i for i,c in enumerate(cells) if text in c.source)

def test_answers_are_found_in_what_students_make_of_a_notebook(lesson):
    def put(text, *srcs, skip=0, replace=0):
        def f(cells):
            i = cell(cells, text)+skip
            cells[i:i+replace] = [v4.new_markdown_cell(s) if s.startswith('# ') else v4.new_code_cell(s) for s in srcs]
        return f
    mark = '#| exercise 1'
    for edit,found in (
        (lambda cells: None, {1:None, 2:None}),
        (put(mark, mark+'\nanswer = 1', replace=1), {1:[mark+'\nanswer = 1'], 2:None}),
        (put(mark, mark, replace=1), {1:None, 2:None}), # emptied
        (put(mark, 'answer = 1', replace=1), {1:['answer = 1'], 2:None}), # without its mark
        (put(mark, 'h = 1', mark+'\nanswer = h', 'answer += 1', replace=1), {1:['h = 1', mark+'\nanswer = h', 'answer += 1'], 2:None}), # in several cells
        (put(mark, '# My notes', mark+'\nanswer = 1', replace=1), {1:[mark+'\nanswer = 1'], 2:None}), # with a chapter of one's own
        (put("', 1)", 'scratch = 1/0', skip=1), {1:None, 2:None}), # below the check
        (put('### Exercise 1', mark+'\nanswer = 1', replace=2), {1:[mark+'\nanswer = 1'], 2:None}), # without its heading
        (put("', 1)", replace=1), {1:None, 2:None}), # without its check
        (put(mark, replace=1), {1:[], 2:None}), # deleted
        (put(mark, mark+"\nanswer = 1\ncheck_exercise('x', 1)", replace=2), {1:[mark+'\nanswer = 1\n'], 2:None}), # in one cell with its check
        (put(mark, mark+"\nanswer = None\ncheck_exercise('x', 1)", replace=2), {1:None, 2:None}),
        (put('## Your turn', replace=99), {1:[], 2:[]}),
        (put('mpp,sizes', 'mpp,sizes = 1,[]', replace=1), {1:['mpp,sizes = 1,[]', mark+'\nanswer = None'], 2:['mpp,sizes = 1,[]', '#| exercise 2\ndef double(o):\n    "Twice o"\n    ...']})):
        assert given(lesson, edit)==found

def test_grades(lesson, tmp_path):
    "A notebook from the desk of a student to a table; the source itself is one in which nothing is answered"
    path = student(lesson, tmp_path/'a.ipynb', ('answer = None', 'answer = 100'), ("    ...", '    return o'), (', 1)', ', 1) # holds'))
    marks = grade_notebook(path, str(lesson))
    assert marks.values.tolist()==[['lesson', 1, 'Pixels', True, ''], ['lesson', 2, 'Double', False, 'twice is the sum with itself']]
    assert set(grade_notebook(lesson, str(lesson)).says)=={'nothing is answered yet'}
    nb = read_notebook(path)
    nb.cells = nb.cells[:cell(nb.cells, '#| exercise 2')]
    nbformat.write(nb, path)
    assert grade_notebook(path, str(lesson)).says.tolist()==['', 'there is no answer: the cell that starts with #| exercise 2 is missing']

def test_whose_notebook_it_is(lesson, tmp_path):
    "Metadata, calls, file name; a student cannot bring the checks"
    paper = next(iter(paper_notebooks()))
    nb,path = v4.new_notebook(metadata=dict(histolab_nb=dict(notebook=paper))),tmp_path/'a.ipynb'
    assert source_name(nb, path)==paper
    assert source_name(v4.new_notebook(cells=[v4.new_code_cell(f"check_exercise('{paper}', 1)")]), path)==paper
    assert source_name(v4.new_notebook(), tmp_path/find_notebook(paper).name)==paper
    for meta in ({}, dict(histolab_nb=dict(notebook=str(lesson))), dict(histolab_nb=3), dict(histolab_nb=dict(notebook=['x']))):
        with pytest.raises(DataError, match='not made of a notebook of the course'): source_name(v4.new_notebook(metadata=meta), path)

@pytest.mark.parametrize('text, says', [(None, 'no such notebook'), ('', 'can be read'), ('{"cells": [', 'can be read'), ('[]', 'can be read'), ('{"a": 1}', 'can be read'),
    ('{"cells": [{"cell_type": "code"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', 'can be read'), ('\xff\x00', 'can be read'),
    ('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', 'not made of a notebook of the course')])
def test_what_cannot_be_graded(text, says, tmp_path):
    if text is not None: (tmp_path/'a.ipynb').write_bytes(text.encode('latin1'))
    with pytest.raises(DataError, match=says): grade_notebook(tmp_path/'a.ipynb')

def test_without_exercises(tmp_path):
    with pytest.raises(DataError, match='no exercises'): source_exercises(str(write_nb(tmp_path/'a.ipynb', '# A', '1')))

def test_a_broken_source_is_not_the_fault_of_the_student(tmp_path):
    parts = '### Exercise 1: A', '#| exercise 1\na = None', '#| solution 1\na = 1', '#| check 1\nassert a'
    nb = write_nb(tmp_path/'a.ipynb', '## Your turn', '1/0', *parts)
    with pytest.raises(DataError, match='the set-up of exercise 1 fails: ZeroDivisionError'): judge_answers(str(nb), [(1, ['a = 1'])])
    nb = write_nb(tmp_path/'b.ipynb', '#| default_exp nowhere', '## Your turn', *parts)
    with pytest.raises(DataError, match='cannot be graded here: ModuleNotFoundError'): judge_answers(str(nb), [(1, ['a = 1'])])
    assert not [p for p in psutil.Process().children(recursive=True) if any('ipykernel' in o for o in p.cmdline())]

def test_answers_at_once(lesson, tmp_path):
    "What `check_exercise` says in a kernel, as the student goes on"
    nb = student_notebook(read_notebook(lesson), str(lesson))
    i,call = cell(nb.cells, '#| exercise 1'),lambda s: v4.new_code_cell(s)
    ask = nb.cells[i+1].source
    nb.cells = nb.cells[cell(nb.cells, '## Your turn'):i] + [call(o) for o in (ask, '#| exercise 1\nanswer = None ', ask, '#| exercise 1\nanswer = 3', ask, 'answer = width', 'answer = 100', ask, 'answer = None', '#| exercise 1\nanswer = None', ask)]
    nb.cells[-6].source = 'import builtins'
    execute(nb, tmp_path, dict(slow='no'), say=lambda s: None)
    said = [c.outputs[0].text for c in nb.cells if c.cell_type=='code' and c.source==ask]
    alone = 'is it a typo? Else run the cells of this chapter from its start'
    nothing = 'Exercise 1: nothing is answered yet. Change the cell that starts with #| exercise 1, run it, then run this cell again.\n'
    assert said==[f"Exercise 1 does not hold yet: name 'answer' is not defined: {alone}\n", nothing, 'Exercise 1 does not hold yet: divide by the width of a pixel\n', 'Exercise 1 holds.\n', nothing]

def test_a_check_changes_nothing_in_the_notebook(lesson):
    known,_ = source_exercises(str(lesson))
    known[1].check += '\nimport warnings\nwarnings.warn("of no use to a student")\nmpp = 7\ndel answer'
    names = dict(mpp=.5, answer=100)
    with warnings.catch_warnings(record=True) as seen: assert check_answer(known[1], names)==(True, '')
    assert not seen and {k:names[k] for k in ('mpp', 'answer')}==dict(mpp=.5, answer=100)

# ---- the folder of a course, and the commands

@pytest.fixture
def papers(lesson, tmp_path, monkeypatch):
    "A package with one small paper and one lesson across papers"
    for d in ('papers', 'course'): (tmp_path/'nbs'/d).mkdir(parents=True)
    (tmp_path/'nbs'/'papers'/'10_lesson.ipynb').write_bytes(lesson.read_bytes())
    write_nb(tmp_path/'nbs'/'course'/'01_start.ipynb', '# Start here', '1')
    monkeypatch.setattr(notebooks, 'notebooks_folder', lambda: tmp_path/'nbs')
    return tmp_path

def call(capsys, *args):
    "Exit code and what was printed"
    with pytest.raises(SystemExit) as e: cli.main([str(a) for a in args])
    said = capsys.readouterr()
    return e.value.code or 0, said.out, said.err

def test_names(papers):
    assert list(paper_notebooks())==['lesson'] and list(course_notebooks())==['start']
    assert find_notebook('start').name=='01_start.ipynb' and find_notebook('lesson').name=='10_lesson.ipynb'
    with pytest.raises(DataError, match='Choose one of start, lesson'): find_notebook('x')

def test_course(papers, capsys):
    "What is written, that it is written again where nothing changed, and never over what somebody changed"
    out = papers/'class'
    rc,said,err = call(capsys, 'course', out)
    files = {p.relative_to(out).as_posix():p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert (rc, err)==(0, '') and str(out) in said and set(files)=={'README.md', 'course/01_start.ipynb', 'papers/10_lesson.ipynb'}
    readme = files['README.md'].decode()
    assert all(s in readme for s in ('[`papers/10_lesson.ipynb`](papers/10_lesson.ipynb) | A lesson |', 'Start here', 'histolab-nb grade', notebooks.histolab_nb.__version__)) and '{' not in readme
    assert read_notebook(out/'papers'/'10_lesson.ipynb').metadata.histolab_nb.notebook=='lesson'
    (out/'course'/'01_start.ipynb').unlink()
    assert call(capsys, 'course', out)[0]==0 and (out/'course'/'01_start.ipynb').read_bytes()==files['course/01_start.ipynb']
    (out/'README.md').unlink()
    (out/'papers'/'10_lesson.ipynb').write_text('mine')
    rc,said,err = call(capsys, 'course', out)
    assert rc==1 and 'papers/10_lesson.ipynb' in err and 'README' not in err and 'overwrite' in err and err.count('\n')==1
    assert (out/'papers'/'10_lesson.ipynb').read_text()=='mine' and not (out/'README.md').exists()
    assert call(capsys, 'course', out, '--overwrite')[0]==0
    assert {p.relative_to(out).as_posix():p.read_bytes() for p in out.rglob('*') if p.is_file()}==files

def test_folders_in_the_way(papers, capsys):
    (papers/'class'/'README.md').mkdir(parents=True)
    for more in ((), ('--overwrite',)):
        rc,_,err = call(capsys, 'course', papers/'class', *more)
        assert rc==1 and 'README.md' in err and err.count('\n')==1 and [p.name for p in (papers/'class').iterdir()]==['README.md']
    (papers/'marks.csv').mkdir()
    assert call(capsys, 'grade', 'lost.ipynb', '--out', papers/'marks.csv')==(1, '', f'histolab-nb: {papers/"marks.csv"}: this is a folder. Choose the name of a file for the marks\n')

def test_grade(papers, lesson, capsys):
    "A class: lines, marks, exit code"
    all_right = student(lesson, papers/'all.ipynb', ('answer = None', right[1]), ('    ...', '    return 2*o'), name='lesson')
    half = student(lesson, papers/'half, b.ipynb', ('answer = None', right[1]), name='lesson')
    (papers/'bad.ipynb').write_text('no')
    rc,out,err = call(capsys, 'grade', all_right)
    assert (rc, err)==(0, '') and out.splitlines()==[f'{all_right}: exercise 1 (Pixels) holds', f'{all_right}: exercise 2 (Double) holds', '2 of 2 exercises hold, in 1 notebook']
    rc,out,err = call(capsys, 'grade', papers/'bad.ipynb', half, papers/'lost.ipynb', '--out', papers/'marks.csv')
    lines = out.splitlines()
    assert (rc, err, len(lines))==(1, '', 5) and lines[0].startswith(f'{papers/"bad.ipynb"}: cannot be graded: this is no notebook')
    assert lines[2]==f'{half}: exercise 2 (Double) does not hold: nothing is answered yet' and lines[-1]=='1 of 2 exercises hold, in 3 notebooks; 2 could not be graded'
    marks = pd.read_csv(papers/'marks.csv', dtype=dict(exercise='Int64'))
    assert list(marks)==['file', 'notebook', 'exercise', 'title', 'holds', 'says'] and marks.holds.tolist()==[False,True,False,False] and marks.file[1]==str(half)
    assert call(capsys, 'grade', half, '--out', half)[0]==1 and read_notebook(half)
    assert call(capsys, 'grade', half, '--out', papers/'bad.ipynb'/'m.csv')[0]==1

@pytest.mark.skipif(os.name=='nt', reason='Windows has no SIGINT for one process')
@pytest.mark.parametrize('how', ['SIGINT', 'SIGKILL'])
def test_a_stopped_grader_leaves_no_kernel(how, lesson, tmp_path):
    path,flag = student(lesson, tmp_path/'a.ipynb', ('answer = None', f'open({str(tmp_path/"runs")!r}, "w").close()\nwhile True: pass')),tmp_path/'runs'
    (tmp_path/'tmp').mkdir()
    p = subprocess.Popen([sys.executable, '-c', 'from histolab_nb.cli import main; main()', 'grade', str(path), '--source', str(lesson), '--out', str(tmp_path/'marks.csv')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | dict(TMPDIR=str(tmp_path/'tmp')))
    until = lambda f: next((True for _ in range(300) if f() or time.sleep(.1)), False)
    assert until(flag.exists)
    kernels = psutil.Process(p.pid).children(recursive=True)
    p.send_signal(getattr(signal, how))
    _,err = p.communicate(timeout=60)
    assert kernels and until(lambda: not any(k.is_running() and k.status()!=psutil.STATUS_ZOMBIE for k in kernels))
    assert 'Traceback' not in err and not (tmp_path/'marks.csv').exists()
    if how=='SIGINT': assert p.returncode==130 and not list((tmp_path/'tmp').iterdir())

# ---- in a checkout

def test_answers_in_the_source(lesson, tmp_path, monkeypatch):
    "Who writes an answer into the very notebook that the exercises come from is graded against its last commit, also below a solution; without git it is said"
    monkeypatch.setattr(notebooks, 'notebooks_folder', lambda: tmp_path/'nbs')
    path = tmp_path/'nbs'/'course'/'00_toy.ipynb'
    path.parent.mkdir(parents=True)
    path.write_bytes(lesson.read_bytes())
    with pytest.raises(DataError, match='the exercises come from.*histolab-nb course'): grade_notebook(path)
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'a lesson']): subprocess.run([*git, *words], check=True)
    assert list(grade_notebook(path).says)==['nothing is answered yet']*2
    nb = read_notebook(path)
    for c in nb.cells: c.source = c.source.replace('#| exercise 1\nanswer = None', '#| exercise 1\nanswer = 49/mpp').replace('"Twice o"\n    ...', '"Twice o"\n    return o*2')
    nbformat.write(nb, path)
    marks = grade_notebook(path)
    assert list(marks.holds)==[False,True] and 'divide by the width' in marks.says[0] and set(marks.notebook)=={'00_toy'}
