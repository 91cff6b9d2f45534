"""``python -m vs_deblur`` is ``vs-deblur``."""

from vs_deblur.cli import main

main()
