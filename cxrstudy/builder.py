"""Jupyter Book in a process of its own: imports while the pages are computed, builds when told its arguments.

``python -m cxrstudy.builder`` reads one line, the arguments of the command ``jupyter-book`` as JSON; none: it ends.
"""

import functools
import json
import os
import sys

import myst_nb.sphinx_ext  # noqa: F401  these two would be imported later, and take the longest
import sphinx_book_theme  # noqa: F401
from jupyter_book import sphinx
from jupyter_book.cli.main import main

if __name__ == "__main__" and (line := sys.stdin.readline()):
    # several processes, which the command cannot be asked for; one of them feeds the others
    sphinx.build_sphinx = functools.partial(
        sphinx.build_sphinx, jobs=min(2, os.cpu_count() or 1) + 1
    )
    main(json.loads(line))
