"The notebooks come first and say how long they took; which of their cells are left out is said before"
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tools'))

def pytest_collection_modifyitems(items): items.sort(key=lambda o: o.path.name!='test_notebooks.py')

def pytest_report_collectionfinish(items):
    if not any(o.name.startswith('test_notebook[') for o in items): return
    from histolab_nb.notebooks import flags_here
    return [f'cells flagged {k} are left out: {v}' if v else f'cells flagged {k} run' for k,v in flags_here().items()]

def pytest_report_teststatus(report, config):
    seconds = dict(getattr(report, 'user_properties', [])).get('seconds')
    if report.when=='call' and seconds is not None: return report.outcome, report.outcome[0].upper(), f'{report.outcome.upper()} in {seconds:.0f} s'
