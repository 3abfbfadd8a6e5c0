"""What `model.generate(custom_generate=outpace.doors.transformers.FOLDER, trust_remote_code=True)` runs."""

from typing import Any

from outpace.doors.transformers import generate as decode


def generate(model: Any, **arguments: Any) -> Any:
    """Decode with our methods: transformers prepares the arguments, as with its own."""
    return model.generate(custom_generate=decode, **arguments)
