"""The base class of the fusion modules, and its helpers."""

import pytest
import torch

from mmfast.nn.fusion import (
    Fusion,
    by_name,
    check_present,
    check_size,
    sizes,
    without_absent,
)

X, Y = torch.ones(4, 3), torch.ones(4, 5)


def test_arguments_are_kept():
    fusion = Fusion({"image": 3, "text": 5}, 6)
    assert fusion.names == ("image", "text")
    assert fusion.in_features == (3, 5)
    assert fusion.out_features == 6
    assert Fusion([3, 5], 6).names is None


def test_repr():
    assert repr(Fusion([3, 5], 6)) == "Fusion(in_features=[3, 5], out_features=6)"
    assert repr(Fusion({"a": 3}, 6)) == "Fusion(in_features={'a': 3}, out_features=6)"


def test_ordered():
    named, plain = Fusion({"image": 3, "text": 5}, 6), Fusion([3, 5], 6)
    present = torch.ones(4, 2).bool()
    for fusion, inputs in (
        (named, {"text": Y, "image": X}),
        (named, [X, Y]),
        (plain, [X, Y]),
        (plain, (X, Y)),
    ):
        tensors, mask = fusion.ordered(inputs, present)
        assert tensors[0] is X
        assert tensors[1] is Y
        assert mask is present
        assert fusion.ordered(inputs)[1] is None


@pytest.mark.parametrize(
    ("inputs", "exception", "message"),
    [
        (X, TypeError, "inputs must be a sequence or mapping of tensors, got Tensor"),
        (3, TypeError, "inputs must be a sequence or mapping of tensors, got int"),
        ([X, "text"], TypeError, r"inputs\[1\] must be a tensor, got str"),
        ([X, None], TypeError, r"inputs\[1\] must be a tensor, got NoneType"),
        ([Y, X], ValueError, r"last sizes \[5, 3\]; in_features says \[3, 5\]"),
        ([X], ValueError, r"last sizes \[3\]; in_features says \[3, 5\]"),
        ([], ValueError, r"last sizes \[\]; in_features says \[3, 5\]"),
        ([torch.tensor(1.0), Y], ValueError, r"last sizes \[0, 5\]"),
        ({"image": X, "text": Y}, ValueError, "inputs is a mapping but in_features names no"),
    ],
)
@pytest.mark.cpu_only
def test_ordered_refuses(inputs, exception, message):
    with pytest.raises(exception, match=message):
        Fusion([3, 5], 6).ordered(inputs)


@pytest.mark.parametrize("inputs", [{"image": X}, {"image": X, "audio": Y}, {}])
@pytest.mark.cpu_only
def test_names_are_checked(inputs):
    with pytest.raises(ValueError, match=r"inputs has the names .*\['image', 'text'\]") as info:
        by_name(inputs, ("image", "text"))
    info.match(str(sorted(inputs)).replace("[", r"\[").replace("]", r"\]"))


@pytest.mark.parametrize("shape", [(2,), (1, 2), (4, 2), (3, 1, 2), (1, 4, 2), (3, 4, 2)], ids=str)
def test_present_may_broadcast(shape):
    present = torch.ones(shape, dtype=torch.bool)
    check_present(present, [torch.Size((3, 4)), torch.Size((4,))])


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (4, 1), (3, 2), (4, 3), (4, 4, 2), (1, 3, 4, 2)], ids=str
)
def test_present_must_fit(shape):
    """It may not enlarge the batch, nor stand for all modalities at once."""
    present = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"present has shape .*it must be \(3, 4, 2\)") as info:
        check_present(present, [torch.Size((3, 4)), torch.Size((4,))])
    assert str(shape) in str(info.value)


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([True, False], "present must be a bool tensor or None, got list"),
        (torch.ones(4, 2), "present has dtype torch.float32; it must be torch.bool"),
        (torch.ones(4, 2).long(), "present has dtype torch.int64; it must be torch.bool"),
    ],
)
def test_present_must_be_bool(present, message):
    with pytest.raises(TypeError, match=message):
        check_present(present, [torch.Size((4,))] * 2)


def test_without_absent():
    x, y = torch.randn(4, 3, requires_grad=True), torch.full((4, 5), torch.nan, requires_grad=True)
    present = torch.tensor([[True, False], [False, False], [True, False], [False, False]])
    kept, silent = without_absent([x, y], present)
    assert torch.equal(kept[::2], x[::2])
    assert torch.equal(kept[1::2], torch.zeros(2, 3))
    assert torch.equal(silent, torch.zeros(4, 5))
    (kept.sum() + silent.sum()).backward()
    assert torch.equal(x.grad, present[:, :1].expand(4, 3).float())
    assert torch.equal(y.grad, torch.zeros(4, 5))


def test_without_absent_broadcasts():
    x = torch.randn(1, 3)
    (found,) = without_absent([x], torch.tensor([[True], [False]]))
    assert torch.equal(found, torch.stack([x[0], torch.zeros(3)]))
    assert without_absent([x], None)[0] is x


def test_check_size():
    assert check_size("rank", 1, 1) == 1
    for wrong in (0, 1.0, True, "1", None):
        with pytest.raises(ValueError, match=f"rank is {wrong!r}; it must be an int of at least 1"):
            check_size("rank", wrong, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "in_features is empty"),
        ({}, "in_features is empty"),
        ("ab", "in_features is 'ab'; it must be a sequence of sizes, or a mapping"),
        (3, "in_features is 3; it must be a sequence of sizes, or a mapping"),
        ([3, -1], "in_features holds -1; each must be an int of at least 0"),
        ([3, 2.5], r"in_features holds 2\.5"),
        ({"a": True}, "in_features holds True"),
    ],
)
def test_sizes_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        sizes(wrong)


def test_sizes():
    assert sizes([3, 0]) == sizes({"a": 3, "b": 0}) == (3, 0)


def test_out_features_are_checked():
    with pytest.raises(ValueError, match="out_features is -6; it must be an int of at least 0"):
        Fusion([3, 5], -6)
