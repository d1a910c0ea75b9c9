"""The notebook runs, and shows what it gives."""

import re
from pathlib import Path

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def printed(notebook) -> list[str]:
    """Return what each cell prints, with figures left out, as losses differ between machines."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"stream"}
    return [re.sub(r"\d+\.\d+", "#", output.text) for output in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_it_shows(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept, fresh = (nbformat.read(path, as_version=4) for _ in range(2))
    client = nbclient.NotebookClient(fresh, kernel_name="python3", coalesce_streams=True)
    client.execute()
    assert printed(fresh) == printed(kept)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", "\n".join(texts))
    assert [target for target in targets if not (path.parent / target).exists()] == []
