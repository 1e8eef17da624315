"""FlashAttention: the algorithm in torch and in Triton, the operators that call it, and what they cost.

algorithm.py    forward and backward, tile by tile, in plain torch       bias.py    numbers that are added to the scores
triton.py       the same on an NVIDIA GPU                                parts.py   who sees whom, as rectangles and triangles
operators.py    library operators and `flash_attention` on top of them   costs.py   FLOPs and slow-memory bytes
"""
