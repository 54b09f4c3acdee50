"""``mmfast ...``: one command for everything that is not a library call."""

import sys

from mmfast import doctor

NEEDS_TRAIN = "the `mmfast` commands but `doctor` need the extra: pip install 'mmfast[train]'"


def main() -> int:
    """Run the command line; ``mmfast doctor`` works without the optional packages."""
    if sys.argv[1:2] == ["doctor"]:
        return doctor.main(sys.argv[2:])
    try:
        import typer
    except ImportError as error:
        sys.exit(f"{error}: {NEEDS_TRAIN}")
    app = typer.Typer(
        help="Fast multimodal fusion for PyTorch.", no_args_is_help=True, add_completion=False
    )
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(
        "doctor", context_settings=passed_on, help="What a bug report should contain; --json."
    )
    def _doctor(context: typer.Context) -> None:
        raise typer.Exit(doctor.main(context.args))

    @app.command(
        "demo",
        context_settings=passed_on,
        help="Train image, text and fused models on the emoji set; --help lists the options.",
    )
    def _demo(context: typer.Context) -> None:
        from mmfast.train import demo

        raise typer.Exit(demo.main(context.args))

    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
