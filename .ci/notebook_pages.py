"""Pages of the site made from the notebooks, for mkdocs.yml: their text, code and outputs as Markdown."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, *, config: Any) -> Files:  # noqa: ANN401 - the configuration of MkDocs
    """Add a page for every notebook; the notebook itself stays, to download."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(Path(file.abs_src_path or "").read_text(encoding="utf-8"))
            page = file.src_uri.replace(".ipynb", ".md")
            name = Path(file.src_uri).name
            text = (
                as_markdown(notebook) + f"\n\n<a download href='{name}'>Download the notebook</a>\n"
            )
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 - what else MkDocs gives
    """Let links to a notebook lead to its page."""
    return re.sub(r"\]\(([^):]+)\.ipynb\)", r"](\1.md)", markdown)


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown, with its pictures inside."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="What the code draws" src="data:image/png;base64,{image}">')
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts)
