"""What can be fuzzed, by name: how to draw a case, and the problem that it stands for."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from fuzz import attention, composed, modules, operators
from fuzz.formulas import FORMULAS
from fuzz.judge import Problem, check
from fuzz.pool import Pool
from mmfast.nn.registry import list_fusions
from mmfast.ops.library import host

Case = dict[str, Any]


class Target(NamedTuple):
    draw: st.SearchStrategy[Case]
    problem: Callable[[Case], Problem]
    share: float = 1.0  # of the cases of a run, beside the others


OVER_ROWS = ("weighted_sum", "attention_pool", "gated_sum", "rank_product")
OPERATORS = {
    "concat_linear": Target(operators.concat_linear(), operators.concat_linear_problem, 4),
    **{
        name: Target(operators.over_rows(name), operators.over_rows_problem, 1.5)
        for name in OVER_ROWS
    },
    "tensor_fusion": Target(composed.tensor_fusion(), composed.tensor_fusion_problem),
    "contrastive_loss": Target(composed.contrastive_loss(), composed.contrastive_loss_problem),
    "multi_source_attention": Target(
        attention.multi_source_attention(), attention.multi_source_attention_problem, 2
    ),
    "merge_attention": Target(attention.merge_attention(), attention.merge_attention_problem, 0.5),
}
FUSIONS = {
    f"nn.{name}": Target(modules.fusion(name), modules.fusion_problem, 0.3)
    for name in list_fusions()
    if name in FORMULAS  # those of other people have none
}
TARGETS: dict[str, Target] = {**OPERATORS, **FUSIONS}

# How a case is run, whatever it is.
settings = st.fixed_dictionaries(
    {
        "isa": st.sampled_from(host.cpu_isas()[::-1]),
        "threads": st.sampled_from((1, 1, 2, 3)),
    }
)


def cases(name: str) -> st.SearchStrategy[Case]:
    """Cases of a target, with how to run them."""
    return st.builds(partial(_joined, name), TARGETS[name].draw, settings)


def _joined(name: str, case: Case, how: Case) -> Case:
    return {"target": name, **how, **case}


def run(case: Case, pool: Pool) -> None:
    """Run a case; AssertionError says what is wrong."""
    threads = torch.get_num_threads()
    host.force_cpu_isa(case["isa"] if case["isa"] in host.cpu_isas() else "")
    torch.set_num_threads(case["threads"])
    # Fills with NaN what a kernel is given to write, so that what it leaves out shows.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        problem = TARGETS[case["target"]].problem(case)
        check(problem, (case["target"], case["dtype"]), pool)
    finally:
        host.force_cpu_isa("")
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
