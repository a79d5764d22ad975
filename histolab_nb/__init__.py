"""Modules:

- `histolab_nb.core`: The few things every notebook needs: one kind of error, one kind of recipe, a scale, a seed, a device, and files that are never half written."""

__version__ = "0.1.0"
