"""Language becomes motion: prompts, actions, metrics and worlds."""
