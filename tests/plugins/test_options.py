"""mmfast.plugins.options: checked by a pydantic model, or by the signature."""

from typing import Annotated, Literal

import pydantic
import pytest

from mmfast.plugins.options import checked_options


class Crop(pydantic.BaseModel):
    top: int = 0


class Options(pydantic.BaseModel):
    size: Annotated[int, pydantic.Field(gt=0)]
    pool: Literal["mean", "max"] = "mean"
    crop: Crop = Crop()


class Modelled:
    Options = Options


def modelled(**options):
    return checked_options("the encoder 'a'", Modelled, options)


def test_model():
    assert modelled(size="64") == {"size": 64, "pool": "mean", "crop": Crop()}
    assert modelled(size=1, crop={"top": 2})["crop"] == Crop(top=2)


def test_model_refuses_values():
    with pytest.raises(
        ValueError, match="the encoder 'a': the option size is needed; the option"
    ) as e:
        modelled(pool="sum", crop={"top": "x"})
    assert "the option pool is 'sum': Input should be 'mean' or 'max'" in str(e.value)
    assert "the option crop.top is 'x': Input should be a valid integer" in str(e.value)
    assert isinstance(e.value.__cause__, pydantic.ValidationError)


def test_model_refuses_names():
    """Also where the model would ignore them, as pydantic's do by default."""
    message = r"'a' has no option 'sise' \(did you mean 'size'\?\); it takes size, pool, crop"
    with pytest.raises(TypeError, match=message):
        modelled(sise=3)


def test_model_with_more():
    class Open(pydantic.BaseModel, extra="allow"):
        size: int = pydantic.Field(alias="height", default=1)

    def function(**options): ...

    function.Options = Open
    assert checked_options("x", function, {"height": 2, "free": 3}) == {"size": 2, "free": 3}


def function(inputs, size, *, pool="mean"): ...


def test_signature():
    options = {"size": 3}
    assert checked_options("the fusion 'f'", function, options, ["inputs"]) == options
    with pytest.raises(
        TypeError, match="the fusion 'f' needs the option 'size'; it takes size, pool"
    ):
        checked_options("the fusion 'f'", function, {}, ["inputs"])
    with pytest.raises(TypeError, match=r"has no option 'inputs'; it takes size, pool"):
        checked_options("the fusion 'f'", function, {"size": 1, "inputs": 2}, ["inputs"])


def test_signature_that_takes_all():
    def free(first, **options): ...

    assert checked_options("x", free, {"first": 1, "what": 2}) == {"first": 1, "what": 2}
    with pytest.raises(TypeError, match="x needs the option 'first'"):
        checked_options("x", free, {"what": 2})


def test_no_signature_to_read():
    assert checked_options("x", dict, {"a": 1}) == {"a": 1}


def test_no_options():
    with pytest.raises(TypeError, match="x has no option 'a'; it takes none"):
        checked_options("x", lambda: None, {"a": 1})
