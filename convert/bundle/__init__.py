"""What ``python -m convert`` writes: a folder to copy into firmware and run."""
