"""Execute the book's computed pages: in as few kernels as there are cores, and only those whose inputs changed."""

import json
import os
import subprocess
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from cxrstudy import memo, recorded, study
from cxrstudy.run import notebook_error

HIDDEN = {"parameters", "injected-parameters"}
KERNELS = 2  # each imports everything once: more would gain little


class PageError(RuntimeError):
    """A page of the book failed when it was executed."""


@dataclass(frozen=True)
class Page:
    """A template, the page to make of it, its parameters, and a hash of what else it depends on."""

    template: Path
    target: Path
    parameters: dict[str, Any]
    inputs: str

    @property
    def key(self) -> str:
        """What the page is made from; kept in its metadata."""
        return study.digest(
            [self.template.read_text(encoding="utf-8"), self.parameters, self.inputs], 32
        )

    def stands(self) -> bool:
        """Whether the page was made from the same already."""
        if not self.target.is_file():
            return False
        return (
            json.loads(self.target.read_text(encoding="utf-8"))["metadata"].get("cxrstudy_inputs")
            == self.key
        )


def execute(pages: list[Page]) -> None:
    """Execute those pages that do not stand. PageError: one failed; the others were executed."""
    waiting = deque(page for page in pages if not page.stands())
    if not waiting:
        return
    kernels = min(KERNELS, os.cpu_count() or 1, len(waiting))
    with ThreadPoolExecutor(max_workers=kernels) as pool:
        work = [pool.submit(_work, waiting) for _ in range(kernels)]
        try:
            for done in work:
                done.result()
        except BaseException:
            waiting.clear()  # Ctrl-C: only the pages at work are waited for
            raise


def _work(waiting: deque[Page]) -> None:
    """Execute pages one after the other in one kernel, which keeps what it imported and forgets every name."""
    client = NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=None,
        kernel_name="python3",
        shutdown_kernel="immediate",
        resources={"metadata": {"path": str(study.root())}},
    )
    try:
        while waiting:
            try:
                page = waiting.popleft()
            except IndexError:  # the other kernel took it
                return
            _execute(page, client)
    finally:
        if client.km is not None:
            client._cleanup_kernel()


def _execute(page: Page, client: NotebookClient) -> None:
    """Execute one page. The word PRESET in its text becomes the parameter's value: a title must stand in its source."""
    key = page.key
    notebook = load_notebook_node(str(page.template))
    if page.parameters:
        notebook = parameterize_notebook(notebook, page.parameters, kernel_name="python3")
    notebook.cells.insert(
        0, nbformat.v4.new_code_cell("%reset_selective -f .")
    )  # %reset collects garbage, for long
    client.nb = notebook
    scratch = page.target.with_name(f".{page.target.stem}.executing.ipynb")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    # one thread each: threads of two kernels that wait for one another took as long again as the work
    env = os.environ | {
        memo.PLACE: str(page.target.parent.with_name("memo")),
        "OMP_NUM_THREADS": "1",
    }
    try:
        client.execute(
            cleanup_kc=False, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except (CellControlSignal, DeadKernelError, RuntimeError) as error:
        nbformat.write(notebook, str(scratch))
        raise PageError(
            f"{page.template}: {notebook_error(scratch) or error} (see {scratch})"
        ) from None
    del notebook.cells[0]
    for count, cell in enumerate(
        (cell for cell in notebook.cells if cell.cell_type == "code"), start=1
    ):
        for numbered in (cell, *cell.outputs):  # the kernel counted on from the page before
            if "execution_count" in numbered:
                numbered["execution_count"] = count
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if HIDDEN & set(cell.metadata.get("tags", [])):
            cell.metadata["tags"] = ["remove-cell"]
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(
                "PRESET", recorded.name_of(str(page.parameters.get("preset", "")))
            )
    notebook.metadata["cxrstudy_inputs"] = key
    notebook.metadata.pop("papermill", None)
    nbformat.write(notebook, str(scratch))
    os.replace(scratch, page.target)
