"""Training of the networks: synthesis of blurred/sharp sequences, losses, loop and recipes.

Not part of the wheel; run from a checkout as ``python -m training``.
"""
