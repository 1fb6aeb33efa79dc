"Packaging: every fact is read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here / 'settings.ini', encoding='utf-8')
settings = parser['DEFAULT']
EXTRAS = 'dev', 'cluster', 'serve', 'art'

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    author_email=settings['author_email'],
    keywords=settings['keywords'],
    url=settings['git_url'],
    license='Apache-2.0',
    packages=find_packages(include=['meco_nb', 'meco_nb.*']),
    python_requires=f">={settings['min_python']}",
    install_requires=settings['requirements'].split(),
    extras_require={name: settings[f'{name}_requirements'].split() for name in EXTRAS},
)
