"Hands settings.ini to setuptools; holds no fact of its own"
import configparser
from pathlib import Path
from setuptools import setup
from setuptools.config.expand import read_attr

here = Path(__file__).parent
cfg = configparser.ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
c = cfg['DEFAULT']
lib = c['lib_name']
folders = {p.relative_to(here/'nbs').parent for p in (here/'nbs').rglob('*.ipynb')} | {Path()}
notebooks = {'.'.join((lib, 'notebooks', *p.parts)): (Path('nbs')/p).as_posix() for p in sorted(folders) if '.ipynb_checkpoints' not in p.parts}

setup(name=c['lib_name'], version=read_attr(f'{lib}.__version__', root_dir=here), description=c['description'], license=c['license'],
    author=c['author'], author_email=c['author_email'], keywords=c['keywords'].split(),
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires=f">={c['min_python']}", install_requires=c['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): c[k].split() for k in c if k.endswith('_requirements')},
    classifiers=[f"Development Status :: {c['status']}", f"Intended Audience :: {c['audience']}",
        *(f'Programming Language :: Python :: {v}' for v in c['python_versions'].split())],
    packages=[lib, f'{lib}.data', *notebooks], package_dir={lib: lib, **notebooks},
    package_data={f'{lib}.data': ['*.csv', '*.j2', '*.js', '*.json', '*.safetensors'], **{k: ['*.ipynb'] for k in notebooks}},
    entry_points=dict(console_scripts=c['console_scripts'].split('\n'), nbdev=[f'{lib}={lib}._modidx:d']))
