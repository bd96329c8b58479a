"""How the documentation is built: `sphinx-build -W docs build/docs`."""

import re

import jaxsnn

project = "jaxsnn"
author = "The jaxsnn-flax authors"
release = jaxsnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # Docstrings put names of all kinds in single backticks.
autodoc_typehints = "none"  # Arguments are described where they are documented.
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
# Attributes of a module are the arguments of its constructor.
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = f"jaxsnn {release}"


def _leave_out(app, what, name, obj, skip, options):
    """Linen's own methods and fields of layers are documented by Flax."""
    module = getattr(obj, "__module__", None) or ""
    return skip or module.startswith("flax") or name in {"parent", "name", "scope"}


def _readable(app, what, name, obj, options, signature, returns):
    """Functions and classes by their names; what Linen adds to a layer, left out."""
    if signature:
        signature = re.sub(r"\w+\.<locals>\.", "", signature)
        signature = re.sub(r"<(?:function|class) '?([\w.]+)'?.*?>", r"\1", signature)
        signature = re.sub(r"(, )?parent=<.*?>, name=None", "", signature)
    return signature, returns


def setup(app):
    """Sphinx calls this."""
    app.connect("autodoc-process-signature", _readable)
    app.connect("autodoc-skip-member", _leave_out)
