"""``mmfast config check | show | schema``: look at a configuration without training."""

from __future__ import annotations

import argparse

from mmfast.nn.registry import FUSIONS
from mmfast.plugins import PluginLoadError
from mmfast.plugins.encoders import ENCODERS
from mmfast.plugins.options import check_option_names
from mmfast.plugins.registry import Registry
from mmfast.train.commands.common import told
from mmfast.train.config import Config, Encoder, Fusion, json_schema, load_config, to_yaml


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


def _check_plugins(config: Config) -> None:
    """Raise for encoders and fusions that cannot be loaded or have no such option, all at once."""
    chosen: list[tuple[str, Registry, Encoder | Fusion, tuple[str, ...]]] = [
        (f"model.encoders.{name}", ENCODERS, encoder, ())
        for name, encoder in config.model.encoders.items()
    ]
    chosen.append(("model.fusion", FUSIONS, config.model.fusion, ("in_features", "out_features")))
    problems = []
    for key, registry, plugin, given in chosen:
        try:
            factory = registry.load(registry.find(plugin.name))
            what = f"the {registry.kind} {plugin.name!r}"
            check_option_names(what, factory, plugin.options, given)
        except (ValueError, TypeError, PluginLoadError) as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ValueError("\n  ".join(["in the configuration:", *problems]))
