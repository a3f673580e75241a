"""The command line: what is typed → a request, and what is shown of its work.

app.py       the command line; eval.py, bench.py, …: a command each
options.py   options that several commands have, each said once
console.py   what commands share: running with progress, what is printed where, and exit codes
progress.py  progress on stderr
streams.py   stdout and stderr, which may be closed
"""
