"""Configuration of the documentation site: pages of this folder, and the notebooks above it as they were run."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pyro_lowrank

project = "pyro_lowrank"
author = "The pyro_lowrank authors"
version = release = pyro_lowrank.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "notebook_pictures",
]

# The folder of the tutorials is the source, so that notebooks and pictures need not be copied.
root_doc = "site/index"
include_patterns = ["*.ipynb", "site/**"]
exclude_patterns = ["site/_static", "site/_root", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# Spelt out, it fills the screen of a phone.
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autosummary_generate = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Shapes", "params_style"), ("Shape", "params_style"), "Warns"]
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "pyro_lowrank"
html_static_path = ["_static"]
# What lies at the top of the built site: a page that leads to `site/index.html`.
html_extra_path = ["_root"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "code-font-size": "78%",
        "color-brand-primary": "#24567a",
        "color-brand-content": "#24567a",
    },
    "dark_css_variables": {"color-brand-primary": "#8fc1e3", "color-brand-content": "#8fc1e3"},
}


def signature_in_plain_words(app, what, name, obj, options, signature, returns):
    """Write `ArrayLike` where Sphinx writes, of a type that may be None, what it is inside."""
    return re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature or "") or signature, returns


def setup(app):
    """Connect it."""
    app.connect("autodoc-process-signature", signature_in_plain_words)
