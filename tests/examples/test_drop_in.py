"""The example does what it says."""

import pathlib
import re
import runpy

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def test_drop_in(capsys):
    runpy.run_path(str(EXAMPLES / "drop_in.py"), run_name="__main__")
    printed = capsys.readouterr().out
    difference = re.search(r"results: (\S+)", printed)
    assert difference
    assert float(difference.group(1)) < 1e-5
    assert "ConcatLinear(in_features=[512, 256], out_features=128" in printed
