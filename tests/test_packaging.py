"""What is written about a version agrees with the version."""

import re
from pathlib import Path

import jaxsnn

ROOT = Path(__file__).parent.parent


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {jaxsnn.__version__}\n" in citation
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest.group(1) == jaxsnn.__version__


def test_the_package_says_that_it_has_types():
    assert (Path(jaxsnn.__file__).parent / "py.typed").is_file()
