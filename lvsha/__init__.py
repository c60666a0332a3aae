"""lvsha: a highly available Linux Virtual Server director.

The package is layered; see ``docs/architecture.md``. Importing it starts nothing.
"""

__version__ = "0.1.0"
