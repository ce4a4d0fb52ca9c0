"""The moments that are made before the first step are those that the optimizer would make at it, also on a card."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from simpo_cli.train.optimizer import make_optimizer, start_moments


class _Weights(nn.Module):
    """A matrix, one that is stored by columns, a scale, and a frozen one."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 3, device=device, dtype=dtype))
        self.turned = nn.Parameter(torch.ones(3, 4, device=device, dtype=dtype).t())
        self.scale = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, device=device, dtype=dtype), requires_grad=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_moments_are_those_of_the_first_step(device: str, dtype: torch.dtype) -> None:
    with FakeTensorMode():  # tensors that know their device and have no numbers
        kinds = []
        for before in (True, False):
            weights = _Weights(device, dtype)
            optimizer = make_optimizer(weights, weight_decay=0.0)
            if before:
                start_moments(optimizer)
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.ones_like(parameter)
            made = [dict(optimizer.state[parameter]) for parameter in optimizer.param_groups[0]["params"]]
            optimizer.step()
            after = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
            if before:
                assert all(old[key] is new[key] for old, new in zip(made, after, strict=True) for key in new)
            kinds.append([{key: (t.device, t.dtype, t.shape, t.stride()) for key, t in one.items()} for one in after])
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 3
    assert {kind[0].type for one in kinds[0] for kind in one.values()} == {device}
