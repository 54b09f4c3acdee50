"""Operators as PyTorch sees them: one module each, with its fake kernel and autograd formula.

Users call :mod:`mmfast.functional`; this package is for code that needs the operator itself.
"""
