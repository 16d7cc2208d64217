"""What an error that ends a run is called: a sentence for people, a cause for the page, the evidence."""

from __future__ import annotations

import errno

from dataset_tools.images import ImageError

from .contract.errors import RunError, UserError
from .contract.files import is_disk_full
from .ladder import gpu_is_full

BROKEN = (errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
"""Of a disk that fails, became read-only, or is not ours to write on."""


def explain(error: BaseException) -> tuple[str, str, str]:
    """(sentence, cause, evidence) for an error that ends a run."""
    text = str(error).strip() or type(error).__name__
    evidence = f"{type(error).__name__}: {text.splitlines()[-1]}"[:500]
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted; what was saved before is still there, resume to go on.", "killed", evidence
    if gpu_is_full(error):
        return "The GPU ran out of memory; lower the batch size or the resolution.", "gpu_oom", evidence
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "The computer ran out of memory; lower the batch size or the resolution.", "host_oom", evidence
    if isinstance(error, RunError):
        return text, error.cause, getattr(error, "evidence", evidence)
    if is_disk_full(error):
        return "The disk is full; free some space, then resume.", "disk_full", evidence
    if isinstance(error, OSError) and error.errno in BROKEN:
        what = f"{error.filename or 'The disk'} cannot be read or written ({error.strerror})"
        return f"{what}; check the disk and its permissions, then resume.", "unknown", evidence
    if isinstance(error, ImageError):
        return text, "bad_image", evidence
    if isinstance(error, UserError):
        return text, "config", evidence
    return f"The training failed unexpectedly ({evidence}); trainer.log has the details.", "unknown", evidence
