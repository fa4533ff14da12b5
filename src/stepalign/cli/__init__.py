"""The program `stepalign`: a file per command, looked up in `table`.

`main` runs a command and turns every error into one line and an exit status; `command` is a row of the table,
`recipe_arguments` and `generation_arguments` are options that commands share, `console` and `progress_lines` show
progress.
"""

from stepalign.cli.main import main

__all__ = ["main"]
