"""Augmentation of batches, one technique a file: the loop calls them in its own order.

Each draws from the generator it is given, which lives on the device of the tensors, reads no number
back from there, and is the identity at 0.
"""
