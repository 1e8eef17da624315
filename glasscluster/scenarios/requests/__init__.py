"""The typed request of each command: its options, and the plan or model made of them."""
