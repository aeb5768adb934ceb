"""What can go wrong in an export."""

from __future__ import annotations

from mousetwin.errors import MousetwinError


class ExportError(MousetwinError, ValueError):
    """A checkpoint, config, data set or download that cannot be used; the message names the file and the key."""
