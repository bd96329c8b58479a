"""Checks an installed jaxsnn, in a directory without the repository.

`.ci/run` calls it; it needs the package with the extras `export` and `nir`, no pytest.
"""

import importlib.metadata
import importlib.resources
import re
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np

import jaxsnn
import jaxsnn.export
from jaxsnn.exchange import from_nir, to_nir

SOURCE = Path(__file__).parent.parent
assert SOURCE not in Path(jaxsnn.__file__).parents, "this is not what was installed"
assert "site-packages" in jaxsnn.__file__
assert importlib.metadata.version("jaxsnn-flax") == jaxsnn.__version__
assert (importlib.resources.files("jaxsnn") / "py.typed").is_file()

readme = (SOURCE / "README.md").read_text()
example = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
names: dict = {}
exec(compile(example, "README.md", "exec"), names)
model, variables, spikes = names["model"], names["variables"], names["spikes"]


def first(spikes):
    """First spikes of the example's model."""
    return model.apply(variables, spikes).first()


with tempfile.TemporaryDirectory() as folder:
    jaxsnn.export.export(f"{folder}/model.zip", first, spikes)
    found = jaxsnn.export.load(f"{folder}/model.zip")(spikes)
np.testing.assert_array_equal(found, jax.jit(first)(spikes))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    again, same = from_nir(to_nir(model, variables))
np.testing.assert_allclose(again.apply(same, spikes).first(), found, rtol=1e-5)
print(f"jaxsnn-flax {jaxsnn.__version__} works as installed")  # noqa: T201
