"""Commands of `glass` that have a module of their own, and what all of them say things with. No logic of their own."""
