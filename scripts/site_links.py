"""Hook of MkDocs: the site begins with the README and has the files of the repository that its pages link.

The pages are written for a code host, where a link may lead to any file. A linked file outside `docs/` becomes a file
of plain text in the site; a link to a folder becomes text.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS, SOURCES = "docs", "files"
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r'((?:src|srcset)=")([^":]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, the decisions' list, and every linked file outside `docs/`."""
    add_page(files, config, "index.md", (ROOT / "README.md").read_text())
    titles = [
        f"- [{path.read_text().splitlines()[0].lstrip('# ')}]({path.name})"
        for path in sorted((ROOT / DOCS / "adr").glob("*.md"))
    ]
    add_page(files, config, "adr/index.md", "# Decisions\n\n" + "\n".join(titles) + "\n")
    for page in list(files.documentation_pages()):
        for _, target, _ in LINK.findall(page.content_string):
            path = in_repository(page.src_uri, target)
            if is_source(path):
                uri = site_path(path)
                if files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page into links of the site."""
    here = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = in_repository(here, target)
        if is_source(path):
            return f"[{text}]({relative(site_path(path), here)})"
        if (ROOT / path).is_dir():
            path = f"{path}/index.md"
            if files.get_file_from_path(site_path(path)) is None:
                return text
        return f"[{text}]({relative(site_path(path), here)}{anchor})"

    def picture(match: re.Match[str]) -> str:
        return f'{match[1]}{relative(site_path(in_repository(here, match[2])), here)}"'

    return PICTURE.sub(picture, LINK.sub(link, markdown))


def add_page(files: Files, config: MkDocsConfig, uri: str, content: str) -> None:
    """Add a page that is no file in `docs/`."""
    files.append(File.generated(config, uri, content=content))


def in_repository(page: str, target: str) -> str:
    """Path in the repository of what a page links; `index.md` is the README."""
    folder = "." if page == "index.md" else f"{DOCS}/{PurePosixPath(page).parent}"
    return normpath(f"{folder}/{target}")


def is_source(path: str) -> bool:
    """Whether a path is a file that is no page."""
    return not path.startswith(f"{DOCS}/") and (ROOT / path).is_file()


def site_path(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    shown = path.lstrip(".")  # files whose names begin with a dot stay out of a site
    return f"{SOURCES}/{shown}" + ("" if path.endswith(".png") else ".txt")


def relative(uri: str, page: str) -> str:
    """A path in the site as a link from a page."""
    return relpath(uri, str(PurePosixPath(page).parent))
