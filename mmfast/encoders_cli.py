"""``mmfast encoders``: which encoders there are, what each is, whether it works, and new ones."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmfast.plugins import (
    MODALITIES,
    Plugin,
    PluginLoadError,
    create_encoder,
    encoder_info,
)
from mmfast.plugins.encoders import ENCODERS

MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "-"}


def main(argv: list[str] | None = None) -> int:
    """Run one of the subcommands; returns its exit status."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except BrokenPipeError:  # mmfast.cli looks whether the reader has gone
        raise
    except (OSError, PluginLoadError, TypeError, ValueError) as error:
        print(f"mmfast encoders: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mmfast encoders", description=str(__doc__))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    what = "every encoder: name, modality, status, licence and origin of its distribution"
    command = commands.add_parser("list", help=what, description=what)
    command.add_argument("--modality", choices=MODALITIES, help="only those for it")
    command.add_argument("--load", action="store_true", help="import each, to see whether it loads")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_list)

    what = "one encoder: where it comes from, and its spec"
    command = commands.add_parser("show", help=what, description=what)
    _add_encoder(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_show)

    what = "run the contract kit on an encoder"
    command = commands.add_parser("check", help=what, description=what)
    _add_encoder(command)
    command.set_defaults(run=_check)

    what = "write a package with a new encoder, ready to install"
    command = commands.add_parser("new", help=what, description=what)
    command.add_argument("name", help="of the distribution")
    command.add_argument("--modality", choices=MODALITIES, required=True)
    command.add_argument("--into", type=Path, default=Path(), help="directory; default: this one")
    command.set_defaults(run=_new)
    return parser


def _add_encoder(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="of the encoder; distribution:name where two claim it")
    command.add_argument(
        "--options", type=_options, default={}, metavar="JSON", help="its options, a JSON object"
    )


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object, such as {{"out_dim": 64}}')
    return options


# ---------------------------------------------------------------------------------------- list


def _list(arguments: argparse.Namespace) -> int:
    plugins = ENCODERS.plugins()
    claims = Counter(plugin.name for plugin in plugins if plugin.allowed)
    rows = []
    for plugin in plugins:
        if arguments.modality in (None, *plugin.modalities):
            facts = {"name": plugin.name, "modality": ",".join(plugin.modalities) or "not stated"}
            facts["status"] = _status(plugin, claims[plugin.name], arguments.load)
            rows.append({**facts, "licence": plugin.licence, "origin": plugin.source})
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        titles = {key: key.upper() for key in rows[0]}
        widths = {key: max(len(row[key]) for row in [titles, *rows]) for key in titles}
        for row in [titles, *rows]:
            print("  ".join(f"{row[key]:<{widths[key]}}" for key in titles).rstrip())
    else:
        print("there is no such encoder", file=sys.stderr)
    return 0


def _status(plugin: Plugin, claims: int, load: bool) -> str:
    if not plugin.allowed:
        return "not allowed"
    if load:
        try:
            ENCODERS.load(plugin)
        except PluginLoadError as error:
            return f"broken ({type(error.__cause__ or error).__name__})"
    # The package alone: looking for a module inside it would import it.
    elif _package(plugin) not in sys.modules and not importlib.util.find_spec(_package(plugin)):
        return f"no module {_package(plugin)}"
    return "claimed twice" if claims > 1 else "loads" if load else "installed"


def _package(plugin: Plugin) -> str:
    return plugin.target.partition(":")[0].partition(".")[0]


# ---------------------------------------------------------------------------------------- show


def _show(arguments: argparse.Namespace) -> int:
    plugin = encoder_info(arguments.name)
    facts: dict[str, Any] = {
        "name": plugin.name,
        "target": plugin.target,
        "modality": ", ".join(plugin.modalities) or "not stated",
        "distribution": plugin.source,
        "distribution's licence": plugin.licence or "not stated",
    }
    status = 0
    try:
        with contextlib.redirect_stdout(sys.stderr):
            encoder = create_encoder(arguments.name, **arguments.options)
        facts["spec"] = asdict(encoder.spec)
        facts["parameters"] = sum(p.numel() for p in encoder.parameters())
    except Exception as error:  # a constructor may raise anything; the rest is still worth showing
        facts["spec"] = f"unknown: {type(error).__name__}: {error}"
        status = 1
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return status
    spec = facts.pop("spec")
    facts |= spec if isinstance(spec, dict) else {"spec": spec}
    for key, value in facts.items():
        print(f"{key:<24}{'' if value is None else value}".rstrip())
    return status


# --------------------------------------------------------------------------------- check, new


def _check(arguments: argparse.Namespace) -> int:
    from mmfast.testing import check_encoder  # here: torch.compile and more, for this command only

    failed = 0
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what the encoder prints is no result
        try:
            checks = check_encoder(arguments.name, arguments.options)
        except Exception as error:  # a constructor may raise anything
            print(f"{arguments.name} cannot be made: {type(error).__name__}: {error}")
            return 1
        for check in checks:
            failed += check.outcome == "failed"
            message = check.message.replace("\n", "\n" + " " * 28)
            line = f"{MARKS[check.outcome]:<8}{check.name:<20}{message}".rstrip()
            print(line, file=out, flush=True)
    verdict = "keeps the contract"
    if failed:
        verdict = f"{failed} check{'s' if failed > 1 else ''} failed"
    print(f"{arguments.name}: {verdict}")
    return 1 if failed else 0


def _new(arguments: argparse.Namespace) -> int:
    from mmfast.scaffold import write_package

    folder = write_package(arguments.name, arguments.modality, arguments.into)
    print(
        f"{folder} is written. Next:\n"
        f"  pip install -e '{folder}[test]'\n"
        f"  mmfast encoders check {arguments.name}/{arguments.modality}\n"
        f"  pytest {folder}"
    )
    return 0
