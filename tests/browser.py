"A page as a browser without a network lays it out."

import html
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason='no Chromium here: apt-get install chromium'
)


def title_after(page, milliseconds=8000):
    "The title of `page` (a path) after `milliseconds` of its own clock: what its scripts say."
    command = [
        CHROMIUM,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--host-resolver-rules=MAP * ~NOTFOUND',
        '--window-size=1600,1000',
        f'--virtual-time-budget={milliseconds}',
        '--dump-dom',
        f'file://{page}',
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return html.unescape(re.search(r'<title>(.*?)</title>', said, re.S)[1])
