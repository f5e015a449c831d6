"""What ``python -m convert`` writes: a folder to copy into firmware and run."""

from convert.bundle.old import manifest, write_bundle

__all__ = ["manifest", "write_bundle"]
