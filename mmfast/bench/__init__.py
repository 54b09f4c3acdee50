"""Benchmarks that can be trusted: what every operator is measured against, and how.

``python -m mmfast.bench`` and ``benchmarks/`` share these modules. Importing this package imports
none of them: :mod:`mmfast.bench.timing` needs no more than torch, the reports need the extra
``mmfast[bench]``.
"""
