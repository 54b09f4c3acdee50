"""``python -m fuzz``: random calls, good and bad. See the package."""

import argparse
import json
import os
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from fuzz import fatal, runner
from fuzz.pool import FACTORS, Pool


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="good calls, over all targets")
    parser.add_argument("--bad", type=int, help="calls with bad arguments; by default a third")
    parser.add_argument("--seed", type=int, help="by default another one every time")
    parser.add_argument("--derandomize", action="store_true", help="the same cases every time")
    parser.add_argument("--only", action="append", help="a target by name, as the table names it")
    parser.add_argument("--sizes", action="store_true", help="tensors beyond 2**31 elements, alone")
    parser.add_argument("--reproduce", metavar="CASE", help="run a case again, as JSON")
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reproduce:
        return reproduce(json.loads(arguments.reproduce))
    if arguments.sizes:
        from fuzz import sizes

        return sizes.main()
    seed = None
    if not arguments.derandomize:
        seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    if arguments.child:
        child(Path(arguments.child), seed)
        return 0
    return parent(arguments, seed)


def reproduce(case: dict[str, Any]) -> int:
    module = module_of(case["target"])
    try:
        module.run(case, Pool())
    except AssertionError as error:
        print(f"{case['target']}: {error}")
        return 1
    print(f"{case['target']}: as it should be")
    return 0


def module_of(name: str) -> Any:
    if name in fatal.NAMES:
        return fatal
    from fuzz import bad, targets

    return bad if name.startswith("bad ") else targets


def jobs_of(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    from fuzz import bad, targets

    count = arguments.cases
    wrong = count // 3 if arguments.bad is None else arguments.bad
    shares = {name: target.share for name, target in targets.TARGETS.items()}
    jobs = [(n, round(count * s / sum(shares.values()))) for n, s in shares.items()]
    jobs += [(name, round(wrong / len(bad.NAMES))) for name in bad.NAMES]
    return [(n, max(c, 1)) for n, c in jobs if not arguments.only or n in arguments.only]


def child(progress: Path, seed: int | None) -> None:
    runner.limited()
    # What hypothesis and torch print goes elsewhere than the results.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
    for name, count in json.loads(sys.stdin.read()):
        module, pool, start = module_of(name), Pool(), time.time()
        done = {"cases": 0}

        def run(case, module=module, pool=pool, done=done):
            done["cases"] += 1
            module.run(case, pool)

        found = None
        try:
            runner.sweep(module.cases(name), run, count, seed, progress)
        except runner.Found as error:
            found = str(error)
        ratios = [[*key, *value] for key, value in pool.ratios().items()]
        outcome = {"name": name, "found": found, "exact": pool.exact, "ratios": ratios}
        print(
            json.dumps({**outcome, **done, "seconds": time.time() - start}),
            file=results,
            flush=True,
        )


def parent(arguments: argparse.Namespace, seed: int | None) -> int:
    print("the same cases every time" if seed is None else f"seed {seed}")
    print(f"{'target':28} {'cases':>6} {'exact':>6} {'seconds':>8}  error / PyTorch's (allowed)")
    start, total, failures = time.time(), 0, 0
    given = ["--derandomize"] if seed is None else ["--seed", str(seed)]
    for outcome in runner.outcomes(given, jobs_of(arguments)):
        worst = dict.fromkeys(FACTORS, 0.0)
        for _, dtype, kind, ratio, count in outcome.get("ratios", []):
            if count >= ENOUGH and dtype != "float64":
                worst[kind] = max(worst[kind], ratio)
        broken = [k for k, ratio in worst.items() if ratio > FACTORS[k]]
        failures += bool(outcome["found"]) or bool(broken)
        total += outcome.get("cases", 0)
        shown = ", ".join(f"{k} {r:.2f} ({FACTORS[k]:.0f})" for k, r in worst.items() if r)
        print(
            f"{outcome['name']:28} {outcome.get('cases', 0):6} {outcome.get('exact', 0):6} "
            f"{outcome.get('seconds', 0):8.1f}  {shown}",
            flush=True,
        )
        if outcome["found"]:
            print(f"  FOUND {outcome['found']}")
        if broken:
            print(f"  FOUND mean errors beyond what is allowed: {outcome['ratios']}")
    print(f"{total} cases in {time.time() - start:.0f} s, {failures} findings")
    return 1 if failures else 0


# Of a target, dtype and kind: fewer cases say nothing about a mean.
ENOUGH = 100

if __name__ == "__main__":
    sys.exit(main())
