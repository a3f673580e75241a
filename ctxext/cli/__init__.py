"""The command line: what is typed → a request, and what is shown of its work.

app.py       the commands and their options
console.py   what commands share: running with progress, what is printed where, and exit codes
progress.py  progress on stderr
streams.py   stdout and stderr, which may be closed
"""
