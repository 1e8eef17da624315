"""What ranks did, as columns of events: one schema, the recorder, the memory ledger, the graph.

Knows no rank, no wire and no second.
"""
