"""The documentation is true: what it shows runs, what it draws is what it shows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.M)


@pytest.mark.filterwarnings("ignore:BrainScaleS-2")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Some pages write files.
    if any("jaxsnn.plot" in block for block in blocks(page)):
        pytest.importorskip("matplotlib")
    names = {}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize(
    "script", sorted((ROOT / "docs/tutorials").glob("*.py")), ids=lambda p: p.stem
)
def test_a_tutorial_runs(script):
    exec(compile(script.read_text(), script.name, "exec"), {})


def test_every_page_is_in_the_contents():
    contents = "\n".join(
        re.findall(
            r"^```{toctree}\n(.*?)^```",
            (ROOT / "docs/index.md").read_text(),
            re.S | re.M,
        )
    )
    for page in PAGES[1:]:
        name = str(page.relative_to(ROOT / "docs").with_suffix(""))
        assert name == "index" or re.search(rf"^{name}$", contents, re.M)
