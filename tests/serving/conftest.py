import pytest


@pytest.fixture(scope="module")
def model(model_folder):
    """In float64, so that no two tokens are as likely as each other but for rounding."""
    import torch

    import steerlens as sl

    return sl.load_model(str(model_folder), dtype=torch.float64)
