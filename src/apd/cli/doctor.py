"""`apd doctor`."""

from __future__ import annotations

import textwrap
from typing import Any

import typer

from apd.cli.common import AsJson, quiet_stdout, say
from apd.util.progress import counted
from apd.util.text import first_of, one_line, printable, to_json


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, caches, what is missing and how to get it; ends with 1 if apd cannot work here.

    Examples:
      apd doctor
      apd doctor --json
    """
    say("Looking at packages, devices and caches, and trying the built-in model ...")
    with quiet_stdout():
        from apd.util.environment import describe_environment

        found = describe_environment()
        found["problems"] += _try_out()
    print(to_json(found) if as_json else "\n".join(part for line in _lines(found) for part in _wrapped(line)))
    if found["problems"]:
        raise typer.Exit(1)
    say("Next: apd demo")


def _try_out() -> list[str]:
    """Classify an image by the embedded CLIP model; return what goes wrong."""
    try:
        import torch

        from apd.models import load_clip
        from apd.models.classifier import PromptedCLIP

        clip = load_clip("glyphs")
        size = clip.info.image_size
        answer = PromptedCLIP(clip, None, ["one", "two"])(torch.full((1, 3, size, size), 0.5))
        return (
            [] if bool(answer.isfinite().all()) else ["The embedded CLIP model computes numbers that are not finite."]
        )
    except Exception as error:  # whatever is broken here is what this command is to tell
        return [f"The embedded CLIP model does not run: {type(error).__name__}: {one_line(error, 300)}."]


def _lines(found: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"versions  {versions}", f"system    {found['platform']}"]
    for rank, device in enumerate(found["devices"]):
        lines.append(f"{'' if rank else 'devices':<10}{_device(device)}{'' if rank else ' (--device auto)'}")
    for rank, cache in enumerate(found["caches"]):
        lines.append(f"{'' if rank else 'caches':<10}{_cache(cache)}")
    lines.append(
        f"network   {'HF_HUB_OFFLINE is set: nothing is downloaded' if found['offline'] else 'downloads allowed'}"
    )
    lines.append(f"data      APD_DATA is {printable(found['data_root'] or 'not set')}")
    for rank, extra in enumerate(found["extras"]):
        lines += [f"{'' if rank else 'extras':<10}{line}" for line in _extra(extra)]
    if not found["extras"]:
        lines.append("extras    unknown: apd is not installed as a package here")
    lines += [f"problem   {problem}" for problem in found["problems"]] or ["problems  none"]
    return lines


def _wrapped(line: str) -> list[str]:
    """A line in 80 columns, its continuation below the text; a command to paste stays whole."""
    if "pip install" in line:
        return [line]
    return textwrap.wrap(
        line, 80, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def _device(device: dict[str, Any]) -> str:
    parts = [f"{device['device']}: {device['name']}"]
    if "cores" in device:
        parts.append(f"{counted(device['cores'], 'core')}, {counted(device['threads'], 'thread')}")
    parts += [f"{device['memory_gb']} GB memory, {device['free_gb']} GB free"] if "memory_gb" in device else []
    return ", ".join(parts)


def _cache(cache: dict[str, Any]) -> str:
    state = "" if cache["exists"] else ", not made yet"
    models = f", holds {first_of(cache['models'], 'models')}" if cache.get("models") else ""
    return f"{cache['what']}: {printable(cache['path'])}{state}, {cache['free_gb']} GB free{models}"


def _extra(extra: dict[str, Any]) -> list[str]:
    bad = [f"missing {', '.join(extra['missing'])}"] if extra["missing"] else []
    bad += [
        f"{name} {about['installed']} is {about['problem']} ({about['wanted']})"
        for name, about in extra["unfit"].items()
    ]
    if bad:
        return [f"{extra['extra']:<12} {', '.join(bad)}: {extra['use']}", f"{'':<12} {extra['install']}"]
    known = ", ".join(f"{name} {version}" for name, version in extra["installed"].items())
    return [f"{extra['extra']:<12} installed: {extra['use']} ({known})"]
