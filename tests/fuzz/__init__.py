"""A fuzzer of the `glass` command: wrong inputs of every kind, each from a number and a seed.

python -m tests.fuzz --cases 500                     cases 0 to 499 of seed 0
python -m tests.fuzz --cases 10000 --seed 7          others
python -m tests.fuzz --only weights --cases 100      one kind
python -m tests.fuzz --rerun FILE.json               a failing case that an earlier run wrote down

samples.py   sound files to begin with          values.py     hostile values, mutators of formats
kinds.py     what is attacked, and how          cases.py      a number and a seed -> a case
worker.py    many cases in one process          judge.py      what a case may end with
campaign.py  cases under limits; what fails is made small
"""
