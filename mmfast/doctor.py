"""What a bug report should contain: ``python -m mmfast.doctor`` or ``mmfast doctor``.

Says what is installed, how the kernels were built, which of them this machine will use, and for
whatever is unavailable the reason.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys


def examine() -> dict[str, dict[str, str]]:
    """Everything there is to say, as sections of key and value."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "kernels": _kernels(),
        "cuda": _cuda(),
        "extras": {extra: _extra(extra) for extra in ("train", "bench", "hf", "timm")},
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    found = {name: _installed(name) or "not installed" for name in ("mmfast", "torch", "numpy")}
    return {**found, "python": sys.version.split()[0], "platform": platform.platform()}


def _machine() -> dict[str, str]:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unknown"
    facts = {"processor": _processor(), "cores usable": str(available)}
    try:
        import torch
    except Exception as error:  # a broken torch is exactly what this tool reports
        return {**facts, "torch": f"does not import: {error}"}
    return {
        **facts,
        "torch threads": f"{torch.get_num_threads()} ({_thread_settings()})",
        "torch instruction set": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _thread_settings() -> str:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return ", ".join(f"{name} {os.environ.get(name, 'unset')}" for name in names)


def _kernels() -> dict[str, str]:
    try:
        host = importlib.import_module("mmfast.ops.library").host
    except Exception as error:  # the reason is what the report is for
        return {"loaded": f"no: {error}"}
    build = host.build_info()
    return {
        "loaded": f"yes, from {host.__file__}",
        "built with": f"torch {build['torch']}, {build['compiler']}",
        "runs with": f"torch {build['oldest_torch']} and newer",
        "flags": build["flags"],
        "instruction sets": f"{', '.join(host.cpu_isas())}; in use: {host.cpu_isa()}",
    }


def _cuda() -> dict[str, str]:
    facts = {}
    try:
        built = importlib.import_module("mmfast.ops.library").host.build_info()
        facts["kernels"] = (
            f"built with CUDA {built['cuda_toolkit']} for {built['cuda_archs']}"
            if built["cuda"]
            else "not in this build: it has CPU kernels only"
        )
    except Exception:  # already told under "kernels"
        facts["kernels"] = "unknown: the library does not load"
    try:
        import torch
    except Exception as error:  # see _machine
        return {**facts, "device": f"unknown: torch does not import: {error}"}
    if torch.version.cuda is None:
        facts["device"] = "none: this torch was built without CUDA"
    elif not torch.cuda.is_available():
        facts["device"] = f"none: torch has CUDA {torch.version.cuda} but finds no usable GPU"
    else:
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        facts["device"] = f"{name} (sm_{major}{minor}), CUDA {torch.version.cuda}"
    return facts


def _extra(extra: str) -> str:
    """Whether what the package's own metadata lists under an extra is installed."""
    missing = [
        package
        for requirement in importlib.metadata.requires("mmfast") or []
        if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
        for package in [re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]]
        if _installed(package) is None
    ]
    return f"unavailable: {', '.join(missing)} not installed" if missing else "available"


def main(argv: list[str] | None = None) -> int:
    """Print the report; returns 1 if the kernels do not load, else 0."""
    parser = argparse.ArgumentParser("mmfast doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    report = examine()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for section, facts in report.items():
            print(section)
            for name, value in facts.items():
                print(f"  {name:<22}{value}")
    return 0 if report["kernels"]["loaded"].startswith("yes") else 1


if __name__ == "__main__":
    sys.exit(main())
