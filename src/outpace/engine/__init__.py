"""Many callers, one model: asks are taken in, stepped together, and answered token by token."""
