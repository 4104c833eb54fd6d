"""The page ``/docs``: every place of the server with an example, from its OpenAPI description.

FastAPI's own page loads Swagger UI from another host, which a server without a network cannot, and one with should not. This
page has no scripts and loads nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
"""The browser holds the page to what is said above."""
_FILES = ("cat.jpg", "dog.jpg")


def render_docs(description: Mapping[str, Any], address: str) -> str:
    """Render an OpenAPI description as HTML.

    Args:
        description: as ``FastAPI.openapi`` gives it.
        address: where the server is, for the examples, without a slash at its end.
    """
    about, style = description["info"], (files("apd") / "assets" / "serve.css").read_text(encoding="utf-8")
    places = [
        _place(method, path, operation, description, address)
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(about['title'])}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(about['title'])} <small>{escape(about['version'])}</small></h1>"
        f'<p>{escape(about["description"])}</p><p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI).</p>'
        f"{''.join(places)}</main></body></html>\n"
    )


def _place(method: str, path: str, operation: Mapping[str, Any], whole: Mapping[str, Any], address: str) -> str:
    """One method of one path: what it is for, how to call it, and what it answers."""
    form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema", {})
    fields = form.get("properties", {})
    asked = "".join(f"<p>Field <code>{escape(name)}</code>: {escape(_said(of))}</p>" for name, of in fields.items())
    call = shlex.join(["curl", *_form(fields), f"{address}{path}"])
    rows = "".join(
        f'<tr><th scope="row">{escape(status)}</th><td>{escape(answer["description"])}</td></tr>'
        for status, answer in sorted(operation["responses"].items())
    )
    return (
        f"<section><h2><b>{escape(method.upper())}</b> {escape(path)}</h2><p>{escape(operation['summary'])}</p>{asked}"
        f"<pre>{escape(call)}</pre>{_answer(operation['responses'], whole)}<table><tbody>{rows}</tbody></table></section>"
    )


def _said(of: Mapping[str, Any]) -> str:
    most = f" At most {of['maxItems']} per request." if "maxItems" in of else ""
    return f"{of.get('description', '')}{most}"


def _form(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in fields:
        for file in _FILES:
            yield from ("-F", f"{name}=@{file}")


def _answer(responses: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """The form of a successful answer, if it is JSON."""
    schema = responses.get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    return f"<pre>{escape(json.dumps(_example(schema, whole), indent=2))}</pre>" if schema else ""


def _example(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
    """A value of a JSON schema's form."""
    if "$ref" in schema:
        return _example(whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], whole)
    if schema["type"] == "array":
        return [_example(schema["items"], whole)]
    if schema["type"] == "object":
        known = {name: _example(of, whole) for name, of in schema.get("properties", {}).items()}
        return known or {"...": _example(schema["additionalProperties"], whole)}
    return {"string": "...", "number": 0.5, "integer": 1, "boolean": True}[schema["type"]]
