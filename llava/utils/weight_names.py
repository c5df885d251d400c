"""The names in a module's state dict, without making one.

Making one has side effects: under FSDP2 it takes back the whole weights of a forward pass that another thread is in.
"""

from __future__ import annotations

from torch import nn


def weight_names(module: nn.Module) -> set[str]:
    """The keys of `module.state_dict()`: parameters and persistent buffers, shared ones under every name."""
    found = set()
    for prefix, part in module.named_modules(remove_duplicate=False):
        own = [*part.named_parameters(recurse=False, remove_duplicate=False)]
        own += part.named_buffers(recurse=False, remove_duplicate=False)
        names = {name for name, _ in own} - part._non_persistent_buffers_set
        found |= {f"{prefix}.{name}" if prefix else name for name in names}
    return found
