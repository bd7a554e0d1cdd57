"""Pages of the site that are files elsewhere in the repository, and links that lead to them.

Links are written for whoever reads the files in a clone: `../launch/README.md`. On the site such a
link leads to the page made of that file. A file that has no page is named without a link.
"""

import os
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = {  # file of the repository: page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "launch/README.md": "launch.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page."""
    path = page.file.src_uri
    source = next((name for name, made in PAGES.items() if made == path), f"docs/{path}")
    text = markdown.replace("```bash ci\n", "```bash\n")
    return rewrite(text, source, path, set(files.src_uris))


def rewrite(markdown: str, source: str, page: str, known: set[str]) -> str:
    """Returns the text of the file `source` with its links as they must be on `page`.

    known: the site's files. Raises ValueError for a link to a file that is not in the repository.
    """

    def link(found: re.Match) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        inside = PAGES.get(path, path.removeprefix("docs/"))
        if inside in known and (path in PAGES or path.startswith("docs/")):
            return f"[{text}]({os.path.relpath(inside, os.path.dirname(page) or '.')}{anchor})"
        if not (ROOT / path).exists():
            raise ValueError(f"{source}: link to {target}: there is no {path}")
        return text

    return _LINK.sub(link, markdown)
