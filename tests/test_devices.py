import pytest
import torch

from sfumato.devices import find_device
from sfumato.errors import ConfigError


def test_devices_have_their_usual_names():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(torch.device("cpu")) == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "xpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=f"cannot use device '{name}': .*; try 'cpu'"):
        find_device(name)


def test_a_device_without_float64_is_refused():
    if torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="cannot use device 'mps'"):
            find_device("mps")
    elif torch.cuda.is_available():
        assert find_device("cuda") == torch.device("cuda", 0)
    else:
        with pytest.raises(ConfigError, match="cannot use device 'cuda'"):
            find_device("cuda")
