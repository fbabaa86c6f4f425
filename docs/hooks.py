"""What MkDocs does not do by itself for the site of these pages (mkdocs.yml).

Pages that lie outside docs/ are part of it: the README as its first page, and three more. Their
links to pages under docs/ become those of the site, so that the same files read well in both.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {  # of the site: in the repository
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"\]\((?:\.\./)?docs/")
CELL = re.compile(r"<td.*?</td>", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, with these."""
    for name, source in PAGES.items():
        text = LINK.sub("](", (ROOT / source).read_text(encoding="utf-8"))
        text = text.replace("](README.md)", "](index.md)")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A bar inside code in a table is written \\| for GitHub, and shown as | here too."""
    return CELL.sub(lambda cell: cell[0].replace(r"\|", "|"), html)
