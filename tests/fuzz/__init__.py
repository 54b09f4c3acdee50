"""Random calls of every operator and fusion, good and bad, judged by references of their own.

``python -m fuzz`` (``make fuzz``) runs as many as it is told; ``make test`` a few hundred. A case
is a dictionary of plain values, from which its tensors are made again: that is what a failure
prints. docs/trust.md says what is drawn and what was found.
"""
