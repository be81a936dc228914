"""`make demo`: a real cluster, real transactions, a node that falls sick and dies; the account.

`scenario` draws what happens, `transactions` gives the input, `load` appends it, `trouble` makes
the victim sick and kills it, `watch` tells what the LAS does, `account` reads everything back and
compares, `report` writes it down. `python -m peerd.cli.demo` runs it.
"""
