"""The package as a whole: what importing it does, and that the README is true."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_importing_is_light_and_has_no_side_effects():
    code = """
import logging, sys, os
before = dict(os.environ)
import jaxsnn, jaxsnn.layers, jaxsnn.hardware
heavy = {"tensorflow", "tensorflow_datasets", "orbax", "clu", "tensorboardX"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert dict(os.environ) == before
assert not logging.getLogger().handlers
import jax
assert not jax._src.xla_bridge._backends, "importing started a JAX backend"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_file_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    named = set(
        re.findall(r"`((?:jaxsnn|configs|tests|benchmarks|\.ci)/[\w/.]*)`", readme)
    )
    assert len(named) > 10
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
