"""``mmfast ...``: one command for everything that is not a library call.

Each command is the ``main(argv)`` of a module of its own, imported only when it is called: so
``mmfast doctor`` works where the optional packages, or the compiled library, do not.
"""

import importlib
import os
import select
import sys

import mmfast

# command: module with main(argv) -> int, the extra it needs, what it does
COMMANDS = {
    "bench": ("mmfast.bench.cli", "bench", "time the operators against their peers"),
    "compare": ("mmfast.train.commands.compare", "train", "which of several runs is better"),
    "config": ("mmfast.train.commands.config", "train", "check, show or describe a configuration"),
    "crossval": ("mmfast.train.commands.crossval", "train", "train and test on every fold"),
    "demo": ("mmfast.train.demo", "train", "train each modality alone and all joined; compare"),
    "doctor": ("mmfast.doctor", "", "print what a bug report should contain"),
    "encoders": ("mmfast.encoders_cli", "", "list, show and check encoders; write a new plugin"),
    "evaluate": ("mmfast.train.commands.evaluate", "train", "measure a trained run"),
    "export": ("mmfast.train.commands.export", "train", "a trained model as a torch.export file"),
    "predict": ("mmfast.train.commands.predict", "train", "what a trained run says of a table"),
    "report": ("mmfast.train.commands.report", "train", "a run, or several, as one HTML page"),
    "train": ("mmfast.train.commands.train", "train", "train what a configuration describes"),
}


def usage() -> str:
    """What ``mmfast --help`` prints."""
    lines = [f"  {name:<8} {what}" for name, (_, _, what) in COMMANDS.items()]
    commands = "\n".join(lines)
    return (
        "usage: mmfast COMMAND [options]; mmfast COMMAND --help lists a command's options\n\n"
        f"{commands}\n\n  --version"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status, 2 for a wrong call."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:  # as it is where it was closed
                sys.stdout.flush()
    except BrokenPipeError as error:
        if _reader_is_gone():
            # What Python still holds goes nowhere, in silence.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif os.environ.get("MMFAST_TRACEBACK") == "1":
            raise
        else:
            print(f"mmfast: {error}", file=sys.stderr)
        return 1


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as behind ``| head``."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (AttributeError, OSError, ValueError):  # no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(mmfast.__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"mmfast: there is no command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module, extra, _ = COMMANDS[argv[0]]
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("mmfast"):
            raise
        print(
            f"mmfast {argv[0]} needs {error.name}, which is not installed: "
            f"pip install 'mmfast[{extra}]'",
            file=sys.stderr,
        )
        return 1
    status: int = command.main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
