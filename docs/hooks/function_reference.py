"""The reference of the public functions: a page for each folder, found by looking."""

import ast
import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "contextdiff_jax"
# What a notebook or another project may call. The other folders are the commands' own.
FOLDERS = ("diffusion", "sampling", "networks", "encoders", "data", "tasks", "evaluation")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages to the navigation."""
    pages = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    pages += [page for folder in FOLDERS if (page := f"reference/{folder}.md") not in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for folder in FOLDERS:
        content = page(PACKAGE / folder)
        files.append(File.generated(config, f"reference/{folder}.md", content=content))
    return files


def page(folder: pathlib.Path) -> str:
    """Returns the page of a folder: what it is, then its modules, for mkdocstrings to fill in."""
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = [
        f"::: contextdiff_jax.{folder.name}.{path.stem}"
        for path in sorted(folder.glob("*.py"))
        if path.stem not in ("__init__", "config")  # the keys of sections: config_reference.py
    ]
    return "\n\n".join([f"# {folder.name.capitalize()}", about, *modules]) + "\n"
