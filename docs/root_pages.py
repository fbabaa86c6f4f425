"""Pages of the site that lie outside docs/: the README as its first page, and three more.

A hook of MkDocs (mkdocs.yml). Their links to pages under docs/ are those of the site, so that the
same files read well in the repository.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # of the site: in the repository
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"\]\((?:\.\./)?docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, with these."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = LINK.sub("](", text).replace("](README.md)", "](index.md)")
        files.append(File.generated(config, name, content=text))
    return files
