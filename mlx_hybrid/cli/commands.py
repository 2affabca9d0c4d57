"""Commands to copy from the screen."""

import shlex


def command(*words: object) -> str:
    """`mlx-hybrid` with its arguments, quoted where the shell would split or expand them."""
    return shlex.join(["mlx-hybrid", *(str(word) for word in words)])
