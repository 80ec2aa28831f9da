"""What installs a bundle on a board, without network and without draftwire.

The modules of this folder use the standard library alone and become one readable
script, ``install.sh`` (``script.py`` joins them): it must check a signature before
anything of ours, or any wheel, is on the board.
"""
