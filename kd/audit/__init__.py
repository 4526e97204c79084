"""`python -m kd.audit`: the same experiment under several seeds, and what they say about its claim.

`request` reads the command, `runs` trains what is missing (or `found` collects finished folders), `judge` turns the
runs into the content of audit.json, `show` prints it. Nothing here imports torch: the runs are processes of their own.
"""
