"""``mmfast config check | show | schema``: look at a configuration without training."""

from __future__ import annotations

import argparse

from mmfast.train.commands.common import told
from mmfast.train.config import json_schema, load_config, to_yaml


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for a configuration that cannot be used."""
    parser = argparse.ArgumentParser(prog="mmfast config", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("check", "tell everything that is wrong with a configuration"),
        ("show", "print it with every default written out"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("config")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    commands.add_parser("schema", help="print the JSON Schema, for editors")
    arguments = parser.parse_args(argv)

    def body() -> int:
        if arguments.command == "schema":
            print(json_schema())
            return 0
        config = load_config(arguments.config, arguments.overrides)
        if arguments.command == "show":
            print(to_yaml(config), end="")
            return 0
        _check_plugins(config)
        print(f"{arguments.config}: nothing is wrong with it")
        return 0

    return told("config", body)


def _check_plugins(config: object) -> None:
    """Raise for an encoder or fusion that is not installed; imports none."""
    from mmfast.nn import list_fusions
    from mmfast.plugins import encoder_info
    from mmfast.train.config import Config

    assert isinstance(config, Config)
    for encoder in config.model.encoders.values():
        encoder_info(encoder.name)
    name = config.model.fusion.name
    if name not in list_fusions():
        raise ValueError(
            f"model.fusion.name is {name!r}; the fusions are {', '.join(list_fusions())}"
        )
