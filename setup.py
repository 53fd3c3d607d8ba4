"Reads settings.ini, the one place where the package is described"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
config = ConfigParser(delimiters='=', interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
about = config['DEFAULT']

def lines(key): return [o.strip() for o in about[key].splitlines() if o.strip()]

pythons = [f'Programming Language :: Python :: 3.{n}' for n in range(11, 15)]
extras = {key.removesuffix('_requirements'): lines(key) for key in about
          if key.endswith('_requirements') and key!='dev_requirements'}
together = sum([o for name, o in extras.items() if name!='vllm'], [])  # vLLM wants an environment of its own
readme = here/'README.md'

setup(
    name=about['lib_name'],
    version=about['version'],
    author=about['author'],
    description=about['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else about['description'],
    long_description_content_type='text/markdown',
    keywords=[o.strip() for o in about['keywords'].split(',')],
    license=about['license'],
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 'Programming Language :: Python :: 3', *pythons],
    python_requires='>=' + about['min_python'],
    packages=find_packages(include=[about['lib_name'], about['lib_name']+'.*']),
    package_data={about['lib_name']: ['data/**', '*/templates/*']},
    include_package_data=False,
    install_requires=lines('requirements'),
    extras_require={**extras, 'dev': [*lines('dev_requirements'), *together]},
    entry_points={'console_scripts': lines('console_scripts'),
                  'nbdev': [f"{about['lib_name']}={about['lib_name']}._modidx:d"]},
    zip_safe=False,
)
