"""Hooks of the site: add files from outside docs/, rewrite links between files, and list the settings."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from settings_table import settings_tables

REPOSITORY = Path(__file__).resolve().parents[1]
OUTSIDE = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "benchmarks/README.md"),
    *("benchmarks/results/*", "examples/*.ipynb"),
)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
SETTINGS_MARK = "<!-- settings -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that lie outside docs/."""
    for pattern in OUTSIDE:
        for path in sorted(REPOSITORY.glob(pattern)):
            name = path.relative_to(REPOSITORY).as_posix()
            files.append(File.generated(config, site_path(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages, and insert the settings."""
    here = posixpath.dirname(page.file.src_uri)
    source = repository_path(page.file.src_uri)

    def follow(match: re.Match[str]) -> str:
        target, _, fragment = match[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        name = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        link = posixpath.relpath(site_path(name), here or ".")
        return f"]({link}{'#' + fragment if fragment else ''})"

    markdown = LINK.sub(follow, markdown)
    return markdown.replace(SETTINGS_MARK, settings_tables()) if SETTINGS_MARK in markdown else markdown


def site_path(name: str) -> str:
    """Where a file of the repository lies in the site."""
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def repository_path(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    if uri == "index.md":
        return "README.md"
    return f"docs/{uri}" if (REPOSITORY / "docs" / uri).exists() else uri
