"""What mkdocs does besides rendering pages: pages made from the code, and links to files that are not pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import charts
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebooks import notebook_page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the library that draws charts."""
    made = {
        "commands.md": reference.commands_page(),
        "settings.md": reference.settings_page(),
        "charts.md": charts.charts_page(),
        "assets/plotly.min.js": charts.plotly_source(),
        "security.md": (ROOT / "SECURITY.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "]("),
    }
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        page = str(Path(file.src_uri).with_suffix(".md"))
        made[page] = notebook_page(file.content_string, Path(file.src_uri).name)
    for name, text in made.items():
        if (stub := files.get_file_from_path(name)) is not None:  # what readers of the unbuilt pages find there
            files.remove(stub)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Link to the pages made of notebooks, and turn links to other files of the repository into text; they must exist."""

    def shown(match: re.Match[str]) -> str:
        text, target, _ = match.groups()
        if target.endswith(".ipynb") and not page.file.src_uri.startswith("notebooks/"):
            return f"[{text}]({target.removesuffix('.ipynb')}.md)"
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if place.startswith("docs/") or not (ROOT / place).exists():
            return match[0]
        return text if "`" in text else f"{text} (`{place}`)"

    return LINK.sub(shown, markdown)
