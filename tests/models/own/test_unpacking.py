"""What is quantised computes as plain weights, or is refused in a format that its kernels lack."""

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.models.own.unpacking import require_format, unpack
from schemas.errors import ConfigError


class _Packed(torch.Tensor):
    """A tensor as libraries have them: it knows what it stands for, and little else."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("aminmax", "linear", "float"):
            raise NotImplementedError(f"{func.__name__} of packed values")
        plain: Any = super().__torch_function__
        return plain(func, types, args, kwargs or {})

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor) * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_that_know_what_they_stand_for_become_plain_ones(dtype: str) -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    before = model[0].weight.detach().clone()
    model[0].weight = nn.Parameter(before.as_subclass(_Packed), requires_grad=False)
    unpack(model, "torchao", dtype)
    assert type(model[0].weight.data) is torch.Tensor
    assert torch.equal(model[0].weight, (2 * before).to(getattr(torch, dtype)))


def test_a_model_that_is_not_quantised_stays_as_it_is() -> None:
    model: Any = nn.Linear(2, 2).half()
    unpack(model, None, "float32")
    assert model.weight.dtype == torch.float16
    unpack(model, "mxfp4", "float32")
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_kernels_in_16_bits_are_refused_in_float32(method: str) -> None:
    with pytest.raises(ConfigError, match=f"the model x in float32: .*{method}.* dtype = 'bfl"):
        require_format("the model x", method, "float32")
    require_format("the model x", method, "bfloat16")
    require_format("the model x", "fp8", "float32")
