"""The words and wordings that made tasks use: YAML files beside the configs of their recipe."""

from typing import Any

import yaml

from hfscale.config import shipped


def load_sample_data(recipe: str, name: str) -> Any:
    """The content of `recipes/configs/<recipe>/made/<name>.yaml`, in a checkout or a wheel."""
    files = shipped(f"recipes/configs/{recipe}/made", "*.yaml")
    return yaml.safe_load(files[name].read_text("utf-8"))
